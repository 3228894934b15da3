"""Logs as append-only segment files of compressed blocks, with an index of the blocks in SQL.

A block holds the entries of one app for a short while: about 256 KiB of text or a quarter of a second. On disk it is
``u32 length | u32 CRC-32 | zlib(body)``, and a body is, little-endian::

    u32 length of tags | tags: JSON list of [fd, container, function, call, input]
    u32 entries | f64 times | u32 numbers of tags | u32 sizes of texts | the texts

The index has a block's place, its times and its size. Adding is cheap and happens on the event loop's thread; encoding,
compressing and writing happen in a worker thread.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import struct
import sys
import zlib
from collections import deque
from typing import AsyncIterator, Callable, Iterable, NamedTuple, Optional, Sequence

from cadenza.base.errors import Error, NotFoundError
from cadenza.base.ids import kind_of
from cadenza.observe.log import Log
from cadenza.protocol.nodes import LogChunk
from cadenza.storage.db import Database

BLOCK_BYTES = 256 << 10
"""A block is closed when it has this much text."""
BLOCK_AGE_S = 0.25
"""A block is closed when its first entry has waited this long."""
SEGMENT_BYTES = 8 << 20
SEGMENT_AGE_S = 24 * 3600.0
"""A segment is closed when its first entry is so old: what is too old goes by whole segments."""
MAX_PENDING_BYTES = 64 << 20
"""Text that waits for the disk, all apps together. What comes beyond is dropped, and the log says so."""
MAX_APP_BYTES = 256 << 20
MAX_TOTAL_BYTES = 4 << 30
MAX_AGE_S = 30 * 24 * 3600.0
RETAIN_EVERY_S = 60.0
ENTRY_COST_BYTES = 64
"""What an entry counts besides its text."""
ALL_BLOCKS = 1 << 62
"""Above the number of every block."""

_log = Log("cadenza.storage.logs")
_BLOCK = struct.Struct(">II")
_COUNT = struct.Struct("<I")


class Entry(NamedTuple):
    """Output as it is kept: ``text`` is whole lines, or a part that ends in ``\\r``. ``time`` in epoch seconds."""

    time: float
    fd: int
    container_id: str
    function_id: str
    call_id: str
    input_id: str
    text: bytes


class Retention(NamedTuple):
    """How much is kept: of one app, of all, and for how long. Bytes as they are stored."""

    app_bytes: int = MAX_APP_BYTES
    total_bytes: int = MAX_TOTAL_BYTES
    age_s: float = MAX_AGE_S


class _Open:
    """The block of an app that is being filled."""

    __slots__ = ("closing", "entries", "size", "timer")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.size = 0
        self.timer: Optional[asyncio.TimerHandle] = None


class LogStore:
    """The logs of all apps. Methods are called on the event loop's thread."""

    def __init__(
        self,
        root: str,
        db: Database,
        now: Callable[[], float],
        ended: Callable[[str], bool] = lambda app_id: False,
        kept: Retention = Retention(),
    ) -> None:
        """``now()`` in epoch seconds; ``ended(app_id)`` whether nothing writes to an app's log any more."""
        self._kept = kept
        self._root = root
        self._ended = ended
        self._files = asyncio.Lock()
        self._db = db
        self._now = now
        self._open: dict[str, _Open] = {}
        self._closed: deque[tuple[str, int, list[Entry]]] = deque()
        self._next_seq: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._begun: dict[str, float] = {}
        self._pending = 0
        self._gaps: dict[str, int] = {}
        self._writer: Optional[asyncio.Task[None]] = None
        self._retained_at = 0.0
        self.dropped_bytes = 0
        os.makedirs(root, mode=0o700, exist_ok=True)

    async def start(self) -> None:
        """Read where each app's log ends."""
        for app_id, seq, segment, end in await self._db.fetch("log_heads"):
            self._next_seq[app_id] = seq + 1
            self._places[app_id] = (segment, end)
        for app_id, segment, begun in await self._db.fetch("log_segments_begun"):
            if self._places.get(app_id, (-1, 0))[0] == segment:
                self._begun[app_id] = begun
        await asyncio.to_thread(_remove_empty, self._root, set(self._places))

    # --- adding ---

    def add(self, chunks: Iterable[LogChunk]) -> list[tuple[str, Entry]]:
        """Keep ``chunks``; returns ``(app id, entry)`` for those that were kept, for whoever follows."""
        kept: list[tuple[str, Entry]] = []
        for chunk in chunks:
            cost = len(chunk.data) + ENTRY_COST_BYTES
            if self._pending + cost > MAX_PENDING_BYTES:
                self.dropped_bytes += len(chunk.data)
                self._gaps[chunk.app_id] = self._gaps.get(chunk.app_id, 0) + len(chunk.data)
                continue
            gap = self._gaps.pop(chunk.app_id, 0) if self._gaps else 0
            if gap:
                words = b"%d bytes of output are missing here: they came faster than the disk took them\n" % gap
                kept.append((chunk.app_id, self._keep(chunk.app_id, Entry(chunk.time, 0, "", "", "", "", words))))
            entry = Entry(
                chunk.time, chunk.fd, chunk.container_id, chunk.function_id, chunk.call_id, chunk.input_id, chunk.data
            )
            kept.append((chunk.app_id, self._keep(chunk.app_id, entry)))
        return kept

    def _keep(self, app_id: str, entry: Entry) -> Entry:
        cost = len(entry.text) + ENTRY_COST_BYTES
        self._pending += cost
        block = self._open.get(app_id)
        if block is None:
            block = self._open[app_id] = _Open()
            block.timer = asyncio.get_running_loop().call_later(BLOCK_AGE_S, self._close_block, app_id)
        block.entries.append(entry)
        block.size += cost
        if block.size >= BLOCK_BYTES:
            self._close_block(app_id)
        return entry

    def _close_block(self, app_id: str) -> None:
        block = self._open.pop(app_id, None)
        if block is None or not block.entries:
            return
        if block.timer is not None:
            block.timer.cancel()
        seq = self._next_seq.get(app_id)
        if seq is None:  # of an app that has ended its last number may be forgotten: time gives a higher one
            seq = int(self._now() * 1e6) if self._ended(app_id) else 0
        self._next_seq[app_id] = seq + 1
        self._closed.append((app_id, seq, block.entries))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._closed:
            app_id, seq, entries = self._closed[0]
            try:
                await self._write_block(app_id, seq, entries)
            except (OSError, Error) as error:
                size = sum(len(one.text) for one in entries)
                self.dropped_bytes += size
                _log.error("log output lost", app=app_id, bytes=size, error=str(error))
            finally:
                self._closed.popleft()
                self._pending -= sum(len(one.text) + ENTRY_COST_BYTES for one in entries)
            if not self._closed and self._now() - self._retained_at > RETAIN_EVERY_S:
                self._retained_at = self._now()
                try:
                    await self.retain()  # what was closed meanwhile is this loop's next turn
                except (OSError, Error) as error:
                    _log.error("old logs could not be removed", error=str(error))

    async def _write_block(self, app_id: str, seq: int, entries: list[Entry]) -> None:
        async with self._files:
            segment, offset = self._places.get(app_id, (0, 0))
            if offset >= SEGMENT_BYTES or self._now() - self._begun.get(app_id, self._now()) >= SEGMENT_AGE_S:
                segment, offset = segment + 1, 0
                self._begun.pop(app_id, None)
            length, offset = await asyncio.to_thread(append_block, self._segment(app_id, segment), offset, entries)
            self._places[app_id] = (segment, offset + length)
            self._begun.setdefault(app_id, self._now())
            times = [one.time for one in entries]
            await self._db.execute(
                "log_block_add", (app_id, seq, segment, offset, length, len(entries), min(times), max(times))
            )

    def _segment(self, app_id: str, segment: int) -> str:
        if kind_of(app_id) != "app":
            raise NotFoundError(f"not an app's id: {app_id[:60]!r}")
        return os.path.join(self._root, app_id, f"{segment:08d}.log")

    async def flush(self) -> None:
        """Everything that was added is on disk and in the index."""
        for app_id in list(self._open):
            self._close_block(app_id)
        if self._writer is not None:
            await self._writer

    # --- reading ---

    def unwritten(self, app_id: str) -> tuple[int, list[Entry]]:
        """``(number of the first block that is not in the index, entries from there on)``, as of this instant."""
        waiting = [(seq, entries) for one, seq, entries in self._closed if one == app_id]
        end = self._next_seq.get(app_id)
        if end is None:
            end = ALL_BLOCKS if self._ended(app_id) else 0
        first = waiting[0][0] if waiting else end
        entries = [entry for _, block in waiting for entry in block]
        if app_id in self._open:
            entries += self._open[app_id].entries
        return first, entries

    async def blocks(
        self, app_id: str, before: int, since: float = 0.0, until: float = 0.0, backward: bool = False
    ) -> AsyncIterator[list[Entry]]:
        """The entries of each written block numbered below ``before`` that touches the time range, oldest first.

        A block that retention removed, or that the disk damaged, is left out.
        """
        rows = await self._db.fetch("log_blocks", (app_id, before, since, until or 1e18))
        for segment, offset, length in reversed(rows) if backward else rows:
            try:
                yield await asyncio.to_thread(read_block, self._segment(app_id, segment), offset, length)
            except (OSError, ValueError) as error:
                _log.warning("a block of a log cannot be read", app=app_id, segment=segment, error=str(error))

    # --- retention ---

    async def retain(
        self, app_bytes: Optional[int] = None, total_bytes: Optional[int] = None, age_s: Optional[float] = None
    ) -> int:
        """Remove the oldest segments beyond the limits (None: the store's own); those being written stay unless they
        are too old. Returns how many went."""
        app_bytes = self._kept.app_bytes if app_bytes is None else app_bytes
        total_bytes = self._kept.total_bytes if total_bytes is None else total_bytes
        age_s = self._kept.age_s if age_s is None else age_s
        rows = await self._db.fetch("log_segments")
        gone = expired_segments(rows, self._written, app_bytes, total_bytes, self._now() - age_s)
        for app_id, segment in gone:
            async with self._files:
                await asyncio.to_thread(_remove, self._segment(app_id, segment))
                await self._db.execute("log_segment_delete", (app_id, segment))
                if self._places.get(app_id, (-1, 0))[0] == segment:
                    self._places[app_id] = (segment + 1, 0)
                    self._begun.pop(app_id, None)
        self.forget()
        return len(gone)

    def _written(self, app_id: str, segment: int) -> bool:
        """Whether the segment may be written to."""
        return segment == self._places.get(app_id, (-1, 0))[0] and not self._ended(app_id)

    def forget(self) -> None:
        """Let go of what is known of the logs of apps that have ended. Their logs stay."""
        busy = {*self._open, *(one for one, _, _ in self._closed)}
        for app_id in [one for one in self._next_seq if one not in busy and self._ended(one)]:
            del self._next_seq[app_id]
            self._places.pop(app_id, None)
            self._begun.pop(app_id, None)


