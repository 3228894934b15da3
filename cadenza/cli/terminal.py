"""A command in a container with this terminal as its own: raw mode, window size, end of input, exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from cadenza.cli.connection import client
from cadenza.protocol import methods
from cadenza.protocol.plain import from_plain, to_plain
from cadenza.sdk import _dual

READ_BYTES = 64 << 10


def run_in_container(request: methods.ContainerExec) -> int:
    """Run it, with standard input, output and error passed on; its exit code. NotFoundError, PermissionDeniedError."""
    raw = request.pty and sys.stdin.isatty()
    saved: Any = None
    streams: list[Any] = []
    if request.pty:
        loop = _dual.background_loop()

        def resized(signum: int, frame: Any) -> None:
            asyncio.run_coroutine_threadsafe(_tell_size(streams), loop)

        signal.signal(signal.SIGWINCH, resized)
    if raw:
        import termios
        import tty

        saved = termios.tcgetattr(0)
        tty.setraw(0)
    try:
        return _dual.run(_exec(request, streams))
    finally:
        if saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, saved)


async def _exec(request: methods.ContainerExec, streams: list[Any]) -> int:
    stream = await (await client(start=False))._stream("container.exec", request)
    streams.append(stream)
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
        streams.clear()
        stream.cancel()


def _pump_stdin(loop: asyncio.AbstractEventLoop, typed: asyncio.Queue[bytes]) -> Any:
    """Read standard input in a thread of its own: files, pipes and terminals alike."""
    import select
    import threading

    wake_read, wake_write = os.pipe()

    def pump() -> None:
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
        os.write(wake_write, b"x")

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
