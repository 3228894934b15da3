"""What `ingest` and `merge` say of an overlay's upper is what the kernel showed of it. Needs root, for mounts."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from cadenza.fs.delta import diff
from cadenza.fs.ingest import ingest
from cadenza.fs.store import Store
from cadenza.fs.tree import Node, decode, encode, merge, validate, walk

OPTIONS = "redirect_dir=on,metacopy=on,index=off,xino=auto"
NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe", b"with space\n")
XATTRS = (b"user.note", b"trusted.more", b"user.overlay.opaque", b"trusted.overlay.opaque")
"""What a container may set; the last is an overlay's own mark for one inside the container."""


@dataclass
class Overlay:
    top: Path

    def mount(self, lower: str, how: str = OPTIONS) -> Path:
        for name in ("upper", "work", "merged"):
            (self.top / name).mkdir(exist_ok=True)
        os.chmod(self.top / "upper", 0o755)
        options = f"lowerdir={lower},upperdir={self.top}/upper,workdir={self.top}/work,{how}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.top / "merged")], check=True)
        return self.top / "merged"

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.top / "merged")], check=True)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    made = Overlay(tmp_path)
    (tmp_path / "lower").mkdir()
    yield made
    if os.path.ismount(tmp_path / "merged"):
        made.unmount()


def some_path(top: bytes, chance: random.Random) -> bytes:
    return top + b"".join(b"/" + chance.choice(NAMES) for _ in range(chance.randint(1, 3)))


def existing(top: bytes, chance: random.Random) -> bytes:
    found = [top]
    for parent, directories, files in os.walk(top):
        found += [os.path.join(parent, one) for one in (*directories, *files)]
    return chance.choice(found)


def fill(top: bytes, chance: random.Random, count: int) -> None:
    """Random entries of every kind."""
    for _ in range(count):
        path = some_path(top, chance)
        try:
            make(path, top, chance)
        except OSError:
            continue  # a file where a directory would have to be, or the other way round


def make(path: bytes, top: bytes, chance: random.Random) -> None:
    kind = chance.randrange(9)
    if kind < 2:
        os.makedirs(path)
    elif kind < 5:
        # Never through a symlink out of the tree, and never waiting for a fifo's reader.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        with open(fd, "wb") as file:
            file.write(chance.randbytes(chance.choice((0, 1, 5000))))
            if chance.random() < 0.2:
                file.truncate(100_000)
    elif kind == 5:
        os.symlink(chance.choice((b"a", b"b", b"nothing/here", b"\xff")), path)
    elif kind == 6:
        os.link(existing(top, chance), path, follow_symlinks=False)
    elif kind == 7:
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(7, 300))


def change(top: bytes, chance: random.Random, count: int) -> None:
    """Random changes: what `fill` does, removals, renames of all, other modes, owners, attributes, times, content."""
    for _ in range(count):
        path = existing(top, chance)
        kind = chance.randrange(9)
        try:
            if kind == 0:
                make(some_path(top, chance), top, chance)
            elif kind == 1 and path != top:
                subprocess.run(["rm", "-rf", path], check=True)
                if chance.random() < 0.5:
                    os.mkdir(path)
            elif kind in (2, 3) and path != top:
                os.rename(path, some_path(top, chance))
            elif os.path.islink(path):
                os.lchown(path, 5, 6)
            elif kind == 4:
                os.chmod(path, chance.choice((0o700, 0o4755, 0o644)))
            elif kind == 5:
                os.chown(path, chance.choice((0, 1000)), 7)
            elif kind == 6:
                os.setxattr(path, chance.choice(XATTRS), b"y")
            elif kind == 7:
                os.utime(path, ns=(1, chance.randrange(1 << 60)))
            elif os.path.isfile(path):
                with open(path, "ab") as file:
                    file.write(b"more")
        except OSError:
            continue


