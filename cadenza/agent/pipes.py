"""A container's raw standard output and error: what C code and subprocesses write, in pieces of up to 64 KiB."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import Callable

PIECE_BYTES = 64 << 10
PIECES_A_TURN = 16
"""How many pieces one pipe may give before others have their turn."""
F_SETPIPE_SZ = 1031
TAIL_BYTES = 2000


class Pipe:
    """One pipe whose writing end goes to a program. ``output(data)`` gets what comes; `drained` is set at its end."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self.drained = asyncio.Event()
        self.tail = b""
        """The last bytes that came: for the message when a start fails."""
        os.set_blocking(self._reader, False)
        try:
            fcntl.fcntl(self._reader, F_SETPIPE_SZ, PIECE_BYTES * 4)
        except OSError:
            pass  # over an ordinary user's limit: the default size will do
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> None:
        for _ in range(PIECES_A_TURN):
            try:
                data = os.read(self._reader, PIECE_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            self.tail = (self.tail + data)[-TAIL_BYTES:]
            self._output(data)

    def pause(self) -> None:
        """Read no more until `resume`: the program waits once the pipe is full."""
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)

    def resume(self) -> None:
        """Read again."""
        if self._reader >= 0:
            self._loop.add_reader(self._reader, self._read)

    def close_writer(self) -> None:
        """Close our copy of the writing end, once the program has its own."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def finish(self) -> None:
        """Take what is in the pipe now, and close: for when a stray process still holds the other end."""
        if self._reader >= 0:
            self._read()
        self.close()

    def close(self) -> None:
        """Stop reading and close both ends."""
        self.close_writer()
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
        self.drained.set()
