"""The unix sockets in a container's support directory, and who comes through them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import Callable, Container, Optional

RUNNER, CLIENT, LANE = "runner.sock", "client.sock", "lane.sock"
BACKLOG = 64
RETRY_S = 0.2
"""How long nobody is let in after descriptors or memory ran short."""
_CREDENTIALS = struct.Struct("3i")


class Door:
    """One listening socket at ``directory/name``. ``entered(sock)`` gets every connection, set non-blocking.

    ``uids``: whose processes may enter, as this machine numbers them; this process's own may always (gVisor connects
    for its container as whoever started it). None: all who can get into the directory, which is closed to others.
    Bound through the directory's descriptor, so that a long path does not meet the kernel's limit of 108 bytes.
    """

    def __init__(
        self,
        directory: str,
        name: str,
        entered: Callable[[socket.socket], None],
        uids: Optional[Container[int]] = None,
    ) -> None:
        self._entered = entered
        self._uids = uids
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{name}")
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(folder)
        os.chmod(os.path.join(directory, name), 0o666)  # whoever may enter the directory may connect
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._loop = asyncio.get_running_loop()
        self._listen()

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                sock, _address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.remove_reader(self._socket.fileno())  # else the loop would spin: who waits is kept
                    self._loop.call_later(RETRY_S, self._listen)
                return
            if not self._welcome(sock):
                sock.close()
                continue
            sock.setblocking(False)
            self._entered(sock)

    def _welcome(self, sock: socket.socket) -> bool:
        if self._uids is None:
            return True
        _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return uid == os.geteuid() or uid in self._uids

    def close(self) -> None:
        """Stop listening. The socket's file goes with its directory."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
