"""The ``process`` driver: plain processes of this user on this machine. No isolation whatever.

The last resort, for machines where nothing better runs, and always labelled as such. It ignores the root file system,
mounts, hostname and network of a `ContainerConfig`; programs see the machine as the agent's user does. What it keeps of
a container is the life cycle: one session each, limits where this user may make cgroups, and an end that reaches every
descendant, also those that forked away: by cgroup, else by session, parent and a mark in the environment.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import struct
import termios
import time
from typing import Optional

from cadenza.base.errors import AlreadyExistsError, InvalidError, NotFoundError
from cadenza.runtime.cgroup import KILL_LIMIT_S, Cgroup, Hierarchy
from cadenza.runtime.driver import Command, ContainerConfig, Execution, Exit, Limits, RuntimeFault, Stats, Stdio
from cadenza.runtime.launcher import Child, Launcher, Program, reap
from cadenza.runtime.spec import DEFAULT_PATH, check, check_command

CGROUP_PARENT = "cadenza"
MARK = "CADENZA_PROCESS_CONTAINER"
"""Environment variable that all processes of a container carry unless they take pains to drop it."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def stat_fields(pid: int) -> Optional[list[str]]:
    """The fields of /proc/PID/stat from the third, the state, on (proc_pid_stat(5)); None if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2].split()
    except OSError:
        return None


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def members(first: int, container_id: str) -> list[int]:
    """Live processes that belong to a container: of the session ``first``, marked, or descended from such."""
    mark = f"{MARK}={container_id}".encode()
    found: set[int] = set()
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        fields = stat_fields(pid)
        if fields is None or fields[0] in "ZX":
            continue
        parents[pid] = int(fields[1])
        if pid == first or int(fields[3]) == first or _has_mark(pid, mark):
            found.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return sorted(found - {os.getpid()})


def measure(first: int, container_id: str) -> Stats:
    """What the members use now, without cgroups: pages that several of them share are counted for each."""
    memory, ticks = 0, 0
    pids = members(first, container_id)
    for pid in pids:
        fields = stat_fields(pid)
        if fields is not None:
            ticks += int(fields[11]) + int(fields[12])
            memory += int(fields[21]) * _PAGE
    return Stats(memory, ticks / _TICKS, len(pids))


class _Container:
    def __init__(self, container_id: str, folder: str, cgroup: Cgroup) -> None:
        self.id = container_id
        self.folder = folder
        self.cgroup = cgroup
        self.child: Optional[Child] = None
        self.oom = False

    def at_end(self, end: Exit) -> None:
        self.oom = self.cgroup.oom()

    async def wait(self) -> Exit:
        assert self.child is not None
        end = await self.child.wait()
        return Exit(end.code, end.signal, self.oom)


class ProcessExecution:
    """One more program of a container."""

    def __init__(self, child: Child, pty_fd: int) -> None:
        self.pid = child.pid
        self.pty_fd = pty_fd
        self._child = child

    async def signal(self, signum: int) -> None:
        self._child.signal(signum)

    async def wait(self) -> Exit:
        return await self._child.wait()


class ProcessDriver:
    """See `cadenza.runtime.driver.Driver`, and this module for what it does not do."""

    name = "process"

    def __init__(self, state_dir: str, launcher: Launcher, hierarchy: Hierarchy) -> None:
        self._state_dir = os.path.join(state_dir, self.name)
        self._launcher = launcher
        self._hierarchy = hierarchy
        self._containers: dict[str, _Container] = {}
        os.makedirs(self._state_dir, mode=0o700, exist_ok=True)
        self._adopt()

    async def start(self, config: ContainerConfig, bundle: str, stdio: Stdio) -> int:
        check(config)
        if config.container_id in self._containers:
            raise AlreadyExistsError(f"container {config.container_id} exists")
        container = self._make(config.container_id)
        try:
            os.makedirs(container.folder, mode=0o700, exist_ok=True)
            container.cgroup.create(config.limits)
            command = Command(config.argv, config.env, config.cwd)
            async with self._launcher.gate:
                child = await self._spawn(container, command, stdio, "")
            container.child = child
            child.at_end = container.at_end
            fields = stat_fields(child.pid) or ["Z"] * 20
            with open(os.path.join(container.folder, "record.json"), "w") as file:
                json.dump({"pid": child.pid, "since_ticks": fields[19]}, file)
            return child.pid
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._erase(container)))
            raise

    async def wait(self, container_id: str) -> Exit:
        return await self._get(container_id).wait()

    async def signal(self, container_id: str, signum: int) -> None:
        container = self._containers.get(container_id)
        if container is None or container.child is None or container.child.ended:
            return
        if signum == signal.SIGKILL:
            await self._kill(container)
        else:
            container.child.signal(signum)

    async def exec(self, container_id: str, command: Command, stdio: Stdio) -> Execution:
        container = self._get(container_id)
        if container.child is None or container.child.ended:
            raise NotFoundError(f"container {container_id} is not running")
        if not command.pty:
            return ProcessExecution(await self._spawn(container, command, stdio, ""), -1)
        ours, theirs = os.openpty()
        if command.rows > 0 and command.columns > 0:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", command.rows, command.columns, 0, 0))
        try:
            child = await self._spawn(container, command, Stdio(), os.ttyname(theirs))
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return ProcessExecution(child, ours)

    async def delete(self, container_id: str) -> None:
        container = self._containers.get(container_id)
        if container is not None:
            await self._erase(container)

    async def stats(self, container_id: str) -> Stats:
        container = self._get(container_id)
        counted = container.cgroup.stats()
        if counted is not None and counted.pids:
            return counted
        return await asyncio.to_thread(measure, container.child.pid if container.child else 0, container_id)

    async def update(self, container_id: str, limits: Limits) -> None:
        container = self._get(container_id)
        try:
            container.cgroup.update(limits)
        except OSError as error:
            raise RuntimeFault(f"cannot change the limits of {container_id}: {error.strerror}", str(error)) from error

    async def list(self) -> dict[str, Optional[int]]:
        return {
            name: None if container.child is None or container.child.ended else container.child.pid
            for name, container in self._containers.items()
        }

    # Inside.

    def _get(self, container_id: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None or container.child is None:
            raise NotFoundError(f"no container {container_id}")
        return container

    def _make(self, container_id: str) -> _Container:
        folder = os.path.join(self._state_dir, container_id)
        container = _Container(container_id, folder, Cgroup(self._hierarchy, f"{CGROUP_PARENT}/{container_id}"))
        self._containers[container_id] = container
        return container

    def _adopt(self) -> None:
        for name in os.listdir(self._state_dir):
            container = self._make(name)
            container.child = Child.gone()
            try:
                with open(os.path.join(container.folder, "record.json")) as file:
                    record = json.load(file)
                pid, since = int(record["pid"]), str(record["since_ticks"])
                fields = stat_fields(pid)
                # The start time tells our process from a later one that was given the same number.
                if fields is not None and fields[19] == since:
                    container.child = Child(pid)
                    container.child.at_end = container.at_end
            except (OSError, ValueError, KeyError):
                pass

    async def _spawn(self, container: _Container, command: Command, stdio: Stdio, terminal: str) -> Child:
        check_command(command.argv, command.env, command.cwd)
        env = {"PATH": DEFAULT_PATH, **command.env, MARK: container.id}
        path = shutil.which(command.argv[0], path=env["PATH"])
        if path is None:
            raise InvalidError(f"the container's program cannot be run: no executable {command.argv[0]!r} in PATH")
        if not os.path.isdir(command.cwd):
            raise InvalidError(f"the container's program cannot be run: no directory {command.cwd!r}")
        program = Program(
            path=os.path.abspath(path),
            argv=command.argv,
            env=env,
            stdio=stdio,
            join=container.cgroup.procs_files(),
            cwd=command.cwd,
            terminal=terminal,
            private_mounts=False,
        )
        return await self._launcher.spawn(program)

    async def _kill(self, container: _Container) -> None:
        seen = list(await container.cgroup.kill())
        first = container.child.pid if container.child is not None else 0
        deadline = time.monotonic() + KILL_LIMIT_S
        # Also with a cgroup: the first moments of a program are outside it.
        while pids := await asyncio.to_thread(members, first or -1, container.id):
            seen += pids
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() > deadline:
                raise RuntimeFault(f"the kernel does not let go of processes {pids[:5]}")
            await asyncio.sleep(0.002)
        if container.child is not None:
            await container.child.wait()
        reap([pid for pid in dict.fromkeys(seen) if pid not in Child.watched])

    async def _erase(self, container: _Container) -> None:
        await self._kill(container)
        await container.cgroup.erase()
        await asyncio.to_thread(shutil.rmtree, container.folder, True)
        self._containers.pop(container.id, None)
