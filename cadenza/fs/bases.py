"""What an image begins with: Debian's packages, a registry's image, micromamba, nothing, or another built image.

Each becomes a tree and what it says of containers. `Bases.add_python` puts a standalone Python into a tree of any of
them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import Awaitable, Callable, Mapping, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs import debian, host, inside, recipe
from cadenza.fs import tree as trees
from cadenza.fs.downloads import fetch_file
from cadenza.fs.ingest import ingest
from cadenza.fs.manifest import ImageConfig
from cadenza.fs.recipe import Settings
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.fs.workplace import Workplace
from cadenza.protocol.objects import ImageStep

MAMBA_URL = "CADENZA_MICROMAMBA_URL"
"""The environment variable with the address of the micromamba program, for machines that do not have it."""
MAMBA_ROOT = "/opt/conda"
PLATFORM = "linux/amd64"
LOADERS = (b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-linux-aarch64.so.1")
"""Where a standalone Python looks for the C library's loader."""


@dataclass(frozen=True)
class Base:
    """What an image begins with."""

    tree: Node
    settings: Settings
    source: str = ""
    """Of an image from a registry: its reference with the digest."""
    commands: tuple[tuple[str, ...], ...] = ()
    """To be run in a container of it before it is whole."""
    timings: dict[str, float] = field(default_factory=dict)
    blobs: tuple[str, ...] = ()
    """Of an image from a registry: the names of its layers' records in the store."""


