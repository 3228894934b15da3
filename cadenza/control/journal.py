"""What was decided about each function's containers, when and why: kept in memory, and behind that in a table.

The last `KEPT` decisions of each function are known. Equal ones in quick succession are one with a count. Writing comes
`WRITE_EVERY_S` after the first that is not written; nobody waits for it, and a crash loses those seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Optional, Protocol, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error
from cadenza.observe.log import Log
from cadenza.protocol.functions import Decision
from cadenza.storage.db import Database, Transaction

KEPT = 200
"""Decisions of one function, in memory and in the table."""
LOADED = 20_000
KEPT_S = 7 * 24 * 3600.0
ALIKE_S = 1.0
WRITE_EVERY_S = 2.0
MAX_WHY_CHARS = 500

START, STOP, WAIT, BLOCK, UNBLOCK, REFUSE = "start", "stop", "wait", "block", "unblock", "refuse"

_log = Log("cadenza.control.journal")
Row = tuple[int, str, float, str, int, str, str]


@dataclass
class _Line:
    number: int
    time: float
    what: str
    count: int
    why: str
    container_id: str


class Store(Protocol):
    """Where decisions are kept."""

    async def read(self) -> Sequence[Row]:
        """The last `LOADED`, newest first."""

    async def expire(self) -> None:
        """Let go of those that are older than `KEPT_S`."""

    async def write(self, rows: Sequence[Row]) -> None:
        """Keep these; of each function the last `KEPT`."""


class DecisionTable:
    """The table ``decisions``."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def expire(self) -> None:
        await self._db.execute("decision_expire", (self._clock.now() - KEPT_S,))

    async def read(self) -> Sequence[Row]:
        return [(a, b, c, d, e, f, g) for a, b, c, d, e, f, g in await self._db.fetch("decision_all", (LOADED,))]

    async def write(self, rows: Sequence[Row]) -> None:
        def work(transaction: Transaction) -> None:
            for row in rows:
                transaction.execute("decision_put", row)
            for function_id in dict.fromkeys(row[1] for row in rows):
                transaction.execute("decision_trim", (function_id, function_id, KEPT))

        await self._db.transaction(work)


class Journal:
    """All methods belong to the event loop's thread. Without a ``store`` it is memory alone."""

    def __init__(self, clock: Clock, store: Optional[Store] = None) -> None:
        self._clock = clock
        self._store = store
        self._rings: dict[str, deque[_Line]] = {}
        self._unwritten: dict[int, tuple[str, _Line]] = {}
        self._next = 1
        self._writer: Optional[asyncio.Task[None]] = None
        self._loaded = False

    def note(self, function_id: str, what: str, count: int, why: str, container_id: str = "") -> None:
        """A decision was made now."""
        ring = self._rings.get(function_id)
        if ring is None:
            ring = self._rings[function_id] = deque(maxlen=KEPT)
        now, why = self._clock.now(), why[:MAX_WHY_CHARS]
        last = ring[-1] if ring else None
        if last is not None and last.what == what and last.why == why and now - last.time <= ALIKE_S:
            last.count += count
            last.container_id = ""
        else:
            last = _Line(self._next, now, what, count, why, container_id)
            self._next += 1
            ring.append(last)
        if self._store is not None:
            self._unwritten[last.number] = (function_id, last)
            if len(self._unwritten) > LOADED:  # the disk has been full for long
                del self._unwritten[next(iter(self._unwritten))]
            self._write_soon()

    def _write_soon(self) -> None:
        if self._writer is None and self._loaded and self._unwritten:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def last(self, function_id: str, count: int) -> tuple[Decision, ...]:
        """A function's last decisions, newest first."""
        ring = self._rings.get(function_id, ())
        newest = list(ring)[::-1][: max(0, count)]
        return tuple(Decision(one.time, one.what, one.count, one.why, one.container_id) for one in newest)

    def forget(self, function_id: str) -> None:
        """A function is gone. Its rows stay in the table for `KEPT_S`."""
        self._rings.pop(function_id, None)

    async def load(self, known: Sequence[str]) -> None:
        """What an earlier process decided about functions that are still there."""
        if self._store is None:
            return
        await self._store.expire()
        rows = await self._store.read()
        shift = max((row[0] for row in rows), default=0)
        young, self._rings = self._rings, {}
        functions = set(known)
        for number, function_id, at, what, count, why, container_id in reversed(rows):
            if function_id in functions:
                ring = self._rings.setdefault(function_id, deque(maxlen=KEPT))
                ring.append(_Line(number, at, what, count, why, container_id))
        self._next += shift
        for function_id, lines in young.items():  # what was decided while this process began
            for one in lines:
                one.number += shift
            self._rings.setdefault(function_id, deque(maxlen=KEPT)).extend(lines)
        self._unwritten = {one.number: (name, one) for name, one in self._unwritten.values()}
        self._loaded = True
        self._write_soon()

    async def _write(self) -> None:
        await asyncio.sleep(WRITE_EVERY_S)
        self._writer = None
        await self.flush()

    async def flush(self) -> None:
        """Write what is not written. A refusal of the disk is logged, and what was to be written is written later."""
        if self._store is None or not self._unwritten or not self._loaded:
            return
        lines, self._unwritten = self._unwritten, {}
        rows = [
            (one.number, function_id, one.time, one.what, one.count, one.why, one.container_id)
            for function_id, one in lines.values()
        ]
        try:
            await self._store.write(rows)
        except Error as error:
            self._unwritten = {**lines, **self._unwritten}
            _log.warning("decisions could not be kept", count=len(rows), error=str(error))

    async def sweep(self) -> None:
        """Let go of what is too old, of functions that are gone too. Now and then."""
        if self._store is not None:
            await self._store.expire()

    async def close(self) -> None:
        """Write the rest."""
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        await self.flush()
