"""What goes and what stays: sweeps beside builds, evictions, the bucket's own collection, pushes, losses of power."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest

from cadenza.base.errors import ConflictError, DataLossError, ResourceExhaustedError, ServiceError
from cadenza.fs import collect, collect_bucket, push as pushing, settle, tree
from cadenza.fs.collect import GRACE_S
from cadenza.fs.local import object_key
from cadenza.fs.push import Known, present
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.storage.bucket import Bucket, open_bucket

LARGE = os.urandom(9 << 20)
DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Counting(Bucket):
    """In memory; counts what is sent, and fails after ``fail_after`` of them."""

    def __init__(self) -> None:
        super().__init__(open_bucket("memory://")._store, "memory://counting")
        self.sent: list[str] = []
        self.fail_after: Optional[int] = None

    def put(self, key: str, value: bytes | str) -> None:
        if self.fail_after is not None and len(self.sent) >= self.fail_after:
            raise ServiceError(f"the store {self.url} cannot be reached")
        super().put(key, value)
        self.sent.append(key)

    def age(self, monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
        """All that is in it was written so long ago."""
        real = Bucket.list

        def older(self: Bucket, prefix: str) -> Any:
            for one in real(self, prefix):
                yield type(one)(one.key, one.size, one.at - by_s)

        monkeypatch.setattr(Counting, "list", older)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bucket() -> Counting:
    return Counting()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, bucket: Counting) -> Iterator[Store]:
    made = Store(str(tmp_path / "store"), bucket, clock=clock)
    yield made
    made.close()


def put(store: Store, content: bytes) -> Node:
    with store.draft() as one:
        one.write(content)
        data, size = one.commit()
    return Node(stat.S_IFREG | 0o644, size=size, data=data)


def put_tree(store: Store, *files: Node) -> bytes:
    root = tree.directory()
    for number, node in enumerate(files):
        root = tree.put(root, b"/f%d" % number, node)
    return store.put_tree(root)


def has(store: Store, node: Node) -> bool:
    return os.path.exists(store.path(node.data))


# Sweeps.


def test_a_sweep_takes_what_no_tree_names(store: Store, clock: Clock) -> None:
    shared, kept, gone, large = (put(store, one) for one in (b"shared", b"kept", b"gone" * 5000, LARGE))
    stays = put_tree(store, shared, kept)
    goes = put_tree(store, shared, gone, large)
    Path(store.home, "erofs").mkdir()
    for name in (stays, goes):
        Path(store.home, "erofs", f"{name.hex()}.erofs").write_bytes(b"derived")
    clock.now += GRACE_S + 10
    before = store.usage()
    foreseen = store.sweep([stays], dry_run=True)
    assert store.usage() == before and has(store, gone)
    swept = store.sweep([stays])
    assert swept == foreseen
    assert (swept.objects, swept.lists, swept.trees, swept.derived) == (2, 1, 1, 2)
    assert swept.bytes >= before - store.usage() > len(LARGE)
    assert has(store, shared) and has(store, kept) and not has(store, gone) and not has(store, large)
    assert store.tree(stays).children is not None
    assert os.listdir(f"{store.home}/erofs") == [f"{stays.hex()}.erofs"]
    assert store.sweep([stays]) == collect.Swept()


def test_what_is_young_stays_with_all_it_names(store: Store, clock: Clock) -> None:
    old = put(store, b"old")
    clock.now += GRACE_S + 10
    young = put(store, b"young")
    put_tree(store, old)  # nobody names it yet: a build is about to
    store.sweep([])
    assert has(store, old) and has(store, young)
    clock.now += GRACE_S + 10
    store.sweep([])
    assert not has(store, old) and not has(store, young)


def test_a_pin_keeps_what_was_committed_or_asked_for(store: Store, clock: Clock) -> None:
    before, asked, of_tree = (put(store, one) for one in (b"before", b"asked", b"of tree"))
    base = put_tree(store, of_tree)
    clock.now += 10 * GRACE_S
    with store.pin():
        clock.now += 10
        assert store.has(asked.data)
        store.tree(base)
        made = put(store, b"made")
        clock.now += 10 * GRACE_S  # a build that takes long
        store.sweep([])
        assert [has(store, one) for one in (before, asked, of_tree, made)] == [False, True, True, True]
    clock.now += 10
    store.sweep([])
    assert not any(has(store, one) for one in (asked, of_tree, made))


def test_a_tree_asked_for_while_a_sweep_goes_on_keeps_its_content(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = put(store, b"content")
    digest = put_tree(store, node)
    clock.now += 2 * GRACE_S
    real = collect.Sweep._remove

    def remove(self: Any, name: str) -> bool:
        if name.startswith("trees/"):
            store.tree(digest)
        return real(self, name)

    monkeypatch.setattr(collect.Sweep, "_remove", remove)
    store.sweep([])
    assert has(store, node)


def test_nothing_is_swept_when_a_named_tree_cannot_be_read_now(
    store: Store, clock: Clock, bucket: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = put(store, b"content")
    named = put_tree(store, node)
    os.unlink(f"{store.home}/trees/{named.hex()}")
    clock.now += 2 * GRACE_S

    def down(*_: Any) -> bytes:
        raise ServiceError("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "get", down)
        with pytest.raises(ServiceError):
            store.sweep([named])
    assert has(store, node)


def test_corrupt_and_unfinished_files_go_in_time(store: Store, clock: Clock) -> None:
    corrupt = Path(store.home, "tmp", "corrupt-objects-ab-cd")
    part = Path(store.home, "big", f"{'ab' * 32}.part")
    for path in (corrupt, part):
        path.write_bytes(b"x")
        os.utime(path, (clock.now, clock.now))
    clock.now += GRACE_S + 10
    store.sweep([])
    assert corrupt.exists() and not part.exists()
    clock.now += 8 * DAY_S
    store.sweep([])
    assert not corrupt.exists()


# Evictions.


def test_least_recently_used_trees_go_first_and_only_what_the_bucket_has(store: Store, clock: Clock) -> None:
    old, shared, new, used, unpushed = (
        put(store, os.urandom(100_000)) for _ in range(5)
    )  # fmt: skip
    trees = [put_tree(store, *files) for files in ((old, shared), (new, shared), (used,), (unpushed,))]
    for one in trees[:3]:
        store.push(one)
    clock.now += 100
    lru = [trees[3], trees[0], trees[1], trees[2]]
    assert store.evict(lru, [trees[2]], 1) >= 100_000
    assert [has(store, one) for one in (old, shared, new, used, unpushed)] == [False, True, True, True, True]
    store.evict(lru, [trees[2]], 1 << 40)
    assert [has(store, one) for one in (old, shared, new, used, unpushed)] == [False, False, False, True, True]
    store.fetch(old.data, old.size)
    assert has(store, old)
    assert store.evict(lru, [], 1 << 40) and has(store, old)  # it came just now
    assert not has(store, used)


def test_large_files_are_evicted_when_their_lists_are_in_the_bucket(store: Store, clock: Clock) -> None:
    large = put(store, LARGE)
    digest = put_tree(store, large)
    clock.now += 100
    assert store.evict([digest], [], 1) == 0
    store.push(digest)
    assert store.evict([digest], [], 1) >= len(LARGE)
    store.fetch(large.data, large.size)
    assert store.verify(large.data) == "whole"


def test_large_files_that_are_here_in_part_are_evicted_too(store: Store, clock: Clock) -> None:
    large = put(store, LARGE)
    digest = put_tree(store, large)
    store.push(digest)
    os.unlink(store.path(large.data))
    store.fetch_range(large.data, large.size, 0, 1, finish=False)
    assert store.evict([digest], [], 1) == 0  # young
    clock.now += 100
    assert store.evict([digest], [digest], 1) == 0  # in use
    assert store.usage() > 100_000
    assert store.evict([digest], [], 1) > 100_000
    assert store.usage() < 100_000 and not [one for one in os.listdir(f"{store.home}/big") if "." in one]
    assert store.fetch_range(large.data, large.size, 5, 9, finish=False) == LARGE[5:14]
    assert len([one for one in os.listdir(f"{store.home}/big") if "." in one]) == 2


def test_the_limit_says_how_much(store: Store, clock: Clock) -> None:
    nodes = [put(store, os.urandom(100_000)) for _ in range(10)]
    trees = [put_tree(store, one) for one in nodes]
    for one in trees:
        store.push(one)
    clock.now += 100
    assert store.evict(trees, []) == 0
    store.limit_bytes = 700_000
    freed = store.evict(trees, [])
    assert freed and store.usage() <= 630_000 and has(store, nodes[-1]) and not has(store, nodes[0])
    assert store.evict(trees, []) == 0


def test_nothing_is_evicted_while_the_bucket_is_down_or_absent(
    store: Store, clock: Clock, bucket: Counting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = put(store, b"x" * 5000)
    digest = put_tree(store, node)
    store.push(digest)
    clock.now += 100

    def down(*_: Any) -> None:
        raise ServiceError("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "size", down)
        assert store.evict([digest], [], 1 << 40) == 0
    alone = Store(str(tmp_path / "alone"), clock=clock)
    assert alone.evict([digest], [], 1 << 40) == 0
    alone.close()
    assert has(store, node)


# Pushes.


def test_a_push_sends_what_is_missing_and_the_tree_last(store: Store, bucket: Counting) -> None:
    small, large = put(store, b"small"), put(store, LARGE)
    first = put_tree(store, small, large)
    told: list[tuple[int, int]] = []
    store.push(first, lambda done, total: told.append((done, total)))
    assert told[-1] == (5 + len(LARGE), 5 + len(LARGE))
    assert bucket.sent[0].startswith("pushing/") and bucket.sent[-1] == object_key("trees", first)
    assert bucket.sent[-2] == object_key("lists", large.list_digest)
    assert list(bucket.list("pushing")) == []
    bucket.sent.clear()
    assert store.push(first) == 0
    assert [one.partition("/")[0] for one in bucket.sent] == ["pushing", "trees"]
    bucket.sent.clear()
    # A file like the first but for one byte more at its front shares nearly all its chunks.
    second = put_tree(store, small, put(store, b"!" + LARGE))
    store.push(second)
    assert 1 <= len([one for one in bucket.sent if one.startswith("chunks/")]) <= 3
    assert not [one for one in bucket.sent if one.startswith("objects/")]


def test_an_interrupted_push_goes_on(store: Store, bucket: Counting) -> None:
    nodes = [put(store, b"%d" % number) for number in range(60)]
    digest = put_tree(store, *nodes)
    bucket.fail_after = 30
    with pytest.raises(ServiceError):
        store.push(digest)
    assert bucket.size(object_key("trees", digest)) is None
    sent = {one for one in bucket.sent if one.startswith("objects/")}
    bucket.sent.clear()
    bucket.fail_after = None
    store.push(digest)
    again = [one for one in bucket.sent if one.startswith("objects/")]
    assert len(again) == 60 - len(sent) and not sent & set(again)


def test_corrupt_content_is_not_sent(store: Store, bucket: Counting) -> None:
    node = put(store, b"content")
    digest = put_tree(store, node)
    with open(store.path(node.data), "r+b") as file:
        file.write(b"X")
    with pytest.raises(DataLossError, match="corrupt on this machine"):
        store.push(digest)
    assert not [one for one in bucket.sent if one.startswith(("objects/", "trees/"))]
    assert not has(store, node)


def test_notes_of_what_is_there_are_believed_for_a_while(store: Store, bucket: Counting, clock: Clock) -> None:
    first = Known(store, bucket, b"1")
    first.add(b"a" * 32)
    first.close()
    assert b"a" * 32 in Known(store, bucket, b"1")
    assert b"a" * 32 not in Known(store, bucket, b"2")
    third = Known(store, bucket, b"2")
    third.add(b"b" * 32)
    clock.now += 13 * 3600
    assert b"b" * 32 not in Known(store, bucket, b"2")


def test_many_are_looked_for_by_listing(bucket: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [os.urandom(32) for _ in range(40)]
    for one in digests[:25]:
        bucket.put(object_key("objects", one), b"x")
    bucket.put("objects/ab/stray", b"")
    asked = present(bucket, "objects", digests)
    monkeypatch.setattr(pushing, "LISTED_ABOVE", 10)
    assert present(bucket, "objects", digests) == asked == set(digests[:25])


# The bucket's collection.


MONTH_S = 30 * DAY_S


def name_image(bucket: Bucket, name: str, tree: bytes, *steps: str) -> None:
    """A machine has this image, as its record says."""
    bucket.put(f"images/{name}", json.dumps({"info": {"tree": tree.hex()}, "steps": steps, "new": 1}).encode())


def test_the_bucket_loses_what_no_record_names(store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, gone, large, stepped = (put(store, one) for one in (b"shared", b"gone", LARGE, b"step"))
    stays, goes, step = put_tree(store, shared), put_tree(store, shared, gone, large), put_tree(store, stepped)
    for one in (stays, goes, step):
        store.push(one)
    for tree_ in (stays, goes):
        bucket.put(f"traces/{tree_.hex()}", b"")
    name_image(bucket, "im-1", stays, "aa")
    bucket.put("steps/aa", json.dumps({"tree": step.hex()}).encode())
    assert store.collect_remote([], MONTH_S) == collect_bucket.Collected()  # all is young
    bucket.age(monkeypatch, 5 * DAY_S)
    foreseen = store.collect_remote([], MONTH_S, dry_run=True)
    found = store.collect_remote([], MONTH_S)
    assert found == foreseen and found.chunks > 5
    assert (found.objects, found.lists, found.trees, found.records) == (1, 1, 1, 1)
    left = {one.key for folder in ("objects", "chunks", "lists", "trees") for one in bucket.list(folder)}
    assert left == {
        object_key("objects", shared.data), object_key("objects", stepped.data), object_key("trees", stays),
        object_key("trees", step),
    }  # fmt: skip
    assert [one.key for one in bucket.list("traces")] == [f"traces/{stays.hex()}"]
    # What was noted as sent is not believed any more: a push sends it again.
    store.push(goes)
    assert bucket.size(object_key("objects", gone.data)) == 4
    assert bucket.size("collecting") is None


def test_records_of_no_machine_go_with_their_content(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, step, old = (put_tree(store, put(store, one)) for one in (b"ours", b"theirs", b"step", b"old"))
    for one in (ours, theirs, step, old):
        store.push(one)
    name_image(bucket, "im-ours", ours, "aa")
    name_image(bucket, "im-theirs", theirs)
    for name, tree_ in (("aa", step), ("bb", old)):
        bucket.put(f"steps/{name}", json.dumps({"tree": tree_.hex()}).encode())
    ages = {"images/im-ours": 0.0}
    real = Bucket.list

    def older(self: Bucket, prefix: str) -> Any:
        for one in real(self, prefix):
            yield type(one)(one.key, one.size, one.at - ages.get(one.key, 40 * DAY_S))

    monkeypatch.setattr(Counting, "list", older)
    found = store.collect_remote([], MONTH_S)
    assert (found.records, found.trees, found.objects) == (2, 2, 2)
    assert {one.key for kind in ("images", "steps") for one in bucket.list(kind)} == {"images/im-ours", "steps/aa"}
    assert {one.key for one in bucket.list("trees")} == {object_key("trees", one) for one in (ours, step)}


def test_what_this_machine_has_stays_whatever_the_bucket_says(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = put_tree(store, put(store, b"own")), put_tree(store, put(store, b"other"))
    for one in (own, other):
        store.push(one)
    name_image(bucket, "im-other", other)
    bucket.age(monkeypatch, 2 * DAY_S)
    assert store.collect_remote([own], 0.0) == collect_bucket.Collected()  # and no record is nobody's after two days
    assert store.collect_remote([], 0.0).trees == 1


def test_a_machine_says_once_a_day_what_it_has(store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    name_image(bucket, "im-1", bytes(32))
    name_image(bucket, "im-2", bytes(32))
    assert store.mark({"im-1": b"{}"}) == 0
    bucket.age(monkeypatch, DAY_S)
    assert store.mark({"im-1": b"new", "im-3": b"never sent"}) == 1
    assert bucket.get("images/im-1") == b"new" and bucket.size("images/im-3") is None
    assert store.mark({}) == 0


@pytest.mark.parametrize("record", [None, b"no json", b"[]", b'{"info": {}}'])
def test_a_bucket_whose_records_cannot_be_read_keeps_all(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch, record: Optional[bytes]
) -> None:
    digest = put_tree(store, put(store, b"content"))
    store.push(digest)
    if record is not None:
        bucket.put("images/im-1", record)
    bucket.age(monkeypatch, 2 * DAY_S)
    with pytest.raises(ConflictError if record is None else DataLossError):
        store.collect_remote([], MONTH_S)
    assert bucket.size(object_key("trees", digest)) and bucket.size("collecting") is None


def test_a_push_under_way_keeps_its_content(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    node = put(store, b"content")
    digest = put_tree(store, node)
    store.push(digest)
    name_image(bucket, "im-1", bytes(32))
    real = Bucket.list
    bucket.put(f"pushing/{digest.hex()}", Path(store.home, "trees", digest.hex()).read_bytes())

    def older(self: Bucket, prefix: str) -> Any:
        for one in real(self, prefix):
            yield one if one.key.startswith("pushing") else type(one)(one.key, one.size, one.at - 2 * DAY_S)

    monkeypatch.setattr(Counting, "list", older)
    store.collect_remote([], MONTH_S)
    assert bucket.size(object_key("objects", node.data)) == 7


def test_one_machine_collects_at_a_time_and_pushes_wait(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put_tree(store, put(store, b"content"))
    bucket.put("collecting", json.dumps({"at": 0.0}).encode())  # by a clock that is wrong: the bucket's counts
    with pytest.raises(ConflictError):
        store.collect_remote([], MONTH_S)
    monkeypatch.setattr(pushing, "COLLECTING_WAIT_S", 0.1)
    with pytest.raises(ServiceError, match="is being collected"):
        store.push(digest)
    real = Bucket.stat

    def hours_ago(self: Bucket, key: str) -> Any:
        found = real(self, key)
        return type(found)(key, 0, found.at - 2 * 3600) if found and key == "collecting" else found

    monkeypatch.setattr(Counting, "stat", hours_ago)  # its machine died
    store.push(digest)
    with pytest.raises(ConflictError, match="took over"):
        collect_bucket._remove(bucket, ["objects/x"], bucket.get("collecting"))  # it only slept, and is too late
    collect_bucket._claim(bucket, b"mine")
    assert bucket.get("collecting") == b"mine"
    bucket.delete(["collecting"])
    monkeypatch.setattr(Counting, "stat", real)
    name_image(bucket, "im-1", digest)
    store.collect_remote([], MONTH_S)
    assert bucket.size("collecting") is None


def test_a_collection_that_lost_the_bucket_ends(
    store: Store, bucket: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps, goes = put_tree(store, put(store, b"keeps")), put_tree(store, put(store, b"goes"))
    for one in (keeps, goes):
        store.push(one)
    name_image(bucket, "im-1", keeps)
    bucket.age(monkeypatch, 2 * DAY_S)
    real = collect_bucket._remove

    def remove(bucket: Bucket, keys: list[str], claim: bytes) -> None:
        bucket.put("collecting", b"another machine's")
        real(bucket, keys, claim)

    monkeypatch.setattr(collect_bucket, "_remove", remove)
    with pytest.raises(ConflictError, match="took over"):
        store.collect_remote([], MONTH_S)
    assert bucket.size(object_key("trees", goes)) and bucket.get("collecting") == b"another machine's"


# Losses of power.


def marker(store: Store) -> list[str]:
    return [one for one in os.listdir(store.home) if one.startswith("unsettled-")]


def test_settling_takes_the_marker_away(store: Store) -> None:
    assert marker(store) == []
    put(store, b"1")
    assert len(marker(store)) == 1
    store.settle()
    assert marker(store) == []
    store.settle()
    put(store, b"2")
    assert len(marker(store)) == 1


def test_what_comes_while_it_settles_is_still_marked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, b"1")
    real = settle.sync_file_system

    def sync(path: str) -> None:
        real(path)
        put(store, b"2")

    with monkeypatch.context() as patch:
        patch.setattr(settle, "sync_file_system", sync)
        store.settle()
    assert len(marker(store)) == 1


def tear(store: Store, name: str, content: bytes = b"") -> None:
    path = Path(store.home, name)
    os.chmod(path, 0o644)
    path.write_bytes(content)


def test_a_clock_that_is_set_back_moves_the_marker(store: Store, clock: Clock) -> None:
    put(store, b"one")
    (name,) = marker(store)
    first = json.loads(Path(store.home, name).read_bytes())["since"]
    clock.now -= 5000
    put(store, b"two")
    assert json.loads(Path(store.home, name).read_bytes())["since"] == first - 5000


def test_a_marker_that_could_not_be_written_is_no_reason_to_keep_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(settle.Marker, "_write", full)
        with pytest.raises(ResourceExhaustedError):
            put(store, b"one")
    put(store, b"one")
    store.settle()
    assert marker(store) == []


def test_after_a_loss_of_power_only_what_is_younger_is_checked(tmp_path: Path, bucket: Counting) -> None:
    home = str(tmp_path / "s")
    store = Store(home, bucket)
    settled = put(store, b"settled")
    with open(store.path(settled.data), "r+b") as file:
        file.write(b"X")  # not torn but broken: no business of the check
    store.settle()
    time.sleep(2.1 * settle.MARGIN_S)
    whole, torn, large = put(store, b"whole"), put(store, b"torn"), put(store, LARGE)
    kept, lost = put_tree(store, whole), put_tree(store, torn, large)
    store.push(put_tree(store, whole, whole))
    for name in ("ab", "cd"):
        store.put_record("steps", name, b"{}", remote=False)
    tear(store, f"objects/{torn.data.hex()[:2]}/{torn.data.hex()[2:]}")
    tear(store, f"trees/{lost.hex()}")
    tear(store, "steps/cd")
    tear(store, f"lists/{large.list_digest.hex()}", b"\0" * 100)
    tear(store, f"big/{large.digest.hex()}")
    Path(home, "erofs").mkdir()
    Path(home, "erofs", "x.erofs").write_bytes(b"perhaps torn")
    for ending in ("have", "part"):  # of any age
        Path(home, "big", f"ab.{ending}").write_bytes(b"\1")
        os.utime(Path(home, "big", f"ab.{ending}"), (1, 1))
    # The same boot: our process was killed, nothing is torn, nothing is read.
    os.close(store.drafts._lock_fd)
    Store(home).close()
    assert os.path.exists(store.path(torn.data))
    (name,) = marker(store)
    found = json.loads(Path(home, name).read_bytes())
    Path(home, name).write_text(json.dumps({**found, "boot": "another"}))
    again = Store(home, bucket)
    assert marker(again) == []
    assert [has(again, one) for one in (settled, whole, torn, large)] == [True, True, False, True]
    assert again.records("steps") == ["ab"]
    assert os.listdir(f"{home}/trees").count(kept.hex()) == 1 and lost.hex() not in os.listdir(f"{home}/trees")
    assert large.list_digest.hex() not in os.listdir(f"{home}/lists")
    assert os.listdir(f"{home}/erofs") == [] and os.listdir(f"{home}/big") == []
    assert not [one for one in os.listdir(home) if one.startswith("known-")]
    assert put(again, b"torn").data == torn.data and again.verify(torn.data) == "whole"
    again.close()


def test_a_torn_marker_means_that_all_is_checked(tmp_path: Path) -> None:
    home = str(tmp_path / "s")
    store = Store(home)
    node = put(store, b"content")
    store.settle()
    store.close()
    with open(store.path(node.data), "r+b") as file:
        file.write(b"X")
    Path(home, "unsettled-1-ab").write_bytes(b"\0\0\0")
    again = Store(home)
    assert not has(again, node) and marker(again) == []
    again.close()
