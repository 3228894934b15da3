"""How long a large value lives: who put it, which calls name it, who has it open, who is about to fetch it.

A value that is not durable is a memfd of its sender, kept and not copied. It is *fresh* until something names it; then
it lives while it has a *hold* (a call that names it as an input, or a client to which it was delivered and that has not
fetched it yet) or is *open* (fetched over a lane and not released). When none of these is left the memory belongs to
the sender again: its lane says so with its next reply, and the sender may overwrite it. Everything here happens on the
event loop's thread and touches no disk, except that a store is asked for what memory does not have.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Callable, Optional

from cadenza.storage.blobs import BlobStore

FRESH_S = 120.0
"""How long a put value may wait to be named: between a lane's reply and the frame that names the blob."""
FREE_NAMED = 1_000
"""How many freed puts one reply names at most."""
MAX_KEPT_VALUES = 1_024
"""Values in memory of one container, or of one lane of the host: each is a descriptor of the server."""
MAX_CLOSED = 10_000
"""So many clients that are gone are remembered, for what is still on its way to them."""


class Blob:
    """One value. ``fd`` is a read-only descriptor, or -1 when the bytes are in the store."""

    __slots__ = ("blob_id", "durable", "fd", "fresh_until", "holds", "lane", "opens", "owner", "recycle", "size")

    def __init__(
        self, blob_id: str, size: int, fd: int, durable: bool, lane: str, fresh_until: float, owner: str = ""
    ) -> None:
        self.blob_id = blob_id
        self.size = size
        self.fd = fd
        self.durable = durable
        self.lane = lane
        self.owner = owner
        self.recycle = fd >= 0
        self.fresh_until = fresh_until
        self.holds: set[str] = set()
        self.opens: Counter[str] = Counter()


