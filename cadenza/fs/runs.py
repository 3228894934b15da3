"""Going through a recipe: each step is found or made, once however many builds want it at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Awaitable, Callable, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error
from cadenza.fs import recipe
from cadenza.fs.build import Builder, Order
from cadenza.fs.records import Believer, Made, write
from cadenza.fs.step import Emit, Ground
from cadenza.fs.steplogs import MAX_CHARS, MAX_LINES, StepLogs
from cadenza.fs.store import Store
from cadenza.protocol.nodes import BuildLine, ImageLayer
from cadenza.protocol.objects import ImageSpec

BUILDS_AT_ONCE = 4
"""Steps that are made side by side."""


@dataclass
class _Making:
    """A step that is being made: whoever wants the same one waits, and sees the same lines."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    chars: int = 0
    """Of the lines, which are the last ones of all."""
    listeners: list[Emit] = field(default_factory=list)
    error: Optional[Error] = None
    made: Optional[Made] = None
    users: int = 0
    ended: int = 0
    """How many tries came to an end, good or bad."""
    layer: Optional[recipe.Layer] = None
    """What the last one was told to make."""

    def begin(self, layer: recipe.Layer) -> None:
        """Another try."""
        self.lines.clear()
        self.chars = 0
        self.error = None
        self.layer = layer

    def emit(self, at: float, kind: str, text: str) -> None:
        self.lines.append((at, kind, text))
        self.chars += len(text)
        if len(self.lines) > MAX_LINES or self.chars > MAX_CHARS:
            cut = len(self.lines) // 10 + 1  # how a step ended says more than how it began
            self.chars -= sum(len(text) for _, _, text in self.lines[:cut])
            del self.lines[:cut]
        for one in list(self.listeners):
            one(kind, text)


@dataclass
class Run:
    """A recipe that was gone through."""

    ground: Ground
    settings: recipe.Settings
    layers: list[ImageLayer] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    source: str = ""


@dataclass(frozen=True)
class Wishes:
    """How a build treats what is there already."""

    force: bool = False
    ignore: bool = False
    """Make all anew, and remember none of it."""


def told(line: BuildLine, emit: Emit) -> None:
    """Pass on what the build of an image says that another build needs, such as a Dockerfile's earlier stage."""
    if line.kind == "step":
        emit("log", f"=> step {line.step} of {line.steps}: {line.text}")
    elif line.kind == "log":
        emit("log", line.text)


