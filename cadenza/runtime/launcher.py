"""Starts programs for an event loop, quickly, and tells when they end.

One thread spawns (posix_spawn: no copy of the agent's memory, however large). With root that thread has, for the
moment of each start, its own copy of the machine's mount namespace, in which are put right the two things that OCI
programs cannot live with:

- crun refuses a hybrid cgroup tree until the v2 mount beside the v1 hierarchies is unmounted;
- `runsc --network=sandbox` fails on recent kernels until /proc/sys/net is hidden.

The copy is made anew for each start, so that it has the mounts of this moment, and is let go right after, so that it
keeps no container's mounts alive.

Ends are seen through pidfds in the event loop. The process is made a subreaper: what a runtime program leaves behind
when it detaches becomes a child of ours, whose exit status we get.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import fcntl
import os
import queue
import signal
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Optional, Sequence

from cadenza.runtime.driver import Exit, RuntimeFault, Stdio

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_FS = 0x00000200
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PIDFD_GET_INFO = 0xC048FF0B
PIDFD_INFO_EXIT = 1 << 3
COLLECT_LIMIT_S = 2.0
COLLECT_PAUSE_S = 0.001
HIDDEN_PATH = "/proc/sys/net"
CGROUP_ROOT = "/sys/fs/cgroup"

# Joins cgroups, then becomes the program. A shell costs 1 ms, and works where the spawning thread could not move alone.
CHANGE_DIRECTORY = 'cd "$1" || exit 125; shift; '
JOIN_SCRIPT = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make this process the parent of its descendants' orphans. OSError when the kernel says no."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _keep_descriptors_to_ourselves() -> None:
    """Python's own descriptors are not inherited, but those that whoever started this process left open would be."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass


def unified_beside_v1() -> Optional[str]:
    """Path of the cgroup v2 mount of a hybrid tree, or None."""
    path = os.path.join(CGROUP_ROOT, "unified")
    return path if os.path.exists(os.path.join(path, "cgroup.controllers")) else None


def exit_of(status: int) -> Exit:
    """waitpid's status word as an `Exit`."""
    code = os.waitstatus_to_exitcode(status)
    return Exit(code=code) if code >= 0 else Exit(code=128 - code, signal=-code)


