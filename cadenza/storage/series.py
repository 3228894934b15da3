"""Slices of time in the database: one row for each function and minute, after two days for each function and hour.

Everything is counted from epoch seconds in whole minutes and hours, UTC.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Sequence

from cadenza.observe.slice import Slice, merged, pack, unpack
from cadenza.storage.db import Database, Transaction

MINUTE_S = 60
HOUR_S = 3600
MINUTES_KEPT_S = 2 * 24 * 3600
AGE_S = 30 * 24 * 3600
ROWS_AT_ONCE = 2_000
"""How many rows one transaction of housekeeping takes: others wait for the writer meanwhile."""


class Kept(NamedTuple):
    """A slice of ``step_s`` seconds that begins at ``start``."""

    start: int
    step_s: int
    slice: Slice


class SeriesStore:
    """The table of slices. Methods are coroutines of the event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, rows: Sequence[tuple[str, str, int, Slice]]) -> None:
        """Keep ``(function id, app id, start of the minute, slice)``; one that is there already is added to.

        Durable on return, all or none.
        """
        packed = [(function_id, app_id, start, pack(one), one) for function_id, app_id, start, one in rows]

        def write(transaction: Transaction) -> None:
            for function_id, app_id, start, body, one in packed:
                there = transaction.fetch("series_get", (function_id, start, MINUTE_S))
                if there:
                    body = pack(merged((unpack(there[0][0]), one)))
                transaction.execute("series_put", (function_id, start, MINUTE_S, app_id, body))

        if packed:
            await self._db.transaction(write)

    async def read(self, function_ids: Iterable[str], since: float, until: float) -> list[Kept]:
        """The slices of these functions that touch the range, in order of time."""
        found: list[Kept] = []
        for one in function_ids:
            rows = await self._db.fetch("series_of_function", (one, since, until))
            found += [Kept(start, step, unpack(body)) for start, step, body in rows]
        return sorted(found, key=lambda one: one.start)

    async def read_app(self, app_id: str, since: float, until: float) -> list[Kept]:
        """As `read`, of all functions that an app has had."""
        rows = await self._db.fetch("series_of_app", (app_id, since, until))
        return [Kept(start, step, unpack(body)) for start, step, body in rows]

    async def app_of(self, function_id: str) -> str:
        """The app of a function that may be gone; empty where nothing is kept of it."""
        rows = await self._db.fetch("series_app", (function_id,))
        return str(rows[0][0]) if rows else ""

    async def retain(self, now: float) -> int:
        """Minutes that are older than two days become hours, what is older than 30 days goes. How many rows went."""
        gone = 0
        before = (int(now) - MINUTES_KEPT_S) // HOUR_S * HOUR_S
        while True:
            count = await self._db.transaction(lambda transaction: _to_hours(transaction, before))
            gone += count
            if count < ROWS_AT_ONCE:
                break
        while True:
            count = await self._db.execute("series_expire", (int(now) - AGE_S, ROWS_AT_ONCE))
            gone += count
            if count < ROWS_AT_ONCE:
                return gone


def _to_hours(transaction: Transaction, before: int) -> int:
    rows = transaction.fetch("series_old", (before, ROWS_AT_ONCE))
    hours: dict[tuple[str, int], tuple[str, list[Slice]]] = {}
    for function_id, start, app_id, body in rows:
        hours.setdefault((function_id, start // HOUR_S * HOUR_S), (app_id, []))[1].append(unpack(body))
        transaction.execute("series_drop", (function_id, start, MINUTE_S))
    for (function_id, start), (app_id, slices) in hours.items():
        there = transaction.fetch("series_get", (function_id, start, HOUR_S))
        whole = merged([*(unpack(row[0]) for row in there), *slices])
        transaction.execute("series_put", (function_id, start, HOUR_S, app_id, pack(whole)))
    return len(rows)
