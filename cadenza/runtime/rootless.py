"""Containers for an ordinary user: the server's process gets a user and a mount namespace in which it is root.

`enter` does what ``unshare --user --mount`` does, to the calling process, which must have one thread: root is the user,
the other ids come from the user's lines of /etc/subuid and /etc/subgid by newuidmap(1) and newgidmap(1). From then on
overlays can be mounted and crun, runc and runsc be started as if by root, with no more rights outside than the user
has. Nothing needs to be sent to a helper in the namespace, and nothing is left when the process ends.

The cgroup mounts of a machine with v1 hierarchies are hidden below an empty file system: nobody but root could use
them, and crun refuses to start on a hybrid tree. A pure v2 tree stays as it is, for those who are given a part of it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Optional

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MAP_LIMIT_S = 10.0
END_LIMIT_S = 5.0
END_PAUSE_S = 0.002
CLOCK_SLACK_S = 0.05
"""The kernel tells when a process began in hundredths of a second."""
CGROUP_ROOT = "/sys/fs/cgroup"
PROGRAM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
MIN_IDS = 65535
"""How many subordinate ids Debian's images may use, beside root: apt's users are below 200, nogroup is 65534."""
ALL_IDS = 4294967295

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class IdMap:
    """What a user namespace's root and the ids above it are outside; ``gids`` and ``uids`` are (first, count)."""

    uid: int
    gid: int
    uids: tuple[int, int]
    gids: tuple[int, int]


class Unable(Exception):
    """There can be no such namespace. ``remedy`` is a command, or "" when none is known."""

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.remedy = remedy


def outside_uid() -> int:
    """Who this process is on the machine, inside a namespace of `enter` and outside."""
    for line in _lines("/proc/self/uid_map"):
        inside, outside, count = map(int, line.split())
        if inside <= os.getuid() < inside + count:
            return outside + os.getuid() - inside
    return os.getuid()


def entered() -> bool:
    """Whether this process is root of a user namespace and not of the machine."""
    lines = [line.split() for line in _lines("/proc/self/uid_map")]
    return os.geteuid() == 0 and bool(lines) and lines != [["0", "0", str(ALL_IDS)]]


def subordinate(lines: list[str], names: tuple[str, ...]) -> Optional[tuple[int, int]]:
    """The first range of at least `MIN_IDS` ids that /etc/subuid, as ``lines``, gives to one of ``names``; pure."""
    for line in lines:
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit() and int(count) >= MIN_IDS:
            return int(first), int(count)
    return None


def plan() -> IdMap:
    """The ids that this user's namespace would have. Unable, with the remedy, when they do not suffice."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    missing = [one for one in ("newuidmap", "newgidmap") if shutil.which(one, path=PROGRAM_PATH) is None]
    if missing:
        raise Unable(f"{' and '.join(missing)} are not installed", "apt-get install uidmap")
    uids = subordinate(_lines("/etc/subuid"), (name, str(uid)))
    gids = subordinate(_lines("/etc/subgid"), (name, str(uid)))
    if uids is None or gids is None:
        lacking = "/etc/subuid" if uids is None else "/etc/subgid"
        # A range that no other user has is for the administrator to choose: these are above what useradd gives out.
        first = 0x60000000 + (uid % 4096) * 65536
        ranges = f"{first}-{first + 65535}"
        remedy = f"usermod --add-subuids {ranges} --add-subgids {ranges} {name}"
        raise Unable(f"{lacking} gives no {MIN_IDS} ids to {name}", remedy)
    return IdMap(uid, os.getegid(), uids, gids)


def enter(ids: IdMap) -> None:
    """Become root of new user and mount namespaces. Call it in a process with one thread. Unable.

    After Unable the process may be half inside: end it.
    """
    ready, go = os.pipe()
    answer, told = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        # Only a process outside may give ids away.
        status = 1
        try:
            os.close(go)
            os.close(answer)
            if os.read(ready, 1):
                fault = _give_ids(target, ids)
                os.write(told, fault.encode()[:500] or b"\0")
                status = 0
        finally:
            os._exit(status)
    os.close(ready)
    os.close(told)
    try:
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            raise Unable(
                f"this user may not make user namespaces ({os.strerror(ctypes.get_errno())})",
                "sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
            )
        os.write(go, b".")
        said = os.read(answer, 4096)
        if said != b"\0":
            raise Unable(said.decode(errors="replace") or "newuidmap ended without an answer")
    finally:
        os.close(go)
        os.close(answer)
        os.waitpid(helper, 0)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if _libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None) != 0:
        raise Unable(f"mounts cannot be made private ({os.strerror(ctypes.get_errno())})")
    if not os.path.exists(os.path.join(CGROUP_ROOT, "cgroup.controllers")) and os.path.isdir(CGROUP_ROOT):
        _libc.mount(b"tmpfs", CGROUP_ROOT.encode(), b"tmpfs", 0, b"size=4k,mode=755")


def older(pid: int, path: str) -> bool:
    """Whether a process began before the file at ``path`` was written, so that its number there means itself.

    For users without cgroups, who have nothing better to tell a container's first process by.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(") ")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return age_s > time.time() - os.stat(path).st_mtime - CLOCK_SLACK_S
    except (OSError, ValueError, IndexError):
        return False


def end_programs(folder: str) -> None:
    """Kill all processes that have a path below ``folder`` in their command line, and wait until they are gone."""
    mark = os.fsencode(folder) + b"/"
    deadline = time.monotonic() + END_LIMIT_S
    while time.monotonic() < deadline:
        there = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _command(pid)]
        if not there:
            return
        for pid in there:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(END_PAUSE_S)


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _give_ids(pid: int, ids: IdMap) -> str:
    """Run the two set-uid programs; "" or what went wrong."""
    for program, own, (first, count) in (("newuidmap", ids.uid, ids.uids), ("newgidmap", ids.gid, ids.gids)):
        path = shutil.which(program, path=PROGRAM_PATH) or program
        argv = [path, str(pid), "0", str(own), "1", "1", str(first), str(count)]
        try:
            done = subprocess.run(argv, capture_output=True, timeout=MAP_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{program} failed: {error}"
        if done.returncode != 0:
            return f"{program} failed: {done.stderr.decode(errors='replace').strip()}"
    return ""


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
