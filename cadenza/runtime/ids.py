"""Ranges of unprivileged host ids for containers, and trees shown with a range's ids.

A container's 0 is the first of 65,536 host ids that no account has and no other container has at the same time: its
root, should it get out, is nobody. The files it sees are not changed for that: an idmapped mount (Linux 5.12) shows
root's files as the range's. Mapping a layer costs 0.02 ms, so each container gets a range of its own; the user
namespace by which the kernel knows a range costs 2.4 ms, so it is made once, ahead of need, and kept for the next.

The ids are those that systemd's table of ids leaves free above its own containers' (0x70000000-0x7FFDFFFF), in four
blocks, one for each agent of the machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Optional

from cadenza.runtime.driver import RuntimeFault

ID_COUNT = 65536
"""Size of a range."""
FIRST_ID = 0x70000000
BLOCKS = 4
BLOCK_RANGES = 1023
SPARE = 4
"""Ranges that are ready ahead of need."""
MAKE_LIMIT_S = 10.0
LOCKS = "/run"
PROGRAM_PATH = "/usr/bin:/bin"

# include/uapi/linux/mount.h; the numbers of these calls are the same on all architectures.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0x1000, -100, 4
_MNT_DETACH = 2
_CAPABILITY_VERSION = 0x20080522
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _called(result: int, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def show(source: str, target: str, userns: int, read_only: bool = True) -> None:
    """Mount the tree at ``source`` at ``target``, its owners as the user namespace ``userns`` maps them. OSError."""
    tree = _called(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC), source)
    try:
        attr = _MountAttr(_MOUNT_ATTR_IDMAP | (_MOUNT_ATTR_RDONLY if read_only else 0), 0, 0, userns)
        size = ctypes.sizeof(attr)
        _called(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), size), source)
        moved = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _called(moved, target)
    finally:
        os.close(tree)


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def files_as(base: int) -> Iterator[None]:
    """While inside, this thread makes files as ``base``, with all its rights as before.

    An overlay does its own work as whoever mounts it; on a mapped upper directory that must be one who is mapped.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    rights = (_Capabilities * 2)()
    _called(_libc.capget(header, rights), "capget")
    _libc.setfsgid(base)
    _libc.setfsuid(base)  # takes the rights over files away
    try:
        _called(_libc.capset(header, rights), "capset")
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
        _libc.capset(header, rights)


def trial(directory: str, id_range: IdRange) -> None:
    """See whether what is on this file system can be shown so to an overlay (Linux 5.19). OSError when not."""
    folder = tempfile.mkdtemp(prefix="ids-", dir=directory)
    made, shown, whole = (os.path.join(folder, name) for name in ("made", "shown", "whole"))
    try:
        for path in (made, shown, whole, *(os.path.join(made, name) for name in ("l", "l/file", "u", "w"))):
            os.mkdir(path)
        show(made, shown, id_range.userns, read_only=False)
        try:
            options = os.fsencode(f"lowerdir={shown}/l,upperdir={shown}/u,workdir={shown}/w")
            with files_as(id_range.base):
                _called(_libc.mount(b"overlay", os.fsencode(whole), b"overlay", ctypes.c_ulong(0), options), whole)
            try:
                with files_as(id_range.base):
                    os.mkdir(os.path.join(whole, "mine"))  # else it is mounted read-only
                owner = os.stat(os.path.join(whole, "file")).st_uid
            finally:
                _libc.umount2(os.fsencode(whole), _MNT_DETACH)
        finally:
            _libc.umount2(os.fsencode(shown), _MNT_DETACH)
        if owner == os.geteuid():
            raise OSError(errno.EOPNOTSUPP, "overlayfs ignores mapped ids", directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class IdRange:
    """``base`` is the first host id of `ID_COUNT`; ``userns`` a descriptor of a user namespace that maps 0 to it."""

    base: int
    userns: int


def make_range(base: int) -> IdRange:
    """A user namespace for the range. Blocks for some ms. RuntimeFault when there can be none."""
    program = shutil.which("unshare", path=PROGRAM_PATH)
    if program is None:
        raise RuntimeFault("the program unshare is missing: apt-get install util-linux")
    # The namespace lives by our descriptor; the process that made it is needed until we have that.
    maker = subprocess.Popen(
        [program, "--user", "--", "cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, cwd="/",
    )  # fmt: skip
    try:
        assert maker.stdin is not None and maker.stdout is not None
        maker.stdin.write(b".")
        if not maker.stdout.read(1):
            _, said = maker.communicate(timeout=MAKE_LIMIT_S)
            raise RuntimeFault(f"no user namespace can be made: {said.decode(errors='replace').strip()}")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{maker.pid}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {base} {ID_COUNT}\n")
        return IdRange(base, os.open(f"/proc/{maker.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise RuntimeFault(f"a user namespace cannot have the ids from {base} on: {error.strerror}") from error
    finally:
        maker.kill()
        maker.communicate()


class IdRanges:
    """The ranges of one agent. Needs root. ``take`` hands one out, ``give_back`` frees it for the next container."""

    def __init__(self) -> None:
        self._lock, block = _take_block()
        self._first = FIRST_ID + block * BLOCK_RANGES * ID_COUNT
        self._made = 0
        self._ready: deque[IdRange] = deque()
        self._all: list[IdRange] = []
        self._making: Optional[asyncio.Task[None]] = None

    async def open(self) -> None:
        """Make the first. RuntimeFault when this machine has none."""
        self._ready.append(await self._make())
        self._refill()

    async def take(self) -> IdRange:
        """A range that no other container has. RuntimeFault when none is left."""
        if not self._ready and self._made >= BLOCK_RANGES and self._making is not None:
            await asyncio.wait([self._making])  # the last ones are on their way
        found = self._ready.popleft() if self._ready else await self._make()
        self._refill()
        return found

    def give_back(self, used: IdRange) -> None:
        """The container is gone, with all its processes."""
        self._ready.append(used)

    async def close(self) -> None:
        """Let all go."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        for one in self._all:
            os.close(one.userns)
        self._all.clear()
        self._ready.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _make(self) -> IdRange:
        if self._made >= BLOCK_RANGES:
            raise RuntimeFault(f"all {BLOCK_RANGES} ranges of ids for containers are in use")
        base = self._first + self._made * ID_COUNT
        self._made += 1
        making = asyncio.ensure_future(self._new(base))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._made_for_nobody)
            raise

    async def _new(self, base: int) -> IdRange:
        made = await asyncio.to_thread(make_range, base)
        self._all.append(made)
        return made

    def _made_for_nobody(self, making: asyncio.Task[IdRange]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._ready.append(making.result())

    def _refill(self) -> None:
        if len(self._ready) < SPARE and (self._making is None or self._making.done()):
            self._making = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        while len(self._ready) < SPARE and self._made < BLOCK_RANGES:
            try:
                self._ready.append(await self._make())
            except RuntimeFault:
                return  # whoever takes next hears why


def _take_block() -> tuple[int, int]:
    """(the lock's descriptor, the block). With more agents than blocks on one machine, the last ones share one."""
    for block in range(BLOCKS):
        lock = os.open(os.path.join(LOCKS, f"cadenza-ids-{block}"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, block
        except BlockingIOError:
            os.close(lock)
    return -1, BLOCKS - 1
