"""Images: built by a node, one build for each image at a time, however many ask for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Awaitable, Callable, Optional, Sequence

from cadenza.base.errors import ConflictError, InvalidError, NotFoundError
from cadenza.control.names import Names
from cadenza.control.request import Caller, Request
from cadenza.observe.log import Log
from cadenza.protocol.images import (
    ImageBuild,
    ImageBuilt,
    ImageFind,
    ImageLog,
    ImageLogQuery,
    ImagePush,
    ImagePushed,
    Images as ImagesReply,
)
from cadenza.protocol.method import Empty
from cadenza.protocol.nodes import BuildLine, BuildOrder, ImageDetail, ImageInfo, Node, PushOrder
from cadenza.protocol.objects import ImageSpec, SecretRef

LINES_A_FRAME = 200
CHARS_A_FRAME = 60_000
"""A character takes up to 12 bytes of a frame's header, which has a megabyte."""
PREFIX_CHARS = 5
"""An id may be shortened to so many characters, ``im-`` among them."""
MAX_LINES_KEPT = 20_000
MAX_CHARS_KEPT = 4_000_000
"""A late asker sees the build's lines from the start, up to this many."""

_log = Log("cadenza.control.images")


class Build:
    """One build under way, and who listens."""

    def __init__(self) -> None:
        self.lines: list[BuildLine] = []
        self.first = 0
        """The number of the first line that is still kept."""
        self._chars = 0
        self.wakes: set[asyncio.Event] = set()
        self.task: Optional[asyncio.Task[ImageInfo]] = None

    def add(self, line: BuildLine) -> None:
        self.lines.append(line)
        self._chars += len(line.text)
        if len(self.lines) > MAX_LINES_KEPT or self._chars > MAX_CHARS_KEPT:
            cut = len(self.lines) // 10 + 1
            self._chars -= sum(len(one.text) for one in self.lines[:cut])
            del self.lines[:cut]
            self.first += cut
        self.wake()

    def wake(self) -> None:
        for one in self.wakes:
            one.set()


def frame_of(lines: Sequence[BuildLine], start: int) -> Sequence[BuildLine]:
    """As many of the lines from ``start`` on as one frame holds; at least one, if there is one. Pure."""
    end, chars = start, 0
    while end < min(start + LINES_A_FRAME, len(lines)):
        chars += len(lines[end].text)
        if chars > CHARS_A_FRAME and end > start:
            break
        end += 1
    return lines[start:end]


async def as_it_is(spec: ImageSpec, environment: str, caller: Caller) -> ImageSpec:
    """Where no secrets are kept."""
    return spec


async def no_variables(refs: Sequence[SecretRef], environment: str, caller: Caller) -> dict[str, str]:
    """Where no secrets are kept."""
    return {}


