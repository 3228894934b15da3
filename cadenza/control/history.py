"""The inputs that ended last: noted on the path of every call, worked through once a second.

`note` only counts, and lists. `drain` then adds all up for `cadenza.control.tally` and keeps the last
`RING_INPUTS` of each function in memory; `write` puts them into the table in blocks. Everything is counted; of a
function with very many inputs only a part is kept one by one (`LISTED_INPUTS`, `RING_INPUTS`).
All methods belong to the event loop's thread.
"""

from __future__ import annotations

from collections import Counter, deque
from operator import itemgetter
from typing import Callable, Optional

from cadenza.base.clock import Clock
from cadenza.control.tally import Tally
from cadenza.protocol.statuses import SUCCESS
from cadenza.scheduling.states import ContainerState
from cadenza.storage.entry import Entry
from cadenza.storage.recent import Ended, RecentStore

RING_INPUTS = 1_000
"""Of each function, in memory."""
ALL_RINGS_INPUTS = 20_000
"""Of all functions together, in memory: the rings of those that were idle longest go first."""
MAX_PENDING = 4_096
"""Ends that wait for `drain`."""
WRITE_EVERY_S = 5.0
LISTED_INPUTS = 256
LISTED_EVERY = 8
"""Of a function of which more than `LISTED_INPUTS` inputs end between two drains (a second), all are counted, all that
failed are listed, and of those that succeeded beyond that number each eighth: so much the listing may cost."""
MEASURED_INPUTS = 256
"""Of so many ends of one function at a time the durations are counted one by one; of more, every n-th stands for n."""
MAX_ERROR_CHARS = 300
Raw = tuple[str, str, str, str, float, float, float, str, str, int, str]
"""function, input, call, status, enqueued (epoch), begun and ended (monotonic), container, method, attempts, error"""
_FUNCTION, _STATUS = itemgetter(0), itemgetter(3)


class _Ring:
    __slots__ = ("rows", "unwritten")

    def __init__(self) -> None:
        self.rows: deque[Raw] = deque(maxlen=RING_INPUTS)
        self.unwritten = 0


