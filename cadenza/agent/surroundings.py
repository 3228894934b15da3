"""The agent's neighbours: drivers by level of isolation, the image store, networks; and what an earlier agent left."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from dataclasses import dataclass, field
from typing import Iterable, Optional, Protocol

from cadenza.agent import contents, rootfs
from cadenza.agent.bare import BareImages
from cadenza.agent.identities import Identities
from cadenza.base.config import Config
from cadenza.base.errors import Error, InvalidError, ServiceError
from cadenza.fs.images import ImageStore
from cadenza.runtime import choice, probe, rootless
from cadenza.runtime.cgroup import detect
from cadenza.runtime.driver import Driver, Mount
from cadenza.runtime.choice import STANDARD, STRONG
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.network import HostNetwork, Namespace, Network, resolv_conf
from cadenza.runtime.oci import CGROUP_PARENT
from cadenza.runtime.sentinel import Sentinel

HOSTS = "127.0.0.1\tlocalhost cadenza\n::1\tlocalhost ip6-localhost ip6-loopback\n"
CLEAN_AT_ONCE = 32
"""How many containers of an earlier agent are removed at once."""


class Networks(Protocol):
    """Namespaces for containers, one each: `cadenza.runtime.network.Network` or `HostNetwork`."""

    async def open(self, keep: Iterable[str] = ()) -> None: ...

    async def take(self) -> Namespace: ...

    async def give_back(self, name: str, whole: bool = False) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Surroundings:
    """What `Agent` works with. ``drivers`` maps a level of isolation to what gives it here."""

    drivers: dict[str, Driver]
    store: ImageStore | BareImages
    networks: Networks
    identities: Optional[Identities] = None
    """What gives standard containers ids of their own; None where they cannot have any."""
    names: dict[str, str] = field(default_factory=dict)
    """Files that a container with a network sees: its path to ours."""
    warnings: list[str] = field(default_factory=list)
    """What this machine lacks, for the server's log."""
    contents: Optional[contents.Contents] = None
    """Where images' content is; None without containers, and in tests with images of their own."""
    sentinel: Optional[Sentinel] = None
    """Ends the containers should the agent be killed; None in tests with drivers of their own."""

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

    def name_mounts(self) -> list[Mount]:
        """What a container with a network needs to look names up."""
        return [Mount(path, target, read_only=True) for target, path in sorted(self.names.items())]

    async def close(self) -> None:
        """End what was opened here."""
        await self.networks.close()
        if self.identities is not None:
            await self.identities.close()
        await self.store.close()
        if self.contents is not None:
            await self.contents.close()
        if self.sentinel is not None:
            await asyncio.to_thread(self.sentinel.close)


async def clean(around: Surroundings, containers_dir: str) -> list[str]:
    """Remove what an earlier agent of this data directory left. Gives sentences for the log."""
    said: list[str] = []
    room = asyncio.Semaphore(CLEAN_AT_ONCE)

    async def delete(driver: Driver, container_id: str) -> None:
        try:
            async with room:
                await driver.delete(container_id)
            said.append(f"removed the container {container_id}, left by an earlier server")
        except (Error, OSError) as error:
            said.append(f"the container {container_id}, left by an earlier server, could not be removed: {error}")

    drivers = {id(one): one for one in around.drivers.values()}.values()
    # Together: its new parent may be slow to collect a dead process, and whoever waits for the server waits for all.
    await asyncio.gather(*[delete(driver, name) for driver in drivers for name in await driver.list()])
    for name in sorted(os.listdir(containers_dir)):
        try:
            await asyncio.to_thread(rootfs.remove, os.path.join(containers_dir, name))
        except OSError as error:
            said.append(f"the directory of container {name} could not be removed: {error}")
    await asyncio.to_thread(around.store.cleanup)
    if isinstance(around.store, ImageStore):
        around.store.open()
    return said


