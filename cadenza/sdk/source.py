"""A program's own files on their way into containers: which, where to, their hashes. Source: semantics.md section 4.

`module_source` and `directory_source` list; `hash_files` reads; `upload` sends what the server lacks.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import posixpath
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Optional, Sequence, Union

from cadenza.base.errors import ExecutionError, InvalidError, ModuleNotMountable
from cadenza.base.tasks import all_or_none
from cadenza.protocol.methods import ObjectPart, ObjectPut, ObjectsMissing
from cadenza.protocol.objects import FileEntry
from cadenza.sdk.patterns import NON_PYTHON_FILES, FilePatternMatcher, as_predicate

if TYPE_CHECKING:
    from cadenza.sdk.patterns import Ignore

ROOT = "/root"
"""Where a program's own modules are in a container; it is on the module search path and is the working directory."""
INLINE_OBJECT_BYTES = 8 << 20
"""A larger file goes over the lane."""
SMALL_OBJECT_BYTES = 64 << 10
BATCH_OBJECTS, BATCH_BYTES = 200, 1 << 20
"""Files up to the first size go together, so many and so large at most."""
MISSING_BATCH = 5_000
PARALLEL_UPLOADS = 8
PARALLEL_HASHES = 4
FEW_FILES = 16
"""Up to so many files are hashed without threads: starting them would take longer."""
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalFile:
    """A file here and the absolute path that it gets there."""

    local: str
    remote: str


@dataclass(frozen=True)
class HashedFile:
    """A local file as it was when it was read. ``entry`` is what the server is told."""

    local: str
    entry: FileEntry
    mtime_ns: int


# --- which files ---


def module_name(module: ModuleType) -> str:
    """The name under which a container imports a module; for ``__main__`` that of its file or package. InvalidError
    if there is none, as in an interactive session."""
    if module.__name__ != "__main__":
        return str(module.__name__)
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    path = getattr(module, "__file__", None)
    if not path or not os.path.isfile(path):
        raise InvalidError("this program has no file that a container could import: use serialized=True")
    stem = os.path.basename(str(path))
    stem = stem[:-3] if stem.endswith(".py") else stem
    if not stem.isidentifier():
        raise InvalidError(
            f"{path}: a container imports the program by its file's name, and {stem!r} is no name for a module: "
            "rename the file"
        )
    return stem


def module_source(module: ModuleType) -> list[LocalFile]:
    """What is mounted by itself for a function of ``module``: a script's one file, or all Python files of the top-level
    package. ModuleNotMountable if the module has no file."""
    name = module_name(module)
    package = name.partition(".")[0]
    if "." in name or hasattr(module, "__path__"):
        return package_source(package)
    path = getattr(module, "__file__", None)
    if not path:
        raise ModuleNotMountable(f"module {name!r} has no source file: use include_source=False or serialized=True")
    return [LocalFile(os.path.abspath(path), posixpath.join(ROOT, name + ".py"))]


def package_source(name: str, ignore: Ignore = NON_PYTHON_FILES) -> list[LocalFile]:
    """The files of a module or package that can be imported here, below `ROOT`. ModuleNotMountable if it cannot be."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
    if spec is None:
        raise ModuleNotMountable(f"no module named {name!r} can be imported here: is its directory on the search path?")
    remote = posixpath.join(ROOT, *name.split("."))
    if spec.submodule_search_locations is not None:
        found: list[LocalFile] = []
        for directory in spec.submodule_search_locations:
            found.extend(directory_source(directory, remote, ignore, hidden=False))
        return found
    if not spec.origin or not os.path.isfile(spec.origin):
        raise ModuleNotMountable(f"module {name!r} has no source file (it is {spec.origin or 'built in'})")
    if not spec.origin.endswith(".py"):
        raise ModuleNotMountable(f"module {name!r} is compiled ({spec.origin}): install it with pip_install instead")
    return [LocalFile(os.path.abspath(spec.origin), remote + ".py")]


def directory_source(directory: str, remote: str, ignore: Ignore = (), *, hidden: bool = True) -> list[LocalFile]:
    """The files below a directory that ``ignore`` does not name, sorted.

    Links are followed, but not into a directory that the link itself is in. ``hidden=False`` also leaves out dotfiles,
    ``__pycache__`` and compiled files. FileNotFoundError if there is no such directory.
    """
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"no directory {directory}")
    ignored = as_predicate(ignore)
    prune = isinstance(ignored, FilePatternMatcher) and ignored.can_prune_directories()
    root = os.path.abspath(directory)
    found = [
        LocalFile(os.path.join(root, part), posixpath.join(remote, part.replace(os.sep, "/")))
        for part in walk(root, ignored if prune else None, hidden)
        if not ignored(Path(part))
    ]
    return sorted(found, key=lambda one: one.remote)


def walk(root: str, prune: Optional[Callable[[Path], bool]], hidden: bool) -> Iterator[str]:
    """Paths of files below ``root``, relative to it."""
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        part, above = stack.pop()
        here = os.path.join(root, part)
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link to a directory that it is in
        inside = above | {identity}
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if not hidden and (name.startswith(".") or name == "__pycache__" or name.endswith((".pyc", ".pyo"))):
                    continue
                path = os.path.join(part, name)
                if entry.is_dir():
                    if prune is None or not prune(Path(path)):
                        stack.append((path, inside))
                elif entry.is_file():
                    yield path


# --- their content ---

_known: dict[str, HashedFile] = {}
_known_lock = threading.Lock()


def hash_file(file: LocalFile) -> HashedFile:
    """A file's SHA-256, size and mode. What was read once is not read again while path, time and size are the same."""
    try:
        status = os.stat(file.local)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file.local}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidError(f"{file.local} is not a regular file")
    mode = 0o755 if status.st_mode & 0o100 else 0o644
    with _known_lock:
        known = _known.get(file.local)
    if known is not None and known.mtime_ns == status.st_mtime_ns and known.entry.size == status.st_size:
        entry = FileEntry(file.remote, known.entry.digest, known.entry.size, mode)
        return HashedFile(file.local, entry, known.mtime_ns)
    digest = hashlib.sha256()
    size = 0
    with open(file.local, "rb", buffering=0) as stream:
        while True:
            block = stream.read(READ_BYTES)
            if not block:
                break
            digest.update(block)
            size += len(block)
        after = os.fstat(stream.fileno())
    if size != status.st_size or (after.st_mtime_ns, after.st_size) != (status.st_mtime_ns, status.st_size):
        raise changed(file.local)
    hashed = HashedFile(file.local, FileEntry(file.remote, digest.hexdigest(), size, mode), status.st_mtime_ns)
    with _known_lock:
        _known[file.local] = hashed
    return hashed


