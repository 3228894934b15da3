"""Files on their way into the store: written under names of their own, then renamed, so that none is ever half there.

Drafts of one process lie in a directory of their own below ``tmp/`` that it holds locked; whoever opens the store later
removes the directories that nobody holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
import uuid
from typing import Iterator, Protocol

from blake3 import blake3

from cadenza.base.errors import ResourceExhaustedError, ServiceError

HOLE_BYTES = 64 << 10
"""Aligned blocks of so many zeros are not written: they stay holes."""
_ZEROS = bytes(HOLE_BYTES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def no_room(error: OSError, home: str) -> OSError | ResourceExhaustedError:
    """The error to raise for one of the operating system: a full disk says which directory needs room."""
    if error.errno in _FULL:
        return ResourceExhaustedError(f"no room left in {home}: free some, or set store_limit_gib lower")
    return error


@contextlib.contextmanager
def kept(home: str) -> Iterator[None]:
    """Within it whatever the disk of ``home`` refuses is an error of ours: ServiceError, if it is not full."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(error, home) from None
        where = error.filename or home
        raise ServiceError(f"content cannot be kept on this machine: {where}: {error.strerror or error}") from None


@contextlib.contextmanager
def room(home: str) -> Iterator[None]:
    """Within it a full disk is a ResourceExhaustedError that names ``home``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(error, home) from None
        raise


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write ``data`` at offset ``at``; aligned blocks of zeros are left out (the caller sets the file's size)."""
    start, end = 0, len(data)
    place = 0
    while place < end:
        step = min(HOLE_BYTES - (at + place) % HOLE_BYTES, end - place)
        if step == HOLE_BYTES and data[place] == 0 and data[place : place + step] == _ZEROS:
            _write_all(fd, data, start, place, at)
            start = place + step
        place += step
    _write_all(fd, data, start, end, at)


def _write_all(fd: int, data: bytes, start: int, end: int, at: int) -> None:
    view = memoryview(data)[start:end]
    at += start
    while view:
        wrote = os.pwrite(fd, view, at)
        view = view[wrote:]
        at += wrote


class Drafts:
    """This process's directory of drafts below ``root``. `close` removes it."""

    def __init__(self, root: str) -> None:
        self.root = root
        _remove_dead(root)
        while True:
            self.name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self.path = os.path.join(root, self.name)
            os.mkdir(self.path, 0o700)
            self._lock_fd = -1
            try:
                self._lock_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path).st_ino == os.fstat(self._lock_fd).st_ino:
                    break
            except (BlockingIOError, FileNotFoundError):
                pass  # another process took it for a dead one's between two of the calls
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
        self._numbers = itertools.count()

    def new(self) -> str:
        """A path that nothing has yet."""
        return f"{self.path}/{next(self._numbers)}"

    def alive(self) -> set[str]:
        """Names of the directories that are there: those that some process holds or held since this one began."""
        return {one.name for one in os.scandir(self.root) if one.is_dir(follow_symlinks=False)}

    def close(self) -> None:
        """Remove what was not committed."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1


def _remove_dead(root: str) -> None:
    for name in os.listdir(root):
        path = os.path.join(root, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # no directory, or gone meanwhile
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


class Shelf(Protocol):
    """What a draft needs of the store that it becomes an object of."""

    home: str

    def settle_in(self, path: str, fd: int, data: bytes, size: int) -> None: ...

    def list_of(self, fd: int, size: int) -> bytes: ...


class Draft:
    """A file being written. Bytes go in by `write`, in order; `commit` or `discard` ends it. For one thread."""

    def __init__(self, shelf: Shelf, path: str, chunked_bytes: int) -> None:
        self._shelf = shelf
        self._path = path
        self._chunked_bytes = chunked_bytes
        self._hasher = blake3()
        self._size = 0
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_room(error, shelf.home) from None

    @property
    def size(self) -> int:
        """How many bytes were written."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. ResourceExhaustedError when the disk is full: then discard."""
        raw = data if isinstance(data, bytes) else bytes(data)
        self._hasher.update(raw)
        try:
            write_at(self.fd, raw, self._size)
        except OSError as error:
            raise no_room(error, self._shelf.home) from None
        self._size += len(raw)

    def commit(self) -> tuple[bytes, int]:
        """Make it an object: what `cadenza.fs.tree.Node.data` says of it, and its size in bytes."""
        if not self._size:
            self.discard()
            return b"", 0
        try:
            if os.fstat(self.fd).st_size != self._size:
                os.ftruncate(self.fd, self._size)  # its end is a hole
            data = self._hasher.digest()
            if self._size > self._chunked_bytes:
                data += self._shelf.list_of(self.fd, self._size)
            self._shelf.settle_in(self._path, self.fd, data, self._size)
        except OSError as error:
            raise no_room(error, self._shelf.home) from None
        finally:
            self.discard()
        return data, self._size

    def discard(self) -> None:
        """Forget it; after `commit`, and a second time, without effect."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def strip(fd: int) -> None:
    """Make a file that was a container's an object's: read-only, the store's own, without attributes of any kind.

    Objects are world-readable: one that kept a set-id bit or a capability could be executed on the host.
    """
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or info.st_gid != os.getegid():
        with contextlib.suppress(PermissionError):
            os.fchown(fd, os.geteuid(), os.getegid())
    if stat.S_IMODE(info.st_mode) != 0o444:
        os.fchmod(fd, 0o444)
    for name in os.listxattr(fd):
        # A security module's own label cannot be taken off, and does no harm.
        with contextlib.suppress(OSError):
            os.removexattr(fd, name)
