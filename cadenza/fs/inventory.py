"""What images take on this machine's disk, and removing what nothing names any more. Blocking."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Collection, Iterable, Optional, Sequence

from cadenza.base.errors import Error
from cadenza.fs import tree as trees
from cadenza.fs.mount import Mounts
from cadenza.fs.records import Believer, ImageRecord, write
from cadenza.fs.steplogs import StepLogs
from cadenza.fs.store import Store
from cadenza.observe.log import Log
from cadenza.protocol.nodes import CollectOrder, CollectReport

_log = Log("cadenza.fs.images")


def contents(store: Store, tree: bytes) -> dict[bytes, int]:
    """The content that a tree names, each once, with its size in bytes."""
    return {node.digest: node.size for node in trees.files(store.tree(tree))}


def sizes(store: Store, tree: bytes, others: Iterable[bytes]) -> tuple[int, int]:
    """Bytes of a tree's content that are on this machine, and bytes of it that ``others`` have too."""
    own = contents(store, tree)
    local = sum(size for digest, size in own.items() if os.path.exists(store.path(digest)))
    shared: set[bytes] = set()
    for one in others:
        if one != tree:
            try:
                shared |= own.keys() & contents(store, one).keys()
            except Error:
                continue  # its tree is nowhere to be had now
        else:
            shared = set(own)
    return local, sum(own[digest] for digest in shared)


def step_trees(store: Store, believer: Believer) -> list[bytes]:
    """The trees of this machine's steps, the least recently used first: what only steps have is missed least."""
    used: list[tuple[float, bytes]] = []
    for name in store.records("steps"):
        made = believer.step(store.read(f"steps/{name}"))
        try:
            if made is not None:
                used.append((os.stat(os.path.join(store.home, "steps", name)).st_mtime, made.digest))
        except FileNotFoundError:
            continue
    return [digest for _, digest in sorted(used)]


@dataclass(frozen=True)
class Kept:
    """What a collection leaves."""

    images: Sequence[ImageRecord]
    trees: Collection[bytes]
    """In use by containers."""
    since: float
    """Steps that were made or used after this time (epoch seconds) stay, whatever they belong to; but not:"""
    gone: Sequence[ImageRecord] = ()
    """Images that are forgotten with this collection: what only they have goes, young or not."""
    horizon: Optional[float] = None
    """`cadenza.fs.store.Store.horizon`, of before all this was known."""


def collect(
    store: Store, mounts: Mounts, logs: StepLogs, believer: Believer, kept: Kept, dry_run: bool
) -> CollectReport:
    """Remove steps that no image has and nobody used for long, and content that nothing names then.

    Very young content stays: a build may be about to name it.
    """
    named = {one.tree for one in kept.images} | set(kept.trees)
    keys = {key for one in kept.images for key in one.steps}
    dropped = {key for one in kept.gone for key in one.steps} - keys
    blobs: dict[bool, set[str]] = {True: set(), False: set()}
    """Names of registries' layers that bases have: of those that go, and of those that stay."""
    for kind in ("steps", "layers"):
        for name in store.records(kind):
            path = os.path.join(store.home, kind, name)
            raw = store.read(f"{kind}/{name}")
            try:
                young = os.stat(path).st_mtime >= kept.since
            except FileNotFoundError:
                continue
            if kind == "steps":
                found = believer.step(raw)
                blobs[name in dropped].update(found.blobs if found is not None else ())
                young = young and name not in dropped
            else:
                young = young and name not in blobs[True] - blobs[False]
            if kind == "steps" and (name in keys or young):
                made = believer.step(raw)
                if made is not None:
                    named.add(made.digest)
                continue
            if kind == "layers" and young:
                tree = _tree_of(raw)
                if tree is not None and os.path.exists(os.path.join(store.home, "trees", tree.hex())):
                    named.add(tree)
                    continue
                # Its tree is not here, or it names none: of no use, and no reason to end the collection.
            if not dry_run:
                store.remove_local_record(kind, name)
                if kind == "steps":
                    logs.remove(name)
    if not dry_run:
        for name in logs.kept(kept.since):
            if name not in keys:
                logs.remove(name)
        mounts.keep(named)
    swept = store.sweep(named, dry_run=dry_run, horizon=kept.horizon)
    left = [status.st_blocks * 512 for _, _, status in store.everything("objects")]
    gone = swept.objects if dry_run else 0
    gone_bytes = swept.bytes if dry_run else 0
    return CollectReport((), swept.objects, swept.bytes, max(0, len(left) - gone), max(0, sum(left) - gone_bytes))


def collect_shared(store: Store, images: Sequence[ImageRecord], kept_s: float, order: CollectOrder) -> list[str]:
    """Tell the bucket which images this machine has; with ``order.remote`` remove from it what no machine has.

    Sentences about it. The errors of `collect_bucket.collect` when that was ordered, none else.
    """
    if store.remote is None:
        return ["No bucket is configured: there is nothing to remove but on this machine."] if order.remote else []
    try:
        if not order.dry_run:
            store.mark({one.info.image_id: write(one, settled=True) for one in images if not one.boot})
    except Error as error:
        if order.remote:
            raise
        _log.warning("images.not_marked", why=str(error))
    if not order.remote:
        return []
    found = store.collect_remote([one.tree for one in images], kept_s, dry_run=order.dry_run)
    does = "Would remove" if order.dry_run else "Removed"
    return [
        f"{does} from {store.remote.url}: {found.objects} objects, {found.chunks} chunks, {found.lists} lists, "
        f"{found.trees} trees, {found.records} records; {found.bytes} bytes."
    ]


def _tree_of(raw: bytes | None) -> bytes | None:
    """The tree that a record of a registry's layer names."""
    try:
        return bytes.fromhex(json.loads(raw or b"{}")["tree"])
    except (ValueError, KeyError, TypeError):
        return None
