"""The process behind the lazy mount: fetches what is asked for and is missing, then steps aside (docs/formats/lazy.md).

    python -m cadenza.fs.lazy DEVICE LINK

``DEVICE`` is an open /dev/fuse that is mounted, ``LINK`` a socket to the supervisor (`cadenza.fs.supervisor`), whose
first frame says what to do. The mount shows ``/ab/<62 hex>`` for each object there could be. One thread reads the
device and never waits; whoever asks for something missing is kept in a table until a pool of threads has fetched it.
Nothing has to survive this process: numbers of files are made of digests, what was asked is given again by the kernel.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol, Sequence

from cadenza.base.errors import DataLossError, ResourceExhaustedError
from cadenza.fs import fuse
from cadenza.fs.chunk import Chunk
from cadenza.fs.fetcher import Fetcher
from cadenza.fs.flights import FOREVER, Waiter
from cadenza.fs.fuse import Request, Terms
from cadenza.fs.link import PASSTHROUGH, RETRY, Link, unpack_wanted
from cadenza.fs.partial import Partial

BIG_BYTES = 64 << 20
"""Objects above this size are read by range before they are whole."""
WAIT_S = 30.0
"""How long a reader waits for an object, or a chunk, before it is told EIO; objects of known size get longer."""
SLOWEST_BYTES_S = 1 << 20
"""A store that gives less than this a second is as good as dead."""
REPORT_S = 0.25
DOUBT_S = 0.05
"""How often a reader with a signal pending is looked at: it may be killed later."""
LOG_S = 1.0
"""At most one line of a kind in this time."""

_TWO_HEX = re.compile(r"[0-9a-f]{2}\Z")
_OBJECT_HEX = re.compile(r"[0-9a-f]{62}\Z")
_FOLDERS = 0x100
_OBJECTS = 1 << 62
_NUMBER_HEX = 15
"""How many of a digest's digits are in its file's number."""
_DIRECTORY, _FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o444


class Source(Protocol):
    """What is needed of the store; `cadenza.fs.store.Store` is one."""

    home: str
    objects: str

    def path(self, digest: bytes) -> str: ...
    def has(self, digest: bytes) -> bool: ...
    def large(self, digest: bytes) -> Optional[tuple[int, bytes]]: ...
    def chunks(self, list_digest: bytes) -> Sequence[Chunk]: ...
    def fetch(self, data: bytes, size: int = -1) -> str: ...
    def fetch_chunk(self, chunk: Chunk) -> bytes: ...
    def settle_in(self, path: str, fd: int, data: bytes, size: int) -> None: ...


@dataclass(frozen=True)
class Trial:
    """An object of no store, to see how the kernel takes answers: it appears at ``path`` when it is asked for."""

    digest: bytes
    path: str
    content: bytes


class _Asked(Waiter[bytes]):
    """A message of the kernel's that waits for content; ``go_on`` answers it."""

    def __init__(self, request: Request, missing: set[bytes], until: float, go_on: Callable[[Request], None]) -> None:
        super().__init__(missing, until)
        self.request = request
        self.go_on = go_on