def _remove(path: str) -> None:
    """A segment, and its folder with its last one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))


def _remove_empty(root: str, but: set[str]) -> None:
    for name in os.listdir(root):
        if name not in but:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(root, name))


def expired_segments(
    rows: Sequence[tuple[str, int, int, float]],
    written: Callable[[str, int], bool],
    app_bytes: int,
    total_bytes: int,
    oldest: float,
) -> list[tuple[str, int]]:
    """Which ``(app, segment)`` to remove. ``rows``: app, segment, bytes, time of the last entry, any order.

    One for which ``written(app, segment)`` stays unless it is older than ``oldest``. Pure.
    """
    by_app: dict[str, int] = {}
    total = 0
    for app_id, _, size, _ in rows:
        by_app[app_id] = by_app.get(app_id, 0) + size
        total += size
    gone = []
    for app_id, segment, size, last in sorted(rows, key=lambda row: (row[3], row[1])):
        old = last < oldest
        if not old and (not (by_app[app_id] > app_bytes or total > total_bytes) or written(app_id, segment)):
            continue
        by_app[app_id] -= size
        total -= size
        gone.append((app_id, segment))
    return gone


def append_block(path: str, offset: int, entries: Sequence[Entry]) -> tuple[int, int]:
    """Write one block at ``offset`` or, where a crash left bytes behind, after the file's end. ``(length, offset)``."""
    body = zlib.compress(pack(entries), 1)
    block = _BLOCK.pack(len(body), zlib.crc32(body)) + body
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        offset = max(offset, os.fstat(fd).st_size)
        done = 0
        while done < len(block):
            done += os.pwrite(fd, block[done:], offset + done)
    finally:
        os.close(fd)
    return len(block), offset


