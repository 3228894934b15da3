"""The kernel's side of FUSE, as much of it as a read-only mount needs: messages on /dev/fuse to values and back.

Layouts and numbers are those of include/uapi/linux/fuse.h, protocol 7.31 to 7.45; integers in the machine's order.
Nothing here keeps state: who reads the device decides what to answer (`cadenza.fs.lazy`).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from dataclasses import dataclass
from typing import Optional, Union

DEVICE = "/dev/fuse"
ROOT = 1
"""The root's node number."""
BUFFER_BYTES = 64 << 10
"""What one read from the device takes: the kernel wants room for the longest message, of `_MAX_WRITE_BYTES`."""
MAX_READ_BYTES = 1 << 20
FOREVER_S = 1 << 31
"""How long the kernel may keep names and attributes that never change."""

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY = 25, 26, 27, 28, 29, 34, 36, 38
BATCH_FORGET = 42
NO_REPLY = frozenset((FORGET, BATCH_FORGET, INTERRUPT))

KEEP_CACHE, PASSTHROUGH_OPEN = 1 << 1, 1 << 7
RESENT = 1 << 63
"""Bit of ``unique``: the kernel gives this message a second time."""

_MAJOR, _MINOR, _OLDEST_MINOR = 7, 41, 31
_ASYNC_READ, _PARALLEL_DIROPS, _MAX_PAGES = 1 << 0, 1 << 18, 1 << 22
_ABORT_ERROR, _NO_OPENDIR, _INIT_EXT = 1 << 21, 1 << 24, 1 << 30
_PASSTHROUGH, _RESEND = 1 << 37, 1 << 39
_MAX_WRITE_BYTES = 4096
_NOTIFY_RESEND = 7
_BACKING_OPEN, _BACKING_CLOSE = 0x4010E501, 0x4004E502
_BACKGROUND = 64
"""How many reads ahead of need the kernel may have under way."""

_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_HEAD = struct.Struct("=QII")
_OPEN_OUT = struct.Struct("=QIi")
_READ_IN = struct.Struct("=QQIIQII")
_RELEASE_IN = struct.Struct("=Q")
_STATFS = struct.Struct("=QQQQQIIII24x")
_UNIQUE = struct.Struct("=Q")
_BACKING = struct.Struct("=iIQ")

_MS_NOATIME = 1024

Data = Union[bytes, bytearray, memoryview]


@dataclass(frozen=True)
class Request:
    """One message from the kernel. ``pid`` is the thread that asks, 0 when this pid namespace does not see it."""

    opcode: int
    unique: int
    node: int
    pid: int
    body: bytes

    @property
    def key(self) -> int:
        """The same for a message and its resent form."""
        return self.unique & ~RESENT


def request(message: Data) -> Request:
    """A message as it was read from the device."""
    length, opcode, unique, node, _, _, pid, _, _ = _IN.unpack_from(message)
    return Request(opcode, unique, node, pid, bytes(message[_IN.size : length]))


def pack_request(opcode: int, unique: int, node: int, body: bytes = b"", pid: int = 0) -> bytes:
    """The message that `request` reads: for tests."""
    return _IN.pack(_IN.size + len(body), opcode, unique, node, 0, 0, pid, 0, 0) + body


def reply(unique: int, body: Data = b"", error: int = 0) -> bytes:
    """An answer; ``error`` a positive errno, and then without a body."""
    if error:
        return _OUT.pack(_OUT.size, -error, unique)
    return _OUT.pack(_OUT.size + len(body), 0, unique) + body


@dataclass(frozen=True)
class Terms:
    """What this mount and its kernel agreed on."""

    minor: int
    resend: bool
    """Whether unanswered messages can be given again to another reader (Linux 6.9)."""
    passthrough: bool
    """Whether an open file can be tied to one of another file system (Linux 6.9)."""


