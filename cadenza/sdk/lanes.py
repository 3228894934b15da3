"""The lanes of one client: one for what is put, so that its memory is used again, and a few for what is got at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Sequence, TypeVar, Union

from cadenza.runner import lane

T = TypeVar("T")
Payload = Union[bytes, bytearray, memoryview]

READERS = 4
"""How many values are fetched at once; a container may have 64 lanes."""


class Lanes:
    """Lanes to one path. The methods are the background loop's; the work is done in threads, since lanes block."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer = lane.Lane(path)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="cadenza-lane-put")
        self._idle: list[lane.Lane] = []
        self._read_threads = ThreadPoolExecutor(READERS, thread_name_prefix="cadenza-lane-get")
        self._closed = False

    async def put(self, parts: Sequence[Payload], durable: bool) -> tuple[str, int]:
        """Store one value; ``(blob id, size in bytes)``."""
        return await _run(self._write_thread, lambda: self._writer.put(parts, durable))

    async def get(self, blob_id: str) -> memoryview:
        """A value's bytes; up to `READERS` at once, others wait."""
        return await _run(self._read_threads, lambda: self._read(blob_id))

    def _read(self, blob_id: str) -> memoryview:
        try:
            one = self._idle.pop()
        except IndexError:
            one = lane.Lane(self.path)
        try:
            return one.get(blob_id)
        finally:
            if self._closed:
                one.close()
            else:
                self._idle.append(one)

    def close(self) -> None:
        """End them. Views that are out stay valid."""
        self._closed = True
        for threads in (self._write_thread, self._read_threads):
            threads.shutdown(wait=False)
        self._writer.close()
        while self._idle:
            self._idle.pop().close()


async def _run(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)
