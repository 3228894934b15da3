"""What a collection on this machine leaves, and what it tells and takes from the bucket."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Collection, Iterator

import pytest

from cadenza.base.errors import ServiceError
from cadenza.fs import tree
from cadenza.fs.inventory import Kept, collect, collect_shared
from cadenza.fs.records import Believer, ImageRecord
from cadenza.fs.recipe import Settings
from cadenza.fs.steplogs import StepLogs
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.protocol.nodes import CollectOrder, ImageInfo
from cadenza.storage.bucket import Bucket, open_bucket

DAY_S = 86_400.0


class Shown:
    """Stands in for mounts: what they were told to keep."""

    def __init__(self) -> None:
        self.kept: list[set[bytes]] = []

    def keep(self, trees: Collection[bytes]) -> None:
        self.kept.append(set(trees))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "store"), open_bucket("memory://"), clock=lambda: time.time() + 2 * 3600)
    yield made
    made.close()


def image(store: Store, name: str, boot: str = "") -> ImageRecord:
    with store.draft() as draft:
        draft.write(name.encode())
        data, size = draft.commit()
    digest = store.put_tree(tree.put(tree.directory(), b"/f", Node(stat.S_IFREG | 0o644, size=size, data=data)))
    return ImageRecord(ImageInfo(name, size, 0.0, 0.0, tree=digest.hex()), Settings(), (), boot=boot)


def gone_through(store: Store, shown: Any, since: float, *images: ImageRecord) -> None:
    kept = Kept(images, (), since)
    collect(store, shown, StepLogs(store.home), Believer("boot"), kept, dry_run=False)


def test_a_layer_whose_tree_is_gone_does_not_stop_a_collection(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = image(store, "im-one")
    for name, digest in (("here", one.tree), ("gone", b"\1" * 32)):
        store.put_local_record("layers", name, json.dumps({"tree": digest.hex()}).encode())

    def down(*_: Any) -> None:
        raise ServiceError("it is down")

    monkeypatch.setattr(Bucket, "get", down)
    gone_through(store, Shown(), 0.0)
    assert store.records("layers") == ["here"]
    assert os.path.exists(os.path.join(store.home, "trees", one.info.tree))


def test_each_collection_tells_the_bucket_what_is_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, young = image(store, "im-ours"), image(store, "im-young", boot="b")
    assert store.remote is not None
    for name in ("im-ours", "im-young", "im-theirs"):
        store.remote.put(f"images/{name}", b"old")
    real = Bucket.list

    def older(self: Bucket, prefix: str) -> Any:
        for one in real(self, prefix):
            yield type(one)(one.key, one.size, one.at - DAY_S)

    monkeypatch.setattr(Bucket, "list", older)
    assert collect_shared(store, [ours, young], 30 * DAY_S, CollectOrder(dry_run=True)) == []
    assert store.remote.get("images/im-ours") == b"old"
    assert collect_shared(store, [ours, young], 30 * DAY_S, CollectOrder()) == []
    assert json.loads(store.remote.get("images/im-ours"))["info"]["tree"] == ours.info.tree
    assert store.remote.get("images/im-theirs") == store.remote.get("images/im-young") == b"old"


def test_the_bucket_is_collected_when_that_is_asked_for(store: Store, tmp_path: Path) -> None:
    ours = image(store, "im-ours")
    store.push(ours.tree)
    assert store.remote is not None
    store.remote.put("images/im-ours", json.dumps({"info": {"tree": ours.info.tree}}).encode())
    order = CollectOrder(remote=True)
    (said,) = collect_shared(store, [ours], 30 * DAY_S, order)
    assert said.startswith("Removed from memory:: 0 objects")
    alone = Store(str(tmp_path / "alone"))
    assert collect_shared(alone, [], 30 * DAY_S, CollectOrder()) == []
    assert "No bucket" in collect_shared(alone, [], 30 * DAY_S, order)[0]
    alone.close()


def test_only_who_asked_for_it_hears_of_a_bucket_that_is_down(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any) -> None:
        raise ServiceError("it is down")

    monkeypatch.setattr(Bucket, "put", down)
    assert collect_shared(store, [image(store, "im-1")], 30 * DAY_S, CollectOrder()) == []
    with pytest.raises(ServiceError):
        collect_shared(store, [image(store, "im-1")], 30 * DAY_S, CollectOrder(remote=True))
