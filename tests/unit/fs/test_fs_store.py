"""The store on one machine's disk: what goes in is found by its digest, whole, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Iterator

import pytest
from blake3 import blake3

from cadenza.base.config import Config
from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.fs import draft, tree
from cadenza.fs.store import Store, open_store
from cadenza.fs.tree import CHUNKED_BYTES, Node


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "store"))
    yield made
    made.close()


def put(store: Store, content: bytes) -> tuple[bytes, int]:
    with store.draft() as one:
        one.write(content)
        return one.commit()


def drafts_of(store: Store) -> list[str]:
    return os.listdir(store.drafts.path)


def test_a_draft_becomes_an_object(store: Store) -> None:
    data, size = put(store, b"hello")
    assert (data, size) == (blake3(b"hello").digest(), 5)
    assert store.has(data)
    text = data.hex()
    assert store.path(data) == f"{store.objects}/{text[:2]}/{text[2:]}"
    assert Path(store.path(data)).read_bytes() == b"hello"
    assert stat.S_IMODE(os.stat(store.path(data)).st_mode) == 0o444
    assert drafts_of(store) == []


def test_directories_can_be_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = Store(str(tmp_path / "s"))
        data, _ = put(store, b"x")
    finally:
        os.umask(before)
    for path in (store.objects, os.path.dirname(store.path(data))):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    store.close()


def test_nobody_else_comes_into_a_store_that_is_in_an_open_directory(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    store = Store(str(tmp_path / "s"))
    assert stat.S_IMODE(os.stat(store.home).st_mode) == 0o700
    store.close()


def test_empty_files_are_no_objects(store: Store, tmp_path: Path) -> None:
    assert put(store, b"") == (b"", 0)
    (tmp_path / "empty").write_bytes(b"")
    assert store.take(str(tmp_path / "empty")) == (b"", 0)
    assert not (tmp_path / "empty").exists()
    with pytest.raises(InvalidError):
        store.has(b"")


def test_a_file_is_taken_without_a_copy(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    path.chmod(0o4755)
    os.setxattr(path, "user.note", b"1")
    inode = path.stat().st_ino
    data, size = store.take(str(path))
    assert size == 7 and not path.exists()
    info = os.stat(store.path(data))
    assert info.st_ino == inode and info.st_mode == stat.S_IFREG | 0o444 and os.listxattr(store.path(data)) == []


def test_a_file_is_copied_where_it_must_stay(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    data, _ = store.take(str(path), move=False)
    assert path.read_bytes() == b"content" and os.stat(store.path(data)).st_nlink == 1


def test_the_second_of_a_kind_is_dropped(store: Store, tmp_path: Path) -> None:
    data, _ = put(store, b"same")
    inode = os.stat(store.path(data)).st_ino
    (tmp_path / "f").write_bytes(b"same")
    assert store.take(str(tmp_path / "f"))[0] == data
    assert put(store, b"same")[0] == data
    assert os.stat(store.path(data)).st_ino == inode and not (tmp_path / "f").exists()
    assert drafts_of(store) == []


def test_an_object_of_the_wrong_size_is_replaced(store: Store) -> None:
    data, _ = put(store, b"whole")
    os.chmod(store.path(data), 0o644)
    os.truncate(store.path(data), 0)
    put(store, b"whole")
    assert Path(store.path(data)).read_bytes() == b"whole"


def test_only_regular_files_are_taken(store: Store, tmp_path: Path) -> None:
    os.symlink("x", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "none"):
        with pytest.raises(InvalidError, match=name):
            store.take(str(tmp_path / name))


def test_large_files_have_a_list_of_chunks(store: Store, tmp_path: Path) -> None:
    content = os.urandom(CHUNKED_BYTES) + bytes(3 << 20) + b"end"
    data, size = put(store, content)
    assert len(data) == 64 and size == len(content)
    chunks = store.chunks(data[32:])
    assert sum(one.length for one in chunks) == size
    for one in chunks:
        assert blake3(content[one.start : one.start + one.length]).digest() == one.digest
    assert store.large(data[:32]) == (size, data[32:])
    (tmp_path / "f").write_bytes(content)
    assert store.take(str(tmp_path / "f")) == (data, size)
    # Exactly at the limit it is none.
    assert len(put(store, bytes(CHUNKED_BYTES))[0]) == 32


def test_zeros_stay_holes(store: Store) -> None:
    content = b"a" * 70_000 + bytes(6 << 20) + b"b" + bytes(1 << 20)
    data, size = put(store, content)
    info = os.stat(store.path(data))
    assert info.st_size == size and info.st_blocks * 512 < 1 << 20
    assert Path(store.path(data)).read_bytes() == content


def test_trees(store: Store) -> None:
    root = tree.put(tree.directory(), b"/a/b", Node(stat.S_IFREG | 0o644, size=5, data=blake3(b"hello").digest()))
    digest = store.put_tree(root)
    assert digest == tree.digest(tree.encode(root)) == store.put_tree(root)
    assert store.tree(digest) == root
    with pytest.raises(NotFoundError, match=bytes(32).hex()):
        store.tree(bytes(32))
    with pytest.raises(NotFoundError):
        store.chunks(bytes(32))
    with pytest.raises(NotFoundError):
        store.fetch(bytes(32))


def test_a_broken_tree_is_not_served(store: Store) -> None:
    digest = store.put_tree(tree.directory())
    path = f"{store.home}/trees/{digest.hex()}"
    os.chmod(path, 0o644)
    Path(path).write_bytes(b"\x28\xb5\x2f\xfd junk")
    with pytest.raises(NotFoundError):
        store.tree(digest)
    assert not os.path.exists(path)
    assert [one for one in os.listdir(f"{store.home}/tmp") if one.startswith("corrupt-trees")]


def test_a_tree_brings_notes_of_its_large_files(store: Store) -> None:
    data, size = put(store, os.urandom(CHUNKED_BYTES + 1))
    os.unlink(f"{store.home}/big/{data[:32].hex()}")
    store.put_tree(tree.put(tree.directory(), b"/f", Node(stat.S_IFREG, size=size, data=data)))
    assert store.large(data) == (size, data[32:])


def test_records(store: Store) -> None:
    assert store.get_record("steps", "ab", remote=True) is None
    store.put_record("steps", "ab", b"1", remote=True)
    store.put_record("steps", "ab", b"2", remote=False)
    assert store.get_record("steps", "ab", remote=False) == b"2"
    assert store.records("steps") == ["ab"]
    store.remove_record("steps", "ab", remote=True)
    store.remove_record("steps", "ab", remote=True)
    assert store.records("steps") == []
    for kind, name in (("steps", "../x"), ("steps", ""), ("steps", ".x"), ("objects", "ab"), ("steps", "a/b")):
        with pytest.raises(InvalidError):
            store.put_record(kind, name, b"", remote=False)


def test_a_full_disk_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhaustedError, match=store.home):
            put(store, b"hello")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ResourceExhaustedError, match=store.home):
            store.put_record("steps", "ab", b"1", remote=False)
    (tmp_path / "f").write_bytes(b"taken")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(ResourceExhaustedError, match=store.home):
            store.take(str(tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == b"taken"
    assert drafts_of(store) == [] and list(store.everything("objects")) == []
    assert store.records("steps") == []


def test_the_dead_leave_no_drafts(store: Store) -> None:
    pid = os.fork()
    if not pid:
        other = Store(store.home)
        other.draft().write(b"never committed")
        os._exit(0)
    os.waitpid(pid, 0)
    mine = store.draft()
    mine.write(b"still being written")
    assert len(os.listdir(f"{store.home}/tmp")) == 2
    Store(store.home).close()
    assert os.listdir(f"{store.home}/tmp") == [store.drafts.name]
    assert store.has(mine.commit()[0])


def test_a_directory_of_drafts_that_is_taken_for_a_dead_ones_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir
    taken = []

    def mkdir(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        if not taken:
            taken.append(path)
            os.rmdir(path)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(os, "mkdir", mkdir)
    found = draft.Drafts(str(tmp_path / "tmp"))
    assert found.path != taken[0] and os.path.isdir(found.path)
    found.close()


def test_what_is_asked_for_counts_as_used(tmp_path: Path) -> None:
    now = [1_000_000.0]
    store = Store(str(tmp_path / "s"), clock=lambda: now[0])
    data, _ = put(store, b"x")
    for later, stands in ((5.0, 1_000_000.0), (700.0, 1_000_705.0)):
        now[0] += later
        assert store.has(data)
        assert os.stat(store.path(data)).st_mtime == stands
    now[0] += 5
    with store.pin():
        assert store.has(data)
    assert os.stat(store.path(data)).st_mtime == now[0]
    store.close()


def test_blocks_of_zeros_are_found_at_any_offset(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    content = b"x" * 1000 + bytes(200_000) + b"y" + bytes(65_536) + b"z" * 70_000
    for at in (0, 1, 65_535, 65_536):
        os.ftruncate(fd, 0)
        os.ftruncate(fd, at + len(content))
        draft.write_at(fd, content, at)
        assert os.pread(fd, 1 << 20, at) == content
    os.close(fd)


def test_a_store_as_it_is_configured(tmp_path: Path) -> None:
    config = Config(
        data_dir=str(tmp_path), store=f"file://{tmp_path}/bucket", peers="http://127.0.0.1:9, http://127.0.0.1:10",
        store_limit_gib=0.5,
    )  # fmt: skip
    store = open_store(config)
    assert store.home == str(tmp_path / "store") and store.limit_bytes == 1 << 29
    assert store.remote is not None and [one.bucket.url for one in store.tiers.peers] == [
        "http://127.0.0.1:9", "http://127.0.0.1:10",
    ]  # fmt: skip
    store.close()
    with pytest.raises(InvalidError, match="no address of a store"):
        open_store(Config(data_dir=str(tmp_path), store="nothing"))
