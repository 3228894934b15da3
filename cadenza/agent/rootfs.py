"""A container's directory on the host: its bundle, its sockets, its writable layer and the mounted whole.

::

    containers/<id>/
      made.json   what program runs it: written before anything else is made, read by the clean-up after a crash
      bundle/     the runtime program's
      run/        the sockets; mounted at /.cadenza/run
      upper/ work/ rootfs/
      root/       without a root file system: the working directory in its place

Methods block for milliseconds; call them from a thread.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Sequence

from cadenza.agent import mounts
from cadenza.base.config import MAX_SOCKET_PATH_BYTES

MADE = "made.json"


class Paths:
    """The places of one container below ``home``."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.bundle = os.path.join(home, "bundle")
        self.run = os.path.join(home, "run")
        self.upper = os.path.join(home, "upper")
        self.work = os.path.join(home, "work")
        self.rootfs = os.path.join(home, "rootfs")
        self.root = os.path.join(home, "root")
        self.short = ""
        """A short name of ``run`` for a runner that sees the host's paths, where that is too long for a socket."""

    @property
    def support(self) -> str:
        """Where a runner without a root file system of its own finds its sockets."""
        return self.short or self.run

    def make(self, runtime: str) -> None:
        """Make the directories. ``runtime`` is the driver's name, for the clean-up."""
        os.mkdir(self.home, 0o711)
        if len(os.fsencode(self.run)) + len("/runner.sock") > MAX_SOCKET_PATH_BYTES:
            self.short = f"/tmp/cadenza-{os.getuid()}-{os.path.basename(self.home)[-12:]}"
        with open(os.path.join(self.home, MADE), "w", encoding="utf-8") as file:
            json.dump({"runtime": runtime, "short": self.short}, file)
        os.mkdir(self.bundle, 0o700)
        for path in (self.run, self.upper, self.work, self.rootfs, self.root):
            os.mkdir(path, 0o755)
        if self.short:
            os.symlink(self.run, self.short)

    def mount(self, lowerdirs: Sequence[str]) -> None:
        """Mount the root file system: ``lowerdirs``, topmost first, below a writable layer."""
        mounts.overlay(lowerdirs, self.upper, self.work, self.rootfs)

    def remove(self) -> None:
        """Take it all away, mounts first. Nothing happens to what was never made."""
        remove(self.home)


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
    short = read_made(home).get("short", "")
    if short and os.path.islink(short) and os.readlink(short).startswith(home):
        os.unlink(short)
    for point in mounts.below(home):
        mounts.umount(point)
    if os.path.lexists(home):
        shutil.rmtree(home)
