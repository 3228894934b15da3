"""What a run shows: semantics.md sections 23 and 26."""

from __future__ import annotations

import asyncio
import io

import pytest

from cadenza.protocol.methods import LogEntry
from cadenza.protocol.nodes import BuildLine
from cadenza.sdk import _dual, output
from cadenza.sdk.client import Client
from fake_server import FakeServer


def entry(fd, text, time=1.0):
    return LogEntry(time=time, fd=fd, size=len(text.encode()), app_id="ap-1")


def test_off_by_default_and_on_inside_the_block():
    assert output.current() is None
    with output.enable_output():
        assert isinstance(output.current(), output.PlainSink)
        outer = output.current()
        with output.enable_output(show_progress=False):
            assert output.current() is outer
    assert output.current() is None


def test_an_installed_sink_stays_in_force_inside_enable_output():
    sink = output.PlainSink()
    output.install(sink)
    try:
        with output.enable_output():
            assert output.current() is sink
        assert output.current() is sink
    finally:
        output.remove(sink)
    assert output.current() is None


def test_plain_sink_keeps_the_streams_apart_and_progress_lines_whole(capsys):
    sink = output.PlainSink()
    sink.log(entry(output.STDOUT, "a\n"), "a\n")
    sink.log(entry(output.STDERR, "b\n"), "b\n")
    sink.log(entry(output.STDOUT, "50 %\r"), "50 %\r")
    sink.phase("Building the image")
    sink.build_line("im-123456789", BuildLine("step", 1, 2, "pip install numpy"))
    sink.build_line("im-123456789", BuildLine("log", 1, 2, "Collecting numpy\n"))
    out, err = capsys.readouterr()
    assert out == "a\n50 %\r"
    assert err == "b\nBuilding the image\n[im-123456] step 1 of 2: pip install numpy\nCollecting numpy\n"


def test_without_progress_only_the_apps_own_output_is_shown(capsys):
    sink = output.PlainSink(show_progress=False)
    sink.phase("Building the image")
    sink.log(entry(1, "a\n"), "a\n")
    assert capsys.readouterr() == ("a\n", "")


def test_a_stream_that_cannot_write_it_does_not_end_the_program():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    sink = output.PlainSink(stdout=ascii_only)
    sink.log(entry(1, "é\n"), "é\n")
    assert ascii_only.buffer.getvalue() == b"\\xe9\n"
    ascii_only.close()
    sink.log(entry(1, "more\n"), "more\n")


class Recorder(output.PlainSink):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, entry, text):
        self.lines.append((entry.fd, text))

    def dropped(self, size_bytes):
        self.lines.append(size_bytes)


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


def test_follower_shows_what_comes_until_the_stream_ends(server):
    def read(peer, number, body, payload):
        peer.send(
            "item",
            number,
            {
                "entries": [
                    {"time": 1.0, "fd": 1, "size": 2, "app_id": "ap-1"},
                    {"time": 2.0, "fd": 2, "size": 3, "app_id": "ap-1"},
                ],
                "dropped_bytes": 7,
            },
            b"a\nbb\n",
        )
        peer.send("end", number)

    server.handlers["log.read"] = read
    client, sink = Client("unix:" + server.path), Recorder()

    async def main():
        follower = output.Follower(client, "ap-1", sink)
        follower.start()
        await follower.end(patience_s=5)

    _dual.run(main())
    assert sink.lines == [7, (1, "a\n"), (2, "bb\n")]
    assert server.requests("log.read")[0]["follow"] is True
    client.close()


def test_follower_asks_again_from_where_it_was_when_the_connection_breaks(server, monkeypatch):
    monkeypatch.setattr(output, "FOLLOW_AGAIN_S", 0.001)

    async def read(peer, number, body, payload):
        if body["since"] == 0.0:
            item = {"entries": [{"time": 5.0, "fd": 1, "size": 2, "app_id": "ap-1"}]}
            peer.send("item", number, item, b"a\n")
            await peer.writer.drain()
            await asyncio.sleep(0.01)
            peer.writer.close()
        else:  # ``since`` is inclusive: the last line comes again, and behind it one of the same time
            entries = [{"time": 5.0, "fd": 1, "size": 2, "app_id": "ap-1"}] * 2
            peer.send("item", number, {"entries": entries}, b"a\nb\n")
            peer.send("end", number)

    server.handlers["log.read"] = read
    client, sink = Client("unix:" + server.path), Recorder()

    async def main():
        follower = output.Follower(client, "ap-1", sink)
        follower.start()
        await follower.end(patience_s=5)

    _dual.run(main())
    assert sink.lines == [(1, "a\n"), (1, "b\n")]
    assert [one["since"] for one in server.requests("log.read")] == [0.0, 5.0]
    client.close()


def test_lines_of_builds_beside_each_other_are_told_apart(capsys):
    sink = output.PlainSink()
    sink.build_line("im-1", BuildLine("step", 1, 2, "RUN a"))
    sink.build_line("im-2", BuildLine("step", 2, 3, "RUN b"))
    sink.build_line("im-1", BuildLine("log", 1, 2, "of a\n"))
    sink.build_line("im-2", BuildLine("log", 2, 3, "of b\n"))
    lines = ["[im-1] step 1 of 2: RUN a", "[im-2] step 2 of 3: RUN b", "[im-1] of a", "of b"]
    assert capsys.readouterr().err.splitlines() == lines