def shown(top: bytes) -> dict[bytes, object]:
    """All that a container sees of a directory tree."""
    found: dict[bytes, object] = {}
    inodes: dict[int, list[bytes]] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        info = os.lstat(top + path)
        content: object = None
        if stat.S_ISREG(info.st_mode):
            with open(top + path, "rb") as file:
                data = file.read()
            content = (blake3(data).digest() if data else b"", len(data))
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(top + path)
        elif stat.S_ISDIR(info.st_mode):
            waiting += [path + b"/" + name for name in os.listdir(top + path)]
        else:
            content = info.st_rdev
        xattrs = {
            os.fsencode(name): os.getxattr(top + path, name, follow_symlinks=False)
            for name in os.listxattr(top + path, follow_symlinks=False)
        }
        if not stat.S_ISDIR(info.st_mode):
            inodes.setdefault(info.st_ino, []).append(path)
        found[path] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, xattrs, content)
    for names in inodes.values():
        if len(names) > 1:
            found[b"links %d" % min(map(hash, names))] = sorted(names)
    return found


def told(root: Node) -> dict[bytes, object]:
    """The same of a tree."""
    found: dict[bytes, object] = {}
    links: dict[int, list[bytes]] = {}
    for path, node in walk(root):
        content: object = None
        if node.is_file:
            content = (node.data, node.size)
        elif node.is_link:
            content = node.data
        elif not node.is_dir:
            content = node.rdev
        if node.link:
            links.setdefault(node.link, []).append(path)
        found[path] = (node.mode, node.uid, node.gid, node.mtime, dict(node.xattrs or {}), content)
    for names in links.values():
        if len(names) > 1:
            found[b"links %d" % min(map(hash, names))] = sorted(names)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_the_tree_is_what_the_mount_showed(overlay: Overlay, seed: int) -> None:
    chance = random.Random(seed)
    lower = os.fsencode(overlay.top / "lower")
    store = Store(str(overlay.top / "store"))
    fill(lower, chance, 40)
    below = ingest(os.fsdecode(lower), store, delta=False, take=False)
    assert told(below) == shown(lower)
    merged = overlay.mount(os.fsdecode(lower))
    change(os.fsencode(merged), chance, 40)
    wanted = shown(os.fsencode(merged))
    overlay.unmount()
    delta = ingest(str(overlay.top / "upper"), store, below=below)
    validate(delta, delta=True)
    found = decode(encode(merge(below, decode(encode(delta)))))
    validate(found)
    assert told(found) == wanted
    assert merge(below, diff(below, found)) == found
    store.close()


@pytest.mark.parametrize("seed", range(100, 120))
def test_so_is_that_of_an_overlay_without_trusted_attributes(overlay: Overlay, seed: int) -> None:
    """What a user namespace mounts: marks are ``user.overlay.*``, and lower directories cannot be renamed."""
    chance = random.Random(seed)
    lower = os.fsencode(overlay.top / "lower")
    store = Store(str(overlay.top / "store"))
    fill(lower, chance, 40)
    below = ingest(os.fsdecode(lower), store, delta=False, take=False, prefix="user")
    merged = overlay.mount(os.fsdecode(lower), "userxattr,index=off,xino=auto")
    change(os.fsencode(merged), chance, 40)
    wanted = shown(os.fsencode(merged))
    overlay.unmount()
    delta = ingest(str(overlay.top / "upper"), store, below=below, prefix="user")
    assert told(merge(below, delta)) == wanted
    store.close()


def test_layers_of_several_steps_are_one_tree(overlay: Overlay) -> None:
    """Each step's upper over the tree so far, mounted over directories that the kernel made."""
    chance = random.Random(1)
    store = Store(str(overlay.top / "store"))
    fill(os.fsencode(overlay.top / "lower"), chance, 60)
    below = ingest(str(overlay.top / "lower"), store, delta=False, take=False)
    layers = [str(overlay.top / "lower")]
    for step in range(4):
        merged = overlay.mount(":".join(reversed(layers)))
        change(os.fsencode(merged), chance, 40)
        wanted = shown(os.fsencode(merged))
        overlay.unmount()
        below = merge(below, ingest(str(overlay.top / "upper"), store, below=below, take=False))
        assert told(below) == wanted
        os.rename(overlay.top / "upper", overlay.top / f"layer-{step}")
        shutil.rmtree(overlay.top / "work")
        layers.append(str(overlay.top / f"layer-{step}"))
