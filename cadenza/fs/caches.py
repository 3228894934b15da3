"""What builds share and no image holds: apt's lists and packages, pip's and uv's caches, uv itself.

apt takes locks in its directories, so each build gets its own, filled with hard links, and gives back what is new:
files of both are replaced by rename only, never written to again. pip's and uv's caches look after themselves.
"""

from __future__ import annotations

import os
import shutil
import time

from cadenza.fs.apt import LISTS_FRESH_S

APT_LISTS = "/var/lib/apt/lists"
APT_ARCHIVES = "/var/cache/apt/archives"


def plain(root: str, name: str) -> str:
    """A cache directory that all builds mount as it is."""
    path = os.path.join(root, name)
    os.makedirs(path, exist_ok=True)
    return path


class LentApt:
    """One build's own copy of apt's cache of one suite."""

    def __init__(self, pool: str, own: str) -> None:
        """``pool``: the shared directory, with ``lists`` and ``archives``. ``own``: a directory beside the layer."""
        self._pool = pool
        self.lists = os.path.join(own, "lists")
        self.archives = os.path.join(own, "archives")

    def lend(self) -> None:
        """Fill the own directories."""
        for name, target in (("lists", self.lists), ("archives", self.archives)):
            os.makedirs(os.path.join(target, "partial"), exist_ok=True)
            source = os.path.join(self._pool, name)
            os.makedirs(source, exist_ok=True)
            for one in _files(source):
                _link(os.path.join(source, one), os.path.join(target, one))

    def fresh(self, now: float) -> bool:
        """Whether the lists are young enough to install by them."""
        try:
            return now - os.stat(os.path.join(self._pool, "updated")).st_mtime <= LISTS_FRESH_S
        except FileNotFoundError:
            return False

    def give_back(self, lists: bool) -> None:
        """Put new packages into the pool; with ``lists``, the lists too, which were fetched just now."""
        target = os.path.join(self._pool, "archives")
        for one in _files(self.archives):
            if one.endswith(".deb") and not os.path.exists(os.path.join(target, one)):
                _link(os.path.join(self.archives, one), os.path.join(target, one))
        if not lists:
            return
        target = os.path.join(self._pool, "lists")
        fetched = _files(self.lists)
        for one in fetched:
            scratch = os.path.join(target, f"{one}.{os.getpid()}.new")
            _link(os.path.join(self.lists, one), scratch)
            os.replace(scratch, os.path.join(target, one))
            if os.path.lexists(scratch):  # both names were one file already: rename does nothing then
                os.unlink(scratch)
        for one in set(_files(target)) - set(fetched):
            os.unlink(os.path.join(target, one))
        with open(os.path.join(self._pool, "updated"), "w"):
            pass


def prune(root: str, keep_s: float, now: float | None = None) -> None:
    """Drop packages that no build has taken for ``keep_s`` seconds, and what a killed process left."""
    limit = (time.time() if now is None else now) - keep_s
    apt = os.path.join(root, "apt")
    for suite in os.listdir(apt) if os.path.isdir(apt) else ():
        archives = os.path.join(apt, suite, "archives")
        for one in _files(archives) if os.path.isdir(archives) else ():
            info = os.stat(os.path.join(archives, one))
            # The inode's time changes with each hard link made or dropped: the last use.
            if one.endswith(".deb") and info.st_ctime < limit:
                os.unlink(os.path.join(archives, one))
        shutil.rmtree(os.path.join(archives, "partial"), ignore_errors=True)


def _files(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [one.name for one in entries if one.is_file(follow_symlinks=False) and one.name != "lock"]


def _link(source: str, target: str) -> None:
    """A second name, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:
        return  # another build replaced it meanwhile: fetched again when needed
    except OSError:
        shutil.copyfile(source, target)
