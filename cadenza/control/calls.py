"""Calls: what users asked for, and the only writer of results.

`Calls` takes inputs, keeps them durable in `cadenza.storage.queue`, lets `cadenza.control.loop` find containers for
them, commits each result exactly once (only the attempt that holds the lease may give it), and then tells who waits.
All methods are called on the event loop's thread. None blocks; those that wait are coroutines.

Detached calls have no state in memory: a hundred thousand of them cost nothing but rows. An attached call (``sync``,
``map``, ``generator``) is in memory while it runs and is forgotten once its last output was handed over.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.base.errors import (
    Error,
    InvalidError,
    NotFoundError,
    OutputExpiredError,
    ResourceExhaustedError,
)
from cadenza.base.ids import ALPHABET, IdSource
from cadenza.control.loop import EPOCH_FENCES, Loop
from cadenza.protocol.calls import (
    CALL_KINDS,
    CALLER_GONE_GRACE_S,
    DETACHED_KINDS,
    INTERNAL_FAILURE,
    MAX_ASYNC_QUEUED,
    MAX_SYNC_QUEUED,
    MAX_SYNC_TOTAL,
    PENDING,
    RESULT_KEPT_S,
    TERMINATED,
    AttemptOutput,
    BlobRef,
    GeneratorItem,
    OutputItem,
    ValueRef,
)
from cadenza.protocol.methods import CallInfo, ContainerInfo, FunctionStats
from cadenza.protocol.nodes import Node, NodeReport
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling.cluster import ContainerState
from cadenza.storage.db import Database
from cadenza.storage.entry import CallRecord, Entry, Output, Unfinished
from cadenza.storage.queue import EXPIRE_ROWS, Queue, SqliteQueue

OnOutput = Callable[[OutputItem, bytes], None]
OnItem = Callable[[int, bytes, Optional[BlobRef]], None]
Value = tuple[int, bytes, Optional[BlobRef]]
"""An input's index in its call, its bytes (empty when there is a blob), its blob."""

ENDED_CALLS_KNOWN = 2_000
"""How many attached calls are still known to `Calls.info` after their end."""
EXPIRE_EVERY_S = 600.0
FIRST_REPORT_S = 1.0
"""How long after a start a node may take to say which of the containers that it had are still there."""
DROP_ROWS = 5_000
"""How many waiting inputs of an ended app are dropped in one transaction."""
OUTPUTS_PAGE = 1_000
"""How many outputs one answer holds at most."""


@dataclass(eq=False)
class _Attached:
    """A call that ends with its caller."""

    record: CallRecord
    on_output: Optional[OnOutput]
    on_item: Optional[OnItem]
    finished: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    """Its inputs could not be stored."""
    dropped: bool = False
    """Inputs of it ended in the table, which keeps their outputs."""
    below: int = 0
    """All indices under this are known, and those in ``beyond``."""
    beyond: set[int] = field(default_factory=set)

    def is_new(self, index: int) -> bool:
        """Whether the call did not have this index; from now on it has."""
        if index < self.below or index in self.beyond:
            return False
        self.beyond.add(index)
        while self.below in self.beyond:
            self.beyond.discard(self.below)
            self.below += 1
        return True


@dataclass
class _Usage:
    """What a function has unfinished, against the limits of semantics.md section 3.4."""

    attached: int = 0
    detached: int = 0


