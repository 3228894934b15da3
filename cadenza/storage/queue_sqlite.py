"""The queue in the database: operations of one write become few statements of many rows, in one transaction."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional, Sequence

from cadenza.protocol.calls import TERMINATED
from cadenza.storage.db import Database, Transaction
from cadenza.storage.entry import CallRecord, Output, Taken, Unfinished
from cadenza.storage.queue import CALL_RECORD_KEPT_S, EXPIRE_ROWS, Op, Queue
from cadenza.storage.rows import CALL_COLUMNS, INPUT_COLUMNS, OUTPUT_COLUMNS, Row, entry, output, output_row, record


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


_PUT_CALLS = _many(f"INSERT INTO calls ({CALL_COLUMNS})", 12)
_PUT_INPUTS = _many(f"INSERT INTO inputs ({INPUT_COLUMNS})", 16)
_PUT_OUTPUTS = _many(f"INSERT INTO outputs ({OUTPUT_COLUMNS})", 12, " ON CONFLICT DO NOTHING")
_LEASE = _in("UPDATE inputs SET state = 1 WHERE seq")
_FINISH = _in("DELETE FROM inputs WHERE fence = ? AND seq")
_DROP_INPUTS = _in("DELETE FROM inputs WHERE seq")
_FORGET_OUTPUTS = _in("DELETE FROM outputs WHERE call_id")
_FORGET_KEYS = _in("DELETE FROM call_keys WHERE call_id")
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
        return record(rows[0]) if rows else None

    async def outputs(self, call_id: str, start: int, end: int, limit: int) -> list[Output]:
        return [output(row) for row in await self._db.fetch("get_outputs", (call_id, start, end, limit))]

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
        held=[entry(row) for row in transaction.fetch("held_inputs")],
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
        if name in ("put", "ack", "keep", "forget_inputs", "forget_calls"):
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


def _put_once(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    call, rows, key = payloads[0]
    call_id, function_id, created_at = call[0], call[1], call[7]
    known = transaction.fetch("get_key", (function_id, key))
    if known:
        return [(known[0][0], [])]
    transaction.execute("put_key", (function_id, key, call_id, created_at))
    _insert(transaction, _PUT_CALLS, [call])
    _insert(transaction, _PUT_INPUTS, rows)
    return [(call_id, [row[3] for row in rows])]


def _ack(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    if careful:
        results = [transaction.execute("finish_input", key) == 1 for key, _ in payloads]
        _insert(transaction, _PUT_OUTPUTS, [row for (_, row), good in zip(payloads, results) if good])
        return results
    by_fence: dict[int, list[int]] = {}
    for (seq, fence), _ in payloads:
        by_fence.setdefault(fence, []).append(seq)
    for fence, seqs in by_fence.items():
        if _each(transaction, _FINISH, seqs, (fence,)) != len(seqs):
            raise _Stale
    _insert(transaction, _PUT_OUTPUTS, [row for _, row in payloads])
    return [True] * len(payloads)


def _keep(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    _insert(transaction, _PUT_INPUTS, [row for rows in payloads for row in rows])
    return [None] * len(payloads)


def _forget_inputs(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    _each(transaction, _DROP_INPUTS, [seq for seqs in payloads for seq in seqs])
    return [None] * len(payloads)


def _take(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    function_id, now, count = payloads[0]
    rows = transaction.fetch("due_inputs", (function_id, now, count + 1))
    more = len(rows) > count
    rows = rows[:count]
    _each(transaction, _LEASE, [row[0] for row in rows])
    next_ready = None if more else transaction.fetch("next_ready", (function_id, now))[0][0]
    return [Taken([entry(row) for row in rows], more, next_ready)]


def _drop(transaction: Transaction, rows: Sequence[Row], error: str, expires_at: float) -> None:
    _each(transaction, _DROP_INPUTS, [row[0] for row in rows])
    _insert(transaction, _PUT_OUTPUTS, [_terminated(row, error, expires_at) for row in rows])


def _terminated(row: Row, error: str, expires_at: float) -> Row:
    return output_row(Output(row[2], row[3], row[1], TERMINATED, error=error, attempts=0, expires_at=expires_at))


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
    _each(transaction, _FORGET_KEYS, call_ids)
    _each(transaction, _FORGET_CALLS, call_ids)
    return [None] * len(payloads)


def _expire(transaction: Transaction, payloads: list[Any], careful: bool) -> list[Any]:
    (now,) = payloads[0]
    gone = transaction.execute("expire_outputs", (now, EXPIRE_ROWS))
    if transaction.execute("expire_calls", (now - CALL_RECORD_KEPT_S,)):
        transaction.execute("expire_keys")
    return [gone]


def _single(query: str) -> Callable[[Transaction, list[Any], bool], list[Any]]:
    return lambda transaction, payloads, careful: [transaction.execute(query, payloads[0])]


_RUN: dict[str, Callable[[Transaction, list[Any], bool], list[Any]]] = {
    "put": _put,
    "put_once": _put_once,
    "take": _take,
    "hold": _single("hold_input"),
    "give_back": _single("give_back_input"),
    "ack": _ack,
    "drop_call": _drop_call,
    "drop_function": _drop_function,
    "close_call": _single("close_call"),
    "forget_calls": _forget_calls,
    "keep": _keep,
    "forget_inputs": _forget_inputs,
    "put_container": _single("put_container"),
    "drop_container": _single("drop_container"),
    "expire": _expire,
    "nothing": lambda transaction, payloads, careful: [None],
}