class Child:
    """A process that is watched until it ends: a child, or one that an earlier agent started."""

    watched: ClassVar[set[int]] = set()
    """Pids whose exit status somebody waits for here."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError when there is no such process. Call with a running event loop."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._ended: asyncio.Future[Exit] = loop.create_future()
        self.at_end: Optional[Callable[[Exit], None]] = None
        """Called once, with the end, before those who wait go on."""
        loop.add_reader(self.pidfd, self._readable)
        Child.watched.add(pid)

    @classmethod
    def gone(cls) -> Child:
        """One that ended before anybody looked: its code is -1."""
        child = cls.__new__(cls)
        child.pid, child.pidfd, child.at_end = 0, -1, None
        child._loop = asyncio.get_running_loop()
        child._ended = child._loop.create_future()
        child._ended.set_result(Exit(code=-1))
        return child

    def _readable(self) -> None:
        self._loop.remove_reader(self.pidfd)
        self._collect(self._loop.time() + COLLECT_LIMIT_S)

    def _collect(self, deadline_s: float) -> None:
        """It is dead; learn how. Its parent may not be us, or not yet: crun's middle process dies after it."""
        if self.pidfd < 0:
            return
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            end = exit_of(status) if pid else None
        except ChildProcessError:
            end = self._end_of_stranger()
        if end is None:
            if self._loop.time() < deadline_s:
                self._loop.call_later(COLLECT_PAUSE_S, self._collect, deadline_s)
                return
            end = Exit(code=-1)
        Child.watched.discard(self.pid)
        os.close(self.pidfd)
        self.pidfd = -1
        if self.at_end is not None:
            self.at_end(end)
        if not self._ended.done():
            self._ended.set_result(end)

    def _end_of_stranger(self) -> Optional[Exit]:
        """A process that is not our child: since 6.15 the kernel tells through the pidfd, once it is reaped.

        None when it may still become known."""
        info = array.array("Q", [PIDFD_INFO_EXIT, *([0] * 8)])
        try:
            fcntl.ioctl(self.pidfd, PIDFD_GET_INFO, info, True)
        except ProcessLookupError:
            return Exit(code=-1)
        except OSError:
            return None if os.path.exists(f"/proc/{self.pid}") else Exit(code=-1)
        if not info[0] & PIDFD_INFO_EXIT:
            return None
        # struct pidfd_info: u64 mask, u64 cgroupid, 11 u32, s32 exit_code.
        return exit_of(int.from_bytes(info.tobytes()[60:64], "little", signed=True))

    @property
    def ended(self) -> bool:
        return self._ended.done()

    def signal(self, signum: int) -> None:
        """Nothing happens if it has ended."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signum)
            except ProcessLookupError:
                pass

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def ends_within(self, limit_s: float) -> bool:
        """Wait at most so long; whether it has ended."""
        if not self._ended.done():
            await asyncio.wait([self._ended], timeout=limit_s)
        return self._ended.done()

    def forget(self) -> None:
        """Stop watching. Whoever waits gets code -1."""
        if self.pidfd >= 0:
            Child.watched.discard(self.pid)
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        if not self._ended.done():
            self._ended.set_result(Exit(code=-1))


@dataclass(frozen=True)
class Program:
    """One program to start. ``path`` is absolute. ``join``: cgroup.procs files that it must be written into first."""

    path: str
    argv: tuple[str, ...]
    env: dict[str, str]
    stdio: Stdio = field(default_factory=Stdio)
    join: tuple[str, ...] = ()
    hide_net: bool = False
    private_mounts: bool = True
    """Whether what is said at the top of this module applies to it."""
    cwd: str = "/"
    terminal: str = ""
    """Path of a terminal to be its controlling terminal and its three streams, instead of ``stdio``."""


class Launcher:
    """The thread that spawns, and the gate in front of it.

    Make one for each process. Two starts for each of ``cores`` run at once, since they also wait; whoever starts whole
    containers has a closer gate of its own.
    """

    def __init__(self, cores: Optional[int] = None) -> None:
        self.gate = asyncio.Semaphore(2 * (cores or len(os.sched_getaffinity(0))))
        self._is_root = os.geteuid() == 0
        self._queue: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._home = os.open(f"/proc/{os.getpid()}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if self._is_root else -1
        become_subreaper()
        _keep_descriptors_to_ourselves()
        # Not ended before the process is: a child's parent-death signal follows the thread that spawned it.
        self._thread = threading.Thread(target=self._work, name="launcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Children go on."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._null)
        if self._home >= 0:
            os.close(self._home)

    def _work(self) -> None:
        if self._is_root and _libc.unshare(CLONE_FS) != 0:
            return
        while True:
            task = self._queue.get()
            if task is None:
                return
            task()

    def _private_mounts(self, program: Program) -> bool:
        """Enter a private copy of the mounts, put right; False if this start needs none. OSError."""
        unified = unified_beside_v1() if self._is_root else None
        if not self._is_root or not program.private_mounts or (unified is None and not program.hide_net):
            return False
        _call(_libc.unshare(CLONE_NEWNS), "unshare")
        _call(_libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount --make-rslave /")
        if unified is not None:
            _call(_libc.umount2(unified.encode(), MNT_DETACH), "umount " + unified)
        if program.hide_net:
            _call(_libc.mount(b"tmpfs", HIDDEN_PATH.encode(), b"tmpfs", 0, b"size=4k"), "mount on " + HIDDEN_PATH)
        return True

    def _spawn(self, program: Program) -> int:
        stdio = program.stdio
        fds = [fd if fd >= 0 else self._null for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        path, argv = program.path, list(program.argv)
        if program.terminal:
            # Opened by the leader of a new session, it becomes the controlling one.
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, program.terminal, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
        if program.join or program.cwd != "/":
            # Through our own root: in the private mounts a hierarchy may be missing.
            root = f"/proc/{os.getpid()}/root" if program.private_mounts and self._is_root else ""
            join = [root + file for file in program.join]
            script = CHANGE_DIRECTORY + JOIN_SCRIPT
            path, argv = "/bin/sh", ["sh", "-c", script, "sh", program.cwd, *join, "--", path, *argv[1:]]
        private = False
        try:
            private = self._private_mounts(program)
            return os.posix_spawn(
                path,
                argv,
                program.env,
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP],
            )
        finally:
            if private:
                _libc.setns(self._home, CLONE_NEWNS)

    async def spawn(self, program: Program) -> Child:
        """Start a program; it has the three descriptors of ``stdio`` and no other. RuntimeFault if it cannot be."""
        loop = asyncio.get_running_loop()
        spawned: asyncio.Future[int] = loop.create_future()

        def settle(pid: int, error: Optional[OSError]) -> None:
            if spawned.cancelled():
                return
            if error is not None:
                spawned.set_exception(error)
            else:
                spawned.set_result(pid)

        def task() -> None:
            try:
                pid, error = self._spawn(program), None
            except OSError as caught:
                pid, error = 0, caught
            loop.call_soon_threadsafe(settle, pid, error)

        self._queue.put(task)
        try:
            # Shielded: a spawned child must never be lost.
            return Child(await asyncio.shield(spawned))
        except OSError as error:
            raise RuntimeFault(f"cannot start {program.path}: {error.strerror}", str(error)) from None
        except asyncio.CancelledError:
            await asyncio.wait([spawned])
            if spawned.exception() is None:
                child = Child(spawned.result())
                child.signal(signal.SIGKILL)
                await child.wait()
            raise

    async def run(self, program: Program, limit_s: float) -> Exit:
        """Start a program and wait for its end; killed after ``limit_s``, which is a RuntimeFault."""
        child = await self.spawn(program)
        try:
            return await asyncio.wait_for(child.wait(), limit_s)
        except (asyncio.TimeoutError, asyncio.CancelledError) as error:
            child.signal(signal.SIGKILL)
            await child.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise RuntimeFault(f"{os.path.basename(program.path)} did not answer within {limit_s:g} s") from None


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def reap(pids: Sequence[int]) -> None:
    """Collect those of ``pids`` that are dead children of ours."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


@dataclass(frozen=True)
class Dead:
    """A zombie child of this process that nobody waits for. ``cgroup`` is its v2 path, as far as the kernel tells."""

    pid: int
    name: str
    cgroup: str


def dead_children() -> list[Dead]:
    """What runtime programs left to us by forking twice. Reads all of /proc: 15 us for each process of the machine."""
    found = []
    me = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # pid (name) state ppid ...; the list /proc/self/task/*/children is not in every kernel.
        _, _, rest = _read(f"/proc/{pid}/stat").partition(" (")
        name, _, fields = rest.rpartition(") ")
        if fields.split()[:2] == ["Z", me] and int(pid) not in Child.watched:
            lines = _read(f"/proc/{pid}/cgroup").splitlines()
            cgroup = next((line[3:] for line in lines if line.startswith("0::")), "/")
            found.append(Dead(int(pid), name, cgroup.removesuffix(" (deleted)")))
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
