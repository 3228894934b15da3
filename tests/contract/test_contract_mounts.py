"""However a tree is shown on a machine, an overlay over it is the same file system. Needs root, for mounts."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cadenza.agent import mounts
from cadenza.base.errors import NotFoundError
from cadenza.fs import kernel, tree
from cadenza.fs.abilities import Abilities, detect
from cadenza.fs.mount import Lowers, Mounts
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.runtime import rootless

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MTIME = 1_600_000_000_123_456_789
ROOT = not rootless.entered()
"""Whether this is the machine's root, not a user namespace's (tests/live/test_live_mounts.py runs this in one)."""
WAYS = ("erofs file", "erofs loop", "sparse", "links") if ROOT else ("sparse", "links")


class Place:
    """A store, what shows its trees, and room for overlays."""

    def __init__(self, home: Path, way: str) -> None:
        self.home = home
        self.store = Store(str(home / "store"))
        found = detect(str(home), {})
        assert found.data_layers and bool(found.erofs) == ROOT, found.reasons
        self.abilities: Abilities = replace(found, mode=way.split()[0], erofs=way.partition(" ")[2])
        self.mounts = Mounts(self.store, self.abilities)
        self.count = 0

    def file(self, content: bytes, mode: int = 0o644, **others: object) -> Node:
        data = b""
        if content:
            path = self.home / "content"
            path.write_bytes(content)
            data, _ = self.store.take(str(path))
        return Node(stat.S_IFREG | mode, mtime=MTIME, size=len(content), data=data, **others)  # type: ignore[arg-type]

    def show(self, *trees: Node) -> Path:
        """An overlay of trees, the topmost first, below an upper: its directory. Beside it are ``u`` and ``w``."""
        lowers = self.mounts.lowers([self.store.put_tree(one) for one in trees])
        return self.overlay(lowers)

    def overlay(self, lowers: Lowers) -> Path:
        self.count += 1
        top = self.home / f"overlay{self.count}"
        for name in ("u", "w", "m"):
            (top / name).mkdir(parents=True)
        mounts.overlay(lowers, str(top / "u"), str(top / "w"), str(top / "m"))
        return top / "m"


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path, request.param)
    try:
        yield found
    finally:
        for point in kernel.below(str(tmp_path)):
            kernel.umount(point)


def sample(place: Place) -> Node:
    """One of everything."""
    big = bytes(range(256)) * 4096 * 9  # above the size from which on files are chunked
    same = place.file(b"two names\n", 0o600, uid=7, gid=8, link=1)
    root = tree.directory(0o750, 3, 4, MTIME)
    for path, node in (
        (b"/bin/tool", place.file(b"#!/bin/sh\n", 0o4755)),
        (b"/etc/empty", place.file(b"")),
        (b"/etc/text", place.file(b"text\n", 0o640, uid=1000, gid=1001, xattrs={b"user.one": b"1"})),
        (b"/etc/twin", place.file(b"text\n", 0o644)),
        (b"/link", Node(stat.S_IFLNK | 0o777, 5, 6, MTIME, 8, b"etc/text")),
        (b"/names/one", same),
        (b"/names/two", same),
        *([(b"/dev/full", Node(stat.S_IFCHR | 0o666, mtime=MTIME, rdev=os.makedev(1, 7)))] if ROOT else []),
        (b"/dev/pipe", Node(stat.S_IFIFO | 0o620, mtime=MTIME)),
        (b"/big", place.file(big)),
        (b"/odd/" + bytes([0xFF, 0x0A, 0x20, 0x5C]), place.file(b"odd name\n")),
        (b"/odd/" + b"n" * 255, place.file(b"long name\n")),
        (b"/closed/file", place.file(b"in a closed directory\n", 0)),
    ):
        root = tree.put(root, path, node)
    assert root.children is not None
    closed = tree.find(root, b"/closed")
    assert closed is not None
    closed.mode, closed.mtime = stat.S_IFDIR | 0o1700, MTIME
    return root


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that a program can learn of a tree, without numbers that are the file system's own.

    Nor the root directory's attributes: those are the upper's.
    """
    found: dict[bytes, tuple[object, ...]] = {}
    waiting = [os.fsencode(root)]
    top = len(os.fsencode(root))
    while waiting:
        path = waiting.pop()
        info = os.lstat(path)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {one: os.getxattr(path, one, follow_symlinks=False) for one in sorted(names)}
        content: object = None
        size = info.st_size
        if stat.S_ISREG(info.st_mode):
            with open(path, "rb") as file:
                content = file.read()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISDIR(info.st_mode):
            size = 0
            waiting.extend(path + b"/" + one for one in os.listdir(path))
        found[path[top:]] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_rdev, info.st_mtime_ns, size, content, xattrs
        )  # fmt: skip
    del found[b""]
    return found


def expected(place: Place, root: Node) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for path, node in tree.walk(root):
        content: object = None
        if node.is_file:
            content = Path(place.store.path(node.digest)).read_bytes() if node.data else b""
        elif node.is_link:
            content = node.data
        names = {os.fsdecode(name): value for name, value in (node.xattrs or {}).items()}
        size = node.size if node.is_file or node.is_link else 0
        found[path] = (node.mode, node.uid, node.gid, node.rdev, node.mtime, size, content, names)
    del found[b""]
    return found


def test_all_of_a_tree_is_shown(place: Place) -> None:
    root = sample(place)
    found, wanted = seen(place.show(root)), expected(place, root)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path] == value, path


def test_names_of_one_file_are_one_file(place: Place) -> None:
    shown = place.show(sample(place))
    assert os.path.samefile(shown / "names/one", shown / "names/two")
    assert not os.path.samefile(shown / "etc/text", shown / "etc/twin")


