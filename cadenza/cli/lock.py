"""The lock file that says which process is this user's server. One `flock`, held for the server's life."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TAKE_TRIES, TAKE_PAUSE_S = 10, 0.01
"""Whoever asks for the holder has the lock for a moment, which must not keep a server from starting."""


@dataclass(frozen=True)
class Holder:
    """Who holds the lock: what `ServerLock.take` wrote."""

    pid: int
    version: str
    socket: str
    started_at: float


class ServerLock:
    """Taken by the server at its start; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def take(self, holder: Holder) -> bool:
        """Whether this process now holds the lock."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for left in reversed(range(TAKE_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    os.close(fd)
                    return False
                time.sleep(TAKE_PAUSE_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(holder)).encode(), 0)
        self._fd = fd
        return True

    def holder(self) -> Holder | None:
        """Who holds it now, or None when nobody does."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                try:
                    return Holder(**json.loads(os.pread(fd, 4096, 0)))
                except (ValueError, TypeError):
                    return None
            return None
        finally:
            os.close(fd)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes hold two files of one name."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
