"""What a server says that cannot start."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cadenza.cli import server


def test_a_full_disk_is_said_in_words() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/lib/x")
    assert server.sentence(full, "/data") == (
        "the disk that holds /data/lib/x is full: free some space and start it again"
    )
    assert "/data is full" in server.sentence(OSError(errno.EDQUOT, "quota"), "/data")
    assert server.sentence(PermissionError(13, "Permission denied", "/x"), "/data") == (
        "[Errno 13] Permission denied: '/x'"
    )


def test_a_directory_that_cannot_be_made_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CADENZA_DATA_DIR", str(tmp_path / "file/data"))
    assert server.main([]) == 1
    said = capsys.readouterr().err
    assert "the server cannot start" in said and str(tmp_path / "file/data") in said
