"""The agent's neighbours: drivers by level of isolation, the image store, networks; and what an earlier agent left."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from cadenza.agent import rootfs
from cadenza.agent.bare import BareImages
from cadenza.base.config import Config
from cadenza.base.errors import Error, InvalidError
from cadenza.fs.images import ImageStore
from cadenza.runtime.cgroup import detect
from cadenza.runtime.driver import HOST_NETWORK, Driver, Mount
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.oci import OciDriver, crun
from cadenza.runtime.process import ProcessDriver

STANDARD, STRONG = "standard", "strong"


class Lease(Protocol):
    """One container's network."""

    netns: str


class Networks(Protocol):
    """Namespaces for containers, one each."""

    async def acquire(self, container_id: str) -> Any: ...

    async def release(self, lease: Any) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Surroundings:
    """What `Agent` works with. ``drivers`` maps a level of isolation to what gives it here."""

    drivers: dict[str, Driver]
    store: ImageStore | BareImages
    networks: Networks

    def build_driver(self) -> Driver:
        """What runs the steps of image builds. InvalidError when nothing here can."""
        for level in (STANDARD, STRONG):
            driver = self.drivers.get(level)
            if driver is not None and driver.name != "process":
                return driver
        raise InvalidError("this machine can make no containers, so it can build no images; cadenza doctor says why")

    def python(self, image_id: str) -> str:
        """The host's Python for a container without a root file system."""
        return self.store.python(image_id) if isinstance(self.store, BareImages) else sys.executable

    def name_mounts(self, lease: Any) -> list[Mount]:
        """What a container with this network needs to look names up."""
        return [
            Mount(path, path, read_only=True) for path in ("/etc/resolv.conf", "/etc/hosts") if os.path.exists(path)
        ]

    async def close(self) -> None:
        """End what was opened here."""
        await self.networks.close()
        await self.store.close()


async def clean(around: Surroundings, containers_dir: str) -> list[str]:
    """Remove what an earlier agent of this data directory left. Gives sentences for the log."""
    said = []
    for driver in {id(one): one for one in around.drivers.values()}.values():
        for container_id in await driver.list():
            try:
                await driver.delete(container_id)
                said.append(f"removed the container {container_id}, left by an earlier server")
            except (Error, OSError) as error:
                said.append(f"the container {container_id}, left by an earlier server, could not be removed: {error}")
    for name in sorted(os.listdir(containers_dir)):
        try:
            await asyncio.to_thread(rootfs.remove, os.path.join(containers_dir, name))
        except OSError as error:
            said.append(f"the directory of container {name} could not be removed: {error}")
    await asyncio.to_thread(around.store.cleanup)
    return said


async def open_surroundings(config: Config) -> Surroundings:
    """What this machine offers, by the configuration. Takes as long as the runtimes' probes take."""
    launcher = Launcher()
    hierarchy = await asyncio.to_thread(detect)
    state_dir = _state_dir(config)
    drivers: dict[str, Driver] = {}
    path = shutil.which("crun") if config.runtime in ("auto", "crun") else None
    if path and os.geteuid() == 0:
        drivers[STANDARD] = OciDriver(crun(path), state_dir, launcher, hierarchy)
    store: ImageStore | BareImages
    if drivers:
        store = ImageStore(config.data_dir)
    else:
        drivers[STANDARD] = ProcessDriver(state_dir, launcher, hierarchy)
        store = BareImages(config.data_dir)
    return Surroundings(drivers, store, HostNetwork())


class HostNetwork:
    """No namespaces: containers share the machine's network."""

    @dataclass(frozen=True)
    class Lease:
        """Nothing was made."""

        netns: str = HOST_NETWORK

    async def acquire(self, container_id: str) -> Any:
        """The machine's own."""
        return self.Lease()

    async def release(self, lease: Any) -> None:
        """Nothing was made."""

    async def close(self) -> None:
        """Nothing is open."""


def _state_dir(config: Config) -> str:
    """Where drivers keep what must survive the agent and not the machine. What another boot left is removed."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        name = "boot-" + file.read().strip()[:13]
    home = os.path.join(config.data_dir, "runtime")
    os.makedirs(os.path.join(home, name), mode=0o700, exist_ok=True)
    for other in os.listdir(home):
        if other != name:
            shutil.rmtree(os.path.join(home, other), ignore_errors=True)
    return os.path.join(home, name)
