"""Giving this machine's content to other machines: a small HTTP server in front of the store's directory.

Only whole files, only by their full digest, with the shared key where one is set (docs/formats/store.md has the
addresses). What a peer gives is verified by who asked: this end need not be trusted, and trusts nobody who has no key.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import re
import socket
import stat
import time
from typing import TYPE_CHECKING, Optional

from cadenza.base.errors import InvalidError, ServiceError
from cadenza.observe.log import Log

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.abc import AbstractStreamWriter

MAX_CONNECTIONS = 256
MAX_ANSWERS = 64
"""So many files are sent at once; who comes then is told to ask elsewhere."""
FIRST_REQUEST_S = 10.0
IDLE_S = 30.0
ANSWER_S = 300.0
SMALL_BYTES = 128 << 10
"""Files up to this size are read and sent at once, which is half the work of sending a file."""
_PLAIN = {"Content-Type": "application/octet-stream"}
_PLACE = re.compile(r"/(objects|trees|lists)/([0-9a-f]{2})/([0-9a-f]{62})\Z")
_log = Log("cadenza.fs.peer")


def parse_address(text: str, key: str) -> tuple[str, int]:
    """``host:port`` to listen on. InvalidError when it is none, or is beyond loopback and there is no key."""
    host, colon, port = text.strip().rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidError(f"peer_address = {text!r}: write host:port")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not key:
        raise InvalidError(f"peer_address = {text!r} can be reached from other machines: set peer_key too")
    return host, int(port)


def file_of(home: str, path: str) -> Optional[str]:
    """The file of a request's path; None: it names no content."""
    found = _PLACE.match(path)
    if found is None:
        return None
    folder, start, rest = found.groups()
    return os.path.join(home, folder, start, rest) if folder == "objects" else os.path.join(home, folder, start + rest)


class Peer:
    """The server. `open` and `close` it in one event loop."""

    def __init__(self, home: str, address: str, key: str = "") -> None:
        self._home = home
        self._host, self._port = parse_address(address, key)
        self._wanted = f"Bearer {key}".encode() if key else b""
        self._answers = 0
        self._runner: Optional[web.ServerRunner] = None
        self._listener: Optional[asyncio.Server] = None
        self._reaper: Optional[asyncio.Task[None]] = None
        self._open: dict[asyncio.BaseProtocol, tuple[asyncio.BaseTransport, float]] = {}
        """Connections, each with when it was opened; one that asked for something is no longer looked at."""
        self.bytes_given = 0

    @property
    def port(self) -> int:
        """The port it listens on, once it is open."""
        return self._port

    async def open(self) -> None:
        """Listen. ServiceError when the address is taken."""
        from aiohttp import web  # 100 ms: only where content is given

        server = web.Server(self._answer, access_log=None, keepalive_timeout=IDLE_S)
        self._runner = web.ServerRunner(server, handle_signals=False)
        await self._runner.setup()
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: _Counted(self, server()), self._host, self._port, reuse_address=True
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ServiceError(f"peer_address = {self._host}:{self._port}: {error.strerror}") from None
        self._listener = listener
        self._port = listener.sockets[0].getsockname()[1]
        self._reaper = asyncio.get_running_loop().create_task(self._reap())
        _log.info("peer.open", host=self._host, port=self._port)

    async def close(self) -> None:
        """Stop listening, and end what goes on."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        for transport, _ in list(self._open.values()):
            if isinstance(transport, asyncio.Transport):
                transport.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        if self._wanted:
            shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(shown, self._wanted):
                refusal = web.Response(status=401, text="the key is not this machine's\n")
                refusal.force_close()  # a connection is kept for nobody who has no key
                return refusal
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405)
        path = file_of(self._home, request.path)
        if self._answers >= MAX_ANSWERS:
            return web.Response(status=503, headers={"Retry-After": "1"})
        # Small looks at a directory that is warm: a thread would cost more.
        try:
            info = os.stat(path) if path is not None else None
            if path is None or info is None or not stat.S_ISREG(info.st_mode):
                return web.Response(status=404)
            if info.st_size > SMALL_BYTES or "Range" in request.headers or request.method == "HEAD":
                return self._file(path)
            with open(path, "rb", buffering=0) as file:
                content = file.read()
        except FileNotFoundError:
            return web.Response(status=404)
        self.bytes_given += len(content)
        response = web.Response(body=content, headers=_PLAIN)
        response.last_modified = info.st_mtime
        return response

    def _file(self, path: str) -> web.StreamResponse:
        """The answer with a file, whole or in part; counted while it is sent, and ended when it takes too long."""
        from aiohttp import web

        peer = self

        class File(web.FileResponse):
            async def prepare(self, request: web.BaseRequest) -> Optional[AbstractStreamWriter]:
                peer._answers += 1
                try:
                    sent = await asyncio.wait_for(super().prepare(request), ANSWER_S)
                    peer.bytes_given += self.content_length or 0
                    return sent
                except asyncio.TimeoutError:
                    raise ConnectionResetError(f"not sent within {ANSWER_S:.0f} seconds") from None
                finally:
                    peer._answers -= 1

        return File(path, headers=_PLAIN)

    async def _reap(self) -> None:
        """End connections that never asked for anything."""
        while True:
            await asyncio.sleep(FIRST_REQUEST_S / 2)
            now = time.monotonic()
            for transport, since in list(self._open.values()):
                if now - since > FIRST_REQUEST_S and isinstance(transport, asyncio.Transport):
                    transport.abort()

    def opened(self, protocol: asyncio.BaseProtocol, transport: asyncio.BaseTransport) -> bool:
        """Note a connection; False: there are too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            return False
        self._open[protocol] = (transport, time.monotonic())
        return True

    def asked(self, protocol: asyncio.BaseProtocol) -> None:
        """Bytes of a request came: from now on the server's own limits hold."""
        transport, _ = self._open[protocol]
        self._open[protocol] = (transport, float("inf"))

    def closed(self, protocol: asyncio.BaseProtocol) -> None:
        """It is gone."""
        self._open.pop(protocol, None)


class _Counted(asyncio.Protocol):
    """A connection of the HTTP server's, counted."""

    def __init__(self, peer: Peer, inner: asyncio.Protocol) -> None:
        self._peer = peer
        self._inner = inner
        self._refused = False
        self._heard: Optional[bytes] = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._peer.opened(self, transport):
            self._refused = True
            if isinstance(transport, asyncio.Transport):
                transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._heard is not None:
            # Until a whole head is here the connection counts as one that asked nothing: no slow one stays.
            self._heard = (self._heard + data)[-4096:]
            if b"\r\n\r\n" in self._heard:
                self._heard = None
                self._peer.asked(self)
        self._inner.data_received(data)

    def eof_received(self) -> Optional[bool]:
        return None if self._refused else self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._peer.closed(self)
        if not self._refused:
            self._inner.connection_lost(exc)
