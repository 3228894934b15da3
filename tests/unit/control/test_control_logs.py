"""Reading and following logs: filters, tail, bounded followers, the end. semantics.md section 26."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import Client
from test_control_main import World, in_world, until

from cadenza.base.config import Config
from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.control import logs as module
from cadenza.control.logs import Follower, Logs, count_lines, last_lines, limits, matcher, split_lines
from cadenza.protocol.methods import LogQuery
from cadenza.protocol.nodes import LogChunk
from cadenza.storage.logs import Entry, Retention


def entry(text: bytes, **changes: Any) -> Entry:
    return Entry(5.0, 1, "ta-1", "fu-1", "fc-1", "in-1", text)._replace(**changes)


def texts(items: list[tuple[dict[str, Any], bytes]]) -> bytes:
    return b"".join(payload for _, payload in items)


def test_filters() -> None:
    def passes(found: Entry, **query: Any) -> bool:
        return (
            matcher(LogQuery(**query), {"fu-1"} if query.get("function") in ("f", "fu-1") else {"fu-9"})(found)
            is not None
        )

    one = entry(b"alpha\nbeta\n")
    assert passes(one)
    assert passes(one, function="f", container="ta-1", call="fc-1", since=5.0, until=5.0, source="stdout")
    assert passes(one, function="fu-1")
    assert not passes(one, function="g")
    assert not passes(one, container="ta-2")
    assert not passes(one, call="fc-2")
    assert not passes(one, since=5.1)
    assert not passes(one, until=4.9)
    assert not passes(one, source="stderr")
    assert passes(entry(b"x", fd=0), source="system")
    found = matcher(LogQuery(search="et"), {})(one)
    assert found is not None
    assert found.text == b"beta\n"
    assert not passes(one, search="gamma")


def test_lines_are_cut_at_line_feeds_only() -> None:
    assert split_lines(b"a\rb\nc") == [b"a\rb\n", b"c"]
    assert [count_lines(one) for one in (b"", b"a", b"a\n", b"a\nb", b"\n\n")] == [0, 1, 1, 2, 2]
    entries = [entry(b"1\n2\n"), entry(b"3\n"), entry(b"4\n5\n6\n")]
    assert [one.text for one in last_lines(entries, 4)] == [b"3\n", b"4\n5\n6\n"]
    assert [one.text for one in last_lines(entries, 2)] == [b"5\n6\n"]
    assert [one.text for one in last_lines(entries, 5)] == [b"2\n", b"3\n", b"4\n5\n6\n"]
    assert len(last_lines(entries, 99)) == 3


def test_a_slow_follower_is_bounded_and_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "FOLLOWER_BYTES", 1000)

    async def main() -> None:
        follower = Follower("ap-1", matcher(LogQuery(), {}))
        for _ in range(50):
            follower.offer(entry(b"x" * 100))
        assert follower.waiting_bytes <= 1000
        assert follower.dropped_bytes == 100 * (50 - len(follower.waiting))

    asyncio.run(main())


def chunk(app_id: str, text: bytes, fd: int = 1, at: float = 1e9) -> LogChunk:
    return LogChunk(app_id, "ta-1", "fu-1", fd, at, text)


def test_what_is_kept_can_be_read_by_name_tail_and_search(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        client = await world.client()
        app_id, _ = await client.app("echo", name="printer")
        for number in range(1000):
            world.control.logs([chunk(app_id, b"line %d\n" % number)])
        await parts.log_store.flush()
        world.control.logs([chunk(app_id, b"50%\r100%\n", fd=2)])
        items, end = await client.stream("log.read", {"app": "printer"})
        assert end["t"] == "end"
        assert texts(items) == b"".join(b"line %d\n" % one for one in range(1000)) + b"50%\r100%\n"
        items, _ = await client.stream("log.read", {"app": app_id, "tail": 3})
        assert texts(items) == b"line 998\nline 999\n50%\r100%\n"
        items, _ = await client.stream("log.read", {"app": app_id, "tail": 2, "source": "stdout"})
        assert texts(items) == b"line 998\nline 999\n"
        items, _ = await client.stream("log.read", {"app": app_id, "search": "99"})
        assert texts(items) == b"".join(b"line %d\n" % one for one in range(1000) if "99" in str(one))
        head = (await client.stream("log.read", {"app": app_id, "tail": 1}))[0][0][0]["entries"][0]
        assert (head["fd"], head["size"], head["container_id"]) == (2, 9, "ta-1")
        for query, kind in (
            ({}, "invalid"),
            ({"app": "none"}, "not_found"),
            ({"app": app_id, "source": "x"}, "invalid"),
        ):
            assert (await client.stream("log.read", query))[1]["e"]["kind"] == kind
        client.close()

    in_world(tmp_path, test)


def test_following_gives_the_past_and_the_future_once_and_ends_with_the_app(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        reader = await world.client()
        app_id, functions = await client.app("echo")
        for number in range(20):
            world.control.logs([chunk(app_id, b"%d\n" % number)])
        reader.begin("log.read", {"app": app_id, "follow": True})
        seen = b""
        while seen.count(b"\n") < 20:
            seen += (await reader.next())[1]
        for number in range(20, 60):
            world.control.logs([chunk(app_id, b"%d\n" % number)])
            await asyncio.sleep(0)
        await client.ask("call.run", {"function_id": functions["echo"], "value": {"size": 2}}, b"me")
        await client.ask("app.stop", {"app": app_id})
        while True:
            head, payload = await reader.next()
            if head["t"] == "end":
                break
            seen += payload
        assert seen == b"".join(b"%d\n" % one for one in range(60)) + b"ran me\n"
        parts = world.control._parts
        assert parts is not None
        assert parts.logs._followers == {}
        client.close()
        reader.close()

    in_world(tmp_path, test)


def test_a_follower_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        client: Client = await world.client()
        reader = await world.client()
        app_id, _ = await client.app("echo")
        reader.begin("log.read", {"app": app_id, "follow": True})
        await until(lambda: app_id in parts.logs._followers)
        reader.close()
        await until(lambda: app_id not in parts.logs._followers)
        client.close()

    in_world(tmp_path, test)


def test_what_is_kept_is_a_setting() -> None:
    assert limits(Config(log_retention_days=2.0, log_max_mib=5)) == Retention(5 << 20, 4 << 30, 2 * 86_400.0)
    assert limits(Config(log_max_mib=8 << 10)).total_bytes == 8 << 30
    for wrong in (Config(log_retention_days=0.0), Config(log_max_mib=0)):
        with pytest.raises(InvalidError, match="log_retention_days"):
            limits(wrong)


def test_variants_and_containers_that_ended_are_found() -> None:
    store: Any = SimpleNamespace(add=lambda chunks: [(one.app_id, entry(one.data)) for one in chunks])

    def variants(name: str) -> list[str]:
        if name != "fu-1":
            raise NotFoundError("gone")
        return ["fu-2"]

    logs = Logs(
        store, lambda word, environment: f"{environment}/{word}", lambda app_id: False, lambda app_id: {"f": "fu-1"},
        lambda container: "", variants,
    )  # fmt: skip
    assert logs._functions_of("ap-1", LogQuery(function="f")) == {"fu-1"}
    assert logs._functions_of("ap-1", LogQuery(function="f", all_variants=True)) == {"fu-1", "fu-2"}
    assert logs._functions_of("ap-1", LogQuery(function="fu-9", all_variants=True)) == {"fu-9"}
    assert logs._which(LogQuery(app="shop", environment="dev")) == "dev/shop"
    with pytest.raises(NotFoundError, match="ta-1"):
        logs._which(LogQuery(container="ta-1"))
    logs.add([chunk("ap-1", b"x\n")])
    assert logs._which(LogQuery(container="ta-1")) == "ap-1"
