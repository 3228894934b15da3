"""The agent's images: building them in containers, and telling of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Callable, Collection, Optional

from cadenza.agent import steps, support, surroundings
from cadenza.agent.bare import BareImages
from cadenza.agent.files import Layers
from cadenza.agent.gpus import Cards
from cadenza.agent.identities import Identities
from cadenza.base.errors import Error
from cadenza.base.ids import IdSource
from cadenza.fs.images import ImageStore, StepRun
from cadenza.protocol.nodes import (
    BuildLine, BuildOrder, CollectOrder, CollectReport, Control, ImageDetail, ImageInfo, ImageLogLine, PushOrder,
)  # fmt: skip
from cadenza.runtime.driver import Driver


class Imaging(ABC):
    """The part of `cadenza.agent.main.Agent` that has to do with images; see `cadenza.protocol.nodes.Node`."""

    store: ImageStore | BareImages
    control: Control
    layers: Layers
    cards: Cards
    lib: str
    containers_dir: str
    _around: surroundings.Surroundings
    _ids: IdSource
    _compiling: asyncio.Lock

    @abstractmethod
    def identities(self, driver: Driver) -> Optional[Identities]:
        """What gives that driver's containers ids of their own."""

    @abstractmethod
    async def let_go(self, image_ids: Collection[str]) -> None:
        """End containers that only wait for functions of these images."""

    @abstractmethod
    def trouble(self, text: str) -> None:
        """A line for the server's log."""

    async def build(self, order: BuildOrder, progress: Callable[[BuildLine], None]) -> ImageInfo:
        """Make an image, or return at once when it is there."""
        info = await self.store.build(order, progress, self._run_step, self.control.object_path)
        await self._compile(info)
        return info

    async def _compile(self, info: ImageInfo) -> None:
        """Once for an image with another Python than the server's: the support library, or every runner would."""
        if not info.python or not support.wants_bytecode(self.lib, info.python, info.image_id):
            return
        async with self._compiling:
            if not support.wants_bytecode(self.lib, info.python, info.image_id):
                return
            try:
                lowers = await self.store.lend(info.image_id)
                try:
                    code = await support.compile_in_image(
                        self.lib, info.image_id, lowers, self.containers_dir, self._run_step
                    )
                finally:
                    self.store.give_back(info.image_id)
                if code != 0:
                    self.trouble(f"byte code for Python {info.python} could not be made: exit code {code}")
            except (Error, OSError) as error:
                self.trouble(f"byte code for Python {info.python} could not be made: {error}")

    async def _run_step(self, step: StepRun) -> int:
        driver = self._around.build_driver()
        means = steps.Means(
            driver, self.containers_dir, self.identities(driver), self.cards, self.layers, self.lib,
            self.control.object_path,
        )  # fmt: skip
        return await steps.run_step(step, self._ids.new("container"), means)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as it should be with images, a sentence each."""
        return self.store.notes if isinstance(self.store, ImageStore) else ()

    def images(self) -> list[ImageInfo]:
        """The images of this machine."""
        return self.store.images()

    async def image(self, image_id: str) -> ImageDetail:
        """All that is known of a built image."""
        return await self.store.detail(image_id)

    async def image_log(self, image_id: str, layers: int) -> list[ImageLogLine]:
        """What the last steps of an image's build wrote."""
        return await self.store.log(image_id, layers)

    async def collect(self, order: CollectOrder) -> CollectReport:
        """Forget images, and remove content that none has."""
        if not order.dry_run:
            await self.let_go(order.images)
        return await self.store.collect(order)

    async def push(self, order: PushOrder, progress: Callable[[str], None]) -> str:
        """Send an image to a registry."""
        return await self.store.push(order, progress)
