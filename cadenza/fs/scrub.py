"""Looking whether what is on the disk still is what its name says: on demand, in rounds, and after a loss of power.

What is not is set aside (``tmp/corrupt-...``), fetched again where a tier has it, and reported where none has.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import dataclass, field
from typing import Iterator, Literal, Optional, Protocol

from blake3 import blake3

from cadenza.base.errors import Error
from cadenza.fs.fetch import Fetcher
from cadenza.fs.local import RECORDS, Local, name_of, object_key
from cadenza.observe.log import Log

READ_BYTES = 4 << 20
Verdict = Literal["whole", "repaired", "lost", "absent"]
EVERY_S = 600.0
ROUND_BYTES = 32 << 20
"""Every `EVERY_S`: 4.6 GB a day."""
_UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ)
_CURSOR = "scrubbed"
_log = Log("cadenza.fs.scrub")


@dataclass
class Scrubbed:
    """What a round looked at. ``lost``: hex digests of objects that were corrupt and that no tier gave."""

    objects: int = 0
    bytes: int = 0
    repaired: int = 0
    lost: list[str] = field(default_factory=list)
    finished: bool = False
    """Whether the round came to the end; the next begins anew."""


def verify(local: Local, fetcher: Fetcher, digest: bytes) -> Verdict:
    """Read an object and compare. ``absent``: it is not on this machine."""
    try:
        if is_whole(local.path(digest), digest[:32]):
            return "whole"
    except FileNotFoundError:
        return "absent"
    local.condemn(object_key("objects", digest), "its content is another's")
    try:
        fetcher.fetch(digest)
    except Error as error:
        _log.error("store.lost", object=name_of(digest), why=str(error))
        return "lost"
    _log.info("store.repaired", object=name_of(digest))
    return "repaired"


def scrub(local: Local, fetcher: Fetcher, limit_bytes: int) -> Scrubbed:
    """Verify objects, going on where the last round ended, until ``limit_bytes`` are read."""
    done = Scrubbed()
    after = (local.read(_CURSOR) or b"").decode(errors="replace")
    last = after
    for name, digest, info in sorted_objects(local, after):
        if done.bytes >= limit_bytes:
            local.put_bytes(_CURSOR, last.encode())
            return done
        found = verify(local, fetcher, digest)
        done.objects += found != "absent"
        done.bytes += info.st_size
        done.repaired += found == "repaired"
        if found == "lost":
            done.lost.append(digest.hex())
        last = name
    local.put_bytes(_CURSOR, b"")
    done.finished = True
    return done


def sorted_objects(local: Local, after: str) -> Iterator[tuple[str, bytes, os.stat_result]]:
    """Objects whose names are after this one, by name; only directories that are reached are looked into."""
    for folder in (f"objects/{number:02x}" for number in range(256)):
        if folder >= after[: len(folder)]:
            found = [one for one in local.everything(folder) if one[0] > after]
            yield from sorted(found, key=lambda one: one[0])


def is_whole(path: str, digest: bytes) -> bool:
    """Whether a file's content has this BLAKE3. A disk that cannot read it says no; OSError when it was not asked."""
    hasher = blake3()
    try:
        with open(path, "rb", buffering=0) as file:
            while part := file.read(READ_BYTES):
                hasher.update(part)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise  # too many open files, for example, say nothing about this one
        return False
    return hasher.digest() == digest


def check_torn(local: Local) -> int:
    """After a loss of power: set aside what is younger than the last settling and broken; how many files were."""
    since = local.marker.torn_since()
    if since is None:
        return 0
    torn = looked = 0
    for folder in ("objects", "trees", "lists"):
        for name, digest, info in local.everything(folder):
            if max(info.st_mtime, info.st_ctime) < since:
                continue
            looked += 1
            if folder == "trees":
                fine = local.local_tree(digest) is not None
            elif folder == "lists":
                fine = local.local_list(digest) is not None
            else:
                fine = is_whole(f"{local.home}/{name}", digest)
                if not fine:
                    local.condemn(name, "torn by a loss of power")
            torn += not fine
    for folder in ("big", *RECORDS, "erofs"):
        torn += _remove_torn(local, folder, since)
    for name in os.listdir(local.home):
        if name.startswith("known-"):
            _unlink(os.path.join(local.home, name))
    local.marker.forget_other_boots()
    _log.warning("store.checked_after_power_loss", looked=looked, torn=torn)
    return torn


def _remove_torn(local: Local, folder: str, since: float) -> int:
    root = os.path.join(local.home, folder)
    if not os.path.isdir(root):
        return 0
    torn = 0
    for entry in list(os.scandir(root)):
        try:
            info = entry.stat(follow_symlinks=False)
            if folder == "big" and entry.name.endswith((".part", ".have")):
                _unlink(entry.path)  # of any age: what is written into a file need not move its time on at once
                continue
            if max(info.st_mtime, info.st_ctime) < since or not entry.is_file(follow_symlinks=False):
                continue
            if folder == "erofs":
                _unlink(entry.path)  # made again, which is cheaper than to look
            elif not _reads(entry.path, folder):
                _unlink(entry.path)
                torn += 1
        except FileNotFoundError:
            continue  # another process that was started with us looks too
    return torn


def _reads(path: str, folder: str) -> bool:
    with open(path, "rb") as file:
        raw = file.read()
    if folder == "traces":
        return bool(raw) and b"\0\0\0\0" not in raw
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class Scrubs(Protocol):
    """What a scrubber works on: a `cadenza.fs.store.Store`."""

    def scrub(self, limit_bytes: int) -> Scrubbed: ...


class Scrubber:
    """Scrubs a little now and then, in the event loop in which it was opened: a full disk in weeks, unnoticed."""

    def __init__(self, store: Scrubs, every_s: float = EVERY_S, round_bytes: int = ROUND_BYTES) -> None:
        self._store = store
        self._every_s = every_s
        self._round_bytes = round_bytes
        self._task: Optional[asyncio.Task[None]] = None

    def open(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End, once the round under way has."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            round_ = asyncio.ensure_future(asyncio.to_thread(self._store.scrub, self._round_bytes))
            try:
                await asyncio.shield(round_)
            except asyncio.CancelledError:
                await asyncio.wait([round_])
                raise
            except (Error, OSError) as error:
                _log.warning("store.scrub_stopped", why=str(error))