def agree(body: bytes, *, passthrough: bool) -> tuple[bytes, Optional[Terms]]:
    """The answer to INIT, and the terms; None: the kernel is to ask again with our version, or is too old."""
    major, minor, readahead, offered = _INIT_IN.unpack_from(body)
    if major > _MAJOR:
        return _INIT_OUT.pack(_MAJOR, _MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), None
    if major < _MAJOR or minor < _OLDEST_MINOR:
        return b"", None
    if offered & _INIT_EXT and len(body) >= _INIT_IN.size + 4:
        offered |= int.from_bytes(body[_INIT_IN.size : _INIT_IN.size + 4], sys.byteorder) << 32
    wanted = _ASYNC_READ | _PARALLEL_DIROPS | _MAX_PAGES | _ABORT_ERROR | _NO_OPENDIR | _INIT_EXT | _RESEND
    if passthrough:
        wanted |= _PASSTHROUGH
    flags = wanted & offered
    terms = Terms(min(minor, _MINOR), bool(flags & _RESEND), bool(flags & _PASSTHROUGH))
    out = _INIT_OUT.pack(
        _MAJOR, _MINOR, max(readahead, MAX_READ_BYTES), flags & 0xFFFFFFFF, _BACKGROUND, _BACKGROUND * 3 // 4,
        _MAX_WRITE_BYTES, 1, MAX_READ_BYTES // 4096, 0, flags >> 32, 1 if terms.passthrough else 0, 0,
    )  # fmt: skip
    return out, terms


def _attributes(node: int, mode: int, size: int) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    return _ATTR.pack(node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)


def entry(node: int, mode: int, size: int) -> bytes:
    """The answer to LOOKUP: a name that will always mean this node."""
    return _ENTRY.pack(node, 0, FOREVER_S, FOREVER_S, 0, 0) + _attributes(node, mode, size)


def attributes(node: int, mode: int, size: int) -> bytes:
    """The answer to GETATTR."""
    return _ATTR_HEAD.pack(FOREVER_S, 0, 0) + _attributes(node, mode, size)


def opened(handle: int = 0, flags: int = KEEP_CACHE, backing: int = 0) -> bytes:
    """The answer to OPEN."""
    return _OPEN_OUT.pack(handle, flags, backing)


def statistics() -> bytes:
    """The answer to STATFS."""
    return _STATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def read_range(body: bytes) -> tuple[int, int]:
    """``(offset, size)`` that a READ asks for."""
    _, offset, size, *_ = _READ_IN.unpack_from(body)
    return offset, size


def released(body: bytes) -> int:
    """The handle that a RELEASE ends."""
    handle: int = _RELEASE_IN.unpack_from(body)[0]
    return handle


def interrupted(body: bytes) -> int:
    """The `Request.key` of the message that an INTERRUPT is about."""
    unique: int = _UNIQUE.unpack_from(body)[0]
    return unique & ~RESENT


def name(body: bytes) -> str:
    """The name that a LOOKUP asks for."""
    return body.split(b"\0", 1)[0].decode(errors="surrogateescape")


def resend(device: int) -> None:
    """Have the kernel give again whatever was read and never answered. OSError where it cannot."""
    os.write(device, _OUT.pack(_OUT.size, _NOTIFY_RESEND, 0))


def back(device: int, fd: int) -> int:
    """Register an open file, which opens may be tied to; the id it has until `unback`. OSError."""
    # Python gives the call's own result for what it may write to.
    return int(fcntl.ioctl(device, _BACKING_OPEN, bytearray(_BACKING.pack(fd, 0, 0)), True))


def unback(device: int, backing: int) -> None:
    """Forget an id of `back`."""
    fcntl.ioctl(device, _BACKING_CLOSE, struct.pack("=I", backing))


def is_killed(pid: int) -> bool:
    """Whether this thread has a SIGKILL pending, which every deadly signal becomes, or is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & 1 << 8:
                    return True
    except OSError:
        return True
    return False


def mount(target: str, device: int) -> None:
    """Mount what is answered on ``device`` at ``target``, for uid 0 alone. Needs root. OSError.

    No ``allow_other``: overlayfs goes to its layers with the rights of who mounted it
    (Documentation/filesystems/overlayfs.rst, "Permission model"), so readers of the overlay need none here.
    """
    from cadenza.fs import kernel  # what answers needs no mounts

    kernel.mount(
        "cadenza-lazy", target, "fuse", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | _MS_NOATIME,
        f"fd={device},rootmode=40000,user_id=0,group_id=0",
    )  # fmt: skip
