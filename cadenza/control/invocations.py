"""The ``call.*`` rows of the table of methods, over `Calls`: frames to values, values to frames."""

from __future__ import annotations

import asyncio
from typing import Any, Optional, Sequence

from cadenza.base.errors import Error, InvalidError, ResourceExhaustedError
from cadenza.control.blobs import Blobs
from cadenza.control.calls import Calls
from cadenza.control.lane import LaneServer
from cadenza.control.request import ITEM_COST_BYTES, MAX_NUMBER, Reply, Request, ref_of, split
from cadenza.observe.log import Log
from cadenza.protocol.calls import (
    DETACHED_KINDS,
    GENERATOR,
    MAP,
    MAX_INPUTS_OUTSTANDING,
    SPAWN,
    SYNC,
    BlobRef,
    OutputItem,
)
from cadenza.protocol.frame import CHUNK_BYTES
from cadenza.protocol.methods import (
    CallCancel,
    CallGenerate,
    CallGet,
    CallInfo,
    CallMap,
    CallOutput,
    CallOutputs,
    CallRef,
    CallRun,
    CallSpawn,
    Empty,
    Generated,
    MapOpened,
    MapOutputs,
    MapPut,
    Outputs,
    Spawned,
)

MAX_WAIT_S = 55.0
BATCH_OUTPUTS = 500
"""How many outputs one frame carries at most; each takes about 250 bytes of its header."""
MAX_HELD_ITEMS_BYTES = 64 << 20
"""How far a generator may be ahead of its reader, besides values on the lane, which have limits of their own."""

FULL_DELAY_S, FULL_DELAY_MAX_S, FULL_LIMIT_S = 0.02, 1.0, 300.0
"""How a map waits where its function is full (semantics.md section 3.4): first, at most between two tries, in all."""

_log = Log("cadenza.control.invocations")
Value = tuple[int, bytes, Optional[BlobRef]]


