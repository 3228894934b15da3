"""Logs on disk: order, restart, damage, retention, bounds. semantics.md section 26."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Awaitable, Callable

import pytest

from cadenza.protocol.nodes import LogChunk
from cadenza.storage import logs as module
from cadenza.storage.db import Database
from cadenza.storage.logs import Retention, Entry, LogStore, append_block, expired_segments, pack, read_block, unpack

APP = "ap-0000000000000000000001"


def chunk(text: bytes, at: float = 1.0, app: str = APP, container: str = "ta-1") -> LogChunk:
    return LogChunk(app, container, "fu-1", 1, at, text, "fc-1", "in-1")


def with_store(tmp_path: Any, test: Callable[[LogStore, Database], Awaitable[None]]) -> None:
    async def main() -> None:
        db = await Database.open(str(tmp_path / "x.db"))
        try:
            store = LogStore(str(tmp_path / "logs"), db, lambda: 1000.0)
            await store.start()
            await test(store, db)
        finally:
            await db.close()

    asyncio.run(main())


async def texts(store: LogStore, **query: Any) -> bytes:
    before, recent = store.unwritten(APP)
    found = [entry async for block in store.blocks(APP, before, **query) for entry in block]
    return b"".join(one.text for one in [*found, *recent])


def test_reading_at_any_instant_gives_everything_once_and_in_order(tmp_path: Any) -> None:
    async def test(store: LogStore, db: Database) -> None:
        wanted = b""
        for number in range(300):
            line = b"line %d " % number + b"x" * 5000 + b"\n"
            wanted += line
            store.add([chunk(line)])
            if number % 40 == 0:
                assert await texts(store) == wanted
        await store.flush()
        assert await texts(store) == wanted
        assert store.unwritten(APP)[1] == []

    with_store(tmp_path, test)


def test_a_restart_goes_on_behind_what_is_kept(tmp_path: Any) -> None:
    async def first(store: LogStore, db: Database) -> None:
        store.add([chunk(b"before\r")])
        await store.flush()

    async def second(store: LogStore, db: Database) -> None:
        store.add([chunk(b"after\n")])
        await store.flush()
        assert await texts(store) == b"before\rafter\n"

    with_store(tmp_path, first)
    path = tmp_path / "logs" / APP / "00000000.log"
    with open(path, "ab") as file:
        file.write(b"half a block of a process that was killed")
    with_store(tmp_path, second)


def test_a_damaged_block_is_left_out(tmp_path: Any) -> None:
    async def test(store: LogStore, db: Database) -> None:
        for text in (b"a\n", b"b\n", b"c\n"):
            store.add([chunk(text)])
            await store.flush()
        rows = await db.fetch("log_blocks", (APP, 99, 0.0, 9.0))
        with open(tmp_path / "logs" / APP / "00000000.log", "r+b") as file:
            file.seek(rows[1][1] + 12)
            file.write(b"\xff\xff")
        assert await texts(store) == b"a\nc\n"

    with_store(tmp_path, test)


def test_blocks_outside_of_the_times_are_not_read(tmp_path: Any) -> None:
    async def test(store: LogStore, db: Database) -> None:
        for at in (10.0, 20.0, 30.0):
            store.add([chunk(b"%d\n" % at, at)])
            await store.flush()
        assert await texts(store, since=15.0, until=25.0) == b"20\n"
        assert await texts(store, since=20.0) == b"20\n30\n"
        backward = [one[0].text async for one in store.blocks(APP, 99, backward=True)]
        assert backward == [b"30\n", b"20\n", b"10\n"]

    with_store(tmp_path, test)


def test_a_flood_is_bounded_and_counted(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10_000)

    async def test(store: LogStore, db: Database) -> None:
        kept = store.add([chunk(b"x" * 1000) for _ in range(20)])
        assert len(kept) == 9
        assert store.dropped_bytes == 11_000
        await store.flush()
        assert len(store.add([chunk(b"y" * 1000)])) == 2
        await store.flush()
        found = await texts(store)
        assert found.startswith(b"x" * 9000 + b"11000 bytes of output are missing here")
        assert found.endswith(b"y" * 1000)

    with_store(tmp_path, test)


def test_retention_removes_the_oldest_segments_and_their_files(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)

    async def test(store: LogStore, db: Database) -> None:
        for at in (100.0, 200.0, 300.0, 400.0):
            store.add([chunk(os.urandom(1000), at)])
            await store.flush()
        folder = tmp_path / "logs" / APP
        assert len(os.listdir(folder)) == 4
        assert await store.retain(age_s=850.0) == 1
        assert sorted(os.listdir(folder)) == [f"{number:08d}.log" for number in (1, 2, 3)]
        assert await store.retain(app_bytes=2200) == 1
        assert await store.retain(total_bytes=0) == 1  # the one being written stays
        assert len(await texts(store)) == 1000

    with_store(tmp_path, test)


def test_which_segments_expire() -> None:
    rows = [("a", 0, 10, 1.0), ("a", 1, 10, 2.0), ("b", 0, 10, 3.0), ("b", 1, 5, 9.0)]

    def written(app: str, segment: int) -> bool:
        return segment == 1

    assert expired_segments(rows, written, 99, 999, 0.0) == []
    assert expired_segments(rows, written, 10, 999, 0.0) == [("a", 0), ("b", 0)]
    assert expired_segments(rows, written, 99, 30, 0.0) == [("a", 0)]
    assert expired_segments(rows, written, 99, 999, 2.5) == [("a", 0), ("a", 1)]


def test_a_block_is_what_it_was(tmp_path: Any) -> None:
    entries = [Entry(1.5, 2, "ta-1", "fu-1", "", "in-1", b"\xff\x00\r"), Entry(2.0, 0, "", "", "", "", b"")]
    path = str(tmp_path / "logs" / "0.log")
    length, offset = append_block(path, 0, entries)
    assert offset == 0
    assert append_block(path, 0, entries)[1] == length
    assert read_block(path, length, length) == entries
    assert unpack(pack([])) == []
    for broken in (b"", b"\x05\x00\x00\x00", pack(entries)[:-1]):
        with pytest.raises(ValueError):
            assert unpack(broken) == entries, "cut short"


def test_a_hundred_thousand_lines_keep_the_loop_free(tmp_path: Any) -> None:
    async def test(store: LogStore, db: Database) -> None:
        longest = 0.0
        loop = asyncio.get_running_loop()

        async def watch() -> None:
            nonlocal longest
            while True:
                began = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - began)

        watcher = asyncio.create_task(watch())
        for start in range(0, 100_000, 1000):
            store.add(
                [chunk(b"a line of some length that a program prints %d\n" % n) for n in range(start, start + 1000)]
            )
            await asyncio.sleep(0)
        await store.flush()
        watcher.cancel()
        assert store.dropped_bytes == 0
        assert (await texts(store)).count(b"\n") == 100_000
        assert longest < 1.0

    with_store(tmp_path, test)


def test_what_is_closed_during_retention_is_written_too(tmp_path: Any, monkeypatch: Any) -> None:
    async def test(store: LogStore, db: Database) -> None:
        retained = asyncio.Event()

        async def retain() -> int:
            if not retained.is_set():
                retained.set()
                store.add([chunk(b"meanwhile\n")])
                store._close_block(APP)
            return 0

        monkeypatch.setattr(store, "retain", retain)
        store.add([chunk(b"first\n")])
        await store.flush()
        assert retained.is_set()
        assert store.unwritten(APP) == (2, [])
        assert await texts(store) == b"first\nmeanwhile\n"

    with_store(tmp_path, test)


def test_logs_of_ended_apps_go_whole_and_leave_no_folder(tmp_path: Any) -> None:
    ended: set[str] = set()

    async def test(_: LogStore, db: Database) -> None:
        store = LogStore(str(tmp_path / "logs"), db, lambda: 1000.0, lambda app_id: app_id in ended)
        other = APP[:-1] + "2"
        for app in (APP, other):
            store.add([chunk(os.urandom(1000), 900.0, app)])
            await store.flush()
        assert await store.retain(total_bytes=0) == 0  # both may still be written
        ended.add(APP)
        assert await store.retain(total_bytes=1) == 1
        assert os.listdir(tmp_path / "logs") == [other]
        assert await store.retain(age_s=1.0) == 1
        assert os.listdir(tmp_path / "logs") == []
        store.add([chunk(b"later\n", 950.0, other)])
        await store.flush()
        assert os.listdir(tmp_path / "logs" / other) == ["00000001.log"]

    with_store(tmp_path, test)


def test_what_is_known_of_ended_apps_is_let_go_and_late_words_still_come_last(tmp_path: Any) -> None:
    ended: set[str] = set()

    async def test(_: LogStore, db: Database) -> None:
        store = LogStore(str(tmp_path / "logs"), db, lambda: 1000.0, lambda app_id: app_id in ended)
        store.add([chunk(b"one\n")])
        await store.flush()
        store.add([chunk(b"two\n")])
        ended.add(APP)
        store.forget()
        assert APP in store._next_seq, "something still waits to be written"
        await store.flush()
        store.forget()
        assert not store._next_seq and not store._places
        assert await texts(store) == b"one\ntwo\n"
        store.add([chunk(b"late\n")])
        assert await texts(store) == b"one\ntwo\nlate\n"
        await store.flush()
        assert await texts(store) == b"one\ntwo\nlate\n"

    with_store(tmp_path, test)


def test_empty_folders_of_before_go_at_the_start(tmp_path: Any) -> None:
    os.makedirs(tmp_path / "logs" / (APP[:-1] + "3"))

    async def test(store: LogStore, db: Database) -> None:
        assert os.listdir(tmp_path / "logs") == []

    with_store(tmp_path, test)


def test_an_app_that_says_little_for_months_keeps_what_it_should(tmp_path: Any) -> None:
    """A line a day never fills a segment; what is too old goes all the same, over restarts too (section 26)."""
    day = 24 * 3600.0
    clock = [1_000_000.0]

    async def main() -> None:
        db = await Database.open(str(tmp_path / "x.db"))
        try:
            for _ in range(4):  # lives of the server
                store = LogStore(str(tmp_path / "logs"), db, lambda: clock[0], kept=Retention(age_s=10 * day))
                await store.start()
                for _ in range(15):
                    clock[0] += day
                    store.add([chunk(b"%d\n" % round(clock[0] / day), clock[0])])
                    await store.flush()
                    await store.retain()
            lines = [int(one) for one in (await texts(store)).split()]
            now = round(clock[0] / day)
            assert lines[-10:] == list(range(now - 9, now + 1))
            assert lines[0] >= now - 12
            assert len(os.listdir(tmp_path / "logs" / APP)) <= 12
        finally:
            await db.close()

    asyncio.run(main())
