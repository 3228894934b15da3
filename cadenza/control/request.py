"""One request at the server's edge: its typed body, its caller, its values, and its stream with credit both ways."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Generic, Iterable, Optional, Protocol, Sequence, TypeVar

import msgspec

from cadenza.base.errors import InvalidError, RequestSizeError
from cadenza.protocol.calls import BlobRef, ValueRef
from cadenza.protocol.frame import INLINE_VALUE_BYTES, STREAM_CREDIT_BYTES
from cadenza.protocol.method import Method

ITEM_COST_BYTES = 256
"""What an item of a stream costs besides its payload."""
MAX_NUMBER = 1 << 53
"""No index and no size is above this: the database's numbers are of 64 bits, JSON's of 53."""
GRANT_BYTES = STREAM_CREDIT_BYTES // 4
"""Consumed bytes are granted again in pieces of this size, so that small items do not cost a frame each."""

B = TypeVar("B")


@dataclass(frozen=True)
class Caller:
    """Who asks. ``container_id`` is empty for a user's process on the host; it is known from the socket alone."""

    connection_id: str
    container_id: str = ""
    token_id: str = ""
    """The token that was shown and checked. Empty on the host: the server's own user, of whom the kernel told."""
    environment: str = ""
    """Which environment the client means where it names none; empty: the workspace's default."""


@dataclass(frozen=True)
class Reply:
    """A reply with a payload: ``body`` as in the table of methods, ``payloads`` one after the other."""

    body: Any
    payloads: Sequence[bytes] = ()


class Wire(Protocol):
    """What a request needs of its connection."""

    @property
    def writable(self) -> bool: ...

    @property
    def lost(self) -> bool: ...

    def answer(self, request: Request[Any], body: Any, payloads: Sequence[bytes]) -> None: ...

    def send_item(self, request_id: int, body: Any, payloads: Sequence[bytes]) -> int: ...

    def send_credit(self, request_id: int, size: int) -> None: ...


class Request(Generic[B]):
    """What a handler is given. For streams also `send`, `receive`; one handler task owns it.

    A handler that is no coroutine has no task: it calls `answer` later, and is told by ``on_cancel`` of a client that
    wants the answer no more.
    """

    __slots__ = (
        "_credit",
        "_ended",
        "_granted",
        "_held",
        "_items",
        "_outstanding",
        "_reader",
        "_wire",
        "body",
        "caller",
        "id",
        "on_cancel",
        "payload",
        "task",
    )

    def __init__(self, request_id: int, body: B, payload: bytes, caller: Caller, wire: Wire) -> None:
        self.id = request_id
        self.body = body
        self.payload = payload
        self.caller = caller
        self.task: Optional[asyncio.Task[None]] = None
        self.on_cancel: Optional[Callable[[], None]] = None
        self._wire = wire
        self._outstanding = 0
        self._credit: Optional[asyncio.Future[None]] = None
        self._items: deque[tuple[Any, bytes]] = deque()
        self._reader: Optional[asyncio.Future[None]] = None
        self._ended = False
        self._held = 0
        self._granted = 0

    # --- the handler's side ---

    @property
    def lost(self) -> bool:
        """Whether the client's connection is gone, so that a cancellation is not a wish of the client."""
        return self._wire.lost

    def answer(self, body: Any, payloads: Sequence[bytes] = ()) -> None:
        """The reply of a handler that is no coroutine; nothing happens when the request is over."""
        self._wire.answer(self, body, payloads)

    async def send(self, body: Any, payloads: Sequence[bytes] = ()) -> None:
        """One more item, as soon as the client's credit and the connection's buffer allow. One sender at a time."""
        while self._outstanding >= STREAM_CREDIT_BYTES or not self._wire.writable:
            self._credit = asyncio.get_running_loop().create_future()
            try:
                await self._credit
            finally:
                self._credit = None
        self._outstanding += ITEM_COST_BYTES + self._wire.send_item(self.id, body, payloads)

    async def receive(self) -> Optional[tuple[Any, bytes]]:
        """The client's next item as ``(typed body, payload)``, or None after its last. One reader at a time."""
        while not self._items:
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        body, payload = self._items.popleft()
        self._granted += len(payload) + ITEM_COST_BYTES
        if self._granted >= GRANT_BYTES:
            self._held -= self._granted
            self._wire.send_credit(self.id, self._granted)
            self._granted = 0
        return body, payload

    # --- the connection's side ---

    def credited(self, size: int) -> None:
        """The client has consumed ``size`` bytes."""
        self._outstanding = max(0, self._outstanding - size)
        self.wake()

    def wake(self) -> None:
        """The credit or the connection's buffer may have room again."""
        if self._credit is not None and not self._credit.done():
            self._credit.set_result(None)

    def arrived(self, body: Any, payload: bytes) -> None:
        """An item came. InvalidError when the client had no credit left for it, or had said that it is done."""
        if self._ended:
            raise InvalidError("an item after the stream's end")
        if self._held >= STREAM_CREDIT_BYTES:
            raise InvalidError(f"an item beyond the stream's credit of {STREAM_CREDIT_BYTES} bytes")
        self._held += len(payload) + ITEM_COST_BYTES
        self._items.append((body, payload))
        self._wake_reader()

    def finished(self) -> None:
        """The client sends no more items."""
        self._ended = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


Handler = Callable[[Request[Any]], Optional[Awaitable[Any]]]
"""A coroutine that gives the reply, or, where each turn of the loop counts, a function that answers it later."""


class Row:
    """A row of the table of methods with its decoders and its handler."""

    __slots__ = ("callers", "decode", "decode_item", "direct", "handler", "method")

    def __init__(self, method: Method, handler: Handler) -> None:
        self.method = method
        self.handler = handler
        self.direct = not inspect.iscoroutinefunction(handler)
        self.callers = frozenset(method.callers)
        self.decode: Callable[[Any], Any] = msgspec.json.Decoder(method.request).decode
        self.decode_item: Optional[Callable[[Any], Any]] = (
            msgspec.json.Decoder(method.item).decode if method.item is not None else None
        )


def split(payload: bytes, refs: Iterable[ValueRef]) -> list[tuple[bytes, Optional[BlobRef]]]:
    """The values that ``refs`` name: bytes cut from ``payload`` in order, or blobs. InvalidError if they do not fit."""
    values: list[tuple[bytes, Optional[BlobRef]]] = []
    start = 0
    for ref in refs:
        if ref.blob is not None:
            if not 0 <= ref.blob.size <= MAX_NUMBER:
                raise InvalidError(f"a value of {ref.blob.size} bytes: sizes are from 0 to {MAX_NUMBER}")
            values.append((b"", ref.blob))
            continue
        size = ref.size
        if size > INLINE_VALUE_BYTES:
            raise RequestSizeError(
                f"a value of {size} bytes is over the {INLINE_VALUE_BYTES} that a frame may carry: "
                "put it over the lane and name its blob"
            )
        if size < 0 or start + size > len(payload):
            raise InvalidError(f"the values do not fit the payload of {len(payload)} bytes")
        values.append((payload if start == 0 and size == len(payload) else payload[start : start + size], None))
        start += size
    if start != len(payload):
        raise InvalidError(f"the payload has {len(payload)} bytes, the values only {start}")
    return values


def ref_of(data: bytes, blob: Optional[BlobRef]) -> ValueRef:
    """How a value is named in a frame whose payload has ``data`` next."""
    return ValueRef(0, blob) if blob is not None else ValueRef(len(data))
