"""What the lazy mount answers: fetches what is asked for and is missing, then steps aside (docs/formats/lazy.md).

The mount shows ``/ab/<62 hex>`` for each object there could be. One thread reads the device and never waits; whoever
asks for something missing is kept in a table until a pool of threads (`cadenza.fs.crew`) has fetched it. Nothing has to
survive the process: numbers of files are made of digests, and what was asked the kernel gives again.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from typing import Any, Callable, Optional, Protocol, Sequence

from cadenza.base.errors import DataLossError, ResourceExhaustedError, ServiceError
from cadenza.fs import fuse
from cadenza.fs.chunk import Chunk
from cadenza.fs.crew import Crew
from cadenza.fs.errands import FOREVER, Waiter
from cadenza.fs.fuse import Request, Terms
from cadenza.fs.link import PASSTHROUGH, RETRY, Trial
from cadenza.fs.neighbours import Shown
from cadenza.fs.ranges import Ranges
from cadenza.fs.tree import Node
from cadenza.observe.log import Log

BIG_BYTES = 64 << 20
"""Objects above this size are read by range before they are whole."""
WAIT_S = 30.0
"""How long a reader waits for an object, or a chunk, before it is told EIO; objects of known size get longer."""
SLOWEST_BYTES_S = 1 << 20
"""A store that gives less than this a second is as good as dead."""
REPORT_S = 0.25
PATIENCE_S = 8.0
"""An outage of the store that is shorter is a delay and not an error."""
AGAIN_S = 0.25
FORGET_S = 60.0
"""An outage that nobody noticed for so long may be over."""
DOUBT_S = 0.05
"""How often a reader with a signal pending is looked at: it may be killed later."""
TOLD_S = 0.05
STUCK_S = 5.0
"""One message keeps the thread that reads them no longer than this, or something is wrong."""
LOG_S = 1.0
"""At most one line of a kind in this time."""

_TWO_HEX = re.compile(r"[0-9a-f]{2}\Z")
_OBJECT_HEX = re.compile(r"[0-9a-f]{62}\Z")
_FOLDERS = 0x100
_OBJECTS = 1 << 62
_NUMBER_HEX = 15
"""How many of a digest's digits are in its file's number."""
_LIST = b"l"
"""Keys of errands: a digest for an object, this and a digest for its list, a digest and a u32 for a chunk."""
_DIRECTORY, _FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o444

_log = Log("cadenza.fs.lazy")


class Source(Protocol):
    """What is needed of the store; `cadenza.fs.store.Store` is one."""

    home: str
    objects: str

    def path(self, digest: bytes) -> str: ...
    def has(self, digest: bytes) -> bool: ...
    def large(self, digest: bytes) -> Optional[tuple[int, bytes]]: ...
    def chunks(self, list_digest: bytes) -> Sequence[Chunk]: ...
    def tree(self, digest: bytes) -> Node: ...
    def fetch(self, data: bytes, size: int = -1) -> str: ...
    def fetch_range(self, data: bytes, size: int, start: int, length: int, *, finish: bool = True) -> bytes: ...


class _Asked(Waiter[bytes]):
    """A message of the kernel's that waits for content; ``go_on`` answers it."""

    def __init__(self, request: Request, until: float, go_on: Callable[[Request], None]) -> None:
        super().__init__(until=until)
        self.request = request
        self.go_on = go_on


class _Wanted(Waiter[bytes]):
    """A prefetch with a number."""

    def __init__(self, number: int, count: int) -> None:
        super().__init__(patient=True)
        self.number = number
        self.count = count


