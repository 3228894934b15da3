"""What a loss of power may have torn, and how it is found again.

Files are renamed into place without being flushed: any end of our process is harmless, but a machine that stops may
leave files of which only the name reached the disk. A marker, itself flushed, is there from the first file after a
`settle` until the next; it carries the kernel's boot id and the time. A store that finds a marker of another boot
checks what is younger than that time, and only that.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from typing import Callable, Optional

MARGIN_S = 2.0
"""File systems' own clocks tick coarsely: files so much older than a marker are still checked."""
_PREFIX = "unsettled-"
_NEW = ".new"


def boot_id() -> str:
    """The kernel's name for the time since it started."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def sync_file_system(path: str) -> None:
    """All that was written to the file system of ``path`` is on its disk when this returns (syncfs(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


class Marker:
    """The marker of one process, in ``home``. ``name`` is that of its directory of drafts."""

    def __init__(self, home: str, name: str, clock: Callable[[], float], boot: Optional[str] = None) -> None:
        self._home = home
        self._path = os.path.join(home, _PREFIX + name)
        self._clock = clock
        self._boot = boot or boot_id()
        self._lock = threading.Lock()
        self._count = threading.Lock()
        self._begun = 0
        self._ended = 0
        self._set = False
        self._since = 0.0

    def __enter__(self) -> None:
        """Within the block a file is renamed into place."""
        with self._count:
            self._begun += 1
        try:
            now = self._clock()
            if not self._set or now < self._since:  # the clock was set back: what comes now would look older
                with self._lock:
                    if not self._set or now < self._since:
                        self._write(now)
                        self._set = True
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._count:
            self._ended += 1

    def torn_since(self) -> Optional[float]:
        """The time (epoch seconds) since which files may be torn, by markers of other boots; None: there are none."""
        found: Optional[float] = None
        for path in self._paths():
            try:
                with open(path, "rb") as file:
                    marker = json.load(file)
                boot, since = str(marker["boot"]), float(marker["since"])
            except (OSError, ValueError, KeyError, TypeError):
                boot, since = "", 0.0  # torn itself: all may be
            if boot != self._boot:
                found = since if found is None else min(found, since)
        return None if found is None else found - MARGIN_S

    def forget_other_boots(self) -> None:
        """What they warned of has been checked."""
        for path in self._paths():
            try:
                with open(path, "rb") as file:
                    marker = json.load(file)
                if marker["boot"] == self._boot:
                    continue
            except (OSError, ValueError, KeyError, TypeError):
                pass
            _unlink(path)

    def settle(self, alive: set[str]) -> None:
        """Flush the file system. Markers of this boot's processes that are no longer in ``alive`` go with it."""
        with self._lock:
            with self._count:
                begun, quiet, now = self._begun, self._begun == self._ended, self._clock()
            dead = [one for one in self._paths() if os.path.basename(one)[len(_PREFIX) :] not in alive]
            if not self._set and not dead:
                return
            sync_file_system(self._home)
            for path in dead:
                _unlink(path)
            if not self._set:
                return
            with self._count:
                if quiet and begun == self._begun:
                    _unlink(self._path)
                    self._set = False
                    return
            self._write(now)

    def _paths(self) -> list[str]:
        found = [one for one in os.listdir(self._home) if one.startswith(_PREFIX) and not one.endswith(_NEW)]
        return [os.path.join(self._home, one) for one in found]

    def _write(self, since: float) -> None:
        draft = self._path + _NEW
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps({"boot": self._boot, "since": since}).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, self._path)
        self._since = since
        folder = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
