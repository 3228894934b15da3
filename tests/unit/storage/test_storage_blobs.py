"""What is particular to blobs in a directory; the shared promises are in tests/contract/test_contract_blobs.py."""

from __future__ import annotations

import os
import stat
from typing import Any

from cadenza.base.ids import IdSource
from cadenza.storage.blobs import DirectoryBlobs


def test_files_are_private_and_found_again(tmp_path: Any) -> None:
    root = str(tmp_path / "blobs")
    blob_id = IdSource().new("blob")
    DirectoryBlobs(root).put(blob_id, b"secret")
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    assert [os.path.basename(one) for one in paths] == [blob_id]
    assert stat.S_IMODE(os.stat(paths[0]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(paths[0])).st_mode) == 0o700
    assert DirectoryBlobs(root).get(blob_id) == b"secret"
