"""What is asked of calls: one output, many in order, how a call stands. Waits end with the output that they are for.

Detached calls are read from the queue's table; of attached ones only the standing is known, since their outputs went to
their callers. All methods are called on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Mapping, Optional

from cadenza.base.clock import Clock
from cadenza.base.errors import InvalidError, NotFoundError, OutputExpiredError
from cadenza.control.attached import Attached, input_id, item_of
from cadenza.control.request import MAX_NUMBER
from cadenza.protocol.calls import PENDING, SPAWN_MAP, OutputItem, ValueRef
from cadenza.protocol.methods import CallInfo, ContainerInfo
from cadenza.scheduling.states import ContainerState, FunctionState
from cadenza.storage.entry import CallRecord
from cadenza.storage.queue import Queue

ENDED_CALLS_KNOWN = 2_000
"""How many attached calls are still known to `Answers.info` after their end."""
OUTPUTS_PAGE = 1_000
"""How many outputs one answer holds at most."""


class Answers:
    """Reads what `cadenza.control.calls.Calls` writes. ``attached`` and ``functions`` are its own."""

    def __init__(
        self, queue: Queue, clock: Clock, attached: Mapping[str, Attached], functions: Mapping[str, FunctionState]
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._attached = attached
        self._functions = functions
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._ended: OrderedDict[str, Attached] = OrderedDict()
        self._starts: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._stopped = False

    # --- what `Calls` tells ---

    def wake(self, call_id: str) -> None:
        """A call has a new output."""
        waiters = self._waiters.get(call_id)
        if waiters:
            for one in waiters:
                if not one.done():
                    one.set_result(None)

    def started(self, call_id: str, phases: Mapping[str, float]) -> None:
        """A call waited for the start of a container, which took its time so."""
        self._starts[call_id] = dict(phases)
        while len(self._starts) > ENDED_CALLS_KNOWN:
            self._starts.popitem(last=False)

    def ended(self, state: Attached) -> None:
        """An attached call is over."""
        state.on_output = state.on_item = None
        self._ended[state.record.call_id] = state
        if len(self._ended) > ENDED_CALLS_KNOWN:
            self._ended.popitem(last=False)

    def knows(self, call_id: str) -> bool:
        """Whether an attached call of this name has ended, not too long ago."""
        return call_id in self._ended

    def lately(self, call_id: str) -> Optional[Attached]:
        """An attached call that ended not too long ago."""
        return self._ended.get(call_id)

    def all_lately(self) -> list[Attached]:
        """All of those."""
        return list(self._ended.values())

    def stop(self) -> None:
        """End all waits."""
        self._stopped = True
        for call_id in list(self._waiters):
            self.wake(call_id)

    # --- what is asked ---

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]:
        """One output, waited for up to ``wait_s``; status PENDING if it is not there by then.

        NotFoundError for an unknown call, OutputExpiredError when there is nothing and nothing will come.
        """
        if not 0 <= index <= MAX_NUMBER:
            raise InvalidError(f"an index is from 0 to {MAX_NUMBER}, not {index}")
        until = self._clock.monotonic() + wait_s
        while True:
            waiter = self._wait_for(call_id)
            try:
                found = await self._queue.outputs(call_id, index, index + 1, 1)
                if found:
                    return item_of(found[0]), found[0].data
                await self._must_come(call_id, index)
                if not await self._woken(waiter, until):
                    return OutputItem(index, input_id(call_id, index) or "", PENDING, ValueRef()), b""
            finally:
                self._no_longer(call_id, waiter)

    async def _must_come(self, call_id: str, index: Optional[int]) -> None:
        """NotFoundError or OutputExpiredError when the output can never come."""
        if call_id in self._attached:
            return
        record = await self._queue.call(call_id)
        if record is None:
            raise NotFoundError(f"there is no call {call_id}, or its results are no longer kept")
        if index is None or await self._queue.unfinished(call_id, index):
            return
        if await self._queue.outputs(call_id, index, index + 1, 1):
            return  # it came between the two looks
        if index >= record.inputs and record.kind == SPAWN_MAP and record.total is None and not record.cancelled:
            function = self._functions.get(record.function_id)
            if function is not None and not function.removed:
                return  # the call is open: the input may still come
        if index >= record.inputs and not record.cancelled:
            raise NotFoundError(f"the call {call_id} has {record.inputs} inputs; there is none with index {index}")
        raise OutputExpiredError(f"the result {index} of call {call_id} is no longer kept: results live 7 days")

    def _wait_for(self, call_id: str) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(call_id, set()).add(waiter)
        return waiter

    def _no_longer(self, call_id: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(call_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[call_id]

    async def _woken(self, waiter: asyncio.Future[None], until: float) -> bool:
        """Whether something came before ``until``."""
        left = until - self._clock.monotonic()
        if left <= 0 or self._stopped:
            return waiter.done() and not self._stopped
        done, _ = await asyncio.wait((waiter,), timeout=left)
        return bool(done) and not self._stopped

    async def outputs(
        self, call_id: str, start: int, end: Optional[int], wait_s: float
    ) -> tuple[list[tuple[OutputItem, bytes]], int]:
        """Outputs ``start`` to ``end`` (not included), in order without a gap, and how many inputs the call has.

        Waits up to ``wait_s`` for the first of them. At most `OUTPUTS_PAGE` in one answer. NotFoundError for an unknown
        call.
        """
        until = self._clock.monotonic() + wait_s
        while True:
            waiter = self._wait_for(call_id)
            try:
                state = self._attached.get(call_id)
                record = state.record if state is not None else await self._queue.call(call_id)
                if record is None:
                    raise NotFoundError(f"there is no call {call_id}, or its results are no longer kept")
                stop = record.inputs if end is None else min(end, record.inputs)
                found = await self._queue.outputs(call_id, start, stop, OUTPUTS_PAGE) if start < stop else []
                whole = []
                for position, one in enumerate(found, start):
                    if one.index != position:
                        break
                    whole.append((item_of(one), one.data))
                if whole or start >= stop:
                    return whole, record.inputs
                await self._must_come(call_id, start)
                if not await self._woken(waiter, until):
                    return [], record.inputs
            finally:
                self._no_longer(call_id, waiter)

    async def info(self, call_id: str) -> CallInfo:
        """How a call stands. NotFoundError for one that is not known any more."""
        state = self._attached.get(call_id)
        if state is not None:
            return self._attached_info(state)
        if call_id in self._ended:
            return self._attached_info(self._ended[call_id])
        record = await self._queue.call(call_id)
        if record is None:
            raise NotFoundError(f"there is no call {call_id}, or it is no longer kept")
        statuses = await self._queue.statuses(call_id)
        finished = sum(statuses.values())
        unfinished = await self._queue.unfinished(call_id)
        if unfinished:
            statuses[PENDING] = unfinished
        return self._info(record, finished, statuses)

    def _attached_info(self, state: Attached) -> CallInfo:
        statuses = dict(state.statuses)
        if state.record.inputs > state.finished:
            statuses[PENDING] = state.record.inputs - state.finished
        return self._info(state.record, state.finished, statuses)

    def _info(self, record: CallRecord, finished: int, statuses: dict[str, int]) -> CallInfo:
        function = self._functions.get(record.function_id)
        return CallInfo(
            record.call_id,
            record.function_id,
            "" if function is None else function.spec.name,
            record.app_id,
            record.kind,
            record.created_at,
            record.inputs,
            finished,
            statuses,
            self._starts.get(record.call_id, {}) if record.inputs == 1 else {},
            record.method,
        )


def described(one: ContainerState, wall: float, isolation: str) -> ContainerInfo:
    """A container as users see it. ``wall``: epoch seconds at the monotonic clock's 0; ``isolation``: the default."""
    function, report = one.function, one.report
    return ContainerInfo(
        container_id=one.container_id,
        app_id=function.app_id,
        app_name=function.app_name,
        function_id=function.function_id,
        function_name=function.spec.name,
        state=one.state if one.stop is None else "stopping",
        started_at=wall + one.placed_at,
        runtime="" if report is None else report.runtime,
        isolation=one.spec.isolation or isolation,
        warm=False if report is None else report.warm,
        running_inputs=one.begun,
        phases={} if report is None else dict(report.phases),
        why=one.why,
    )
