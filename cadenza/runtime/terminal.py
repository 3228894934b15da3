"""The terminal of a command in a container of an OCI runtime, which hands it over by a socket."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import struct
import tempfile
import termios
from typing import Optional

from cadenza.runtime.driver import Command, RuntimeFault


class Terminal:
    """The socket by which an OCI runtime hands over the controlling side of a new terminal."""

    def __init__(self, command: Command) -> None:
        self._size = (command.rows, command.columns)
        self._coming: Optional[asyncio.Task[int]] = None
        # Not in the state directory, whose path may be too long for a socket's address (108 bytes).
        self._folder = tempfile.mkdtemp(prefix="cadenza-pty-")
        self.path = os.path.join(self._folder, "s")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._listener.setblocking(False)

    def receive(self, limit_s: float) -> None:
        """Begin to wait for it, beside the runtime's work: gVisor starts the program only after it was sent, and reads
        its size from it."""
        self._coming = asyncio.ensure_future(self._receive(limit_s))

    async def take(self) -> int:
        """The terminal, which is the caller's from now on. RuntimeFault when none comes."""
        assert self._coming is not None
        coming = await asyncio.shield(self._coming)
        self._coming = None
        return coming

    async def _receive(self, limit_s: float) -> int:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = await asyncio.wait_for(loop.sock_accept(self._listener), limit_s)
            with connection:
                connection.settimeout(limit_s)
                _, fds, _, _ = await asyncio.to_thread(socket.recv_fds, connection, 4096, 1)
        except (asyncio.TimeoutError, OSError) as error:
            raise RuntimeFault("the runtime handed over no terminal", str(error)) from error
        if not fds:
            raise RuntimeFault("the runtime handed over no terminal")
        os.set_inheritable(fds[0], False)
        if min(self._size) > 0:
            fcntl.ioctl(fds[0], termios.TIOCSWINSZ, struct.pack("HHHH", *self._size, 0, 0))
        return fds[0]

    def close(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            self._coming.add_done_callback(_drop_terminal)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _drop_terminal(coming: asyncio.Task[int]) -> None:
    if not coming.cancelled() and coming.exception() is None:
        os.close(coming.result())
