"""The server of the wire (docs/formats/wire.md): unix sockets, who may connect, how many, and their end.

`cadenza.control.connection` is one client. What goes out in one turn of the event loop is written once, by uvloop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Callable, Collection, Mapping, Optional

from cadenza.base.errors import AuthError
from cadenza.base.ids import IdSource
from cadenza.control.connection import LINGER_S, Connection
from cadenza.control.listen import accept_each, listen_private, peer_uid, same_user
from cadenza.control.request import Handler, Row
from cadenza.observe.log import Log
from cadenza.observe.metrics import Metrics
from cadenza.protocol.frame import encode
from cadenza.protocol.table import METHODS

MAX_CONNECTIONS = 4_096
MAX_CONTAINER_CONNECTIONS = 64
"""One container must not keep everybody else out."""
READ_BUFFER_BYTES = 256 << 10

_log = Log("cadenza.control.rpc")


def no_tokens(token_id: str, secret: str) -> None:
    """For a server without accounts: AuthError."""
    raise AuthError("this server knows no tokens")


class Rpc:
    """Serves connections. ``handlers`` maps the table's names to coroutines that take a `Request`.

    ``closed(connection_id)`` is called once for each connection that had said hello, when it is gone;
    ``expect()`` before and ``settle()`` after the requests of one read are given to their handlers;
    ``identify(token_id, secret)`` raises AuthError for a token that is not good.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        ids: IdSource,
        closed: Callable[[str], None] = lambda connection_id: None,
        lane_path: str = "",
        metrics: Optional[Metrics] = None,
        expect: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        identify: Callable[[str, str], None] = no_tokens,
    ) -> None:
        self.rows = {name: Row(METHODS[name], handler) for name, handler in handlers.items()}
        self.ids = ids
        self.closed = closed
        self.expect = expect
        self.settle = settle
        self.identify = identify
        self.lane_path = lane_path
        self.metrics = metrics or Metrics()
        self.connections: set[Connection] = set()
        # Every read is decoded before the next one begins, so that all connections can share one buffer.
        self.view = memoryview(bytearray(READ_BUFFER_BYTES))
        self._listeners: list[tuple[socket.socket, str]] = []
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def clients(self) -> int:
        """Connections of users' processes on this host that have said hello."""
        return sum(1 for one in self.connections if one.greeted and not one.caller.container_id)

    def listen(self, path: str) -> None:
        """Accept on ``path``; its directory is made private (0700) and the socket too (0600).

        InvalidError when the directory belongs to somebody else or others may enter it.
        """
        sock = listen_private(path)
        self._listeners.append((sock, path))
        accept_each(sock, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if not same_user(sock):
            _log.warning("refused a connection of another user", uid=peer_uid(sock))
            sock.close()
            return
        self.serve(sock, "")

    def serve(self, sock: socket.socket, container_id: str) -> None:
        """Take over an accepted socket. ``container_id`` says which container it came from; empty: the host."""
        sock.setblocking(False)
        full = ""
        if len(self.connections) >= MAX_CONNECTIONS:
            full = f"the server has {MAX_CONNECTIONS} connections: try again later"
        elif container_id and self._of_container(container_id) >= MAX_CONTAINER_CONNECTIONS:
            full = f"this container has {MAX_CONTAINER_CONNECTIONS} connections to the server: close some"
        if full:
            try:
                sock.send(encode({"t": "refuse", "message": full}))
            except OSError:
                pass
            sock.close()
            return
        connection = Connection(self, container_id)
        self.connections.add(connection)
        task = asyncio.get_running_loop().create_task(self._start(sock, connection))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _of_container(self, container_id: str) -> int:
        return sum(1 for one in self.connections if one.caller.container_id == container_id)

    async def _start(self, sock: socket.socket, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            _log.warning("a connection failed at its start", error=str(error))
            self.connections.discard(connection)
            sock.close()

    def drop(self, token_ids: Collection[str]) -> None:
        """End the connections that came with one of these tokens: it is no longer good."""
        for one in list(self.connections):
            if one.caller.token_id in token_ids and one.caller.token_id:
                one.end(f"the token {one.caller.token_id} is no longer good", "unauthenticated")

    async def close(self) -> None:
        """Stop accepting, cancel what is under way, say so, and close."""
        loop = asyncio.get_running_loop()
        for sock, path in self._listeners:
            loop.remove_reader(sock)
            sock.close()
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self._listeners.clear()
        tasks = [task for one in list(self.connections) for task in one.end("the server stops", "unavailable")]
        if tasks:
            await asyncio.wait(tasks, timeout=LINGER_S)
        deadline = loop.time() + LINGER_S
        while self.connections and loop.time() < deadline:
            await asyncio.sleep(0.01)
        for one in list(self.connections):
            one.abort()
        for _ in range(3):  # uvloop tells of a lost connection one turn later
            await asyncio.sleep(0)
