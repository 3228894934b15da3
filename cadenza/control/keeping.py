"""Which images are kept: those that something uses, or used not long ago. Removing images, and collecting content."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Collection, Iterable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, Error, NotFoundError
from cadenza.control.apps import Apps
from cadenza.control.calls import Calls
from cadenza.control.functions import Functions
from cadenza.control.images import Images
from cadenza.control.names import Names
from cadenza.control.request import Request
from cadenza.observe.log import Log
from cadenza.protocol.images import Collected, ImageCollect, ImageRemove
from cadenza.protocol.method import Empty
from cadenza.protocol.nodes import CollectOrder, ImageInfo, Node
from cadenza.storage.db import Database

DAY_S = 86_400.0
COLLECT_EVERY_S = DAY_S
FIRST_LOOK_S = 60.0
"""After a start, so that what the first programs want is in use before it is looked for."""
LOOK_EVERY_S = 600.0
COLLECTED_AT = "images_collected_at"
"""The setting that says when a collection by itself last began, in epoch seconds."""

_log = Log("cadenza.control.keeping")

Users = Callable[[], Mapping[str, Collection[str]]]
"""Of each image that is in use, by what: phrases for people."""


def unused(images: Iterable[ImageInfo], used: Collection[str], oldest: float) -> tuple[str, ...]:
    """The images that nothing uses and nothing has used since ``oldest`` (epoch seconds). Pure."""
    return tuple(
        one.image_id for one in images if one.image_id not in used and max(one.used_at, one.created_at) < oldest
    )


class Keeping:
    """Handlers of ``image.remove`` and ``image.collect``."""

    def __init__(
        self,
        node: Callable[[], Node],
        db: Database,
        clock: Clock,
        images: Images,
        names: Names,
        apps: Users,
        containers: Users,
        retention_days: float,
    ) -> None:
        """``apps``: images of the versions in force; ``containers``: of containers that run or are on their way."""
        self._node = node
        self._db = db
        self._clock = clock
        self._images = images
        self._names = names
        self._apps = apps
        self._containers = containers
        self._retention_days = retention_days
        self._collecting = asyncio.Lock()
        self._look_at = clock.monotonic() + FIRST_LOOK_S
        self._sweeping: Optional[asyncio.Task[None]] = None

    async def remove(self, request: Request[ImageRemove]) -> Empty:
        body = request.body
        image_id = body.image_id
        if image_id not in {one.image_id for one in self._node().images()}:
            raise NotFoundError(f"no image {image_id[:80]!r} is built on this machine: see `cadenza image list`")
        if image_id in self._images.building:
            raise ConflictError(f"{image_id} is being built: wait for the build, or end it")
        running = self._containers().get(image_id)
        if running:
            raise ConflictError(f"{image_id} is in use by {_some(running)}: stop them first")
        names = [f"the name {one.environment}/{one.name}:{one.tag}" for one in self._names.of(image_id)]
        users = [*self._apps().get(image_id, ()), *names]
        if users and not body.force:
            raise ConflictError(f"{image_id} is in use by {_some(users)}: --force removes it all the same")
        done = await self._node().collect(CollectOrder((image_id,)))
        if image_id not in done.images:
            raise ConflictError(f"{image_id} is in use by a container that is starting or ending: try again")
        _log.info("an image was removed", image=image_id)
        return Empty()

    async def collect(self, request: Request[ImageCollect]) -> Collected:
        body = request.body
        return await self._collect(body.unused_days, body.dry_run, body.remote)

    async def _collect(self, unused_days: float, dry_run: bool, remote: bool = False) -> Collected:
        async with self._collecting:
            gone: tuple[str, ...] = ()
            if unused_days >= 0:
                used = {*self._apps(), *self._containers(), *self._images.building}
                used |= {one.image_id for one in self._names}
                gone = unused(self._node().images(), used, self._clock.now() - unused_days * DAY_S)
            done = await self._node().collect(CollectOrder(gone, dry_run, remote))
        return Collected(
            done.images, done.objects, done.size, done.kept_objects, done.kept_size, dry_run, tuple(done.notes)
        )

    def tick(self) -> None:
        """Once a second or so: begin what is due."""
        now = self._clock.monotonic()
        if now >= self._look_at and (self._sweeping is None or self._sweeping.done()):
            self._look_at = now + LOOK_EVERY_S
            self._sweeping = asyncio.get_running_loop().create_task(self.sweep())

    async def close(self) -> None:
        """End what is under way; the node finishes or gives up by itself."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])

    async def sweep(self) -> None:
        """By itself, once a day over restarts: images that nothing has used for long, then content without an image."""
        now = self._clock.now()
        settings: dict[str, str] = dict(await self._db.fetch("setting_all"))
        if now - float(settings.get(COLLECTED_AT) or 0.0) < COLLECT_EVERY_S:
            return
        await self._db.execute("setting_put", (COLLECTED_AT, str(now)))
        try:
            done = await self._collect(self._retention_days, False)
        except (Error, OSError) as error:
            _log.warning("content of images could not be collected", reason=str(error))
            return
        if done.images or done.objects:
            _log.info("content of images removed", images=len(done.images), objects=done.objects, size=done.size)


def in_force(apps: Apps) -> dict[str, list[str]]:
    """The images of apps that are not stopped, and of which."""
    found: dict[str, list[str]] = {}
    for app in apps.alive:
        for image_id in {one.spec.image.image_id() for one in apps.functions.of_app(app.app_id)}:
            found.setdefault(image_id, []).append(f"the app {app.name or app.app_id}")
    return found


def running(calls: Calls, functions: Functions) -> dict[str, list[str]]:
    """The images of containers that are not gone, and of which."""
    found: dict[str, list[str]] = {}
    for container_id, one in calls.loop.cluster.containers.items():
        if one.function.function_id in functions:
            image_id = functions.get(one.function.function_id).spec.image.image_id()
            found.setdefault(image_id, []).append(f"the container {container_id}")
    return found


def _some(users: Collection[str]) -> str:
    first: Sequence[str] = sorted(users)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")


def handlers(keeping: Keeping) -> dict[str, Any]:
    """These rows of the table of methods."""
    return {"image.remove": keeping.remove, "image.collect": keeping.collect}
