"""What our layers say agrees with what the kernel's overlayfs shows. Needs root, for mounts."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError, ResourceExhaustedError
from cadenza.fs.layers import LayerStore, Stack, explain, mounts_below, remove_tree
from cadenza.protocol.objects import FileEntry

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for one in mounts_below(str(tmp_path)):
        subprocess.run(["umount", "-l", one], check=True)


def overlay(lower: list[str], upper: str, work: str, merged: str) -> None:
    os.makedirs(merged, exist_ok=True)
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)


def change(top: Path, chance: random.Random) -> None:
    """A few random changes of a tree: new files and directories, removals, replacements, links."""
    for _ in range(12):
        path = top.joinpath(*(chance.choice(NAMES) for _ in range(chance.randint(1, 3))))
        try:
            kind = chance.randrange(5)
            if kind == 0:
                path.mkdir(parents=True)
            elif kind == 1:
                path.write_text(str(chance.random()))
            elif kind == 2:
                path.symlink_to(chance.choice(("/a", "b", "../c", "/d/a")))
            elif kind == 3 and path.is_dir() and not path.is_symlink():
                subprocess.run(["rm", "-rf", str(path)], check=True)
                path.mkdir()
            elif os.path.lexists(path):
                subprocess.run(["rm", "-rf", str(path)], check=True)
        except OSError:
            continue  # a file where a directory would have to be


def view(root: str) -> dict[str, str]:
    """Each path of a tree with its kind."""
    found = {}
    for parent, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(parent, name)
            found[path.removeprefix(root)] = (
                "link" if os.path.islink(path) else ("dir" if os.path.isdir(path) else "file")
            )
    return found


@pytest.mark.parametrize("seed", range(6))
def test_layers_stay_what_the_kernel_made_of_them(mounted: Path, seed: int) -> None:
    """Whiteouts, opaque directories and links survive an upper's rename into a layer, and lookups see them alike."""
    chance = random.Random(seed)
    store = LayerStore(str(mounted / "images"))
    lower: list[str] = []
    expected: dict[str, str] = {}
    for number in range(4):
        place = store.begin()
        merged = str(mounted / f"merged{number}")
        if lower:
            overlay(lower, place.upper, place.work, merged)
            assert view(merged) == expected
            change(Path(merged), chance)
            expected = view(merged)
            subprocess.run(["umount", merged], check=True)
        else:
            change(Path(place.upper), chance)
            expected = view(place.upper)
        made = store.keep(place, f"d{number}")
        lower.insert(0, store.path(made.name))
        empty = str(mounted / f"empty{number}")
        os.mkdir(empty)
        tree = Stack(lower, empty)
        paths = {f"/{one}" for one in NAMES} | {f"/{one}/{two}" for one in NAMES for two in NAMES} | set(expected)
        for path in sorted(paths):
            parents = [path[:at] for at in range(1, len(path)) if path[at] == "/"]
            if any(expected.get(parent) == "link" for parent in parents):
                continue
            found = tree.lookup(path)
            kind = None
            if found is not None:
                kind = "link" if stat.S_ISLNK(found.st_mode) else ("dir" if stat.S_ISDIR(found.st_mode) else "file")
            assert kind == expected.get(path), path


@pytest.mark.parametrize("seed", range(6))
def test_files_put_without_a_mount_are_where_the_kernel_would_put_them(mounted: Path, seed: int) -> None:
    """semantics.md 13.4: copied files land at their path as a process inside would see it, through links."""
    chance = random.Random(seed)
    store = LayerStore(str(mounted / "images"))
    first, second, third = (store.begin() for _ in range(3))
    change(Path(first.upper), chance)
    merged = str(mounted / "merged")
    overlay([first.upper], second.upper, second.work, merged)
    change(Path(merged), chance)
    before = view(merged)
    subprocess.run(["umount", merged], check=True)
    tree = Stack((second.upper, first.upper), third.upper)
    source = mounted / "source"
    source.write_text("put")
    put = []
    for path in ("/a/b/new", "/d/new", "/c/b/a/new", "/b"):
        try:
            tree.put(str(source), FileEntry(path, "d", 3, 0o600))
            put.append((path, tree.resolve(path)))
        except InvalidError:
            continue  # a file or a circle of links is in the way
    assert put
    overlay([second.upper, first.upper], third.upper, third.work, merged)
    for path, resolved in put:
        assert Path(merged + resolved).read_text() == "put"
        # As the kernel resolves it, from within the tree.
        inside = subprocess.run(
            ["unshare", "-m", "python3", "-S", "-c", f"import os; os.chroot({merged!r}); print(open({path!r}).read())"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert inside.stdout == "put\n"
    after = view(merged)
    for path, kind in before.items():
        if kind != "file":
            assert after.get(path) == kind


def test_a_full_disk_leaves_no_layer(mounted: Path) -> None:
    disk = mounted / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    store = LayerStore(str(disk / "images"))
    place = store.begin()
    big = mounted / "big"
    big.write_bytes(b"x" * (2 << 20))
    with pytest.raises(OSError) as caught:
        Stack((), place.upper).put(str(big), FileEntry("/big", "d", 2 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(explain(caught.value, str(disk)), ResourceExhaustedError)
    store.drop(place)
    assert os.listdir(disk / "images/work") == [] and os.listdir(disk / "images/layers") == []


def test_removing_a_tree_never_reaches_through_a_mount(mounted: Path) -> None:
    """A killed step may leave the host's cache mounted in its work directory."""
    precious, tree = mounted / "precious", mounted / "tree/with space"
    precious.mkdir()
    (precious / "kept").write_text("x")
    tree.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(precious), str(tree)], check=True)
    remove_tree(str(mounted / "tree"))
    assert (precious / "kept").read_text() == "x" and not (mounted / "tree").exists()
