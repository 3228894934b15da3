"""Directories become trees: what an upper says, without a mount. The kernel's own word: tests/contract."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cadenza.base.errors import DataLossError
from cadenza.fs import ingest as module
from cadenza.fs.ingest import ingest
from cadenza.fs.tree import Node, directory, find, merge, put, validate, walk


class Objects:
    """Takes files as a store does, and remembers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.taken: list[tuple[str, bool]] = []
        place.mkdir()

    def take(self, path: str, *, move: bool = True) -> tuple[bytes, int]:
        with open(path, "rb") as file:
            data = file.read()
        self.taken.append((os.path.basename(path), move))
        if move:
            os.rename(path, self.place / blake3(data).hexdigest())
        return blake3(data).digest(), len(data)


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "upper").mkdir(mode=0o755)
    yield tmp_path / "upper"
    subprocess.run(["rm", "-rf", str(tmp_path / "upper")], check=True)  # deeper than Python removes


def mark(path: Path, name: str, value: bytes) -> None:
    os.setxattr(path, "user.overlay." + name, value)


def read(upper: Path, store: Objects, below: Node | None = None, **more: object) -> Node:
    found = ingest(str(upper), store, below=below, prefix="user", **more)  # type: ignore[arg-type]
    validate(found, delta=True)
    return found


def at(root: Node, path: bytes) -> Node:
    found = find(root, path)
    assert found is not None
    return found


def file_of(data: bytes, mode: int = 0o644) -> Node:
    return Node(stat.S_IFREG | mode, size=len(data), data=blake3(data).digest())


def test_files_move_and_keep_what_they_are(upper: Path, store: Objects) -> None:
    (upper / "a").write_bytes(b"hello")
    os.chmod(upper / "a", 0o4751)
    os.utime(upper / "a", ns=(0, 1_234_567_890_123_456_789))
    (upper / "empty").touch()
    os.utime(upper, ns=(0, 77))
    os.setxattr(upper / "a", "user.note", b"\x00\xff")
    root = read(upper, store)
    a = at(root, b"/a")
    assert (a.mode, a.size, a.digest) == (stat.S_IFREG | 0o4751, 5, blake3(b"hello").digest())
    assert (a.mtime, a.uid, a.gid, a.xattrs) == (
        1_234_567_890_123_456_789,
        os.getuid(),
        os.getgid(),
        {b"user.note": b"\0\xff"},
    )
    assert root.mtime == 77  # not that of the moves
    assert (at(root, b"/empty").data, at(root, b"/empty").size) == (b"", 0)
    assert store.taken == [("a", True)]
    assert os.listdir(upper) == ["empty"]


def test_without_take_the_directory_stays_as_it_is(upper: Path, store: Objects) -> None:
    (upper / "a").write_bytes(b"hello")
    read(upper, store, take=False)
    assert store.taken == [("a", False)]
    assert (upper / "a").read_bytes() == b"hello"


def test_links_devices_fifos_and_names_of_any_bytes(upper: Path, store: Objects) -> None:
    (upper / "b").write_bytes(b"x")
    os.link(upper / "b", upper / "c")
    os.symlink(b"to/\xff", os.fsencode(upper / "link"))
    os.link(upper / "link", upper / "link2", follow_symlinks=False)
    os.mkfifo(upper / "fifo")
    Path(os.fsdecode(os.fsencode(upper) + b"/\xff\n\t")).write_bytes(b"y")
    root = read(upper, store)
    assert at(root, b"/b").link == at(root, b"/c").link > 0
    assert at(root, b"/link").link == at(root, b"/link2").link != at(root, b"/b").link
    assert (at(root, b"/link").data, at(root, b"/link").size) == (b"to/\xff", 0)
    assert stat.S_ISFIFO(at(root, b"/fifo").mode)
    assert at(root, b"/\xff\n\t").size == 1
    assert sorted(name for name, _ in store.taken if name in ("b", "c")) in (["b"], ["c"])
    assert not (upper / "b").exists()
    assert not (upper / "c").exists()


