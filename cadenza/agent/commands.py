"""A command that runs inside a container: what `Node.exec` gives."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
from typing import Callable, Mapping, Optional, Sequence

from cadenza.agent.pipes import PIECE_BYTES, Pipe
from cadenza.runtime.driver import Command, Driver, Execution, Stdio

INPUT_QUEUED_BYTES = 1 << 20
"""While more than this waits for a command that does not read, `Running.drain` waits too."""
LAST_WORDS_LIMIT_S = 0.5


class Running:
    """Implements `cadenza.protocol.nodes.Exec`. ``output(fd, data)`` gets what it prints; a terminal's is fd 1."""

    def __init__(self, output: Callable[[int, bytes], None]) -> None:
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._execution: Optional[Execution] = None
        self._pipes: list[Pipe] = []
        self._stdin = -1
        self._terminal = -1
        self._queued = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._paused = False
        self._ended = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()

    async def start(
        self, driver: Driver, cell_id: str, argv: Sequence[str], env: Mapping[str, str], cwd: str, pty: bool,
        rows: int = 0, columns: int = 0,
    ) -> None:  # fmt: skip
        """Run it, on a terminal of this size if it has one. NotFoundError when the container does not run."""
        command = Command(tuple(argv), dict(env), cwd, pty, rows, columns)
        if pty:
            self._execution = await driver.exec(cell_id, command, Stdio())
            self._terminal = self._stdin = os.dup(self._execution.pty_fd)
            os.close(self._execution.pty_fd)
            os.set_blocking(self._terminal, False)
            if rows > 0 and columns > 0:
                self.resize(rows, columns)  # of runtimes that do not do it themselves
            self._loop.add_reader(self._terminal, self._read_terminal)
            return
        reader, self._stdin = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stdin, False)
        self._pipes = [Pipe(lambda data: self._output(1, data)), Pipe(lambda data: self._output(2, data))]
        try:
            stdio = Stdio(reader, self._pipes[0].writer, self._pipes[1].writer)
            self._execution = await driver.exec(cell_id, command, stdio)
        except BaseException:
            self._close()
            raise
        finally:
            os.close(reader)
            for pipe in self._pipes:
                pipe.close_writer()

    def _read_terminal(self) -> None:
        try:
            data = os.read(self._terminal, PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side is closed
            data = b""
        if data:
            self._output(1, data)
        else:
            self._loop.remove_reader(self._terminal)
            self._ended.set()

    def write(self, data: bytes) -> None:
        """To its standard input; `drain` before more. Nothing happens once that is closed."""
        if self._stdin >= 0:
            self._queued += data
            self._flush()

    async def drain(self) -> None:
        """Until there is room for more input: the command has read most of it, or reads no more."""
        await self._room.wait()

    def _flush(self) -> None:
        try:
            while self._queued:
                done = os.write(self._stdin, self._queued)
                del self._queued[:done]
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._flush)
            if len(self._queued) > INPUT_QUEUED_BYTES:
                self._room.clear()
            else:
                self._room.set()
            return
        except OSError:
            self._queued.clear()
        self._room.set()
        self._loop.remove_writer(self._stdin)
        if self._closing and self._stdin != self._terminal:
            os.close(self._stdin)
            self._stdin = -1

    def close_stdin(self) -> None:
        """No more input: end of file once what waits is read. On a terminal: the end-of-file character."""
        if self._stdin < 0 or self._closing:
            return
        if self._stdin == self._terminal:
            self.write(b"\x04")
            return
        self._closing = True
        self._flush()

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's new size. Nothing happens without one."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def pause(self) -> None:
        """Take no more of its output for now: the command waits once its pipe is full."""
        self._paused = True
        for pipe in self._pipes:
            pipe.pause()
        if self._terminal >= 0:
            self._loop.remove_reader(self._terminal)

    def resume(self) -> None:
        """Take its output again."""
        if not self._paused:
            return
        self._paused = False
        for pipe in self._pipes:
            pipe.resume()
        if self._terminal >= 0 and not self._ended.is_set():
            self._loop.add_reader(self._terminal, self._read_terminal)

    def kill(self) -> None:
        """SIGKILL."""
        if self._execution is not None:
            task = self._loop.create_task(self._execution.signal(signal.SIGKILL))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def wait(self) -> int:
        """The exit code, once it has ended and its output was given; 128 + n for signal n."""
        assert self._execution is not None
        ended = await self._execution.wait()
        self.resume()  # there is no more than a pipe holds
        waits = [self._loop.create_task(one.drained.wait()) for one in self._pipes]
        if self._terminal >= 0:
            waits.append(self._loop.create_task(self._ended.wait()))
        if waits:
            _, late = await asyncio.wait(waits, timeout=LAST_WORDS_LIMIT_S)
            for one in late:
                one.cancel()
        self._close()
        return ended.code

    def _close(self) -> None:
        for pipe in self._pipes:
            pipe.finish()
        if self._terminal >= 0:
            self._loop.remove_reader(self._terminal)
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
        self._stdin = self._terminal = -1
        self._room.set()