class Invocations:
    """Handlers of ``call.*``."""

    def __init__(self, calls: Calls, blobs: Blobs, lanes: LaneServer) -> None:
        self._calls = calls
        calls.results.persist = lanes.persist
        self._blobs = blobs
        self._lanes = lanes
        self._cancels: set[asyncio.Task[None]] = set()

    def parent(self, request: Request[Any]) -> str:
        """The input from which a call is made. A container cannot name one that runs in another: that one would count
        as waiting for this call, and its container would lend what it has."""
        name: str = request.body.parent_input_id
        if name and request.caller.container_id:
            holder = self._calls.loop.cluster.holder(name)
            if holder is not None and holder.container_id != request.caller.container_id:
                return ""
        return name

    # --- one input, its result as the reply ---

    def run(self, request: Request[CallRun]) -> None:
        """The hot path: no task and no future; the answer goes out in the turn of the loop in which it is decided."""
        body = request.body
        data, blob = split(request.payload, (body.value,))[0]
        connection_id = request.caller.connection_id
        holder = ""
        if blob is not None:
            holder = f"{connection_id}:{request.id}"
            self._blobs.hold(blob.blob_id, holder)

        wanted = True

        def on_output(item: OutputItem, value: bytes) -> None:
            if not wanted:
                return
            if item.value.blob is not None:
                self._blobs.deliver(item.value.blob.blob_id, connection_id)
            if holder:
                self._blobs.drop(holder)
            request.answer(CallOutput(call_id, item), (value,) if value else ())

        def on_cancel() -> None:
            nonlocal wanted
            wanted = False
            if holder:
                self._blobs.drop(holder)
            self._cancel(call_id, request)

        try:
            call_id, _ = self._calls.attach(
                body.function_id, SYNC, ((0, data, blob),), caller=connection_id,
                parent_input_id=self.parent(request), total=1, on_output=on_output, method=body.method,
            )  # fmt: skip
        except BaseException:
            if holder:
                self._blobs.drop(holder, fresh=True)
            raise
        request.on_cancel = on_cancel

    def _cancel(self, call_id: str, request: Request[Any]) -> None:
        """The client wants it no more. A client that vanished is `Calls.abandon`'s: it may come back."""
        if not call_id or request.lost:
            return

        async def cancel() -> None:
            try:
                await self._calls.cancel(call_id, False)
            except Error as error:
                _log.debug("nothing to cancel", call=call_id, error=str(error))

        task = asyncio.get_running_loop().create_task(cancel())
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    # --- map ---

    async def map(self, request: Request[CallMap]) -> None:
        run = _Map(self, request)
        try:
            await run.run()
        except BaseException:
            self._cancel(run.call_id, request)
            raise
        finally:
            run.close()

    # --- a generator ---

    async def generate(self, request: Request[CallGenerate]) -> None:
        body = request.body
        data, blob = split(request.payload, (body.value,))[0]
        wake = asyncio.Event()
        items: list[tuple[bytes, Optional[BlobRef]]] = []
        last: list[tuple[OutputItem, bytes]] = []
        connection_id = request.caller.connection_id
        held, over = 0, False

        def on_item(number: int, value: bytes, ref: Optional[BlobRef]) -> None:
            nonlocal held, over
            if request.lost or over:
                return
            held += ITEM_COST_BYTES + len(value)
            over = held > MAX_HELD_ITEMS_BYTES
            if ref is not None:
                self._blobs.deliver(ref.blob_id, connection_id)
            items.append((value, ref))
            wake.set()

        def on_output(item: OutputItem, value: bytes) -> None:
            if not request.lost:
                last.append((item, value))
                wake.set()

        holder = f"{connection_id}:{request.id}"
        if blob is not None:
            self._blobs.hold(blob.blob_id, holder)
        call_id = ""
        try:
            call_id, _ = await self._calls.submit(
                body.function_id,
                GENERATOR,
                ((0, data, blob),),
                caller=connection_id,
                parent_input_id=self.parent(request),
                method=body.method,
                total=1,
                on_output=on_output,
                on_item=on_item,
            )
            await request.send(Generated(call_id))
            while True:
                if not items and not last:
                    wake.clear()
                    await wake.wait()
                if over:
                    raise ResourceExhaustedError(
                        f"the generator is more than {MAX_HELD_ITEMS_BYTES >> 20} MiB ahead of its reader: "
                        "read faster, or give smaller values"
                    )
                if items:
                    values, payloads, size = _take_items(items)
                    held -= size
                    await request.send(Generated(call_id, values), payloads)
                elif last:
                    item, value = last[0]
                    if item.value.blob is not None:
                        self._blobs.deliver(item.value.blob.blob_id, connection_id)
                    await request.send(Generated(call_id, (), item), (value,) if value else ())
                    return
        except BaseException:
            self._cancel(call_id, request)
            raise
        finally:
            self._blobs.drop(holder, fresh=not call_id)

    # --- detached calls ---

    async def spawn(self, request: Request[CallSpawn]) -> Spawned:
        body = request.body
        if body.kind not in DETACHED_KINDS:
            raise InvalidError(f"call.spawn is for the kinds {', '.join(DETACHED_KINDS)}, not {body.kind[:40]!r}")
        if not body.inputs:
            raise InvalidError("call.spawn needs at least one input")
        parts = split(request.payload, [one.value for one in body.inputs])
        values: list[Value] = [(one.index, data, blob) for one, (data, blob) in zip(body.inputs, parts)]
        _check_indices(values)
        for _, _, blob in values:
            if blob is not None:
                await self._lanes.persist(blob.blob_id)
        if body.call_id:
            return Spawned(body.call_id, tuple(await self._calls.add(body.call_id, values)))
        call_id, input_ids = await self._calls.submit(
            body.function_id,
            body.kind,
            values,
            caller=request.caller.connection_id,
            parent_input_id=self.parent(request),
            method=body.method,
            total=len(values) if body.kind == SPAWN else None,
            idempotency_key=body.idempotency_key,
        )
        return Spawned(call_id, tuple(input_ids))

    async def get(self, request: Request[CallGet]) -> Reply:
        body = request.body
        with self._calls.waiting_in(request.caller.container_id if body.wait_s > 0 else ""):
            item, data = await self._calls.get(body.call_id, body.index, _wait(body.wait_s))
        if item.value.blob is not None:
            self._blobs.deliver(item.value.blob.blob_id, request.caller.connection_id)
        return Reply(CallOutput(body.call_id, item), (data,) if data else ())

    async def outputs(self, request: Request[CallOutputs]) -> Reply:
        body = request.body
        if not 0 <= body.start <= MAX_NUMBER or (body.end is not None and body.end < body.start):
            raise InvalidError(f"outputs {body.start} to {body.end}: not a range")
        end = min(body.end, body.start + BATCH_OUTPUTS) if body.end is not None else body.start + BATCH_OUTPUTS
        with self._calls.waiting_in(request.caller.container_id if body.wait_s > 0 else ""):
            found, total = await self._calls.outputs(body.call_id, body.start, end, _wait(body.wait_s))
        size, count = 0, 0
        for item, data in found:
            if count and size + len(data) > CHUNK_BYTES * 16:
                break
            size += len(data)
            count += 1
            if item.value.blob is not None:
                self._blobs.deliver(item.value.blob.blob_id, request.caller.connection_id)
        return Reply(
            Outputs(tuple(item for item, _ in found[:count]), total), [data for _, data in found[:count] if data]
        )

    async def info(self, request: Request[CallRef]) -> CallInfo:
        return await self._calls.info(request.body.call_id)

    async def cancel(self, request: Request[CallCancel]) -> Empty:
        await self._calls.cancel(request.body.call_id, request.body.terminate_containers)
        return Empty()


