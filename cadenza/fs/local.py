"""The store's part on this machine's disk: objects, lists of chunks, trees, records (docs/formats/store.md). Blocking.

Everything is written as a draft and renamed into place, mode 0444, never changed afterwards. The time of a file is when
it was last put or asked for, within `TOUCH_S`: whoever is told that something is there can count on it for as long as
`cadenza.fs.collect` calls that time young, and while a `Pin` is open that is older than that time.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import threading
import time
from typing import Callable, Iterator, Optional

from blake3 import blake3

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.fs import draft as drafts
from cadenza.fs import tree as trees
from cadenza.fs.settle import Marker
from cadenza.fs.tree import CHUNKED_BYTES, DIGEST_BYTES, Node
from cadenza.observe.log import Log

TOUCH_S = 600.0
"""How stale the time of a file's last use may be."""
TICK_S = 0.05
"""How far the kernel's own clock may be behind."""
COPY_BYTES = 1 << 20
TREE_BYTES = 2 << 30
"""A tree whose encoding is larger is not believed."""
FOLDERS = ("objects", "trees", "lists", "big", "steps", "images", "layers", "traces", "tmp")
RECORDS = ("steps", "images", "layers", "traces")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_log = Log("cadenza.fs.store")


class Pin:
    """While it is open, nothing that was committed or asked for since it was opened is removed by this process."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._number = -1

    def __enter__(self) -> Pin:
        if self._number < 0:
            self._number = self._local.pin_begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; a second time without effect."""
        if self._number >= 0:
            self._local.pin_end(self._number)
            self._number = -1


