"""Images on this node: what is built, where its layers are, and building what is not there.

The interface is `ImageStore`; what lies behind it is plain overlay directories (`cadenza.fs.layers`). The caller brings
the means to run a step (`run_step`): this package starts no container.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Callable, Mapping, Optional

from cadenza.base.clock import Clock, SystemClock
from cadenza.base.errors import Error, ImageBuildError, NotFoundError
from cadenza.fs import caches, recipe
from cadenza.fs.build import Bind, Builder, Emit, RunStep, StepRun, with_image
from cadenza.fs.layers import LayerStore, StoredLayer, explain, remove_tree
from cadenza.protocol.nodes import BuildLine, BuildOrder, ImageInfo

__all__ = ["Bind", "ImageStore", "RunStep", "StepRun"]

BUILDS_AT_ONCE = 4
TOUCH_EVERY_S = 60.0
"""How exactly the disk knows when an image was last used."""
PACKAGES_KEPT_S = 30 * 86400.0


@dataclass
class _Record:
    """One image as ``images/<id>`` has it."""

    info: ImageInfo
    layers: tuple[StoredLayer, ...]
    """The base first."""
    settings: recipe.Settings
    recipe: str = recipe.RECIPE


@dataclass
class _Making:
    """A layer that is being made: whoever wants the same one waits, and sees the same lines."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lines: list[tuple[str, str]] = field(default_factory=list)
    listeners: list[Emit] = field(default_factory=list)
    error: Optional[Error] = None
    users: int = 0

    MAX_LINES = 10_000

    def emit(self, kind: str, text: str) -> None:
        if len(self.lines) < self.MAX_LINES:
            self.lines.append((kind, text))
        for one in list(self.listeners):
            one(kind, text)