class Runs:
    """The runs of one store."""

    def __init__(self, store: Store, builder: Builder, logs: StepLogs, clock: Clock, believer: Believer) -> None:
        self._store = store
        self._builder = builder
        self._logs = logs
        self._clock = clock
        self._believer = believer
        self._making: dict[str, _Making] = {}
        self._gate = asyncio.Semaphore(BUILDS_AT_ONCE)

    async def go(
        self,
        steps: Sequence[recipe.Step],
        order: Order,
        wishes: Wishes,
        progress: Callable[[BuildLine], None],
        build_images: Callable[[Sequence[ImageSpec], Emit], Awaitable[None]],
    ) -> Run:
        """Find or make all steps. ``build_images`` builds the other images that a step reads.

        The errors are those of `cadenza.fs.images.ImageStore.build`.
        """
        run = Run(Ground(self._store), recipe.Settings())
        for index, one in enumerate(steps):

            def emit(kind: str, text: str, step: int = index + 1) -> None:
                progress(BuildLine(kind, step, len(steps), text))

            if one.step.images:
                await build_images(one.step.images, emit)
            settings, layer = recipe.evaluate(one.step, run.settings)
            for note in layer.notes:
                emit("log", note)
            if not recipe.touches_files(layer):
                run.settings = settings
                run.layers.append(ImageLayer(layer.text, "", 0, 0, 0.0, self._clock.now(), True))
                continue
            layer = replace(layer, digest=one.key, force=one.force or wishes.force or wishes.ignore)
            made, cached = await self._step(layer, settings, run.ground, order, wishes, emit)
            run.ground.add(made.digest)
            run.settings = made.settings
            run.layers.append(made.layer(cached))
            run.keys.append(one.key)
            run.source = run.source or made.source
        return run

    def find(self, key: str) -> Optional[Made]:
        """A step that was made, here or elsewhere, if it can be believed and its tree can be had. Blocks."""
        here = self._store.get_local_record("steps", key)
        made = self._believer.step(here)
        if made is None:
            here = None
            made = self._believer.step(self._store.get_record("steps", key, remote=True))
        if made is None:
            return None
        try:
            self._store.fetcher.bring_tree(made.digest)
        except Error:
            return None
        if here is None:
            self._store.put_local_record("steps", key, write(made))
        return made

    async def _step(
        self,
        layer: recipe.Layer,
        settings: recipe.Settings,
        ground: Ground,
        order: Order,
        wishes: Wishes,
        emit: Emit,
    ) -> tuple[Made, bool]:
        if not layer.force:
            found = await asyncio.to_thread(self.find, layer.digest)
            if found is not None:
                emit("cached", layer.text)
                return found, True
        if wishes.ignore:
            return await self._make(layer, settings, ground, order, _Making(listeners=[emit]), keep=False), False
        making = self._making.setdefault(layer.digest, _Making())
        making.users += 1
        waited, ended = making.lock.locked(), making.ended
        try:
            if waited:
                for _, kind, text in making.lines:
                    emit(kind, text)
                making.listeners.append(emit)
            async with making.lock:
                if waited:
                    making.listeners.remove(emit)
                if making.ended > ended:  # also if nobody held the lock when we came: who waited longer had it first
                    if making.error is not None and _alike(making.layer, layer):
                        raise making.error
                    if making.error is None and making.made is not None:
                        return making.made, True
                making.begin(layer)
                making.listeners.insert(0, emit)
                try:
                    making.made = await self._make(layer, settings, ground, order, making, keep=True)
                    making.ended += 1
                    return making.made, False
                except Error as error:
                    making.error = error
                    making.ended += 1
                    raise
                finally:
                    making.listeners.remove(emit)
        finally:
            if emit in making.listeners:
                making.listeners.remove(emit)
            making.users -= 1
            if making.users == 0 and self._making.get(layer.digest) is making:
                del self._making[layer.digest]

    async def _make(
        self,
        layer: recipe.Layer,
        settings: recipe.Settings,
        ground: Ground,
        order: Order,
        making: _Making,
        keep: bool,
    ) -> Made:
        def say(kind: str, text: str) -> None:
            making.emit(self._clock.now(), kind, text)

        async with self._gate:
            begun = self._clock.monotonic()
            say("step", layer.text)
            try:
                outcome = await self._builder.make(layer, settings, ground, order, say)
            finally:
                if keep:
                    lines = [(at, text) for at, kind, text in making.lines if kind == "log"]
                    await asyncio.shield(asyncio.to_thread(self._logs.write, layer.digest, layer.text, lines))
            seconds = self._clock.monotonic() - begun
            made = Made(
                layer.digest, outcome.tree.hex(), outcome.settings, layer.text, outcome.size, outcome.entries,
                round(seconds, 3), self._clock.now(), self._believer.boot, outcome.source,
                outcome.blobs,
            )  # fmt: skip
            if keep:
                await asyncio.to_thread(self._store.put_local_record, "steps", layer.digest, write(made))
            say("done", f"{seconds:.1f} s")
            return made


def _alike(one: Optional[recipe.Layer], other: recipe.Layer) -> bool:
    """Whether what failed for one would fail for the other: neither secrets nor limits are part of a step's key."""
    return one is not None and (one.secrets, one.timeout_s, one.resources) == (
        other.secrets, other.timeout_s, other.resources,
    )  # fmt: skip
