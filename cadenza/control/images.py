"""Images: built by a node, one build for each image at a time, however many ask for it."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Optional, Sequence

from cadenza.base.errors import ConflictError
from cadenza.control.request import Caller, Request
from cadenza.observe.log import Log
from cadenza.protocol.images import ImageBuild, ImageBuilt, Images as ImagesReply
from cadenza.protocol.method import Empty
from cadenza.protocol.nodes import BuildLine, BuildOrder, ImageInfo, Node
from cadenza.protocol.objects import ImageSpec

LINES_A_FRAME = 200
MAX_LINES_KEPT = 20_000
"""A late asker sees the build's lines from the start, up to this many."""

_log = Log("cadenza.control.images")


class Build:
    """One build under way, and who listens."""

    def __init__(self) -> None:
        self.lines: list[BuildLine] = []
        self.first = 0
        """The number of the first line that is still kept."""
        self.wakes: set[asyncio.Event] = set()
        self.task: Optional[asyncio.Task[ImageInfo]] = None

    def add(self, line: BuildLine) -> None:
        self.lines.append(line)
        if len(self.lines) > MAX_LINES_KEPT:
            cut = MAX_LINES_KEPT // 10
            del self.lines[:cut]
            self.first += cut
        self.wake()

    def wake(self) -> None:
        for one in self.wakes:
            one.set()


async def as_it_is(spec: ImageSpec, environment: str, caller: Caller) -> ImageSpec:
    """Where no secrets are kept."""
    return spec


class Images:
    """Handlers of ``image.*``."""

    def __init__(
        self,
        node: Callable[[], Node],
        missing: Callable[[Sequence[str]], list[str]],
        filled: Callable[[ImageSpec, str, Caller], Awaitable[ImageSpec]] = as_it_is,
    ) -> None:
        """``filled(spec, environment, caller)``: the recipe with the values of stored secrets in it."""
        self._node = node
        self._missing = missing
        self._filled = filled
        self._builds: dict[str, Build] = {}

    async def list(self, request: Request[Empty]) -> ImagesReply:
        return ImagesReply(tuple(self._node().images()))

    async def build(self, request: Request[ImageBuild]) -> None:
        body = request.body
        image_id = body.spec.image_id()
        spec = await self._filled(body.spec, body.environment, request.caller)
        build = self._builds.get(image_id)
        if build is None:
            missing = self._missing(body.spec.uploads())
            if missing:
                raise ConflictError(
                    f"{len(missing)} files of the image are not uploaded, the first is {missing[0]}: upload them first"
                )
            build = self._begin(BuildOrder(image_id, spec, body.force))
        task = build.task
        assert task is not None
        wake = asyncio.Event()
        build.wakes.add(wake)
        at = 0
        try:
            while True:
                start = max(at - build.first, 0)
                lines = build.lines[start : start + LINES_A_FRAME]
                if lines:
                    at = build.first + start + len(lines)
                    await request.send(ImageBuilt(tuple(lines)))
                elif task.done():
                    await request.send(ImageBuilt((), task.result()))
                    return
                else:
                    wake.clear()
                    await wake.wait()
        finally:
            build.wakes.discard(wake)
            if not build.wakes and not task.done():
                _log.info("a build is cancelled: nobody waits for it", image=image_id)
                self._builds.pop(image_id, None)  # who asks from now on starts anew
                task.cancel()

    def _begin(self, order: BuildOrder) -> Build:
        build = self._builds[order.image_id] = Build()
        loop = asyncio.get_running_loop()

        def progress(line: BuildLine) -> None:
            loop.call_soon_threadsafe(build.add, line)

        def done(task: asyncio.Task[ImageInfo]) -> None:
            if self._builds.get(order.image_id) is build:
                del self._builds[order.image_id]
            if not task.cancelled():
                task.exception()  # each asker raises it; without one nobody is left to tell
            build.wake()

        build.task = loop.create_task(self._node().build(order, progress))
        build.task.add_done_callback(done)
        return build


def handlers(images: Images) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"image.build": images.build, "image.list": images.list}
