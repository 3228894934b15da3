"""From an app's declarations to a published app: resolve, send files, build images, publish. The order is the contract:
nothing is published unless all images are there (semantics.md section 13.1: a failed build changes nothing).
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping, Optional, Protocol, Sequence

from cadenza.base.errors import ImageBuildError, InvalidError, ServerWarning, UnimplementedError
from cadenza.base.tasks import all_or_none
from cadenza.base.config import load
from cadenza.protocol.images import ImageBuild, ImageBuilt, ImageFind
from cadenza.protocol.methods import AppPublish
from cadenza.protocol.nodes import BuildLine
from cadenza.protocol.objects import FileEntry, FunctionSpec, ImageSpec
from cadenza.protocol.packed import sendable
from cadenza.protocol.plain import from_plain
from cadenza.sdk import recipe, secret, source
from cadenza.sdk.declaration import Declaration, method_specs, parameter_specs
from cadenza.sdk.recipe import Resolved
from cadenza.sdk.serialized import pickled

if TYPE_CHECKING:
    from cadenza.sdk.image import Image

    Ids = Mapping[tuple[str, str, str], str]
    """Ids of images by what `recipe.Wanted` asks for."""

MAX_BUILDS_AT_ONCE = 4


class Progress(Protocol):
    """What is shown while an app is published."""

    def phase(self, text: str) -> None:
        """A new part of the work begins."""

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        """How much has been sent."""

    def build_line(self, image_id: str, line: BuildLine) -> None:
        """Something happened in an image's build."""

    def finished(self, text: str) -> None:
        """All is done; ``text`` says what."""


class Quiet:
    """Shows nothing."""

    def phase(self, text: str) -> None:
        pass

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        pass

    def build_line(self, image_id: str, line: BuildLine) -> None:
        pass

    def finished(self, text: str) -> None:
        pass


@dataclass
class Prepared:
    """A function ready to be published, and the content that the server must have first."""

    spec: FunctionSpec
    uploads: list[source.Upload] = field(default_factory=list)


def resolve(image: Image, ids: Optional[Ids] = None) -> Resolved:
    """The image's recipe and files. ``ids``: as `find_wanted` gives them."""
    return recipe.resolve(image._links, ids)


async def find_wanted(client: Any, images: Iterable[Image], environment: str = "") -> Ids:
    """The ids of the images of the server that these begin with. NotFoundError when there is none of the name or id."""
    ids: dict[tuple[str, str, str], str] = {}
    for one in {one.key: one for image in images for one in recipe.wanted(image._links)}.values():
        request = ImageFind(one.image_id, one.name, one.environment or environment)
        ids[one.key] = (await client._request("image.find", request)).image_id
    return ids


class Images:
    """Resolved images and what is mounted over them, each read once: functions that share an image and a module share
    their files."""

    def __init__(self, ids: Optional[Ids] = None) -> None:
        self._ids = ids
        self._known: dict[int, tuple[Image, Resolved]] = {}
        self._mounts: dict[tuple[int, str], tuple[tuple[FileEntry, ...], list[source.Upload]]] = {}

    def resolve(self, image: Image) -> Resolved:
        """The image's recipe and files."""
        known = self._known.get(id(image))
        if known is None:
            known = self._known[id(image)] = (image, resolve(image, self._ids))
        return known[1]

    def mounts(self, image: Image, home: Optional[ModuleType]) -> tuple[tuple[FileEntry, ...], list[source.Upload]]:
        """What a container of the image sees besides it, and what of that and of the image the server needs. ``home``
        is the function's module, where its source is to be there."""
        resolved = self.resolve(image)
        key = (id(resolved), "" if home is None else home.__name__)
        known = self._mounts.get(key)
        if known is None:
            uploads = source.uploads_of(resolved.files)
            files = {one.path: one for one in resolved.mounts}
            if home is not None:
                hashed = source.hash_files(source.module_source(home))
                uploads.extend(source.uploads_of(hashed))
                files.update((one.entry.path, one.entry) for one in hashed)
            known = self._mounts[key] = tuple(files[path] for path in sorted(files)), uploads
        return known


def refusal(declaration: Declaration) -> str:
    """Why this function cannot be run yet; empty if it can."""
    parts = list(declaration.options.unbuilt)
    if declaration.marks.web:
        parts.append(f"@{declaration.marks.web} (web functions)")
    return ", ".join(parts)


