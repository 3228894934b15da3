"""Containers with ids of their own: the ranges, and the places where a root who is nobody may look.

The runtime program opens a container's mounts as the container's root, so every directory above them must be
searchable by it; those of the agent's data are its own. ``/run/cadenza-<tag>`` is: in it are the support library, the
files for looking names up, and a *front* for each container, with its sockets and its root file system.
"""

from __future__ import annotations

import asyncio
import os
import shutil

from cadenza.agent import mounts
from cadenza.runtime.ids import IdRange, IdRanges
from cadenza.runtime.network import tag_of

RUN = "/run"


class Identities:
    """One agent's. Needs root."""

    def __init__(self, state_dir: str) -> None:
        self.home = os.path.join(RUN, f"cadenza-{tag_of(state_dir)}")
        self.ranges = IdRanges()

    async def open(self) -> None:
        """Clean up after an earlier agent, and begin to make ranges. RuntimeFault or OSError: there are none here."""
        await asyncio.to_thread(self._clear)
        os.mkdir(self.home, 0o711)
        os.chmod(self.home, 0o711)  # whatever the umask
        try:
            await self.ranges.open()
        except BaseException:
            await self.close()
            raise

    def front(self, cell_id: str) -> str:
        """The directory of one container's own root."""
        return os.path.join(self.home, cell_id)

    def show(self, source: str, name: str) -> str:
        """A directory of ours at a place that containers reach, read-only; its new path. Blocks. OSError."""
        target = os.path.join(self.home, name)
        os.mkdir(target, 0o755)
        mounts.mount(source, target, "none", mounts.MS_BIND)
        mounts.mount("none", target, "none", mounts.MS_BIND | mounts.MS_REMOUNT | mounts.MS_RDONLY)
        return target

    async def take(self) -> IdRange:
        """Ids for one container. RuntimeFault when there are none left."""
        return await self.ranges.take()

    async def close(self) -> None:
        """Leave nothing. All containers are gone by now."""
        await self.ranges.close()
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        for point in mounts.below(self.home):
            mounts.umount(point)
        if os.path.lexists(self.home):
            shutil.rmtree(self.home)
