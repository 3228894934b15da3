"""Logs for readers: what is kept, filtered, and then what comes, with a bounded buffer for each follower."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from typing import Any, Callable, Container, Iterable, Optional

from cadenza.base.config import Config
from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.control.request import Request
from cadenza.protocol.frame import CHUNK_BYTES
from cadenza.protocol.methods import LogBatch, LogEntry, LogQuery
from cadenza.protocol.nodes import LogChunk
from cadenza.storage.logs import ENTRY_COST_BYTES, MAX_TOTAL_BYTES, Entry, LogStore, Retention

FOLLOWER_BYTES = 4 << 20
"""What waits for a follower that does not keep up. What comes beyond is left out, and the reader is told how much."""
BATCH_ENTRIES = 2_000
MAX_TAIL = 1_000_000
CONTAINERS_KNOWN = 10_000
"""Containers that wrote something, with their apps: after their end they can still be named."""
END_CHECK_S = 0.1
END_GRACE_S = 0.05
"""How long a follower waits once its app's last container is gone: a node hands over a container's last words before
it says so, and they need only pass through the event loop."""
SOURCES = {"": None, "stdout": 1, "stderr": 2, "system": 0}


class Follower:
    """One reader of what comes."""

    def __init__(self, app_id: str, wanted: Callable[[Entry], Optional[Entry]]) -> None:
        self.app_id = app_id
        self.wanted = wanted
        self.waiting: deque[Entry] = deque()
        self.waiting_bytes = 0
        self.dropped_bytes = 0
        self.wake = asyncio.Event()

    def offer(self, entry: Entry) -> None:
        """Take an entry if it is wanted and there is room."""
        found = self.wanted(entry)
        if found is None:
            return
        cost = len(found.text) + ENTRY_COST_BYTES
        if self.waiting_bytes + cost > FOLLOWER_BYTES:
            self.dropped_bytes += len(found.text)
        else:
            self.waiting.append(found)
            self.waiting_bytes += cost
        self.wake.set()


class Logs:
    """Takes what nodes send, and handles ``log.read``."""

    def __init__(
        self,
        store: LogStore,
        app_id: Callable[[str, str], str],
        ended: Callable[[str], bool],
        functions: Callable[[str], dict[str, str]],
        containers: Callable[[str], str],
        variants: Callable[[str], Iterable[str]] = lambda function_id: (),
    ) -> None:
        """``app_id(word, environment)`` finds an app by id or name, ``ended`` whether it can still write, ``functions``
        its names and ids, ``containers`` the app of a container that is there (or an empty string), ``variants`` the
        ids of a function's variants, or NotFoundError."""
        self._variants = variants
        self._store = store
        self._app_id = app_id
        self._ended = ended
        self._functions = functions
        self._container_app = containers
        self._followers: dict[str, set[Follower]] = {}
        self._wrote: OrderedDict[str, str] = OrderedDict()

    def add(self, chunks: Iterable[LogChunk]) -> None:
        """Keep output of containers and hand it to followers."""
        kept = self._store.add(chunks)
        for app_id, entry in kept:
            if entry.container_id and entry.container_id not in self._wrote:
                self._wrote[entry.container_id] = app_id
                if len(self._wrote) > CONTAINERS_KNOWN:
                    self._wrote.popitem(last=False)
        if self._followers:
            for app_id, entry in kept:
                for one in self._followers.get(app_id, ()):
                    one.offer(entry)

    async def read(self, request: Request[LogQuery]) -> None:
        query = request.body
        app_id = self._which(query)
        wanted = matcher(query, self._functions_of(app_id, query))
        follower: Optional[Follower] = None
        if query.follow:
            follower = Follower(app_id, wanted)
            self._followers.setdefault(app_id, set()).add(follower)
        # In one step with the line above, so that nothing is missed and nothing comes twice.
        before, recent = self._store.unwritten(app_id)
        try:
            if query.tail:
                entries = await self._tail(query, app_id, before, recent, wanted)
                await self._send(request, app_id, entries)
            else:
                async for block in self._store.blocks(app_id, before, query.since, query.until):
                    await self._send(request, app_id, _filter(block, wanted))
                await self._send(request, app_id, _filter(recent, wanted))
            if follower is not None:
                await self._follow(request, follower)
        finally:
            if follower is not None:
                left = self._followers[app_id]
                left.discard(follower)
                if not left:
                    del self._followers[app_id]

    def _functions_of(self, app_id: str, query: LogQuery) -> frozenset[str]:
        """The ids of the functions whose lines are wanted; none means any."""
        if not query.function:
            return frozenset()
        function_id = self._functions(app_id).get(query.function, query.function)
        found = {function_id}
        if query.all_variants:
            with contextlib.suppress(NotFoundError):  # of an app that has ended only the function itself is known
                found.update(self._variants(function_id))
        return frozenset(found)

    def _which(self, query: LogQuery) -> str:
        if query.source not in SOURCES:
            raise InvalidError(f"a log's source is stdout, stderr or system, not {query.source[:40]!r}")
        if query.tail < 0 or query.tail > MAX_TAIL:
            raise InvalidError(f"tail must be between 0 and {MAX_TAIL}")
        if query.app:
            return self._app_id(query.app, query.environment)
        if query.container:
            found = self._container_app(query.container) or self._wrote.get(query.container, "")
            if found:
                return found
            raise NotFoundError(
                f"there is no container {query.container} that ran since the server began: name its app too, to read "
                "what is kept (cadenza app logs APP --container ID)"
            )
        raise InvalidError("name an app or a container")

    async def _tail(
        self,
        query: LogQuery,
        app_id: str,
        before: int,
        recent: list[Entry],
        wanted: Callable[[Entry], Optional[Entry]],
    ) -> list[Entry]:
        """The last ``query.tail`` lines, oldest first; blocks are read from the end only as far as they are needed."""
        parts = [_filter(recent, wanted)]
        lines = sum(count_lines(one.text) for one in parts[0])
        if lines < query.tail:
            async for block in self._store.blocks(app_id, before, query.since, query.until, backward=True):
                part = _filter(block, wanted)
                parts.append(part)
                lines += sum(count_lines(one.text) for one in part)
                if lines >= query.tail:
                    break
        return last_lines([entry for part in reversed(parts) for entry in part], query.tail)

    async def _follow(self, request: Request[LogQuery], follower: Follower) -> None:
        loop = asyncio.get_running_loop()
        ended_at: Optional[float] = None
        while True:
            if follower.waiting or follower.dropped_bytes:
                entries = list(follower.waiting)
                dropped, follower.dropped_bytes = follower.dropped_bytes, 0
                follower.waiting.clear()
                follower.waiting_bytes = 0
                await self._send(request, follower.app_id, entries, dropped)
                continue
            if self._ended(follower.app_id):
                ended_at = ended_at if ended_at is not None else loop.time()
                if loop.time() - ended_at >= END_GRACE_S:
                    return
            else:
                ended_at = None
            follower.wake.clear()
            try:
                await asyncio.wait_for(follower.wake.wait(), END_CHECK_S)
            except asyncio.TimeoutError:
                pass

    async def _send(self, request: Request[LogQuery], app_id: str, entries: list[Entry], dropped: int = 0) -> None:
        at = 0
        while at < len(entries) or dropped:
            size = 0
            heads: list[LogEntry] = []
            texts: list[bytes] = []
            for one in entries[at : at + BATCH_ENTRIES]:
                if heads and size + len(one.text) > CHUNK_BYTES:
                    break
                size += len(one.text)
                heads.append(
                    LogEntry(
                        one.time,
                        one.fd,
                        len(one.text),
                        app_id,
                        one.container_id,
                        one.function_id,
                        one.call_id,
                        one.input_id,
                    )
                )
                texts.append(one.text)
            at += len(heads)
            await request.send(LogBatch(tuple(heads), dropped), texts)
            dropped = 0


