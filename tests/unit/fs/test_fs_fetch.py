"""Content from the tiers: verified, once, from whoever has it, and an error within bounded time when nobody does."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
from blake3 import blake3

from cadenza.base.errors import DataLossError, NotFoundError, ResourceExhaustedError, ServiceError
from cadenza.fs import fetch as fetching
from cadenza.fs import scrub, tree
from cadenza.fs import partial as partials
from cadenza.fs.local import object_key
from cadenza.fs.partial import Partial
from cadenza.fs.scrub import Scrubbed, Scrubber
from cadenza.fs.store import Store
from cadenza.fs.tiers import Flights, Tier
from cadenza.fs.tree import CHUNKED_BYTES, Node
from cadenza.storage.bucket import Bucket, open_bucket

LARGE = random.Random(7).randbytes(5 << 20) + bytes(4 << 20) + random.Random(8).randbytes(3 << 20)
"""The same in every run: where its chunks end decides what a range asks for."""


class Watched(Bucket):
    """A bucket in memory that counts what it is asked for, and can be down, slow or lying."""

    def __init__(self, name: str = "w") -> None:
        inner = open_bucket("memory://")
        super().__init__(inner._store, f"memory://{name}")
        self.asked: Counter[str] = Counter()
        self.down = False
        self.lying = False
        self.delay_s = 0.0
        self.lock = threading.Lock()

    def _ask(self, key: str) -> None:
        with self.lock:
            self.asked[key] += 1
        time.sleep(self.delay_s)
        if self.down:
            raise ServiceError(f"the store {self.url} cannot be reached")

    def get(self, key: str, limit_bytes: int = 1 << 40) -> bytes:
        self._ask(key)
        found = super().get(key, limit_bytes)
        return found[:-1] + bytes([found[-1] ^ 1]) if self.lying else found

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self._ask(key)
        found = super().get_range(key, start, length)
        return bytes(length) if self.lying else found


def put(store: Store, content: bytes) -> bytes:
    with store.draft() as one:
        one.write(content)
        return one.commit()[0]


def a_tree(*files: tuple[bytes, int]) -> tree.Node:
    root = tree.directory()
    for number, (data, size) in enumerate(files):
        root = tree.put(root, b"/f%d" % number, Node(stat.S_IFREG | 0o644, size=size, data=data))
    return root


class Place:
    """A remote that another machine filled, and empty stores in front of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remote = Watched("remote")
        self.first = Store(str(root / "first"), self.remote)
        self.stores: list[Store] = [self.first]
        self.small = put(self.first, b"small")
        self.large = put(self.first, LARGE)
        self.tree = self.first.put_tree(a_tree((self.small, 5), (self.large, len(LARGE))))
        self.first.push(self.tree)
        self.remote.asked.clear()

    def store(self, remote: Optional[Bucket] = None, peers: Any = (), name: str = "second") -> Store:
        made = Store(str(self.root / name), remote or self.remote, peers)
        self.stores.append(made)
        return made

    def peer(self, name: str) -> Watched:
        """A machine that has it all: addressed like a peer, whole files by key."""
        made = Watched(name)
        for data in (self.small, self.large):
            made.put(object_key("objects", data), self.first.path(data))
        made.asked.clear()
        return made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for one in made.stores:
        one.close()


def leftovers(store: Store) -> list[str]:
    found = os.listdir(store.drafts.path) + os.listdir(f"{store.home}/big")
    return sorted(found + [one for one in os.listdir(f"{store.home}/tmp") if one.startswith("corrupt")])


def test_a_tree_and_all_it_names_comes_from_the_remote(place: Place) -> None:
    store = place.store()
    root = store.tree(place.tree)
    assert store.large(place.large) == (len(LARGE), place.large[32:])
    assert store.fetch_all(tree.files(root)) == 5 + len(LARGE)
    assert Path(store.path(place.small)).read_bytes() == b"small"
    assert Path(store.path(place.large)).read_bytes() == LARGE
    assert stat.S_IMODE(os.stat(store.path(place.large)).st_mode) == 0o444
    assert os.stat(store.path(place.large)).st_blocks * 512 < len(LARGE) - (2 << 20)  # its hole is one here too
    assert max(place.remote.asked.values()) == 1
    assert store.fetch_all(tree.files(root)) == 0
    assert leftovers(store) == [place.large[:32].hex()]