def test_a_file_that_is_also_elsewhere_is_copied(tmp_path: Path, upper: Path, store: Objects) -> None:
    (tmp_path / "cache").write_bytes(b"shared")
    os.link(tmp_path / "cache", upper / "a")
    read(upper, store)
    assert store.taken == [("a", False)]
    assert (tmp_path / "cache").read_bytes() == b"shared"


def test_sockets_are_left_out_and_what_was_below_them_is_gone(
    upper: Path, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(upper)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("run")
    lines: list[str] = []
    below = put(directory(), b"run", file_of(b"old"))
    delta = read(upper, store, below=below, progress=lines.append)
    assert lines == ["left out a socket: /run"]
    assert not merge(below, delta).children
    # overlayfs shows a whiteout in a directory that only one layer has as an entry that cannot be read.
    assert not read(upper, store, below=directory()).children and not read(upper, store).children
    assert not ingest(str(upper), store, delta=False, prefix="user").children


def test_whiteouts_and_opaque_directories(upper: Path, store: Objects) -> None:
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    (upper / "fresh").mkdir()
    mark(upper / "fresh", "opaque", b"y")
    (upper / "seen").mkdir()
    mark(upper / "seen", "opaque", b"x")
    mark(upper / "seen", "origin", b"\0\1")
    (upper / "seen/marked").touch()
    mark(upper / "seen/marked", "whiteout", b"")
    (upper / "seen/kept").touch()
    delta = read(upper, store)
    assert at(delta, b"/gone").is_whiteout
    assert at(delta, b"/fresh").opaque
    assert at(delta, b"/fresh").xattrs is None
    assert not at(delta, b"/seen").opaque
    assert at(delta, b"/seen/marked").is_whiteout
    lower = directory()
    for path in (b"gone", b"fresh/a", b"seen/marked", b"seen/other"):
        lower = put(lower, path, file_of(path))
    assert [path for path, _ in walk(merge(lower, delta))] == [b"", b"/fresh", b"/seen", b"/seen/kept", b"/seen/other"]
    alone = ingest(str(upper), store, delta=False, prefix="user")
    validate(alone)
    assert [path for path, _ in walk(alone)] == [b"", b"/fresh", b"/seen", b"/seen/kept"]


def test_marks_of_an_overlay_inside_the_container_are_its_own(upper: Path, store: Objects) -> None:
    mark(upper, "overlay.opaque", b"y")
    (upper / "a").mkdir()
    mark(upper / "a", "overlay.overlay.whiteout", b"")
    root = read(upper, store)
    assert not root.opaque
    assert root.xattrs == {b"user.overlay.opaque": b"y"}
    assert at(root, b"/a").xattrs == {b"user.overlay.overlay.whiteout": b""}
    # As root, what has another prefix is the container's too.
    assert ingest(str(upper), store, prefix="trusted").xattrs == {b"user.overlay.overlay.opaque": b"y"}


def test_files_of_attributes_alone_have_the_content_below(upper: Path, store: Objects) -> None:
    lower = directory()
    for there in (b"dir/a", b"old/name", b"dir/before"):
        lower = put(lower, there, file_of(there))
    (upper / "dir").mkdir()
    for name, redirect in (("a", b""), ("moved", b"/old/name"), ("renamed", b"before")):
        (upper / "dir" / name).touch(mode=0o600)
        mark(upper / "dir" / name, "metacopy", b"")
        if redirect:
            mark(upper / "dir" / name, "redirect", redirect)
    delta = read(upper, store, lower)
    for there, content in ((b"a", b"dir/a"), (b"moved", b"old/name"), (b"renamed", b"dir/before")):
        node = at(delta, b"dir/" + there)
        assert (node.digest, node.size, node.mode & 0o777) == (blake3(content).digest(), len(content), 0o600)
        assert node.xattrs is None
    assert not store.taken


def test_attributes_of_nothing_are_a_loss(upper: Path, store: Objects) -> None:
    (upper / "a").touch()
    mark(upper / "a", "metacopy", b"")
    for below in (None, directory(), put(directory(), b"a", directory())):
        with pytest.raises(DataLossError, match=r"/a: only its attributes"):
            read(upper, store, below)
    (upper / "a").unlink()
    (upper / "d").mkdir()
    mark(upper / "d", "redirect", b"/gone")
    with pytest.raises(DataLossError, match=r"/d: renamed from /gone"):
        read(upper, store, directory())


def test_a_renamed_directory_has_all_it_had(upper: Path, store: Objects) -> None:
    lower = directory()
    for path in (b"old/a", b"old/b", b"old/deep/c"):
        lower = put(lower, path, file_of(path))
    os.mknod(upper / "old", stat.S_IFCHR, 0)
    (upper / "new").mkdir()
    mark(upper / "new", "redirect", b"old")
    os.mknod(upper / "new/b", stat.S_IFCHR, 0)
    (upper / "new/far").mkdir()
    mark(upper / "new/far", "redirect", b"/old/deep")
    (upper / "new/far/d").write_bytes(b"d")
    # It has the place of a lower directory, which must not shine through.
    lower = put(lower, b"new/hidden", file_of(b"hidden"))
    delta = read(upper, store, lower)
    paths = [path for path, node in walk(merge(lower, delta)) if not node.is_dir]
    assert paths == [b"/new/a", b"/new/deep/c", b"/new/far/c", b"/new/far/d"]


def test_links_that_a_rename_tears_apart_are_one_file_still(upper: Path, store: Objects) -> None:
    linked = file_of(b"one")
    linked.link = 4
    lower = put(put(directory(), b"old/a", linked), b"stays/b", linked)
    os.mknod(upper / "old", stat.S_IFCHR, 0)
    (upper / "new").mkdir()
    mark(upper / "new", "redirect", b"old")
    (upper / "x").write_bytes(b"other")
    os.link(upper / "x", upper / "y")
    merged = merge(lower, read(upper, store, lower))
    assert at(merged, b"/new/a").link == at(merged, b"/stays/b").link > 0
    assert at(merged, b"/x").link == at(merged, b"/y").link not in (0, at(merged, b"/new/a").link)


def test_two_thousand_levels(upper: Path, store: Objects) -> None:
    here = os.open(upper, os.O_RDONLY)
    for number in range(2000):
        os.mkdir("name", dir_fd=here)
        below = os.open("name", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if number == 1998:
            fd = os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here)
            os.write(fd, b"deep")
            os.close(fd)
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    delta = read(upper, store)
    path, node = max((one for one in walk(delta) if one[1].is_file), key=lambda one: len(one[0]))
    assert path == b"/name" * 1999 + b"/leaf"
    assert node.digest == blake3(b"deep").digest()
    assert merge(directory(), delta) == merge(directory(), delta)
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_files_in_threads_and_their_errors(upper: Path, store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 100)
    for number in range(30):
        (upper / f"{number}").write_bytes(b"%d" % number * 60)
    delta = read(upper, store)
    for number in range(30):
        assert at(delta, b"%d" % number).digest == blake3(b"%d" % number * 60).digest()
    (upper / "large").write_bytes(b"x" * 100)
    (upper / "small").write_bytes(b"x")

    def fail(path: str, *, move: bool = True) -> tuple[bytes, int]:
        if path.endswith("large"):
            raise OSError("no disk")
        return b"", 0

    monkeypatch.setattr(store, "take", fail)
    with pytest.raises(OSError, match="no disk"):
        read(upper, store)


def test_what_is_not_there_is_an_error(tmp_path: Path, store: Objects) -> None:
    with pytest.raises(FileNotFoundError):
        ingest(str(tmp_path / "nothing"), store)