class _Map:
    """One map under way: a reader that takes inputs, and the request's task that sends outputs."""

    def __init__(self, home: Invocations, request: Request[CallMap]) -> None:
        self._home = home
        self._request = request
        self._connection_id = request.caller.connection_id
        self._waiting: set[int] = set()
        """Indices of what has no output yet."""
        self._outbox: list[tuple[OutputItem, bytes]] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._put = 0
        self._sent = 0
        self._total: Optional[int] = None
        self._holders: dict[int, str] = {}
        self.call_id = ""

    async def run(self) -> None:
        body = self._request.body
        self.call_id, _ = await self._home._calls.submit(
            body.function_id,
            MAP,
            (),
            caller=self._connection_id,
            parent_input_id=self._home.parent(self._request),
            method=body.method,
            total=None,
            on_output=self._on_output,
        )
        await self._request.send(MapOutputs((), MapOpened(self.call_id, MAX_INPUTS_OUTSTANDING)))
        reader = asyncio.get_running_loop().create_task(self._read())
        reader.add_done_callback(lambda task: self._wake.set())
        try:
            while self._total is None or self._sent < self._total:
                if self._outbox:
                    await self._send()
                    continue
                if reader.done() and (reader.cancelled() or reader.exception() is not None):
                    reader.result()
                self._wake.clear()
                await self._wake.wait()
        finally:
            reader.cancel()

    async def _read(self) -> None:
        while True:
            got = await self._request.receive()
            if got is None:
                if self._total is None:
                    raise InvalidError("the map's inputs ended without a total")
                return
            put: MapPut = got[0]
            parts = split(got[1], [one.value for one in put.inputs])
            values: list[Value] = [
                (one.index, data, blob)
                for one, (data, blob) in zip(put.inputs, parts)
                if one.index not in self._waiting
            ]
            _check_indices(values)
            if values:
                if self._total is not None:
                    raise InvalidError("an input after the map's total")
                while self._outstanding and self._outstanding + len(values) > MAX_INPUTS_OUTSTANDING:
                    self._room.clear()
                    await self._room.wait()
                await self._add(values)
            if put.total is not None:
                if put.total != self._put or self._total not in (None, put.total):
                    raise InvalidError(f"a total of {put.total} for a map with {self._put} inputs")
                self._total = put.total
                self._home._calls.close(self.call_id, put.total)
                self._wake.set()

    async def _add(self, values: Sequence[Value]) -> None:
        home = self._home
        for index, _, blob in values:
            if blob is not None:
                holder = f"{self.call_id}:{index}"
                home._blobs.hold(blob.blob_id, holder)
                self._holders[index] = holder
            self._waiting.add(index)
        self._put += len(values)
        await self._when_there_is_room(values)

    async def _when_there_is_room(self, values: Sequence[Value]) -> None:
        """Add inputs; while the function has too many from all its callers, this map waits with its next ones."""
        delay_s, waited_s = FULL_DELAY_S, 0.0
        while True:
            try:
                await self._home._calls.add(self.call_id, values)
                return
            except ResourceExhaustedError:
                if waited_s >= FULL_LIMIT_S:
                    raise
            await asyncio.sleep(delay_s)
            waited_s += delay_s
            delay_s = min(2 * delay_s, FULL_DELAY_MAX_S)

    @property
    def _outstanding(self) -> int:
        """Inputs without an output, and outputs that the client has not taken: both are ours to keep."""
        return len(self._waiting) + len(self._outbox)

    def _on_output(self, item: OutputItem, data: bytes) -> None:
        self._waiting.discard(item.index)
        if item.value.blob is not None:
            self._home._blobs.deliver(item.value.blob.blob_id, self._connection_id)
        holder = self._holders.pop(item.index, "")
        if holder:
            self._home._blobs.drop(holder)
        self._outbox.append((item, data))
        self._wake.set()

    async def _send(self) -> None:
        items: list[OutputItem] = []
        payloads: list[bytes] = []
        size = 0
        for item, data in self._outbox:
            if items and (len(items) >= BATCH_OUTPUTS or size + len(data) > CHUNK_BYTES):
                break
            size += len(data)
            items.append(item)
            if data:
                payloads.append(data)
        del self._outbox[: len(items)]
        await self._request.send(MapOutputs(tuple(items)), payloads)
        self._sent += len(items)
        self._room.set()

    def close(self) -> None:
        """Let go of what it held."""
        for holder in self._holders.values():
            self._home._blobs.drop(holder)


