"""The support library: what of this package a container sees at ``/.cadenza/lib``, made once per content."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from typing import Sequence

from cadenza import runner
from cadenza.agent import variables
from cadenza.base.errors import ServiceError
from cadenza.runner import bundle
from cadenza.fs.images import Bind, RunStep, StepRun

PARTS = ("__init__.py", "exception.py", "compat.py", "py.typed", "base", "protocol", "runner", "sdk")
"""What runs inside containers; the rest of the package stays out."""


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
        unfinished = f"{target}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        for (name, _), content in zip(sources, contents):
            path = os.path.join(unfinished, name)
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, 0o644)
        bundle.compile_all(unfinished, variables.LIB)
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, target)
    for other in os.listdir(home):
        if other != os.path.basename(target):
            shutil.rmtree(os.path.join(home, other), ignore_errors=True)
    return target


def _mark(lib: str, python: str) -> str:
    return os.path.join(lib, f".compiled-{python}")


def wants_bytecode(lib: str, python: str) -> bool:
    """Whether images with this Python (``major.minor``) would compile the library at each start."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return bool(lib) and python != here and not os.path.exists(_mark(lib, python))


async def compile_in_image(lib: str, python: str, lowerdirs: Sequence[str], scratch: str, run_step: RunStep) -> int:
    """Write byte code for an image's Python beside the library, in a container of that image. Gives the exit code.

    ``scratch``: a directory on a file system that overlays can write to.
    """
    folder = tempfile.mkdtemp(prefix="compile-", dir=scratch)
    try:
        upper, work = os.path.join(folder, "upper"), os.path.join(folder, "work")
        os.mkdir(upper)
        os.mkdir(work)
        argv = tuple(runner.compile_command("python3", variables.LIB))
        binds = (Bind(lib, variables.LIB, read_only=False),)
        env = variables.base({})
        code = await run_step(
            StepRun(
                "", tuple(lowerdirs), upper, work, argv, env, "/", lambda data: None, binds, network=False, timeout_s=60
            )
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code == 0:
        with open(_mark(lib, python), "w", encoding="ascii"):
            pass
    return code
