"""Containers as a client sees them: list, stop, and a command run inside one with its streams."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional

from cadenza.base.errors import InvalidError
from cadenza.control.calls import Calls
from cadenza.control.request import Request
from cadenza.protocol.frame import CHUNK_BYTES
from cadenza.protocol.methods import (
    ContainerExec,
    ContainerList,
    Containers as ContainersReply,
    ContainerStop,
    Empty,
    ExecInput,
    ExecOutput,
)
from cadenza.protocol.nodes import Exec, Node

MAX_UNSENT_BYTES = 4 << 20
"""Output of a command that its reader does not take: beyond this the command waits, until half of it is taken."""


class Containers:
    """Handlers of ``container.*``."""

    def __init__(self, calls: Calls, node: Callable[[], Node], app_id: Callable[[str], str]) -> None:
        self._calls = calls
        self._node = node
        self._app_id = app_id

    async def list(self, request: Request[ContainerList]) -> ContainersReply:
        app = request.body.app
        return ContainersReply(tuple(self._calls.containers(self._app_id(app) if app else "")))

    async def stop(self, request: Request[ContainerStop]) -> Empty:
        self._calls.stop_container(request.body.container_id, request.body.graceful)
        return Empty()

    async def exec(self, request: Request[ContainerExec]) -> None:
        body = request.body
        if not body.argv or not body.argv[0]:
            raise InvalidError("a command needs at least its program's name")
        output: list[tuple[int, bytes]] = []
        wake = asyncio.Event()
        unsent = 0
        paused = False
        command: Optional[Exec] = None

        def on_output(fd: int, data: bytes) -> None:
            nonlocal unsent, paused
            if data:
                unsent += len(data)
                output.append((fd, data))
                wake.set()
                if unsent > MAX_UNSENT_BYTES and not paused and command is not None:
                    paused = True
                    command.pause()

        size = (body.rows, body.columns) if body.pty else (0, 0)
        command = await self._node().exec(body.container_id, body.argv, body.pty, on_output, *size)
        loop = asyncio.get_running_loop()
        reader = loop.create_task(_feed(request, command))
        waiter = loop.create_task(command.wait())
        waiter.add_done_callback(lambda task: wake.set())
        try:
            while True:
                if output:
                    fd, data = output.pop(0)
                    while output and output[0][0] == fd and len(data) + len(output[0][1]) <= CHUNK_BYTES:
                        data += output.pop(0)[1]
                    unsent -= len(data)
                    for start in range(0, len(data), CHUNK_BYTES):
                        await request.send(ExecOutput(fd), (data[start : start + CHUNK_BYTES],))
                    if paused and unsent <= MAX_UNSENT_BYTES // 2:
                        paused = False
                        command.resume()
                    continue
                if waiter.done():
                    await request.send(ExecOutput(exit_code=waiter.result()))
                    return
                wake.clear()
                await wake.wait()
        finally:
            reader.cancel()
            if not waiter.done():
                command.kill()
                waiter.cancel()


async def _feed(request: Request[ContainerExec], command: Exec) -> None:
    """The client's items to the command, until it has no more."""
    while True:
        got = await request.receive()
        if got is None:
            command.close_stdin()
            return
        item: ExecInput = got[0]
        if got[1]:
            command.write(got[1])
            await command.drain()
        if item.rows > 0 and item.columns > 0:
            command.resize(item.rows, item.columns)
        if item.eof:
            command.close_stdin()


def handlers(containers: Containers) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "container.list": containers.list,
        "container.stop": containers.stop,
        "container.exec": containers.exec,
    }