class Bases:
    """Makes bases for one store."""

    def __init__(
        self,
        store: Store,
        cache: str,
        environ: Mapping[str, str],
        built: Callable[[str], Awaitable[tuple[bytes, Settings]]],
    ) -> None:
        """``built``: the tree and settings of a built image; NotFoundError when there is none."""
        self._store = store
        self._cache = cache
        self._environ = environ
        self._built = built
        self._one_at_a_time = asyncio.Lock()
        self.timings: dict[str, float] = {}
        """Seconds of each phase of the last Debian base made by this process, in order."""

    async def make(self, step: ImageStep, place: Workplace, progress: Callable[[str], None]) -> Base:
        """The base that a recipe's first step names. ImageBuildError, InvalidError, RemoteError say what is wrong."""
        kind = step.options.get("distribution", "debian_slim")
        if kind == "scratch":
            return Base(trees.directory(), Settings())
        if kind == "image":
            digest, settings = await self._built(step.options["image_id"])
            return Base(await asyncio.to_thread(self._store.tree, digest), settings, step.options["image_id"])
        if kind == "registry":
            return await self._registry(step, progress)
        if kind == "micromamba":
            return await self._micromamba(step, place, progress)
        return await self._debian(step, place, progress)

    async def _debian(self, step: ImageStep, place: Workplace, progress: Callable[[str], None]) -> Base:
        python = debian.check_python(step.options.get("python", ""))
        made = await self._packages(place, python, progress)
        tree = await asyncio.to_thread(ingest, place.upper, self._store, delta=False)
        settings = Settings(python=made.python, version=python, apt=f"{made.distribution}-{made.suite}")
        return Base(tree, settings, timings=dict(self.timings))

    async def _packages(self, place: Workplace, python: Optional[str], progress: Callable[[str], None]) -> debian.Base:
        found = await asyncio.to_thread(host.read, self._environ)
        async with self._one_at_a_time:  # bases of one suite share apt's state
            base = await debian.build_base(
                place.upper, python, self._cache, found.apt_conf(inside=False), self._environ, progress
            )
        self.timings = dict(base.timings.seconds)
        return base

    async def _registry(self, step: ImageStep, progress: Callable[[str], None]) -> Base:
        from cadenza.fs import oci

        pulled = await oci.pull(step.options["tag"], self._store, step.secrets, progress, platform=PLATFORM)
        reference = pulled.ref if "@" in pulled.ref else f"{pulled.ref}@{pulled.digest}"
        blobs = tuple(map(oci.record_name, (*pulled.layers, *pulled.config.diff_ids)))
        return Base(pulled.tree, from_config(pulled.config), reference, blobs=blobs)

    async def _micromamba(self, step: ImageStep, place: Workplace, progress: Callable[[str], None]) -> Base:
        program = await asyncio.to_thread(self._mamba_program, progress)
        python = debian.check_python(step.options.get("python", ""))
        made = await self._packages(place, None, progress)

        def finish() -> Node:
            for path in ("usr/local/bin", MAMBA_ROOT.lstrip("/")):
                os.makedirs(os.path.join(place.upper, path), exist_ok=True)
            target = os.path.join(place.upper, "usr/local/bin/micromamba")
            shutil.copyfile(program, target)
            os.chmod(target, 0o755)
            return ingest(place.upper, self._store, delta=False)

        tree = await asyncio.to_thread(finish)
        env = {
            "PATH": f"{MAMBA_ROOT}/bin:{recipe.PATH}", "LANG": "C.UTF-8", "MAMBA_ROOT_PREFIX": MAMBA_ROOT,
            "CONDA_PREFIX": MAMBA_ROOT,
        }  # fmt: skip
        settings = Settings(env, python=f"{MAMBA_ROOT}/bin/python3", version=python)
        settings = replace(settings, apt=f"{made.distribution}-{made.suite}")
        command = ("micromamba", "install", "--yes", "--name", "base", "--channel", "conda-forge", f"python={python}")
        return Base(tree, settings, commands=(command,))

    def _mamba_program(self, progress: Callable[[str], None]) -> str:
        """The program of this machine, or one that is fetched once."""
        found = shutil.which("micromamba", path=self._environ.get("PATH", ""))
        if found is not None:
            return found
        url = self._environ.get(MAMBA_URL, "")
        if not url:
            raise InvalidError(
                "Image.micromamba needs the micromamba program: install it on this machine, or set "
                f"{MAMBA_URL} to an address of the program itself (not of an archive)"
            )
        target = os.path.join(self._cache, "tools", "micromamba")
        if not os.path.exists(target):
            progress("fetching micromamba")
            os.makedirs(os.path.dirname(target), exist_ok=True)
            fetch_file(url, target, self._environ)
            os.chmod(target, 0o755)
        return target

    async def add_python(self, version: str, settings: Settings, place: Workplace, root: Node) -> Settings:
        """Put a standalone Python into ``place.upper`` at /usr/local, for an image that is ``root`` so far."""
        if not any(inside.at(root, one) is not None for one in LOADERS):
            raise InvalidError(
                f"add_python={version!r} needs an image with the GNU C library, and this one has none (Alpine's images "
                "have another): take one that is made from Debian, or one that has Python itself"
            )
        source = await debian.standalone_python(version, os.path.join(self._cache, "python"), "debian", self._environ)
        await asyncio.to_thread(debian.put_standalone, place.upper, source, version)
        await debian.compile_modules(place.upper, "/usr/local/bin/python3")
        path = settings.env.get("PATH", recipe.PATH)
        if "/usr/local/bin" not in path.split(":"):
            settings = replace(settings, env={**settings.env, "PATH": f"/usr/local/bin:{path}"})
        return replace(settings, python="/usr/local/bin/python3", version=version)


def from_config(said: ImageConfig) -> Settings:
    """What an OCI image's configuration says of its containers; pure. Source: the OCI image specification, config.md.

    Its user is that of commands of the build, and not of functions, which are root's (semantics.md 13.2).
    """
    return Settings(
        {"PATH": recipe.PATH, **said.env}, said.workdir.rstrip("/"), said.entrypoint, said.cmd,
        said.shell or ("/bin/sh", "-c"), user=said.user,
    )  # fmt: skip


def to_config(settings: Settings) -> ImageConfig:
    """The same the other way, for an image that goes to a registry; pure."""
    return ImageConfig(
        settings.env, settings.workdir, settings.entrypoint, settings.cmd, settings.user, settings.shell, PLATFORM
    )
