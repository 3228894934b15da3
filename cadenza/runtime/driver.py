"""`Driver`: one container on this machine, whatever the program below it; and the values it takes and gives.

Implementations: `cadenza.runtime.oci.OciDriver` (crun, runc, runsc), `cadenza.runtime.process.ProcessDriver` (no
isolation), and the twin in memory, `cadenza.runtime.fake.FakeDriver`. All pass
``tests/contract/test_contract_driver.py``. `cadenza.runtime.choice.open_driver` makes one by name.

All methods are coroutines of one event loop. A container's life here is: `start`, any number of `signal`, `exec`,
`stats`, `update`, then `wait` returns, then `delete`. File descriptors that are passed in stay the caller's: the driver
neither closes nor keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Protocol

from cadenza.base.errors import Error

HOST_NETWORK = "host"
"""`ContainerConfig.netns`: share the machine's own network."""


class RuntimeFault(Error):
    """The runtime program or the kernel failed, not the user's program: it may be tried again without charge.

    ``str(fault)`` is for people; ``detail`` is what the program said, for the log.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True)
class Mount:
    """One mount inside the container. ``kind``: ``bind``, ``tmpfs`` or another file system type.

    A bind's ``source`` is a host path: a file, a directory or a unix socket. Bound directories are bound recursively.
    ``options`` are extra mount options of OCI (``size=64m``, ``mode=1777``, ``noexec``). The target is made if missing.
    """

    source: str
    target: str
    kind: str = "bind"
    options: tuple[str, ...] = ()
    read_only: bool = False


@dataclass(frozen=True)
class Limits:
    """What a container may use. 0: no limit.

    ``cpu_milli`` is its share under contention, ``cpu_limit_milli`` the most it may use, both in thousandths of a core.
    """

    cpu_milli: int = 0
    cpu_limit_milli: int = 0
    memory_limit_mib: int = 0
    pids_limit: int = 0


@dataclass(frozen=True)
class ContainerConfig:
    """One container, described.

    ``rootfs`` is the path of a mounted root file system; the process driver runs on the host's and ignores it. ``argv``
    is looked up in ``env["PATH"]`` of the container. ``env`` is the whole environment.

    /proc, /sys (read-only), /dev with its usual nodes, /dev/shm, /dev/pts and /dev/mqueue are always there: leave them
    out of ``mounts``.
    """

    container_id: str
    rootfs: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    mounts: tuple[Mount, ...] = ()
    hostname: str = "cadenza"
    limits: Limits = Limits()
    netns: str = ""
    """``""``: an empty network namespace of its own, loopback only; ``"host"``; or the path of a namespace
    (`cadenza.runtime.network`)."""
    read_only_root: bool = False
    shm_mib: int = 1024
    """Size of /dev/shm. Its pages count against the memory limit."""
    id_base: int = 0
    """First host id of the 65,536 that the container's user namespace maps to its 0. The root file system must then
    be shown with ids of that range (an idmapped mount). 0: no user namespace."""
    privileged_build: bool = False
    """For image builds (apt, pip): keeps the capabilities that package managers need. Same seccomp profile."""
    gpus: tuple[str, ...] = ()
    """CDI device names or device paths."""
    user: tuple[int, int] = (0, 0)
    """Whose its first program is, inside: user and group. Others than root have no capabilities."""


@dataclass(frozen=True)
class Stdio:
    """Descriptors for a program's standard streams; -1 is /dev/null. Use files or pipes that you keep reading."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


@dataclass(frozen=True)
class Exit:
    """How a container's first process, or an exec'd one, ended.

    ``code`` as a shell would say it: 0-255, 128 + n for signal n, and -1 when nobody knows (adopted from an agent that
    was killed, on a kernel before 6.15). ``signal`` is 0 if it exited by itself. ``oom``: the kernel killed something
    in the container because of its memory limit. ``fault`` is not empty if it was the runtime that broke down, not the
    user's program.
    """

    code: int
    signal: int = 0
    oom: bool = False
    fault: str = ""


@dataclass(frozen=True)
class Command:
    """A program to run in a container that runs. ``env`` is the whole environment. ``pty``: on a new terminal."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    pty: bool = False
    rows: int = 0
    columns: int = 0
    """The new terminal's size when the program begins; 0: not known."""


@dataclass(frozen=True)
class Stats:
    """What a container uses now. ``cpu_s`` is CPU seconds since it began."""

    memory_bytes: int
    cpu_s: float
    pids: int


class Execution(Protocol):
    """A command that was started by `Driver.exec`."""

    pid: int
    """On the host; 0 if the runtime hides it."""
    pty_fd: int
    """The terminal's controlling side, with ``pty``, else -1. It is the caller's to close."""

    async def signal(self, signum: int) -> None:
        """Send a signal to the command. Nothing happens if it is gone."""

    async def wait(self) -> Exit:
        """May be awaited more than once."""


class Driver(Protocol):
    """What runs containers. Ids are at most 64 characters of ``[A-Za-z0-9_.-]``."""

    name: str
    """crun, runc, runsc, crun-rootless, runsc-rootless, process or fake."""

    async def start(self, config: ContainerConfig, bundle: str, stdio: Stdio) -> int:
        """Make and start a container; its first process is running when this returns.

        ``bundle`` is an existing empty directory, the container's own until `delete`. Returns the first process's pid
        on the host (for runsc: that of the sandbox). RuntimeFault when it cannot be started, and then nothing of it is
        left; InvalidError when the config can never work (no such program, an impossible path).
        """

    async def wait(self, container_id: str) -> Exit:
        """How the first process ended, once it has. May be awaited more than once, until `delete`.

        NotFoundError when there is no such container."""

    async def signal(self, container_id: str, signum: int) -> None:
        """Send a signal to the first process. SIGKILL goes to every process of the container, and then this returns
        only when all are gone. Nothing happens if it has ended already or there is no such container."""

    async def exec(self, container_id: str, command: Command, stdio: Stdio) -> Execution:
        """Run one more program in it; with ``command.pty`` the ``stdio`` is not used. NotFoundError if it is not
        running, InvalidError when there is no such program."""

    async def delete(self, container_id: str) -> None:
        """Kill what still runs and leave no process, cgroup or state. Idempotent. A pending `wait` gets its `Exit`."""

    async def stats(self, container_id: str) -> Stats:
        """NotFoundError when there is no such container."""

    async def update(self, container_id: str, limits: Limits) -> None:
        """Change limits while it runs. NotFoundError when there is no such container."""

    async def list(self) -> dict[str, Optional[int]]:
        """Containers that this driver's state directory knows, those of an earlier agent too: id to the first
        process's pid, or None if that has ended. All of them can be waited for, signalled and deleted."""
