"""How inputs come in: entries for them, where those wait, and their first write."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error
from cadenza.base.ids import IdSource
from cadenza.control.attached import Value, input_id
from cadenza.control.inputs import LARGE_INPUT_BYTES
from cadenza.control.limits import Limits
from cadenza.control.loop import Loop
from cadenza.control.round import Finish
from cadenza.protocol.calls import INTERNAL_FAILURE, TERMINATED
from cadenza.storage.entry import CallRecord, Entry, Output, Unfinished
from cadenza.storage.queue import Queue


class Intake:
    """The way of new inputs to the loop: attached ones run at once, detached ones when they are durable.

    ``finish`` is `Sink.finish`; ``ended(output, function id, dropped)`` takes the output of what could not be stored.
    """

    def __init__(
        self, loop: Loop, queue: Queue, clock: Clock, ids: IdSource, limits: Limits, finish: Finish,
        ended: Callable[[Output, str, bool], None],
    ) -> None:  # fmt: skip
        self.started = False
        """Before this everything waits in the table."""
        self.stopped = False
        self._loop = loop
        self._queue = queue
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._finish = finish
        self._ended = ended

    def take_over(
        self, left: Unfinished, alive: set[str], containers: Sequence[tuple[str, str, str, str]]
    ) -> list[str]:
        """Leases of containers that may still be there stay; the others are given back.

        Gives the functions that are there no more and have inputs in the table: those are the caller's to drop.
        """
        running: dict[str, list[Entry]] = {}
        waiting: dict[str, list[Entry]] = {}
        orphaned: list[str] = []
        for entry in left.held:
            self._limits.of(entry.function_id).detached += 1
            if entry.container_id in alive:
                running.setdefault(entry.container_id, []).append(entry)
            else:
                entry.container_id = ""
                waiting.setdefault(entry.function_id, []).append(entry)
        for container_id, node_id, function_id, kept in containers:
            self._loop.post(self._loop.adopt, container_id, node_id, function_id, kept, running.get(container_id, []))
        for function_id in dict.fromkeys((*waiting, *left.waiting)):
            count = left.waiting.get(function_id, 0)
            self._limits.of(function_id).detached += count
            self._loop.post(self._loop.arrived, function_id, waiting.get(function_id, []))
            self._loop.post(self._loop.stored, function_id, count)
            if count and function_id not in self._loop.cluster.functions:
                orphaned.append(function_id)
        return orphaned

    def entries(self, record: CallRecord, values: Sequence[Value]) -> list[Entry]:
        """Entries in order; the first of them, as many as memory has room for, leased with their put."""
        room, room_large = self._loop.room(record.function_id, record.attached) if self.started else (0, 0)
        fence = self._loop.fence_base + 1
        queue, now = self._queue, self._clock.now()
        found: list[Entry] = []
        for index, data, blob in values:
            if len(data) > LARGE_INPUT_BYTES and room > room_large:
                room = max(room_large, len(found))
            fresh = len(found) < room
            found.append(
                Entry(
                    queue.next_seq(), input_id(record.call_id, index) or self._ids.new("input"), record.call_id, index,
                    record.function_id, record.attached, data, blob, fence if fresh else 0, now, fresh=fresh,
                    method=record.method,
                )
            )  # fmt: skip
        self._loop.reserve(record.function_id, min(room, len(found)))
        return found

    def run_attached(self, function_id: str, entries: list[Entry]) -> None:
        """Let them run now and write them behind; those that memory has no room for wait in the table."""
        self._limits.of(function_id).attached += len(entries)
        fresh = entries
        if entries and not entries[-1].fresh:
            fresh = [one for one in entries if one.fresh]
            waiting = entries[len(fresh) :]
            future = self._queue.put(None, waiting)
            self._loop.post(self._loop.stored, function_id, len(waiting))
            future.add_done_callback(lambda done: self._stored(function_id, waiting, done))
        if fresh:
            self._loop.post(self._loop.arrived, function_id, fresh, len(fresh))
            for one in fresh:
                self._queue.keep(one)

    def _stored(self, function_id: str, waiting: list[Entry], done: asyncio.Future[list[int]]) -> None:
        if done.cancelled() or done.exception() is None or self.stopped:
            return
        # The write failed: nothing is kept of what was to wait in the table. Say so to the caller.
        self._loop.post(self._loop.removed, function_id, len(waiting))
        for one in waiting:
            one.done = True
            text = f"the call could not be stored: {done.exception()}"
            self._ended(Output(one.call_id, one.index, one.input_id, INTERNAL_FAILURE, error=text), function_id, True)

    async def store_detached(
        self, function_id: str, record: Optional[CallRecord], entries: list[Entry], key: str = ""
    ) -> str:
        """Write, then let run what is new. With a ``key``, which needs a ``record``: the id of the call that has it."""
        future: asyncio.Future[Any]
        if key and record is not None:
            future = self._queue.put_once(record, entries, key)
        else:
            future = self._queue.put(record, entries)
        usage = self._limits.of(function_id)
        usage.detached += len(entries)
        waiting = sum(1 for one in entries if not one.fence)
        if waiting:
            self._loop.post(self._loop.stored, function_id, waiting)
        try:
            found: Any = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The caller went away; what is being written is accepted all the same.
            future.add_done_callback(lambda done: self._run_detached(function_id, entries, done))
            raise
        except Error:
            self._not_stored(function_id, entries)
            raise
        if isinstance(found, tuple):
            self._run_stored(function_id, entries, found[1])
            return str(found[0])
        self._run_stored(function_id, entries, found)
        return ""

    def _not_stored(self, function_id: str, entries: list[Entry]) -> None:
        waiting = sum(1 for one in entries if not one.fence)
        self._loop.reserve(function_id, waiting - len(entries))
        self._limits.of(function_id).detached -= len(entries)
        if waiting:
            self._loop.post(self._loop.removed, function_id, waiting)

    def _run_detached(self, function_id: str, entries: list[Entry], done: asyncio.Future[Any]) -> None:
        if done.cancelled() or self.stopped:
            return
        if done.exception() is None:
            found = done.result()
            self._run_stored(function_id, entries, found[1] if isinstance(found, tuple) else found)
        else:
            self._not_stored(function_id, entries)

    def _run_stored(self, function_id: str, entries: list[Entry], known: list[int]) -> None:
        new = set(known) if len(known) != len(entries) else None
        fresh = [one for one in entries if one.fresh and (new is None or one.index in new)]
        if new is not None:
            repeated = [one for one in entries if one.index not in new]
            self._limits.of(function_id).detached -= len(repeated)
            waiting = sum(1 for one in repeated if not one.fence)
            if waiting:
                self._loop.post(self._loop.removed, function_id, waiting)
        reserved = sum(1 for one in entries if one.fresh)
        if not reserved or self.stopped:
            return
        if function_id in self._loop.cluster.functions:
            self._loop.post(self._loop.arrived, function_id, fresh, reserved)
        else:  # its app ended meanwhile
            for one in fresh:
                self._finish(one, TERMINATED, b"", None, "the app has ended", 0, None)
