"""Images on their way to the bucket: through outages, restarts, and buckets that are not what they were."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from cadenza.base.errors import ServiceError
from cadenza.fs import outgoing, tree as trees
from cadenza.fs.outgoing import Outgoing, waiting
from cadenza.fs.recipe import Settings
from cadenza.fs.records import Believer, ImageRecord, Made, write
from cadenza.fs.store import Store
from cadenza.fs.tree import Node, put
from cadenza.protocol.nodes import ImageInfo
from cadenza.storage.bucket import Bucket, open_bucket

BELIEVER = Believer("this boot")


def whole(files: dict[str, tuple[bytes, int]]) -> Node:
    root = trees.directory()
    for name, (data, size) in files.items():
        root = put(root, name.encode(), Node(stat.S_IFREG | 0o644, size=size, data=data))
    return root


def content_of(machine: Machine, tree: str) -> Node:
    found = trees.find(machine.store.tree(bytes.fromhex(tree)), b"file")
    assert found is not None
    return found


class Gate:
    """A bucket that can be shut."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.url = bucket.url
        self.read_only = False
        self.shut = False
        self.puts: list[str] = []
        self.before: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        if self.shut:
            raise ServiceError(f"the store {self.url} cannot be reached")
        return getattr(self.bucket, name)

    def put(self, key: str, value: bytes | str) -> None:
        self.before()
        self.puts.append(key)
        self.__getattr__("put")(key, value)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(open_bucket(f"file://{tmp_path}/bucket"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(outgoing, "MAX_PAUSE_S", 0.05)


class Machine:
    """A store with images of one step each."""

    def __init__(self, path: Path, gate: Gate | None) -> None:
        remote: Any = gate
        self.store = Store(str(path), remote)
        self.images: dict[str, ImageRecord] = {}
        self.outgoing = Outgoing(self.store, lambda: self.images, self.find)

    def find(self, key: str) -> Made | None:
        return BELIEVER.step(self.store.get_local_record("steps", key))

    def make(self, name: str, content: bytes) -> str:
        with self.store.draft() as draft:
            draft.write(content)
            data, size = draft.commit()
        tree = self.store.put_tree(whole({"file": (data, size)})).hex()
        made = Made(f"{'ab' * 31}{len(self.images):02x}", tree, Settings(), "a step", size, 1, 0.0, 0.0)
        self.store.put_local_record("steps", made.key, write(made))
        info = ImageInfo(name, size, 0.0, 0.0, tree=tree)
        self.images[name] = ImageRecord(info, Settings(), (), (made.key,))
        return tree


async def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


def test_what_waits() -> None:
    images = {"im-a": "1", "im-b": "2", "im-c": "3", "im-d": "4"}
    sent = {"im-a": "1", "im-b": "1", "im-d": "4"}
    assert waiting(images, sent, {"im-a", "im-b"}) == ["im-b", "im-c", "im-d"]


def test_an_image_is_sent_step_by_step_and_its_record_last(tmp_path: Path, gate: Gate) -> None:
    machine = Machine(tmp_path / "a", gate)
    machine.make("im-a", b"content")

    async def go() -> None:
        machine.outgoing.add("im-a")
        await machine.outgoing.close()

    asyncio.run(go())
    kinds = [one.split("/")[0] for one in gate.puts]
    assert (
        kinds.index("objects") < kinds.index("trees") < kinds.index("steps") < kinds.index("images") == len(kinds) - 1
    )
    record = BELIEVER.image(gate.bucket.get("images/im-a"))
    assert record is not None
    other = Machine(tmp_path / "b", gate)
    found = content_of(other, record.info.tree)
    assert Path(other.store.fetch(found.data, found.size)).read_bytes() == b"content"


def test_an_outage_is_told_and_what_was_made_meanwhile_is_sent_after_it(tmp_path: Path, gate: Gate) -> None:
    machine = Machine(tmp_path / "a", gate)
    gate.shut = True

    async def go() -> None:
        machine.outgoing.open()
        await until(lambda: machine.outgoing.left[1] != "")
        for name in ("im-a", "im-b"):
            machine.make(name, name.encode())
            machine.outgoing.add(name)
        await until(lambda: machine.outgoing.left == (2, f"the store {gate.url} cannot be reached"))
        gate.shut = False
        await until(lambda: machine.outgoing.left == (0, ""))
        await machine.outgoing.close()

    asyncio.run(go())
    assert gate.bucket.size("images/im-a") and gate.bucket.size("images/im-b")


def test_a_later_start_sends_what_an_earlier_one_did_not(tmp_path: Path, gate: Gate) -> None:
    """Also where no store was configured when it was built, and what came from the bucket is not sent back."""
    machine = Machine(tmp_path / "a", None)
    tree = machine.make("im-a", b"content")
    machine.store.close()
    for round_number, sends in ((1, True), (2, False)):
        gate.puts.clear()
        again = Machine(tmp_path / "a", gate)
        again.images = machine.images

        async def go(one: Machine = again) -> None:
            one.outgoing.open()
            await one.outgoing.close()

        asyncio.run(go())
        assert bool(gate.puts) == sends, round_number
        again.store.close()
    taker = Machine(tmp_path / "b", gate)
    taker.images = dict(machine.images)
    taker.outgoing.came("im-a", tree)

    async def take() -> None:
        taker.outgoing.open()
        await taker.outgoing.close()

    asyncio.run(take())
    assert gate.puts == []


def test_a_bucket_that_was_emptied_gets_all_again(tmp_path: Path, gate: Gate) -> None:
    """Notes of what a bucket has do not outlive it."""
    machine = Machine(tmp_path / "a", gate)
    tree = machine.make("im-a", b"content")

    async def go(one: Machine) -> None:
        one.outgoing.open()
        await one.outgoing.close()

    asyncio.run(go(machine))
    gate.bucket.delete([one.key for kind in ("objects", "trees", "images", "steps") for one in gate.bucket.list(kind)])
    gate.bucket.delete(["collected"])
    again = Machine(tmp_path / "a", gate)
    again.images = machine.images
    asyncio.run(go(again))
    name = content_of(machine, tree).data.hex()
    assert gate.bucket.get(f"objects/{name[:2]}/{name[2:]}") == b"content"


def test_the_end_of_a_server_does_not_wait_for_a_large_image(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "FINISH_S", 0.05)
    machine = Machine(tmp_path / "a", gate)
    entries: dict[str, tuple[bytes, int]] = {}
    for number in range(200):
        with machine.store.draft() as draft:
            draft.write(b"%d" % number)
            entries[str(number)] = draft.commit()
    tree = machine.store.put_tree(whole(entries)).hex()
    machine.images["im-a"] = ImageRecord(ImageInfo("im-a", 1, 0.0, 0.0, tree=tree), Settings(), ())
    gate.before = lambda: time.sleep(0.05)

    async def go() -> float:
        machine.outgoing.add("im-a")
        begun = time.monotonic()
        await machine.outgoing.close()
        return time.monotonic() - begun

    assert asyncio.run(go()) < 200 / 16 * 0.05
    assert machine.outgoing.left[0] == 1
    assert gate.bucket.size("images/im-a") is None


def test_a_failing_image_does_not_hold_up_others(tmp_path: Path, gate: Gate) -> None:
    machine = Machine(tmp_path / "a", gate)
    machine.make("im-a", b"content")
    lost = content_of(machine, machine.images["im-a"].info.tree).data
    Path(machine.store.path(lost)).unlink()
    machine.make("im-b", b"other")

    async def go() -> None:
        machine.outgoing.open()
        await machine.outgoing.close()

    asyncio.run(go())
    assert gate.bucket.size("images/im-a") is None
    assert gate.bucket.size("images/im-b")
    assert machine.outgoing.left == (0, "")
