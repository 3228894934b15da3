"""News for the cluster's owner, gathered into rounds: the inbox, the clock of a round, and the timer between rounds."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, Callable, Optional, Protocol

from cadenza.base.clock import Clock
from cadenza.base.ids import IdSource
from cadenza.observe.log import Log
from cadenza.protocol.calls import BlobRef
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.states import ContainerState
from cadenza.storage.entry import Entry
from cadenza.storage.queue import Queue

MAX_INBOX_EVENTS = 10_000
"""With more news than this the round begins at once."""
TIMER_GRAIN_S = 0.0005
"""A deadline nearer than this waits this long: event loops ring a little early, and would ring again and again."""
FAULT_WAIT_S = 1.0
"""When something in a round raised, it is tried again after this, and not sooner."""

_log = Log("cadenza.control.round")
Finish = Callable[[Entry, str, bytes, Optional[BlobRef], str, int, Optional[ContainerState]], None]


Note = Callable[[str, str, int, str, str], None]


def _unheard(function_id: str, what: str, count: int, why: str, container_id: str) -> None:
    """Nobody keeps decisions."""


class Sink(Protocol):
    """Where results go: `cadenza.control.calls`."""

    def finish(
        self, entry: Entry, status: str, data: bytes, blob: Optional[BlobRef], error: str, items: int,
        container: Optional[ContainerState],
    ) -> None:  # fmt: skip
        """An input's output is decided: commit it."""

    def item(self, entry: Entry, number: int, data: bytes, blob: Optional[BlobRef]) -> None:
        """A generator gave its next value."""

    def forgotten(self, function_id: str) -> None:
        """A function is gone, with all that was of it."""

    def is_cancelled(self, call_id: str) -> bool:
        """Whether a call was cancelled: its inputs must not run any more."""


class Round:
    """What all parts of the cluster's owner share. All methods belong to the event loop's thread; none blocks."""

    def __init__(self, isolation: str, queue: Queue, clock: Clock, ids: IdSource, sink: Sink) -> None:
        self.cluster = Cluster()
        self.isolation = isolation
        self.fence_base = 0
        self._queue = queue
        self._clock = clock
        self._ids = ids
        self._sink = sink
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._expected = False
        self._in_round = False
        self._stopped = False
        self._now = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_at = math.inf
        self._dirty: dict[str, None] = {}
        self._resize: set[str] = set()
        self.note: Note = _unheard
        """Told of each decision: function id, what, how many, why, container id. `cadenza.control.journal`."""

    def post(self, handler: Callable[..., None], *args: Any) -> None:
        """Let ``handler(*args)`` run in the next round."""
        self._inbox.append((handler, args))
        if not self._expected:
            self._soon()
        if len(self._inbox) > MAX_INBOX_EVENTS:
            self.settle()

    def expect(self) -> None:
        """News of one read follows, and `settle` after it, come what may: no other round need be planned for it."""
        self._expected = True

    def settle(self) -> None:
        """Have the round now instead of in the next turn: for whoever has told all the news of one read."""
        self._expected = False
        if self._inbox and not self._stopped:
            if self._in_round:
                self._soon()
            else:
                self._round()

    def tell(self, handler: Callable[..., None], *args: Any) -> None:
        """`post` of a read's only news, with its round."""
        self._expected = True
        self.post(handler, *args)
        self.settle()

    def _soon(self) -> None:
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._later_round)

    def _later_round(self) -> None:
        self._scheduled = False
        self.settle()

    def stop(self) -> None:
        """Decide nothing any more."""
        self._stopped = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()

    def touch(self, function_id: str) -> None:
        """Look at a function in this round."""
        self._dirty[function_id] = None
        self._resize.add(function_id)

    def _all_dirty(self) -> None:
        for name in self.cluster.functions:
            self.post(self.touch, name)

    def _round(self) -> None:
        self._in_round = True
        self._now = self._clock.monotonic()
        try:
            good = self._guarded(self._decide)
            good = self._guarded(self._act) and good
        finally:
            self._in_round = False
        self._set_timer(self._now if good else self._now + FAULT_WAIT_S)

    def _guarded(self, part: Callable[..., None], *args: Any) -> bool:
        """One part of a round; whether it came to its end. Else it is logged, and everybody else's inputs go on."""
        try:
            part(*args)
        except Exception as error:
            self.failed(getattr(part, "__qualname__", ""), error)
            return False
        return True

    def failed(self, part: str, error: Exception) -> None:
        """A part of a round raised."""
        _log.error("a part of a round failed", exc=error, part=part)

    def _decide(self) -> None:
        """Take the news, and decide."""
        raise NotImplementedError

    def _act(self) -> None:
        """Tell the nodes."""
        raise NotImplementedError

    def _set_timer(self, earliest: float) -> None:
        at = max(earliest, self.cluster.next_alarm())
        if at >= self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf:
            self._timer = asyncio.get_running_loop().call_later(
                max(TIMER_GRAIN_S, at - self._clock.monotonic()), self._ring
            )

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self._stopped and not self._in_round:
            self._round()
