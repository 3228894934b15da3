"""One call of a function: `Function.remote`, `remote_gen` and `spawn`. Source: semantics.md sections 2 and 3.

The functions here are called in the user's thread, once it is sure that the verb fits; what they return is for the
background loop.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, AsyncIterator, Coroutine, Iterable, Optional

from cadenza.base.errors import ServiceError
from cadenza.protocol.statuses import SUCCESS
from cadenza.runner import context
from cadenza.sdk import _dual, result
from cadenza.sdk.call import FunctionCall
from cadenza.sdk.throttle import until_room

if TYPE_CHECKING:
    from cadenza.sdk.connection import Stream
    from cadenza.sdk.function import Function

    AnyFunction = Function[Any, Any, Any]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def remote(function: AnyFunction, arguments: Arguments) -> Coroutine[Any, Any, Any]:
    """Run it and wait for the result."""
    return _remote(
        function, result.Packed(arguments, function._name or repr(function)), context.current_input_id() or ""
    )


async def _remote(function: AnyFunction, packed: result.Packed, parent: str) -> Any:
    client = await function._called("remote")

    async def run() -> tuple[dict[str, Any], bytes]:
        value, payload = await result.sent(client, packed)
        body = {"value": value, **function._target(parent)}
        return await client._request_raw("call.run", body, payload)

    reply, data = await function._once_more(client, partial(until_room, run, function, "remote"))
    output = reply["output"]
    data_of_output, _ = await result.received(client, output["value"], data, 0)
    return _dual.later(partial(result.value, (output, data_of_output)))


def remote_gen(function: AnyFunction, arguments: Arguments) -> AsyncIterator[Iterable[Any]]:
    """Run a generator; its values in batches."""
    return _remote_gen(
        function, result.Packed(arguments, function._name or repr(function)), context.current_input_id() or ""
    )


async def _remote_gen(function: AnyFunction, packed: result.Packed, parent: str) -> AsyncIterator[Iterable[Any]]:
    client = await function._called("remote_gen", wants_generator=True)

    async def begin() -> tuple[Stream, list[tuple[dict[str, Any], bytes]]]:
        value, payload = await result.sent(client, packed)
        body = {"value": value, **function._target(parent)}
        stream = await (await client._connected()).stream("call.generate", body, payload)
        try:
            return stream, await stream.receive_all()
        except BaseException:
            stream.cancel()
            raise

    stream, frames = await function._once_more(client, partial(until_room, begin, function, "remote_gen"))
    try:
        while True:
            if not frames:
                raise ServiceError("the server ended a generator's stream without its end")
            values: list[result.Payload] = []
            last: Optional[result.Output] = None
            for item, data in frames:
                offset = 0
                for ref in item.get("values") or ():
                    one, offset = await result.received(client, ref, data, offset)
                    values.append(one)
                output = item.get("output")
                if output is not None:
                    one, offset = await result.received(client, output["value"], data, offset)
                    last = (output, one)
            yield _dual.later(partial(_given, values, last))
            if last is not None:
                return
            frames = await stream.receive_all()
    finally:
        stream.cancel()


def _given(values: list[result.Payload], last: Optional[result.Output]) -> Iterable[Any]:
    """A generator's values one after the other, and then how it ended. Runs in the consumer's thread."""
    for one in values:
        yield result.unpacked(one)
    if last is not None and last[0]["status"] != SUCCESS:
        result.raise_failure(last)


def spawn(function: AnyFunction, arguments: Arguments, key: str = "") -> Coroutine[Any, Any, FunctionCall[Any]]:
    """Start it, with an idempotency key at most once; the call's handle."""
    packed = result.Packed(arguments, function._name or repr(function))
    return _spawn(function, packed, context.current_input_id() or "", key)


async def _spawn(function: AnyFunction, packed: result.Packed, parent: str, key: str) -> FunctionCall[Any]:
    client = await function._called("spawn")

    async def put() -> dict[str, Any]:
        value, payload = await result.sent(client, packed, durable=True)
        body = {"inputs": [{"index": 0, "value": value}], "kind": "spawn", **function._target(parent)}
        if key:
            body["idempotency_key"] = key
        return (await client._request_raw("call.spawn", body, payload))[0]

    reply = await function._once_more(client, partial(until_room, put, function, "spawn"))
    return FunctionCall._known(reply["call_id"], client)
