"""Files by content: ``objects/ab/cdef...`` by SHA-256, immutable, mode 0444, written once and renamed into place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from typing import Container, Iterable, Optional

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.storage.blobs import COPY_BYTES

TOUCH_S = 3600.0
"""How stale the time of an object's last use may be."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class ObjectStore:
    """The node's object directory. `put` and `put_file` block: call them in threads.

    The rename alone survives any end of our process; with ``sync`` an object also survives a loss of power. The time
    of a file is when its object was last put or asked for, within `TOUCH_S`: whoever is told that an object is there
    can count on it until `sweep` calls that time old.
    """

    def __init__(self, root: str, sync: bool = False) -> None:
        self.root = root
        self._sync = sync
        self._lock = threading.Lock()
        self._drafts = os.path.join(root, "tmp")
        os.makedirs(self._drafts, mode=0o700, exist_ok=True)
        os.chmod(root, 0o755)
        for name in os.listdir(self._drafts):
            os.unlink(os.path.join(self._drafts, name))

    def path_of(self, digest: str) -> str:
        """Where an object of this digest is or would be. InvalidError when it is no SHA-256 in lower-case hex."""
        if not _DIGEST.match(digest):
            raise InvalidError(f"not a SHA-256 in hex: {digest[:80]!r}")
        return os.path.join(self.root, digest[:2], digest[2:])

    def path(self, digest: str) -> Optional[str]:
        """The path of an object that is there, else None."""
        path = self.path_of(digest)
        return path if os.path.exists(path) else None

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not there, each once, in order."""
        return [one for one in dict.fromkeys(digests) if not self._use(self.path_of(one))]

    def _use(self, path: str) -> bool:
        """Whether an object is there; if it is, it was used now."""
        with self._lock:
            try:
                if os.stat(path).st_mtime < time.time() - TOUCH_S:
                    os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def sweep(self, named: Container[str], oldest: float) -> int:
        """Remove objects that were last used before ``oldest`` (epoch seconds) and that ``named`` does not hold.

        How many. Blocks; objects may be put and asked for meanwhile.
        """
        gone = 0
        for folder in os.listdir(self.root):
            if len(folder) != 2:
                continue
            for name in os.listdir(os.path.join(self.root, folder)):
                if folder + name in named:
                    continue
                path = os.path.join(self.root, folder, name)
                with self._lock, contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_mtime < oldest:
                        os.unlink(path)
                        gone += 1
        return gone

    def put(self, digest: str, data: bytes) -> None:
        """Store an object. InvalidError when its content has another digest."""
        target = self.path_of(digest)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise InvalidError(f"the content's SHA-256 is {found}, not {digest}: it changed on the way or while read")
        if self._use(target):
            return
        fd, draft = tempfile.mkstemp(dir=self._drafts)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            self._commit(fd, draft, target)
        finally:
            self._end(fd, draft)

    def put_file(self, digest: str, source: int, size: int) -> None:
        """The same from the first ``size`` bytes of a file descriptor."""
        target = self.path_of(digest)
        if self._use(target):
            return
        fd, draft = tempfile.mkstemp(dir=self._drafts)
        try:
            hasher = hashlib.sha256()
            done = 0
            while done < size:
                part = os.pread(source, min(COPY_BYTES, size - done), done)
                if not part:
                    raise DataLossError(f"only {done} of {size} bytes were there")
                hasher.update(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(fd, view) :]
                done += len(part)
            if hasher.hexdigest() != digest:
                raise InvalidError(
                    f"the content's SHA-256 is {hasher.hexdigest()}, not {digest}: it changed on the way or while read"
                )
            self._commit(fd, draft, target)
        finally:
            self._end(fd, draft)

    def _commit(self, fd: int, draft: str, target: str) -> None:
        os.fchmod(fd, 0o444)
        if self._sync:
            os.fsync(fd)
        folder = os.path.dirname(target)
        if not os.path.isdir(folder):
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, 0o755)
        os.rename(draft, target)

    def _end(self, fd: int, draft: str) -> None:
        os.close(fd)
        try:
            os.unlink(draft)
        except FileNotFoundError:
            pass
