"""Limits, accounting and the certain end of a container's processes: cgroups v1, hybrid and v2.

We make the cgroup and its limits ourselves, whatever the runtime program, and put the program into it before it starts
(`cadenza.runtime.launcher`). So one piece of code limits, counts, notices OOM and kills for crun, runc, runsc and plain
processes alike. All cgroups lie below one named ``cadenza``, by which those of an earlier agent are found.

File names and meanings: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from functools import cached_property
from typing import Optional

from cadenza.runtime.driver import Limits, RuntimeFault, Stats

ROOT = "/sys/fs/cgroup"
V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "freezer")
V2_CONTROLLERS = ("cpu", "memory", "pids")
SWAP_FILES = ("memory.memsw.limit_in_bytes", "memory.swap.max")
"""Files that are there only where the kernel counts swap."""
CPU_PERIOD_US = 100_000
MIB = 1024 * 1024
KILL_LIMIT_S = 10.0
"""How long SIGKILL may take before we say that the kernel holds a process (uninterruptible I/O)."""
FREEZE_LIMIT_S = 0.2
REMOVE_LIMIT_S = 1.0
"""How long a cgroup may be busy after the last of its processes was collected."""


@dataclass(frozen=True)
class Hierarchy:
    """How cgroups are mounted here. ``kind``: ``v1``, ``hybrid``, ``v2`` or ``none``; ``none`` limits nothing."""

    kind: str
    controllers: dict[str, str] = field(default_factory=dict)
    """v1 and hybrid: controller to its mount. v2: empty."""
    unified: str = ""
    """The v2 mount, if it is used. Not on hybrid machines with a freezer: joining it costs what `procs_files` says."""
    reason: str = ""
    """For ``none``: why."""

    @cached_property
    def roots(self) -> list[str]:
        """All mounts. Some machines mount cpu and cpuacct as one: the same directory by two names."""
        found = [*self.controllers.values(), *([self.unified] if self.unified else [])]
        return list(dict.fromkeys(map(os.path.realpath, found)))


def _writable(path: str) -> bool:
    return os.access(path, os.W_OK)


def detect(root: str = ROOT) -> Hierarchy:
    """What is mounted below ``root``, as far as this user may write there."""
    if os.path.exists(os.path.join(root, "cgroup.controllers")):
        if not _writable(root):
            return Hierarchy("none", reason=f"this user may not make cgroups in {root}")
        with open(os.path.join(root, "cgroup.controllers")) as file:
            missing = set(V2_CONTROLLERS) - set(file.read().split())
        if missing:
            return Hierarchy("none", reason=f"cgroup controllers {', '.join(sorted(missing))} are not available here")
        return Hierarchy("v2", unified=root)
    found = {}
    for name in V1_CONTROLLERS:
        path = os.path.join(root, name)
        if os.path.exists(os.path.join(path, "cgroup.procs")):
            found[name] = path
    if not found:
        return Hierarchy("none", reason=f"no cgroups are mounted at {root}")
    if not all(_writable(path) for path in found.values()):
        return Hierarchy("none", reason=f"this user may not make cgroups in {root}")
    unified = os.path.join(root, "unified")
    if os.path.exists(os.path.join(unified, "cgroup.procs")) and _writable(unified):
        return Hierarchy("hybrid", found, "" if "freezer" in found else unified)
    return Hierarchy("v1", found)


def v1_files(limits: Limits) -> list[tuple[str, str, str]]:
    """(controller, file, value) to write, in order; pure."""
    quota = limits.cpu_limit_milli * CPU_PERIOD_US // 1000 if limits.cpu_limit_milli else -1
    memory = limits.memory_limit_mib * MIB if limits.memory_limit_mib else -1
    return [
        ("cpu", "cpu.shares", str(max(2, limits.cpu_milli * 1024 // 1000) if limits.cpu_milli else 1024)),
        ("cpu", "cpu.cfs_quota_us", str(max(1000, quota) if quota > 0 else -1)),
        # A limit is for memory and swap together, of which the kernel wants the second never below the first.
        ("memory", "memory.memsw.limit_in_bytes", "-1"),
        ("memory", "memory.limit_in_bytes", str(memory)),
        ("memory", "memory.memsw.limit_in_bytes", str(memory)),
        ("pids", "pids.max", str(limits.pids_limit or "max")),
    ]


def v2_files(limits: Limits) -> list[tuple[str, str]]:
    """(file, value) to write, in order; pure. Shares become a weight as systemd does it: 1 core is 100."""
    weight = min(10_000, max(1, limits.cpu_milli // 10)) if limits.cpu_milli else 100
    quota = str(max(1000, limits.cpu_limit_milli * CPU_PERIOD_US // 1000)) if limits.cpu_limit_milli else "max"
    return [
        ("cpu.weight", str(weight)),
        ("cpu.max", f"{quota} {CPU_PERIOD_US}"),
        ("memory.max", str(limits.memory_limit_mib * MIB) if limits.memory_limit_mib else "max"),
        ("memory.swap.max", "0" if limits.memory_limit_mib else "max"),
        ("pids.max", str(limits.pids_limit or "max")),
    ]


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _limit(path: str, value: str) -> None:
    try:
        _write(path, value)
    except FileNotFoundError:
        if os.path.basename(path) not in SWAP_FILES:
            raise


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else 0


def _keyed(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return _number(value)
    return 0


class Cgroup:
    """One container's cgroup in every hierarchy that matters. ``name`` is its path below the roots."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self.hierarchy = hierarchy
        self.name = name

    def _paths(self) -> list[str]:
        return [os.path.join(root, self.name) for root in self.hierarchy.roots]

    def _path(self, controller: str) -> str:
        if self.hierarchy.kind == "v2":
            return os.path.join(self.hierarchy.unified, self.name)
        return os.path.join(self.hierarchy.controllers.get(controller, "/nonexistent"), self.name)

    def create(self, limits: Limits) -> None:
        """RuntimeFault when the kernel refuses."""
        try:
            if self.hierarchy.kind == "v2":
                self._delegate()
            for path in self._paths():
                os.makedirs(path, exist_ok=True)
            self.update(limits)
        except OSError as error:
            self.remove()
            raise RuntimeFault(f"cannot make the container's cgroup: {error}") from error

    def _delegate(self) -> None:
        """v2: children have a controller only if every directory above passes it on."""
        path = self.hierarchy.unified
        for part in ("", *os.path.dirname(self.name).split("/")):
            path = os.path.join(path, part) if part else path
            os.makedirs(path, exist_ok=True)
            have = set(_read(os.path.join(path, "cgroup.subtree_control")).split())
            wanted = [name for name in V2_CONTROLLERS if name not in have]
            if wanted:
                _write(os.path.join(path, "cgroup.subtree_control"), " ".join("+" + name for name in wanted))

    def update(self, limits: Limits) -> None:
        """OSError (ENOENT) when the cgroup is not there, EBUSY when memory in use cannot shrink to the limit."""
        if self.hierarchy.kind == "v2":
            for name, value in v2_files(limits):
                _limit(os.path.join(self._path(""), name), value)
        elif self.hierarchy.kind != "none":
            for controller, name, value in v1_files(limits):
                if controller in self.hierarchy.controllers:
                    _limit(os.path.join(self._path(controller), name), value)

    def procs_files(self) -> tuple[str, ...]:
        """Files to which a process of one thread writes 0 to join.

        v1: ``tasks``. Writing to ``cgroup.procs`` keeps the whole machine from forking for a moment, and the kernel
        waits 7 ms until it may; a thread that moves itself needs no such lock.
        """
        roots = self.hierarchy.controllers.values()
        v1 = {os.path.realpath(root) for root in roots}
        return tuple(
            os.path.join(root, self.name, "tasks" if root in v1 else "cgroup.procs") for root in self.hierarchy.roots
        )

    def exists(self) -> bool:
        return any(os.path.isdir(path) for path in self._paths())

    def pids(self) -> list[int]:
        """Processes in it or below it, as this pid namespace numbers them."""
        if self.hierarchy.kind == "none":
            return []
        found: list[int] = []
        for folder, _, _ in os.walk(self._path("pids")):
            found += [int(line) for line in _read(os.path.join(folder, "cgroup.procs")).split()]
        return found

    def oom(self) -> bool:
        """Whether the kernel has killed here for want of memory."""
        if self.hierarchy.kind == "v2":
            return _keyed(_read(os.path.join(self._path(""), "memory.events")), "oom_kill") > 0
        return _keyed(_read(os.path.join(self._path("memory"), "memory.oom_control")), "oom_kill") > 0

    def stats(self) -> Optional[Stats]:
        """None when nothing is counted here."""
        if self.hierarchy.kind == "none" or not self.exists():
            return None
        if self.hierarchy.kind == "v2":
            folder = self._path("")
            return Stats(
                memory_bytes=_number(_read(os.path.join(folder, "memory.current"))),
                cpu_s=_keyed(_read(os.path.join(folder, "cpu.stat")), "usage_usec") / 1e6,
                pids=_number(_read(os.path.join(folder, "pids.current"))),
            )
        return Stats(
            memory_bytes=_number(_read(os.path.join(self._path("memory"), "memory.usage_in_bytes"))),
            cpu_s=_number(_read(os.path.join(self._path("cpuacct"), "cpuacct.usage"))) / 1e9,
            pids=_number(_read(os.path.join(self._path("pids"), "pids.current"))),
        )

    async def kill(self) -> list[int]:
        """SIGKILL to all in it; returns when it is empty, with the pids that were seen. RuntimeFault after 10 s."""
        seen: dict[int, None] = {}
        frozen = False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + KILL_LIMIT_S
        pause_s = 0.001
        kill_file = os.path.join(self._paths()[-1], "cgroup.kill") if self.hierarchy.unified else ""
        while pids := self.pids():
            seen.update(dict.fromkeys(pids))
            if not (kill_file and _try_write(kill_file, "1")):
                # Frozen, nothing can fork between our reading the list and our killing what is on it.
                frozen = await self._freeze()
                pids = self.pids()
                seen.update(dict.fromkeys(pids))
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if frozen:
                _try_write(os.path.join(self._path("freezer"), "freezer.state"), "THAWED")
            if loop.time() > deadline:
                raise RuntimeFault(f"the kernel does not let go of processes {pids[:5]} of cgroup {self.name}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
        return list(seen)

    async def _freeze(self) -> bool:
        path = os.path.join(self._path("freezer"), "freezer.state")
        if self.hierarchy.kind == "v2" or not _try_write(path, "FROZEN"):
            return False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FREEZE_LIMIT_S
        while _read(path).strip() != "FROZEN" and loop.time() < deadline:
            await asyncio.sleep(0.001)
        return True

    def remove(self) -> bool:
        """Remove the directories, deepest first; False if one is still busy. Nothing happens if there is none."""
        clean = True
        paths = self._paths()
        if self.hierarchy.controllers:
            # runc joins every controller there is.
            root = os.path.dirname(next(iter(self.hierarchy.controllers.values())))
            paths = [os.path.join(root, entry, self.name) for entry in os.listdir(root)]
        for path in paths:
            for folder, _, _ in os.walk(path, topdown=False):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:
                    clean = False
        return clean

    async def erase(self) -> None:
        """`remove`, as soon as the kernel lets go of it. RuntimeFault after `REMOVE_LIMIT_S`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REMOVE_LIMIT_S
        while not self.remove():
            if loop.time() > deadline:
                raise RuntimeFault(f"cgroup {self.name} cannot be removed: it is busy still")
            await asyncio.sleep(0.01)


def _try_write(path: str, value: str) -> bool:
    try:
        _write(path, value)
        return True
    except OSError:
        return False