class _Wanted(Waiter[bytes]):
    """A prefetch with a number."""

    def __init__(self, number: int, missing: set[bytes]) -> None:
        super().__init__(missing, FOREVER, patient=True)
        self.number = number
        self.count = len(missing)


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
            ("lookups", "hits", "fetched", "fetched_bytes", "chunks", "chunk_bytes", "reads", "prefetched", "errors",
             "interrupted"), 0
        )  # fmt: skip
        self._device = device
        self._store = store
        self._report = report
        self._mode = mode
        self.terms = terms
        self._trial = trial
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._doubted: set[int] = set()
        self._reported = dict(self.served)
        self._reported_at = 0.0
        self._names: dict[int, bytes] = {}
        self._data: dict[bytes, tuple[bytes, int]] = {}
        self._partials: dict[bytes, Partial] = {}
        self._finishing: set[bytes] = set()
        self._logged: dict[str, tuple[float, int]] = {}
        self._answers: dict[int, Callable[[Request], None]] = {
            fuse.LOOKUP: self._lookup, fuse.GETATTR: self._getattr, fuse.OPEN: self._open, fuse.READ: self._read,
            fuse.RELEASE: self._release, fuse.STATFS: lambda one: self._reply(one, fuse.statistics()),
            fuse.READDIR: self._reply, fuse.RELEASEDIR: self._reply, fuse.DESTROY: self._reply,
            fuse.INIT: self._init, fuse.INTERRUPT: self._interrupt,
            fuse.FORGET: lambda one: None, fuse.BATCH_FORGET: lambda one: None,
        }  # fmt: skip
        self._fetcher = Fetcher(self._fetch, self._over, self._late, self._tick, self._ended)

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
            self.answer(fuse.request(view[:count]))

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
        self.served["errors"] += 1
        full = isinstance(error, ResourceExhaustedError) or getattr(error, "errno", 0) == errno.ENOSPC
        if request.opcode not in fuse.NO_REPLY:
            self._reply(request, error=errno.ENOSPC if full else errno.EIO)
        digest = self._names.get(request.node)
        where = fuse.name(request.body) if request.opcode == fuse.LOOKUP else digest.hex() if digest else ""
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
            self.served["lookups"] += 1
            if self._has(digest):
                self.served["hits"] += 1
                self._landed(request, digest)
                self._fetcher.stir()
                return
            size = self._known(digest)[1]
            if size > BIG_BYTES:
                self._give(request, digest, size)
            else:
                self._ask(request, {digest}, lambda one: self._landed(one, digest), max(size, 0))
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
                self._ask(request, {digest}, self._open)
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
        self.served["reads"] += 1
        self._fetcher.call(lambda: self._read_now(request))

    def _read_now(self, request: Request) -> None:
        try:
            digest = self._digest(request.node)
            offset, length = fuse.read_range(request.body)
            try:
                fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._read_range(request, digest, offset, length)
                return
            try:
                self._reply(request, os.pread(fd, length, offset))
            finally:
                os.close(fd)
        except Exception as error:
            self._fail(request, error)

    def _read_range(self, request: Request, digest: bytes, offset: int, length: int) -> None:
        size = self._known(digest)[1]
        if size <= BIG_BYTES:
            self._ask(request, {digest}, self._read_now, max(size, 0))
            return
        partial = self._partial(digest)
        ahead = partial.ahead(offset, length)
        lacks = partial.lacks(offset, length)
        if not lacks:
            self._reply(request, partial.read(offset, length))
        else:
            self._ask(request, {_chunk_key(digest, number) for number in lacks}, self._read_now)
        if ahead:
            self._fetcher.ahead(_chunk_key(digest, number) for number in ahead)

    def _interrupt(self, request: Request) -> None:
        """A signal has come for somebody who waits. Who is killed goes at once; others would not expect EINTR here."""
        key = fuse.interrupted(request.body)
        if key in self._asked:
            self._doubted.add(key)
            self._let_go()
            self._fetcher.stir()

    def _let_go(self) -> None:
        """Of those with a signal, end the waiting of those that die of it."""
        for key in list(self._doubted):
            asked = self._asked.get(key)
            if asked is None:
                self._doubted.discard(key)
            elif fuse.is_killed(asked.request.pid) and self._fetcher.leave(asked):
                self._forget(asked)
                self.served["interrupted"] += 1
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
                    if (head + name).startswith(start):
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

    def _partial(self, digest: bytes) -> Partial:
        with self._lock:
            found = self._partials.get(digest)
        if found is None:
            data, size = self._known(digest)
            made = Partial(self._store.home, digest, size, self._store.chunks(data[32:]))
            with self._lock:
                found = self._partials.setdefault(digest, made)
        return found

    # Who waits, and for what.

    def _ask(self, request: Request, missing: set[bytes], go_on: Callable[[Request], None], size: int = 0) -> None:
        asked = _Asked(request, missing, time.monotonic() + self._wait_s + size / SLOWEST_BYTES_S, go_on)
        self._asked[request.key] = asked
        self._fetcher.ask(asked)

    def prefetch(self, number: int, wanted: Sequence[tuple[bytes, int]]) -> None:
        """Fetch these after whatever somebody waits for; then say ``done`` with this number."""
        keys: set[bytes] = set()
        for data, size in wanted:
            digest = data[:32]
            if self._store.has(digest):
                continue
            if len(data) > 32:
                self._data[digest] = (data, size)
            if size > BIG_BYTES and len(data) > 32:
                try:
                    keys.update(_chunk_key(digest, one) for one in self._partial(digest).missing())
                except Exception as error:
                    self._say("lazy.prefetch_failed", f"{type(error).__name__}: {error}", digest.hex())
            else:
                keys.add(digest)
        one = _Wanted(number, keys)
        if keys:
            self._fetcher.ask(one)
        else:
            self._over(one)

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
        self._fail(one.request, TimeoutError(f"nothing came for {self._wait_s:g} s"))

    def _ended(self, key: bytes, heard: bool, fault: Optional[Exception]) -> None:
        if fault is not None and not heard:
            self._say("lazy.prefetch_failed", f"{type(fault).__name__}: {fault}", key[:32].hex())

    def _fetch(self, key: bytes) -> None:
        digest = key[:32]
        if self._trial is not None and digest == self._trial.digest:
            os.makedirs(os.path.dirname(self._trial.path), exist_ok=True)
            with open(self._trial.path, "wb") as file:
                file.write(self._trial.content)
            return
        if len(key) == 32:
            path = self._store.fetch(*self._known(digest))
            self.served["fetched"] += 1
            self.served["fetched_bytes"] += os.stat(path).st_size
            return
        partial = self._partial(digest)
        number = int.from_bytes(key[32:], "big")
        chunk = partial.chunks[number]
        partial.put(number, self._store.fetch_chunk(chunk))
        self.served["chunks"] += 1
        self.served["chunk_bytes"] += chunk.length
        if not partial.whole:
            if partial.here_bytes * 2 >= partial.size:  # most of it was wanted: the rest is cheaper now than later
                self._fetcher.ahead(_chunk_key(digest, one) for one in partial.missing())
            return
        with self._lock:
            last = digest not in self._finishing
            self._finishing.add(digest)
        if last:
            self._fetcher.call(lambda: self._finish(partial))

    def _finish(self, partial: Partial) -> None:
        """All chunks are here: the file takes its place among the objects."""
        digest = partial.digest
        try:
            data, size = self._known(digest)
            self._store.settle_in(partial.path, partial.check(), data, size)
            partial.remove()
            self.served["fetched"] += 1
        except Exception as error:
            self._say("lazy.failed", f"{type(error).__name__}: {error}", digest.hex())
        with self._lock:
            self._partials.pop(digest, None)
            self._finishing.discard(digest)

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

    def _say(self, event: str, why: str, where: str = "") -> None:
        """A line for the log; of each kind one in `LOG_S`, which says how many were left out."""
        now = time.monotonic()
        with self._lock:
            at, left_out = self._logged.get(event, (-LOG_S, 0))
            if now < at + LOG_S:
                self._logged[event] = (at, left_out + 1)
                return
            self._logged[event] = (now, 0)
        self._report({"t": "log", "event": event, "object": where, "error": why, "left_out": left_out})