def limits(config: Config) -> Retention:
    """How much of the logs is kept. InvalidError for limits that keep nothing. Pure."""
    if config.log_retention_days <= 0 or config.log_max_mib < 1:
        raise InvalidError("log_retention_days must be above 0 and log_max_mib at least 1")
    app_bytes = config.log_max_mib << 20
    return Retention(app_bytes, max(MAX_TOTAL_BYTES, app_bytes), config.log_retention_days * 24 * 3600.0)


def matcher(query: LogQuery, functions: Container[str]) -> Callable[[Entry], Optional[Entry]]:
    """A filter for ``query``: the entry, or the lines of it that match, or None. ``functions``: ids. Pure."""
    fd = SOURCES[query.source]
    function = query.function
    container, call, since, until = query.container, query.call, query.since, query.until
    search = query.search.encode()

    def wanted(entry: Entry) -> Optional[Entry]:
        if (
            (fd is not None and entry.fd != fd)
            or (container and entry.container_id != container)
            or (function and entry.function_id not in functions)
            or (call and entry.call_id != call)
            or entry.time < since
            or (until and entry.time > until)
        ):
            return None
        if not search:
            return entry
        if search not in entry.text:
            return None
        return entry._replace(text=b"".join(one for one in split_lines(entry.text) if search in one))

    return wanted


def split_lines(text: bytes) -> list[bytes]:
    """Lines with their ends, cut at line feeds only: a carriage return is progress within a line."""
    lines = text.split(b"\n")
    found = [one + b"\n" for one in lines[:-1]]
    return [*found, lines[-1]] if lines[-1] else found


def count_lines(text: bytes) -> int:
    """How many lines a text has; one without its end counts."""
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text))


def last_lines(entries: list[Entry], count: int) -> list[Entry]:
    """The last ``count`` lines of ``entries``. Pure."""
    found: list[Entry] = []
    for entry in reversed(entries):
        if count <= 0:
            break
        lines = count_lines(entry.text)
        if lines > count:
            entry = entry._replace(text=b"".join(split_lines(entry.text)[-count:]))
        count -= lines
        found.append(entry)
    return found[::-1]


def _filter(entries: Iterable[Entry], wanted: Callable[[Entry], Optional[Entry]]) -> list[Entry]:
    return [found for found in map(wanted, entries) if found is not None]


def handlers(logs: Logs) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"log.read": logs.read}