def changed(path: str) -> ExecutionError:
    """The error for a file that is not what it was a moment ago."""
    return ExecutionError(f"{path} changed while it was being read: let it come to rest and run again")


def hash_files(files: Sequence[LocalFile]) -> list[HashedFile]:
    """`hash_file` for each, in order, on threads if there are many. The later of two with one remote path wins."""
    unique = list({one.remote: one for one in files}.values())
    if len(unique) <= FEW_FILES:
        return [hash_file(one) for one in unique]
    with ThreadPoolExecutor(PARALLEL_HASHES, thread_name_prefix="cadenza-hash") as pool:
        return list(pool.map(hash_file, unique, chunksize=32))


# --- sending ---


@dataclass(frozen=True)
class Upload:
    """Content that the server should have: a file here, or bytes."""

    digest: str
    size: int
    local: str = ""
    data: bytes = b""
    mtime_ns: int = 0


def uploads_of(files: Iterable[Union[HashedFile, Upload]]) -> list[Upload]:
    """One upload for each different content."""
    found: dict[str, Upload] = {}
    for one in files:
        if isinstance(one, HashedFile):
            one = Upload(one.entry.digest, one.entry.size, one.local, b"", one.mtime_ns)
        found[one.digest] = one
    return list(found.values())


def upload_of(data: bytes) -> Upload:
    """Bytes as an upload."""
    return Upload(hashlib.sha256(data).hexdigest(), len(data), data=data)


def read_content(upload: Upload) -> bytes:
    """What is to be sent. ExecutionError if the file is no longer what was hashed."""
    if not upload.local:
        return upload.data
    try:
        with open(upload.local, "rb") as stream:
            data = stream.read()
            status = os.fstat(stream.fileno())
    except FileNotFoundError:
        raise changed(upload.local) from None
    touched = len(data) != upload.size or status.st_mtime_ns != upload.mtime_ns
    if touched and hashlib.sha256(data).hexdigest() != upload.digest:
        raise changed(upload.local)
    return data


async def upload(client: Any, uploads: Sequence[Upload], progress: Optional[Callable[[int, int], None]] = None) -> int:
    """Send what the server does not have; how many objects that were. ``progress(bytes done, bytes in all)``."""
    by_digest = {one.digest: one for one in uploads}
    digests = sorted(by_digest)
    missing: list[Upload] = []
    for start in range(0, len(digests), MISSING_BATCH):
        reply = await client._request("object.missing", ObjectsMissing(tuple(digests[start : start + MISSING_BATCH])))
        missing.extend(by_digest[one] for one in reply.digests)
    total = sum(one.size for one in missing)
    done = 0
    gate = asyncio.Semaphore(PARALLEL_UPLOADS)

    async def send(batch: Sequence[Upload]) -> None:
        nonlocal done
        async with gate:
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(None, lambda: [read_content(one) for one in batch])
            first = batch[0]
            if len(batch) > 1:
                parts = tuple(ObjectPart(one.digest, len(content)) for one, content in zip(batch, data))
                await client._request("object.put", ObjectPut(objects=parts), data)
            elif first.size <= INLINE_OBJECT_BYTES:
                await client._request("object.put", ObjectPut(first.digest), data)
            else:
                blob = await client._put_blob(data, True)
                await client._request("object.put", ObjectPut(first.digest, blob_id=blob.blob_id))
        done += sum(one.size for one in batch)
        if progress is not None:
            progress(done, total)

    await all_or_none([send(one) for one in batches(missing)])
    return len(missing)


def batches(uploads: Sequence[Upload]) -> list[list[Upload]]:
    """Small ones together, large ones alone."""
    found: list[list[Upload]] = []
    count = size = BATCH_BYTES + 1
    for one in uploads:
        if one.size > SMALL_OBJECT_BYTES:
            found.insert(0, [one])
            continue
        if count >= BATCH_OBJECTS or size + one.size > BATCH_BYTES:
            found.append([])
            count = size = 0
        found[-1].append(one)
        count += 1
        size += one.size
    return found
