"""The content of images: objects by BLAKE3, lists of chunks, trees; on this machine's disk and in the tiers behind it.

Blocking and thread-safe: call it in threads. The layout is docs/formats/store.md, how it is run docs/operate/store.md.
"""

from __future__ import annotations

import os
from typing import Callable, Collection, Iterable, Mapping, Optional, Sequence

from cadenza.base.config import Config
from cadenza.fs import collect, collect_bucket, push, scrub
from cadenza.fs.chunk import Chunk
from cadenza.fs.collect import Swept
from cadenza.fs.collect_bucket import Collected
from cadenza.fs.fetch import AT_ONCE, Fetcher
from cadenza.fs.local import Local, record_key
from cadenza.fs.tiers import Tiers, open_peers
from cadenza.fs.tree import Node
from cadenza.storage.bucket import Bucket, open_bucket, parse_options
from cadenza.base.errors import NotFoundError, ServiceError

MAX_RECORD_BYTES = 64 << 20


class Store(Local):
    """The store at ``home``, filled from ``peers`` and ``remote``. `close` it."""

    def __init__(
        self,
        home: str,
        remote: Optional[Bucket] = None,
        peers: Sequence[Bucket] = (),
        *,
        limit_bytes: int = 0,
        clock: Optional[Callable[[], float]] = None,
    ) -> None:
        super().__init__(home, clock)
        self.limit_bytes = limit_bytes
        self.remote = remote
        self.tiers = Tiers(peers, remote)
        self.fetcher = Fetcher(self, self.tiers)
        scrub.check_torn(self)

    def close(self) -> None:
        """End what goes on in the background, and forget drafts."""
        self.fetcher.close()
        super().close()

    def fetch(self, data: bytes, size: int = -1) -> str:
        """The path of an object, by its `Node.data`, that is now on this disk; see `Fetcher.fetch`."""
        return self.fetcher.fetch(data, size)

    def fetch_range(self, data: bytes, size: int, start: int, length: int, *, finish: bool = True) -> bytes:
        """Bytes of an object before it is whole; see `Fetcher.fetch_range`."""
        return self.fetcher.fetch_range(data, size, start, length, finish=finish)

    def fetch_all(self, nodes: Iterable[Node], at_once: int = AT_ONCE) -> int:
        """Bring the content of all these files; how many bytes came."""
        return self.fetcher.fetch_all(nodes, at_once)

    def tree(self, digest: bytes) -> Node:
        """A tree. NotFoundError when nobody has it, DataLossError when all that have it have something else."""
        return self.fetcher.tree(digest)

    def chunks(self, list_digest: bytes) -> tuple[Chunk, ...]:
        """A large file's chunks, in order. Errors as of `tree`."""
        return self.fetcher.chunks(list_digest)

    def put_record(self, kind: str, name: str, value: bytes, *, remote: bool) -> None:
        """Keep a record (``steps``, ``images``, ``traces``) here, and in the bucket with ``remote`` where there is one.

        ServiceError when the bucket does not take it: it is kept here all the same.
        """
        self.put_local_record(kind, name, value)
        if remote and self.remote is not None:
            self.remote.put(record_key(kind, name), value)

    def get_record(self, kind: str, name: str, *, remote: bool) -> Optional[bytes]:
        """A record from here, or with ``remote`` from the bucket; None: there is none, or the bucket is down."""
        found = self.get_local_record(kind, name)
        tier = self.tiers.remote
        if found is not None or not remote or tier is None or not tier.ready():
            return found
        try:
            found = tier.bucket.get(record_key(kind, name), MAX_RECORD_BYTES)
        except NotFoundError:
            pass
        except ServiceError as error:
            tier.failed(str(error))
            return None
        tier.worked()
        return found

    def remove_record(self, kind: str, name: str, *, remote: bool) -> None:
        """Forget a record, where it is there."""
        self.remove_local_record(kind, name)
        if remote and self.remote is not None:
            self.remote.delete([record_key(kind, name)])

    def push(self, tree: bytes, progress: Optional[Callable[[int, int], None]] = None) -> int:
        """Give the bucket a tree and what it lacks of it; bytes sent, 0 without one. See `cadenza.fs.push.push`."""
        if self.remote is None:
            return 0
        return push.push(self.fetcher, self, self.remote, tree, progress)

    def sweep(self, trees: Iterable[bytes], *, dry_run: bool = False, horizon: Optional[float] = None) -> Swept:
        """Remove what these trees do not name, of what is here; see `cadenza.fs.collect`.

        ``horizon``: only what is older goes, and all of it: the store's `horizon` from before the trees were looked up,
        by a process that alone puts content here. Without it what is young stays.
        """
        return collect.Sweep(self, self.fetcher, trees, dry_run, horizon).run()

    def evict(self, trees: Sequence[bytes], in_use: Collection[bytes], wanted_bytes: int = 0) -> int:
        """Free room: content of ``trees``, the least recently used first, that the bucket has; bytes freed.

        ``wanted_bytes`` 0: as much as ``limit_bytes`` asks for, nothing when there is no limit or it is kept.
        """
        if not wanted_bytes and self.limit_bytes:
            used = collect.usage(self)
            if used > self.limit_bytes:
                wanted_bytes = used - int(self.limit_bytes * collect.EVICT_TO)
        return collect.evict(self, self.fetcher, self.remote, trees, in_use, wanted_bytes)

    def mark(self, records: Mapping[str, bytes]) -> int:
        """Tell who collects the bucket that these images, by id, are this machine's; how many had to be told."""
        if self.remote is None or self.remote.read_only:
            return 0
        return collect_bucket.mark(self.remote, records)

    def collect_remote(self, ours: Iterable[bytes], kept_s: float, *, dry_run: bool = False) -> Collected:
        """Remove from the bucket what no record in it names, and records of no machine; see `collect_bucket`."""
        if self.remote is None:
            return Collected()
        return collect_bucket.collect(self.remote, self.fetcher, ours, kept_s, dry_run)

    def verify(self, digest: bytes) -> scrub.Verdict:
        """Whether the object here is what its name says; if not it is set aside, and fetched again where that goes."""
        return scrub.verify(self, self.fetcher, digest)

    def scrub(self, limit_bytes: int) -> scrub.Scrubbed:
        """Verify objects until so many bytes are read, going on where the last round ended."""
        return scrub.scrub(self, self.fetcher, limit_bytes)

    def usage(self) -> int:
        """Bytes of disk that content takes here."""
        return collect.usage(self)

    def settle(self) -> None:
        """All that was put so far survives a loss of power when this returns."""
        self.marker.settle(self.drafts.alive())


def open_store(config: Config, *, clock: Optional[Callable[[], float]] = None) -> Store:
    """The store of this machine as it is configured. InvalidError when an address or an option is none."""
    remote = open_bucket(config.store, parse_options(config.store_options)) if config.store else None
    peers = open_peers(config.peers, config.peer_key)
    home = os.path.join(config.data_dir, "store")
    return Store(home, remote, peers, limit_bytes=int(config.store_limit_gib * 2**30), clock=clock)
