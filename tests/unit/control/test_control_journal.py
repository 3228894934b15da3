"""What was decided is remembered: equal decisions as one, the last ones of each function, over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Awaitable, Callable

from cadenza.base.clock import ManualClock
from cadenza.base.errors import ResourceExhaustedError
from cadenza.control.journal import KEPT, KEPT_S, START, STOP, DecisionTable, Journal, Row
from cadenza.storage.db import Database


def test_equal_decisions_in_quick_succession_are_one() -> None:
    clock = ManualClock()
    journal = Journal(clock)
    journal.note("f", START, 2, "busy", "c1")
    journal.note("f", START, 1, "busy", "c2")
    journal.note("f", STOP, 1, "idle", "c1")
    clock.advance(5.0)
    journal.note("f", STOP, 1, "idle", "c2")
    found = journal.last("f", 10)
    assert [(one.what, one.count, one.container_id) for one in found] == [
        ("stop", 1, "c2"),
        ("stop", 1, "c1"),
        ("start", 3, ""),
    ]
    assert journal.last("f", 1) == found[:1] and journal.last("g", 5) == () and journal.last("f", -1) == ()


def test_a_function_keeps_its_last_decisions_alone() -> None:
    journal = Journal(ManualClock())
    for number in range(KEPT + 50):
        journal.note("f", START, 1, f"reason {number}" + "x" * 1000)
    found = journal.last("f", 1_000)
    assert len(found) == KEPT and found[0].why.startswith("reason 249") and len(found[0].why) == 500
    journal.forget("f")
    assert journal.last("f", 1) == ()


def with_database(tmp_path: Path, work: Callable[[Database, ManualClock], Awaitable[None]]) -> None:
    async def main() -> None:
        db = await Database.open(str(tmp_path / "cadenza.db"))
        try:
            await work(db, ManualClock())
        finally:
            await db.close()

    asyncio.run(main())


def test_decisions_outlive_a_restart_in_their_order(tmp_path: Path) -> None:
    async def work(db: Database, clock: ManualClock) -> None:
        first = Journal(clock, DecisionTable(db, clock))
        await first.load([])
        for number in range(KEPT + 5):
            first.note("f", START, 1, f"reason {number}")
        first.note("g", START, 1, "other")
        await first.close()
        second = Journal(clock, DecisionTable(db, clock))
        second.note("f", STOP, 1, "before it was loaded")
        await second.load(["f"])
        found = [one.why for one in second.last("f", KEPT)]
        assert found[:2] == ["before it was loaded", f"reason {KEPT + 4}"] and len(found) == KEPT
        assert second.last("g", 1) == (), "a function that is there no more"
        await second.close()
        rows = await db.fetch("decision_all", (10_000,))
        assert sum(1 for row in rows if row[1] == "f") == KEPT, "and the table is bounded too"
        assert rows[0][5] == "before it was loaded" and len({row[0] for row in rows}) == len(rows)
        clock.advance(8 * 24 * 3600.0)
        third = Journal(clock, DecisionTable(db, clock))
        await third.load(["f"])
        assert third.last("f", 5) == (), "after a week they go"

    with_database(tmp_path, work)


def test_what_a_full_disk_refuses_is_written_later() -> None:
    class Full:
        def __init__(self) -> None:
            self.full, self.rows = True, list[Row]()

        async def read(self) -> Any:
            return []

        async def expire(self) -> None:
            pass

        async def write(self, rows: Any) -> None:
            if self.full:
                raise ResourceExhaustedError("the disk is full")
            self.rows += rows

    async def main() -> None:
        store = Full()
        journal = Journal(ManualClock(), store)
        await journal.load([])
        journal.note("f", START, 1, "busy")
        await journal.flush()
        assert store.rows == []
        store.full = False
        await journal.close()
        assert [row[5] for row in store.rows] == ["busy"]

    asyncio.run(main())


def test_old_decisions_go_while_the_server_runs(tmp_path: Path) -> None:
    async def work(db: Database, clock: ManualClock) -> None:
        journal = Journal(clock, DecisionTable(db, clock))
        await journal.load([])
        journal.note("gone", START, 1, "busy")
        await journal.flush()
        journal.forget("gone")
        clock.advance(KEPT_S / 2)
        journal.note("f", START, 1, "busy")
        await journal.flush()
        clock.advance(KEPT_S / 2 + 1)
        await journal.sweep()
        assert [row[1] for row in await db.fetch("decision_all", (10,))] == ["f"]

    with_database(tmp_path, work)
