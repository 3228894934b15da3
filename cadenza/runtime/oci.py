"""`Driver` over an OCI runtime program: crun, runc, runsc.

Each container has a folder of its own below the driver's state directory: the program's ``--root``, its log, its pid
file and ``record.json``, by which the next agent finds what this one left. Containers start detached; being a
subreaper we get their exit status ourselves, so that no process of the runtime stays behind to watch. Deleting is:
kill the cgroup, remove the folder; the program's own ``delete`` would start one more process to do the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import shutil
import signal
from dataclasses import dataclass
from typing import Any, Optional, Sequence

from cadenza.base.errors import AlreadyExistsError, InvalidError, NotFoundError
from cadenza.runtime import cdi, rootless
from cadenza.runtime.cgroup import KILL_LIMIT_S, Cgroup, Hierarchy
from cadenza.runtime.driver import (
    HOST_NETWORK,
    Command,
    ContainerConfig,
    Execution,
    Exit,
    Limits,
    RuntimeFault,
    Stats,
    Stdio,
)
from cadenza.runtime.launcher import Child, Launcher, Program, dead_children, reap
from cadenza.runtime.process import measure
from cadenza.runtime.spec import DEFAULT_PATH, OPEN_FILES, check_command, exec_process, oci_spec
from cadenza.runtime.terminal import Terminal

CGROUP_PARENT = "cadenza"
START_LIMIT_S = 60.0
COMMAND_LIMIT_S = 20.0
SWEEP_AFTER_S = 1.0
ZOMBIE_WAIT_S = 0.05
"""How long a killed process may take before its zombies are looked for; each time twice as long."""
LOG_TAIL_BYTES = 16 * 1024

# What the programs say when it is the user's program that cannot be run. crun, runc, runsc.
_NO_PROGRAM = (
    "executable file `",
    "executable file not found",
    "no such file or directory",
    "error finding executable",
    "permission denied",
    "exec format error",
    "chdir to",
    "chdir `",
)


@dataclass(frozen=True)
class Dialect:
    """What differs from program to program; pure."""

    name: str
    path: str
    strong: bool = False
    flags: tuple[str, ...] = ()
    """Before the subcommand."""

    leaves: str = ""
    """Process name of the children that it leaves to a subreaper: crun forks twice, gVisor runs /proc/self/exe."""

    @property
    def is_runsc(self) -> bool:
        return os.path.basename(self.path) == "runsc"

    def base(self, folder: str, network: str = "none") -> list[str]:
        """The program and its global flags, for the container whose folder it is."""
        crun = os.path.basename(self.path) == "crun"
        kind = "file:" if crun and ":" in folder else ""  # crun takes what is before a colon for the kind of log
        argv = [self.path, "--root", f"{folder}/root", "--log", f"{kind}{folder}/log.json", "--log-format", "json"]
        if self.is_runsc:
            argv += [f"--panic-log={folder}/panic.log", f"--network={network}", "--ignore-cgroups", "--host-uds=open"]
        elif crun:
            argv += ["--cgroup-manager=disabled"]
        return [*argv, *self.flags]

    def network(self, netns: str) -> str:
        """runsc's ``--network`` for a config's ``netns``."""
        return {"": "none", HOST_NETWORK: "host"}.get(netns, "sandbox")


def crun(path: str) -> Dialect:
    """Leaves cgroups to us."""
    return Dialect("crun", path, leaves="crun")


def runc(path: str) -> Dialect:
    """Insists on joining a cgroup itself: it is told of ours."""
    return Dialect("runc", path)


def runsc(path: str, gvisor_platform: str) -> Dialect:
    """``gvisor_platform``: systrap, ptrace or kvm, as the probe found."""
    return Dialect("runsc", path, strong=True, flags=(f"--platform={gvisor_platform}", "--overlay2=none"), leaves="exe")


def last_error(log: str) -> str:
    """The newest message of a log in JSON lines; what is not JSON counts as a message."""
    message = ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            message = line.strip() or message
            continue
        if isinstance(entry, dict) and entry.get("level", "error") in ("error", "fatal", "warning"):
            message = str(entry.get("msg", "")) or message
    return message


def is_users_fault(message: str) -> bool:
    """Whether a failed start was because of the program asked for, not of the machine; pure."""
    lowered = message.lower()
    about_a_program = "exec" in lowered or "failed to load" in lowered
    return (about_a_program and any(words in lowered for words in _NO_PROGRAM)) or "chdir" in lowered


class _Container:
    def __init__(self, container_id: str, folder: str, bundle: str, cgroup: Cgroup) -> None:
        self.id = container_id
        self.folder = folder
        self.bundle = bundle
        self.cgroup = cgroup
        self.child: Optional[Child] = None
        self.oom = False
        self.killed = False
        self.starting = False
        self.fault = ""
        self.execs = 0

    def at_end(self, end: Exit) -> None:
        """While the cgroup still stands, learn why."""
        self.oom = self.cgroup.oom()
        panic = _tail(os.path.join(self.folder, "panic.log"))
        if panic and not self.oom and not self.killed:
            self.fault = panic.splitlines()[0][:300]

    async def wait(self) -> Exit:
        assert self.child is not None
        end = await self.child.wait()
        return Exit(end.code, end.signal, self.oom, self.fault)


class OciExecution:
    """One more program in a container."""

    def __init__(self, child: Child, pty_fd: int, driver: OciDriver, container: _Container, inner_pid: int) -> None:
        self.pid = child.pid
        self.pty_fd = pty_fd
        self._child = child
        self._driver = driver
        self._container = container
        self._inner_pid = inner_pid

    async def signal(self, signum: int) -> None:
        if self._child.ended:
            return
        if self._inner_pid:
            await self._driver.signal_inside(self._container, signum, self._inner_pid)
        else:
            self._child.signal(signum)

    async def wait(self) -> Exit:
        return await self._child.wait()


class OciDriver:
    """See `cadenza.runtime.driver.Driver`. ``state_dir`` must survive an agent's restart, and not a machine's."""

    def __init__(self, dialect: Dialect, state_dir: str, launcher: Launcher, hierarchy: Hierarchy) -> None:
        self.name = dialect.name
        self._dialect = dialect
        self._state_dir = os.path.join(state_dir, dialect.name)
        self._launcher = launcher
        self._hierarchy = hierarchy
        self._containers: dict[str, _Container] = {}
        self._starting = 0
        self._sweep: object = None
        self._env = {"PATH": DEFAULT_PATH, "LANG": "C"}
        self._ids = None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        self._nested = rootless.entered()
        os.makedirs(self._state_dir, mode=0o700, exist_ok=True)
        self._adopt()

    # A container's life.

    async def start(self, config: ContainerConfig, bundle: str, stdio: Stdio) -> int:
        spec = oci_spec(
            config,
            strong=self._dialect.strong,
            machine=platform.machine(),
            cgroup=f"/{CGROUP_PARENT}/{config.container_id}" if self.name == "runc" else None,
            rootless_ids=self._ids,
            nested=self._nested,
            open_files=min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
        if config.gpus:
            edits = cdi.find(config.gpus)
            cdi.apply(spec, edits, {path: cdi.numbers(path) for path in cdi.paths(edits)})
        container = self._add(config.container_id, bundle)
        try:
            with open(os.path.join(bundle, "config.json"), "w", opener=_private) as file:
                file.write(json.dumps(spec))  # json.dump would do it in Python, for 2 ms
            container.cgroup.create(config.limits)
            argv = self._dialect.base(container.folder, self._dialect.network(config.netns))
            argv += ["--nvproxy"] if config.gpus and self._dialect.is_runsc else []
            argv += ["run", "--detach"]
            argv += ["--bundle", bundle, "--pid-file", os.path.join(container.folder, "pid"), config.container_id]
            async with self._launcher.gate:
                self._starting += 1
                container.starting = True
                try:
                    await self._run(container, argv, stdio, START_LIMIT_S, hide_net="--network=sandbox" in argv)
                    child = Child(_pid_in(os.path.join(container.folder, "pid")))
                finally:
                    self._starting -= 1
                    container.starting = False
            self._follow(container, child)
            return child.pid
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._call_off(container)))
            raise

    async def wait(self, container_id: str) -> Exit:
        return await self._get(container_id).wait()

    async def signal(self, container_id: str, signum: int) -> None:
        container = self._containers.get(container_id)
        if container is None or container.child is None or container.child.ended:
            return
        if signum == signal.SIGKILL:
            await self._kill(container)
        elif self._dialect.is_runsc:
            await self.signal_inside(container, signum, 0)
        else:
            container.child.signal(signum)

    async def exec(self, container_id: str, command: Command, stdio: Stdio) -> Execution:
        container = self._get(container_id)
        if container.child is None or container.child.ended:
            raise NotFoundError(f"container {container_id} is not running")
        check_command(command.argv, command.env, command.cwd)
        container.execs += 1
        prefix = os.path.join(container.folder, f"exec-{container.execs}")
        with open(os.path.join(container.bundle, "config.json")) as file:
            first: dict[str, Any] = json.load(file)["process"]
        argv = [*self._dialect.base(container.folder), "exec", "--detach"]
        argv += ["--process", f"{prefix}.json", "--pid-file", f"{prefix}.pid"]
        if self._dialect.is_runsc:
            argv += ["--internal-pid-file", f"{prefix}.inner"]
        terminal = Terminal(command) if command.pty else None
        try:
            with open(f"{prefix}.json", "w", opener=_private) as file:
                json.dump(exec_process(first, command), file)
            if terminal is not None:
                argv += ["--console-socket", terminal.path]
                terminal.receive(COMMAND_LIMIT_S)
            stdio = stdio if terminal is None else Stdio()
            await self._run(container, [*argv, container_id], stdio, COMMAND_LIMIT_S)
            child = Child(_pid_in(f"{prefix}.pid"))
            pty_fd = await terminal.take() if terminal is not None else -1
            inner = _pid_in(f"{prefix}.inner") if self._dialect.is_runsc else 0
        finally:
            if terminal is not None:
                terminal.close()
            for suffix in (".json", ".pid", ".inner"):  # secrets are in the first, also if it failed
                _unlink(prefix + suffix)
        return OciExecution(child, pty_fd, self, container, inner)

    async def delete(self, container_id: str) -> None:
        container = self._containers.get(container_id)
        if container is not None:
            await self._erase(container)

    # What it uses.

    async def stats(self, container_id: str) -> Stats:
        container = self._get(container_id)
        found = container.cgroup.stats()
        if found is not None:
            return found
        first = container.child.pid if container.child is not None and not container.child.ended else 0
        return await asyncio.to_thread(measure, first, container_id) if first else Stats(0, 0.0, 0)

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

    def _add(self, container_id: str, bundle: str) -> _Container:
        if container_id in self._containers:
            raise AlreadyExistsError(f"container {container_id} exists")
        folder = os.path.join(self._state_dir, container_id)
        cgroup = Cgroup(self._hierarchy, f"{CGROUP_PARENT}/{container_id}")
        container = _Container(container_id, folder, bundle, cgroup)
        self._containers[container_id] = container
        os.makedirs(os.path.join(folder, "root"), mode=0o700, exist_ok=True)
        # Before anything runs: whatever happens from here on, the next agent finds it.
        with open(os.path.join(folder, "record.json"), "w") as file:
            json.dump({"bundle": bundle}, file)
        return container

    def _follow(self, container: _Container, child: Child) -> None:
        container.child = child
        child.at_end = container.at_end

    def _adopt(self) -> None:
        """Take over what an earlier agent left. What never came to run is known too, ended, to be deleted."""
        for name in os.listdir(self._state_dir):
            folder = os.path.join(self._state_dir, name)
            try:
                with open(os.path.join(folder, "record.json")) as file:
                    bundle = str(json.load(file)["bundle"])
            except (OSError, ValueError, KeyError):
                bundle = ""
            container = _Container(name, folder, bundle, Cgroup(self._hierarchy, f"{CGROUP_PARENT}/{name}"))
            self._containers[name] = container
            try:
                path = os.path.join(folder, "pid")
                pid = _pid_in(path)
                # A number that was given to another process since is not in the container's cgroup.
                there = rootless.older(pid, path) if self._hierarchy.kind == "none" else pid in container.cgroup.pids()
                if there:
                    self._follow(container, Child(pid))
            except (RuntimeFault, ProcessLookupError):
                pass
            if container.child is None:
                container.child = Child.gone()

    async def _run(
        self, container: _Container, argv: Sequence[str], stdio: Stdio, limit_s: float, hide_net: bool = False
    ) -> None:
        """Run the runtime program in the container's cgroup. InvalidError or RuntimeFault when it fails."""
        log = os.path.join(container.folder, "log.json")
        _unlink(log)
        program = Program(
            path=self._dialect.path,
            argv=tuple(argv),
            env=self._env,
            stdio=stdio,
            join=container.cgroup.procs_files(),
            hide_net=hide_net,
        )
        end = await self._launcher.run(program, limit_s)
        if end.code != 0:
            text = _tail(log)
            message = last_error(text) or f"{self.name} ended with code {end.code} and said nothing"
            if is_users_fault(message):
                raise InvalidError(f"the container's program cannot be run: {message}")
            if container.cgroup.oom():
                raise InvalidError("the memory limit is too small for the container to start: raise it")
            raise RuntimeFault(f"{self.name}: {message}", text)

    async def signal_inside(self, container: _Container, signum: int, pid: int) -> None:
        """runsc: its processes have no pids on the host. ``pid`` 0: the first one."""
        argv = [*self._dialect.base(container.folder), "kill"]
        argv += ["--pid", str(pid)] if pid else []
        program = Program(self._dialect.path, (*argv, container.id, str(int(signum))), self._env)
        await self._launcher.run(program, COMMAND_LIMIT_S)

    async def _kill(self, container: _Container) -> None:
        container.killed = True
        if container.child is not None:
            container.child.signal(signal.SIGKILL)
        seen = await container.cgroup.kill()
        if container.child is not None:
            # A pid namespace ends only when its zombies are collected, also those that became ours.
            loop = asyncio.get_running_loop()
            deadline, wait_s = loop.time() + KILL_LIMIT_S, ZOMBIE_WAIT_S
            while not await container.child.ends_within(wait_s):
                if loop.time() > deadline:
                    raise RuntimeFault(f"the kernel does not let go of process {container.child.pid}")
                await self._collect()
                wait_s = min(wait_s * 2, 1.0)
        reap([pid for pid in seen if pid not in Child.watched])
        if self._dialect.leaves and self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_AFTER_S, self._sweep_later)

    def _sweep_later(self) -> None:
        self._sweep = asyncio.ensure_future(self._collect())

    async def _collect(self) -> None:
        """Reap what the program forked on the side and left to us."""
        self._sweep = None
        for dead in await asyncio.to_thread(dead_children):
            parent, _, container_id = dead.cgroup.rpartition("/")
            if parent.endswith("/" + CGROUP_PARENT):
                container = self._containers.get(container_id)
                ours = container is None or container.child is not None or not container.starting
            else:
                # cgroups v1 forget a zombie's place; then by its name, while no first process can look like it.
                ours = dead.name == self._dialect.leaves and not self._starting
            if ours and dead.pid not in Child.watched:
                reap([dead.pid])

    async def _call_off(self, container: _Container) -> None:
        """Undo a start that failed or was called off, whatever the program had come to."""
        if self._hierarchy.kind == "none" and container.child is None:
            # No cgroup tells what it made. crun's own processes go on without the one that we began; the container's
            # first process is noted before it may go on, and ends by itself when nobody tells it to.
            await asyncio.to_thread(rootless.end_programs, container.folder)
            for name in ("pid", f"root/{container.id}/status"):
                path = os.path.join(container.folder, name)
                try:
                    pid = _noted_pid(path)
                    if pid and rootless.older(pid, path):
                        self._follow(container, Child(pid))
                        break
                except (OSError, ValueError):
                    continue
        await self._erase(container)

    async def _erase(self, container: _Container) -> None:
        await self._kill(container)
        await container.cgroup.erase()
        await asyncio.to_thread(shutil.rmtree, container.folder, True)
        self._containers.pop(container.id, None)


def _noted_pid(path: str) -> int:
    """From a pid file, or from crun's status in JSON. OSError, ValueError."""
    with open(path) as file:
        found = json.load(file)
    return int(found["pid"] if isinstance(found, dict) else found)


def _pid_in(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        raise RuntimeFault("the runtime program wrote no pid", str(error)) from error


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