class Local:
    """The directory ``home``. Several processes may use one; each object is written by whoever comes first."""

    def __init__(self, home: str, clock: Optional[Callable[[], float]] = None) -> None:
        self.home = os.path.abspath(home)
        self.objects = os.path.join(self.home, "objects")
        raw = clock or time.time
        self.clock = _forward(raw)
        self.lock = threading.Lock()
        """Held between looking at a file's time and removing it, or moving its time on."""
        self._pins: dict[int, float] = {}
        self._pin_numbers = itertools.count()
        with drafts.room(self.home):
            for name in ("", *FOLDERS):
                _directory(os.path.join(self.home, name))
            if os.stat(self.home).st_uid == os.geteuid():
                # Set-id programs and what is private in images are nobody else's, whatever directory this is in.
                os.chmod(self.home, 0o700)
            if len(os.listdir(self.objects)) < 256:
                for number in range(256):
                    _directory(os.path.join(self.objects, f"{number:02x}"))
            self.drafts = drafts.Drafts(os.path.join(self.home, "tmp"))
        self.marker = Marker(self.home, self.drafts.name, raw)

    def close(self) -> None:
        """Forget drafts. What was committed stays; call `settle` first where it must survive a loss of power."""
        self.drafts.close()

    # Objects.

    def path(self, digest: bytes) -> str:
        """Where the object of this digest (or of this `Node.data`) is or would be."""
        text = name_of(digest)
        return f"{self.objects}/{text[:2]}/{text[2:]}"

    def has(self, digest: bytes) -> bool:
        """Whether the object is on this machine; it then counts as used now."""
        return self.use(self.path(digest))

    def draft(self) -> drafts.Draft:
        """A new file that `Draft.commit` makes an object."""
        return drafts.Draft(self, self.drafts.new(), CHUNKED_BYTES)

    def take(self, path: str, *, move: bool = True) -> tuple[bytes, int]:
        """A finished file becomes an object: its `Node.data` and size in bytes.

        With ``move`` the file itself, by a rename: it must be on the store's file system and nobody may write to it
        any more. InvalidError when it is no regular file.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidError(f"{path}: {error.strerror}") from None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidError(f"{path}: not a regular file")
            if not move:
                return self._copy(fd)
            size = info.st_size
            if not size:
                os.unlink(path)
                return b"", 0
            if size > CHUNKED_BYTES:
                hasher = blake3()
                chunks = self.list_of(fd, size, hasher.update)
                data = hasher.digest() + chunks
            else:
                data = blake3(_read(fd, size)).digest()
            if not self._known(self.path(data), size):
                self.settle_in(path, fd, data, size)
            else:
                self.note_large(data, size)
                os.unlink(path)
            return data, size
        except OSError as error:
            raise drafts.no_room(error, self.home) from None
        finally:
            os.close(fd)

    def _copy(self, fd: int) -> tuple[bytes, int]:
        with self.draft() as draft:
            while part := os.read(fd, COPY_BYTES):
                draft.write(part)
            return draft.commit()

    def list_of(self, fd: int, size: int, each: Optional[Callable[[memoryview], object]] = None) -> bytes:
        """Cut a large file; the digest of its list of chunks, which is kept. ``each`` is given its content in order."""
        from cadenza.fs import chunk

        encoded = chunk.encode_list(chunk.cut(fd, size, each))
        found = blake3(encoded).digest()
        self.put_bytes(f"lists/{found.hex()}", encoded)
        return found

    def settle_in(self, path: str, fd: int, data: bytes, size: int) -> None:
        """Rename a file whose content is known to be ``data`` to its place, unless it is there already."""
        drafts.strip(fd)
        self._date(fd)
        target = self.path(data)
        with self.marker:
            if self._known(target, size):
                os.unlink(path)
            else:
                os.rename(path, target)
        self.note_large(data, size)

    def note_large(self, data: bytes, size: int) -> None:
        """Keep what is to be known of a large file by its digest alone: its size and its list."""
        if len(data) > DIGEST_BYTES:
            digest, chunks = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
            name = f"big/{digest.hex()}"
            if not self.use(f"{self.home}/{name}"):
                self.put_bytes(name, json.dumps({"size": size, "list": chunks.hex()}).encode())

    def large(self, digest: bytes) -> Optional[tuple[int, bytes]]:
        """Of a file above `CHUNKED_BYTES` that some tree here names: its size and its list's digest; else None."""
        raw = self.read(f"big/{digest[:DIGEST_BYTES].hex()}")
        if raw is None:
            return None
        try:
            found = json.loads(raw)
            return int(found["size"]), bytes.fromhex(found["list"])
        except (ValueError, KeyError, TypeError):
            return None

    # Trees and lists.

    def put_tree(self, root: Node) -> bytes:
        """Keep a tree; its digest. Its files' content is the caller's to have put."""
        encoded = trees.encode(root)
        digest = trees.digest(encoded)
        self.keep_tree(digest, encoded, root)
        return digest

    def keep_tree(self, digest: bytes, encoded: bytes, root: Node) -> None:
        """Keep a tree whose encoding is at hand."""
        import zstandard

        for node in trees.files(root):
            if len(node.data) > DIGEST_BYTES:
                self.note_large(node.data, node.size)
        name = f"trees/{digest.hex()}"
        if not self.use(f"{self.home}/{name}"):
            self.put_bytes(name, zstandard.ZstdCompressor(level=3).compress(encoded))

    def local_tree(self, digest: bytes) -> Optional[bytes]:
        """A tree's encoding from this disk; None when it is not here, or no longer what it was (then it is removed)."""
        raw = self.read(f"trees/{digest.hex()}", use=True)
        if raw is None:
            return None
        try:
            return unpack_tree(digest, raw)
        except DataLossError as error:
            self.condemn(f"trees/{digest.hex()}", str(error))
            return None

    def local_list(self, digest: bytes) -> Optional[bytes]:
        """A list of chunks from this disk, checked; None as for `local_tree`."""
        raw = self.read(f"lists/{digest.hex()}", use=True)
        if raw is not None and blake3(raw).digest() != digest:
            self.condemn(f"lists/{digest.hex()}", "not what its name says")
            return None
        return raw

    # Records: small files of whoever uses the store, by kind and name.

    def put_local_record(self, kind: str, name: str, value: bytes) -> None:
        """Keep a record, in place of an older one."""
        self.put_bytes(record_key(kind, name), value)

    def get_local_record(self, kind: str, name: str) -> Optional[bytes]:
        """A record; None: there is none."""
        return self.read(record_key(kind, name), use=True)

    def remove_local_record(self, kind: str, name: str) -> None:
        """Forget a record, if it is there."""
        _unlink(os.path.join(self.home, record_key(kind, name)))

    def records(self, kind: str) -> list[str]:
        """The names of this machine's records of a kind, sorted."""
        record_key(kind, "x")
        return sorted(one for one in os.listdir(os.path.join(self.home, kind)) if _NAME.match(one))

    # What these are made of.

    def put_bytes(self, name: str, value: bytes) -> None:
        """Write a small file at ``home/name``, atomically; an older one is replaced."""
        path = self.drafts.new()
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                os.fchmod(fd, 0o444)
                view = memoryview(value)
                while view:
                    view = view[os.write(fd, view) :]
                self._date(fd)
            finally:
                os.close(fd)
            with self.marker:
                os.rename(path, f"{self.home}/{name}")
        except BaseException as error:
            _unlink(path)
            if isinstance(error, OSError):
                raise drafts.no_room(error, self.home) from None
            raise

    def read(self, name: str, use: bool = False) -> Optional[bytes]:
        """The bytes of ``home/name``; None when there is no such file. With ``use`` it counts as used now."""
        path = f"{self.home}/{name}"
        if use and not self.use(path):
            return None
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def use(self, path: str) -> bool:
        """Whether a file is there; if it is, it counts as used now."""
        with self.lock:
            try:
                self._touch(path, os.stat(path).st_mtime)
            except FileNotFoundError:
                return False
        return True

    def _known(self, path: str, size: int) -> bool:
        """The same for an object of this size; one of another size is torn, and is to be replaced."""
        with self.lock:
            try:
                info = os.stat(path)
                if info.st_size != size:
                    return False
                self._touch(path, info.st_mtime)
            except FileNotFoundError:
                return False
        return True

    def _touch(self, path: str, at: float) -> None:
        now = self.clock()
        if at < now - TOUCH_S or (self._pins and at < self.oldest_pin()):
            try:
                os.utime(path, (now, now))
            except PermissionError:
                pass  # another user's store that we read

    def _date(self, fd: int) -> None:
        now = self.clock()
        os.utime(fd, (now, now))

    def condemn(self, name: str, why: str) -> None:
        """Take a corrupt file out of the way: it is kept as ``tmp/corrupt-...`` for who wants to look, never served."""
        aside = f"{self.home}/tmp/corrupt-{name.replace('/', '-')}"
        _log.error("store.corrupt", file=f"{self.home}/{name}", why=why, kept=aside)
        try:
            os.rename(f"{self.home}/{name}", aside)
        except FileNotFoundError:
            pass

    def key_of(self, digest: bytes) -> str:
        """Of an object, the path below ``home``, and its key in a bucket."""
        return object_key("objects", digest)

    def everything(self, folder: str) -> Iterator[tuple[str, bytes, os.stat_result]]:
        """``(name below home, digest, status)`` of each object, tree or list. They may go meanwhile.

        ``folder``: ``objects`` or one of its directories, ``trees`` or ``lists``.
        """
        if folder == "objects":
            for number in range(256):
                yield from self.everything(f"objects/{number:02x}")
            return
        start = folder.partition("/")[2]
        with os.scandir(os.path.join(self.home, folder)) as entries:
            for entry in entries:
                try:
                    digest = bytes.fromhex(start + entry.name)
                    if len(digest) == DIGEST_BYTES:
                        yield f"{folder}/{entry.name}", digest, entry.stat()
                except (ValueError, FileNotFoundError):
                    continue

    # Pins.

    def pin(self) -> Pin:
        """A pin, open from now on (also a context manager)."""
        return Pin(self).__enter__()

    def pin_begin(self) -> int:
        """Open a pin; its number."""
        with self.lock:
            number = next(self._pin_numbers)
            self._pins[number] = self.clock()
            return number

    def pin_end(self, number: int) -> None:
        """Close it."""
        with self.lock:
            self._pins.pop(number, None)

    def horizon(self) -> float:
        """A time (epoch seconds): what is older, nobody of this process counts on, unless it is named by then.

        Take it before asking what is named: what is put or asked for from now on is younger, or as old as a pin.
        """
        with self.lock:
            return min(self.clock(), self.oldest_pin()) - TICK_S

    def oldest_pin(self) -> float:
        """When the oldest open pin was opened; infinity without one."""
        return min(list(self._pins.values()), default=float("inf"))  # a copy: others open pins meanwhile