def test_a_tree_is_seen_to_be_here_without_nodes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    store.fetcher.bring_tree(place.tree)
    assert os.path.exists(f"{store.home}/trees/{place.tree.hex()}")
    monkeypatch.setattr(tree, "decode", None)
    store.fetcher.bring_tree(place.tree)
    with pytest.raises(NotFoundError):
        store.fetcher.bring_tree(bytes(32))


def test_a_large_file_is_not_in_the_remote_whole(place: Place) -> None:
    assert place.remote.size(object_key("objects", place.large)) is None
    assert len(list(place.remote.list("chunks"))) == len({one.digest for one in place.first.chunks(place.large[32:])})


def test_one_fetch_however_many_want_it(place: Place) -> None:
    store = place.store()
    place.remote.delay_s = 0.05
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: store.fetch(place.small, 5), range(12)))
    assert set(found) == {store.path(place.small)}
    assert place.remote.asked == {object_key("objects", place.small): 1}
    place.remote.asked.clear()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: store.fetch(place.large, len(LARGE)), range(12)))
    assert max(place.remote.asked.values()) == 1


def test_peers_are_asked_first(place: Place) -> None:
    peer = place.peer("peer")
    store = place.store(peers=[peer])
    store.fetch(place.small, 5)
    store.tree(place.tree)
    store.fetch(place.large)
    asked = {key.partition("/")[0] for key in place.remote.asked}
    assert asked == {"trees", "lists"}  # of which this peer has none
    assert peer.asked[object_key("objects", place.large)] == len(store.chunks(place.large[32:]))
    assert Path(store.path(place.large)).read_bytes() == LARGE
    assert store.fetcher.bytes_by == {"peer": 5 + len(LARGE), "remote": 0}


def test_wrong_bytes_of_a_tier_are_passed_over(place: Place) -> None:
    liar, honest = place.peer("liar"), place.peer("honest")
    liar.lying = True
    store = place.store(peers=[liar, honest])
    store.tree(place.tree)
    for data in (place.small, place.large):
        store.fetch(data)
        assert store.verify(data[:32]) == "whole"
    assert sum(liar.asked.values()) > 0


def test_when_all_have_wrong_bytes_it_is_data_loss(place: Place) -> None:
    liar = place.peer("liar")
    liar.lying = place.remote.lying = True
    store = place.store(peers=[liar])
    with pytest.raises(DataLossError, match=place.small.hex()) as caught:
        store.fetch(place.small, 5)
    assert "memory://liar" in str(caught.value) and "memory://remote" in str(caught.value)
    with pytest.raises(DataLossError, match=place.tree.hex()):
        store.tree(place.tree)
    assert not store.has(place.small) and leftovers(store) == []
    place.remote.lying = False
    store.fetch(place.small, 5)


def test_longer_than_it_should_be_is_wrong(place: Place) -> None:
    place.remote.put(object_key("objects", place.small), b"small and more")
    with pytest.raises(DataLossError):
        place.store().fetch(place.small, 5)


def test_absent_everywhere(place: Place) -> None:
    store = place.store(peers=[place.peer("peer")])
    with pytest.raises(NotFoundError):
        store.fetch(bytes(32), 5)


def test_a_dead_peer_costs_nothing_but_itself(place: Place) -> None:
    dead = place.peer("dead")
    dead.down = True
    store = place.store(peers=[dead])
    store.tree(place.tree)
    store.fetch_all(tree.files(store.tree(place.tree)))
    assert sum(dead.asked.values()) == 1  # then it was left alone