class ImageStore:
    """The images of one data directory. One process at a time may hold it; all methods belong to one event loop."""

    def __init__(
        self, data_dir: str, *, environ: Optional[Mapping[str, str]] = None, clock: Optional[Clock] = None
    ) -> None:
        """``environ``: the host's environment (os.environ): builds take proxies, certificates and the index from it."""
        self._directory = os.path.join(data_dir, "images")
        self._records_dir = os.path.join(self._directory, "images")
        self._cache = os.path.join(data_dir, "cache")
        for path in (self._records_dir, self._cache):
            os.makedirs(path, exist_ok=True)
        self._clock = clock or SystemClock()
        self._layers = LayerStore(self._directory)
        self._builder = Builder(self._layers, self._cache, os.environ if environ is None else environ, self._clock)
        self._making: dict[str, _Making] = {}
        self._gate = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._later: set[asyncio.Task[None]] = set()
        self._touched: dict[str, float] = {}
        self._records: dict[str, _Record] = {}
        for name in os.listdir(self._records_dir):
            record = self._load(name)
            if record is not None:
                self._records[name] = record

    @property
    def base_timings(self) -> dict[str, float]:
        """Seconds of each phase of the last base made by this process, in order; for measurements."""
        return dict(self._builder.timings.seconds) if self._builder.timings else {}

    async def build(
        self,
        order: BuildOrder,
        progress: Callable[[BuildLine], None],
        run_step: RunStep,
        object_path: Callable[[str], Optional[str]],
    ) -> ImageInfo:
        """Make an image, or return at once when it is there. Nothing half-made stays, however it ends.

        ImageBuildError when a step fails.
        Layers that were finished before a failure are kept, so that the next try begins where this one ended.
        InvalidError when the recipe can never be built here (a Python that no suite has, an unknown step);
        ResourceExhaustedError when the disk is full.
        """
        plan = recipe.plan(order.spec)
        force = order.force or any(layer.force for layer in plan.layers)
        there = self._records.get(order.image_id)
        if there is not None and not force:
            progress(BuildLine("cached", len(plan.layers), len(plan.layers), order.image_id))
            self.touch(order.image_id, self._clock.now())
            return self._records[order.image_id].info
        stored: list[StoredLayer] = []
        try:
            for index in range(len(plan.layers)):
                if stored and stored[0].python != plan.settings.python:
                    # The base's interpreter is known only now; commands name it.
                    plan = recipe.plan(order.spec, stored[0].python)
                layer = plan.layers[index]
                if not (layer.kind == "base" or layer.commands or layer.files or layer.directory):
                    continue

                def emit(kind: str, text: str, step: int = index + 1, steps: int = len(plan.layers)) -> None:
                    progress(BuildLine(kind, step, steps, text))

                wanted = replace(layer, force=layer.force or order.force)
                stored.append(await self._layer(wanted, tuple(stored), order.image_id, emit, run_step, object_path))
        except Error as error:
            raise with_image(error, order.image_id) from error
        except OSError as error:
            explained = explain(error, self._directory)
            if isinstance(explained, Error):
                raise explained from error
            raise ImageBuildError(f"the image could not be made: {error}", order.image_id) from error
        return await self._finish(order, plan, tuple(stored))

    async def _finish(self, order: BuildOrder, plan: recipe.Plan, stored: tuple[StoredLayer, ...]) -> ImageInfo:
        now = self._clock.now()
        settings = replace(plan.settings, python=stored[0].python)
        info = ImageInfo(
            order.image_id,
            sum(one.size for one in stored),
            now,
            now,
            "; ".join(layer.text for layer in plan.layers)[:1000],
            settings.env,
            settings.workdir,
            stored[0].version,
        )
        record = _Record(info, stored, settings)
        self._records[order.image_id] = record
        self._save(record)
        self._keep(asyncio.get_running_loop().create_task(self._settle(stored)))
        return info

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _settle(self, stored: tuple[StoredLayer, ...]) -> None:
        """Bring layers to disk while the image is already in use. A failure only makes another boot build it again."""
        for one in stored:
            found = self._layers.find(one.digest)
            if found is not None and found.boot:
                try:
                    await asyncio.to_thread(self._layers.settle, found)
                except OSError:
                    return

    async def close(self) -> None:
        """Wait until what was built is surely on disk, and what was removed is gone."""
        await asyncio.gather(*self._later, return_exceptions=True)

    async def _layer(
        self,
        layer: recipe.Layer,
        below: tuple[StoredLayer, ...],
        image_id: str,
        emit: Emit,
        run_step: RunStep,
        object_path: Callable[[str], Optional[str]],
    ) -> StoredLayer:
        """The layer, made once however many want it at the same time."""
        if not layer.force:
            found = self._layers.find(layer.digest)
            if found is not None:
                emit("cached", layer.text)
                return found
        making = self._making.setdefault(layer.digest, _Making())
        making.users += 1
        waited = making.lock.locked()
        try:
            if waited:
                for kind, text in making.lines:
                    emit(kind, text)
                making.listeners.append(emit)
            async with making.lock:
                if waited:
                    making.listeners.remove(emit)
                    if making.error is not None:
                        raise making.error
                    found = self._layers.find(layer.digest)
                    if found is not None:
                        return found
                making.lines.clear()
                making.error = None
                making.listeners.insert(0, emit)
                try:
                    async with self._gate:
                        begun = self._clock.monotonic()
                        making.emit("step", layer.text)
                        made = await self._builder.make(layer, below, image_id, making.emit, run_step, object_path)
                        making.emit("done", f"{self._clock.monotonic() - begun:.1f} s")
                        return made
                except Error as error:
                    making.error = error
                    raise
                finally:
                    making.listeners.remove(emit)
        finally:
            if emit in making.listeners:
                making.listeners.remove(emit)
            making.users -= 1
            if making.users == 0 and self._making.get(layer.digest) is making:
                del self._making[layer.digest]

    def _record(self, image_id: str) -> _Record:
        try:
            return self._records[image_id]
        except KeyError:
            raise NotFoundError(f"no image {image_id} is built on this machine") from None

    def lowerdirs(self, image_id: str) -> list[str]:
        """The image's layers for overlayfs, topmost first; always at least one. NotFoundError when it is not built."""
        return [self._layers.path(one.name) for one in reversed(self._record(image_id).layers)]

    def settings(self, image_id: str) -> recipe.Settings:
        """Beside what `image` tells: entrypoint, command, shell, Python's path. NotFoundError when it is not built."""
        return self._record(image_id).settings

    def image(self, image_id: str) -> Optional[ImageInfo]:
        """What is known of a built image, or None. Its ``python`` is the minor version; its path is in `settings`."""
        record = self._records.get(image_id)
        return record.info if record else None

    def touch(self, image_id: str, now: float) -> None:
        """Note that the image was used at ``now`` (epoch seconds)."""
        record = self._record(image_id)
        record.info = replace(record.info, used_at=max(now, record.info.used_at))
        if now - self._touched.get(image_id, 0.0) >= TOUCH_EVERY_S:
            self._touched[image_id] = now
            self._save(record)

    def images(self) -> list[ImageInfo]:
        """All built images, most recently used first."""
        return sorted((one.info for one in self._records.values()), key=lambda one: -one.used_at)

    def remove(self, image_id: str) -> None:
        """Drop an image and the layers that no other image has. The caller knows that no container uses it."""
        record = self._record(image_id)
        del self._records[image_id]
        os.unlink(os.path.join(self._records_dir, image_id))
        kept = {one.name for other in self._records.values() for one in other.layers}
        for trash in self._layers.remove(one for one in record.layers if one.name not in kept):
            # It is gone for everybody; giving back the room takes a while.
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                remove_tree(trash)
            else:
                self._keep(loop.create_task(asyncio.to_thread(remove_tree, trash)))

    def cleanup(self) -> None:
        """Call at start: drop what a killed process left half-made. Blocks; run it before the loop is busy."""
        self._layers.cleanup(one.name for record in self._records.values() for one in record.layers)
        for name in os.listdir(self._records_dir):
            if name not in self._records:
                os.unlink(os.path.join(self._records_dir, name))
        caches.prune(self._cache, PACKAGES_KEPT_S)

    def _save(self, record: _Record) -> None:
        path = os.path.join(self._records_dir, record.info.image_id)
        scratch = path + ".new"
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        os.replace(scratch, path)

    def _load(self, name: str) -> Optional[_Record]:
        """A record whose layers are all there; None for any other, which is as if it were not built."""
        try:
            with open(os.path.join(self._records_dir, name), encoding="utf-8") as file:
                value = json.load(file)
            layers = tuple(StoredLayer(**one) for one in value["layers"])
            settings = value["settings"]
            for key in ("entrypoint", "cmd", "shell"):
                settings[key] = tuple(settings[key])
            record = _Record(ImageInfo(**value["info"]), layers, recipe.Settings(**settings), value["recipe"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = all(os.path.isdir(self._layers.path(one.name)) and self._layers.trusted(one) for one in layers)
        return record if whole and layers and record.recipe == recipe.RECIPE and name == record.info.image_id else None
