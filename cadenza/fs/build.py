"""Making one layer of an image: the base, files, or commands run by whoever can start containers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Awaitable, Callable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error, ImageBuildError, InvalidError
from cadenza.fs import caches, debian, host, recipe
from cadenza.fs.apt import host_logins
from cadenza.fs.layers import LayerStore, Stack, StoredLayer, Workplace, copy_files, explain

SHOWN_LINES = 30
"""How much of a failed step's output its error repeats."""

STEP_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Bind:
    """One path of the host that a build step sees. The target exists in the image already, as a file or a directory."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class StepRun:
    """One command of a build, to be run as root of its own root filesystem: an overlay of `lowerdirs` under `upper`.

    ``upper`` and ``work`` are directories on one filesystem, made for this step; several commands of one step run
    one after the other on the same ``upper``. After the command ends, nothing may be mounted or running on them.
    Whoever runs it adds what every container has (/proc, /dev, /sys, a network namespace), and leaves no file of its
    own in ``upper``.
    """

    image_id: str
    lowerdirs: tuple[str, ...]
    """Topmost first, as overlayfs wants them. Never empty."""
    upper: str
    work: str
    argv: tuple[str, ...]
    """The first word is a path, or a name to look for in ``env["PATH"]`` inside."""
    env: dict[str, str] = field(repr=False)
    """The whole environment of the command, image variables, secrets and proxies included."""
    cwd: str
    """Absolute; exists."""
    output: Callable[[bytes], None]
    """Takes stdout and stderr, mixed, as they come; called on the loop's thread."""
    binds: tuple[Bind, ...] = ()
    network: bool = True
    """Whether the command reaches the network as the host does (names resolve by the bound /etc/resolv.conf)."""
    timeout_s: float = STEP_LIMIT_S
    """Kill it after so long; then raise the builtin TimeoutError."""


RunStep = Callable[[StepRun], Awaitable[int]]
"""Runs a command and gives its exit code; 128 + n when a signal ended it. OSError when it could not be started."""

Emit = Callable[[str, str], None]
"""Takes a line of progress: its kind, as in `BuildLine.kind`, and its text."""


class Lines:
    """Bytes as they come into lines for people; ``\\r`` ends a line that was a progress display."""

    LINE_BYTES = 16384

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._rest = b""
        self.last: deque[str] = deque(maxlen=SHOWN_LINES)

    def feed(self, data: bytes) -> None:
        """Take a piece of output."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line)
        if len(self._rest) > self.LINE_BYTES:
            self.close()

    def close(self) -> None:
        """Give out what has no end of line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
        self.last.append(text)
        self._emit(text)