def prepare(declaration: Declaration, images: Optional[Images] = None) -> Prepared:
    """Read the function's files and secrets. InvalidError for what can never work, UnimplementedError for what is not
    built yet."""
    missing = refusal(declaration)
    if missing:
        what = "class" if declaration.methods else "function"
        raise UnimplementedError(f"{what} {declaration.name.partition('.')[0]!r} uses what is not built yet: {missing}")
    options = declaration.options
    images = images or Images()
    image, home = declaration.image(), None
    module, serialized = "", ""
    own: list[source.Upload] = []
    if declaration.serialized:
        own.append(source.upload_of(pickled(declaration)))
        serialized = own[0].digest
    else:
        home = module_of(declaration.raw)
        module = source.module_name(home)
    files, uploads = images.mounts(image, home if declaration.include_source else None)
    most, target = declaration.marks.concurrent or (1, 1)
    batch_max, batch_wait_ms = declaration.marks.batched or (0, 0)
    spec = FunctionSpec(
        name=declaration.name,
        module=module,
        qualname=declaration.raw.__qualname__,
        serialized=serialized,
        is_generator=declaration.is_generator,
        is_async=declaration.is_async,
        image=images.resolve(image).spec,
        files=files,
        env=dict(options.env),
        secrets=secret.references(declaration.app_secrets(), options.secrets),
        resources=options.resources,
        timeout_s=float(options.timeout_s),
        startup_timeout_s=float(options.startup_timeout_s),
        retries=options.retries,
        min_containers=options.min_containers,
        max_containers=options.max_containers,
        buffer_containers=options.buffer_containers,
        scaledown_window_s=float(options.scaledown_window_s),
        single_use=options.single_use,
        max_concurrent=most,
        target_concurrent=target,
        batch_max=batch_max,
        batch_wait_ms=batch_wait_ms,
        block_network=options.block_network,
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        methods=method_specs(declaration.methods),
        class_parameters=parameter_specs(declaration.parameters),
        restricted=options.restricted,
        options=dict(options.carried),
    )
    return Prepared(spec, uploads + own if own else uploads)


def module_of(raw: Callable[..., Any]) -> ModuleType:
    """The module in whose global scope a function is. InvalidError if it is not loaded any more."""
    module = sys.modules.get(raw.__module__)
    if module is None:
        raise InvalidError(f"the module {raw.__module__!r} of function {raw.__qualname__!r} is not loaded")
    return module


async def bring(
    client: Any,
    declarations: Sequence[Declaration],
    progress: Progress,
    force_build: bool = False,
    environment: str = "",
) -> tuple[FunctionSpec, ...]:
    """Bring files and images of all functions of an app to the server: all that publishing them needs. Raises
    ImageBuildError, and what `prepare` raises. ``environment``: of the app, where build steps' secrets are."""
    progress.phase("Reading files")
    images = Images(await find_wanted(client, [one.image() for one in declarations], environment))

    def prepare_all() -> list[Prepared]:
        return [prepare(one, images) for one in declarations]

    prepared = await asyncio.get_running_loop().run_in_executor(None, prepare_all)
    uploads = list({one.digest: one for each in prepared for one in each.uploads}.values())
    if uploads:
        progress.phase("Sending files")
        await source.upload(client, uploads, progress.uploading)
    await build_all(client, [one.spec.image for one in prepared], progress, force_build, environment)
    for declaration, one in zip(declarations, prepared):
        declaration.image()._hydrate(one.spec.image.image_id(), client)
    return tuple(one.spec for one in prepared)


async def publish(
    client: Any,
    app_id: str,
    declarations: Sequence[Declaration],
    progress: Progress,
    force_build: bool = False,
    interactive: bool = False,
    environment: str = "",
) -> dict[str, str]:
    """Bring all functions of an app to the server; name to id. ImageBuildError, and what `prepare` raises.

    ``interactive``: their containers may ask for a terminal. ``environment``: as for `bring`.
    """
    specs = await bring(client, declarations, progress, force_build, environment)
    progress.phase("Creating functions")
    if interactive:
        specs = tuple(replace(one, interactive=True) for one in specs)
    functions, payload = sendable(specs)
    reply = await client._request("app.publish", AppPublish(app_id, functions), payload)
    for text in reply.warnings:
        warnings.warn(text, ServerWarning, stacklevel=2)
    return dict(reply.functions)


async def build_all(
    client: Any, specs: Sequence[ImageSpec], progress: Progress, force: bool, environment: str = ""
) -> None:
    """Build each different image, several at once. The first failure is raised and ends the others."""
    different = list({spec.image_id(): spec for spec in specs if not spec.built}.values())
    if not different:
        return
    progress.phase("Building images" if len(different) > 1 else "Building the image")
    gate = asyncio.Semaphore(MAX_BUILDS_AT_ONCE)

    async def one(spec: ImageSpec) -> None:
        async with gate:
            await build(client, spec, progress, force, environment)

    await all_or_none([one(spec) for spec in different])


async def build(client: Any, spec: ImageSpec, progress: Progress, force: bool, environment: str = "") -> str:
    """Build one image and return its id. ImageBuildError if a step fails."""
    image_id = spec.image_id()
    stream = await client._stream("image.build", ImageBuild(spec, force, environment, load().ignore_cache))
    built = ""
    try:
        while True:
            item = await stream.receive()
            if item is None:
                break
            message = from_plain(ImageBuilt, item[0])
            for line in message.lines:
                progress.build_line(image_id, line)
            if message.image is not None:
                built = message.image.image_id
    finally:
        stream.cancel()  # where it has ended already, this does nothing
    if not built:
        raise ImageBuildError("the build ended without an image", image_id)
    return built


async def build_image(client: Any, image: Image, progress: Optional[Progress] = None, force: bool = False) -> None:
    """Bring one image to the server, build it, and give its handle the id. One that the server has is looked up."""
    shown: Progress = progress or Quiet()
    ids = await find_wanted(client, [image])
    resolved = await asyncio.get_running_loop().run_in_executor(None, resolve, image, ids)
    if resolved.spec.built:
        image._hydrate(resolved.spec.built, client)
        return
    await source.upload(client, source.uploads_of(resolved.files), shown.uploading)
    image._hydrate(await build(client, resolved.spec, shown, force or load().force_build), client)
