"""Bodies of large values between a connection and a file: a slice at a time, in worker threads that never wait long."""

from __future__ import annotations

import fcntl
import os
import select
import socket

from cadenza.base.errors import InvalidError

SLICE_BYTES = 64 << 20
PATIENCE_S = 0.002
"""A thread gives up a body after so many bytes, or when its peer is not ready for so long: the event loop waits for
peers, threads do not."""
_F_GET_SEALS = 1034


def check_memfd(fd: int, size: int) -> None:
    """InvalidError unless ``fd`` is memory of at least ``size`` bytes: reading any other file could block us."""
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        raise InvalidError("the descriptor is not a memfd") from None
    found = os.fstat(fd).st_size
    if not 0 <= size <= found:
        raise InvalidError(f"the memfd has {found} bytes, not {size}")


def receive_some(sock: socket.socket, fd: int, size: int, buffer: bytearray) -> int:
    """At most ``size`` bytes of a connection into a file: those that come without a pause. How many. Blocks shortly.

    EOFError at the connection's end. ``buffer`` is room to work in.
    """
    most = min(size, SLICE_BYTES)
    view = memoryview(buffer)
    done = 0
    sock.settimeout(PATIENCE_S)
    try:
        while done < most:
            count = sock.recv_into(view[: most - done])
            if not count:
                raise EOFError("the connection ended within a body")
            write(fd, view[:count])
            done += count
    except TimeoutError:
        pass
    finally:
        sock.setblocking(False)
    return done


def send_some(sock: socket.socket, fd: int, start: int, size: int) -> int:
    """Bytes of a file from ``start``, before ``size``, into a connection: as many as its peer takes without a pause.

    EOFError when the file has fewer. Blocks shortly.
    """
    end = min(size, start + SLICE_BYTES)
    at = start
    room = select.poll()
    room.register(sock, select.POLLOUT)
    while at < end:
        try:
            count = os.sendfile(sock.fileno(), fd, at, end - at)
        except BlockingIOError:
            if not room.poll(PATIENCE_S * 1000):
                break
            continue
        if not count:
            raise EOFError("the value is shorter than it was")
        at += count
    return at - start


def write(fd: int, view: memoryview) -> None:
    """All of ``view`` at the position of ``fd``."""
    while view:
        view = view[os.write(fd, view) :]
