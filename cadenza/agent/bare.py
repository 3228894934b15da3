"""Images where no container can be made: a virtual environment of the host's Python, and the recipe's variables.

The stand-in for `cadenza.fs.images.ImageStore` beside the ``process`` driver. Steps that only a root file system can
take (apt packages, commands, files put into the image) are refused by name, when the image is built.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from typing import Any, Callable, Optional, Sequence

from cadenza.base.clock import Clock, SystemClock
from cadenza.base.errors import ImageBuildError, InvalidError, NotFoundError
from cadenza.fs.mount import Lowers
from cadenza.protocol.nodes import (
    BuildLine, BuildOrder, CollectOrder, CollectReport, ImageDetail, ImageInfo, ImageLogLine, PushOrder,
)  # fmt: skip
from cadenza.protocol.objects import ImageStep

REMEDY = "run cadenza doctor to see what this machine lacks for containers"
INSTALL_LIMIT_S = 1800.0
_INSTALL_OPTIONS = {"find_links": "--find-links", "index_url": "--index-url", "extra_index_url": "--extra-index-url"}


class BareImages:
    """Virtual environments below ``data_dir/venvs``, one an image that installs packages."""

    def __init__(self, data_dir: str, clock: Optional[Clock] = None) -> None:
        self._home = os.path.join(data_dir, "venvs")
        self._clock = clock or SystemClock()
        os.makedirs(self._home, exist_ok=True)
        self._images: dict[str, ImageInfo] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        for name in os.listdir(self._home):
            try:
                with open(os.path.join(self._home, name, "image.json"), encoding="utf-8") as file:
                    self._images[name] = ImageInfo(**json.load(file))
            except (OSError, ValueError, TypeError):
                continue

    def python(self, image_id: str) -> str:
        """The interpreter that runs a container of the image."""
        own = os.path.join(self._home, image_id, "venv", "bin", "python")
        return own if os.path.exists(own) else sys.executable

    async def build(
        self,
        order: BuildOrder,
        progress: Callable[[BuildLine], None],
        run_step: Any,
        object_path: Callable[[str], Optional[str]],
    ) -> ImageInfo:
        """As `cadenza.fs.images.ImageStore.build`; ``run_step`` is not used."""
        async with self._locks.setdefault(order.image_id, asyncio.Lock()):
            found = self._images.get(order.image_id)
            if found is not None and not order.force:
                progress(BuildLine("cached", len(order.spec.steps), len(order.spec.steps), order.image_id))
                return found
            home = os.path.join(self._home, order.image_id)
            await asyncio.to_thread(shutil.rmtree, home, True)
            os.makedirs(home)
            try:
                info = await self._make(order, home, progress)
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                raise
            with open(os.path.join(home, "image.json"), "w", encoding="utf-8") as file:
                json.dump(asdict(info), file)
            self._images[order.image_id] = info
            return info

    async def _make(self, order: BuildOrder, home: str, progress: Callable[[BuildLine], None]) -> ImageInfo:
        env: dict[str, str] = {}
        workdir = ""
        steps = order.spec.steps
        for number, step in enumerate(steps, 1):
            progress(BuildLine("step", number, len(steps), step.kind))
            if step.kind == "base":
                self._check_python(step, order.image_id)
            elif step.kind == "env":
                env.update(step.env)
            elif step.kind == "workdir":
                workdir = step.args[0]
            elif step.kind == "pip":

                def log(text: str, number: int = number) -> None:
                    progress(BuildLine("log", number, len(steps), text))

                await self._install(step, home, order.image_id, log)
            elif step.kind not in ("entrypoint", "cmd", "shell"):
                refused = f"this machine runs functions without containers, so images cannot have {step.kind!r} steps"
                raise ImageBuildError(f"{refused}; {REMEDY}", order.image_id)
            progress(BuildLine("done", number, len(steps), step.kind))
        now = self._clock.now()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return ImageInfo(order.image_id, 0, now, now, "no isolation", env, workdir, version)

    def _check_python(self, step: ImageStep, image_id: str) -> None:
        wanted = step.options.get("python", "")
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if wanted and wanted.split(".")[:2] != here.split("."):
            refused = f"this machine runs functions without containers, on its own Python {here}, not {wanted}"
            raise ImageBuildError(f"{refused}; {REMEDY}", image_id)

    async def _install(self, step: ImageStep, home: str, image_id: str, log: Callable[[str], None]) -> None:
        venv = os.path.join(home, "venv")
        python = os.path.join(venv, "bin", "python")
        uv = shutil.which("uv")
        if not os.path.exists(venv):
            make = [uv, "venv", "-q", "-p", sys.executable] if uv else [sys.executable, "-m", "venv"]
            await self._run([*make, "--system-site-packages", venv], image_id, log, {})
        argv = [uv, "pip", "install", "-p", python] if uv else [python, "-m", "pip", "install", "--no-input"]
        for option, flag in _INSTALL_OPTIONS.items():
            if step.options.get(option):
                argv += [flag, step.options[option]]
        if step.options.get("pre"):
            argv += ["--prerelease=allow" if uv else "--pre"]
        argv += step.options.get("extra_options", "").split()
        await self._run([*argv, *step.args], image_id, log, step.secrets)

    async def _run(self, argv: Sequence[str], image_id: str, log: Callable[[str], None], env: dict[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *argv, env={**os.environ, **env}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        last = ""

        async def follow() -> int:
            nonlocal last
            assert process.stdout is not None
            async for raw in process.stdout:
                last = raw.decode(errors="replace").rstrip()
                log(last)
            return await process.wait()

        try:
            code = await asyncio.wait_for(follow(), INSTALL_LIMIT_S)
        except asyncio.TimeoutError:
            raise ImageBuildError(f"installing packages took longer than {INSTALL_LIMIT_S:g} s", image_id) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise ImageBuildError(f"installing packages failed with exit code {code}: {last}", image_id)

    async def lend(self, image_id: str) -> Lowers:
        """There is no root file system here."""
        raise NotFoundError(f"image {image_id} has no root file system on this machine")

    def give_back(self, image_id: str) -> None:
        """Nothing was lent."""

    def image(self, image_id: str) -> Optional[ImageInfo]:
        """What is known of a built image, or None."""
        return self._images.get(image_id)

    def touch(self, image_id: str, now: float) -> None:
        """Note that the image was used at ``now`` (epoch seconds)."""
        found = self._images.get(image_id)
        if found is not None:
            self._images[image_id] = replace(found, used_at=max(now, found.used_at))

    def images(self) -> list[ImageInfo]:
        """All built images, most recently used first."""
        return sorted(self._images.values(), key=lambda one: -one.used_at)

    def remove(self, image_id: str) -> None:
        """Drop an image. NotFoundError when it is not there."""
        if self._images.pop(image_id, None) is None:
            raise NotFoundError(f"no image {image_id} is built on this machine")
        shutil.rmtree(os.path.join(self._home, image_id), ignore_errors=True)

    async def detail(self, image_id: str) -> ImageDetail:
        """All that is known of an image. NotFoundError when it is not there."""
        found = self._images.get(image_id)
        if found is None:
            raise NotFoundError(f"no image {image_id} is built on this machine")
        return ImageDetail(found)

    async def log(self, image_id: str, layers: int = 1) -> list[ImageLogLine]:
        """Nothing is kept here."""
        return []

    async def collect(self, order: CollectOrder) -> CollectReport:
        """Remove these images. They share nothing."""
        gone = tuple(one for one in order.images if one in self._images)
        for one in gone:
            if not order.dry_run:
                await asyncio.to_thread(self.remove, one)
        return CollectReport(gone)

    async def push(self, order: PushOrder, progress: Callable[[str], None]) -> str:
        """There is no root file system to push."""
        raise InvalidError(f"this machine runs functions without containers and has no images to push; {REMEDY}")

    def cleanup(self) -> None:
        """Drop what a killed process left half-made."""
        for name in os.listdir(self._home):
            if name not in self._images:
                shutil.rmtree(os.path.join(self._home, name), ignore_errors=True)

    async def close(self) -> None:
        """Nothing is open."""
