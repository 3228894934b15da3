"""Connects this process's terminal with the one that a container's function has opened: see `cadenza.runner.terminal`.

Run as a program of its own, by its source (``python3 -c``), so that it needs nothing but the image's Python.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import termios
import tty

PIECE_BYTES = 1 << 16


def connect(path: str) -> tuple[socket.socket, int]:
    """The connection to the function's process, and the controlling side of its terminal."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
    if not fds:
        raise OSError("no terminal came")
    return connection, fds[0]


def copy(connection: socket.socket, terminal: int) -> None:
    """Bytes in both directions, until either side has had enough."""
    own = termios.tcgetattr(0)

    def resize(*_: object) -> None:
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        except OSError:
            pass

    signal.signal(signal.SIGWINCH, resize)
    resize()
    tty.setraw(0)
    connection.send(b"k")
    try:
        while True:
            ready = select.select([0, terminal, connection.fileno()], [], [])[0]
            if terminal in ready:
                try:
                    data = os.read(terminal, PIECE_BYTES)
                except OSError:  # EIO: nobody has the other side open any more
                    return
                write(1, data)
            elif connection.fileno() in ready:
                return  # the function is done with it, and all that it printed was read
            if 0 in ready:
                data = os.read(0, PIECE_BYTES)
                if not data:
                    return
                write(terminal, data)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, own)


def write(fd: int, data: bytes) -> None:
    """All of it."""
    while data:
        data = data[os.write(fd, data) :]


def main() -> int:
    """Its exit code."""
    path = "/tmp/.cadenza-terminal-" + os.environ.get("CADENZA_TASK_ID", "") + "/s"
    try:
        connection, terminal = connect(path)
    except OSError as error:
        sys.stderr.write("The function does not wait for a terminal any more (" + str(error) + ").\n")
        return 1
    try:
        copy(connection, terminal)
    except OSError:
        pass  # this side's terminal is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
