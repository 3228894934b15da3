"""`FakeDriver`: the twin in memory, for tests of what stands on a `Driver`.

A container's "processes" are coroutines. Programs are looked up by their path in ``FakeMachine.programs``; a few are
there: ``/bin/sh -c`` with the handful of words below, ``/bin/sleep`` and ``/bin/echo``. A test adds its own, for
instance a runner that speaks on a socket. Faults are ordered with `FakeMachine.fail_next`.

The machine outlives its drivers, as the real one does: give it to a second `FakeDriver` to play an agent's restart.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from typing import Awaitable, Callable, Optional

from cadenza.base.errors import AlreadyExistsError, InvalidError, NotFoundError
from cadenza.runtime.driver import Command, ContainerConfig, Execution, Exit, Limits, RuntimeFault, Stats, Stdio
from cadenza.runtime.spec import check, check_command


@dataclass
class FakeProcess:
    """What a program sees of itself."""

    pid: int
    command: Command
    config: ContainerConfig
    out: Callable[[int, bytes], None]
    """``out(fd, data)`` writes to its stdout (1) or stderr (2)."""
    traps: dict[int, int] = field(default_factory=dict)
    """Signals it handles, with the exit code that each leads to."""
    ended: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    task: Optional[asyncio.Task[None]] = None

    def end(self, exit_: Exit) -> None:
        if not self.ended.done():
            self.ended.set_result(exit_)
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def signal(self, signum: int) -> None:
        if signum in self.traps:
            self.end(Exit(self.traps[signum]))
        elif signum == signal.SIGKILL:
            self.end(Exit(128 + signum, signum))


FakeProgram = Callable[[FakeProcess], Awaitable[int]]
"""Runs to its exit code. It is cancelled when the process is killed."""


async def _sleep(process: FakeProcess) -> int:
    await asyncio.sleep(float(process.command.argv[1]))
    return 0


async def _echo(process: FakeProcess) -> int:
    process.out(1, " ".join(process.command.argv[1:]).encode() + b"\n")
    return 0


async def _shell(process: FakeProcess) -> int:
    """Knows exit, sleep, echo (also to stderr), pwd, stty size, trap 'exit N', wait, ``test -t 0 && echo terminal`` and
    $NAME."""
    script = process.command.argv[2]
    background = 0.0
    for part in re.split(r";|(?<=[^>&])&(?![\d&])", script):
        words = [
            re.sub(r"\$(\w+)", lambda found: process.command.env.get(found[1], ""), word) for word in shlex.split(part)
        ]
        if not words:
            continue
        name, rest = words[0], words[1:]
        if name == "exit":
            return int(rest[0])
        if name == "sleep":
            if f"sleep {rest[0]} &" in script:
                background = float(rest[0])
            else:
                await asyncio.sleep(float(rest[0]))
        elif name == "wait":
            await asyncio.sleep(background)
        elif name == "echo":
            fd = 2 if ">&2" in rest else 1
            process.out(fd, " ".join(word for word in rest if word != ">&2").encode() + b"\n")
        elif name == "pwd":
            process.out(1, process.command.cwd.encode() + b"\n")
        elif words == ["test", "-t", "0", "&&", "echo", "terminal"]:
            process.out(1, b"terminal\n" if process.command.pty else b"")
        elif words == ["stty", "size"]:
            process.out(1, b"%d %d\n" % (process.command.rows, process.command.columns))
        elif name == "trap":
            process.traps[getattr(signal, "SIG" + rest[1])] = int(rest[0].split()[1])
        else:
            raise AssertionError(f"the fake shell does not know {part!r}")
    return 0


@dataclass
class _Container:
    config: ContainerConfig
    processes: list[FakeProcess]
    limits: Limits
    oom: bool = False


class FakeMachine:
    """What lives on between drivers: containers, programs, faults on order."""

    def __init__(self) -> None:
        self.programs: dict[str, FakeProgram] = {"/bin/sh": _shell, "/bin/sleep": _sleep, "/bin/echo": _echo}
        self.containers: dict[str, _Container] = {}
        self._faults: list[str] = []
        self._next_pid = 1000

    def fail_next(self, message: str) -> None:
        """The next start is a RuntimeFault."""
        self._faults.append(message)

    def crash(self, container_id: str, exit_: Exit) -> None:
        """The first process ends, now, like this."""
        container = self.containers[container_id]
        container.oom = exit_.oom
        container.processes[0].end(Exit(exit_.code, exit_.signal, exit_.oom, exit_.fault))

    def take_fault(self) -> str:
        return self._faults.pop(0) if self._faults else ""

    def spawn(
        self, config: ContainerConfig, command: Command, stdio: Stdio, pty_fd: int = -1
    ) -> tuple[FakeProcess, FakeProgram]:
        check_command(command.argv, command.env, command.cwd)
        program = self.programs.get(command.argv[0])
        if program is None:
            raise InvalidError(f"the container's program cannot be run: no executable {command.argv[0]!r}")
        self._next_pid += 1

        def out(fd: int, data: bytes) -> None:
            target = pty_fd if pty_fd >= 0 else (stdio.stdout if fd == 1 else stdio.stderr)
            if target >= 0:
                os.write(target, data)

        return FakeProcess(self._next_pid, command, config, out), program


async def _run(process: FakeProcess, program: FakeProgram, finish: Callable[[], None]) -> None:
    try:
        code = await program(process)
        if not process.ended.done():
            process.ended.set_result(Exit(code))
    finally:
        finish()


class FakeExecution:
    """One more program of a fake container."""

    def __init__(self, process: FakeProcess, pty_fd: int) -> None:
        self.pid = process.pid
        self.pty_fd = pty_fd
        self._process = process

    async def signal(self, signum: int) -> None:
        self._process.signal(signum)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._process.ended)


class FakeDriver:
    """See `cadenza.runtime.driver.Driver`."""

    name = "fake"

    def __init__(self, machine: Optional[FakeMachine] = None) -> None:
        self.machine = machine or FakeMachine()

    async def start(self, config: ContainerConfig, bundle: str, stdio: Stdio) -> int:
        check(config)
        if config.container_id in self.machine.containers:
            raise AlreadyExistsError(f"container {config.container_id} exists")
        fault = self.machine.take_fault()
        if fault:
            raise RuntimeFault(fault)
        process, program = self.machine.spawn(config, Command(config.argv, config.env, config.cwd), stdio)
        self.machine.containers[config.container_id] = _Container(config, [process], config.limits)
        process.task = asyncio.ensure_future(_run(process, program, lambda: None))
        # A namespace's first process takes its children with it.
        process.ended.add_done_callback(lambda _: self._end_others(config.container_id))
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await self.delete(config.container_id)
            raise
        return process.pid

    async def wait(self, container_id: str) -> Exit:
        return await asyncio.shield(self._get(container_id).processes[0].ended)

    async def signal(self, container_id: str, signum: int) -> None:
        container = self.machine.containers.get(container_id)
        if container is None:
            return
        if signum == signal.SIGKILL:
            for process in container.processes:
                process.signal(signum)
        else:
            container.processes[0].signal(signum)

    async def exec(self, container_id: str, command: Command, stdio: Stdio) -> Execution:
        container = self._get(container_id)
        if container.processes[0].ended.done():
            raise NotFoundError(f"container {container_id} is not running")
        check_command(command.argv, command.env, command.cwd)
        ours, theirs = os.openpty() if command.pty else (-1, -1)
        try:
            process, program = self.machine.spawn(container.config, command, stdio, theirs)
        except InvalidError:
            for fd in (ours, theirs):
                if fd >= 0:
                    os.close(fd)
            raise
        container.processes.append(process)
        finish = (lambda: os.close(theirs)) if command.pty else (lambda: None)
        process.task = asyncio.ensure_future(_run(process, program, finish))
        await asyncio.sleep(0)
        return FakeExecution(process, ours)

    async def delete(self, container_id: str) -> None:
        await self.signal(container_id, signal.SIGKILL)
        self.machine.containers.pop(container_id, None)

    async def stats(self, container_id: str) -> Stats:
        live = [process for process in self._get(container_id).processes if not process.ended.done()]
        return Stats(memory_bytes=len(live) << 20, cpu_s=0.001, pids=len(live))

    async def update(self, container_id: str, limits: Limits) -> None:
        self._get(container_id).limits = limits

    async def list(self) -> dict[str, Optional[int]]:
        return {
            name: None if container.processes[0].ended.done() else container.processes[0].pid
            for name, container in self.machine.containers.items()
        }

    def _get(self, container_id: str) -> _Container:
        container = self.machine.containers.get(container_id)
        if container is None:
            raise NotFoundError(f"no container {container_id}")
        return container

    def _end_others(self, container_id: str) -> None:
        container = self.machine.containers.get(container_id)
        for process in container.processes[1:] if container else ():
            process.end(Exit(128 + signal.SIGKILL, signal.SIGKILL))