class Calls:
    """Every call of this control plane."""

    def __init__(
        self, config: Config, db: Optional[Database], clock: Clock, ids: IdSource, queue: Optional[Queue] = None
    ) -> None:
        """Nothing happens before `start`. ``db`` is open; ``queue`` is for tests, in its place."""
        if queue is None:
            if db is None:
                raise ValueError("Calls needs a database or a queue")
            queue = SqliteQueue(db)
        self._queue = queue
        self._clock = clock
        self._ids = ids
        self.loop = Loop(config.isolation, queue, clock, ids, self)
        self._attached: dict[str, _Attached] = {}
        self._by_caller: dict[str, set[str]] = {}
        self._ended: OrderedDict[str, CallInfo] = OrderedDict()
        self._starts: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._usage: dict[str, _Usage] = {}
        self._cancelling: dict[str, int] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unclaimed: dict[str, tuple[list[Entry], int]] = {}
        self._first_reports: dict[str, NodeReport] = {}
        self._reported = False
        self._started = False
        self._stopped = False
        self._expiry: Optional[asyncio.TimerHandle] = None

    # --- life ---

    async def start(self, node: Node) -> None:
        """Load what is unfinished: detached calls go on, attached ones of an earlier process are dropped.

        Functions added before this may keep the containers that outlived the earlier process; others' are stopped.
        """
        left = await self._queue.load()
        self.loop.fence_base = left.epoch * EPOCH_FENCES
        node_id = node.info().node_id
        holding = {one.container_id for one in left.held}
        adoptable = [one for one in left.containers if one[1] == node_id and self._adoptable(one, holding)]
        self.loop.attach(node, connected=not adoptable)
        for one in left.containers:
            if one not in adoptable:
                self._queue.drop_container(one[0])
        self._take_over(left, {one[0] for one in adoptable}, adoptable)
        self._started = True
        early = self._first_reports.pop(node_id, None)
        if early is not None:
            self._reported = True
            self.loop.post(self.loop.report, early)
        elif adoptable:
            asyncio.get_running_loop().call_later(FIRST_REPORT_S, self._no_report, node_id)
        self._expire_later()

    def _no_report(self, node_id: str) -> None:
        """A node that says nothing has nothing: it began anew, as this process did."""
        node = self.loop.cluster.nodes[node_id]
        if not node.connected and not self._stopped and not self._reported:
            self.loop.post(self.loop.report, NodeReport(node_id, (), whole=True, revision=0))

    def _adoptable(self, kept: tuple[str, str, str, str], holding: set[str]) -> bool:
        """Whether a container that may have outlived the earlier process is of use to this one."""
        function = self.loop.cluster.functions.get(kept[2])
        if function is None or function.removed:
            return False
        return not function.spec.single_use or kept[0] in holding  # else it may have had its one input

    def _take_over(self, left: Unfinished, alive: set[str], containers: Sequence[tuple[str, str, str, str]]) -> None:
        """Leases of containers that may still be there stay; the others are given back."""
        running: dict[str, list[Entry]] = {}
        waiting: dict[str, list[Entry]] = {}
        for entry in left.held:
            self._usage_of(entry.function_id).detached += 1
            if entry.container_id in alive:
                running.setdefault(entry.container_id, []).append(entry)
            else:
                entry.container_id = ""
                waiting.setdefault(entry.function_id, []).append(entry)
        for container_id, node_id, function_id, kept in containers:
            self.loop.post(self.loop.adopt, container_id, node_id, function_id, kept, running.get(container_id, []))
        for function_id in {*waiting, *left.waiting}:
            count = left.waiting.get(function_id, 0)
            self._usage_of(function_id).detached += count
            entries = waiting.get(function_id, [])
            if function_id in self.loop.cluster.functions:
                self.loop.post(self.loop.arrived, function_id, entries)
                self.loop.post(self.loop.stored, function_id, count)
            else:
                self._unclaimed[function_id] = (entries, count)

    async def stop(self) -> None:
        """Stop deciding; what was accepted and detached stays in the database for the next start."""
        self.loop.stop()
        self._stopped = True
        if self._expiry is not None:
            self._expiry.cancel()
        for task in list(self._tasks):
            task.cancel()
        for waiters in list(self._waiters.values()):
            for one in waiters:
                if not one.done():
                    one.set_result(None)
        await self._queue.flush()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire_later(self) -> None:
        self._expiry = asyncio.get_running_loop().call_later(EXPIRE_EVERY_S, lambda: self._spawn(self._expire()))

    async def _expire(self) -> None:
        try:
            while await self._queue.expire(self._clock.now()) >= EXPIRE_ROWS:
                await asyncio.sleep(0.1)
        except Error:
            pass  # the disk is full; there is another time
        self._expire_later()

    # --- functions and apps ---

    def add_function(
        self, function_id: str, app_id: str, app_name: str, spec: FunctionSpec, layout: Mapping[str, str]
    ) -> None:
        """Make a function callable (again). InvalidError when no node can ever hold its containers."""
        self.loop.add_function(function_id, app_id, app_name, spec, layout)
        entries, count = self._unclaimed.pop(function_id, ([], 0))
        if entries or count:
            self.loop.post(self.loop.arrived, function_id, entries)
            self.loop.post(self.loop.stored, function_id, count)

    def remove_app(self, app_id: str, reason: str) -> None:
        """End an app: its unfinished inputs become TERMINATED, its containers stop."""
        text = f"the app has ended: {reason}" if reason else "the app has ended"
        for function in list(self.loop.cluster.functions.values()):
            if function.app_id == app_id and not function.removed:
                self.loop.post(self.loop.remove_function, function.function_id, text)
                self._spawn(self._drop_function(function.function_id, text))

    async def _drop_function(self, function_id: str, reason: str) -> None:
        while True:
            expires_at = self._clock.now() + RESULT_KEPT_S
            try:
                dropped = await self._queue.drop_function(function_id, reason, expires_at, DROP_ROWS)
            except Error:
                await asyncio.sleep(1.0)
                continue
            for call_id, index, input_id in dropped:
                self._committed(Output(call_id, index, input_id, TERMINATED, error=reason), function_id, None)
            self.loop.post(self.loop.removed, function_id, len(dropped))
            if len(dropped) < DROP_ROWS:
                return

    def app_busy(self, app_id: str) -> bool:
        """Whether any input of the app is not finished."""
        for function_id, usage in self._usage.items():
            if usage.attached > 0 or usage.detached > 0:
                function = self.loop.cluster.functions.get(function_id)
                if function is not None and function.app_id == app_id:
                    return True
        return False

    def _usage_of(self, function_id: str) -> _Usage:
        usage = self._usage.get(function_id)
        if usage is None:
            usage = self._usage[function_id] = _Usage()
        return usage

    # --- calls ---

    async def submit(
        self,
        function_id: str,
        kind: str,
        values: Sequence[Value],
        *,
        call_id: str = "",
        caller: str = "",
        parent_input_id: str = "",
        total: Optional[int] = None,
        on_output: Optional[OnOutput] = None,
        on_item: Optional[OnItem] = None,
    ) -> tuple[str, list[str]]:
        """Open a call with its first inputs: ``(call id, input ids)``.

        For detached kinds it returns when they are durable. For the others it returns at once, before any output: their
        inputs run while they are being written. ``call_id`` of a call that is there: more inputs of it. ``total`` is
        how many inputs the call will have, if that is known (None for a map that is still being read; see `close`).
        ``on_output(item, data)`` is called once for each input, after its output is committed;
        ``on_item(number, data, blob)`` for a generator's values, in order.
        NotFoundError for an unknown function, ResourceExhaustedError over the limits of semantics.md section 3.4.
        """
        if kind not in CALL_KINDS:
            raise InvalidError(f"there is no kind of call named {kind!r}; known are {', '.join(CALL_KINDS)}")
        if call_id and (call_id in self._attached or await self._queue.call(call_id) is not None):
            return call_id, await self.add(call_id, values)
        function = self.loop.cluster.functions.get(function_id)
        if function is None or function.removed:
            raise NotFoundError(f"there is no function {function_id}, or its app has ended")
        attached = kind not in DETACHED_KINDS
        self._check_limits(function_id, attached, len(values))
        call_id = call_id or self._ids.new("call")
        record = CallRecord(
            call_id, function_id, function.app_id, kind, attached, caller, parent_input_id, self._clock.now(),
            len(values), total if attached else None,
        )  # fmt: skip
        entries = self._entries(record, values)
        if attached:
            state = _Attached(record, on_output, on_item)
            for index, _, _ in values:
                state.is_new(index)
            self._attached[call_id] = state
            if caller:
                self._by_caller.setdefault(caller, set()).add(call_id)
            self._run_attached(state, entries)
        else:
            await self._store_detached(function_id, record, entries)
        return call_id, [one.input_id for one in entries]

    async def add(self, call_id: str, values: Sequence[Value]) -> list[str]:
        """More inputs of an open call: their ids. An index that the call has already is ignored.

        NotFoundError for an unknown call, InvalidError for one that was cancelled, ResourceExhaustedError as `submit`.
        """
        state = self._attached.get(call_id)
        record = state.record if state is not None else await self._queue.call(call_id)
        if record is None:
            raise NotFoundError(f"there is no call {call_id}, or it has ended")
        if record.cancelled:
            raise InvalidError(f"the call {call_id} was cancelled: it takes no more inputs")
        function = self.loop.cluster.functions.get(record.function_id)
        if function is None or function.removed:
            raise NotFoundError(f"the app of call {call_id} has ended")
        self._check_limits(record.function_id, record.attached, len(values))
        if state is None:
            entries = self._entries(record, values)
            await self._store_detached(record.function_id, None, entries)
        else:
            entries = self._entries(record, [one for one in values if state.is_new(one[0])])
            record.inputs += len(entries)
            self._run_attached(state, entries)
        return [_input_id(call_id, index) or "" for index, _, _ in values]

    def _check_limits(self, function_id: str, attached: bool, count: int) -> None:
        usage = self._usage_of(function_id)
        if attached:
            function = self.loop.cluster.functions[function_id]
            queued = usage.attached - function.running + count
            if queued > MAX_SYNC_QUEUED:
                raise ResourceExhaustedError(
                    f"{function.spec.name} has {usage.attached} inputs under way; at most {MAX_SYNC_QUEUED} may wait. "
                    "Try again later, or use spawn"
                )
            if usage.attached + count > MAX_SYNC_TOTAL:
                raise ResourceExhaustedError(f"at most {MAX_SYNC_TOTAL} inputs of a function may wait and run")
        elif usage.detached + count > MAX_ASYNC_QUEUED:
            raise ResourceExhaustedError(
                f"{usage.detached} spawned inputs are queued; at most {MAX_ASYNC_QUEUED} may be. Try again later"
            )

    def _entries(self, record: CallRecord, values: Sequence[Value]) -> list[Entry]:
        """Entries in order; the first of them, as many as memory has room for, leased with their put."""
        room = self.loop.room(record.function_id) if self._started else 0
        fence = self.loop.fence_base + 1
        queue, now = self._queue, self._clock.now()
        found: list[Entry] = []
        for index, data, blob in values:
            fresh = len(found) < room
            found.append(
                Entry(
                    queue.next_seq(), _input_id(record.call_id, index) or self._ids.new("input"), record.call_id, index,
                    record.function_id, record.attached, data, blob, fence if fresh else 0, now, fresh=fresh,
                )
            )  # fmt: skip
        self.loop.reserve(record.function_id, min(room, len(found)))
        return found

    def _run_attached(self, state: _Attached, entries: list[Entry]) -> None:
        """Let them run now and write them meanwhile."""
        function_id = state.record.function_id
        self._usage_of(function_id).attached += len(entries)
        fresh = [one for one in entries if one.fresh]
        if fresh:
            self.loop.post(self.loop.arrived, function_id, fresh, len(fresh))
        future = self._queue.put(None, entries)
        if len(fresh) < len(entries):
            self.loop.post(self.loop.stored, function_id, len(entries) - len(fresh))
        future.add_done_callback(lambda done: self._stored(state, entries, done))

    def _stored(self, state: _Attached, entries: list[Entry], done: asyncio.Future[list[int]]) -> None:
        if done.cancelled() or done.exception() is None or self._stopped:
            return
        # The write failed. Nothing of these inputs is kept, so none of their results can be: say so to the caller.
        text = f"the call could not be stored: {done.exception()}"
        state.failed = True
        function_id = state.record.function_id
        mine = set(entries)
        self.loop.post(self.loop.end_inputs, function_id, lambda entry: entry in mine, text, False)
        lost = sum(1 for one in entries if not one.fence)
        if lost:
            self.loop.post(self.loop.removed, function_id, lost)
        for one in entries:
            output = Output(one.call_id, one.index, one.input_id, INTERNAL_FAILURE, error=text)
            one.done = True
            self._committed(output, function_id, None)

    async def _store_detached(self, function_id: str, record: Optional[CallRecord], entries: list[Entry]) -> None:
        """Write, then let run what is new."""
        future = self._queue.put(record, entries)
        usage = self._usage_of(function_id)
        usage.detached += len(entries)
        waiting = sum(1 for one in entries if not one.fence)
        if waiting:
            self.loop.post(self.loop.stored, function_id, waiting)
        try:
            known = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The caller went away; what is being written is accepted all the same.
            future.add_done_callback(lambda done: self._run_detached(function_id, entries, done))
            raise
        except Error:
            self._not_stored(function_id, entries)
            raise
        self._run_stored(function_id, entries, known)

    def _not_stored(self, function_id: str, entries: list[Entry]) -> None:
        waiting = sum(1 for one in entries if not one.fence)
        self.loop.reserve(function_id, waiting - len(entries))
        self._usage_of(function_id).detached -= len(entries)
        if waiting:
            self.loop.post(self.loop.removed, function_id, waiting)

    def _run_detached(self, function_id: str, entries: list[Entry], done: asyncio.Future[list[int]]) -> None:
        if done.cancelled() or self._stopped:
            return
        if done.exception() is None:
            self._run_stored(function_id, entries, done.result())
        else:
            self._not_stored(function_id, entries)

    def _run_stored(self, function_id: str, entries: list[Entry], known: list[int]) -> None:
        new = set(known) if len(known) != len(entries) else None
        fresh = [one for one in entries if one.fresh and (new is None or one.index in new)]
        if new is not None:
            repeated = [one for one in entries if one.index not in new]
            self._usage_of(function_id).detached -= len(repeated)
            waiting = sum(1 for one in repeated if not one.fence)
            if waiting:
                self.loop.post(self.loop.removed, function_id, waiting)
        reserved = sum(1 for one in entries if one.fresh)
        if not reserved or self._stopped:
            return
        if function_id in self.loop.cluster.functions:
            self.loop.post(self.loop.arrived, function_id, fresh, reserved)
        else:  # its app ended meanwhile
            for one in fresh:
                self.finish(one, TERMINATED, b"", None, "the app has ended", 0, None)

    def close(self, call_id: str, total: int) -> None:
        """The call will have ``total`` inputs and no more."""
        state = self._attached.get(call_id)
        if state is None:
            self._queue.close_call(call_id, total)
        else:
            state.record.total = total
            self._check_end(state)

    # --- results ---

    def finish(
        self,
        entry: Entry,
        status: str,
        data: bytes,
        blob: Optional[BlobRef],
        error: str,
        items: int,
        container: Optional[ContainerState],
    ) -> None:
        """`cadenza.control.loop.Sink`: commit an output, then tell who waits."""
        if entry.attached:
            state = self._attached.get(entry.call_id)
            if state is not None and state.failed:
                return
        expires_at = self._clock.now() + RESULT_KEPT_S
        container_id = "" if container is None else container.container_id
        output = Output(
            entry.call_id, entry.index, entry.input_id, status, data, blob, error, items,
            max(1, entry.attempts + entry.retries) if entry.attempts else entry.retries, container_id, expires_at,
        )  # fmt: skip
        if container is not None and container.ready_since > entry.since and container.report is not None:
            self._starts[entry.call_id] = dict(container.report.phases)
            while len(self._starts) > ENDED_CALLS_KNOWN:
                self._starts.popitem(last=False)
        function_id = entry.function_id

        def then(kept: bool) -> None:
            if kept:
                self._committed(output, function_id, entry)

        self._queue.ack(entry, output, then)

    def item(self, entry: Entry, number: int, data: bytes, blob: Optional[BlobRef]) -> None:
        """`cadenza.control.loop.Sink`: a generator's next value."""
        state = self._attached.get(entry.call_id)
        if state is not None and state.on_item is not None:
            state.on_item(number, data, blob)

    def ended(self, call_id: str) -> bool:
        """`cadenza.control.loop.Sink`: whether a call was cancelled."""
        return call_id in self._cancelling

    def _committed(self, output: Output, function_id: str, entry: Optional[Entry]) -> None:
        """An output is durable."""
        state = self._attached.get(output.call_id)
        usage = self._usage_of(function_id)
        if state is None:
            usage.detached -= 1
        else:
            usage.attached -= 1
            state.finished += 1
            state.dropped = state.dropped or entry is None
            state.statuses[output.status] = state.statuses.get(output.status, 0) + 1
            if state.on_output is not None:
                state.on_output(_item(output), output.data)
            self._check_end(state)
        waiters = self._waiters.get(output.call_id)
        if waiters:
            for one in waiters:
                if not one.done():
                    one.set_result(None)

    def _check_end(self, state: _Attached) -> None:
        record = state.record
        if record.total is None or state.finished < record.total:
            return
        if self._attached.pop(record.call_id, None) is None:
            return
        mine = self._by_caller.get(record.caller)
        if mine is not None:
            mine.discard(record.call_id)
            if not mine:
                del self._by_caller[record.caller]
        self._ended[record.call_id] = self._attached_info(state)
        if len(self._ended) > ENDED_CALLS_KNOWN:
            self._ended.popitem(last=False)
        if state.dropped:
            self._queue.forget_calls((record.call_id,))

    # --- asking ---

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]:
        """One output, waited for up to ``wait_s``; status PENDING if it is not there by then.

        NotFoundError for an unknown call, OutputExpiredError when there is nothing and nothing will come.
        """
        if index < 0:
            raise InvalidError(f"an index is 0 or more, not {index}")
        until = self._clock.monotonic() + wait_s
        while True:
            waiter = self._wait_for(call_id)
            try:
                found = await self._queue.outputs(call_id, index, index + 1, 1)
                if found:
                    return _item(found[0]), found[0].data
                await self._must_come(call_id, index)
                if not await self._woken(waiter, until):
                    return OutputItem(index, _input_id(call_id, index) or "", PENDING, ValueRef()), b""
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
                    whole.append((_item(one), one.data))
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
            return self._ended[call_id]
        record = await self._queue.call(call_id)
        if record is None:
            raise NotFoundError(f"there is no call {call_id}, or it is no longer kept")
        statuses = await self._queue.statuses(call_id)
        finished = sum(statuses.values())
        unfinished = await self._queue.unfinished(call_id)
        if unfinished:
            statuses[PENDING] = unfinished
        return self._info(record, finished, statuses)

    def _attached_info(self, state: _Attached) -> CallInfo:
        statuses = dict(state.statuses)
        if state.record.inputs > state.finished:
            statuses[PENDING] = state.record.inputs - state.finished
        return self._info(state.record, state.finished, statuses)

    def _info(self, record: CallRecord, finished: int, statuses: dict[str, int]) -> CallInfo:
        function = self.loop.cluster.functions.get(record.function_id)
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
        )

    # --- ending ---

    async def cancel(self, call_id: str, terminate_containers: bool) -> None:
        """End a call: waiting inputs drop, running ones are cancelled; each becomes TERMINATED, durable on return.

        A call that has ended is left as it is. NotFoundError for one that never was.
        """
        state = self._attached.get(call_id)
        record = state.record if state is not None else await self._queue.call(call_id)
        if record is None:
            if call_id in self._ended:
                return
            raise NotFoundError(f"there is no call {call_id}")
        await self._cancel(record, terminate_containers, "the call was cancelled")

    async def _cancel(self, record: CallRecord, terminate_containers: bool, reason: str) -> None:
        call_id, function_id = record.call_id, record.function_id
        record.cancelled = True
        self._cancelling[call_id] = self._cancelling.get(call_id, 0) + 1
        try:
            self.loop.post(
                self.loop.end_inputs, function_id, lambda entry: entry.call_id == call_id, reason, terminate_containers
            )
            expires_at = self._clock.now() + RESULT_KEPT_S
            dropped = await self._queue.drop_waiting(call_id, reason, expires_at)
            for _, index, input_id in dropped:
                self._committed(Output(call_id, index, input_id, TERMINATED, error=reason), function_id, None)
            if dropped:
                self.loop.post(self.loop.removed, function_id, len(dropped))
            await self._queue.flush_once()
        finally:
            self._cancelling[call_id] -= 1
            if not self._cancelling[call_id]:
                del self._cancelling[call_id]
        state = self._attached.get(call_id)
        if state is not None:
            record.total = record.inputs
            self._check_end(state)

    def abandon(self, caller: str) -> None:
        """A client is gone: its attached calls are cancelled after `CALLER_GONE_GRACE_S`."""
        if caller in self._by_caller and not self._stopped:
            asyncio.get_running_loop().call_later(CALLER_GONE_GRACE_S, self._abandon, caller)

    def _abandon(self, caller: str) -> None:
        if self._stopped:
            return
        for call_id in list(self._by_caller.get(caller, ())):
            state = self._attached[call_id]
            state.on_output = state.on_item = None
            self._spawn(self._cancel(state.record, False, "its caller is gone"))

    # --- containers ---

    def stats(self, function_id: str) -> FunctionStats:
        """How many inputs wait and how many containers there are. NotFoundError for an unknown function."""
        function = self.loop.cluster.functions.get(function_id)
        if function is None:
            raise NotFoundError(f"there is no function {function_id}, or its app has ended")
        alive = sum(1 for one in function.containers.values() if one.stop is None)
        return FunctionStats(len(function.ready) + function.backlog, alive)

    def containers(self, app_id: str = "") -> list[ContainerInfo]:
        """The containers that are not gone, each with the reason for its present state."""
        wall = self._clock.now() - self._clock.monotonic()
        found = []
        for one in self.loop.cluster.containers.values():
            function, report = one.function, one.report
            if app_id and function.app_id != app_id:
                continue
            found.append(
                ContainerInfo(
                    container_id=one.container_id,
                    app_id=function.app_id,
                    app_name=function.app_name,
                    function_id=function.function_id,
                    function_name=function.spec.name,
                    state=one.state if one.stop is None else "stopping",
                    started_at=wall + one.placed_at,
                    runtime="" if report is None else report.runtime,
                    isolation=function.spec.isolation or self.loop.isolation,
                    warm=False if report is None else report.warm,
                    running_inputs=one.begun,
                    phases={} if report is None else dict(report.phases),
                    why=one.why,
                )
            )
        return found

    def stop_container(self, container_id: str, graceful: bool) -> None:
        """Stop one container; ``graceful`` lets its running inputs finish. NotFoundError when there is none."""
        if not self.loop.stop_container(container_id, graceful):
            raise NotFoundError(f"there is no container {container_id}")

    # --- what a node calls (protocol.nodes.Control: report, outputs, items) ---

    def report(self, report: NodeReport) -> None:
        """A node's current state."""
        if not self._started:
            if report.whole:
                self._first_reports[report.node_id] = report
            return
        self._reported = self._reported or report.whole
        self.loop.post(self.loop.report, report)

    def take_outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """What became of attempts. Only the attempt that holds the lease counts; others are dropped."""
        self.loop.post(self.loop.outputs, container_id, outputs)

    def take_items(self, container_id: str, items: Sequence[GeneratorItem]) -> None:
        """Values of generators."""
        self.loop.post(self.loop.items, container_id, items)

    def node_away(self, node_id: str) -> None:
        """A node's connection is lost: nothing is given to it until its next whole report."""
        self.loop.post(self.loop.away, node_id)


def _input_id(call_id: str, index: int) -> str:
    """An input's id: its call's, with the index in the last four of 22 characters. Empty above what four can hold."""
    if index >= 62**4:
        return ""
    tail = []
    for _ in range(4):
        index, digit = divmod(index, 62)
        tail.append(ALPHABET[digit])
    return "in-" + call_id[3:-4] + "".join(reversed(tail))


def _item(output: Output) -> OutputItem:
    value = ValueRef(0 if output.blob is not None else len(output.data), output.blob)
    return OutputItem(
        output.index, output.input_id, output.status, value, output.error, output.items, output.attempts,
        output.container_id,
    )  # fmt: skip