def test_deltas_hide_what_they_hide(place: Place) -> None:
    """Whiteouts, opaque directories, replaced kinds: what overlayfs shows is what `tree.merge` says."""
    lower = tree.directory()
    for name in (b"/gone", b"/dir/gone", b"/dir/stays", b"/hidden/a", b"/kind"):
        lower = tree.put(lower, name, place.file(name))
    lower = tree.put(lower, b"/turns/into/a/file", place.file(b"deep"))
    delta = tree.directory()
    for name, node in (
        (b"/gone", tree.whiteout()),
        (b"/dir/gone", tree.whiteout()),
        (b"/dir/new", place.file(b"new")),
        (b"/hidden/b", place.file(b"b")),
        (b"/kind/inside", place.file(b"inside")),
        (b"/turns", place.file(b"a file")),
    ):
        delta = tree.put(delta, name, node)
    for name in (b"/hidden", b"/kind"):
        node = tree.find(delta, name)
        assert node is not None
        node.flags = tree.OPAQUE
    merged = tree.merge(lower, delta)
    shown = place.show(delta, lower)
    assert seen(shown) == expected(place, merged)


def test_containers_change_what_they_see_and_nobody_else_does(place: Place) -> None:
    root = sample(place)
    one, other = place.show(root), place.show(root)
    before = seen(other)
    os.chmod(one / "big", 0o600)
    if ROOT:
        os.rename(one / "etc", one / "usr")
    else:
        # The attributes by which overlayfs moves a directory without its content are the machine's root's.
        with pytest.raises(OSError, match="cross-device"):
            os.rename(one / "etc", one / "usr")
        shutil.copytree(one / "etc", one / "usr")
        shutil.rmtree(one / "etc")
    os.unlink(one / "names/one")
    with open(one / "usr/text", "ab") as file:
        file.write(b"more\n")
    with open(one / "big", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"changed")
    (one / "new").write_bytes(b"new\n")
    assert (one / "usr/text").read_bytes() == b"text\nmore\n"
    assert not (one / "etc").exists()
    assert (one / "big").read_bytes()[(5 << 20) - 2 : (5 << 20) + 9] == b"\xfe\xffchanged\x07\x08"
    assert (one / "names/two").read_bytes() == b"two names\n"
    assert seen(other) == before == expected(place, root)


def test_a_change_of_attributes_copies_no_content_where_content_lies_elsewhere(place: Place) -> None:
    shown = place.show(sample(place))
    os.chmod(shown / "big", 0o600)
    upper = shown.parent / "u/big"
    assert upper.stat().st_size == (shown / "big").stat().st_size
    attributes_bytes = 4096
    copied = place.abilities.mode == "links" or not ROOT
    assert (upper.stat().st_blocks * 512 > attributes_bytes) == copied


def test_what_is_shown_is_made_once_and_cannot_be_written(place: Place) -> None:
    digest = place.store.put_tree(sample(place))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(place.mounts.show(digest))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 8 and len(set(found)) == 1
    shown = [one for one in kernel.below(str(place.home / "store")) if digest.hex() in one]
    assert len(shown) == (0 if place.abilities.mode == "links" else 1)
    if place.abilities.mode != "links":
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(os.path.join(found[0], "new"))


def test_containers_go_on_when_their_tree_is_forgotten(place: Place) -> None:
    root = sample(place)
    digest = place.store.put_tree(root)
    shown = place.overlay(place.mounts.lowers([digest]))
    if place.abilities.mode == "links":
        place.mounts.close()  # its directories are the layers themselves: they are forgotten when nobody has them
    else:
        place.mounts.forget(digest)
        assert not [one for one in kernel.below(str(place.home / "store")) if digest.hex() in one]
    assert seen(shown) == expected(place, root)
    assert seen(place.overlay(place.mounts.lowers([digest]))) == expected(place, root)


def test_nothing_is_left_of_a_tree_that_is_forgotten(place: Place) -> None:
    one, other = place.store.put_tree(sample(place)), place.store.put_tree(tree.directory())
    place.mounts.lowers([one, other])
    place.mounts.keep([other])
    left = [path for path in (place.home / "store").rglob("*") if one.hex() in path.name and "trees" not in path.parts]
    assert not left
    assert not list((place.home / "store").glob("links/variants/*/*"))
    place.mounts.close()
    assert not kernel.below(str(place.home / "store"))


def test_a_later_process_takes_over_what_a_killed_one_left(place: Place) -> None:
    root = sample(place)
    digest = place.store.put_tree(root)
    place.mounts.show(digest)
    again = Mounts(place.store, place.abilities)
    assert seen(place.overlay(again.lowers([digest]))) == expected(place, root)
    again.close()
    assert not kernel.below(str(place.home / "store"))


def test_an_image_that_a_loss_of_power_tore_is_made_anew(place: Place) -> None:
    if place.abilities.mode != "erofs":
        pytest.skip("only images are kept")
    root = sample(place)
    digest = place.store.put_tree(root)
    place.mounts.show(digest)
    place.mounts.close()
    image = place.home / "store/erofs" / (digest.hex() + ".erofs")
    whole = image.read_bytes()
    image.write_bytes(whole[:2048] + bytes(len(whole) - 2048))
    again = Mounts(place.store, place.abilities)
    assert seen(place.overlay(again.lowers([digest]))) == expected(place, root)
    assert image.read_bytes() == whole
    again.close()


def test_a_tree_that_nobody_has_is_refused_and_leaves_nothing(place: Place) -> None:
    with pytest.raises(NotFoundError):
        place.mounts.show(bytes(32))
    assert not [path for path in (place.home / "store").rglob("*") if bytes(32).hex() in path.name]