def _chunk_key(digest: bytes, number: int) -> bytes:
    return digest + number.to_bytes(4, "big")


def main(device: int, link: Link) -> None:
    """Serve until the mount or the supervisor is gone."""
    first = link.receive()
    if first is None:
        return
    start = first[0]
    terms = Terms(**start["terms"]) if start["terms"] else None
    trial = start["trial"] and Trial(
        bytes.fromhex(start["trial"]["digest"]), start["trial"]["path"], start["trial"]["content"].encode()
    )
    worker = Worker(
        device, open_store(start), link.send, mode=start["mode"], terms=terms, trial=trial, wait_s=start["wait_s"]
    )
    threading.Thread(target=_listen, args=(link, worker), daemon=True).start()
    if terms is not None and terms.resend:
        fuse.resend(device)
    link.send({"t": "ready"})
    worker.serve()


def _listen(link: Link, worker: Worker) -> None:
    while True:
        found = link.receive()
        if found is None:
            os._exit(0)  # without a supervisor nobody wants this mount
        header, payload = found
        if header["t"] == "prefetch":
            worker.prefetch(header["number"], unpack_wanted(payload))


def open_store(start: dict[str, Any]) -> Source:
    """The store with its tiers, as the supervisor's first frame has them."""
    from cadenza.fs.store import Store

    return Store(start["home"])  # type: ignore[return-value]


if __name__ == "__main__":
    main(int(sys.argv[1]), Link(socket.socket(fileno=int(sys.argv[2]))))
