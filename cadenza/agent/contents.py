"""Where the content of this machine's images is: the store, how its trees are shown, and what fetches the rest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Optional

from cadenza.base.config import Config
from cadenza.base.errors import Error
from cadenza.fs.abilities import Abilities, detect
from cadenza.fs.mount import Mounts
from cadenza.fs.peer import Peer
from cadenza.fs.scrub import Scrubber
from cadenza.fs.store import Store, open_store
from cadenza.fs.supervisor import Lazy, settings_of
from cadenza.fs.traces import Traces
from cadenza.protocol.nodes import ImageInfo


@dataclass
class Contents:
    """What is open for images. `close` it after all that uses it."""

    store: Store
    mounts: Mounts
    abilities: Abilities
    traces: Traces
    """What starts of images read."""
    lazy: Optional[Lazy] = None
    """Fetches content when it is first opened; None on a machine that has all itself, or that cannot."""
    warnings: list[str] = field(default_factory=list)
    peer: Optional[Peer] = None
    """Gives content to other machines, where ``peer_address`` is set."""
    scrubber: Optional[Scrubber] = None

    async def close(self) -> None:
        """Unmount, and end what goes on in the background."""
        if self.peer is not None:
            await self.peer.close()
        if self.scrubber is not None:
            await self.scrubber.close()
        await asyncio.to_thread(self.mounts.close)
        if self.lazy is not None:
            await self.lazy.close()
        await asyncio.to_thread(self.store.close)


def unfit(image: ImageInfo) -> str:
    """Why no function can run on an image; empty: it can."""
    if image.python:
        return ""
    return (
        f"the image {image.image_id} has no Python, which functions need: give it one by add_python='3.12', or by a "
        "build step that installs it"
    )


async def open_contents(config: Config) -> Contents:
    """The store of this data directory. InvalidError when an address, or the mode that is forced, cannot be."""
    store = await asyncio.to_thread(open_store, config)
    lazy: Optional[Lazy] = None
    mounts: Optional[Mounts] = None
    warnings = []
    try:
        abilities = await asyncio.to_thread(detect, store.home)
        if store.tiers and abilities.mode != "links":
            if abilities.fuse:
                lazy = Lazy(store.home, settings_of(config))
                try:
                    await lazy.open()
                except (Error, OSError) as error:
                    lazy = None
                    warnings.append(f"images are fetched whole before their first start: {error}")
            else:
                why = abilities.reasons.get("fuse", "no FUSE")
                warnings.append(f"images are fetched whole before their first start: {why}")
        place = lazy.mountpoint if lazy is not None else ""
        mounts = await asyncio.to_thread(Mounts, store, abilities, place)
        peer: Optional[Peer] = None
        if config.peer_address:
            peer = Peer(store.home, config.peer_address, config.peer_key)
            await peer.open()
        scrubber = Scrubber(store)
        scrubber.open()
    except BaseException:
        if mounts is not None:
            await asyncio.to_thread(mounts.close)
        if lazy is not None:
            await lazy.close()
        await asyncio.to_thread(store.close)
        raise
    return Contents(store, mounts, abilities, Traces(store), lazy, warnings, peer, scrubber)
