"""The map family: many inputs to one function. Source: semantics.md section 3.3.

Three parties. The *feeder* takes inputs from the user's iterables and packs them (`feeding`). On the background loop
the *sender* batches them into frames, as many as the server lets be outstanding, and the *reader* sorts outputs and
keeps them ready. The user's own thread fetches what is ready, as one batch, and unpacks it.
"""

from __future__ import annotations

import asyncio
import warnings
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Iterable,
    Optional,
    Sequence,
    cast,
)

from cadenza.base.errors import ResourceExhaustedError, ServerWarning, ServiceError
from cadenza.protocol.statuses import SUCCESS
from cadenza.runner import context
from cadenza.sdk import _dual, output, result
from cadenza.sdk.feeding import Feeder, Inputs, Signal
from cadenza.sdk.feeding import starred as starred
from cadenza.sdk.feeding import zipped as zipped
from cadenza.sdk.throttle import may_pass

if TYPE_CHECKING:
    from cadenza.sdk.call import FunctionCall
    from cadenza.sdk.client import Client
    from cadenza.sdk.connection import Stream
    from cadenza.sdk.function import Function
    from cadenza.sdk.output import MapProgress

DEFAULT_OUTSTANDING_INPUTS = 1000
"""How many inputs of one map are with the server at once, if it does not say."""
FRAME_INPUTS = 200
FRAME_BYTES = 256 << 10
"""A frame of inputs is sent at this size."""
MAX_BACKLOG_OUTPUTS, MAX_BACKLOG_BYTES = 10_000, 256 << 20
"""With more results than this waiting for the consumer, no more are read, or, in front of a missing one, asked for."""
SPAWN_CHUNK_BYTES = 4 << 20
SPAWN_MAP_AT_ONCE = 256
SPAWN_ALL_CHUNK = 512
THROTTLE_FIRST_S, THROTTLE_MOST_S = 0.5, 30.0
THROTTLE_WARN_EVERY = 10

# --- map ---