def test_all_down_is_an_error_at_once_and_recovers_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    store = place.store()
    for one in [store.tiers.remote]:
        assert one is not None
        one._clock = lambda: now[0]
    place.remote.down = True
    for _ in range(20):
        with pytest.raises(ServiceError, match="memory://remote cannot be reached"):
            store.fetch(place.small, 5)
    assert sum(place.remote.asked.values()) == 1
    now[0] += 1.5
    with pytest.raises(ServiceError):
        store.fetch(place.small, 5)
    assert sum(place.remote.asked.values()) == 2
    place.remote.down = False
    with pytest.raises(ServiceError):
        store.fetch(place.small, 5)  # it rests
    now[0] += 5
    store.fetch(place.small, 5)


def test_many_files_wait_out_a_short_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    root = store.tree(place.tree)
    place.remote.down = True
    threading.Timer(0.7, lambda: setattr(place.remote, "down", False)).start()
    assert store.fetch_all([one for one in tree.files(root) if len(one.data) == 32]) == 5
    monkeypatch.setattr(fetching, "PATIENCE_S", 0.0)
    place.remote.down = True
    with pytest.raises(ServiceError):
        store.fetch_all([Node(stat.S_IFREG, size=3, data=blake3(b"abc").digest())])


def test_ranges_before_a_file_is_whole(place: Place) -> None:
    store = place.store()
    chunks = store.chunks(place.large[32:])
    place.remote.asked.clear()
    size = len(LARGE)
    for start, length in ((0, 10), (size - 5, 100), (chunks[2].start - 1, 2), (size, 5), (0, 0), (1 << 20, 3 << 20)):
        found = store.fetch_range(place.large, size, start, length, finish=False)
        assert found == LARGE[start : start + length]
    assert not store.has(place.large)
    assert max(place.remote.asked.values()) == 1
    before = sum(place.remote.asked.values())
    store.fetch(place.large, size)
    assert sum(place.remote.asked.values()) <= len({one.digest for one in chunks}) > before
    assert max(place.remote.asked.values()) == 1
    assert store.fetch_range(place.large, size, 7, 9) == LARGE[7:16]
    assert store.fetch_range(place.small, 5, 1, 3) == b"mal"


def test_a_file_that_is_read_becomes_whole_by_itself(place: Place) -> None:
    store = place.store()
    store.tree(place.tree)
    assert store.fetch_range(place.large[:32], -1, 100, 50) == LARGE[100:150]
    until = time.monotonic() + 10
    while not store.has(place.large) and time.monotonic() < until:
        time.sleep(0.01)
    assert Path(store.path(place.large)).read_bytes() == LARGE
    assert max(place.remote.asked.values()) == 1


def test_what_an_ended_process_fetched_is_gone_on_with(place: Place) -> None:
    store = place.store()
    store.fetch_range(place.large, len(LARGE), 0, 3 << 20, finish=False)
    had = sum(place.remote.asked.values())
    store.close()
    again = place.store()
    again.fetch(place.large, len(LARGE))
    assert max(place.remote.asked.values()) == 1 and had > 3
    assert again.verify(place.large) == "whole"


def test_two_processes_fill_one_file(place: Place) -> None:
    one, two = place.store(), place.store()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda store: store.fetch(place.large, len(LARGE)), (one, two)))
    assert one.verify(place.large) == "whole"
    assert leftovers(one) == []


def test_a_part_that_is_removed_and_begun_by_another_is_not_taken_for_ours(place: Place) -> None:
    one, two = place.store(), place.store()
    size = len(LARGE)
    one.fetch_range(place.large, size, 0, size, finish=False)  # all chunks are here, it has no name yet
    partials.remove(one.home, place.large[:32])
    two.fetch_range(place.large, size, 0, 1, finish=False)  # another process begins it, with one chunk
    one.fetch(place.large, size)
    assert one.verify(place.large) == "whole"
    assert leftovers(one) == []


