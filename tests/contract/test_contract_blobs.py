"""What every `BlobStore` promises; each implementation passes the same suite."""

from __future__ import annotations

import os
from typing import Any, Callable

import pytest

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.storage.blobs import BlobStore, DirectoryBlobs, MemoryBlobs, copy

ids = IdSource()
STORES: dict[str, Callable[[str], BlobStore]] = {
    "directory": DirectoryBlobs,
    "directory-sync": lambda path: DirectoryBlobs(path, sync=True),
    "memory": lambda path: MemoryBlobs(),
}


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Any) -> BlobStore:
    return STORES[request.param](str(tmp_path / "blobs"))


def test_what_is_put_is_got(store: BlobStore) -> None:
    for data in (b"", b"x", os.urandom(3_000_000)):
        blob_id = ids.new("blob")
        store.put(blob_id, data)
        assert store.get(blob_id) == data
        assert store.size(blob_id) == len(data)


def test_an_open_descriptor_is_read_only_and_outlives_deletion(store: BlobStore) -> None:
    blob_id = ids.new("blob")
    store.put(blob_id, b"abc")
    first, second = store.open(blob_id), store.open(blob_id)
    try:
        assert os.read(first, 2) == b"ab"
        assert os.read(second, 9) == b"abc"  # each has its own place
        with pytest.raises(OSError):
            os.write(first, b"z")
        store.delete(blob_id)
        assert os.read(first, 2) == b"c"
    finally:
        os.close(first)
        os.close(second)


def test_a_draft_is_nothing_until_it_is_committed(store: BlobStore) -> None:
    kept, dropped = ids.new("blob"), ids.new("blob")
    draft = store.draft()
    os.write(draft.fd, b"whole")
    with pytest.raises(NotFoundError):
        store.size(kept)
    draft.commit(kept)
    assert store.get(kept) == b"whole"
    draft = store.draft()
    os.write(draft.fd, b"half")
    draft.discard()
    draft.discard()
    with pytest.raises(NotFoundError):
        store.get(dropped)
    assert [one.blob_id for one in store.list()] == [kept]


def test_absent_blobs(store: BlobStore) -> None:
    blob_id = ids.new("blob")
    for ask in (store.get, store.size, store.open):
        with pytest.raises(NotFoundError):
            ask(blob_id)
    store.delete(blob_id)
    store.put(blob_id, b"1")
    store.delete(blob_id)
    with pytest.raises(NotFoundError):
        store.size(blob_id)


@pytest.mark.parametrize("word", ["", "../../etc/passwd", "bl-", "bl-../x", "fc-abc", "bl-a/b", "bl-\x00"])
def test_what_is_no_id_is_refused(store: BlobStore, word: str) -> None:
    for ask in (store.get, store.size, store.open, store.delete):
        with pytest.raises(InvalidError):
            ask(word)


def test_the_listing_has_sizes_and_times(store: BlobStore) -> None:
    put = {}
    for size in range(20):
        blob_id = ids.new("blob")
        store.put(blob_id, bytes(size))
        put[blob_id] = size
    found = list(store.list())
    assert {one.blob_id: one.size for one in found} == put
    assert all(one.created_at > 1e9 for one in found)


def test_copy_checks_the_length(store: BlobStore) -> None:
    source = os.memfd_create("source")
    os.write(source, b"12345")
    draft = store.draft()
    copy(source, draft.fd, 4)
    blob_id = ids.new("blob")
    draft.commit(blob_id)
    assert store.get(blob_id) == b"1234"
    draft = store.draft()
    with pytest.raises(InvalidError):
        copy(source, draft.fd, 6)
    draft.discard()
    os.close(source)


def test_a_directory_forgets_drafts_of_a_killed_process(tmp_path: Any) -> None:
    root = str(tmp_path / "blobs")
    draft = DirectoryBlobs(root).draft()
    os.write(draft.fd, b"lost")
    assert os.listdir(os.path.join(root, "tmp"))
    DirectoryBlobs(root)
    assert os.listdir(os.path.join(root, "tmp")) == []
    os.close(draft.fd)