class _Map:
    """One running map, on the background loop."""

    def __init__(
        self, function: Function[Any, Any, Any], feeder: Feeder, parent: str, ordered: bool, most: int = 0
    ) -> None:
        self._function = function
        self._feeder = feeder
        self._parent = parent
        self._ordered = ordered
        self._max_outstanding = 0
        self._most = most
        """How many inputs the user wishes to be with the server at once; 0: as many as it takes."""
        self._sent = 0
        self._received = 0
        self._ready: list[result.Output] = []
        self._ready_bytes = 0
        self._early: dict[int, result.Output] = {}
        """Outputs that wait for an earlier one."""
        self._early_bytes = 0
        self._next = 0
        self._failed: Optional[result.Output] = None
        """The first failure that came before its turn."""
        self._error: Optional[BaseException] = None
        self._over = False
        self._shown: Optional[MapProgress] = None
        self._may_send = Signal()
        self._may_read = Signal()
        self._may_give = Signal()

    async def batches(self, return_exceptions: bool) -> AsyncIterator[list[result.Output]]:
        """Outputs in batches, in order if so wished. Unless ``return_exceptions``, the first failure is the last
        output that is given, and is given as soon as it is there."""
        client = await self._function._called("map")
        stream, first = await self._function._once_more(client, partial(self._opened, client))
        tasks = [
            asyncio.ensure_future(self._read(stream, client, first)), asyncio.ensure_future(self._send(stream, client)),
        ]  # fmt: skip
        sink = output.current()
        self._shown = None if sink is None else output.MapProgress(sink, self._function._name)
        self._feeder.start(self._may_send.set)
        try:
            while True:
                while not self._ready and not self._over and (return_exceptions or self._failed is None):
                    await self._may_give.wait()
                batch, self._ready, self._ready_bytes = self._ready, [], 0
                self._may_read.set()
                if not return_exceptions:
                    for number, one in enumerate(batch):
                        if one[0]["status"] != SUCCESS:
                            yield batch[: number + 1]
                            return
                    if self._failed is not None:
                        yield [*batch, self._failed]
                        return
                if batch:
                    yield batch
                elif self._over:
                    if self._error is not None:
                        raise self._error
                    return
        finally:
            self._feeder.stop()
            for task in tasks:
                task.cancel()
            stream.cancel()
            if self._shown is not None:
                self._shown.over(self._received, self._total())

    def _total(self) -> Optional[int]:
        """How many inputs there are, once it is known."""
        return self._sent if self._feeder.ended else None

    async def _opened(self, client: Client) -> tuple[Stream, list[tuple[dict[str, Any], bytes]]]:
        """The map's stream and its first frames."""
        stream = await (await client._connected()).stream("call.map", self._function._target(self._parent))
        try:
            return stream, await stream.receive_all()
        except BaseException:
            stream.cancel()
            raise

    async def _read(self, stream: Stream, client: Client, frames: list[tuple[dict[str, Any], bytes]]) -> None:
        """``frames``: the first ones."""
        try:
            while True:
                if not frames:
                    break
                for body, payload in frames:
                    opened = body.get("opened")
                    if opened is not None:
                        allowed = opened.get("max_outstanding") or DEFAULT_OUTSTANDING_INPUTS
                        self._max_outstanding = min(self._most, allowed) if self._most else allowed
                    items = body.get("outputs")
                    if items:
                        async for found in result.outputs(client, items, payload):
                            self._take(found)
                            await self._give()
                        if self._shown is not None:
                            self._shown.at(self._received, self._total())
                await self._give()
                frames = await stream.receive_all()
            if self._received < self._sent or not self._feeder.ended:
                raise ServiceError("the server ended a map before all of its outputs were there")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = error
        self._over = True
        self._may_give.set()

    async def _give(self) -> None:
        """Say that there is more; wait while the consumer has too much of it."""
        self._may_send.set()
        self._may_give.set()
        while self._ready and self._is_full(len(self._ready), self._ready_bytes):
            await self._may_read.wait()

    def _take(self, found: list[result.Output]) -> None:
        self._received += len(found)
        if not self._ordered:
            self._ready.extend(found)
            self._ready_bytes += sum(len(one[1]) for one in found)
            return
        early = self._early
        for one in found:
            index = one[0]["index"]
            if index == self._next:
                self._ready.append(one)
                self._ready_bytes += len(one[1])
                self._next += 1
                while early and self._next in early:
                    one = early.pop(self._next)
                    self._early_bytes -= len(one[1])
                    self._ready.append(one)
                    self._ready_bytes += len(one[1])
                    self._next += 1
            else:
                early[index] = one
                self._early_bytes += len(one[1])
                if self._failed is None and one[0]["status"] != SUCCESS:
                    self._failed = one

    @staticmethod
    def _is_full(outputs: int, size: int) -> bool:
        return outputs >= MAX_BACKLOG_OUTPUTS or size >= MAX_BACKLOG_BYTES

    def _room(self) -> int:
        if self._is_full(len(self._early), self._early_bytes):
            return 0
        return self._max_outstanding - (self._sent - self._received)

    async def _send(self, stream: Stream, client: Client) -> None:
        feeder = self._feeder
        try:
            while feeder.error is None:
                room = self._room()
                taken = feeder.take(min(FRAME_INPUTS, room), FRAME_BYTES) if room > 0 else []
                if taken:
                    inputs, parts = await _written(client, taken, self._sent, durable=False)
                    self._sent += len(taken)
                    await stream.send({"inputs": inputs}, parts)
                elif feeder.ended:
                    break
                else:
                    await self._may_send.wait()
            if feeder.error is not None:
                raise feeder.error
            await stream.send({"inputs": [], "total": self._sent})
            stream.end()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            stream.fail(error)


async def _written(
    client: Client, taken: list[result.Packed], first: int, durable: bool
) -> tuple[list[dict[str, Any]], list[result.Payload]]:
    """Inputs as plain JSON values, numbered from ``first``, and the frame's payload."""
    inputs: list[dict[str, Any]] = []
    parts: list[result.Payload] = []
    for index, packed in enumerate(taken, first):
        value, payload = await result.sent(client, packed, durable)
        inputs.append({"index": index, "value": value})
        parts.extend(payload)
    return inputs, parts


def results(
    function: Function[Any, Any, Any], inputs: Inputs, ordered: bool, return_exceptions: bool, most: int = 0
) -> AsyncIterator[Iterable[Any]]:
    """The values of a map in batches, made in the consumer's thread; ``most`` inputs at once with the server, 0 as
    many as it takes. Called in the user's thread."""
    feeder = Feeder(inputs, function._name or repr(function))
    running = _Map(function, feeder, context.current_input_id() or "", ordered, most)
    make = result.value_or_exception if return_exceptions else result.value

    async def batches() -> AsyncIterator[Iterable[Any]]:
        outputs = cast("AsyncGenerator[list[result.Output], None]", running.batches(return_exceptions))
        try:
            async for batch in outputs:
                yield _dual.later(partial(map, make, batch))
        finally:
            await outputs.aclose()

    return batches()


