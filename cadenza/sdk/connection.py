"""One connection to the server: frames over a unix socket, requests by number, streams with credit.

The written form is docs/formats/wire.md. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from typing import Any, Mapping, Optional, Sequence, Union

from cadenza.base.errors import ConnectionError, Error, ServiceError, from_kind
from cadenza.protocol.frame import PROTOCOL, STREAM_CREDIT_BYTES, Decoder, FrameError, encode, encode_parts, loads

Payload = Union[bytes, bytearray, memoryview]

HANDSHAKE_S = 10.0
PING_AFTER_S, GIVE_UP_AFTER_S = 20.0, 60.0
"""With something under way and silence from the server: when it is asked whether it is there, and when it is not."""
MAX_OPEN_REQUESTS = 10_000
ITEM_OVERHEAD_BYTES = 256
"""What an item of a stream costs besides its payload."""
GRANT_BYTES = STREAM_CREDIT_BYTES // 4
"""How much a receiver consumes before it says so: a quarter, so that the sender never runs dry."""
READ_BYTES = 256 << 10
LOW_WATER_BYTES, HIGH_WATER_BYTES = 1 << 20, 4 << 20

_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


class Stream:
    """One call of a streaming method. `receive` what the server sends; for ``both`` methods also `send` and `end`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._items: deque[tuple[dict[str, Any], bytes]] = deque()
        self._error: Optional[BaseException] = None
        self._ended = False
        self._waiter: Optional[asyncio.Future[None]] = None
        self._ungranted = 0
        self._credit = STREAM_CREDIT_BYTES
        self._sender: Optional[asyncio.Future[None]] = None

    @property
    def over(self) -> bool:
        """Whether the server has ended it, or it failed."""
        return self._ended or self._error is not None

    async def receive(self) -> Optional[tuple[dict[str, Any], bytes]]:
        """The next item's body and payload; None after the last. Raises what the server says went wrong."""
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            await self._wait()
        item = self._items.popleft()
        self._consumed(len(item[1]))
        return item

    async def receive_all(self) -> list[tuple[dict[str, Any], bytes]]:
        """All items that are there, at least one; an empty list after the last."""
        first = await self.receive()
        if first is None:
            return []
        found = [first]
        while self._items:
            item = self._items.popleft()
            self._consumed(len(item[1]))
            found.append(item)
        return found

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _consumed(self, size: int) -> None:
        self._ungranted += size + ITEM_OVERHEAD_BYTES
        if self._ungranted >= GRANT_BYTES and not self.over:
            self._connection.post({"t": "credit", "id": self._number, "n": self._ungranted})
            self._ungranted = 0

    async def send(self, body: dict[str, Any], payload: Sequence[Payload] = ()) -> None:
        """One more item to the server; waits for credit and for the socket. Raises if the stream has failed."""
        while self._credit <= 0 and not self.over:
            self._sender = asyncio.get_running_loop().create_future()
            try:
                await self._sender
            finally:
                self._sender = None
        if self._error is not None:
            raise self._error
        if self._ended:
            return
        self._credit -= sum(map(len, payload)) + ITEM_OVERHEAD_BYTES
        self._connection.post({"t": "item", "id": self._number, "b": body}, payload)
        await self._connection.writable()

    def end(self) -> None:
        """No more items from here."""
        if not self.over:
            self._connection.post({"t": "end", "id": self._number})

    def cancel(self) -> None:
        """Nobody wants it any more; what the server still says of it is dropped. Safe at any time."""
        if not self.over:
            self.fail(ServiceError("the stream was cancelled"))

    def fail(self, error: BaseException) -> None:
        """As `cancel`, and `receive` raises ``error``."""
        if not self.over:
            self._connection.forget(self._number)
            self._connection.post({"t": "cancel", "id": self._number})
            self._fail(error)

    # Called by the connection.

    def _take(self, kind: str, header: dict[str, Any], payload: bytes) -> None:
        if kind == "item":
            self._items.append((header.get("b") or {}, payload))
        elif kind == "end":
            self._ended = True
        elif kind == "credit":
            self._credit += int(header.get("n", 0))
        self._wake()

    def _fail(self, error: BaseException) -> None:
        if not self.over:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        for one in (self._waiter, self._sender):
            if one is not None and not one.done():
                one.set_result(None)


