"""The support library: what of this package a container sees at ``/.cadenza/lib``, made once per content."""

from __future__ import annotations

import asyncio
import errno
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
from typing import Container

from cadenza import runner
from cadenza.agent import variables
from cadenza.base.errors import ServiceError
from cadenza.runner import bundle
from cadenza.fs.images import Bind, Lowers, RunStep, StepRun

PARTS = (
    "__init__.py", "exception.py", "compat.py", "experimental.py", "call_graph.py", "types.py", "config.py", "py.typed",
    "base", "protocol", "runner", "sdk",
)  # fmt: skip
"""What runs inside containers; the rest of the package stays out."""
PYC = re.compile(r"(\w+)\.[\w.-]{1,40}\.pyc")
BUNDLE = re.compile(r"\.code-[\w-]{1,40}")
BYTECODE_BYTES = 64 << 20
"""The most that is taken of what an image compiled."""


def _sources() -> list[tuple[str, str]]:
    """``(path in the library, path on the host)`` of every file."""
    found = []
    for name, parts in (("cadenza", PARTS), ("cloudpickle", ("",))):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise ServiceError(f"the package {name} is not installed beside the server; install it again")
        home = os.path.dirname(os.path.abspath(spec.origin))
        for part in parts:
            top = os.path.join(home, part) if part else home
            if os.path.isfile(top):
                found.append((f"{name}/{part}", top))
            for folder, folders, files in os.walk(top):
                folders[:] = sorted(one for one in folders if one != "__pycache__")
                for file in sorted(files):
                    if file.endswith((".py", ".pyi", ".typed")):
                        path = os.path.join(folder, file)
                        found.append((os.path.join(name, os.path.relpath(path, home)), path))
    return found


def prepare(data_dir: str) -> str:
    """The library's directory, ``data_dir/lib/<digest>``; others are removed. Blocks: a few ms once it is there.

    Bytecode for the host's Python lies beside it, unchecked, so that images with the same Python import it at once.
    """
    sources = _sources()
    digest = hashlib.sha256()
    contents = []
    for name, path in sources:
        with open(path, "rb") as file:
            content = file.read()
        contents.append(content)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    digest.update((importlib.util.cache_from_source("x.py")).encode())
    home = os.path.join(data_dir, "lib")
    target = os.path.join(home, digest.hexdigest()[:16])
    if not os.path.isdir(target):
        for left in glob.glob(f"{glob.escape(home)}/*.*"):  # by a server that was killed meanwhile
            shutil.rmtree(left, ignore_errors=True)
        unfinished = f"{target}.{os.getpid()}"
        try:
            for (name, _), content in zip(sources, contents):
                path = os.path.join(unfinished, name)
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content)
                os.chmod(path, 0o644)
            bundle.compile_all(unfinished, variables.LIB)
            os.chmod(unfinished, 0o755)
            os.chmod(home, 0o755)  # containers come through it
            os.rename(unfinished, target)
        except BaseException:  # a full disk: each further try would take more of it
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    for other in os.listdir(home):
        if other != os.path.basename(target) and not other.startswith(os.path.basename(target) + "-"):
            shutil.rmtree(os.path.join(home, other), ignore_errors=True)
    return target


def for_image(lib: str, image_id: str) -> str:
    """The library as containers of an image see it: with byte code for its Python, if that had to be made."""
    own = f"{lib}-{image_id}"
    return own if image_id and os.path.isdir(own) else lib


def wants_bytecode(lib: str, python: str, image_id: str) -> bool:
    """Whether an image with this Python (``major.minor``) would compile the library at each start."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return bool(lib) and python != here and for_image(lib, image_id) == lib


def trim(lib: str, image_ids: Container[str]) -> None:
    """Remove what was made for other images. Blocks."""
    for path in glob.glob(f"{glob.escape(lib)}-*"):
        if path[len(lib) + 1 :] not in image_ids:
            shutil.rmtree(path, ignore_errors=True)


async def compile_in_image(lib: str, image_id: str, lowers: Lowers, scratch: str, run_step: RunStep) -> int:
    """Make byte code of the library for an image's Python, in a container of that image. Gives the exit code.

    What runs there is the image's, and may write what it likes: into a copy, of which only byte code is taken, which
    only containers of the same image get. ``scratch``: a directory on a file system that overlays can write to.
    """
    folder = tempfile.mkdtemp(prefix="compile-", dir=scratch)
    try:
        upper, work, copy = (os.path.join(folder, name) for name in ("upper", "work", "lib"))
        os.mkdir(upper)
        os.mkdir(work)
        await asyncio.to_thread(_copy_sources, lib, copy)
        argv = tuple(runner.compile_command("python3", variables.LIB))
        binds = (Bind(copy, variables.LIB, read_only=False),)
        env = variables.base({})
        code = await run_step(
            StepRun("", lowers, upper, work, argv, env, "/", lambda data: None, binds, network=False, timeout_s=60)
        )
        if code == 0:
            await asyncio.to_thread(_keep, lib, image_id, copy)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)
    return code


def _copy_sources(lib: str, target: str) -> None:
    shutil.copytree(lib, target, ignore=shutil.ignore_patterns("__pycache__", ".code-*"))


def _keep(lib: str, image_id: str, compiled: str) -> None:
    """The library for one image: our own sources, and byte code out of ``compiled``, which is not to be trusted."""
    unfinished = f"{lib}.{os.getpid()}-{image_id}"
    shutil.rmtree(unfinished, ignore_errors=True)
    _copy_sources(lib, unfinished)
    top = os.path.realpath(compiled)
    left = BYTECODE_BYTES
    for folder, folders, files in os.walk(unfinished):
        folders[:] = [one for one in folders if one != "__pycache__"]
        stems = {one[: -len(".py")] for one in files if one.endswith(".py")}
        relative = os.path.relpath(folder, unfinished)
        for name, pattern in (("__pycache__", PYC), (".", BUNDLE)):
            source = os.path.normpath(os.path.join(top, relative, name))
            if os.path.realpath(source) != source or not os.path.isdir(source):
                continue  # a link to somewhere else
            for file in sorted(os.listdir(source)):
                found = pattern.fullmatch(file)
                if found is None or (name == "." and relative != ".") or (name != "." and found[1] not in stems):
                    continue
                content = _read_plain(os.path.join(source, file), left)
                left -= len(content)
                path = os.path.join(folder, name, file)
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with open(path, "wb") as out:
                    out.write(content)
                os.chmod(path, 0o644)
    os.rename(unfinished, f"{lib}-{image_id}")


def _read_plain(path: str, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes. OSError for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise OSError(errno.EINVAL, "byte code that an image made is no file, or too long", path)
        return file.read(limit)
