"""Where steps are made: empty at the start, gone at the end, whatever state it is in."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cadenza.base.errors import ResourceExhaustedError
from cadenza.fs.workplace import DEEP, begin, empty, erase, explain, mounts_below, remove_tree


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for one in mounts_below(str(tmp_path)):
        subprocess.run(["umount", "-l", one], check=True)


def test_a_place_is_made_and_gone(tmp_path: Path) -> None:
    place, other = begin(str(tmp_path)), begin(str(tmp_path))
    assert {os.path.basename(one) for one in (place.upper, place.work, place.more)} == set(os.listdir(place.root))
    Path(place.upper, "half").write_text("x")
    place.drop()
    assert os.listdir(tmp_path) == [os.path.basename(other.root)]
    empty(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_with_what_to_do() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        told = explain(OSError(number, os.strerror(number)), "/data")
        assert isinstance(told, ResourceExhaustedError) and "/data" in str(told) and "CADENZA_HOME" in str(told)
    other = OSError(errno.EACCES, "no")
    assert explain(other, "/data") is other


def test_trees_that_cannot_be_listed_go_too(tmp_path: Path) -> None:
    closed = tmp_path / "tree/closed"
    closed.mkdir(parents=True)
    (closed / "file").write_text("x")
    closed.chmod(0)
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


def test_removing_a_tree_never_reaches_through_a_mount(mounted: Path) -> None:
    """A killed step may leave the host's cache mounted in its work directory."""
    precious, tree = mounted / "precious", mounted / "tree/with space"
    precious.mkdir()
    (precious / "kept").write_text("x")
    tree.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(precious), str(tree)], check=True)
    remove_tree(str(mounted / "tree"))
    assert (precious / "kept").read_text() == "x" and not (mounted / "tree").exists()


def nested(top: Path, levels: int) -> None:
    """A path that no call takes whole."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for number in range(levels):
        os.mkdir("deeper", dir_fd=at)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


@pytest.mark.parametrize("levels", [DEEP - 1, DEEP, DEEP + 1, 3000])
def test_trees_of_any_depth_go(tmp_path: Path, levels: int) -> None:
    nested(tmp_path / "tree", levels)
    open_before = len(os.listdir("/proc/self/fd"))
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_what_is_erased_is_no_link_s_target(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(precious)
    Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/\xff\n")).write_text("x")
    erase(str(tmp_path / "tree"))
    erase(str(tmp_path / "was never there"))
    (tmp_path / "to").symlink_to(precious)
    erase(str(tmp_path / "to"))
    assert sorted(os.listdir(tmp_path)) == ["precious"] and (precious / "kept").read_text() == "x"
