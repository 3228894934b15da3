"""Large values as files: durable puts and what does not fit in memory. A directory, and the same in memory.

All methods block and are called in threads. A blob's content never changes; an id is written once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Iterator, Protocol

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.base.ids import kind_of

COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class StoredBlob:
    """One line of a listing: ``size`` in bytes, ``created_at`` in epoch seconds."""

    blob_id: str
    size: int
    created_at: float


class Draft(Protocol):
    """A blob that is being written: write to ``fd``, then `commit` or `discard`, once."""

    @property
    def fd(self) -> int: ...

    def commit(self, blob_id: str) -> None:
        """The bytes written so far are the blob, all at once."""

    def discard(self) -> None: ...


class BlobStore(Protocol):
    """Where blobs are kept. NotFoundError for an id that is not there; InvalidError for what is no blob's id."""

    def put(self, blob_id: str, data: bytes) -> None: ...

    def draft(self) -> Draft: ...

    def get(self, blob_id: str) -> bytes: ...

    def open(self, blob_id: str) -> int:
        """A read-only file descriptor on the whole content; the caller closes it. It outlives `delete`."""

    def size(self, blob_id: str) -> int: ...

    def delete(self, blob_id: str) -> None:
        """Remove it; one that is not there is fine."""

    def list(self) -> Iterator[StoredBlob]: ...


def copy(source: int, target: int, size: int) -> None:
    """``size`` bytes from the beginning of ``source`` to the position of ``target``, within the kernel.

    InvalidError when ``source`` has fewer.
    """
    done = 0
    while done < size:
        count = os.sendfile(target, source, done, min(COPY_BYTES, size - done))
        if count == 0:
            raise InvalidError(f"only {done} of {size} bytes were there")
        done += count


def _check(blob_id: str) -> str:
    if kind_of(blob_id) != "blob":
        raise InvalidError(f"not a blob's id: {blob_id[:60]!r}")
    return blob_id


def _missing(blob_id: str) -> NotFoundError:
    return NotFoundError(f"there is no blob {blob_id}: it was released, or has expired")


class DirectoryBlobs:
    """Blobs as files ``<root>/ab/bl-...`` (0600), written to a temporary file and renamed.

    With ``sync`` they also survive a loss of power.
    """

    def __init__(self, root: str, sync: bool = False) -> None:
        self._root = root
        self._sync = sync
        self._drafts = os.path.join(root, "tmp")
        os.makedirs(self._drafts, mode=0o700, exist_ok=True)
        for name in os.listdir(self._drafts):  # of a process that was killed
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._drafts, name))

    def _path(self, blob_id: str) -> str:
        return os.path.join(self._root, _check(blob_id)[3:5].lower(), blob_id)

    def put(self, blob_id: str, data: bytes) -> None:
        draft = self.draft()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(draft.fd, view) :]
            draft.commit(blob_id)
        except BaseException:
            draft.discard()
            raise

    def draft(self) -> Draft:
        return _FileDraft(self, *tempfile.mkstemp(dir=self._drafts))

    def get(self, blob_id: str) -> bytes:
        with os.fdopen(self.open(blob_id), "rb") as file:
            return file.read()

    def open(self, blob_id: str) -> int:
        try:
            return os.open(self._path(blob_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(blob_id) from None

    def size(self, blob_id: str) -> int:
        try:
            return os.stat(self._path(blob_id)).st_size
        except FileNotFoundError:
            raise _missing(blob_id) from None

    def delete(self, blob_id: str) -> None:
        try:
            os.unlink(self._path(blob_id))
        except FileNotFoundError:
            pass

    def list(self) -> Iterator[StoredBlob]:
        for folder in sorted(os.listdir(self._root)):
            if len(folder) != 2:
                continue
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    try:
                        found = entry.stat()
                    except FileNotFoundError:
                        continue
                    yield StoredBlob(entry.name, found.st_size, found.st_mtime)

    def _commit(self, fd: int, path: str, blob_id: str) -> None:
        target = self._path(blob_id)
        folder = os.path.dirname(target)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if self._sync:
            os.fsync(fd)
        os.rename(path, target)
        if self._sync:
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


class _FileDraft:
    def __init__(self, store: DirectoryBlobs, fd: int, path: str) -> None:
        self._store = store
        self._fd = fd
        self._path = path

    @property
    def fd(self) -> int:
        return self._fd

    def commit(self, blob_id: str) -> None:
        self._store._commit(self._fd, self._path, blob_id)
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass


class MemoryBlobs:
    """The same in memory, for tests and for servers without a disk. Each blob is a memfd."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[int, float]] = {}

    def put(self, blob_id: str, data: bytes) -> None:
        draft = self.draft()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(draft.fd, view) :]
            draft.commit(blob_id)
        except BaseException:
            draft.discard()
            raise

    def draft(self) -> Draft:
        return _MemoryDraft(self, os.memfd_create("cadenza-blob", os.MFD_CLOEXEC))

    def get(self, blob_id: str) -> bytes:
        with os.fdopen(self.open(blob_id), "rb") as file:
            return file.read()

    def open(self, blob_id: str) -> int:
        with self._lock:
            return os.open(f"/proc/self/fd/{self._find(blob_id)}", os.O_RDONLY | os.O_CLOEXEC)

    def size(self, blob_id: str) -> int:
        with self._lock:
            return os.fstat(self._find(blob_id)).st_size

    def delete(self, blob_id: str) -> None:
        with self._lock:
            found = self._blobs.pop(_check(blob_id), None)
        if found is not None:
            os.close(found[0])

    def list(self) -> Iterator[StoredBlob]:
        with self._lock:
            found = [StoredBlob(one, os.fstat(fd).st_size, at) for one, (fd, at) in sorted(self._blobs.items())]
        return iter(found)

    def _find(self, blob_id: str) -> int:
        found = self._blobs.get(_check(blob_id))
        if found is None:
            raise _missing(blob_id)
        return found[0]

    def _keep(self, blob_id: str, fd: int) -> None:
        with self._lock:
            old = self._blobs.pop(_check(blob_id), None)
            self._blobs[blob_id] = (fd, time.time())
        if old is not None:
            os.close(old[0])


class _MemoryDraft:
    def __init__(self, store: MemoryBlobs, fd: int) -> None:
        self._store = store
        self._fd = fd

    @property
    def fd(self) -> int:
        return self._fd

    def commit(self, blob_id: str) -> None:
        self._store._keep(blob_id, self._fd)
        self._fd = -1

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
