"""Inputs waiting for a container: put, lease, acknowledge, give back; writes coalesced.

Operations are collected while a write is under way and go to the database together when it is done: one write in
flight, the rest in order behind it. The future of an operation resolves after its commit. An operation that only
follows what was decided (a lease, a give-back, an acknowledgement) is tried again when the disk was full; a put fails
to whom it concerns.

`MemoryQueue` is the twin for tests and simulations; tests/contract/test_contract_queue.py holds for both.
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional, Sequence, Union

from cadenza.base.errors import Bug
from cadenza.protocol.calls import TERMINATED, BlobRef
from cadenza.storage.db import Database, Row, Transaction
from cadenza.storage.entry import CallRecord, Entry, Output, Taken, Unfinished

CALL_RECORD_KEPT_S = 37 * 24 * 3600.0
"""How long a call is known after it was made: its results live 7 days, and a month after that we still say so."""
EXPIRE_ROWS = 5_000
"""How many outputs one pass of `expire` removes."""
RETRY_WRITE_S = 0.5
MAX_OPS_PER_WRITE = 4_000

Op = tuple[str, Any]
_Then = Callable[[Any], None]
_Pending = tuple[str, Any, Union["asyncio.Future[Any]", _Then, None]]


class Queue:
    """The interface, and the coalescing that its two forms share. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []
        self._writing = False
        self._scheduled = False
        self._idle: Optional[asyncio.Future[None]] = None
        self._next_seq = 1
        self._closed = False

    # --- reads (each sees what was awaited before) ---

    async def load(self) -> Unfinished:
        """Forget attached calls of an earlier process; give what else is unfinished. Once, before anything else."""
        raise NotImplementedError

    async def call(self, call_id: str) -> Optional[CallRecord]:
        """A call's record, or None."""
        raise NotImplementedError

    async def outputs(self, call_id: str, start: int, end: int, limit: int) -> list[Output]:
        """Kept outputs with ``start <= index < end``, in order, at most ``limit``."""
        raise NotImplementedError

    async def unfinished(self, call_id: str, index: Optional[int] = None) -> int:
        """How many inputs of a call are not finished; with ``index``, whether that one is (0 or 1)."""
        raise NotImplementedError

    async def statuses(self, call_id: str) -> dict[str, int]:
        """How many kept outputs of a call have which status."""
        raise NotImplementedError

    # --- writes ---

    def next_seq(self) -> int:
        """The number for the next entry."""
        seq = self._next_seq
        self._next_seq = seq + 1
        return seq

    def put(self, record: Optional[CallRecord], entries: Sequence[Entry]) -> asyncio.Future[list[int]]:
        """Keep a new call (``record``), or more inputs of an old one. Resolves to the indices that were new.

        Attached inputs need no record: what is left of them after a restart is dropped.

        An entry with a fence is put as leased (put and lease in one write); the others wait in the table.
        """
        rows = [_input_row(one) for one in entries]
        for one in entries:
            one.stored_fence = one.fence
        return self._push("put", (None if record is None else _call_row(record), rows))

    def take(self, function_id: str, now: float, count: int) -> asyncio.Future[Taken]:
        """Lease up to ``count`` inputs of a function that wait in the table and are due, in order."""
        return self._push("take", (function_id, now, count))

    def hold(self, entry: Entry) -> None:
        """Note a lease: the entry's present fence and container."""
        entry.stored_fence = entry.fence
        self._tell("hold", (entry.fence, entry.container_id, entry.retries, entry.losses, entry.seq))

    def give_back(self, entry: Entry) -> None:
        """The entry waits in the table again, until its ``ready_at``; the caller forgets it."""
        self._tell("give_back", (entry.fence, entry.ready_at, entry.retries, entry.losses, entry.seq))

    def ack(self, entry: Entry, output: Output, then: Callable[[bool], None]) -> None:
        """Commit an output; ``then(True)`` after that. ``then(False)``, and nothing is kept, when the entry's fence is
        not the one that the table has. An attached input's output goes to its caller and is not kept: only that it has
        ended is. (A callback: this is the hot path, and a future costs two turns of the loop.)"""
        row = None if entry.attached else _output_row(output)
        self._pending.append(("ack", ((entry.seq, entry.fence), row), then))
        self._wake()

    def drop_waiting(self, call_id: str, error: str, expires_at: float) -> asyncio.Future[list[tuple[str, int, str]]]:
        """Those inputs of a call that wait in the table become TERMINATED: their function, index and input id."""
        return self._push("drop_call", (call_id, error, expires_at))

    def drop_function(
        self, function_id: str, error: str, expires_at: float, count: int
    ) -> asyncio.Future[list[tuple[str, int, str]]]:
        """The same for up to ``count`` inputs of a function: their call, index and input id."""
        return self._push("drop_function", (function_id, error, expires_at, count))

    def close_call(self, call_id: str, total: int) -> None:
        """A call will have ``total`` inputs."""
        self._tell("close_call", (total, call_id))

    def forget_calls(self, call_ids: Sequence[str]) -> None:
        """Remove all that is kept of calls."""
        self._tell("forget_calls", tuple(call_ids))

    def forget_input(self, entry: Entry) -> None:
        """Remove an input without an output."""
        self._tell("forget_input", (entry.seq,))

    def put_container(self, container_id: str, node_id: str, function_id: str, spec: str) -> None:
        """Note that a container is wanted."""
        self._tell("put_container", (container_id, node_id, function_id, spec))

    def drop_container(self, container_id: str) -> None:
        """Note that it is gone."""
        self._tell("drop_container", (container_id,))

    def expire(self, now: float) -> asyncio.Future[int]:
        """Remove outputs whose time is over: how many. Call again while it gives `EXPIRE_ROWS`."""
        return self._push("expire", (now,))

    async def flush(self) -> None:
        """Wait until everything that was asked for is committed."""
        while self._pending or self._writing:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def flush_once(self) -> None:
        """Wait until what was asked for so far is committed, whatever is asked for meanwhile."""
        await self._push("nothing", ())

    def abort(self) -> None:
        """Stop writing, as a crash would: what is not committed is lost."""
        self._closed = True
        self._pending.clear()

    # --- coalescing ---

    def _push(self, name: str, payload: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((name, payload, future))
        self._wake()
        return future

    def _tell(self, name: str, payload: Any) -> None:
        self._pending.append((name, payload, None))
        self._wake()

    def _wake(self) -> None:
        if not self._writing and not self._scheduled and not self._closed:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._scheduled = False
        if self._writing or not self._pending or self._closed:
            return
        self._writing = True
        batch, self._pending = self._pending[:MAX_OPS_PER_WRITE], self._pending[MAX_OPS_PER_WRITE:]
        future = self._commit([(name, payload) for name, payload, _ in batch])
        future.add_done_callback(lambda done: self._written(batch, done))

    def _written(self, batch: list[_Pending], done: asyncio.Future[list[Any]]) -> None:
        self._writing = False
        error = None if done.cancelled() else done.exception()
        if self._closed or done.cancelled():
            return
        if error is None:
            for (_, _, then), result in zip(batch, done.result()):
                if then is None:
                    continue
                if not isinstance(then, asyncio.Future):
                    then(result)
                elif not then.done():
                    then.set_result(result)
        else:
            again = []
            for one in batch:
                if one[0] not in ("put", "take", "expire"):
                    again.append(one)
                elif isinstance(one[2], asyncio.Future) and not one[2].done():
                    one[2].set_exception(error)
            if isinstance(error, Bug):
                raise error
            if again:
                self._pending[:0] = again
                self._scheduled = True
                asyncio.get_running_loop().call_later(RETRY_WRITE_S, self._write)
                return
        if self._pending:
            self._write()
        elif self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _commit(self, ops: list[Op]) -> asyncio.Future[list[Any]]:
        """Do them all in one transaction; their results in order."""
        raise NotImplementedError


# --- rows ---

_INPUT_COLUMNS = (
    "seq, input_id, call_id, position, function_id, attached, state, fence, ready_at, retries, losses, container_id,"
    " blob_id, blob_size, data"
)
_OUTPUT_COLUMNS = (
    "call_id, position, input_id, status, data, blob_id, blob_size, error, items, attempts, container_id, expires_at"
)
_CALL_COLUMNS = (
    "call_id, function_id, app_id, kind, attached, caller, parent_input_id, created_at, inputs, total, cancelled"
)


def _input_row(one: Entry) -> Row:
    blob = one.blob
    return (
        one.seq, one.input_id, one.call_id, one.index, one.function_id, int(one.attached), 1 if one.fence else 0,
        one.fence, one.ready_at, one.retries, one.losses, one.container_id,
        None if blob is None else blob.blob_id, None if blob is None else blob.size, one.data,
    )  # fmt: skip


def _call_row(one: CallRecord) -> Row:
    return (
        one.call_id, one.function_id, one.app_id, one.kind, int(one.attached), one.caller, one.parent_input_id,
        one.created_at, one.inputs, one.total, int(one.cancelled),
    )  # fmt: skip


def _output_row(one: Output) -> Row:
    blob = one.blob
    return (
        one.call_id, one.index, one.input_id, one.status, one.data, None if blob is None else blob.blob_id,
        None if blob is None else blob.size, one.error, one.items, one.attempts, one.container_id, one.expires_at,
    )  # fmt: skip


def _entry(row: Row) -> Entry:
    """From the columns of ``due_inputs``."""
    return Entry(
        seq=row[0], input_id=row[1], call_id=row[2], index=row[3], function_id=row[4], attached=bool(row[5]),
        fence=row[6], stored_fence=row[6], ready_at=row[7], retries=row[8], losses=row[9], container_id=row[10],
        blob=None if row[11] is None else BlobRef(row[11], row[12]), data=row[13],
    )  # fmt: skip


def _record(row: Row) -> CallRecord:
    return CallRecord(
        call_id=row[0], function_id=row[1], app_id=row[2], kind=row[3], attached=bool(row[4]), caller=row[5],
        parent_input_id=row[6], created_at=row[7], inputs=row[8], total=row[9], cancelled=bool(row[10]),
    )  # fmt: skip


def _output(row: Row) -> Output:
    return Output(
        call_id=row[0], index=row[1], input_id=row[2], status=row[3], data=row[4],
        blob=None if row[5] is None else BlobRef(row[5], row[6]), error=row[7], items=row[8], attempts=row[9],
        container_id=row[10], expires_at=row[11],
    )  # fmt: skip


# --- SQL ---


def _sizes(count: int) -> list[int]:
    """``count`` as powers of two up to 64: so few different statements that SQLite keeps them all prepared."""
    found = [64] * (count // 64)
    rest, size = count % 64, 32
    while rest:
        if rest >= size:
            found.append(size)
            rest -= size
        size //= 2
    return found


def _many(insert: str, columns: int, after: str = "") -> dict[int, str]:
    one = "(" + ",".join("?" * columns) + ")"
    return {size: f"{insert} VALUES {','.join([one] * size)}{after}" for size in (1, 2, 4, 8, 16, 32, 64)}


def _in(before: str, after: str = "") -> dict[int, str]:
    return {size: f"{before} IN ({','.join('?' * size)}){after}" for size in (1, 2, 4, 8, 16, 32, 64)}


_PUT_CALLS = _many(f"INSERT INTO calls ({_CALL_COLUMNS})", 11)
_PUT_INPUTS = _many(f"INSERT INTO inputs ({_INPUT_COLUMNS})", 15)
_PUT_OUTPUTS = _many(f"INSERT INTO outputs ({_OUTPUT_COLUMNS})", 12, " ON CONFLICT DO NOTHING")
_LEASE = _in("UPDATE inputs SET state = 1 WHERE seq")
_FINISH = _in("DELETE FROM inputs WHERE fence = ? AND seq")
_DROP_INPUTS = _in("DELETE FROM inputs WHERE seq")
_FORGET_OUTPUTS = _in("DELETE FROM outputs WHERE call_id")
_FORGET_CALLS = _in("DELETE FROM calls WHERE call_id")
_FORGET_INPUTS = _in("DELETE FROM inputs WHERE call_id")


def _insert(transaction: Transaction, statements: dict[int, str], rows: Sequence[Row]) -> None:
    at = 0
    for size in _sizes(len(rows)):
        params: list[Any] = []
        for row in rows[at : at + size]:
            params += row
        transaction.run(statements[size], params)
        at += size


def _each(transaction: Transaction, statements: dict[int, str], keys: Sequence[Any], before: Row = ()) -> int:
    at = changed = 0
    for size in _sizes(len(keys)):
        changed += transaction.change(statements[size], [*before, *keys[at : at + size]])
        at += size
    return changed


class _Stale(Exception):
    """An acknowledgement's fence is not the table's: the batch is done again, row by row."""


class SqliteQueue(Queue):
    """The queue in the database."""

    def __init__(self, db: Database) -> None:
        super().__init__()
        self._db = db

    async def load(self) -> Unfinished:
        found = await self._db.transaction(_load)
        self._next_seq = found.next_seq
        return found

    async def call(self, call_id: str) -> Optional[CallRecord]:
        rows = await self._db.fetch("get_call", (call_id,))
        return _record(rows[0]) if rows else None

    async def outputs(self, call_id: str, start: int, end: int, limit: int) -> list[Output]:
        return [_output(row) for row in await self._db.fetch("get_outputs", (call_id, start, end, limit))]

    async def unfinished(self, call_id: str, index: Optional[int] = None) -> int:
        if index is not None:
            return len(await self._db.fetch("input_exists", (call_id, index)))
        return int((await self._db.fetch("count_unfinished", (call_id,)))[0][0])

    async def statuses(self, call_id: str) -> dict[str, int]:
        return dict(await self._db.fetch("count_statuses", (call_id,)))

    def _commit(self, ops: list[Op]) -> asyncio.Future[list[Any]]:
        careful = False

        def write(transaction: Transaction) -> list[Any]:
            nonlocal careful
            try:
                return _apply(transaction, ops, careful)
            except _Stale:
                careful = True  # the whole batch is undone and given again below
                raise

        first = self._db.submit(write)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[Any]] = loop.create_future()

        def done(future: asyncio.Future[list[Any]]) -> None:
            if result.done() or future.cancelled():
                return
            error = future.exception()
            if isinstance(error, _Stale):
                self._db.submit(write).add_done_callback(done)
            elif error is not None:
                result.set_exception(error)
            else:
                result.set_result(future.result())

        first.add_done_callback(done)
        return result


def _load(transaction: Transaction) -> Unfinished:
    for name in ("drop_attached_outputs", "drop_attached_inputs", "drop_attached_calls"):
        transaction.execute(name)
    epochs = transaction.fetch("get_counter", ("epoch",))
    transaction.execute("bump_counter", ("epoch",))
    return Unfinished(
        epoch=epochs[0][0] if epochs else 0,
        held=[_entry(row) for row in transaction.fetch("held_inputs")],
        waiting=dict(transaction.fetch("count_waiting")),
        next_seq=transaction.fetch("last_seq")[0][0] + 1,
        containers=[(a, b, c, d) for a, b, c, d in transaction.fetch("all_containers")],
    )


def _apply(transaction: Transaction, ops: list[Op], careful: bool) -> list[Any]:
    """Runs of puts and of acknowledgements become statements of many rows; the rest goes one by one."""
    results: list[Any] = []
    at, count = 0, len(ops)
    while at < count:
        name = ops[at][0]
        end = at + 1
        if name in ("put", "ack", "forget_calls"):
            while end < count and ops[end][0] == name:
                end += 1
        payloads = [payload for _, payload in ops[at:end]]
        results += _RUN[name](transaction, payloads, careful)
        at = end
    return results


def _put(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    calls: list[Row] = []
    inputs: list[Row] = []
    results: list[Any] = []
    grown: list[tuple[int, str]] = []
    for call, rows in payloads:
        if call is not None:
            calls.append(call)
            inputs += rows
            results.append([row[3] for row in rows])
            continue
        if not rows or rows[0][5]:  # attached: its owner in memory knows which are new
            inputs += rows
            results.append([row[3] for row in rows])
            continue
        call_id = rows[0][2]
        span = (call_id, min(row[3] for row in rows), max(row[3] for row in rows))
        known = {row[0] for row in transaction.fetch("known_positions", span + span)}
        known.update(row[3] for row in inputs if row[2] == call_id)
        fresh = []
        for row in rows:
            if row[3] not in known:
                known.add(row[3])
                fresh.append(row)
        inputs += fresh
        grown.append((len(fresh), call_id))
        results.append([row[3] for row in fresh])
    _insert(transaction, _PUT_CALLS, calls)
    _insert(transaction, _PUT_INPUTS, inputs)
    for one in grown:
        transaction.execute("grow_call", one)
    return results


def _ack(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    if careful:
        results = [transaction.execute("finish_input", key) == 1 for key, _ in payloads]
        _insert(transaction, _PUT_OUTPUTS, [row for (_, row), good in zip(payloads, results) if good and row])
        return results
    by_fence: dict[int, list[int]] = {}
    for (seq, fence), _ in payloads:
        by_fence.setdefault(fence, []).append(seq)
    for fence, seqs in by_fence.items():
        if _each(transaction, _FINISH, seqs, (fence,)) != len(seqs):
            raise _Stale
    _insert(transaction, _PUT_OUTPUTS, [row for _, row in payloads if row])
    return [True] * len(payloads)


def _take(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    function_id, now, count = payloads[0]
    rows = transaction.fetch("due_inputs", (function_id, now, count + 1))
    more = len(rows) > count
    rows = rows[:count]
    _each(transaction, _LEASE, [row[0] for row in rows])
    next_ready = None if more else transaction.fetch("next_ready", (function_id, now))[0][0]
    return [Taken([_entry(row) for row in rows], more, next_ready)]


def _drop(transaction: Transaction, rows: Sequence[Row], error: str, expires_at: float) -> None:
    _each(transaction, _DROP_INPUTS, [row[0] for row in rows])
    _insert(transaction, _PUT_OUTPUTS, [_terminated(row, error, expires_at) for row in rows])


def _terminated(row: Row, error: str, expires_at: float) -> Row:
    return _output_row(Output(row[2], row[3], row[1], TERMINATED, error=error, attempts=0, expires_at=expires_at))


def _drop_call(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    call_id, error, expires_at = payloads[0]
    transaction.execute("cancel_call", (call_id,))
    rows = transaction.fetch("waiting_of_call", (call_id,))
    _drop(transaction, rows, error, expires_at)
    return [[(row[4], row[3], row[1]) for row in rows]]


def _drop_function(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    function_id, error, expires_at, count = payloads[0]
    rows = transaction.fetch("waiting_of_function", (function_id, count))
    _drop(transaction, rows, error, expires_at)
    return [[(row[2], row[3], row[1]) for row in rows]]


def _forget_calls(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    call_ids = [one for payload in payloads for one in payload]
    _each(transaction, _FORGET_INPUTS, call_ids)
    _each(transaction, _FORGET_OUTPUTS, call_ids)
    _each(transaction, _FORGET_CALLS, call_ids)
    return [None] * len(payloads)


def _expire(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    (now,) = payloads[0]
    gone = transaction.execute("expire_outputs", (now, EXPIRE_ROWS))
    transaction.execute("expire_calls", (now - CALL_RECORD_KEPT_S,))
    return [gone]


def _single(query: str) -> Callable[[Transaction, list[Any], bool], list[Any]]:
    return lambda transaction, payloads, careful: [transaction.execute(query, payloads[0])]


_RUN: dict[str, Callable[[Transaction, list[Any], bool], list[Any]]] = {
    "put": _put,
    "take": _take,
    "hold": _single("hold_input"),
    "give_back": _single("give_back_input"),
    "ack": _ack,
    "drop_call": _drop_call,
    "drop_function": _drop_function,
    "close_call": _single("close_call"),
    "forget_calls": _forget_calls,
    "forget_input": _single("drop_input"),
    "put_container": _single("put_container"),
    "drop_container": _single("drop_container"),
    "expire": _expire,
    "nothing": lambda transaction, payloads, careful: [None],
}
