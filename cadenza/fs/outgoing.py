"""Sending images that were made here to the bucket, in the background, until it has them: through outages and restarts.

What was sent is noted in ``sent-<address>`` beside the store's directories (docs/operate/store.md); everything else
that this machine has is waiting. At its start a machine also looks what the bucket still has.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Callable, Collection, Mapping, Optional

from blake3 import blake3

from cadenza.base.errors import DataLossError, InvalidError, NotFoundError, ResourceExhaustedError, ServiceError
from cadenza.fs.local import record_key
from cadenza.fs.records import ImageRecord, Made, write
from cadenza.fs.store import Store
from cadenza.observe.log import Log
from cadenza.storage.bucket import Bucket

FIRST_PAUSE_S = 2.0
"""After a failure, before the next try; twice as long after each further one, up to:"""
MAX_PAUSE_S = 60.0
FINISH_S = 10.0
"""How long an end of the server waits for what is being sent, or waits to be."""
STOP_S = 5.0
"""And then for the requests under way."""
_log = Log("cadenza.fs.outgoing")


def waiting(images: Mapping[str, str], sent: Mapping[str, str], there: Collection[str]) -> list[str]:
    """The images to send: those of ``images`` (id to tree) that were not ``sent`` or are not ``there``. Pure."""
    return [name for name, tree in images.items() if sent.get(name) != tree or name not in there]


class _Stopped(Exception):
    """The server ends."""


class Outgoing:
    """Sends one image after the other. Belongs to one event loop, and to it alone."""

    def __init__(
        self, store: Store, images: Callable[[], Mapping[str, ImageRecord]], find: Callable[[str], Optional[Made]]
    ) -> None:
        """``images``: what this machine has by now, by id. ``find``: a step's record by its key; it blocks."""
        self._store = store
        self._images = images
        self._find = find
        self._waiting: dict[str, None] = {}
        self._why = ""
        self._end = threading.Event()
        self._ends = asyncio.Event()
        self._more = asyncio.Event()
        self._rest = asyncio.Event()
        """Set while nothing waits, or nothing can be sent."""
        self._looked = False
        self._task: Optional[asyncio.Task[None]] = None
        self._lock = threading.Lock()
        self._note = ""
        self._sent: dict[str, str] = {}
        if store.remote is not None:
            self._note = f"sent-{blake3(store.remote.url.encode()).hexdigest()[:16]}"
            self._sent = _read(store.read(self._note))

    def open(self) -> None:
        """Begin with what waits from earlier. Nothing happens without a bucket that can be written."""
        bucket = self._store.remote
        if bucket is not None and not bucket.read_only and self._task is None and not self._end.is_set():
            self._task = asyncio.get_running_loop().create_task(self._run(bucket))

    def add(self, image_id: str) -> None:
        """An image was made, and is on this disk for good."""
        self._waiting[image_id] = None
        self._rest.clear()
        self._more.set()
        self.open()

    def came(self, image_id: str, tree: str) -> None:
        """An image came from the bucket: it need not go there. Blocks for a moment; any thread may call it."""
        if self._note:
            self._keep(image_id, tree)

    @property
    def left(self) -> tuple[int, str]:
        """How many images wait, and why the bucket does not take them: empty while it does."""
        return len(self._waiting), self._why

    async def close(self) -> None:
        """Wait a little for what is being sent; the next start goes on with the rest."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(self._rest.wait(), FINISH_S)
        except asyncio.TimeoutError:
            pass
        self._end.set()
        self._ends.set()
        self._more.set()
        await asyncio.wait([self._task], timeout=STOP_S)
        self._task.cancel()
        if self._waiting:
            why = self._why or "the server ends"
            _log.warning("images.unsent", count=len(self._waiting), why=why, then="the next start goes on")

    async def _run(self, bucket: Bucket) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._end.is_set():
            self._more.clear()
            try:
                await self._send_all(bucket)
            except _Stopped:
                return
            except (ServiceError, ResourceExhaustedError, OSError) as error:
                if not self._why:
                    then = "tried again until it works; other machines cannot use these images before"
                    _log.warning("images.unsent", count=len(self._waiting), why=str(error), then=then)
                self._why = str(error)
                self._rest.set()
                try:
                    await asyncio.wait_for(self._ends.wait(), pause_s)
                except asyncio.TimeoutError:
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            self._rest.set()
            await self._more.wait()

    async def _send_all(self, bucket: Bucket) -> None:
        if not self._looked:
            trees = {name: one.info.tree for name, one in self._images().items() if not one.boot}
            self._waiting.update(dict.fromkeys(waiting(trees, self._sent, trees)))
            there = await asyncio.to_thread(_names, bucket)
            self._waiting.update(dict.fromkeys(waiting(trees, self._sent, there)))
            self._looked = True
        while self._waiting:
            image_id = next(iter(self._waiting))
            record = self._images().get(image_id)
            if record is not None:
                try:
                    sent = await asyncio.to_thread(self._send, record)
                    _log.info("images.sent", image=image_id, bytes=sent, to=bucket.url)
                except (NotFoundError, DataLossError, InvalidError) as error:
                    _log.error("images.not_sent", image=image_id, why=str(error))
                self._why = ""
            if record is self._images().get(image_id):  # else it was made anew meanwhile
                self._waiting.pop(image_id, None)
        self._why = ""

    def _send(self, record: ImageRecord) -> int:
        """Each step by itself, then the whole, last its record: who finds one finds all that it names."""
        store, sent = self._store, 0
        for key in record.steps:
            made = self._find(key)
            if made is not None:
                sent += store.push(made.digest, self._go_on)
                store.put_record("steps", key, write(made, settled=True), remote=True)
        sent += store.push(record.tree, self._go_on)
        image_id = record.info.image_id
        assert store.remote is not None
        store.remote.put(record_key("images", image_id), write(record, settled=True))
        self._keep(image_id, record.info.tree)
        return sent

    def _go_on(self, done: int, total: int) -> None:
        if self._end.is_set():
            raise _Stopped

    def _keep(self, image_id: str, tree: str) -> None:
        with self._lock:
            if self._sent.get(image_id) != tree:
                have = self._images()
                self._sent = {name: one for name, one in self._sent.items() if name in have}
                self._sent[image_id] = tree
                self._store.put_bytes(self._note, json.dumps(self._sent, sort_keys=True).encode())


def _names(bucket: Bucket) -> set[str]:
    return {one.key.rpartition("/")[2] for one in bucket.list("images")}


def _read(raw: Optional[bytes]) -> dict[str, str]:
    try:
        found = json.loads(raw or b"{}")
        return {str(name): str(tree) for name, tree in found.items()}
    except (ValueError, AttributeError):
        return {}
