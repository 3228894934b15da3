"""The queue's twin without a disk: for tests and simulations. A `MemoryStore` outlives the `MemoryQueue` s on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from cadenza.base.errors import ResourceExhaustedError
from cadenza.protocol.calls import TERMINATED
from cadenza.storage.entry import CallRecord, Output, Taken, Unfinished
from cadenza.storage.queue import CALL_RECORD_KEPT_S, EXPIRE_ROWS, Op, Queue
from cadenza.storage.rows import Row, entry, output, output_row, record

# Places in an input's row; see `cadenza.storage.rows.INPUT_COLUMNS`.
_CALL, _POSITION, _FUNCTION, _ATTACHED, _STATE, _FENCE, _READY, _RETRIES, _LOSSES, _CONTAINER = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
)


@dataclass
class MemoryStore:
    """What is committed."""

    epoch: int = 0
    calls: dict[str, list[Any]] = field(default_factory=dict)
    inputs: dict[int, list[Any]] = field(default_factory=dict)
    outputs: dict[tuple[str, int], Row] = field(default_factory=dict)
    containers: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    full: bool = False
    """While set, every write is refused, as on a full disk."""


class MemoryQueue(Queue):
    """The queue on a `MemoryStore`. ``latency_s()`` is how long the next commit takes; 0 means the next turn."""

    def __init__(self, store: MemoryStore, latency_s: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.store = store
        self._latency_s = latency_s

    async def load(self) -> Unfinished:
        store = self.store
        attached = {name for name, row in store.calls.items() if row[4]}
        store.calls = {name: row for name, row in store.calls.items() if name not in attached}
        store.outputs = {key: row for key, row in store.outputs.items() if key[0] not in attached}
        store.inputs = {seq: row for seq, row in store.inputs.items() if not row[_ATTACHED]}
        waiting: dict[str, int] = {}
        for row in store.inputs.values():
            if not row[_STATE]:
                waiting[row[_FUNCTION]] = waiting.get(row[_FUNCTION], 0) + 1
        held = [entry(_due(row)) for seq, row in sorted(store.inputs.items()) if row[_STATE]]
        epoch, store.epoch = store.epoch, store.epoch + 1
        self._next_seq = max(store.inputs, default=0) + 1
        return Unfinished(epoch, held, waiting, self._next_seq, list(store.containers.values()))

    async def call(self, call_id: str) -> Optional[CallRecord]:
        row = self.store.calls.get(call_id)
        return None if row is None else record(tuple(row))

    async def outputs(self, call_id: str, start: int, end: int, limit: int) -> list[Output]:
        rows = [row for key, row in sorted(self.store.outputs.items()) if key[0] == call_id and start <= key[1] < end]
        return [output(row) for row in rows[:limit]]

    async def unfinished(self, call_id: str, index: Optional[int] = None) -> int:
        return sum(
            1
            for row in self.store.inputs.values()
            if row[_CALL] == call_id and (index is None or row[_POSITION] == index)
        )

    async def statuses(self, call_id: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self.store.outputs.values():
            if row[0] == call_id:
                found[row[3]] = found.get(row[3], 0) + 1
        return found

    def _commit(self, ops: list[Op]) -> asyncio.Future[list[Any]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def write() -> None:
            if self._closed or future.done():
                return
            if self.store.full:
                future.set_exception(ResourceExhaustedError("the disk is full"))
            else:
                future.set_result([getattr(self, "_do_" + name)(payload) for name, payload in ops])

        latency = self._latency_s()
        if latency:
            loop.call_later(latency, write)
        else:
            loop.call_soon(write)
        return future

    # --- one method for each operation ---

    def _do_put(self, payload: Any) -> list[int]:
        call, rows = payload
        store = self.store
        if call is not None:
            store.calls[call[0]] = list(call)
        known = set()
        if call is None and rows and not rows[0][_ATTACHED]:
            known = {row[_POSITION] for row in store.inputs.values() if row[_CALL] == rows[0][_CALL]}
            known |= {key[1] for key in store.outputs if key[0] == rows[0][_CALL]}
        fresh = [row for row in rows if row[_POSITION] not in known]
        for row in fresh:
            store.inputs[row[0]] = list(row)
        if call is None and fresh and not fresh[0][_ATTACHED] and fresh[0][_CALL] in store.calls:
            store.calls[fresh[0][_CALL]][8] += len(fresh)
        return [row[_POSITION] for row in fresh]

    def _do_put_once(self, payload: Any) -> tuple[str, list[int]]:
        call, rows, key = payload
        known = self.store.keys.get((call[1], key))
        if known in self.store.calls:
            assert known is not None
            return known, []
        self.store.keys[call[1], key] = call[0]
        return call[0], self._do_put((call, rows))

    def _do_take(self, payload: Any) -> Taken:
        function_id, now, count = payload
        mine = [row for row in self.store.inputs.values() if not row[_STATE] and row[_FUNCTION] == function_id]
        due = sorted((row for row in mine if row[_READY] <= now), key=lambda row: (row[_READY], row[0]))
        later = [row[_READY] for row in mine if row[_READY] > now]
        more = len(due) > count
        for row in due[:count]:
            row[_STATE] = 1
        return Taken([entry(_due(row)) for row in due[:count]], more, None if more else min(later, default=None))

    def _do_hold(self, payload: Any) -> int:
        fence, container_id, retries, losses, seq = payload
        row = self.store.inputs.get(seq)
        if row is None:
            return 0
        row[_STATE], row[_FENCE], row[_CONTAINER], row[_RETRIES], row[_LOSSES] = 1, fence, container_id, retries, losses
        return 1

    def _do_give_back(self, payload: Any) -> int:
        fence, ready_at, retries, losses, seq = payload
        row = self.store.inputs.get(seq)
        if row is None:
            return 0
        row[_STATE], row[_FENCE], row[_READY], row[_RETRIES], row[_LOSSES] = 0, fence, ready_at, retries, losses
        row[_CONTAINER] = ""
        return 1

    def _do_ack(self, payload: Any) -> bool:
        (seq, fence), kept = payload
        row = self.store.inputs.get(seq)
        if row is None or row[_FENCE] != fence:
            return False
        del self.store.inputs[seq]
        self.store.outputs.setdefault((kept[0], kept[1]), kept)
        return True

    def _do_keep(self, payload: Any) -> None:
        for row in payload:
            self.store.inputs[row[0]] = list(row)

    def _do_forget_inputs(self, payload: Any) -> None:
        for seq in payload:
            self.store.inputs.pop(seq, None)

    def _drop(self, rows: list[list[Any]], error: str, expires_at: float) -> None:
        for row in rows:
            del self.store.inputs[row[0]]
            kept = Output(
                row[_CALL], row[_POSITION], row[1], TERMINATED, error=error, attempts=0, expires_at=expires_at
            )
            self.store.outputs.setdefault((row[_CALL], row[_POSITION]), output_row(kept))

    def _do_drop_call(self, payload: Any) -> list[tuple[str, int, str]]:
        call_id, error, expires_at = payload
        if call_id in self.store.calls:
            self.store.calls[call_id][10] = 1
        rows = [row for row in self.store.inputs.values() if row[_CALL] == call_id and not row[_STATE]]
        self._drop(rows, error, expires_at)
        return [(row[_FUNCTION], row[_POSITION], row[1]) for row in rows]

    def _do_drop_function(self, payload: Any) -> list[tuple[str, int, str]]:
        function_id, error, expires_at, count = payload
        rows = [row for row in self.store.inputs.values() if row[_FUNCTION] == function_id and not row[_STATE]][:count]
        self._drop(rows, error, expires_at)
        return [(row[_CALL], row[_POSITION], row[1]) for row in rows]

    def _do_close_call(self, payload: Any) -> None:
        total, call_id = payload
        if call_id in self.store.calls:
            self.store.calls[call_id][9] = total

    def _do_forget_calls(self, payload: Any) -> None:
        store = self.store
        for call_id in payload:
            store.calls.pop(call_id, None)
        store.outputs = {key: row for key, row in store.outputs.items() if key[0] not in payload}
        store.inputs = {seq: row for seq, row in store.inputs.items() if row[_CALL] not in payload}

    def _do_put_container(self, payload: Any) -> None:
        self.store.containers[payload[0]] = payload

    def _do_drop_container(self, payload: Any) -> None:
        self.store.containers.pop(payload[0], None)

    def _do_expire(self, payload: Any) -> int:
        now = payload[0]
        old = [key for key, row in self.store.outputs.items() if row[11] <= now][:EXPIRE_ROWS]
        for key in old:
            del self.store.outputs[key]
        used = {key[0] for key in self.store.outputs} | {row[_CALL] for row in self.store.inputs.values()}
        for call_id, row in list(self.store.calls.items()):
            if row[7] <= now - CALL_RECORD_KEPT_S and call_id not in used:
                del self.store.calls[call_id]
        self.store.keys = {key: call_id for key, call_id in self.store.keys.items() if call_id in self.store.calls}
        return len(old)

    def _do_nothing(self, payload: Any) -> None:
        return None


def _due(row: list[Any]) -> Row:
    """A row of the table as the query ``due_inputs`` gives it: without its state."""
    return tuple(row[:_STATE] + row[_STATE + 1 :])
