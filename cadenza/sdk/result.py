"""Values on their way out and outputs on their way back: what a status means to the caller.

Packing and making results runs in the caller's thread (see `_dual`); what is ``async`` here is I/O alone.
Source: semantics.md sections 4 and 5.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, AsyncIterator, Iterator, NoReturn, Sequence, Union

from cadenza.base.errors import ExecutionError, FunctionTimeoutError, InternalFailure, RemoteError, SerializationError
from cadenza.protocol import statuses
from cadenza.protocol.frame import INLINE_VALUE_BYTES
from cadenza.runner import values
from cadenza.sdk.handle import persistent_id, persistent_load

if TYPE_CHECKING:
    from cadenza.sdk.client import Client

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Payload = Union[bytes, bytearray, memoryview]
Output = tuple[dict[str, Any], Payload]
"""An `OutputItem` as plain JSON values, and its bytes."""

GROUP_BYTES = 64 << 20
"""How much of large values is fetched before what is there goes on to the consumer; a larger value goes alone."""


class Packed:
    """The arguments of one call as bytes: what `values.pack` made of them, and how long that is.

    ``name`` is the function's, for the `SerializationError` that says which argument cannot be pickled.
    """

    __slots__ = ("parts", "size")

    def __init__(self, arguments: Arguments, name: str) -> None:
        try:
            self.parts: Sequence[Payload] = values.pack(arguments, persistent_id)
        except SerializationError as error:
            raise _named(arguments, name, error) from error.__cause__
        self.size = values.size_of(self.parts)


def _named(arguments: Arguments, name: str, error: SerializationError) -> SerializationError:
    """The error of the first argument that cannot be pickled by itself; ``error`` if each one can."""
    args, kwargs = arguments
    labelled = [(f"argument {at} of {name}", one) for at, one in enumerate(args, 1)]
    labelled += [(f"argument {key!r} of {name}", one) for key, one in kwargs.items()]
    for label, one in labelled:
        try:
            values.pack(one, persistent_id)
        except SerializationError as own:
            return SerializationError(str(own).replace("an object of type", f"{label}, of type", 1))
    return error


async def sent(client: Client, packed: Packed, durable: bool = False) -> tuple[dict[str, Any], Sequence[Payload]]:
    """The `ValueRef` of an argument as plain JSON values, and what goes into the frame's payload: nothing, if it is
    large and was put on the lane."""
    if packed.size <= INLINE_VALUE_BYTES:
        return {"size": packed.size}, packed.parts
    blob = await client._put_blob(packed.parts, durable)
    return {"size": 0, "blob": {"blob_id": blob.blob_id, "size": blob.size}}, ()


async def received(client: Client, ref: dict[str, Any], payload: Payload, offset: int) -> tuple[Payload, int]:
    """The bytes that a `ValueRef` names, from ``payload`` at ``offset`` or the lane; and the offset behind them."""
    blob = ref.get("blob")
    if blob is not None:
        return await client._get_blob(blob["blob_id"]), offset
    size = ref.get("size", 0)
    if offset == 0 and size == len(payload):
        return payload, size
    return memoryview(payload)[offset : offset + size], offset + size


async def outputs(
    client: Client, items: Sequence[dict[str, Any]], payload: Payload, group_bytes: int = GROUP_BYTES
) -> AsyncIterator[list[Output]]:
    """Each output of a frame with its own bytes, in order, in groups: large values of a group are fetched at once."""
    offset = 0
    for group in grouped(items, group_bytes):
        found: list[Output] = []
        large: list[int] = []
        for item in group:
            ref = item["value"]
            if ref.get("blob") is not None:
                large.append(len(found))
                found.append((item, b""))
            else:
                data, offset = await received(client, ref, payload, offset)
                found.append((item, data))
        if large:
            await _fetch(client, found, large)
        yield found


def grouped(items: Sequence[dict[str, Any]], group_bytes: int) -> Iterator[Sequence[dict[str, Any]]]:
    """Cut before the large values of a piece are more than ``group_bytes``."""
    first = size = 0
    for at, item in enumerate(items):
        blob = item["value"].get("blob")
        if blob is None:
            continue
        if size and size + blob["size"] > group_bytes:
            yield items[first:at]
            first, size = at, 0
        size += blob["size"]
    if first < len(items):
        yield items[first:]


async def _fetch(client: Client, found: list[Output], large: list[int]) -> None:
    tasks = [asyncio.ensure_future(client._get_blob(found[at][0]["value"]["blob"]["blob_id"])) for at in large]
    try:
        for at, data in zip(large, await asyncio.gather(*tasks)):
            found[at] = (found[at][0], data)
    finally:
        for task in tasks:
            task.cancel()


def value(output: Output) -> Any:
    """What the call gives: the user's value, or the exception raised."""
    item, data = output
    if item["status"] == statuses.SUCCESS:
        return unpacked(data)
    raise_failure(output)


def value_or_exception(output: Output) -> Any:
    """As `value`, but an exception is given back instead of raised."""
    try:
        return value(output)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


def raise_failure(output: Output) -> NoReturn:
    """Raise what an output that is no success stands for."""
    raise failure(output)


def failure(output: Output) -> BaseException:
    """The exception that an output that is no success stands for."""
    item, data = output
    status, text = item["status"], item.get("error") or ""
    if status == statuses.TIMEOUT:
        return FunctionTimeoutError(text or "the function ran longer than its timeout")
    if status == statuses.INTERNAL_FAILURE:
        return InternalFailure(text or "the platform lost the input too often and gave up")
    if status == statuses.TERMINATED:
        return RemoteError(text or "the input was cancelled")
    if status not in (statuses.FAILURE, statuses.INIT_FAILURE):
        return ExecutionError(f"an output has a status that this version of cadenza does not know: {status}")
    if not data:
        return RemoteError(text or "the function failed and left no exception")
    return values.unpack_exception(data, item.get("container_id") or "")


def unpacked(data: Payload) -> Any:
    """One value that came from a container."""
    return values.unpack(data, persistent_load, True)
