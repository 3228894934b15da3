"""Calls: what users asked for, and the only writer of results.

`Calls` takes inputs, keeps them durable in `cadenza.storage.queue`, lets `cadenza.control.loop` find containers for
them, commits each result exactly once (only the attempt that holds the lease may give it), and then tells who waits.
All methods are called on the event loop's thread. None blocks; those that wait are coroutines.

Detached calls have no state in memory: a hundred thousand of them cost nothing but rows. An attached call (``sync``,
``map``, ``generator``) is in memory while it runs and is forgotten once its last output was handed over.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.base.errors import Error, InvalidError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.control.answers import Answers, described
from cadenza.control.attached import ENDS_KNOWN, Attached, OnItem, OnOutput, Value, input_id, item_of
from cadenza.control.intake import Intake
from cadenza.control.journal import DecisionTable, Journal
from cadenza.control.limits import Limits
from cadenza.control.loop import EPOCH_FENCES, Loop
from cadenza.control.published import APP_ENDED, Published
from cadenza.control.results import Results
from cadenza.protocol.calls import (
    CALL_KINDS, CALLER_GONE_GRACE_S, DETACHED_KINDS, RESULT_KEPT_S, TERMINATED, AttemptOutput, BlobRef, GeneratorItem,
    OutputItem,
)  # fmt: skip
from cadenza.protocol.methods import CallInfo, ContainerInfo
from cadenza.protocol.nodes import Node, NodeReport
from cadenza.scheduling.states import ContainerState
from cadenza.storage.db import Database
from cadenza.storage.entry import CallRecord, Entry, Output
from cadenza.storage.queue import EXPIRE_ROWS, Queue
from cadenza.storage.queue_sqlite import SqliteQueue

EXPIRE_EVERY_S = 600.0
MAX_KEY_CHARS = 256
FIRST_REPORT_S = 1.0
"""How long after a start a node may take to say which of the containers that it had are still there."""


class Calls(Published):
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
        self.results = Results(self.loop)
        self._attached: dict[str, Attached] = {}
        self._by_caller: dict[str, set[str]] = {}
        self.journal = Journal(clock, DecisionTable(db, clock) if db is not None else None)
        self.loop.note = self.journal.note
        self._limits = Limits(self.loop.cluster.functions)
        self._intake = Intake(self.loop, queue, clock, ids, self._limits, self.finish, self._ended)
        self._cancelling: dict[str, int] = {}
        self._answers = Answers(queue, clock, self._attached, self.loop.cluster.functions)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._first_reports: dict[str, NodeReport] = {}
        self._reported = False
        self._started = False
        self._stopped = False
        self._expiry: Optional[asyncio.TimerHandle] = None
        self.watch: Optional[Callable[[Entry, str, str, Optional[ContainerState]], None]] = None
        """Told of each input that is decided: its status, error and last container. On the path of every call."""

    # --- life ---

    async def start(self, node: Node) -> None:
        """Load what is unfinished: detached calls go on, attached ones of an earlier process are dropped.

        Functions added before this keep their inputs, and may keep the containers that outlived the earlier process.
        Others' containers are stopped, and their inputs become TERMINATED: their app ended with that process.
        """
        left = await self._queue.load()
        await self.journal.load(list(self.loop.cluster.functions))
        self.loop.fence_base = left.epoch * EPOCH_FENCES
        node_id = node.info().node_id
        holding = {one.container_id for one in left.held}
        adoptable = [one for one in left.containers if one[1] == node_id and self._adoptable(one, holding)]
        self.loop.attach(node, connected=not adoptable)
        for one in left.containers:
            if one not in adoptable:
                self._queue.drop_container(one[0])
        for function_id in self._intake.take_over(left, {one[0] for one in adoptable}, adoptable):
            self._spawn(self._drop_function(function_id, APP_ENDED))
        self._started = self._intake.started = True
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

    async def stop(self) -> None:
        """Stop deciding; what was accepted and detached stays in the database for the next start."""
        await self.results.finish()
        self.loop.stop()
        self._stopped = self._intake.stopped = True
        if self._expiry is not None:
            self._expiry.cancel()
        for task in list(self._tasks):
            task.cancel()
        self._answers.stop()
        await self._queue.flush()
        await self.journal.close()

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
        method: str = "",
        idempotency_key: str = "",
    ) -> tuple[str, list[str]]:
        """Open a call with its first inputs: ``(call id, input ids)``.

        For detached kinds it returns when they are durable. For the others it returns at once, before any output: their
        inputs run while they are being written. ``call_id`` of a call that is there: more inputs of it. ``total`` is
        how many inputs the call will have, if that is known (None for a map that is still being read; see `close`).
        ``on_output(item, data)`` is called once for each input, after its output is committed;
        ``on_item(number, data, blob)`` for a generator's values, in order.
        ``idempotency_key``, for detached kinds: a call of this function, and of this method of a class, that was opened
        with the same key is answered in its place, whatever its inputs were, for as long as it is known.
        NotFoundError for an unknown function, ResourceExhaustedError over the limits of semantics.md section 3.4.
        """
        if len(idempotency_key) > MAX_KEY_CHARS:
            raise InvalidError(f"an idempotency key has at most {MAX_KEY_CHARS} characters")
        if kind not in DETACHED_KINDS and not call_id:
            return self.attach(
                function_id, kind, values, caller=caller, parent_input_id=parent_input_id, total=total,
                on_output=on_output, on_item=on_item, method=method,
            )  # fmt: skip
        if kind not in CALL_KINDS:
            raise InvalidError(f"there is no kind of call named {kind!r}; known are {', '.join(CALL_KINDS)}")
        if call_id in self._attached or (call_id and await self._queue.call(call_id) is not None):
            return call_id, await self.add(call_id, values)
        if kind not in DETACHED_KINDS:
            return self.attach(
                function_id, kind, values, call_id=call_id, caller=caller, parent_input_id=parent_input_id,
                total=total, on_output=on_output, on_item=on_item, method=method,
            )  # fmt: skip
        record = self._record(function_id, kind, values, call_id, caller, parent_input_id, None, method)
        entries = self._intake.entries(record, values)
        key = f"{method}\0{idempotency_key}" if method and idempotency_key else idempotency_key
        first = await self._intake.store_detached(function_id, record, entries, key)
        if first and first != record.call_id:
            return first, [input_id(first, index) or "" for index, _, _ in values]
        return record.call_id, [one.input_id for one in entries]

    def attach(
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
        method: str = "",
    ) -> tuple[str, list[str]]:
        """`submit` of a call that ends with its caller, at once and without any wait."""
        if kind not in CALL_KINDS:
            raise InvalidError(f"there is no kind of call named {kind!r}; known are {', '.join(CALL_KINDS)}")
        record = self._record(function_id, kind, values, call_id, caller, parent_input_id, total, method)
        entries = self._intake.entries(record, values)
        state = Attached(record, on_output, on_item)
        for index, _, _ in values:
            state.is_new(index)
        self._attached[record.call_id] = state
        if caller:
            mine = self._by_caller.get(caller)
            if mine is None:
                self._by_caller[caller] = {record.call_id}
            else:
                mine.add(record.call_id)
        self._intake.run_attached(state.record.function_id, entries)
        if parent_input_id:
            self.loop.post(self.loop.nested, parent_input_id, 1)
        return record.call_id, [one.input_id for one in entries]

    def _record(
        self, function_id: str, kind: str, values: Sequence[Value], call_id: str, caller: str, parent_input_id: str,
        total: Optional[int], method: str,
    ) -> CallRecord:  # fmt: skip
        """A new call, if it may be."""
        function = self.loop.cluster.functions.get(function_id)
        if function is None or function.removed:
            raise NotFoundError(f"there is no function {function_id}, or its app has ended")
        attached = kind not in DETACHED_KINDS
        self._limits.check(function_id, attached, len(values))
        return CallRecord(
            call_id or self._ids.new("call"), function_id, function.app_id, kind, attached, caller, parent_input_id,
            self._clock.now(), len(values), total, method=method,
        )  # fmt: skip

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
        self._limits.check(record.function_id, record.attached, len(values))
        if state is None:
            entries = self._intake.entries(record, values)
            await self._intake.store_detached(record.function_id, None, entries)
        else:
            entries = self._intake.entries(record, [one for one in values if state.is_new(one[0])])
            record.inputs += len(entries)
            self._intake.run_attached(state.record.function_id, entries)
        return [input_id(call_id, index) or "" for index, _, _ in values]

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
        """`cadenza.control.loop.Sink`: an input's output is decided.

        Of an attached call it goes to the caller at once, since nothing of such a call outlives this process; of a
        detached one after its commit.
        """
        if container is not None and container.ready_since > entry.since and container.report is not None:
            self._answers.started(entry.call_id, container.report.phases)
        if self.watch is not None:
            self.watch(entry, status, error, container)
        attached = entry.attached
        output = Output(
            entry.call_id, entry.index, entry.input_id, status, data, blob, error, items,
            max(1, entry.attempts + entry.retries) if entry.attempts else entry.retries, entry.container_id,
            0.0 if attached else self._clock.now() + RESULT_KEPT_S,
        )  # fmt: skip
        function_id = entry.function_id
        if attached:
            self._queue.forget(entry)
            self._ended(output, function_id)
            return

        def then(kept: bool) -> None:
            if kept:
                self._ended(output, function_id)

        self._queue.ack(entry, output, then)

    def item(self, entry: Entry, number: int, data: bytes, blob: Optional[BlobRef]) -> None:
        """`cadenza.control.loop.Sink`: a generator's next value."""
        state = self._attached.get(entry.call_id)
        if state is not None and state.on_item is not None:
            state.on_item(number, data, blob)

    def is_cancelled(self, call_id: str) -> bool:
        """`cadenza.control.loop.Sink`: whether a call was cancelled."""
        return call_id in self._cancelling

    def _ended(self, output: Output, function_id: str, dropped: bool = False) -> None:
        """An output is final. ``dropped``: it is that of an input that was dropped in the table."""
        usage = self._limits.of(function_id)
        state = self._attached.get(output.call_id)
        if state is None:
            usage.detached -= 1
        else:
            usage.attached -= 1
            state.finished += 1
            state.dropped = state.dropped or dropped
            if output.index < ENDS_KNOWN:
                state.ends[output.index] = (output.status, output.container_id)
            state.statuses[output.status] = state.statuses.get(output.status, 0) + 1
            if state.on_output is not None:
                state.on_output(item_of(output), output.data)
            self._check_end(state)
        if not usage.attached and not usage.detached:
            self._limits.forget(function_id)
        self._answers.wake(output.call_id)

    def _check_end(self, state: Attached) -> None:
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
        if record.parent_input_id:
            self.loop.post(self.loop.nested, record.parent_input_id, -1)
        self._answers.ended(state)
        if state.dropped:
            self._queue.forget_calls((record.call_id,))

    # --- asking: see `cadenza.control.answers` ---

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]:
        """As `Answers.get`."""
        return await self._answers.get(call_id, index, wait_s)

    @contextmanager
    def waiting_in(self, container_id: str) -> Iterator[None]:
        """Meanwhile the input that runs in a container waits for an output, if it is known which one that is."""
        name = self.loop.only_input(container_id) if container_id else ""
        if name:
            self.loop.post(self.loop.nested, name, 1)
        try:
            yield
        finally:
            if name:
                self.loop.post(self.loop.nested, name, -1)

    async def outputs(
        self, call_id: str, start: int, end: Optional[int], wait_s: float
    ) -> tuple[list[tuple[OutputItem, bytes]], int]:
        """As `Answers.outputs`."""
        return await self._answers.outputs(call_id, start, end, wait_s)

    async def info(self, call_id: str) -> CallInfo:
        """As `Answers.info`."""
        return await self._answers.info(call_id)

    def attached(self, call_id: str) -> Optional[Attached]:
        """An attached call that runs, or ended not long ago."""
        return self._attached.get(call_id) or self._answers.lately(call_id)

    def attached_calls(self) -> list[Attached]:
        """Those that run, and those that ended not long ago."""
        return [*self._attached.values(), *self._answers.all_lately()]

    async def record(self, call_id: str) -> Optional[CallRecord]:
        """A detached call, as it is kept."""
        return await self._queue.call(call_id)

    # --- ending ---

    async def cancel(self, call_id: str, terminate_containers: bool) -> None:
        """End a call: waiting inputs drop, running ones are cancelled; each becomes TERMINATED, durable on return.

        A call that has ended is left as it is. NotFoundError for one that never was.
        """
        state = self._attached.get(call_id)
        record = state.record if state is not None else await self._queue.call(call_id)
        if record is None:
            if self._answers.knows(call_id):
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
            for _, index, name in dropped:
                self._ended(Output(call_id, index, name, TERMINATED, error=reason), function_id, True)
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

    def containers(self, app_id: str = "") -> list[ContainerInfo]:
        """The containers that are not gone, each with the reason for its present state."""
        wall = self._clock.now() - self._clock.monotonic()
        return [
            described(one, wall, self.loop.isolation)
            for one in self.loop.cluster.containers.values()
            if not app_id or one.function.app_id == app_id
        ]

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
        self.results.report(report)

    def take_outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """What became of attempts. Only the attempt that holds the lease counts; others are dropped."""
        self.results.take(container_id, outputs)

    def take_items(self, container_id: str, items: Sequence[GeneratorItem]) -> None:
        """Values of generators."""
        self.loop.post(self.loop.items, container_id, items)

    def node_away(self, node_id: str) -> None:
        """A node's connection is lost: nothing is given to it until its next whole report."""
        self.loop.post(self.loop.away, node_id)
