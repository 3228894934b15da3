"""What all containers of one machine share, and whom they tell: given to each `cadenza.agent.lifecycle.Cell`."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Callable, Optional, Protocol

from cadenza.agent.bare import BareImages
from cadenza.agent.files import Layers
from cadenza.agent.gpus import Cards
from cadenza.agent.identities import Identities
from cadenza.agent.surroundings import Networks
from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.fs.images import ImageStore
from cadenza.fs.traces import Traces
from cadenza.protocol.nodes import Control
from cadenza.runtime.driver import Driver, Mount

if TYPE_CHECKING:
    from cadenza.agent.lifecycle import Cell


class Site(Protocol):
    """Implemented by `cadenza.agent.main.Agent`."""

    config: Config
    clock: Clock
    control: Control
    store: ImageStore | BareImages
    traces: Optional[Traces]
    """What starts of images read; None where images have no content of their own."""
    networks: Networks
    removals: asyncio.Semaphore
    """How many ended containers are taken away at once."""
    layers: Layers
    cards: Cards
    containers_dir: str
    node_id: str
    cores: int
    accept_client: Callable[[socket.socket, str], None]
    accept_lane: Callable[[socket.socket, str], None]

    def driver(self, isolation: str) -> Driver:
        """What gives this level of isolation here."""

    def identities(self, driver: Driver) -> Optional[Identities]:
        """What gives that driver's containers ids of their own; None where they have none."""

    def python(self, image_id: str) -> str:
        """The host's Python for a container without a root file system."""

    def entrypoint(self, image_id: str) -> tuple[str, ...]:
        """The program of an image under which its containers' runner is started."""

    def library(self, image_id: str) -> str:
        """The support library for containers of an image, where they reach it."""

    def name_mounts(self) -> list[Mount]:
        """What a container with a network needs to look names up."""

    def changed(self, cell: Cell) -> None:
        """It has something to report."""

    def moved(self, cell: Cell) -> None:
        """Its state is another."""

    def adopted(self, cell: Cell) -> None:
        """A generic container has got its id."""

    async def lull(self) -> None:
        """Until nothing starts, but not for long: for what can wait."""

    def forget(self, cell: Cell) -> None:
        """Nothing is left of it."""

    def trouble(self, text: str) -> None:
        """A line for the server's log."""

    def fault(self, text: str, error: BaseException) -> None:
        """A fault of ours for the server's log."""
