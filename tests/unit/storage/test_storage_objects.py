"""Files by content: written whole or not at all, checked, immutable."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.storage.objects import ObjectStore


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_put_finds_and_shares(tmp_path: Any) -> None:
    store = ObjectStore(str(tmp_path / "objects"))
    one, two = digest(b"one"), digest(b"two")
    assert store.missing([one, two, one]) == [one, two]
    store.put(one, b"one")
    store.put(one, b"one")
    assert store.missing([one, two]) == [two]
    path = store.path(one)
    assert path == str(tmp_path / "objects" / one[:2] / one[2:])
    assert path is not None
    assert Path(path).read_bytes() == b"one"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444
    assert os.listdir(tmp_path / "objects" / "tmp") == []


def test_put_file_reads_a_descriptor_from_its_start(tmp_path: Any) -> None:
    store = ObjectStore(str(tmp_path / "objects"))
    data = os.urandom(1_000_000)
    fd = os.memfd_create("x")
    os.write(fd, data + b"tail")
    store.put_file(digest(data), fd, len(data))
    found = store.path(digest(data))
    assert found is not None
    assert Path(found).read_bytes() == data
    with pytest.raises(DataLossError):
        store.put_file(digest(b"other"), fd, len(data) + 5)
    with pytest.raises(InvalidError, match="SHA-256"):
        store.put_file(digest(b"other"), fd, 10)
    assert os.listdir(tmp_path / "objects" / "tmp") == []
    os.close(fd)


def test_a_wrong_digest_stores_nothing(tmp_path: Any) -> None:
    store = ObjectStore(str(tmp_path / "objects"))
    with pytest.raises(InvalidError, match="changed on the way"):
        store.put(digest(b"a"), b"b")
    assert store.path(digest(b"a")) is None


@pytest.mark.parametrize("word", ["", "abc", "../" * 20 + "x", "A" * 64, "g" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(tmp_path: Any, word: str) -> None:
    with pytest.raises(InvalidError):
        ObjectStore(str(tmp_path / "objects")).path(word)


def test_a_sweep_takes_what_is_old_and_nobody_names(tmp_path: Any) -> None:
    store = ObjectStore(str(tmp_path / "objects"))
    words = [b"old", b"named", b"asked for", b"put again", b"new"]
    digests = [digest(one) for one in words]
    for one, word in zip(digests, words):
        store.put(one, word)
        if word != b"new":
            os.utime(store.path_of(one), (1000.0, 1000.0))
    assert store.missing([digests[2]]) == []  # a publish that relies on it comes next
    store.put(digests[3], b"put again")
    assert store.sweep({digests[1]}, time.time() - 3600) == 1
    assert store.missing(digests) == digests[:1]
