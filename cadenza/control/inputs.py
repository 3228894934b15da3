"""What becomes of inputs: those in memory, those in the queue's table, and the way between the two."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.ids import IdSource
from cadenza.control.round import Round, Sink
from cadenza.protocol.calls import (
    INIT_FAILURE,
    MAX_SYNC_QUEUED,
    TERMINATED,
    BlobRef,
)
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import dispatch, events
from cadenza.scheduling.states import AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry, Taken
from cadenza.storage.queue import Queue

WINDOW_INPUTS = 512
"""How many due inputs of a function are leased from the table ahead of their run, and how many detached or large ones
go to memory without it; the rest wait in the table."""
ATTACHED_INPUTS = MAX_SYNC_QUEUED
"""How many attached inputs of a function go to memory without the table: as many as may wait. The way through the table
costs as much as all else that the control plane does for an input, and nothing of an attached call outlives it."""
LARGE_INPUT_BYTES = 64 << 10
"""An attached input over this goes by `WINDOW_INPUTS`, so that memory holds few of them."""


def window(spec: FunctionSpec) -> int:
    """`WINDOW_INPUTS`, or more: enough for two whole batches."""
    return max(WINDOW_INPUTS, 2 * spec.batch_max)


@dataclass
class _Refill:
    """A function's lease of waiting inputs that is under way."""

    running: bool = False
    arrived: int = 0
    """How many inputs were put into the table since it was asked for."""
    next_ready: float = math.inf
    """Monotonic seconds at which the next delayed input is due."""