class Blobs:
    """All values of this control plane. ``memory_bytes`` and ``values`` bound what is kept in memfds."""

    def __init__(
        self, store: BlobStore, monotonic: Callable[[], float], memory_bytes: int, values: int = 1 << 30
    ) -> None:
        self.store = store
        self._now = monotonic
        self._memory_bytes = memory_bytes
        self._used = 0
        self._values = values
        self._count = 0
        self._kept: Counter[str] = Counter()
        self._owners: dict[str, str] = {}
        self._closed: dict[str, None] = {}
        self._blobs: dict[str, Blob] = {}
        self._by_holder: dict[str, set[str]] = {}
        self._by_lane: dict[str, set[str]] = {}
        self._free: dict[str, list[str]] = {}
        self.forget: Callable[[str], None] = lambda blob_id: None
        """Called with the id of a value that is over and whose bytes are in the store: deleting them takes a disk."""

    @property
    def used_bytes(self) -> int:
        """Memory held in memfds, in bytes."""
        return self._used

    def reserve(self, lane: str, size: int) -> bool:
        """Whether one more value of ``size`` bytes may be kept in memory; it counts from here on.

        A `keep` with ``reserved`` makes it a value, `unreserve` gives it back.
        """
        owner = self._owners.get(lane, lane)
        if self._used + size > self._memory_bytes or self._count >= self._values:
            return False
        if self._kept[owner] >= MAX_KEPT_VALUES:
            return False
        self._count_in(owner, size)
        return True

    def unreserve(self, lane: str, size: int) -> None:
        """What was reserved comes to nothing. Before `lane_closed`."""
        self._count_out(self._owners.get(lane, lane), size)

    def _count_in(self, owner: str, size: int) -> None:
        self._used += size
        self._count += 1
        self._kept[owner] += 1

    def _count_out(self, owner: str, size: int) -> None:
        self._used -= size
        self._count -= 1
        self._kept[owner] -= 1
        if not self._kept[owner]:
            del self._kept[owner]

    def __len__(self) -> int:
        return len(self._blobs)

    # --- senders ---

    def lane_opened(self, lane: str, container_id: str = "") -> None:
        """A lane of a container, or of the host when ``container_id`` is empty."""
        self._free[lane] = []
        self._owners[lane] = container_id or lane

    def keep(self, lane: str, blob_id: str, size: int, fd: int, reserved: bool = False) -> None:
        """A put in memory; ``fd`` is ours from here on. With ``reserved`` it is counted already."""
        owner = self._owners.get(lane, lane)
        self._blobs[blob_id] = Blob(blob_id, size, fd, False, lane, self._now() + FRESH_S, owner)
        if not reserved:
            self._count_in(owner, size)

    def stored(self, lane: str, blob_id: str, size: int, durable: bool, recycle: bool) -> None:
        """A put that is in the store. With ``recycle`` the sender's memory was copied and is free at once."""
        if not durable:
            self._blobs[blob_id] = Blob(blob_id, size, -1, False, lane, self._now() + FRESH_S)
        if recycle and lane in self._free:
            self._free[lane].append(blob_id)

    def freed(self, lane: str, put: str) -> list[str]:
        """Puts of this lane, but ``put``, whose memory may be used again; each is named once.

        A sender learns the id of ``put`` by the same reply and can have noted nothing under it yet.
        """
        waiting = self._free.get(lane, [])
        named = [one for one in waiting if one != put][:FREE_NAMED]
        taken = set(named)
        waiting[:] = [one for one in waiting if one not in taken]
        return named

    def lane_closed(self, lane: str) -> None:
        """A lane's connection is gone: its puts need no recycling."""
        self._free.pop(lane, None)
        self._owners.pop(lane, None)

    def looks(self, lane: str) -> bool:
        """Whether something that was fetched over the lane is not released."""
        return bool(self._by_lane.get(lane))

    def receiver_gone(self, lane: str) -> None:
        """The process behind a lane has no views any more: what it had open counts as released."""
        for blob_id in self._by_lane.pop(lane, set()):
            blob = self._blobs.get(blob_id)
            if blob is not None:
                del blob.opens[lane]
                self._settle(blob)

    # --- calls ---

    def hold(self, blob_id: str, holder: str) -> None:
        """``holder`` names the value: it stays until `drop`. NotFoundError when there is no such value."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            self.store.size(blob_id)
            return
        blob.fresh_until = 0.0
        blob.holds.add(holder)
        self._by_holder.setdefault(holder, set()).add(blob_id)

    def drop(self, holder: str, fresh: bool = False) -> None:
        """``holder`` is over. With ``fresh`` it came to nothing, and the values may be named again for a while."""
        for blob_id in self._by_holder.pop(holder, ()):
            blob = self._blobs.get(blob_id)
            if blob is not None:
                blob.holds.discard(holder)
                if fresh:
                    blob.fresh_until = self._now() + FRESH_S
                self._settle(blob)

    def deliver(self, blob_id: str, connection_id: str) -> None:
        """A client was told of the value: it stays until its first fetch, or until the client is gone.

        Of one that is gone already nobody will say so again: for it nothing stays.
        """
        if blob_id in self._blobs and connection_id not in self._closed:
            self.hold(blob_id, _delivery(connection_id))

    def connection_closed(self, connection_id: str) -> None:
        """A client is gone: what it was told of and did not fetch is over."""
        self._closed[connection_id] = None
        while len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]
        self.drop(_delivery(connection_id))

    def find(self, blob_id: str) -> Optional[Blob]:
        """A value that is not durable, or None."""
        return self._blobs.get(blob_id)

    # --- receivers ---

    def open(self, lane: str, blob_id: str) -> Optional[int]:
        """Count a fetch over ``lane``: a new read-only descriptor of a value in memory, None if it is in the store.

        NotFoundError when there is no such value.
        """
        blob = self._blobs.get(blob_id)
        if blob is None:
            self.store.size(blob_id)
            return None
        fd = None if blob.fd < 0 else os.open(f"/proc/self/fd/{blob.fd}", os.O_RDONLY | os.O_CLOEXEC)
        blob.opens[lane] += 1
        self._by_lane.setdefault(lane, set()).add(blob_id)
        for holder in [one for one in blob.holds if one.startswith("to:")]:
            blob.holds.discard(holder)
            self._by_holder[holder].discard(blob_id)
        return fd

    def release(self, lane: str, blob_id: str) -> None:
        """The views on one fetch are gone. What was not open is ignored: the value may have ended meanwhile."""
        blob = self._blobs.get(blob_id)
        if blob is None or blob.opens[lane] <= 0:
            return
        blob.opens[lane] -= 1
        if blob.opens[lane] == 0:
            del blob.opens[lane]
            self._by_lane.get(lane, set()).discard(blob_id)
            self._settle(blob)

    # --- the end ---

    def expire(self) -> None:
        """End what was never named in time. Called now and then."""
        now = self._now()
        for blob in [one for one in self._blobs.values() if 0 < one.fresh_until <= now]:
            blob.fresh_until = 0.0
            self._settle(blob)

    def close(self) -> None:
        """Give all memory back."""
        for blob in list(self._blobs.values()):
            self._end(blob)
        self._blobs.clear()

    def _settle(self, blob: Blob) -> None:
        if blob.holds or blob.opens or blob.fresh_until > self._now():
            return
        if self._blobs.pop(blob.blob_id, None) is not None:
            self._end(blob)

    def _end(self, blob: Blob) -> None:
        if blob.fd >= 0:
            os.close(blob.fd)
            self._count_out(blob.owner, blob.size)
            blob.fd = -1
            waiting = self._free.get(blob.lane)
            if waiting is not None:
                waiting.append(blob.blob_id)
        elif not blob.durable:
            self.forget(blob.blob_id)
        for holder in blob.holds:
            self._by_holder.get(holder, set()).discard(blob.blob_id)
        for lane in blob.opens:
            self._by_lane.get(lane, set()).discard(blob.blob_id)


def _delivery(connection_id: str) -> str:
    return "to:" + connection_id