class Images:
    """Handlers of ``image.*`` but those of names."""

    def __init__(
        self,
        node: Callable[[], Node],
        missing: Callable[[Sequence[str]], list[str]],
        filled: Callable[[ImageSpec, str, Caller], Awaitable[ImageSpec]] = as_it_is,
        variables: Callable[[Sequence[SecretRef], str, Caller], Awaitable[dict[str, str]]] = no_variables,
        names: Optional[Names] = None,
    ) -> None:
        """``filled(spec, environment, caller)``: the recipe with the values of stored secrets in it;
        ``variables(refs, environment, caller)``: those of secrets."""
        self._node = node
        self._missing = missing
        self._filled = filled
        self._variables = variables
        self._builds: dict[str, Build] = {}
        self._names = names

    @property
    def building(self) -> set[str]:
        """The ids of images that are built now."""
        return set(self._builds)

    async def list(self, request: Request[Empty]) -> ImagesReply:
        return ImagesReply(tuple(self._node().images()))

    async def find(self, request: Request[ImageFind]) -> ImageInfo:
        return self._found(request.body, request.caller)

    def _found(self, body: ImageFind, caller: Caller) -> ImageInfo:
        if body.name:
            if self._names is None:
                raise NotFoundError(f"no image has the name {body.name[:200]!r}: no names are kept here")
            name = self._names.find(body.name, body.environment, caller)
            for one in self._node().images():
                if one.image_id == name.image_id:
                    return one
            raise NotFoundError(
                f"the image {name.image_id} of the name {name.name}:{name.tag} is not on this machine any more: build "
                "and publish it again"
            )
        return one_of(self._node().images(), body.image_id)

    async def inspect(self, request: Request[ImageFind]) -> ImageDetail:
        info = self._found(request.body, request.caller)
        named = self._names.of(info.image_id) if self._names is not None else []
        names = tuple(f"{one.environment}/{one.name}:{one.tag}" for one in named)
        detail = await self._node().image(info.image_id)
        return replace(detail, names=names)

    async def log(self, request: Request[ImageLogQuery]) -> ImageLog:
        body = request.body
        lines = await self._node().image_log(body.image_id, max(body.layers, 0))
        return ImageLog(tuple(lines[-body.entries :] if body.entries > 0 else lines))

    async def push(self, request: Request[ImagePush]) -> None:
        """Lines while it goes on, and at its end the manifest's digest. Who leaves ends it."""
        body = request.body
        info = one_of(self._node().images(), body.image_id)
        credentials = await self._variables(body.secrets, body.environment, request.caller)
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[str] = asyncio.Queue()

        def progress(line: str) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        task = loop.create_task(self._node().push(PushOrder(info.image_id, body.ref, credentials), progress))
        task.add_done_callback(lambda _: lines.put_nowait(""))
        try:
            while True:
                found = [await lines.get()]
                while not lines.empty() and len(found) < LINES_A_FRAME:
                    found.append(lines.get_nowait())
                shown = tuple(one for one in found if one)
                if shown:
                    await request.send(ImagePushed(shown))
                if task.done() and lines.empty():
                    await request.send(ImagePushed((), task.result()))
                    return
        finally:
            task.cancel()

    async def again(self, spec: ImageSpec) -> ImageInfo:
        """Build an image whose recipe is kept, or wait for the build under way. Errors as of ``image.build``."""
        image_id = spec.image_id()
        build = self._builds.get(image_id) or self._begin(self._order(image_id, spec, ImageBuild(spec)))
        assert build.task is not None
        wake = asyncio.Event()
        build.wakes.add(wake)
        try:
            return await asyncio.shield(build.task)
        finally:
            self._leave(image_id, build, wake)

    def _order(self, image_id: str, spec: ImageSpec, body: ImageBuild) -> BuildOrder:
        missing = self._missing(spec.uploads())
        if missing:
            raise ConflictError(
                f"{len(missing)} files of the image are not uploaded, the first is {missing[0]}: upload them first"
            )
        return BuildOrder(image_id, spec, body.force, body.ignore_cache)

    async def build(self, request: Request[ImageBuild]) -> None:
        body = request.body
        image_id = body.spec.image_id()
        spec = await self._filled(body.spec, body.environment, request.caller)
        build = self._builds.get(image_id) or self._begin(self._order(image_id, spec, body))
        task = build.task
        assert task is not None
        wake = asyncio.Event()
        build.wakes.add(wake)
        at = 0
        try:
            while True:
                start = max(at - build.first, 0)
                lines = frame_of(build.lines, start)
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
            self._leave(image_id, build, wake)

    def _leave(self, image_id: str, build: Build, wake: asyncio.Event) -> None:
        build.wakes.discard(wake)
        if build.task is not None and not build.wakes and not build.task.done():
            _log.info("a build is cancelled: nobody waits for it", image=image_id)
            self._builds.pop(image_id, None)  # who asks from now on starts anew
            build.task.cancel()

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


def one_of(images: Sequence[ImageInfo], word: str) -> ImageInfo:
    """The image of this id, or the only one whose id begins so. NotFoundError, InvalidError. Pure."""
    fitting = [one for one in images if one.image_id.startswith(word)] if len(word) >= PREFIX_CHARS else []
    exact = [one for one in fitting if one.image_id == word]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        ids = ", ".join(one.image_id for one in fitting[:5])
        raise InvalidError(f"{len(fitting)} images have ids that begin with {word[:80]}: {ids}; give more of it")
    raise NotFoundError(f"no image {word[:80]!r} is built on this machine: see `cadenza image list`")


def handlers(images: Images) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "image.build": images.build,
        "image.list": images.list,
        "image.find": images.find,
        "image.inspect": images.inspect,
        "image.log": images.log,
        "image.push": images.push,
    }
