"""Taking away from the bucket what no machine's images name any more.

What is named is told by the bucket's own records: each machine that has an image writes its record again once a day
(`mark`), so a record that nobody wrote for long is nobody's. Ages are told by the bucket's clock alone.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Iterable, Mapping

from cadenza.base.errors import ConflictError, DataLossError, Error, NotFoundError
from cadenza.fs import tree as trees
from cadenza.fs.collect import Named
from cadenza.fs.fetch import TREE_FILE_BYTES, Fetcher
from cadenza.fs.local import unpack_tree
from cadenza.fs.push import COLLECTED, COLLECTING, COLLECTING_S, digests_below, now_at, pushed_trees
from cadenza.observe.log import Log
from cadenza.storage.bucket import Bucket

GRACE_S = 86_400.0
"""What was written less than this ago stays: its image's record may be about to come."""
MARK_S = 43_200.0
"""How stale the time of a record may be that a machine still has."""
LEAST_KEPT_S = 3 * 86_400.0
"""A record is no sooner nobody's than this after it was last written, whatever the caller says."""
MAX_RECORD_BYTES = 64 << 20
BATCH_KEYS = 500
_log = Log("cadenza.fs.collect")


@dataclass
class Collected:
    """What a collection removed from the bucket, or with ``dry_run`` would have: how many of each, bytes in all."""

    records: int = 0
    objects: int = 0
    chunks: int = 0
    lists: int = 0
    trees: int = 0
    bytes: int = 0


def mark(bucket: Bucket, records: Mapping[str, bytes]) -> int:
    """Say that this machine has these images: write those of their records again that are `MARK_S` old; how many.

    Only where the bucket still has them: one that is gone has to be sent with its content.
    """
    if not records:
        return 0
    late = now_at(bucket) - MARK_S
    found = [one.key for one in bucket.list("images") if one.at < late]
    old = [key for key in found if key.rpartition("/")[2] in records]
    for key in old:
        bucket.put(key, records[key.rpartition("/")[2]])
    return len(old)


def collect(bucket: Bucket, fetcher: Fetcher, ours: Iterable[bytes], kept_s: float, dry_run: bool = False) -> Collected:
    """Remove records that nobody wrote for ``kept_s``, and content older than a day that then none names.

    ``ours``: trees that stay besides. ConflictError when another machine collects, or when the bucket has content and
    not one image; DataLossError, ServiceError, before anything is removed, when a record or a tree cannot be read.
    """
    claim = json.dumps({"at": now_at(bucket), "by": uuid.uuid4().hex}).encode()
    if not dry_run:
        _claim(bucket, claim)
    try:
        if not dry_run:
            # From here on no machine believes its notes of what the bucket has.
            bucket.put(COLLECTED, uuid.uuid4().bytes)
        plan = _Plan(bucket, fetcher, now_at(bucket), max(kept_s, LEAST_KEPT_S))
        plan.make(ours)
        if not dry_run:
            _remove(bucket, plan.going, claim)
        return plan.found
    finally:
        if not dry_run and _is_ours(bucket, claim):
            bucket.delete([COLLECTING])


