"""What one container has of this machine: its directory, its network, its ids; and giving it all back."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Awaitable, Container, Optional, Sequence

from cadenza.agent import rootfs
from cadenza.agent.gpus import Card
from cadenza.agent.starts import Start
from cadenza.base.errors import Error
from cadenza.base.resources import Gpu
from cadenza.fs.images import ImageStore
from cadenza.fs.mount import Lowers
from cadenza.runtime.driver import Driver
from cadenza.runtime.ids import ID_COUNT, IdRange
from cadenza.runtime.network import Namespace

if TYPE_CHECKING:
    from cadenza.agent.site import Site


class Belongings:
    """One container's. ``lease`` and ``ids`` are None until they are taken, and after they were given back."""

    def __init__(self, site: Site, cell_id: str, driver: Driver) -> None:
        self.lease: Optional[Namespace] = None
        self.ids: Optional[IdRange] = None
        self.cards: list[Card] = []
        self._begun_at = asyncio.get_running_loop().time()
        self._image_id = ""
        """The image that is lent to it."""
        self._start: Optional[Start] = None
        self._ahead: Optional[asyncio.Future[None]] = None
        self._ending: Optional[asyncio.Future[None]] = None
        self._site = site
        self._cell_id = cell_id
        self._driver = driver
        self._identities = site.identities(driver)
        front = self._identities.front(cell_id) if self._identities is not None else ""
        self.paths = rootfs.Paths(os.path.join(site.containers_dir, cell_id), front)

    async def take_network(self) -> None:
        self.lease = await self._site.networks.take()

    async def borrow(self, image_id: str) -> Lowers:
        """The image, which stays on this machine until all is given back."""
        lowers = await self._site.store.lend(image_id)
        self._image_id = image_id
        return lowers

    def unfetched(self) -> str:
        """Why files of its image were not to be had since its start began; empty: they were."""
        store = self._site.store
        return store.unfetched(self._image_id, self._begun_at) if isinstance(store, ImageStore) else ""

    async def mount(self, lowers: Lowers) -> None:
        """Its root, of the image that it borrowed and what is above that."""
        image, traces = self._site.store.image(self._image_id), self._site.traces
        if image is not None and image.tree and traces is not None:
            self._start = Start(traces, bytes.fromhex(image.tree), self.paths.rootfs)
            self._ahead = asyncio.ensure_future(asyncio.to_thread(self._start.read_ahead))
        await asyncio.to_thread(self._mount, lowers)

    def _mount(self, lowers: Lowers) -> None:
        self.paths.mount(lowers, self.ids)
        if self._start is not None:
            self._start.begin()

    def started(self) -> None:
        """It is ready: what it opens from now on is its own affair."""
        if self._start is not None and self._ending is None:
            self._ending = asyncio.ensure_future(asyncio.to_thread(self._start.end, True))

    async def take_ids(self) -> None:
        """Ids of its own, where containers have them."""
        if self._identities is not None:
            self.ids = await self._identities.take()

    def take_cards(self, wishes: Sequence[Gpu]) -> None:
        """GPUs of its own. ServiceError when others have them."""
        self.cards = self._site.cards.take(self._cell_id, wishes)

    @property
    def uids(self) -> Optional[Container[int]]:
        """Whose processes are its own, as `cadenza.agent.doors.Door` takes them: its ids' or, without a root file
        system, the server's. None: ids that others here may have too."""
        if self.ids is not None:
            return range(self.ids.base, self.ids.base + ID_COUNT)
        return () if self._driver.name == "process" else None

    async def give_back(self, ended: bool, created: bool) -> None:
        """Take away all that was made: each part, whatever becomes of the others. The next start cleans what stays.

        ``ended``: its first process has ended; ``created``: the driver knows it.
        """
        if self._start is not None:
            if self._ahead is not None:
                await self._try(self._ahead)
            await self._try(self._ending or asyncio.to_thread(self._start.end, False))
        handed_on = self._driver.name != "process" and not self._driver.name.endswith("runsc")
        if ended and handed_on:
            # Nobody is left in there. At once, since the next start may have it all.
            await self._try(self._release(True))
            self._give_ids_back()
        if ended:
            self._site.cards.give_back(self._cell_id)
        await self._site.lull()
        async with self._site.removals:
            whole = await self._try(self._delete(created))
            await self._try(self._release(whole and handed_on))
            await self._try(asyncio.to_thread(self.paths.remove))
        if self._image_id:
            image_id, self._image_id = self._image_id, ""
            self._site.store.give_back(image_id)

    async def _try(self, part: Awaitable[None]) -> bool:
        try:
            await part
            return True
        except (Error, OSError) as error:
            self._site.trouble(f"container {self._cell_id}: not all of it could be removed: {error}")
        except Exception as error:
            self._site.fault(f"removal of container {self._cell_id}", error)
        return False

    async def _delete(self, created: bool) -> None:
        if created:
            await self._driver.delete(self._cell_id)
        self._site.cards.give_back(self._cell_id)
        # Not if that failed: a process may be left that has these ids.
        self._give_ids_back()

    def _give_ids_back(self) -> None:
        if self.ids is not None and self._identities is not None:
            self._identities.ranges.give_back(self.ids)
            self.ids = None

    async def _release(self, whole: bool) -> None:
        if self.lease is not None:
            lease, self.lease = self.lease, None
            await self._site.networks.give_back(lease.name, whole)
