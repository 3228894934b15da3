"""Limits on disk space where they cannot be made."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cadenza.runtime import quota


def test_a_program_that_hangs_is_a_lack_like_others(tmp_path: Path, monkeypatch: Any) -> None:
    """An OSError, for which the container starts without a limit; no other error of its own."""

    def run(argv: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(argv, options["timeout"])

    monkeypatch.setattr(quota, "unable", lambda: "")
    monkeypatch.setattr(quota.shutil, "which", lambda *_, **__: "/sbin/mkfs.ext4")
    monkeypatch.setattr(quota.subprocess, "run", run)
    with pytest.raises(OSError, match="took longer than 60 s"):
        quota.make(str(tmp_path / "disk"), 16)