def test_what_is_removed_under_a_fetch_is_begun_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    real = Partial.finish
    times = iter(range(10))

    def finish(self: Partial) -> bool:
        if next(times) < removals:
            partials.remove(store.home, self.digest)
        return real(self)

    monkeypatch.setattr(Partial, "finish", finish)
    removals = 1
    store.fetch(place.large, len(LARGE))
    assert store.verify(place.large) == "whole"
    os.unlink(store.path(place.large))
    removals = 10
    with pytest.raises(ServiceError, match="removed while it was fetched"):
        store.fetch(place.large, len(LARGE))


def test_a_note_is_never_beside_another_part(place: Place) -> None:
    """However openings and removals of several processes fall together."""
    stores = [place.store() for _ in range(3)]
    digest, size = place.large[:32], len(LARGE)
    chunks = stores[0].chunks(place.large[32:])

    def work(store: Store) -> None:
        for turn in range(60):
            one = Partial(store, digest, size, chunks)
            one.put(turn % 2, LARGE[chunks[turn % 2].start : chunks[turn % 2].start + chunks[turn % 2].length])
            one.close()
            partials.remove(store.home, digest)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, stores))
    last = Partial(stores[0], digest, size, chunks)
    assert len(last.missing()) == len(chunks)
    last.close()


def test_chunks_that_are_written_are_marked_as_unsettled(place: Place) -> None:
    store = place.store()
    store.chunks(place.large[32:])
    store.settle()
    assert not [one for one in os.listdir(store.home) if one.startswith("unsettled-")]
    store.fetch_range(place.large, len(LARGE), 0, 1, finish=False)
    assert [one for one in os.listdir(store.home) if one.startswith("unsettled-")]


def test_closing_leaves_files_that_are_in_use_open(place: Place) -> None:
    store = place.store()
    one = store.fetcher._open(place.large[:32], len(LARGE), place.large[32:])
    store.fetcher.close()
    assert one.read(0, 1) == b"\0"
    store.fetcher._release(one)
    with pytest.raises(OSError):
        one.read(0, 1)


def test_a_file_whose_chunks_are_another_file_is_refused(place: Place) -> None:
    store = place.store()
    wrong = blake3(b"another").digest() + place.large[32:]
    with pytest.raises(DataLossError, match="do not make up"):
        store.fetch(wrong, len(LARGE))
    with pytest.raises(DataLossError, match="another size"):
        store.fetch(wrong, len(LARGE) + 1)
    assert leftovers(store) == []