def read_block(path: str, offset: int, length: int) -> list[Entry]:
    """One block's entries. ValueError when its check fails."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        block = os.pread(fd, length, offset)
    finally:
        os.close(fd)
    if len(block) < _BLOCK.size:
        raise ValueError("the block is cut off")
    size, check = _BLOCK.unpack_from(block)
    body = block[_BLOCK.size :]
    if len(body) != size or zlib.crc32(body) != check:
        raise ValueError("the block's check fails")
    return unpack(zlib.decompress(body))


def pack(entries: Sequence[Entry]) -> bytes:
    """A block's body."""
    tags: dict[tuple[int, str, str, str, str], int] = {}
    numbers = array.array("I", [tags.setdefault(one[1:6], len(tags)) for one in entries])
    times = array.array("d", [one.time for one in entries])
    sizes = array.array("I", [len(one.text) for one in entries])
    if sys.byteorder == "big":
        for column in (numbers, times, sizes):
            column.byteswap()
    head = json.dumps(list(tags), separators=(",", ":")).encode()
    return b"".join(
        (
            *(_COUNT.pack(len(head)), head, _COUNT.pack(len(entries))),
            *(times.tobytes(), numbers.tobytes(), sizes.tobytes()),
            *(one.text for one in entries),
        )
    )


def unpack(body: bytes) -> list[Entry]:
    """The entries of a block's body. ValueError when it is not one."""
    try:
        at = _COUNT.size + _COUNT.unpack_from(body)[0]
        tags = json.loads(body[_COUNT.size : at])
        count = _COUNT.unpack_from(body, at)[0]
        at += _COUNT.size
        columns = []
        for kind in ("d", "I", "I"):
            column = array.array(kind)
            column.frombytes(body[at : at + count * column.itemsize])
            if sys.byteorder == "big":
                column.byteswap()
            at += count * column.itemsize
            columns.append(column)
        entries = []
        for time, number, size in zip(*columns):
            fd, container_id, function_id, call_id, input_id = tags[number]
            entries.append(Entry(time, fd, container_id, function_id, call_id, input_id, body[at : at + size]))
            at += size
        if at != len(body) or len(entries) != count:
            raise ValueError(f"a block of a log ends at {len(body)}, not at {at}")
    except (struct.error, IndexError, TypeError) as error:
        raise ValueError(f"not a block of a log: {error}") from None
    return entries
