"""Bytes from an event loop to a thread that reads them, with a limit on what waits between."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Iterator, Optional

FEED_BYTES = 4 << 20
READER_S = 3600.0
"""A reader whose writer is gone without a word ends after this."""


class FeedClosed(Exception):
    """The reader has ended: nothing more is wanted. To the reader: the writer has given up."""


class Feed:
    """One writer, in the event loop that makes it; one reader, in a thread, that iterates."""

    def __init__(self, limit_bytes: int = FEED_BYTES) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_bytes = limit_bytes
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._ended = self._failed = self._closed = False
        self._changed = threading.Condition()
        self._waiting: Optional[asyncio.Future[None]] = None

    # For the writer.

    async def put(self, chunk: bytes) -> None:
        """Hand over a chunk, and wait while there is much that was not read. FeedClosed: the reader has ended."""
        with self._changed:
            if self._closed:
                raise FeedClosed
            self._chunks.append(chunk)
            self._bytes += len(chunk)
            self._changed.notify()
            if self._bytes <= self._limit_bytes:
                return
            waiting = self._waiting = self._loop.create_future()
        await waiting

    def end(self) -> None:
        """There is no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def fail(self) -> None:
        """There was more and it does not come: the reader gets FeedClosed. After `end` without effect."""
        with self._changed:
            self._failed = not self._ended
            self._ended = True
            self._changed.notify()

    # For the reader.

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not self._chunks and not self._ended:
                    if not self._changed.wait(READER_S):
                        raise FeedClosed
                if self._failed:
                    raise FeedClosed
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._bytes -= len(chunk)
                if self._bytes <= self._limit_bytes // 2:
                    self._wake()
            yield chunk

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            try:
                self._loop.call_soon_threadsafe(_done, waiting)
            except RuntimeError:
                pass  # the loop is closed: nobody waits


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
