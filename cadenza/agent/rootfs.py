"""A container's directory on the host: its bundle, its sockets, its writable layer and the mounted whole.

::

    containers/<id>/
      made.json   what program runs it: written before anything else is made, read by the clean-up after a crash
      bundle/     the runtime program's
      run/        the sockets; mounted at /.cadenza/run
      upper/ work/ rootfs/
      disk.img disk/   instead of upper and work, with a limit on disk space: a file system of that size, and where
                       it is mounted
      lower/      where layers are shown with the container's ids while rootfs is being mounted
      root/       without a root file system: the working directory in its place

A container with ids of its own gets to what it mounts by its own root, who is nobody here, and the data directory is
nobody's business. Its ``run`` and ``rootfs`` are in its *front* instead, a directory of that root
(`cadenza.agent.identities`).

All in the container may enter ``run``, whoever they are there. Nobody else on this machine gets as far: the directory
above it is closed to others.

Methods block for milliseconds; call them from a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from typing import Optional

from cadenza.agent import mounts
from cadenza.base.config import MAX_SOCKET_PATH_BYTES
from cadenza.fs.mount import Lowers
from cadenza.fs.workplace import erase
from cadenza.fs import loop
from cadenza.runtime import quota
from cadenza.runtime.ids import ID_COUNT, IdRange

MADE = "made.json"


class Paths:
    """The places of one container below ``home``, and below ``front`` if it has one."""

    def __init__(self, home: str, front: str = "") -> None:
        self.home = home
        self.front = front
        self.bundle = os.path.join(home, "bundle")
        self.run = os.path.join(front or home, "run")
        self.upper = os.path.join(home, "upper")
        self.work = os.path.join(home, "work")
        self.rootfs = os.path.join(front or home, "rootfs")
        self.root = os.path.join(home, "root")
        self.short = ""
        """A short name of ``run`` for a runner that sees the host's paths, where that is too long for a socket."""

    @property
    def support(self) -> str:
        """Where a runner without a root file system of its own finds its sockets."""
        return self.short or self.run

    def make(self, runtime: str) -> None:
        """Make the directories. ``runtime`` is the driver's name, for the clean-up."""
        os.mkdir(self.home, 0o700)
        if len(os.fsencode(self.run)) + len("/runner.sock") > MAX_SOCKET_PATH_BYTES:
            self.short = f"/tmp/cadenza-{os.getuid()}-{os.path.basename(self.home)[-12:]}"
        with open(os.path.join(self.home, MADE), "w", encoding="utf-8") as file:
            json.dump({"runtime": runtime, "short": self.short, "front": self.front}, file)
        if self.front:
            os.mkdir(self.front, 0o700)
        os.mkdir(self.bundle, 0o700)
        for path in (self.run, self.upper, self.work, self.rootfs, self.root):
            os.mkdir(path, 0o755)
        if self.short:
            os.symlink(self.run, self.short)

    def hand_over(self, ids: IdRange) -> None:
        """Let the root of these ids, and no other, into the front."""
        if self.front:
            os.chown(self.front, ids.base, ids.base)

    def limit(self, disk_mib: int) -> None:
        """Give the writable layer a size. Before `mount`. OSError: it has none, and all is as it was."""
        image, disk = os.path.join(self.home, "disk.img"), os.path.join(self.home, "disk")
        try:
            quota.make(image, disk_mib)
            os.mkdir(disk, 0o700)
            with loop.device(image, writable=True) as device:
                mounts.mount(device, disk, quota.KIND, mounts.MS_NODEV)
            upper, work = os.path.join(disk, "upper"), os.path.join(disk, "work")
            os.mkdir(upper, 0o755)
            os.mkdir(work, 0o755)
        except OSError:
            if os.path.isdir(disk):
                mounts.umount(disk)
            if os.path.exists(image):
                os.unlink(image)
            raise
        self.upper, self.work = upper, work

    def mount(self, lowers: mounts.Layers, ids: Optional[IdRange] = None) -> None:
        """Mount the root file system: ``lowers`` below a writable layer. ``ids``: as whose."""
        lowers = Lowers.of(lowers)
        _dress(self.upper, lowers.layers[-1], ids)
        if ids is None:
            mounts.overlay(lowers, self.upper, self.work, self.rootfs)
            return
        self.hand_over(ids)
        with mounts.shown(lowers, os.path.join(self.home, "lower"), ids.userns) as shown:
            mounts.overlay(shown, self.upper, self.work, self.rootfs)

    def remove(self) -> None:
        """Take it all away, mounts first. Nothing happens to what was never made."""
        remove(self.home)


def _dress(upper: str, image: str, ids: Optional[IdRange]) -> None:
    """An overlay's root directory is the upper's: it gets the image's owner and permissions."""
    info = os.stat(image)
    base, count = (ids.base, ID_COUNT) if ids is not None else (0, 1 << 32)
    owner = [base + (one if one < count else 0) for one in (info.st_uid, info.st_gid)]
    with contextlib.suppress(PermissionError):  # without root: an owner whom this user's namespace does not have
        os.chown(upper, *owner)
    os.chmod(upper, stat.S_IMODE(info.st_mode))


def read_made(home: str) -> dict[str, str]:
    """What `Paths.make` noted, or an empty dictionary."""
    try:
        with open(os.path.join(home, MADE), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def remove(home: str) -> None:
    """Remove a container's directory, with all that is mounted in it. OSError when something stays."""
    made = read_made(home)
    short, front = made.get("short", ""), made.get("front", "")
    if short and os.path.islink(short) and os.readlink(short).startswith(home):
        os.unlink(short)
    # The same name, or it is not ours to remove.
    if os.path.basename(front) == os.path.basename(home):
        _empty(front)
    _empty(home)


def _empty(home: str) -> None:
    for point in mounts.below(home):
        mounts.umount(point)
    erase(home)
    if os.path.lexists(home):
        raise OSError(errno.ENOTEMPTY, "not all of it could be removed", home)