class Builder:
    """Makes layers for one data directory."""

    def __init__(self, layers: LayerStore, cache: str, environ: Mapping[str, str], clock: Clock) -> None:
        self._layers = layers
        self._cache = cache
        self._environ = environ
        self._clock = clock
        self._one_base = asyncio.Lock()
        self._one_uv = asyncio.Lock()
        self.timings: Optional[debian.Timings] = None
        """Of the last base that was made."""

    async def make(
        self,
        layer: recipe.Layer,
        below: Sequence[StoredLayer],
        image_id: str,
        emit: Emit,
        run_step: RunStep,
        object_path: Callable[[str], Optional[str]],
    ) -> StoredLayer:
        """Make a layer on top of those ``below``, the base first, and keep it. Nothing half-made stays."""
        try:
            place = await asyncio.to_thread(self._layers.begin)
        except OSError as error:
            raise explain(error, self._cache) from error
        try:
            python = version = apt = ""
            if layer.kind == "base":
                python, version, apt = await self._base(layer, place, emit)
            elif layer.commands:
                await self._commands(layer, below, place, image_id, emit, run_step)
            else:
                stack = Stack(self._lowerdirs(below), place.upper)
                if layer.directory:
                    await asyncio.to_thread(stack.make_directory, layer.directory)
                paths = [object_path(one.digest) for one in layer.files]
                await asyncio.to_thread(copy_files, stack, layer.files, paths)
            return await asyncio.to_thread(self._layers.keep, place, layer.digest, python, version, apt)
        except BaseException as error:
            # Even when this task is cancelled, the leftovers go before anyone hears of it.
            await asyncio.shield(asyncio.to_thread(self._layers.drop, place))
            if isinstance(error, OSError):
                raise explain(error, self._cache) from error
            raise

    def _lowerdirs(self, below: Sequence[StoredLayer]) -> tuple[str, ...]:
        return tuple(self._layers.path(one.name) for one in reversed(below))

    async def _base(self, layer: recipe.Layer, place: Workplace, emit: Emit) -> tuple[str, str, str]:
        options = layer.base.options if layer.base is not None else {}
        if options.get("distribution", "debian_slim") != "debian_slim":
            raise InvalidError(f"this server makes images from debian_slim alone, not from {options['distribution']!r}")
        python = debian.check_python(options.get("python", ""))
        found = await asyncio.to_thread(host.read, self._environ)

        def progress(text: str) -> None:
            emit("log", text)

        async with self._one_base:  # bases of one suite share apt's state
            base = await debian.build_base(
                place.upper, python, self._cache, found.apt_conf(inside=False), self._environ, progress
            )
        self.timings = base.timings
        return base.python, base.version, f"{base.distribution}-{base.suite}"

    async def _commands(
        self,
        layer: recipe.Layer,
        below: Sequence[StoredLayer],
        place: Workplace,
        image_id: str,
        emit: Emit,
        run_step: RunStep,
    ) -> None:
        found = await asyncio.to_thread(host.read, self._environ)
        binds = await asyncio.to_thread(self._binds, found, place)
        lines = Lines(lambda text: emit("log", text))
        template = StepRun(
            image_id, self._lowerdirs(below), place.upper, place.work, (), {**found.build_env(), **layer.env},
            layer.cwd, lines.feed, binds, timeout_s=STEP_LIMIT_S,
        )  # fmt: skip

        async def call(argv: tuple[str, ...], run: StepRun) -> int:
            code = await run_step(replace(run, argv=argv))
            lines.close()
            return code

        try:
            if recipe.APT in layer.caches:
                code = await self._apt(layer, below, place, template, call, lines)
            else:
                if recipe.PIP in layer.caches:
                    template = self._with(
                        template, Bind(caches.plain(self._cache, "pip"), "/.cadenza/cache/pip", False)
                    )
                if recipe.UV_CACHE in layer.caches:
                    uv_cache = Bind(caches.plain(self._cache, "uv"), "/.cadenza/cache/uv", False)
                    template = self._with(template, uv_cache, Bind(await self._uv(template, below, call), recipe.UV))
                code = 0
                for argv in layer.commands:
                    code = await call(argv, template)
                    if code:
                        break
        except TimeoutError as error:
            raise ImageBuildError(
                _failure(layer, f"did not end within {STEP_LIMIT_S:.0f} s", lines), image_id
            ) from error
        if code:
            what = f"was ended by signal {code - 128}" if code > 128 else f"failed with exit code {code}"
            raise ImageBuildError(_failure(layer, what, lines), image_id)

    def _with(self, run: StepRun, *binds: Bind) -> StepRun:
        return replace(run, binds=(*run.binds, *binds))

    def _binds(self, found: host.Host, place: Workplace) -> tuple[Bind, ...]:
        """What every command sees: names, certificates, apt's settings."""
        folder = os.path.join(place.more, "build")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "apt.conf"), "w", encoding="utf-8") as file:
            file.write(found.apt_conf(inside=True))
        logins = host_logins()
        if logins:
            descriptor = os.open(os.path.join(folder, "auth.conf"), os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(logins + "\n")
        if found.certificates:
            shutil.copyfile(found.certificates, os.path.join(folder, "certificates.pem"))
        binds = [Bind(folder, host.BUILD)]
        for path in ("/etc/resolv.conf", "/etc/hosts"):
            if os.path.isfile(path):
                binds.append(Bind(os.path.realpath(path), path))
        return tuple(binds)

    async def _apt(
        self,
        layer: recipe.Layer,
        below: Sequence[StoredLayer],
        place: Workplace,
        template: StepRun,
        call: Callable[[tuple[str, ...], StepRun], Awaitable[int]],
        lines: Lines,
    ) -> int:
        """Install by lists that are young enough; fetch them first when they are not, or turn out to be too old."""
        pool = os.path.join(self._cache, "apt", below[0].apt or "other")
        lent = caches.LentApt(pool, os.path.join(place.more, "apt"))
        await asyncio.to_thread(lent.lend)
        run = self._with(
            template, Bind(lent.lists, caches.APT_LISTS, False), Bind(lent.archives, caches.APT_ARCHIVES, False)
        )
        update = ("apt-get", "update", "-q")
        updated = not lent.fresh(self._clock.now())
        if updated and (code := await call(update, run)):
            return code
        code = await call(layer.commands[0], run)
        if (
            code
            and not updated
            and any(one.startswith(("E: Unable to", "E: Failed to fetch", "Err:")) for one in lines.last)
        ):
            updated = True
            if code := await call(update, run):
                return code
            code = await call(layer.commands[0], run)
        await asyncio.to_thread(lent.give_back, updated)
        return code

    async def _uv(
        self,
        template: StepRun,
        below: Sequence[StoredLayer],
        call: Callable[[tuple[str, ...], StepRun], Awaitable[int]],
    ) -> str:
        """A uv program that runs inside: the host's, else one that pip fetches once."""
        program = debian.host_uv(self._environ)
        if program:
            return program
        tools = caches.plain(self._cache, "tools")
        program = os.path.join(tools, "bin/uv")
        async with self._one_uv:
            if not os.path.exists(program):
                inside = "/.cadenza/cache/tools"
                fetch = (below[0].python, "-m", "pip", "install", "-q", "--no-cache-dir", "--root-user-action=ignore")
                code = await call(
                    (*fetch, "--target", inside, "--upgrade", "uv"), self._with(template, Bind(tools, inside, False))
                )
                if code or not os.path.exists(program):
                    raise ImageBuildError(
                        "uv_pip_install needs uv, which pip could not fetch: install it on this machine "
                        "(pip install uv), or use pip_install"
                    )
        return program


def _failure(layer: recipe.Layer, what: str, lines: Lines) -> str:
    text = f"the step {layer.text[:500]!r} {what}"
    last = [one for one in lines.last if one.strip()]
    if any("No space left on device" in one for one in last):
        text += " because the disk is full"
    return text + (":\n" + "\n".join("  " + one for one in last) if last else "; it printed nothing")


def with_image(error: Error, image_id: str) -> Error:
    """The error as one of this image's build."""
    if isinstance(error, ImageBuildError) and error.image_id is None:
        return ImageBuildError(str(error), image_id)
    return error
