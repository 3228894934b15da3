"""One client's connection: frames in and out, its requests by number, limits, the end.

`Rpc` makes one for each socket that it accepts. A connection is a `asyncio.BufferedProtocol`; each request runs in a
task of its own, save on the hot path (`Handler`). A client that does not read its replies is not read from either.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Awaitable, Optional, Sequence, cast

import msgspec

import cadenza
from cadenza.base.errors import AuthError, Error, InvalidError, ResourceExhaustedError, kind_of
from cadenza.control.hello import decode_hello, refuse
from cadenza.control.request import Caller, Reply, Request, Row
from cadenza.observe.log import Log
from cadenza.protocol.frame import MAX_HEADER_BYTES, PROTOCOL, Decoder, FrameError, encode, encode_parts
from cadenza.protocol.method import CLIENT, CONTAINER
from cadenza.protocol.table import METHODS

if TYPE_CHECKING:
    from cadenza.control.rpc import Rpc

HELLO_LIMIT_S = 10.0
MAX_OPEN_REQUESTS = 10_000
MAX_OPEN_BYTES = 256 << 20
"""Payloads of one connection's open requests together; what is larger than a frame goes over the lane."""
WITH_VALUES = frozenset(("call.run", "call.generate", "call.spawn", "object.put", "app.publish", "app.deploy"))
"""Methods whose request has a payload. (Of streams both ways the items have.)"""
WRITE_HIGH_BYTES = 4 << 20
"""With more than this unsent, streams wait and the connection is not read from."""
WRITE_ABORT_BYTES = 512 << 20
"""With more than this unsent, the client is given up: replies to requests already taken have no other brake."""
LINGER_S = 2.0
"""How long the last words to a connection that is closed may take."""
MAX_REQUEST_ID = 1 << 53
MAX_MESSAGE_CHARS = 64 << 10
"""Of an error: some show what the client sent, and a frame's header has its limit."""
DISK_FULL = "the server's disk is full: free some space and try again"

_log = Log("cadenza.control.connection")
_encode_body = msgspec.json.Encoder().encode


class Head(msgspec.Struct):
    """Any frame's header from a client, once it has said hello."""

    t: str
    id: int = 0
    m: str = ""
    b: msgspec.Raw = msgspec.Raw(b"{}")
    n: int = 0


_decode_head = msgspec.json.Decoder(Head).decode


