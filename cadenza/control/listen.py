"""Listening on unix sockets that only this user can reach."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from typing import Callable

from cadenza.base.errors import InvalidError
from cadenza.observe.log import Log

ACCEPT_PAUSE_S = 0.5
"""How long to wait before accepting again when the process or the machine has no room for a connection."""
ACCEPTS_A_TURN = 64
BACKLOG = 1024

_log = Log("cadenza.control.listen")
_PEERCRED = struct.Struct("3i")


def listen_private(path: str) -> socket.socket:
    """A listening unix socket that only this user can reach. InvalidError when its directory is not private."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.stat(directory)
    if found.st_uid != os.getuid():
        raise InvalidError(
            f"{directory} belongs to user {found.st_uid}: set CADENZA_RUNTIME_DIR to a directory of yours"
        )
    if found.st_mode & 0o077:  # perhaps a directory that others need: it is not ours to close
        raise InvalidError(f"others may enter {directory}: `chmod 700` it, or set CADENZA_RUNTIME_DIR to another one")
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)  # left by a server that was killed; the lock says that none is alive
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise InvalidError(f"cannot listen on {path}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def accept_each(listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
    """Call ``accepted`` for each connection that arrives, for as long as the running loop watches ``listener``."""
    loop = asyncio.get_running_loop()

    def ready() -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.warning("cannot accept", error=error.strerror)
                    loop.remove_reader(listener)
                    loop.call_later(ACCEPT_PAUSE_S, resume)
                    return
                raise
            accepted(sock)

    def resume() -> None:
        if listener.fileno() >= 0:
            loop.add_reader(listener, ready)

    resume()


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    return int(_PEERCRED.unpack(raw)[1])


def peer_process(sock: socket.socket) -> int:
    """A pidfd of the process that connected, readable once it has ended; -1 when it has, or cannot be seen."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid = _PEERCRED.unpack(raw)[0]
    if pid <= 0:
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def same_user(sock: socket.socket) -> bool:
    """Whether the other end is this user or root."""
    return peer_uid(sock) in (os.getuid(), 0)