def _take_items(items: list[tuple[bytes, Optional[BlobRef]]]) -> tuple[tuple[Any, ...], list[bytes], int]:
    """As many of ``items`` as one frame should carry, removed from the front, and what they were counted for."""
    size, count = 0, 0
    for data, _ in items[:BATCH_OUTPUTS]:
        if count and size + len(data) > CHUNK_BYTES:
            break
        size += len(data)
        count += 1
    taken = items[:count]
    del items[:count]
    cost = sum(ITEM_COST_BYTES + len(data) for data, _ in taken)
    return tuple(ref_of(data, blob) for data, blob in taken), [data for data, blob in taken if blob is None], cost


def _check_indices(values: Sequence[Value]) -> None:
    seen: set[int] = set()
    for index, _, _ in values:
        if not 0 <= index <= MAX_NUMBER or index in seen:
            raise InvalidError(f"input {index}: indices count from 0 to {MAX_NUMBER} and each is there once")
        seen.add(index)


def _wait(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_WAIT_S)


def handlers(invocations: Invocations) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "call.run": invocations.run,
        "call.map": invocations.map,
        "call.generate": invocations.generate,
        "call.spawn": invocations.spawn,
        "call.get": invocations.get,
        "call.outputs": invocations.outputs,
        "call.info": invocations.info,
        "call.cancel": invocations.cancel,
    }