@dataclass
class _Plan:
    bucket: Bucket
    fetcher: Fetcher
    now: float
    kept_s: float
    found: Collected = field(default_factory=Collected)
    going: list[str] = field(default_factory=list)
    """Keys, records before the trees they name, trees before their content: a part of it leaves nothing broken."""

    def make(self, ours: Iterable[bytes]) -> None:
        bucket, named = self.bucket, Named()
        for digest in {*ours, *self._records()}:
            try:
                named.add(digest, self.fetcher.tree(digest))
            except NotFoundError:
                _log.warning("store.tree_lost", tree=digest.hex())
        for key, digest, at in pushed_trees(bucket):
            if at < self.now - GRACE_S:
                self.going.append(key)  # who sent it is dead
            else:
                named.add(digest, self._tree(key, digest))
        for key, digest, (size, at) in digests_below(bucket, "trees"):
            if digest in named.trees:
                continue
            if at < self.now - GRACE_S:
                self._take(key, "trees", size)
            else:
                named.add(digest, self._tree(key, digest))
        for one in bucket.list("traces"):
            try:
                digest = bytes.fromhex(one.key.rpartition("/")[2])
            except ValueError:
                continue
            if digest not in named.trees and one.at < self.now - GRACE_S:
                self._take(one.key, "records", one.size)
        chunks: set[bytes] = set()
        for digest in named.lists:
            try:
                chunks.update(one.digest for one in self.fetcher.chunks(digest))
            except NotFoundError:
                _log.warning("store.list_lost", list=digest.hex())
        for folder, kept in (("lists", named.lists), ("objects", named.objects), ("chunks", chunks)):
            for key, digest, (size, at) in digests_below(bucket, folder):
                if digest not in kept and at < self.now - GRACE_S:
                    self._take(key, folder, size)

    def _take(self, key: str, kind: str, size: int) -> None:
        self.going.append(key)
        setattr(self.found, kind, getattr(self.found, kind) + 1)
        self.found.bytes += size

    def _records(self) -> set[bytes]:
        """The trees that records name which stay; the others are taken."""
        named: set[bytes] = set()
        steps: set[object] = set()
        images = 0
        oldest = self.now - self.kept_s
        for one in list(self.bucket.list("images")):
            if one.at < oldest:
                self._take(one.key, "records", one.size)
                continue
            images += 1
            value = self._record(one.key)
            named.add(_digest(one.key, value, "info", "tree"))
            keys = value.get("steps")
            steps.update(keys if isinstance(keys, list) else ())
        if not images and next(iter(digests_below(self.bucket, "trees")), None) is not None:
            raise ConflictError(
                f"{self.bucket.url} has trees and no image that a machine said it has: nothing is removed. Remove the "
                "bucket's content by its own tools if nobody wants it"
            )
        for one in list(self.bucket.list("steps")):
            if one.at < oldest and one.key.rpartition("/")[2] not in steps:
                self._take(one.key, "records", one.size)
            else:
                named.add(_digest(one.key, self._record(one.key), "tree"))
        return named

    def _record(self, key: str) -> dict[str, object]:
        try:
            value = json.loads(self.bucket.get(key, MAX_RECORD_BYTES))
        except NotFoundError:
            raise ConflictError(f"{self.bucket.url}: {key} went while it was read: collect again") from None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DataLossError(f"{self.bucket.url}: {key} is no record: remove it, nothing is collected before")
        return value

    def _tree(self, key: str, digest: bytes) -> trees.Node:
        return trees.decode(unpack_tree(digest, self.bucket.get(key, TREE_FILE_BYTES)))


def _digest(key: str, value: object, *names: str) -> bytes:
    """The digest that a record has at this place, whichever version of us wrote the rest."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        raise DataLossError(f"{key} names no tree: remove it, nothing is collected before") from None


def _remove(bucket: Bucket, keys: list[str], claim: bytes) -> None:
    for start in range(0, len(keys), BATCH_KEYS):
        if not _is_ours(bucket, claim):
            # This machine slept, or was so slow that another took it for dead: what it knows is old.
            _log.warning("store.collect_late", left=len(keys) - start)
            raise ConflictError(f"{bucket.url}: another machine took over: {len(keys) - start} keys are left to it")
        bucket.delete(keys[start : start + BATCH_KEYS])


def _claim(bucket: Bucket, claim: bytes) -> None:
    if bucket.put_if_absent(COLLECTING, claim):
        return
    held = bucket.stat(COLLECTING)
    if held is None or held.at >= now_at(bucket) - COLLECTING_S:
        raise ConflictError(f"{bucket.url} is being collected by another machine")
    bucket.delete([COLLECTING])
    if not bucket.put_if_absent(COLLECTING, claim):
        raise ConflictError(f"{bucket.url} is being collected by another machine")


def _is_ours(bucket: Bucket, claim: bytes) -> bool:
    """Whether it is still this collection that holds the bucket, and will for longer than one batch takes."""
    try:
        held = bucket.stat(COLLECTING)
        return (
            bucket.get(COLLECTING, 4096) == claim and held is not None and held.at > now_at(bucket) - COLLECTING_S / 2
        )
    except Error:
        return False
