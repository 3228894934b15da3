"""Inputs waiting for a container: put, lease, acknowledge, give back; writes coalesced.

Operations are collected while a write is under way and go to the database together when it is done: one write in
flight, the rest in order behind it. The future of an operation resolves after its commit. An operation that only
follows what was decided (a lease, a give-back, an acknowledgement) is tried again when the disk was full; a put fails
to whom it concerns. When a write fails by what is in it, it is halved and done again until the operation that cannot
be written stands alone; that one is dropped, with a word to who waits for it and to the log.

`MemoryQueue` is the twin for tests and simulations; tests/contract/test_contract_queue.py holds for both.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Callable, Optional, Sequence, Union

from cadenza.base.errors import Error, InternalError, ResourceExhaustedError
from cadenza.observe.log import Log
from cadenza.storage.entry import CallRecord, Entry, Output, Taken, Unfinished
from cadenza.storage.rows import Row, call_row, input_row, output_row, unstorable

CALL_RECORD_KEPT_S = 37 * 24 * 3600.0
"""How long a call is known after it was made: its results live 7 days, and a month after that we still say so."""
EXPIRE_ROWS = 5_000
"""How many outputs one pass of `expire` removes."""
RETRY_WRITE_S = 0.5
MAX_OPS_PER_WRITE = 4_000
WRITE_BEHIND_S = 0.1
"""The cycle in which attached inputs are written: what has waited for one whole cycle is on disk within the next."""
ASKED = ("put", "put_once", "take", "expire")
"""Operations whose failure by a full disk is told to who asked; every other one is tried again."""

_log = Log("cadenza.storage.queue")
Op = tuple[str, Any]
_Then = Callable[[Any], None]
_Pending = tuple[str, Any, Union["asyncio.Future[Any]", _Then, None]]


class Queue:
    """The interface, and the coalescing that its two forms share. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []
        self._writing = False
        self._most = MAX_OPS_PER_WRITE
        """How many operations the next write takes: fewer while one is sought that cannot be written."""
        self._scheduled = False
        self._idle: Optional[asyncio.Future[None]] = None
        self._next_seq = 1
        self._closed = False
        self._young: dict[int, Entry] = {}
        """Attached inputs that came in this write cycle."""
        self._old: dict[int, Entry] = {}
        """Those of the last one: written at the end of this one."""
        self._gone: list[int] = []
        """Attached inputs that ended after they were written."""
        self._cycle: Optional[asyncio.TimerHandle] = None

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
        rows = [input_row(one) for one in entries]
        return self._push("put", (None if record is None else call_row(record), rows))

    def put_once(self, record: CallRecord, entries: Sequence[Entry], key: str) -> asyncio.Future[tuple[str, list[int]]]:
        """`put` of a new detached call, unless its function has one with this key: then nothing is kept. Resolves to
        the id of the call with the key, and the indices that were new."""
        return self._push("put_once", (call_row(record), [input_row(one) for one in entries], key))

    def keep(self, entry: Entry) -> None:
        """Write an attached input that is in the hands of the control plane, unless `forget` comes within a cycle.

        Nobody waits for it and nobody is told: on a full disk it is tried again.
        """
        self._young[entry.seq] = entry
        if self._cycle is None:
            self._turn_soon()

    def forget(self, entry: Entry) -> None:
        """An attached input has ended: remove what was written of it, if anything was. The lease that the control plane
        holds in memory is the authority on who may end it."""
        seq = entry.seq
        if self._young.pop(seq, None) is None and self._old.pop(seq, None) is None:
            self._gone.append(seq)
            if self._cycle is None:
                self._turn_soon()

    def take(self, function_id: str, now: float, count: int) -> asyncio.Future[Taken]:
        """Lease up to ``count`` inputs of a function that wait in the table and are due, in order."""
        return self._push("take", (function_id, now, count))

    def hold(self, entry: Entry) -> None:
        """Note a detached input's lease: its present fence and container."""
        self._tell("hold", (entry.fence, entry.container_id, entry.retries, entry.losses, entry.seq))

    def give_back(self, entry: Entry) -> None:
        """The entry waits in the table again, until its ``ready_at``; the caller forgets it."""
        if self._young.pop(entry.seq, None) is not None or self._old.pop(entry.seq, None) is not None:
            self._tell("keep", [input_row(entry)])
        self._tell("give_back", (entry.fence, entry.ready_at, entry.retries, entry.losses, entry.seq))

    def ack(self, entry: Entry, output: Output, then: Callable[[bool], None]) -> None:
        """Commit a detached input's output; ``then(True)`` after that. ``then(False)``, and nothing is kept, when the
        entry's fence is not the one that the table has. (A callback: this is the hot path, and a future costs two turns
        of the loop.)"""
        self._pending.append(("ack", ((entry.seq, entry.fence), output_row(output)), then))
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
        self._turn()
        self._turn()
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
        if self._cycle is not None:
            self._cycle.cancel()

    # --- behind ---

    def _turn_soon(self) -> None:
        if not self._closed:
            self._cycle = asyncio.get_running_loop().call_later(WRITE_BEHIND_S, self._turn)

    def _turn(self) -> None:
        """The end of a write cycle: what is a cycle old is written, what ended since is removed."""
        if self._cycle is not None:
            self._cycle.cancel()
            self._cycle = None
        old, self._old, self._young = self._old, self._young, {}
        if old:
            self._tell("keep", [input_row(one) for one in old.values()])
        if self._gone:
            gone, self._gone = self._gone, []
            self._tell("forget_inputs", tuple(gone))
        if self._old:
            self._turn_soon()

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
        batch, self._pending = self._pending[: self._most], self._pending[self._most :]
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
            self._most = min(MAX_OPS_PER_WRITE, 2 * self._most)
        elif _passes(error):
            again = []
            for one in batch:
                if one[0] not in ASKED:
                    again.append(one)
                elif isinstance(one[2], asyncio.Future) and not one[2].done():
                    one[2].set_exception(error)
            if again:
                _log.warning("writes wait: they will be tried again", count=len(again), error=str(error))
                self._pending[:0] = again
                self._scheduled = True
                asyncio.get_running_loop().call_later(RETRY_WRITE_S, self._write)
                return
        elif len(batch) > 1:
            self._most = len(batch) // 2
            self._pending[:0] = batch
        else:
            self._pending[:0] = self._without(batch[0], error)
        if self._pending:
            self._write()
        elif self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _without(self, one: _Pending, error: BaseException) -> list[_Pending]:
        """An operation can never be written: what is to be written in its place."""
        name, payload, then = one
        if name == "keep" and len(payload) > 1:
            return [("keep", [row], None) for row in payload]
        _log.error("an operation cannot be written and is dropped", exc=error, operation=name, of=_subject(one))
        if isinstance(then, asyncio.Future):
            if not then.done():
                told = error if isinstance(error, Error) else InternalError(f"it cannot be stored: {error!r}")
                then.set_exception(told)
        elif name == "ack" and payload[1] != unstorable(payload[1]):
            return [("ack", (payload[0], unstorable(payload[1])), then)]
        elif then is not None:
            then(False)
        return []

    def _commit(self, ops: list[Op]) -> asyncio.Future[list[Any]]:
        """Do them all in one transaction; their results in order."""
        raise NotImplementedError


def _passes(error: BaseException) -> bool:
    """Whether a failure is one of the disk's or of the database's moment, not of what was to be written."""
    return isinstance(error, ResourceExhaustedError) or isinstance(error.__cause__, sqlite3.OperationalError)


def _subject(one: _Pending) -> str:
    """Which input an operation is about, for the log; never its value."""
    name, payload, _ = one
    if name == "ack":
        return str(payload[1][2])
    if name in ("keep", "put", "put_once"):
        rows: Sequence[Row] = payload if name == "keep" else payload[1]
        return ascii(rows[0][1])[1:-1] if rows else ""
    return ""