@pytest.mark.parametrize("which", ["small", "large"])
def test_a_full_disk_leaves_nothing(place: Place, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    store.chunks(place.large[32:])
    data, size = (place.small, 5) if which == "small" else (place.large, len(LARGE))
    real = os.pwrite
    left = [2 if which == "large" else 0]

    def full(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhaustedError, match=store.home):
            store.fetch(data, size)
    assert leftovers(store) == [] and not store.has(data)
    store.fetch(data, size)
    assert store.verify(data) == "whole"


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EMFILE])
def test_whatever_the_disk_refuses_is_said_in_a_sentence(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = place.store()
    store.tree(place.tree)

    def broken(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", broken)
    for fetch in (
        lambda: store.fetch(place.small, 5),
        lambda: store.fetch(place.large, len(LARGE)),
        lambda: store.fetch_range(place.large, len(LARGE), 0, 5),
    ):
        with pytest.raises(ServiceError, match="cannot be kept on this machine"):
            fetch()


def test_a_corrupt_object_is_repaired_or_taken_away(place: Place) -> None:
    store = place.store()
    for data in (place.small, place.large):
        store.fetch(data, -1 if len(data) == 32 else len(LARGE))
        with open(store.path(data), "r+b") as file:
            file.write(b"X")
    assert store.verify(bytes(32)) == "absent"
    assert store.verify(place.small) == "repaired"
    store.tree(place.tree)
    place.remote.down = True
    assert store.verify(place.large[:32]) == "lost"
    assert not store.has(place.large)
    assert [one for one in os.listdir(f"{store.home}/tmp") if one.startswith("corrupt-objects-")]


@pytest.mark.parametrize(("number", "found"), [(errno.EIO, "repaired"), (errno.EMFILE, "")])
def test_only_a_disk_that_cannot_read_an_object_condemns_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int, found: str
) -> None:
    store = place.store()
    path = store.fetch(place.small, 5)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(scrub, "open", broken, raising=False)
    if found:
        assert store.verify(place.small) == found
    else:
        with pytest.raises(OSError, match="Too many"):
            store.verify(place.small)
        assert os.path.exists(path) and not [one for one in os.listdir(f"{store.home}/tmp") if "corrupt" in one]


def test_scrubbing_goes_round_in_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    datas = [put(store, b"%d" % number * 100) for number in range(20)]
    bad = sorted(datas)[7]
    with open(store.path(bad), "r+b") as file:
        file.write(b"X")
    rounds = []
    while not rounds or not rounds[-1].finished:
        rounds.append(store.scrub(500))
    assert len(rounds) > 2 and sum(one.objects for one in rounds) == 20
    assert [lost for one in rounds for lost in one.lost] == [bad.hex()]
    assert store.scrub(1 << 30).lost == [] and not store.has(bad)
    store.close()


def test_a_scrubber_goes_on_after_a_fault_and_ends_between_rounds() -> None:
    rounds: list[int] = []
    done = threading.Event()

    class Faulty:
        def scrub(self, limit_bytes: int) -> Scrubbed:
            rounds.append(limit_bytes)
            if len(rounds) == 1:
                raise OSError(errno.EIO, "a bad disk")
            if len(rounds) == 3:
                done.set()
                time.sleep(0.2)
                rounds.append(-1)
            return Scrubbed()

    async def run() -> None:
        scrubber = Scrubber(Faulty(), every_s=0.01, round_bytes=7)
        scrubber.open()
        await asyncio.to_thread(done.wait, 5)
        await scrubber.close()

    asyncio.run(run())
    assert rounds == [7, 7, 7, -1]


def test_records_in_the_remote(place: Place) -> None:
    store = place.store()
    place.first.put_record("steps", "ab", b"{}", remote=True)
    assert store.get_record("steps", "ab", remote=False) is None
    assert store.get_record("steps", "ab", remote=True) == b"{}"
    assert store.get_record("steps", "none", remote=True) is None
    place.remote.down = True
    assert store.get_record("steps", "ab", remote=True) is None


def test_a_tier_rests_longer_each_time() -> None:
    now = [0.0]
    tier = Tier(Watched(), "peer", lambda: now[0])
    assert tier.ready() and tier.ready()
    tier.failed("it is dead")
    tier.failed("it is dead")
    rests = []
    for _ in range(10):
        start = now[0]
        while not tier.ready():
            now[0] += 0.5
        assert not tier.ready()  # one alone tries
        tier.failed("it is dead")
        rests.append(now[0] - start)
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0] and rests[-1] == 60.0
    tier.worked()
    assert tier.ready() and tier.fault == ""


def test_those_who_wait_get_the_error_of_who_flew() -> None:
    flights, started = Flights(), threading.Event()

    def fail() -> None:
        started.set()
        time.sleep(0.1)
        raise DataLossError("it is broken")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.fly, b"k", fail, 5.0)
        started.wait(5)
        second = pool.submit(flights.fly, b"k", lambda: None, 5.0)
        for one in (first, second):
            with pytest.raises(DataLossError, match="it is broken"):
                one.result(5)
    assert flights.fly(b"k", lambda: None, 5.0)


def test_waiting_for_another_ends() -> None:
    flights, end = Flights(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(flights.fly, b"k" * 32, lambda: end.wait(5), 5.0)
        time.sleep(0.05)
        with pytest.raises(ServiceError, match="did not arrive"):
            flights.fly(b"k" * 32, lambda: None, 0.05)
        end.set()


assert len(LARGE) > CHUNKED_BYTES