class Worker:
    """Answers the kernel on ``device``; ``report`` sends a frame to the supervisor."""

    def __init__(
        self,
        device: int,
        store: Source,
        report: Callable[[dict[str, Any]], None],
        *,
        mode: str = RETRY,
        terms: Optional[Terms] = None,
        trial: Optional[Trial] = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self.served: dict[str, int] = dict.fromkeys(
            ("lookups", "hits", "fetched", "fetched_bytes", "chunks", "chunk_bytes", "reads", "errors", "interrupted"),
            0,
        )
        self._device = device
        self._store = store
        self._report = report
        self._mode = mode
        self.terms = terms
        self._trial = trial
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._queued: set[int] = set()
        """Reads that no thread has taken up."""
        self._doubted: set[int] = set()
        self._reported = dict(self.served)
        self._reported_at = 0.0
        self._begun_at = 0.0  # when the message that is being answered came; 0: none is
        self._told_at = 0.0
        self._names: dict[int, bytes] = {}
        self._data: dict[bytes, tuple[bytes, int]] = {}
        self._ranges: dict[bytes, Ranges] = {}
        self._shown = Shown(store.tree)
        self._down: Optional[tuple[float, float]] = None
        """Since when the store does not answer, and when that was last seen."""
        self._logged: dict[str, tuple[float, int]] = {}
        self._answers: dict[int, Callable[[Request], None]] = {
            fuse.LOOKUP: self._lookup, fuse.GETATTR: self._getattr, fuse.OPEN: self._open, fuse.READ: self._read,
            fuse.RELEASE: self._release, fuse.STATFS: lambda one: self._reply(one, fuse.statistics()),
            fuse.READDIR: self._reply, fuse.RELEASEDIR: self._reply, fuse.DESTROY: self._reply,
            fuse.INIT: self._init, fuse.INTERRUPT: self._interrupt,
            fuse.FORGET: lambda one: None, fuse.BATCH_FORGET: lambda one: None,
        }  # fmt: skip
        self._crew = Crew(self._fetch, self._over, self._late, self._tick, self._ended)

    # What the kernel says.

    def serve(self) -> None:
        """Answer until the mount is gone. Blocking."""
        buffer = bytearray(fuse.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            try:
                count = os.readv(self._device, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue  # ENOENT: who asked was killed before we read it
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                raise
            self._begun_at = time.monotonic()
            self.answer(fuse.request(view[:count]))
            self._begun_at = 0.0

    def goes_on(self) -> bool:
        """Whether messages are answered. Does not return when a lock is held for good."""
        self._crew.stir(FOREVER)  # no more than taking its lock
        with self._lock:
            return not self._begun_at or time.monotonic() < self._begun_at + STUCK_S

    def answer(self, request: Request) -> None:
        """Answer one message, now or when what it needs is here."""
        act = self._answers.get(request.opcode)
        if act is None:
            self._reply(request, error=errno.ENOSYS)
            return
        try:
            act(request)
        except Exception as error:
            self._fail(request, error)

    def _reply(self, request: Request, body: fuse.Data = b"", error: int = 0) -> None:
        try:
            os.write(self._device, fuse.reply(request.unique, body, error))
        except OSError as fault:
            if fault.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for it any more
                self._say("lazy.reply_refused", f"opcode {request.opcode}: {fault}")

    def _fail(self, request: Request, error: Exception) -> None:
        self._count(errors=1)
        self._tell(f"{error}" or type(error).__name__)  # first: who gets the error may end of it
        full = isinstance(error, ResourceExhaustedError) or getattr(error, "errno", 0) == errno.ENOSPC
        if request.opcode not in fuse.NO_REPLY:
            self._reply(request, error=errno.ENOSPC if full else errno.EIO)
        digest = self._names.get(request.node)
        where = digest.hex() if digest else ""
        if request.opcode == fuse.LOOKUP and request.node >= _FOLDERS:
            where = f"{request.node - _FOLDERS:02x}{fuse.name(request.body)}"
        self._say("lazy.failed", f"{type(error).__name__}: {error}", where)

    def _init(self, request: Request) -> None:
        body, terms = fuse.agree(request.body, passthrough=self._mode == PASSTHROUGH)
        self._reply(request, body, 0 if body else errno.EPROTO)
        if terms is not None:
            self.terms = terms
            self._report({"t": "terms", **vars(terms)})

    def _lookup(self, request: Request) -> None:
        name = fuse.name(request.body)
        if request.node == fuse.ROOT and _TWO_HEX.match(name):
            self._reply(request, fuse.entry(_FOLDERS + int(name, 16), _DIRECTORY, 0))
        elif _FOLDERS <= request.node < _FOLDERS + 256 and _OBJECT_HEX.match(name):
            digest = bytes.fromhex(f"{request.node - _FOLDERS:02x}{name}")
            self._count(lookups=1)
            if self._has(digest):
                self._count(hits=1)
                self._landed(request, digest)
                self._crew.stir(REPORT_S)
                return
            size = self._known(digest)[1]
            if size > BIG_BYTES:
                self._give(request, digest, size)
            else:
                self._ask(request, [digest], lambda one: self._landed(one, digest), max(size, 0))
                if self._shown:
                    self._crew.call(lambda: self._ahead_of(digest))
        else:
            self._reply(request, error=errno.ENOENT)

    def _landed(self, request: Request, digest: bytes) -> None:
        """The object is on this disk: have the kernel look again, first where it now is."""
        if self._mode == RETRY:
            self._reply(request, error=errno.ESTALE)
        else:
            self._give(request, digest, os.stat(self._path(digest)).st_size)

    def _give(self, request: Request, digest: bytes, size: int) -> None:
        node = _OBJECTS | int(digest.hex()[:_NUMBER_HEX], 16)
        self._names[node] = digest
        self._reply(request, fuse.entry(node, _FILE, size))

    def _getattr(self, request: Request) -> None:
        if request.node < _OBJECTS:
            self._reply(request, fuse.attributes(request.node, _DIRECTORY, 0))
            return
        digest = self._digest(request.node)
        size = self._known(digest)[1]
        if size < 0:
            size = os.stat(self._path(digest)).st_size
        self._reply(request, fuse.attributes(request.node, _FILE, size))

    def _open(self, request: Request) -> None:
        digest = self._digest(request.node)
        if self._mode == PASSTHROUGH and self._known(digest)[1] <= BIG_BYTES:
            if not self._has(digest):
                self._ask(request, [digest], self._open)
                return
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                backing = fuse.back(self._device, fd)
            finally:
                os.close(fd)
            self._reply(request, fuse.opened(backing, fuse.PASSTHROUGH_OPEN, backing))
        else:
            self._reply(request, fuse.opened())

    def _release(self, request: Request) -> None:
        backing = fuse.released(request.body)
        if backing:
            fuse.unback(self._device, backing)
        self._reply(request)

    def _read(self, request: Request) -> None:
        """Reads go to the pool: a disk may be slow."""
        self._count(reads=1)
        self._queued.add(request.key)
        self._crew.call(lambda: self._read_now(request))

    def _read_now(self, request: Request) -> None:
        self._queued.discard(request.key)
        try:
            digest = self._digest(request.node)
            start, length = fuse.read_range(request.body)
            if self._has(digest):
                with open(self._path(digest), "rb", buffering=0) as file:
                    self._reply(request, os.pread(file.fileno(), length, start))
            elif self._known(digest)[1] > BIG_BYTES:
                self._read_range(request, digest, start, length)
            else:
                self._ask(request, [digest], self._read_now, max(self._known(digest)[1], 0))
        except Exception as error:
            self._fail(request, error)

    def _read_range(self, request: Request, digest: bytes, start: int, length: int) -> None:
        ranges = self._ranges.get(digest)
        if ranges is None:
            self._ask(request, [_LIST + digest], self._read_now)
            return
        with self._lock:
            lacks, ahead = ranges.lacks(start, length), ranges.ahead(start, length)
        if lacks:
            self._ask(request, [_chunk_key(digest, number) for number in lacks], self._read_now)
        else:
            self._reply(request, self._store.fetch_range(*self._known(digest), start, length, finish=False))
        if ahead:
            self._crew.ahead([_chunk_key(digest, number) for number in ahead])

    def _interrupt(self, request: Request) -> None:
        """A signal has come for somebody who waits. Who is killed goes at once; others would not expect EINTR here."""
        key = fuse.interrupted(request.body)
        if key in self._asked or key in self._queued:
            self._doubted.add(key)
            self._let_go()
            self._crew.stir(DOUBT_S)

    def _let_go(self) -> None:
        """Of those with a signal, end the waiting of those that die of it."""
        for key in list(self._doubted):
            asked = self._asked.get(key)
            if asked is None:
                if key not in self._queued:
                    self._doubted.discard(key)
            elif fuse.is_killed(asked.request.pid) and self._crew.leave(asked):
                self._forget(asked)
                self._count(interrupted=1)
                self._reply(asked.request, error=errno.EINTR)

    def _forget(self, asked: _Asked) -> None:
        self._asked.pop(asked.request.key, None)
        self._doubted.discard(asked.request.key)

    # What is where.

    def _digest(self, node: int) -> bytes:
        """The digest of a file's number; of one that another worker gave out, by looking what there is."""
        digest = self._names.get(node)
        if digest is None:
            start = f"{node - _OBJECTS:0{_NUMBER_HEX}x}"
            places = [f"{self._store.home}/big", f"{self._store.objects}/{start[:2]}"]
            heads = ["", start[:2]]
            for place, head in zip(places, heads):
                for name in os.listdir(place):
                    if (head + name).startswith(start) and len(head + name) == 64:
                        digest = self._names[node] = bytes.fromhex(head + name)
                        return digest
            raise DataLossError(f"no object begins with {start}")
        return digest

    def _path(self, digest: bytes) -> str:
        if self._trial is not None and digest == self._trial.digest:
            return self._trial.path
        return self._store.path(digest)

    def _has(self, digest: bytes) -> bool:
        if self._trial is not None and digest == self._trial.digest:
            return os.path.exists(self._trial.path)
        return self._store.has(digest)

    def _known(self, digest: bytes) -> tuple[bytes, int]:
        """An object's `Node.data` and size in bytes, -1 when nobody said it."""
        found = self._data.get(digest)
        if found is None:
            large = self._store.large(digest)
            if large is None:
                return digest, -1
            found = self._data[digest] = (digest + large[1], large[0])
        return found

    # Who waits, and for what.

    def _ask(self, request: Request, keys: list[bytes], go_on: Callable[[Request], None], size: int = 0) -> None:
        asked = _Asked(request, time.monotonic() + self._wait_s + size / SLOWEST_BYTES_S, go_on)
        self._asked[request.key] = asked
        self._crew.ask(asked, keys)

    def prefetch(self, number: int, wanted: Sequence[tuple[bytes, int]]) -> None:
        """Fetch these after whatever somebody waits for; then say ``done`` with this number.

        Of objects that are read by range only their lists: a start reads little of most of them.
        """
        keys: dict[bytes, None] = {}
        for data, size in wanted:
            digest = data[:32]
            if not self._store.has(digest):
                if len(data) > 32 and size >= 0:
                    self._data[digest] = (data, size)
                keys[_LIST + digest if size > BIG_BYTES else digest] = None
        one = _Wanted(number, len(keys))
        if keys:
            self._crew.ask(one, list(keys))
        else:
            self._over(one)

    def show(self, tree: bytes) -> None:
        """A container has this tree: when files of it are missing, others beside them are fetched ahead of need."""
        self._shown.add(tree)

    def _ahead_of(self, digest: bytes) -> None:
        """This is missing: what lies beside it will be wanted too."""
        self._crew.ahead([one for one in self._shown.beside(digest) if not self._store.has(one)])

    def _over(self, one: Waiter[bytes]) -> None:
        if isinstance(one, _Wanted):
            self._report({"t": "done", "number": one.number, "wanted": one.count, "failed": one.failed})
        elif isinstance(one, _Asked):
            self._forget(one)
            if one.error is not None:
                self._fail(one.request, one.error)
                return
            try:
                one.go_on(one.request)
            except Exception as error:
                self._fail(one.request, error)

    def _late(self, one: Waiter[bytes]) -> None:
        assert isinstance(one, _Asked)
        self._forget(one)
        self._fail(one.request, TimeoutError(f"nothing came within {self._wait_s:g} seconds"))

    def _ended(self, key: bytes, heard: bool, fault: Optional[Exception]) -> None:
        if fault is not None and not heard:
            self._say("lazy.prefetch_failed", f"{type(fault).__name__}: {fault}", key[-32:].hex())

    def _fetch(self, key: bytes) -> None:
        """Get what a key names, through short outages; a long one is told at once."""
        while True:
            try:
                self._fetch_once(key)
            except ServiceError:
                now = time.monotonic()
                with self._lock:
                    if self._down is None or now - self._down[1] > FORGET_S:
                        self._down = (now, now)
                    since = self._down[0]
                    self._down = (since, now)
                if now - since > PATIENCE_S:
                    raise
            except Exception:
                self._down = None  # it answers
                raise
            else:
                self._down = None
                return
            time.sleep(AGAIN_S)

    def _fetch_once(self, key: bytes) -> None:
        digest = key[:32]
        if self._trial is not None and digest == self._trial.digest:
            os.makedirs(os.path.dirname(self._trial.path), exist_ok=True)
            with open(self._trial.path, "wb") as file:
                file.write(self._trial.content)
        elif len(key) == 32:
            path = self._store.fetch(*self._known(digest))
            self._count(fetched=1, fetched_bytes=os.stat(path).st_size)
            self._ranges.pop(digest, None)
        elif key.startswith(_LIST) and len(key) == 33:
            digest = key[1:]
            data, size = self._known(digest)
            ranges = Ranges(digest, size, self._store.chunks(data[32:]))
            with self._lock:
                self._ranges.setdefault(digest, ranges)
        else:
            self._fetch_chunk(digest, int.from_bytes(key[32:], "big"))

    def _fetch_chunk(self, digest: bytes, number: int) -> None:
        ranges = self._ranges.get(digest)
        if ranges is None:
            return  # the object has become whole
        chunk = ranges.chunks[number]
        self._store.fetch_range(*self._known(digest), chunk.start, 1, finish=False)
        self._count(chunks=1, chunk_bytes=chunk.length)
        with self._lock:
            ranges.came(number)
            most = ranges.here_bytes * 2 >= ranges.size
            missing = ranges.missing() if most else []
        if missing:  # most of it was wanted: the rest is cheaper now than later
            self._crew.ahead([_chunk_key(digest, one) for one in missing])
        elif most:
            self._crew.ahead([digest])  # which makes one file of it

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self.served[name] += count

    # Time, and words to the supervisor.

    def _tick(self) -> float:
        """Look after the doubted, report counters; in how many seconds again."""
        self._let_go()
        now = time.monotonic()
        due = DOUBT_S if self._doubted else FOREVER
        if self.served != self._reported:
            if now < self._reported_at + REPORT_S:
                return min(due, self._reported_at + REPORT_S - now)
            self._reported, self._reported_at = dict(self.served), now
            self._report({"t": "served", **self._reported})
        return due

    def _tell(self, why: str) -> None:
        """Let the supervisor know what could not be had: who starts containers says it to people."""
        now = time.monotonic()
        if now >= self._told_at + TOLD_S:
            self._told_at = now
            self._report({"t": "failed", "why": why})

    def _say(self, event: str, why: str, where: str = "") -> None:
        """A line for the log; of each kind one in `LOG_S`, which says how many were left out."""
        now = time.monotonic()
        with self._lock:
            at, left_out = self._logged.get(event, (-LOG_S, 0))
            if now < at + LOG_S:
                self._logged[event] = (at, left_out + 1)
                return
            self._logged[event] = (now, 0)
        _log.error(event, object=where, error=why, left_out=left_out)


def _chunk_key(digest: bytes, number: int) -> bytes:
    return digest + number.to_bytes(4, "big")