class Connection(asyncio.BufferedProtocol):
    """One client. Owns its decoder and its open requests."""

    def __init__(self, server: Rpc, container_id: str) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.caller = Caller("", container_id)
        self.greeted = False
        self.writable = True
        self._decoder = Decoder()
        self._requests: dict[int, tuple[Request[Any], Row]] = {}
        self._open_bytes = 0
        self._transport: Optional[asyncio.Transport] = None
        self._ending = False
        self.lost = False
        self._paused = False
        self._timer: Optional[asyncio.TimerHandle] = None

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from nothing of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._timer = self._loop.call_later(HELLO_LIMIT_S, self._late)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        try:
            decoder = self._decoder
            frames = decoder.feed(self._server.view[:nbytes])
            self._server.expect()
            try:
                for header, payload in frames:
                    if not self._frame(header, payload):
                        return
            finally:
                self._server.settle()
            if decoder.pending_bytes >= 8:
                decoder.feed(b"")  # a fault behind good frames shows itself only now
        except FrameError as error:
            self.end(str(error))

    def eof_received(self) -> Optional[bool]:
        return False

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self.lost = self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        self._server.connections.discard(self)
        self._cancel_all()
        if self.greeted:
            self._server.closed(self.caller.connection_id)

    def pause_writing(self) -> None:
        self.writable = False
        self._brake()

    def resume_writing(self) -> None:
        self.writable = True
        self._brake()
        for request, _ in list(self._requests.values()):
            request.wake()

    # --- frames in ---

    def _frame(self, header: bytes, payload: bytes) -> bool:
        """Take one frame; whether the connection goes on."""
        if not self.greeted:
            return self._hello(header)
        try:
            head = _decode_head(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"the header is not one of ours: {error}") from None
        kind = head.t
        if kind == "req":
            self._request(head, payload)
        elif kind == "item":
            found = self._requests.get(head.id)
            if found is not None:
                self._item(found[0], found[1], head, payload)
        elif kind == "credit":
            if head.n < 0:
                raise FrameError("a credit below zero")
            found = self._requests.get(head.id)
            if found is not None:
                found[0].credited(head.n)
        elif kind == "end":
            found = self._requests.get(head.id)
            if found is not None:
                found[0].finished()
        elif kind == "cancel":
            found = self._requests.get(head.id)
            if found is not None:
                self._cancel(found[0])
        elif kind == "ping":
            self._send(encode(b'{"t":"pong"}'))
        elif kind != "pong":
            raise FrameError(f"no frame from a client is of type {kind[:40]!r}")
        return not self._ending

    def _hello(self, header: bytes) -> bool:
        try:
            hello = decode_hello(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"the first frame must be a hello: {error}") from None
        if hello.t != "hello":
            raise FrameError("the first frame must be a hello")
        refusal = refuse(hello.protocol, hello.version, hello.role)
        if refusal:
            return self._refuse(refusal, "version")
        container_id = self.caller.container_id
        if hello.token_id and not container_id:  # a container is known by its socket, whatever it says
            try:
                self._server.identify(hello.token_id, hello.token_secret)
            except AuthError as error:
                self._server.metrics.add("refused_tokens")
                return self._refuse(str(error), "unauthenticated")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.caller = Caller(
            self._server.ids.new("connection"),
            container_id,
            "" if container_id else hello.token_id,
            "" if container_id else hello.environment,
        )
        self.greeted = True
        self._server.metrics.add("connections")
        self._send(
            encode(
                {
                    "t": "welcome",
                    "protocol": PROTOCOL,
                    "version": cadenza.__version__,
                    "connection": self.caller.connection_id,
                    "lane": "" if self.caller.container_id else self._server.lane_path,
                }
            )
        )
        return True

    def _refuse(self, message: str, kind: str) -> bool:
        self._ending = True
        self._send(encode(_encode_body({"t": "refuse", "message": message, "kind": kind})))
        self._close_soon()
        return False

    def _late(self) -> None:
        self.end(f"no hello within {HELLO_LIMIT_S:g} seconds")

    def _request(self, head: Head, payload: bytes) -> None:
        request_id = head.id
        if not 0 < request_id < MAX_REQUEST_ID or request_id in self._requests:
            raise FrameError(f"request number {request_id} is not free")
        row = self._server.rows.get(head.m)
        if row is None:
            known = head.m in METHODS
            self._error(request_id, "unimplemented" if known else "not_found", f"there is no method {head.m[:80]!r}")
            return
        if (CONTAINER if self.caller.container_id else CLIENT) not in row.callers:
            self._error(request_id, "permission_denied", f"{head.m} may not be called from inside a container")
            return
        if len(self._requests) >= MAX_OPEN_REQUESTS:
            self._error(
                request_id,
                "resource_exhausted",
                f"this connection has {MAX_OPEN_REQUESTS} requests open: wait for some",
            )
            return
        if payload and head.m not in WITH_VALUES:
            self._error(request_id, "invalid", f"{head.m} takes no payload; there are {len(payload)} bytes")
            return
        if self._open_bytes + len(payload) > MAX_OPEN_BYTES:
            self._error(
                request_id,
                "resource_exhausted",
                f"this connection's open requests hold {self._open_bytes >> 20} MiB; at most {MAX_OPEN_BYTES >> 20} "
                "may be: wait for some",
            )
            return
        try:
            body = row.decode(head.b)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._error(request_id, "invalid", f"{head.m}: {error}")
            return
        self._server.metrics.add("requests")
        request: Request[Any] = Request(request_id, body, payload, self.caller, self)
        self._requests[request_id] = (request, row)
        self._open_bytes += len(payload)
        if not row.direct:
            request.task = self._loop.create_task(self._run(row, request))
            return
        try:
            row.handler(request)
        except Exception as error:
            self._failed(row, request, error)

    def _item(self, request: Request[Any], row: Row, head: Head, payload: bytes) -> None:
        try:
            if row.decode_item is None:
                raise InvalidError(f"{row.method.name} takes no items")
            request.arrived(row.decode_item(head.b), payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidError) as error:
            self._forget(request)
            if request.task is not None:
                request.task.cancel()
            self._error(request.id, "invalid", f"{row.method.name}: {error}")

    # --- one request ---

    async def _run(self, row: Row, request: Request[Any]) -> None:
        try:
            result = await cast(Awaitable[Any], row.handler(request))
        except asyncio.CancelledError:
            if self._forget(request):
                self._error(request.id, "cancelled", "the request was cancelled")
            return
        except Exception as error:
            self._failed(row, request, error)
            return
        if row.method.stream:
            if self._forget(request):
                self._send(encode(b'{"t":"end","id":%d}' % request.id))
        elif type(result) is Reply:
            self.answer(request, result.body, result.payloads)
        else:
            self.answer(request, result, ())

    def answer(self, request: Request[Any], body: Any, payloads: Sequence[bytes]) -> None:
        """Send the reply, if the request is still open."""
        if not self._forget(request):
            return
        try:
            self._write(b"rep", request.id, body, payloads)
        except FrameError as error:
            self._error(request.id, "request_size", f"the reply does not fit in a frame: {error}")

    def _failed(self, row: Row, request: Request[Any], error: Exception) -> None:
        kind, message = "internal", ""
        detail: dict[str, Any] | None = None
        if isinstance(error, Error):
            image_id = getattr(error, "image_id", None)
            kind, message, detail = kind_of(error), str(error), {"image_id": image_id} if image_id else None
            if isinstance(error, ResourceExhaustedError):
                detail = {"throttle": error.throttle is True}
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind, message, detail = "resource_exhausted", DISK_FULL, {"throttle": False}
        else:
            fault = self._server.ids.new("connection")[3:11]
            _log.error("a handler failed", exc=error, method=row.method.name, fault=fault)
            message = f"a fault in the server; its log has the rest under the number {fault}"
        if self._forget(request):
            self._error(request.id, kind, message, detail)

    def _cancel(self, request: Request[Any]) -> None:
        """The client wants it no more: its task ends it, or it ends here."""
        if request.task is not None:
            request.task.cancel()
            return
        if request.on_cancel is not None:
            request.on_cancel()
        if self._forget(request):
            self._error(request.id, "cancelled", "the request was cancelled")

    def _forget(self, request: Request[Any]) -> bool:
        """Whether the request was still open; its number is free from here on."""
        found = self._requests.get(request.id)
        if found is None or found[0] is not request:
            return False
        del self._requests[request.id]
        self._open_bytes -= len(request.payload)
        return not self.lost

    def _cancel_all(self) -> list[asyncio.Task[None]]:
        requests = [request for request, _ in self._requests.values()]
        self._requests.clear()
        self._open_bytes = 0
        tasks = []
        for one in requests:
            if one.task is not None:
                one.task.cancel()
                tasks.append(one.task)
            elif one.on_cancel is not None:
                one.on_cancel()
        return tasks

    # --- frames out ---

    def send_item(self, request_id: int, body: Any, payloads: Sequence[bytes]) -> int:
        """One item of a stream; returns the size of its payload."""
        return self._write(b"item", request_id, body, payloads)

    def send_credit(self, request_id: int, size: int) -> None:
        """Let the client send ``size`` bytes more."""
        self._send(encode(b'{"t":"credit","id":%d,"n":%d}' % (request_id, size)))

    def _write(self, kind: bytes, request_id: int, body: Any, payloads: Sequence[bytes]) -> int:
        """A reply or an item; gives the size of its payload. FrameError when it fits in no frame."""
        header = b'{"t":"%s","id":%d,"b":%s}' % (kind, request_id, _encode_body(body))
        if len(header) > MAX_HEADER_BYTES and kind == b"rep" and not payloads:  # a long list
            self._send(encode(b'{"t":"rep","id":%d,"b_in_payload":true}' % request_id, _encode_body(body)))
            return 0
        if not payloads:
            self._send(encode(header))
            return 0
        if len(payloads) == 1:
            payload = payloads[0]
            self._send(encode(header, payload))
            return len(payload)
        parts = encode_parts(header, payloads)
        self._send(b"".join(parts))
        return sum(len(one) for one in payloads)

    def _error(self, request_id: int, kind: str, message: str, detail: Optional[dict[str, Any]] = None) -> None:
        self._server.metrics.add("errors." + kind)
        body = {"kind": kind, "message": message[:MAX_MESSAGE_CHARS], "detail": detail or {}}
        self._send(encode(_encode_body({"t": "err", "id": request_id, "e": body})))

    def _send(self, frame: bytes) -> None:
        transport = self._transport
        if self.lost or transport is None:
            return
        transport.write(frame)  # uvloop writes once in a turn of the loop what was given to it in that turn
        if not self.writable and transport.get_write_buffer_size() > WRITE_ABORT_BYTES:
            _log.warning("gave up a client that does not read", connection=self.caller.connection_id)
            self.abort()

    def _brake(self) -> None:
        """Read from the client only while it reads from us."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self.writable and not self._paused:
            self._paused = True
            transport.pause_reading()
        elif self.writable and self._paused:
            self._paused = False
            transport.resume_reading()

    # --- the end ---

    def end(self, message: str, kind: str = "invalid") -> list[asyncio.Task[None]]:
        """Say why, with request number 0, and close. Returns the tasks that were cancelled."""
        if self._ending:
            return []
        self._ending = True
        tasks = self._cancel_all()
        self._error(0, kind, message)
        self._close_soon()
        return tasks

    def _close_soon(self) -> None:
        if self._transport is not None:
            self._transport.close()  # writes what is left first
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        """Close at once; what is unsent is lost."""
        if self._transport is not None and not self.lost:
            self._transport.abort()