class Inputs(Round):
    """A function's inputs: how many may be in memory, what is decided about them, when more are leased."""

    def __init__(self, isolation: str, queue: Queue, clock: Clock, ids: IdSource, sink: Sink) -> None:
        super().__init__(isolation, queue, clock, ids, sink)
        self._refills: dict[str, _Refill] = {}
        self._reserved: dict[str, int] = {}

    def room(self, function_id: str, attached: bool) -> tuple[int, int]:
        """How many new inputs may go straight to memory, and how many while there are large ones among them: none while
        others wait in the table before them."""
        function = self.cluster.functions[function_id]
        if function.backlog > function.delayed:
            return 0, 0
        there = len(function.ready) + self._reserved.get(function_id, 0)
        room = max(0, window(function.spec) - there)
        return max(room, ATTACHED_INPUTS - there) if attached else room, room

    def reserve(self, function_id: str, change: int) -> None:
        """Places in memory for inputs that are on their way; given back by `arrived`, or with a negative ``change``."""
        if change:
            self._reserved[function_id] = max(0, self._reserved.get(function_id, 0) + change)

    def arrived(self, function_id: str, entries: Sequence[Entry], reserved: int = 0) -> None:
        """New inputs, leased with their put."""
        function = self.cluster.functions.get(function_id)
        if function is None or function.removed:
            for one in entries:
                self._finish(one, TERMINATED, error="the app has ended")
            return
        self.reserve(function_id, -reserved)
        good = [one for one in entries if not one.done and not self._sink.is_cancelled(one.call_id)]
        if len(good) < len(entries):
            for one in entries:
                if one not in good:
                    self._finish(one, TERMINATED, error="its call was cancelled")
        self.cluster.apply(events.Arrived(function_id, good), self._now)
        self._dirty[function_id] = None

    def stored(self, function_id: str, count: int) -> None:
        """New inputs that wait in the table. Called when their write is asked for, before the next refill is."""
        if function_id in self.cluster.functions and count:
            self.cluster.apply(events.BacklogChanged(function_id, count), self._now)
            self._refill_of(function_id).arrived += count
            self._dirty[function_id] = None

    def removed(self, function_id: str, count: int) -> None:
        """Inputs left the table otherwise than by a lease."""
        if function_id in self.cluster.functions:
            self.cluster.apply(events.BacklogChanged(function_id, -count, -count), self._now)
            self._dirty[function_id] = None

    def _forgotten(self, function_id: str) -> None:
        """A removed function has nothing left: neither do its books."""
        self._refills.pop(function_id, None)
        self._reserved.pop(function_id, None)
        self._sink.forgotten(function_id)

    # --- what is decided about them ---

    def _finish(
        self, entry: Entry, status: str, data: bytes = b"", blob: Optional[BlobRef] = None, error: str = "",
        items: int = 0, container: Optional[ContainerState] = None, container_id: str = "",
    ) -> None:  # fmt: skip
        if not entry.done:
            entry.done = True
            entry.container_id = container_id if container is None else container.container_id
            self._sink.finish(entry, status, data, blob, error, items, container)

    def _again(
        self, attempt: AttemptState, verdict: dispatch.Verdict, container: Optional[ContainerState], back: list[Entry],
        lost: Optional[bool] = None,
    ) -> None:  # fmt: skip
        """Carry out a verdict on an attempt that has left its container; what runs again at once goes to ``back``."""
        entry = attempt.entry
        if entry.done:
            return
        if self._sink.is_cancelled(entry.call_id):
            self._finish(entry, TERMINATED, error="its call was cancelled", container=container)
        elif verdict.delay_s is None:
            self._finish(entry, verdict.status, error=verdict.error, items=attempt.next_item, container=container)
        elif verdict.delay_s > 0:
            self._later(entry, verdict.delay_s, verdict.charged)
        else:
            if lost if lost is not None else attempt.begun:
                entry.losses += 1
            else:
                entry.attempts -= 1  # it never ran
            entry.container_id = ""
            back.append(entry)

    def _later(self, entry: Entry, delay_s: float, charged: bool) -> None:
        """Let the input wait in the table; ``charged`` against its retries, or as one more loss."""
        if charged:
            entry.retries += 1
        else:
            entry.losses += 1
        entry.ready_at = self._clock.now() + delay_s
        entry.fence = max(entry.fence, self.fence_base)
        self._queue.give_back(entry)
        function_id = entry.function_id
        self.cluster.apply(events.BacklogChanged(function_id, 1, 1), self._now)
        refill = self._refill_of(function_id)
        refill.arrived += 1
        refill.next_ready = min(refill.next_ready, self._now + delay_s)
        self.cluster.arm(self.cluster.functions[function_id], refill.next_ready)

    def _return(self, function: FunctionState, back: list[Entry]) -> None:
        if back:
            back.sort(key=lambda entry: entry.seq)
            self.cluster.apply(events.Arrived(function.function_id, back, front=True), self._now)
            self._dirty[function.function_id] = None

    def _fail_waiting(self, function: FunctionState, failing: events.FailedStart) -> None:
        entries = list(function.ready)
        for entry in entries:
            if failing.status == INIT_FAILURE:
                verdict = dispatch.after_failure(entry, function.spec, failing.status, failing.error)
            else:
                verdict = dispatch.Verdict(None, failing.status, failing.error)
            if verdict.delay_s is None:
                self._finish(
                    entry, verdict.status, failing.data, error=verdict.error, container_id=failing.container_id
                )
            else:
                entry.done = True  # this copy: the table has it from here on
                self._later(entry, verdict.delay_s, True)
        self.cluster.apply(events.Withdrawn(function.function_id), self._now)
        if function.backlog <= function.delayed and not function.ready:
            self.cluster.apply(events.FailingOver(function.function_id), self._now)
            self.touch(function.function_id)

    # --- the table ---

    def _refill_of(self, function_id: str) -> _Refill:
        refill = self._refills.get(function_id)
        if refill is None:
            refill = self._refills[function_id] = _Refill()
        return refill

    def _refill(self, function: FunctionState) -> None:
        """Lease more of what waits in the table, when memory runs low."""
        if not function.backlog or 2 * len(function.ready) >= window(function.spec):
            return
        refill = self._refill_of(function.function_id)
        if refill.running:
            return
        if function.backlog <= function.delayed and self._now < refill.next_ready:
            if refill.next_ready < math.inf:
                self.cluster.arm(function, refill.next_ready)
            return
        refill.running, refill.arrived, refill.next_ready = True, 0, math.inf
        count = window(function.spec) - len(function.ready)
        future = self._queue.take(function.function_id, self._clock.now(), count)
        future.add_done_callback(lambda done: self._post_taken(function.function_id, done))

    def _post_taken(self, function_id: str, done: asyncio.Future[Taken]) -> None:
        if not done.cancelled():
            taken = None if done.exception() is not None else done.result()
            self.post(self._taken, function_id, taken)

    def _taken(self, function_id: str, taken: Optional[Taken]) -> None:
        function = self.cluster.functions.get(function_id)
        refill = _Refill() if function is None else self._refill_of(function_id)
        refill.running = False
        if taken is None:  # the database refused; try again in a while
            if function is not None:
                refill.next_ready = self._now + 1.0
                self.cluster.apply(events.BacklogChanged(function_id, 0, function.backlog), self._now)
                self.cluster.arm(function, refill.next_ready)
            return
        if function is None:
            for entry in taken.entries:
                self._finish(entry, TERMINATED, error="the app has ended")
            return
        good = []
        for entry in taken.entries:
            if function.removed or self._sink.is_cancelled(entry.call_id):
                why = "the app has ended" if function.removed else "its call was cancelled"
                self._finish(entry, TERMINATED, error=why)
            else:
                good.append(entry)
        count = len(taken.entries)
        self.cluster.apply(events.BacklogChanged(function_id, -count), self._now)
        if taken.more:
            delayed = -function.delayed
        else:
            delayed = function.backlog - refill.arrived - function.delayed
        self.cluster.apply(events.BacklogChanged(function_id, 0, delayed), self._now)
        if not taken.more and taken.next_ready_at is None:  # nothing is left but what came since
            gone = max(0, function.backlog - refill.arrived)
            self.cluster.apply(events.BacklogChanged(function_id, -gone, -gone), self._now)
        if taken.next_ready_at is not None:
            at = self._now + max(0.0, taken.next_ready_at - self._clock.now())
            refill.next_ready = min(refill.next_ready, at)
        if refill.next_ready < math.inf:
            self.cluster.arm(function, refill.next_ready)
        if good:
            self.cluster.apply(events.Arrived(function_id, good), self._now)
        self._dirty[function_id] = None
