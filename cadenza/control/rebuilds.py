"""Images that functions in force need and that this machine does not have any more: built again from their recipes.

So a deployed app goes on where its images were removed, lost, or kept in a form that this version does not read. A
start waits for the build; what cannot be built here says so as the start's error.
"""

from __future__ import annotations

import asyncio
from typing import Callable

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, Error, ImageBuildError
from cadenza.control.images import Images
from cadenza.observe.log import Log
from cadenza.protocol.objects import FunctionSpec, ImageSpec

LOOKED_S = 1.0
"""How long what the node has counts as known: a thousand starts ask once."""
FAILED_S = 5.0
"""How long a failure is every start's answer before the build is tried again."""

_log = Log("cadenza.control.rebuilds")


class Rebuilds:
    """Asked before each start of a container. Belongs to the event loop's thread; never blocks."""

    def __init__(
        self, images: Images, there: Callable[[], set[str]], clock: Clock, done: Callable[[str], None]
    ) -> None:
        """``there()``: the ids of what is built; ``done(image_id)`` is told of the end of a build, good or bad."""
        self._images = images
        self._there = there
        self._clock = clock
        self._done = done
        self._known: set[str] = set()
        self._looked_at = -LOOKED_S
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, Error]] = {}

    def wait(self, spec: FunctionSpec) -> str:
        """Why a container of the function has to wait; empty: its image is there. Else the build begins or goes on.

        An `Error` says why it cannot be built.
        """
        image_id = spec.image.image_id()
        if self._has(image_id):
            return ""
        failed_at, error = self._failed.get(image_id, (0.0, None))
        if error is not None:
            if self._clock.monotonic() < failed_at + FAILED_S:
                raise error
            del self._failed[image_id]
        if image_id not in self._tasks:
            lost = f"the image {image_id} of the function {spec.name} is not on this machine any more"
            why = lacking(spec.image)
            if why:
                raise ConflictError(f"{lost}, and {why}: deploy the app again from its program")
            _log.info("an image is built again", image=image_id, function=spec.name)
            self._tasks[image_id] = asyncio.get_running_loop().create_task(self._build(image_id, spec.image, lost))
        return f"its image {image_id} is not on this machine any more: it is built again"

    def _has(self, image_id: str) -> bool:
        now = self._clock.monotonic()
        if now >= self._looked_at + LOOKED_S or image_id not in self._known:
            self._known, self._looked_at = self._there(), now
        return image_id in self._known

    async def _build(self, image_id: str, image: ImageSpec, lost: str) -> None:
        try:
            await self._images.again(image)
        except Error as error:
            text = f"{lost}, and its build failed: {error}. Deploy the app again from its program"
            self._failed[image_id] = (self._clock.monotonic(), ImageBuildError(text, image_id))
            _log.warning("an image could not be built again", image=image_id, error=str(error))
        finally:
            del self._tasks[image_id]
            self._done(image_id)

    def stop(self) -> None:
        """End the builds."""
        for one in self._tasks.values():
            one.cancel()


def lacking(image: ImageSpec) -> str:
    """Why a recipe, as it is kept with a function, is not enough to build the image; empty where it is. Pure."""
    if image.built:
        return "it was made elsewhere, so there is no recipe of it here"
    if any(one.secret_keys for one in image.all_steps()):
        return "it cannot be built here again, for its steps read secrets that are not kept with the function"
    return ""
