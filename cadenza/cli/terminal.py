"""A command in a container with this terminal as its own: raw mode, window size, end of input, exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Any

from cadenza.cli.connection import client
from cadenza.protocol import methods
from cadenza.protocol.plain import from_plain, to_plain
from cadenza.sdk import _dual

READ_BYTES = 64 << 10


TIMED_OUT = 124
"""The exit code of a command whose time was over, as of coreutils' timeout."""

_streams: list[Any] = []
"""The command that this terminal is connected with, if any."""


def has_terminal() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def command(container_id: str, argv: tuple[str, ...], pty: bool | None) -> methods.ContainerExec:
    """What the server is asked; ``pty`` None: with a terminal when there is one here."""
    if pty is None:
        pty = has_terminal()
    rows, columns = 24, 80
    if pty and sys.stdout.isatty():
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return methods.ContainerExec(container_id, argv, pty, rows, columns)


def watch_size() -> None:
    """From now on a new size of this terminal is told to the command. To be called in the main thread."""
    loop = _dual.background_loop()

    def resized(signum: int, frame: Any) -> None:
        asyncio.run_coroutine_threadsafe(_tell_size(_streams), loop)

    signal.signal(signal.SIGWINCH, resized)


def run_in_container(request: methods.ContainerExec, limit_s: float | None = None) -> int:
    """Run it, with standard input, output and error passed on; its exit code. NotFoundError, PermissionDeniedError.

    ``limit_s``: it is ended after so long, and the exit code is `TIMED_OUT`. May be called in any thread; the size of
    the terminal follows only after `watch_size`.
    """
    raw = request.pty and sys.stdin.isatty()
    saved: Any = None
    if request.pty and threading.current_thread() is threading.main_thread():
        watch_size()
    if raw:
        import termios
        import tty

        saved = termios.tcgetattr(0)
        tty.setraw(0)
    try:
        return _dual.run(_limited(request, limit_s))
    finally:
        if saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, saved)


async def _limited(request: methods.ContainerExec, limit_s: float | None) -> int:
    try:
        return await asyncio.wait_for(_exec(request), limit_s)
    except asyncio.TimeoutError:
        return TIMED_OUT


async def _exec(request: methods.ContainerExec) -> int:
    stream = await (await client(start=False))._stream("container.exec", request)
    _streams.append(stream)
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)
    stop_reading = _pump_stdin(loop, typed)
    sending = asyncio.create_task(_send(stream, typed))
    try:
        while True:
            item = await stream.receive()
            if item is None:
                return 1
            output = from_plain(methods.ExecOutput, item[0])
            if item[1]:
                await loop.run_in_executor(None, _write_all, 2 if output.fd == 2 else 1, item[1])
            if output.exit_code is not None:
                return int(output.exit_code)
    finally:
        sending.cancel()
        stop_reading()
        _streams.clear()
        stream.cancel()


def _pump_stdin(loop: asyncio.AbstractEventLoop, typed: asyncio.Queue[bytes]) -> Any:
    """Read standard input in a thread of its own: files, pipes and terminals alike."""
    import select

    wake_read, wake_write = os.pipe()

    def pump() -> None:
        try:
            copy()
        finally:
            os.close(wake_read)

    def copy() -> None:
        while True:
            ready, _, _ = select.select([0, wake_read], [], [])
            if wake_read in ready:
                return
            try:
                data = os.read(0, READ_BYTES)
            except OSError:
                data = b""
            try:
                asyncio.run_coroutine_threadsafe(typed.put(data), loop).result()
            except Exception as error:
                del error  # the loop is gone: nobody reads any more
                return
            if not data:
                return

    threading.Thread(target=pump, name="stdin", daemon=True).start()

    def stop() -> None:
        os.close(wake_write)  # which the thread sees as something to read
        while not typed.empty():
            typed.get_nowait()  # it may wait for room

    return stop


async def _send(stream: Any, typed: asyncio.Queue[bytes]) -> None:
    while True:
        data = await typed.get()
        if not data:
            await stream.send(to_plain(methods.ExecInput(eof=True)))
            return
        await stream.send(to_plain(methods.ExecInput()), (data,))


async def _tell_size(streams: list[Any]) -> None:
    try:
        columns, rows = os.get_terminal_size(1)
    except OSError:
        return
    for stream in streams:
        await stream.send(to_plain(methods.ExecInput(rows=rows, columns=columns)))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