async def open_surroundings(config: Config) -> Surroundings:
    """What this machine offers, by the configuration. Takes as long as the runtimes' probes take."""
    launcher = Launcher()
    state_dir = state_directory(config)
    machine = await probe.kept_probe(state_dir, launcher)
    hierarchy = await asyncio.to_thread(detect)
    drivers = choice.open_drivers(machine, config.runtime, state_dir, launcher, hierarchy)
    bare = drivers[STANDARD].name == "process"
    content = None if bare else await contents.open_contents(config)
    store: ImageStore | BareImages
    if content is None:
        store = BareImages(config.data_dir)
    else:
        days = config.image_retention_days
        store = ImageStore(
            config.data_dir, content.store, content.mounts, lazy=content.lazy, traces=content.traces,
            retention_days=days,
        )  # fmt: skip
    around = Surroundings(drivers, store, HostNetwork(), contents=content)
    around.warnings += content.warnings if content is not None else []
    try:
        around.sentinel = Sentinel(state_dir, CGROUP_PARENT, hierarchy.roots)
        await _fill(around, config, machine, state_dir)
    except BaseException:
        await around.close()
        raise
    return around


async def _fill(around: Surroundings, config: Config, machine: probe.Machine, state_dir: str) -> None:
    """Open networks and ids, and write the files for looking names up."""
    drivers = around.drivers
    bare = drivers[STANDARD].name == "process"
    if bare:
        around.warnings.append("functions run as plain processes, without isolation; cadenza doctor says why")
    elif machine.can("network"):
        network = Network(state_dir)
        try:
            await network.open()
            around.networks = network
        except (Error, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # it passes, and containers would share the machine's network until this server ends
            around.warnings.append(f"containers share the machine's network; they can have none of their own: {error}")
    if drivers[STANDARD].name in machine.mapped:
        try:
            identities = Identities(state_dir)
            await identities.open()
            around.identities = identities
        except (Error, OSError) as error:
            around.warnings.append(f"root in containers is the machine's root; it can be no other: {error}")
    elif drivers[STANDARD].name in ("crun", "runc") and "container ids" in machine.abilities:
        around.warnings.append(machine.abilities["container ids"].sentence)
    home = around.identities.home if around.identities is not None else state_dir
    around.names = await asyncio.to_thread(_names, home, isinstance(around.networks, HostNetwork))


def _names(home: str, shared: bool) -> dict[str, str]:
    """Write the files by which containers look names up. Those that cannot be known are left to the image.

    ``shared``: they are on the machine's network, so that its own name servers are in reach.
    """
    resolv = resolv_conf()
    if shared:
        try:
            with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
                resolv = file.read()
        except OSError:
            pass
    found = {}
    for target, text in (("/etc/resolv.conf", resolv), ("/etc/hosts", HOSTS)):
        if text:
            path = found[target] = os.path.join(home, os.path.basename(target))
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o644)
    return found


def enter_rootless(config: Config) -> None:
    """For an ordinary user whose containers need it: become root of a namespace of the user's own.

    Call it first of all, with one thread. ServiceError when what worked in a trial now fails.
    """
    if os.geteuid() == 0 or config.runtime == "process":
        return
    state_dir = state_directory(config)
    machine = probe.rootless_machine(state_dir)
    if not machine.rootless or choice.choose(machine, config.runtime)[STANDARD] == "process":
        return
    try:
        rootless.enter(rootless.plan())
    except rootless.Unable as error:
        probe.forget(state_dir)
        raise ServiceError(f"containers without root worked when they were tried, and now do not: {error}") from None


def state_directory(config: Config) -> str:
    """Where drivers keep what must survive the agent and not the machine. What another boot left is removed."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        name = "boot-" + file.read().strip()[:13]
    home = os.path.join(config.data_dir, "runtime")
    os.makedirs(os.path.join(home, name), mode=0o700, exist_ok=True)
    for other in os.listdir(home):
        if other != name:
            shutil.rmtree(os.path.join(home, other), ignore_errors=True)
    return os.path.join(home, name)
