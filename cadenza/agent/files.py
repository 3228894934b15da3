"""The files of a function: small sets travel in the attach frame, large ones become a layer, made once per set."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from typing import Callable, Optional, Sequence

from cadenza.base.errors import NotFoundError
from cadenza.protocol.objects import FileEntry

INLINE_BYTES = 4 << 20
"""Sets of files up to this size, all together, go in the attach frame."""
KEPT_LAYERS = 8
"""Layers that no container uses are kept for the next start; the least recently used above this number go."""

ObjectPath = Callable[[str], Optional[str]]


def inline(files: Sequence[FileEntry]) -> bool:
    """Whether the files go in the attach frame."""
    return sum(one.size for one in files) <= INLINE_BYTES


def set_digest(files: Sequence[FileEntry]) -> str:
    """The name of a set of files: SHA-256 in hex over paths, modes and contents."""
    found = hashlib.sha256()
    for one in sorted(files, key=lambda entry: entry.path):
        found.update(f"{one.mode:o} {one.digest} {one.path}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def read(files: Sequence[FileEntry], object_path: ObjectPath) -> list[bytes]:
    """The contents, in order. NotFoundError names a file whose content was never uploaded."""
    contents = []
    for one in files:
        with open(_source(one, object_path), "rb") as file:
            contents.append(file.read())
    return contents


def _source(entry: FileEntry, object_path: ObjectPath) -> str:
    path = object_path(entry.digest)
    if path is None:
        raise NotFoundError(
            f"the content of {entry.path} ({entry.digest[:12]}) is not on this server; run the app again"
        )
    return path


def place(entry: FileEntry, root: str, object_path: ObjectPath, link: bool = True) -> None:
    """Put one file below ``root``: a hard link where the stored object's mode will do, else a copy.

    ``link``: not where somebody may write to it, who would write to the stored object.
    """
    relative = os.path.normpath("/" + entry.path).lstrip("/")
    target = os.path.join(root, relative)
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    source = _source(entry, object_path)
    mode = stat.S_IMODE(os.stat(source).st_mode)
    if link and mode & 0o444 == 0o444 and mode & 0o111 == entry.mode & 0o111:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or a limit on links
    shutil.copyfile(source, target)
    os.chmod(target, entry.mode & 0o777)


class Layers:
    """Directories made of sets of files, below ``directory``. Methods block: call them from a thread."""

    def __init__(self, directory: str, object_path: ObjectPath) -> None:
        self._directory = directory
        self._object_path = object_path
        os.makedirs(directory, mode=0o711, exist_ok=True)

    def ensure(self, files: Sequence[FileEntry]) -> str:
        """The path of the layer that holds exactly these files; made if it is not there."""
        path = os.path.join(self._directory, set_digest(files))
        if os.path.isdir(path):
            os.utime(path)
            return path
        unfinished = f"{path}.{os.getpid()}-{time.monotonic_ns()}"
        try:
            os.mkdir(unfinished, 0o755)
            for one in files:
                place(one, unfinished, self._object_path)
            try:
                os.rename(unfinished, path)
            except OSError:
                if not os.path.isdir(path):  # else another start made it meanwhile
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def trim(self, used: Sequence[str], kept: int = KEPT_LAYERS) -> None:
        """Remove unfinished layers and, of those not in ``used``, all but the ``kept`` most recently used."""
        idle = []
        for entry in os.scandir(self._directory):
            if "." in entry.name:
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.path not in used:
                idle.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(idle, reverse=True)[kept:]:
            shutil.rmtree(path, ignore_errors=True)
