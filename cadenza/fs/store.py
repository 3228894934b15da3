"""The content of images: objects by BLAKE3, lists of chunks, trees; on this machine's disk and in the tiers behind it.

Blocking and thread-safe: call it in threads. The layout is docs/formats/store.md.
"""

from __future__ import annotations

from typing import Callable, Optional

from cadenza.base.errors import NotFoundError
from cadenza.fs import chunk
from cadenza.fs import tree as trees
from cadenza.fs.chunk import Chunk
from cadenza.fs.local import Local
from cadenza.fs.tree import Node


class Store(Local):
    """The store at ``home``."""

    def __init__(self, home: str, *, limit_bytes: int = 0, clock: Optional[Callable[[], float]] = None) -> None:
        super().__init__(home, clock)
        self.limit_bytes = limit_bytes

    def tree(self, digest: bytes) -> Node:
        """A tree. NotFoundError when nobody has it, DataLossError when all that have it have something else."""
        encoded = self.local_tree(digest)
        if encoded is None:
            raise NotFoundError(f"tree {digest.hex()} is not in the store")
        return trees.decode(encoded)

    def chunks(self, list_digest: bytes) -> tuple[Chunk, ...]:
        """A large file's chunks, in order."""
        encoded = self.local_list(list_digest)
        if encoded is None:
            raise NotFoundError(f"list {list_digest.hex()} is not in the store")
        return chunk.decode_list(encoded)

    def settle(self) -> None:
        """All that was put so far survives a loss of power when this returns."""
        self.marker.settle(self.drafts.alive())
