"""Slices and recent inputs in the database: restarts, retention, damage."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable

from cadenza.observe.slice import Slice
from cadenza.storage import recent
from cadenza.storage.db import Database
from cadenza.storage.recent import Ended, RecentStore
from cadenza.storage.series import AGE_S, HOUR_S, MINUTE_S, MINUTES_KEPT_S, SeriesStore

NOON = 1_000_000 * HOUR_S


def with_db(tmp_path: Any, test: Callable[[Database], Awaitable[None]]) -> None:
    async def steps() -> None:
        db = await Database.open(str(tmp_path / "cadenza.db"))
        try:
            await test(db)
        finally:
            await db.close()

    asyncio.run(steps())


def some(count: int) -> Slice:
    one = Slice()
    one.count("SUCCESS", count)
    one.durations("run", [0.1] * count)
    return one


def ended(number: int, at: float, function_id: str = "fu-1") -> Ended:
    return Ended(function_id, f"in-{number}", "fc-1", "SUCCESS", at - 1.0, at - 0.5, at, "ta-1", "", 1, "")


def test_a_minute_that_is_there_is_added_to(tmp_path: Any) -> None:
    async def test(db: Database) -> None:
        store = SeriesStore(db)
        await store.add([("fu-1", "ap-1", NOON, some(2)), ("fu-2", "ap-1", NOON, some(1))])
        await store.add([("fu-1", "ap-1", NOON, some(3)), ("fu-1", "ap-1", NOON + MINUTE_S, some(4))])
        found = await store.read(["fu-1"], NOON, NOON + 120)
        assert [(one.start, one.slice.counts["SUCCESS"]) for one in found] == [(NOON, 5), (NOON + 60, 4)]
        assert await store.read(["fu-1"], NOON + 60, NOON + 60) == []
        assert len(await store.read(["fu-1"], NOON + 59, NOON + 60)) == 1
        assert sum(one.slice.counts["SUCCESS"] for one in await store.read_app("ap-1", 0, NOON + 600)) == 10
        assert await store.app_of("fu-2") == "ap-1"
        assert await store.app_of("fu-3") == ""

    with_db(tmp_path, test)


def test_old_minutes_become_hours_and_old_hours_go(tmp_path: Any) -> None:
    async def test(db: Database) -> None:
        store = SeriesStore(db)
        now = NOON + MINUTES_KEPT_S + HOUR_S
        rows = [("fu-1", "ap-1", NOON + minute * MINUTE_S, some(1)) for minute in range(120)]
        await store.add(rows)
        await store.retain(now)
        found = await store.read(["fu-1"], 0, now)
        assert [one.step_s for one in found] == [HOUR_S] + [MINUTE_S] * 60
        assert found[0].slice.counts == {"SUCCESS": 60}
        assert sum(found[0].slice.times["run"].values()) == 60
        await store.retain(now)
        assert len(await store.read(["fu-1"], 0, now)) == 61
        await store.add([("fu-1", "ap-1", NOON, some(5))])  # written late: it joins its hour
        await store.retain(now)
        assert (await store.read(["fu-1"], 0, now))[0].slice.counts == {"SUCCESS": 65}
        await store.retain(now + AGE_S + HOUR_S)
        assert await store.read(["fu-1"], 0, now) == []

    with_db(tmp_path, test)


def test_recent_inputs_come_back_newest_first(tmp_path: Any) -> None:
    async def test(db: Database) -> None:
        store = RecentStore(db)
        await store.add([[ended(n, 100.0 + n) for n in range(10)], [ended(1, 5.0, "fu-2")], []])
        await store.add([[ended(n, 100.0 + n) for n in range(10, 20)]])
        found = await store.read("fu-1", 0.0, 100)
        assert [one.input_id for one in found] == [f"in-{n}" for n in range(19, -1, -1)]
        assert found[0] == ended(19, 119.0)
        assert (await store.read("fu-1", 0.0, 3))[0].input_id == "in-19"
        assert len(await store.read("fu-1", 109.5, 100)) == 10
        await db.transaction(lambda transaction: transaction.change("UPDATE recent_input SET body = x'00'"))
        assert await store.read("fu-1", 0.0, 100) == []

    with_db(tmp_path, test)


def test_recent_inputs_are_bounded_by_number_age_and_size(tmp_path: Any, monkeypatch: Any) -> None:
    async def test(db: Database) -> None:
        store = RecentStore(db)
        monkeypatch.setattr(recent, "KEPT_INPUTS", 25)
        for block in range(6):
            await store.add([[ended(block * 10 + n, 100.0 + block) for n in range(10)]])
        found = await store.read("fu-1", 0.0, 1_000)
        assert len(found) == 30
        assert found[-1].input_id == "in-30"
        await store.retain(204.5, 100.0)
        assert len(await store.read("fu-1", 0.0, 1_000)) == 10
        monkeypatch.setattr(recent, "KEPT_BYTES", 10)
        await store.retain(204.5, 100.0)
        assert await store.read("fu-1", 0.0, 1_000) == []

    with_db(tmp_path, test)