def _forward(clock: Callable[[], float]) -> Callable[[], float]:
    """The clock, standing still while it is behind what it has shown: what is put later never looks older."""
    latest = float("-inf")

    def now() -> float:
        nonlocal latest
        latest = max(latest, clock())
        return latest

    return now


def name_of(digest: bytes) -> str:
    """The digest's hex. InvalidError when it is neither a digest nor a `Node.data` that holds one."""
    if len(digest) not in (DIGEST_BYTES, 2 * DIGEST_BYTES):
        raise InvalidError(f"not a BLAKE3 digest: {digest[:40].hex() or 'nothing'}")
    return digest[:DIGEST_BYTES].hex()


def object_key(folder: str, digest: bytes) -> str:
    """``folder/ab/<62 hex>``."""
    text = name_of(digest)
    return f"{folder}/{text[:2]}/{text[2:]}"


def record_key(kind: str, name: str) -> str:
    """``kind/name``. InvalidError when one is none that the store keeps."""
    if kind not in RECORDS:
        raise InvalidError(f"no kind of record: {kind!r}")
    if not _NAME.match(name):
        raise InvalidError(f"no name of a record: {name[:80]!r}")
    return f"{kind}/{name}"


def unpack_tree(digest: bytes, raw: bytes) -> bytes:
    """A tree's encoding out of its file. DataLossError when it is not the tree of that digest."""
    import zstandard

    try:
        if zstandard.frame_content_size(raw) > TREE_BYTES:
            raise DataLossError(f"tree {digest.hex()}: larger than any")
        encoded: bytes = zstandard.ZstdDecompressor().decompress(raw, max_output_size=TREE_BYTES)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DataLossError(f"tree {digest.hex()}: {error}") from None
    if trees.digest(encoded) != digest:
        raise DataLossError(f"tree {digest.hex()}: its content is another's")
    return encoded


def _directory(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=False)
    except FileExistsError:
        return
    os.chmod(path, 0o755)  # whatever the umask


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    if len(data) == size:
        return data
    parts, left = [data], size - len(data)
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