class Connection(asyncio.BufferedProtocol):
    """The protocol's client end. Made by `connect`; `alive` until the socket ends, and never again."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.welcome: dict[str, Any] = {}
        self.alive = False
        self._loop = loop
        self._transport: Optional[asyncio.Transport] = None
        self._decoder = Decoder()
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._last = 0
        self._replies: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._streams: dict[int, Stream] = {}
        self._forgotten: set[int] = set()
        self._out: list[Payload] = []
        self._flush_is_due = False
        self._resumed: Optional[asyncio.Future[None]] = None
        self._slots: deque[asyncio.Future[None]] = deque()
        self._lost: Optional[BaseException] = None
        self._heard = loop.time()
        self._watch: Optional[asyncio.TimerHandle] = None

    # --- the socket ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self._loop.time()
        try:
            frames = self._decoder.feed(self._view[:nbytes])
            for header, payload in frames:
                self._frame(loads(header), payload)
        except FrameError as error:
            self._end(ServiceError(f"the server at {self.path} sent what is not our protocol: {error}"))

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._end(
            ServiceError(
                f"the connection to the server at {self.path} was lost while the call was under way. It was not "
                f"repeated, since it may have run: call again. (What was spawned goes on and can still be read.)"
            )
        )

    def pause_writing(self) -> None:
        if self._resumed is None:
            self._resumed = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None:
            if not self._resumed.done():
                self._resumed.set_result(None)
            self._resumed = None

    def close(self, error: Optional[BaseException] = None) -> None:
        """End the connection; what is under way fails with ``error``."""
        self._flush()
        self._end(error or ServiceError("the connection to the server was closed while the call was under way"))

    def _end(self, error: BaseException) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self.alive = False
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.close()
        if not self._greeted.done():
            self._greeted.set_exception(error)
            self._greeted.exception()  # told: nobody may be waiting any more
        self.resume_writing()
        replies, self._replies = self._replies, {}
        for one in replies.values():
            if not one.done():
                one.set_exception(type(error)(*error.args))  # one each: raising writes into an exception
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream._fail(type(error)(*error.args))
        while self._slots:
            slot = self._slots.popleft()
            if not slot.done():
                slot.set_result(None)

    def _listen(self) -> None:
        """Look now and then whether the server still says something; a stopped one holds its sockets open."""
        if self._lost is not None:
            return
        silent_s = self._loop.time() - self._heard
        if not self._replies and not self._streams:
            self._heard = self._loop.time()
        elif silent_s >= GIVE_UP_AFTER_S:
            self._end(
                ServiceError(
                    f"the server at {self.path} has said nothing for {silent_s:.0f} s, though it was asked whether it "
                    f"is there. If it is stuck, end it with `cadenza down` and call again."
                )
            )
            return
        elif silent_s >= PING_AFTER_S:
            self.post({"t": "ping"})
        self._watch = self._loop.call_later(PING_AFTER_S / 2, self._listen)

    # --- out ---

    def post(self, header: dict[str, Any], payload: Sequence[Payload] = ()) -> None:
        """Queue one frame. Frames of one turn of the loop leave in one write."""
        if self._lost is not None:
            return
        raw = _dumps(header).encode()
        if payload:
            self._out.extend(encode_parts(raw, payload))
        else:
            self._out.append(encode(raw))
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        out, self._out = self._out, []
        if out and self._transport is not None and self._lost is None:
            self._transport.writelines(out)

    async def writable(self) -> None:
        """Wait while the socket's buffer is over its high mark."""
        while self._resumed is not None:
            await asyncio.shield(self._resumed)

    # --- in ---

    def _frame(self, header: dict[str, Any], payload: bytes) -> None:
        kind = header.get("t")
        number = header.get("id", 0)
        if kind == "rep":
            future = self._replies.pop(number, None)
            if future is not None and not future.done():
                if header.get("b_in_payload"):
                    header, payload = {"b": loads(payload)}, b""
                future.set_result((header.get("b") or {}, payload))
            self._freed(number)
        elif kind in ("item", "end", "credit"):
            stream = self._streams.get(number)
            if kind == "end":
                self._streams.pop(number, None)
                self._freed(number)
            if stream is not None:
                stream._take(kind, header, payload)
        elif kind == "err":
            self._failed(number, header.get("e") or {})
        elif kind == "ping":
            self.post({"t": "pong"})
        elif kind == "welcome":
            self.welcome = header
            self.alive = True
            self._listen()
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif kind == "refuse":
            message = str(header.get("message") or "the server refused the connection")
            self._end(from_kind(str(header.get("kind") or "version"), message))

    def _failed(self, number: int, told: dict[str, Any]) -> None:
        error = from_kind(str(told.get("kind", "internal")), str(told.get("message", "")), told.get("detail"))
        if number == 0:
            self._end(error)
            return
        future = self._replies.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(error)
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream._fail(error)
        self._freed(number)

    def _freed(self, number: int) -> None:
        self._forgotten.discard(number)
        while self._slots:
            slot = self._slots.popleft()
            if not slot.done():
                slot.set_result(None)
                break

    # --- requests ---

    async def _slot(self) -> None:
        while len(self._replies) + len(self._streams) + len(self._forgotten) >= MAX_OPEN_REQUESTS and not self._lost:
            slot = self._loop.create_future()
            self._slots.append(slot)
            await slot
        if self._resumed is not None:
            await self.writable()
        if self._lost is not None:
            raise self._lost

    async def request(
        self, method: str, body: dict[str, Any], payload: Sequence[Payload] = ()
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request; its reply's body and payload. Raises the server's error, or ServiceError when the connection
        is lost. Cancelling the wait tells the server that nobody wants it."""
        await self._slot()
        self._last = number = self._last + 1
        future: asyncio.Future[tuple[dict[str, Any], bytes]] = self._loop.create_future()
        self._replies[number] = future
        try:
            self.post({"t": "req", "id": number, "m": method, "b": body}, payload)
            return await future
        except BaseException:
            if self._replies.get(number) is future:  # no answer yet: cancelled, or it could not be encoded
                self.forget(number)
                self.post({"t": "cancel", "id": number})
            raise

    async def stream(self, method: str, body: dict[str, Any], payload: Sequence[Payload] = ()) -> Stream:
        """Open a stream."""
        await self._slot()
        self._last = number = self._last + 1
        stream = self._streams[number] = Stream(self, number)
        try:
            self.post({"t": "req", "id": number, "m": method, "b": body}, payload)
        except BaseException:
            del self._streams[number]
            raise
        return stream

    def forget(self, number: int) -> None:
        """Drop what the server still says of this request; its number is not free until it is over."""
        self._replies.pop(number, None)
        self._streams.pop(number, None)
        self._forgotten.add(number)

    # --- opening ---

    async def greet(self, version: str, who: Optional[Mapping[str, str]] = None) -> None:
        """Say hello and wait for the welcome. VersionError and AuthError carry the server's sentence.

        ``who``: more of the hello: token_id and token_secret, environment."""
        self.post({"t": "hello", "protocol": PROTOCOL, "version": version, "role": "client", **(who or {})})
        try:
            await asyncio.wait_for(asyncio.shield(self._greeted), HANDSHAKE_S)
        except asyncio.TimeoutError:
            error = ConnectionError(
                f"Could not connect to the Cadenza server at {self.path}: it accepted the connection and said nothing "
                f"for {HANDSHAKE_S:.0f} s. If it is stuck, end it with `cadenza down` and try again."
            )
            self._end(error)
            raise error from None
        except ServiceError as error:
            raise ConnectionError(
                f"Could not connect to the Cadenza server at {self.path}: it closed the connection at once "
                f"({error}). Its log may say why."
            ) from None


async def connect(
    path: str,
    version: str,
    owners: Optional[frozenset[int]] = None,
    who: Optional[Mapping[str, str]] = None,
) -> Connection:
    """Connect and greet. OSError when nobody listens there; `Error` s when somebody else does.

    ``owners``: user ids that the server may have. Somebody else may have put a socket at a path below /tmp first, and
    must not get a token to see. ``who``: as in `Connection.greet`.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_unix_connection(lambda: Connection(path, loop), path)
    connection = protocol
    if owners is not None:
        peer = transport.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid not in owners:
            error = ConnectionError(
                f"Could not connect to the Cadenza server at {path}: it belongs to user {uid}, not to you. Nothing was "
                "sent. Set CADENZA_HOME to a directory that only you can write to."
            )
            connection.close(error)
            raise error
    try:
        await connection.greet(version, who)
    except Error:
        connection.close()
        raise
    return connection
