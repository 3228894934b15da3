"""Logs through the SDK (semantics.md section 26)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

import cadenza
from cadenza.base.errors import InvalidError, LogsFetchError, ServerWarning
from cadenza.sdk import logs
from cadenza.sdk.call import FunctionCall
from cadenza.sdk.client import Client
from cadenza.sdk.function import Function
from fake_server import FakeServer

LINES = [
    (1000.5, 1, "one\ntwo\n", "fu-1", "fc-1"),
    (1001.0, 2, "half\rbad\u2028line\n", "fu-1", "fc-2"),
    (1002.0, 0, "no end", "", ""),
]


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    one.ends = True
    one.finished = 0

    def read(peer, number, body, payload):
        entries, data = [], b""
        for time, fd, text, function_id, call_id in LINES:
            raw = text.encode()
            entries.append(
                {
                    "time": time,
                    "fd": fd,
                    "size": len(raw),
                    "app_id": "ap-1",
                    "container_id": "ta-1" if fd else "",
                    "function_id": function_id,
                    "call_id": call_id,
                    "input_id": "",
                }
            )
            data += raw
        peer.send("item", number, {"entries": entries, "dropped_bytes": getattr(one, "dropped", 0)}, data)
        if one.ends:
            peer.send("end", number)

    def info(peer, number, body, payload):
        one.finished += 1
        finished = int(one.finished > 2)
        peer.send(
            "rep",
            number,
            {"call_id": body["call_id"], "function_id": "fu-1", "function_name": "f", "app_id": "ap-1", "kind": "spawn",
             "created_at": 1.0, "inputs": 1, "finished": finished},
        )  # fmt: skip

    one.handlers["log.read"] = read
    one.handlers["call.info"] = info
    one.handlers["function.get"] = lambda peer, number, body, payload: peer.send(
        "rep", number, {"function_id": "fu-1", "app_id": "ap-1", "name": "f", "is_generator": False}
    )
    yield one
    one.close()


@pytest.fixture
def client(server):
    one = Client("unix:" + server.path)
    yield one
    one.close()


@pytest.fixture
def app(client):
    one = cadenza.App("named")
    one._client = client
    return one


def test_lines_have_their_time_source_and_ids(app):
    found = list(app.logs.tail(5, source="stderr"))
    assert [one.message for one in found] == ["one\n", "two\n", "half\rbad\u2028line\n", "no end"]
    assert [one.source for one in found] == ["stdout", "stdout", "stderr", "system"]
    assert found[0].timestamp == datetime(1970, 1, 1, 0, 16, 40, 500000, tzinfo=timezone.utc)
    assert (found[0].object_id, found[0].context_ids) == ("fu-1", ["ta-1", "fc-1"])
    assert (found[3].object_id, found[3].context_ids) == ("ap-1", [])


def test_what_the_server_is_asked(app, client, server):
    since = datetime(2026, 1, 1, tzinfo=timezone.utc)
    list(app.logs.fetch(since=since, until=since + timedelta(days=1), search_text="x"))
    list(Function.from_id("fu-1", client=client).logs.tail())
    list(FunctionCall.from_id("fc-1", client).logs.fetch())
    list(app.logs.stream(timeout=5))
    asked = server.requests("log.read")
    begin = since.timestamp()
    assert [asked[0][key] for key in ("app", "since", "until", "search", "source", "follow")] == [
        "named", begin, begin + 86400.0, "x", "", False,
    ]  # fmt: skip
    assert (asked[1]["app"], asked[1]["function"], asked[1]["tail"]) == ("ap-1", "fu-1", 100)
    assert (asked[2]["app"], asked[2]["call"], asked[2]["since"]) == ("ap-1", "fc-1", 0.0)
    assert asked[3]["follow"] and asked[3]["since"] > begin


def test_async_form(app):
    async def read():
        return [one.message async for one in app.logs.tail.aio(2)]

    assert asyncio.run(read())[0] == "one\n"


def test_a_stream_ends_after_its_timeout(app, server):
    server.ends = False
    assert len(list(app.logs.stream(timeout=0.05))) == 4
    assert len(list(app.logs.stream(timeout=0))) == 0


def test_the_stream_of_a_call_ends_with_the_call(client, server, monkeypatch):
    monkeypatch.setattr(logs, "QUIET_S", 0.005)
    server.ends = False
    assert len(list(FunctionCall.from_id("fc-1", client).logs.stream())) == 4
    assert server.finished >= 3


def test_a_slow_reader_is_told_what_it_missed(app, server):
    server.dropped = 77
    with pytest.warns(ServerWarning, match="77 bytes"):
        list(app.logs.tail())


def test_bad_arguments(app):
    now = datetime.now()
    for make in (
        lambda: app.logs.tail(0),
        lambda: app.logs.tail(True),
        lambda: app.logs.tail(source="out"),
        lambda: app.logs.stream(timeout=-1),
        lambda: app.logs.fetch(since=3.0),
        lambda: app.logs.fetch(since=now, search_text=b"x"),
        lambda: app.logs.fetch(since=now, until=now - timedelta(seconds=1)),
        lambda: list(cadenza.App().logs.tail()),
    ):
        with pytest.raises(InvalidError):
            make()
    with pytest.raises(LogsFetchError, match="35 days"):
        app.logs.fetch(since=now - timedelta(days=36))


def test_the_types_are_where_programs_look_for_them():
    from cadenza import compat

    compat.install()
    try:
        from modal.types import FunctionCurrentStats, LogEntry

        assert LogEntry.__module__ == FunctionCurrentStats.__module__ == "cadenza.sdk.types"
    finally:
        compat.uninstall()
