"""Where the content of this machine's images is: the store, and how its trees are shown."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from cadenza.base.config import Config
from cadenza.fs.abilities import Abilities, detect
from cadenza.fs.mount import Mounts
from cadenza.fs.store import Store


@dataclass
class Contents:
    """What is open for images. `close` it after all that uses it."""

    store: Store
    mounts: Mounts
    abilities: Abilities

    async def close(self) -> None:
        """Unmount, and end what goes on in the background."""
        await asyncio.to_thread(self.mounts.close)
        await asyncio.to_thread(self.store.close)


def open_contents(config: Config) -> Contents:
    """The store of this data directory. Blocks. InvalidError when the mode that is forced cannot be had."""
    home = os.path.join(config.data_dir, "store")
    store = Store(home)
    abilities = detect(home)
    return Contents(store, Mounts(store, abilities), abilities)