class History:
    """Recent inputs of every function."""

    def __init__(self, store: RecentStore, tally: Tally, clock: Clock) -> None:
        self._store = store
        self._tally = tally
        self._clock = clock
        self._monotonic = clock.monotonic
        self._pending: list[Raw] = []
        self._rings: dict[str, _Ring] = {}
        self._counts: dict[str, int] = {}
        """How many inputs of each function ended since the last drain, those that are not listed included."""
        self._cold: list[tuple[str, float]] = []
        self._written_at = 0.0
        self.ended: Optional[Callable[[list[Raw], float], None]] = None
        """Told of what was drained, and what makes epoch seconds of its monotonic ones: for traces."""

    def note(self, entry: Entry, status: str, error: str, container: Optional[ContainerState]) -> None:
        """An input's output is decided. On the path of every call: no more than this."""
        function_id = entry.function_id
        counts = self._counts
        if function_id in counts:
            number = counts[function_id] = counts[function_id] + 1
            if number > LISTED_INPUTS and number % LISTED_EVERY and status == SUCCESS:
                return
        else:
            counts[function_id] = 1
            self._tally.slice(function_id)  # while the function is known: by the next drain its app may have ended
        took = entry.took_s
        begun = entry.begun_at
        pending = self._pending
        pending.append(
            (
                function_id, entry.input_id, entry.call_id, status, entry.ready_at, begun,
                begun + took if took >= 0.0 else self._monotonic(), entry.container_id, entry.method,
                entry.attempts + entry.retries, error,
            )
        )  # fmt: skip
        if container is not None and container.ready_since > entry.since:
            self._cold.append((function_id, container.ready_since - max(entry.since, container.wanted_at)))
        if len(pending) >= MAX_PENDING:
            self.drain()

    def drain(self) -> None:
        """Count what was noted, and keep the last of it."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        counts, self._counts = self._counts, {}
        wall = self._wall()
        for function_id, seconds in self._cold:
            self._tally.slice(function_id).durations("cold", [seconds])
        self._cold.clear()
        groups: dict[str, list[Raw]] = {}
        if len(set(map(_FUNCTION, pending))) == 1:
            groups[pending[0][0]] = pending
        else:
            for one in pending:
                groups.setdefault(one[0], []).append(one)
        for function_id, rows in groups.items():
            self._count(function_id, rows, counts[function_id] - len(rows), wall)
        if sum(len(one.rows) for one in self._rings.values()) > ALL_RINGS_INPUTS:
            self._shrink()
        if self.ended is not None:
            self.ended(pending, wall)

    def _count(self, function_id: str, rows: list[Raw], unlisted: int, wall: float) -> None:
        part = self._tally.slice(function_id)
        if unlisted:
            part.count(SUCCESS, unlisted)
        for status, count in Counter(map(_STATUS, rows)).items():
            part.count(status, count)
        chosen = rows[:: max(1, len(rows) // MEASURED_INPUTS)]
        measured = [one for one in chosen if one[5] >= 0.0]
        if measured:
            ran = round((len(rows) + unlisted) * len(measured) / len(chosen))
            weight, more = divmod(ran, len(measured))  # each stands for so many, and the first ones for one more
            for some, each in ((measured[:more], weight + 1), (measured[more:], weight)):
                part.durations("run", [one[6] - one[5] for one in some], each)
                part.durations("queue", [max(0.0, one[5] + wall - one[4]) for one in some], each)
        ring = self._rings.pop(function_id, None) or _Ring()
        self._rings[function_id] = ring  # the last in order is the one used last
        ring.rows.extend(rows)
        ring.unwritten = min(len(ring.rows), ring.unwritten + len(rows))

    def _shrink(self) -> None:
        count = sum(len(one.rows) for one in self._rings.values())
        for function_id in list(self._rings):
            if count <= ALL_RINGS_INPUTS // 2:
                return
            if not self._rings[function_id].unwritten:
                count -= len(self._rings.pop(function_id).rows)

    def _wall(self) -> float:
        return self._clock.now() - self._clock.monotonic()

    async def write(self, everything: bool = False) -> None:
        """Keep what is new in the table, each `WRITE_EVERY_S`; at the end (``everything``) at once."""
        self.drain()
        now = self._clock.monotonic()
        if not everything and now - self._written_at < WRITE_EVERY_S:
            return
        self._written_at = now
        wall = self._wall()
        rings = [one for one in self._rings.values() if one.unwritten]
        counts = [one.unwritten for one in rings]
        blocks = [[_ended(raw, wall) for raw in list(one.rows)[-one.unwritten :]] for one in rings]
        for one in rings:
            one.unwritten = 0
        try:
            await self._store.add(blocks)
        except BaseException:
            for one, count in zip(rings, counts):
                one.unwritten = min(len(one.rows), one.unwritten + count)
            raise

    async def read(self, function_id: str, since: float, limit: int) -> list[Ended]:
        """Inputs that ended, newest first: those that were enqueued at ``since`` or later, at most ``limit``."""
        self.drain()
        wall = self._wall()
        ring = self._rings.get(function_id)
        found = [_ended(raw, wall) for raw in reversed(ring.rows)] if ring is not None else []
        if len(found) < limit and (not found or found[-1].finished_at >= since):
            there = {one.input_id for one in found}
            kept = await self._store.read(function_id, since, limit + len(found))
            found += [one for one in kept if one.input_id not in there]
        return [one for one in found if one.enqueued_at >= since][:limit]

    def forget(self, known: Callable[[str], bool]) -> None:
        """Let go of what was written of functions that are not ``known`` any more. Now and then."""
        for function_id in [one for one, ring in self._rings.items() if not ring.unwritten and not known(one)]:
            del self._rings[function_id]


def _ended(raw: Raw, wall: float) -> Ended:
    function_id, input_id, call_id, status, enqueued_at, begun, ended, container_id, method, attempts, error = raw
    started_at = round(begun + wall, 6) if begun >= 0.0 else 0.0
    return Ended(
        function_id, input_id, call_id, status, enqueued_at, started_at, round(ended + wall, 6), container_id, method,
        attempts, error[:MAX_ERROR_CHARS],
    )  # fmt: skip
