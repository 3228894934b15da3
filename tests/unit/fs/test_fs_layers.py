"""Layers on disk: made aside, in place by one rename; files put through links; what a crash or another boot leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.fs import layers as module
from cadenza.fs.layers import LayerStore, Stack, copy_files, explain, remove_tree, tree_bytes
from cadenza.protocol.objects import FileEntry


def fill(store: LayerStore, digest: str, **files: str):
    place = store.begin()
    for name, content in files.items():
        Path(place.upper, name).write_text(content)
    return store.keep(place, digest)


def test_a_layer_is_found_once_it_is_whole(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    assert store.find("d1") is None
    made = fill(store, "d1", a="hello")
    assert store.find("d1") == made and Path(store.path(made.name), "a").read_text() == "hello"
    assert os.listdir(tmp_path / "work") == []
    assert LayerStore(str(tmp_path)).find("d1") == made


def test_cleanup_drops_all_that_no_step_has(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    kept = fill(store, "d1", a="1")
    old = fill(store, "d2", a="old")
    new = fill(store, "d2", a="new")
    used = fill(store, "d3", a="1")
    fill(store, "d3", a="2")
    half = store.begin()
    Path(half.upper, "half").write_text("x")
    (tmp_path / "layers" / "stray").mkdir()
    (tmp_path / "steps" / "torn").write_text('{"digest": "torn"')
    LayerStore(str(tmp_path)).cleanup(used=[used.name])
    left = set(os.listdir(tmp_path / "layers"))
    assert {kept.name, new.name, used.name} < left and old.name not in left and "stray" not in left
    assert os.listdir(tmp_path / "work") == [] and not (tmp_path / "steps" / "torn").exists()


def test_another_boot_trusts_only_what_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss after the rename may leave a layer's files empty: only a synced one counts then."""
    store = LayerStore(str(tmp_path))
    synced, torn = fill(store, "d1", a="1"), fill(store, "d2", a="2")
    store.settle(synced)
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    later = LayerStore(str(tmp_path))
    assert later.find("d1") is not None and later.find("d2") is None
    assert later.trusted(synced) and not later.trusted(torn)
    later.cleanup()
    assert os.listdir(tmp_path / "layers") == [synced.name]


def test_removing_an_older_layer_leaves_the_newer_of_its_step(tmp_path: Path) -> None:
    store = LayerStore(str(tmp_path))
    old, new = fill(store, "d1", a="old"), fill(store, "d1", a="new")
    for trash in store.remove([old]):
        remove_tree(trash)
    assert store.find("d1") == new and os.listdir(tmp_path / "layers") == [new.name]
    assert len(store.remove([new])) == 1 and store.remove([new]) == []
    assert store.find("d1") is None and os.listdir(tmp_path / "layers") == []


def stack(tmp_path: Path) -> Stack:
    """A base with links, one layer over it, and an empty upper."""
    base, middle, upper = (tmp_path / name for name in ("base", "middle", "upper"))
    (base / "usr/bin").mkdir(parents=True)
    (base / "bin").symlink_to("usr/bin")
    (base / "etc").mkdir(mode=0o750)
    (base / "etc/motd").write_text("old")
    (base / "loop").symlink_to("/loop")
    (base / "var").mkdir()
    (base / "var/run").symlink_to("/run")
    (middle / "opt").mkdir(parents=True)
    (middle / "opt/up").symlink_to("../../../etc")
    upper.mkdir()
    return Stack((str(middle), str(base)), str(upper))


def test_links_are_followed_within_the_tree(tmp_path: Path) -> None:
    tree = stack(tmp_path)
    for path, resolved in (
        ("/bin/x", "/usr/bin/x"), ("/var/run/a", "/run/a"), ("/opt/up/motd", "/etc/motd"), ("/", "/"), ("/../..", "/"),
        ("/new/deep", "/new/deep"), ("/bin/../lib", "/usr/lib"),
    ):  # fmt: skip
        assert tree.resolve(path) == resolved
    with pytest.raises(InvalidError, match="circle"):
        tree.resolve("/loop/x")


def test_files_are_put_and_directories_keep_what_they_were(tmp_path: Path) -> None:
    tree = stack(tmp_path)
    source = tmp_path / "source"
    source.write_text("new")
    files = [FileEntry(path, "d", 3, 0o640) for path in ("/bin/tool", "/opt/up/motd", "/var/run/deep/x")]
    copy_files(tree, files, [str(source)] * 3)
    upper = tmp_path / "upper"
    assert (upper / "usr/bin/tool").read_text() == "new" and not os.path.lexists(upper / "bin")
    assert (upper / "etc/motd").stat().st_mode & 0o777 == 0o640
    assert (upper / "etc").stat().st_mode & 0o777 == 0o750
    assert (upper / "run/deep/x").exists()
    assert (tmp_path / "base/etc/motd").read_text() == "old"


def test_what_cannot_be_put_is_said(tmp_path: Path) -> None:
    tree = stack(tmp_path)
    source = tmp_path / "source"
    source.write_text("new")
    with pytest.raises(InvalidError, match="is a file"):
        tree.put(str(source), FileEntry("/etc/motd/below", "d", 3))
    with pytest.raises(InvalidError, match="is a directory"):
        tree.put(str(source), FileEntry("/usr/bin", "d", 3))
    with pytest.raises(NotFoundError, match="/a was not uploaded"):
        copy_files(tree, [FileEntry("/a", "d", 3)], [None])


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        told = explain(OSError(number, os.strerror(number)), "/data")
        assert isinstance(told, ResourceExhaustedError) and "/data" in str(told) and "CADENZA_HOME" in str(told)
    other = OSError(errno.EACCES, "no")
    assert explain(other, "/data") is other


def test_bytes_count_each_file_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    empty = tree_bytes(str(tree))
    (tree / "a").write_bytes(b"x" * 100_000)
    once = tree_bytes(str(tree))
    os.link(tree / "a", tree / "sub/b")
    assert tree_bytes(str(tree)) == once and 100_000 <= once - empty < 140_000


def test_trees_that_cannot_be_listed_go_too(tmp_path: Path) -> None:
    closed = tmp_path / "tree/closed"
    closed.mkdir(parents=True)
    (closed / "file").write_text("x")
    closed.chmod(0)
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