def for_each(
    function: Function[Any, Any, Any], inputs: Inputs, ignore_exceptions: bool, most: int = 0
) -> Coroutine[Any, Any, None]:
    """Run a map and drop its values unread. Called in the user's thread."""
    feeder = Feeder(inputs, function._name or repr(function))
    running = _Map(function, feeder, context.current_input_id() or "", False, most)

    async def run() -> None:
        outputs = cast("AsyncGenerator[list[result.Output], None]", running.batches(ignore_exceptions))
        try:
            async for batch in outputs:
                if not ignore_exceptions and batch[-1][0]["status"] != SUCCESS:
                    return cast(None, _dual.later(partial(result.raise_failure, batch[-1])))
        finally:
            await outputs.aclose()

    return run()


# --- spawn_map ---


def spawn_each(function: Function[Any, Any, Any], inputs: Inputs) -> Coroutine[Any, Any, None]:
    """One call for each input. Called in the user's thread."""
    feeder = Feeder(inputs, function._name or repr(function))
    parent = context.current_input_id() or ""

    async def spawn(client: Client, packed: result.Packed) -> None:
        values, payload = await _written(client, [packed], 0, durable=True)
        await function._once_more(
            client, lambda: _throttled(client, _body(function, values, "spawn", "", parent), payload)
        )

    async def run() -> None:
        client = await function._called("spawn_map")
        free = asyncio.Semaphore(SPAWN_MAP_AT_ONCE)
        under_way: set[asyncio.Task[None]] = set()
        try:
            async for taken in _chunks(feeder, SPAWN_MAP_AT_ONCE):
                for packed in taken:
                    await free.acquire()
                    task = asyncio.ensure_future(spawn(client, packed))
                    under_way.add(task)
                    task.add_done_callback(lambda _: free.release())
                for task in [one for one in under_way if one.done()]:
                    under_way.discard(task)
                    task.result()
            await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()

    return run()


def spawn_all(function: Function[Any, Any, Any], inputs: Inputs) -> Coroutine[Any, Any, FunctionCall[Any]]:
    """One call with all inputs. Called in the user's thread."""
    feeder = Feeder(inputs, function._name or repr(function))
    parent = context.current_input_id() or ""

    async def run() -> FunctionCall[Any]:
        from cadenza.sdk.call import FunctionCall

        client = await function._called("experimental_spawn_map")
        call_id, count = "", 0
        async for taken in _chunks(feeder, SPAWN_ALL_CHUNK):
            values, payload = await _written(client, taken, count, durable=True)
            put = partial(_spawned, client, function, values, payload, call_id, parent)
            call_id = await (put() if call_id else function._once_more(client, put))
            count += len(taken)
        if not call_id:
            call_id = await _throttled(client, _body(function, [], "spawn_map", "", parent), ())
        return FunctionCall._known(call_id, client)

    return run()


async def _spawned(
    client: Client, function: Function[Any, Any, Any], values: Any, payload: Any, call_id: str, parent: str
) -> str:
    return await _throttled(client, _body(function, values, "spawn_map", call_id, parent), payload)


def _body(
    function: Function[Any, Any, Any], inputs: list[dict[str, Any]], kind: str, call_id: str, parent: str
) -> dict[str, Any]:
    return {"inputs": inputs, "kind": kind, "call_id": call_id, **function._target(parent)}


async def _chunks(feeder: Feeder, most: int) -> AsyncIterator[list[result.Packed]]:
    """All inputs, as many at a time as are there. Raises what the user's iterables raised."""
    signal = Signal()
    feeder.start(signal.set)
    try:
        while feeder.error is None:
            taken = feeder.take(most, SPAWN_CHUNK_BYTES)
            if taken:
                yield taken
            elif feeder.ended:
                break
            else:
                await signal.wait()
        if feeder.error is not None:
            raise feeder.error
    finally:
        feeder.stop()


async def _throttled(client: Client, body: dict[str, Any], payload: Sequence[result.Payload]) -> str:
    """``call.spawn``, again and again while the server's queue is full. The call's id."""
    delay_s = THROTTLE_FIRST_S
    tries = 0
    while True:
        try:
            reply, _ = await client._request_raw("call.spawn", body, payload)
            return str(reply["call_id"])
        except ResourceExhaustedError as error:
            if not may_pass(error):
                raise
            tries += 1
            if tries % THROTTLE_WARN_EVERY == 0:
                warnings.warn(f"spawn_map waits for room in the server's queue: {error}", ServerWarning, stacklevel=2)
        await asyncio.sleep(delay_s)
        delay_s = min(THROTTLE_MOST_S, delay_s * 2)
