"""An image recipe becomes layers with commands. Pure: what runs is decided here, and run elsewhere."""

from __future__ import annotations

import hashlib
import platform
import posixpath
import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Callable, Optional

from cadenza.base.errors import InvalidError
from cadenza.base.resources import Resources
from cadenza.protocol.objects import BuildFunction, FileEntry, ImageSpec, ImageStep

RECIPE = "5"
"""Changes when the same recipe would give another image than before; then images are built anew."""

MACHINE = platform.machine()
"""This machine's architecture, as ``uname -m`` says it: what was built on another does not run here."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UV = "/.cadenza/uv"
"""Where uv is mounted for the steps that need it."""

# Caches that a step has while it runs, and the paths at which it has them. They are no part of the image.
APT = "apt"
PIP = "pip"
UV_CACHE = "uv"

_MINOR = re.compile(r"3\.\d{1,2}t?")
_LOGIN = re.compile(r"://[^/\s@]+@")
"""The name and password in an address: commands get them, but logs, errors and lists do not show them."""


@dataclass(frozen=True)
class Settings:
    """What is true of a container of the image beyond its files, at one point of the recipe."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "LANG": "C.UTF-8"})
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    python: str = ""
    """The interpreter's path; empty: none is known."""
    version: str = ""
    """Its minor version, ``3.11``; empty: not known, or there is none."""
    user: str = ""
    """Whose commands of the build are, as USER says it: a name or number, or two with a colon. Functions are root's."""
    apt: str = ""
    """Which of apt's caches is the base's own, as in ``debian-bookworm``."""
    own_cmd: bool = False
    """``cmd`` is of a Dockerfile's CMD, not of the base; the base's ends with a new ENTRYPOINT."""


@dataclass(frozen=True)
class Copy:
    """Files of another tree that a step puts into the image, as COPY and ADD say it."""

    sources: tuple[str, ...]
    """Absolute paths in the source tree, in which ``*``, ``?`` and ``[...]`` match within one name. A directory means
    what is in it."""
    target: str
    """Absolute. With a slash at its end, or with several sources: a directory."""
    image: Optional[ImageSpec] = None
    """Whose tree the sources are in; None: that of the layer's ``files``."""
    owner: str = ""
    """``user[:group]``, names or numbers; empty: root's, or as in ``image``."""
    mode: int = -1
    """Permissions; below 0: as they are in the source."""
    unpack: bool = False
    """Sources that are tar archives are unpacked (ADD)."""
    url: str = ""
    """Fetch this instead of taking ``sources``; one file (ADD)."""
    texts: tuple[tuple[str, str], ...] = ()
    """Files that the recipe itself holds, by name, instead of ``sources`` (here-documents)."""


@dataclass(frozen=True)
class Layer:
    """One step of a recipe, decided. A step that changes settings alone makes no layer on disk (``changes`` False)."""

    kind: str
    digest: str
    text: str
    """For people, on one line."""
    changes: bool = True
    commands: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = field(default_factory=dict, repr=False)
    """The commands' environment: the image's, the step's, its secrets'."""
    cwd: str = "/"
    caches: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    """Put into the image before commands run; with ``copies``: the tree that they take from."""
    copies: tuple[Copy, ...] = ()
    folders: tuple[str, ...] = ()
    """With ``copies``: directories of the tree that they take from in which there are no files."""
    directory: str = ""
    """Made if it is not there (``workdir``)."""
    base: Optional[ImageStep] = None
    """The base that begins an image; what it says of settings is known once it is made."""
    python: str = ""
    """A standalone Python of this version comes into /usr/local, unless the image has it."""
    function: Optional[BuildFunction] = None
    user: str = ""
    """Whose the commands are; see `Settings.user`."""
    uv_version: str = ""
    resources: Optional[Resources] = None
    timeout_s: float = 3600.0
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Also in ``env``; for bases what a registry wants."""
    force: bool = False
    notes: tuple[str, ...] = ()
    """What is passed over: lines for the build's log."""


@dataclass(frozen=True)
class Step:
    """A step of a recipe with its key: steps with equal keys are one layer."""

    step: ImageStep
    key: str
    """64 hex digits."""
    force: bool


def steps(spec: ImageSpec, machine: str = MACHINE) -> tuple[Step, ...]:
    """The recipe's steps on a machine of this architecture; without any it is the plain base.

    InvalidError when it does not begin with a base.
    """
    wanted = spec.steps or (ImageStep("base", options={"distribution": "debian_slim"}),)
    if wanted[0].kind != "base":
        raise InvalidError(
            "an image begins with a base, such as Image.debian_slim(); this one begins with " + wanted[0].kind
        )
    if any(one.kind == "base" for one in wanted[1:]):
        raise InvalidError("an image has one base, and it comes first")
    for one in wanted:
        if one.kind not in KINDS:
            raise InvalidError(f"this server cannot build an image step of the kind {one.kind!r}")
    found = []
    forced = False
    for one, digest in zip(wanted, replace(spec, steps=wanted).digests(), strict=True):
        forced = forced or one.force or any(inner.force for spec in one.images for inner in spec.all_steps())
        found.append(Step(one, hashlib.sha256(f"{RECIPE} {machine} {digest}".encode()).hexdigest(), forced))
    return tuple(found)


def evaluate(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    """What a step does, and the settings after it. InvalidError for what can never be built.

    The layer's ``digest`` and ``force`` are the caller's to set (`steps`).
    """
    settings, layer = _makers()[step.kind](step, settings)
    return settings, replace(
        layer, kind=step.kind, resources=step.resources, timeout_s=step.timeout_s, secrets=step.secrets
    )


def touches_files(layer: Layer) -> bool:
    """Whether the layer changes files, or may."""
    return bool(
        layer.base or layer.python or layer.commands or layer.function or layer.files or layer.copies or layer.directory
    )


@dataclass(frozen=True)
class Plan:
    """The layers of a recipe, first to last, and the settings at its end (``python`` is known once the base is)."""

    layers: tuple[Layer, ...]
    settings: Settings


def plan(spec: ImageSpec, python_path: str = "/usr/bin/python3") -> Plan:
    """What would be done for a recipe whose base has this interpreter. InvalidError for what can never be built."""
    settings = Settings(python=python_path)
    layers = []
    for one in steps(spec):
        settings, layer = evaluate(one.step, settings)
        layers.append(replace(layer, digest=one.key, force=one.force))
    return Plan(tuple(layers), settings)


def shown(text: str) -> str:
    """A text without the passwords of addresses in it."""
    return _LOGIN.sub("://***@", text)


def layer_of(text: str, **fields: object) -> Layer:
    """A layer by what it says of itself, in which no password of an address is shown."""
    return Layer("", "", shown(" ".join(text.split())), **fields)  # type: ignore[arg-type]


def command_env(step: ImageStep, settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a step's commands."""
    return {"HOME": "/root", **settings.env, **more, **step.env, **step.secrets}


def _base(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    distribution = step.options.get("distribution", "debian_slim")
    python = step.options.get("python", "")
    if distribution == "debian_slim":
        text = "Image.debian_slim(" + (repr(python) if python else "") + ")"
    elif distribution == "registry":
        if not step.options.get("tag"):
            raise InvalidError("from_registry needs the name of an image, as in 'python:3.12-slim'")
        text = f"Image.from_registry({step.options['tag']!r})"
    elif distribution == "micromamba":
        text = "Image.micromamba(" + (repr(python) if python else "") + ")"
    elif distribution == "scratch":
        text = "Image.from_scratch()"
    elif distribution == "image":
        if not step.options.get("image_id", "").startswith("im-"):
            raise InvalidError(f"{step.options.get('image_id', '')!r} is no image: ids begin with im-")
        text = f"Image.from_id({step.options['image_id']!r})"
    else:
        raise InvalidError(f"this server has no base {distribution!r}")
    return settings, layer_of(text, base=step)


def _add_python(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    version = step.options.get("version", "")
    if not _MINOR.fullmatch(version):
        raise InvalidError(f"add_python takes a version of the form 'major.minor', as in '3.12', not {version!r}")
    return settings, layer_of(f"add Python {version}", python=version)


def _run(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if not one.strip() or "\0" in one:
            raise InvalidError(f"run_commands needs shell commands, not {one!r}")
    commands = tuple((*settings.shell, one) for one in step.args)
    text = "RUN " + " && ".join(step.args)
    return settings, layer_of(
        text, commands=commands, env=command_env(step, settings), cwd=settings.workdir or "/", user=settings.user
    )


def _env(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for name, value in step.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidError(f"{name!r} cannot be an environment variable")
    shown = " ".join(f"{name}={value}" for name, value in step.env.items())
    return replace(settings, env={**settings.env, **step.env}), layer_of("ENV " + shown, changes=False)


def _workdir(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    if len(step.args) != 1 or not step.args[0]:
        raise InvalidError("workdir takes one path")
    path = posixpath.normpath(posixpath.join(settings.workdir or "/", step.args[0]))
    path = "/" + path.lstrip("/")
    return replace(settings, workdir=path), layer_of("WORKDIR " + path, directory=path)


def _copy(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.files:
        if not one.path.startswith("/") or posixpath.normpath(one.path) != one.path.replace("//", "/"):
            raise InvalidError(f"files go to absolute paths in an image, and {one.path!r} is none")
    first = step.files[0].path if step.files else "nothing"
    text = f"COPY {first}" + (f" and {len(step.files) - 1} more" if len(step.files) > 1 else "")
    return settings, layer_of(text, files=step.files)


def _entrypoint(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return replace(settings, entrypoint=step.args), layer_of("ENTRYPOINT " + shlex.join(step.args), changes=False)


def _cmd(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return replace(settings, cmd=step.args), layer_of("CMD " + shlex.join(step.args), changes=False)


def _shell(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    if not step.args:
        raise InvalidError("shell takes a command, as in ['/bin/bash', '-c']")
    return replace(settings, shell=step.args), layer_of("SHELL " + shlex.join(step.args), changes=False)


def _function(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    function = step.function
    if function is None or not (function.serialized or (function.module and function.qualname)):
        raise InvalidError("run_function needs a function, and this step has none")
    if not settings.python:
        raise InvalidError(
            f"run_function({function.qualname}) needs a Python in the image, and it has none: give it one by add_python"
        )
    env = command_env(step, settings)
    text = "run_function " + (function.qualname or "a function")
    return settings, layer_of(text, function=function, env=env, cwd=settings.workdir or "/")


_Maker = Callable[[ImageStep, Settings], tuple[Settings, Layer]]

KINDS = (
    "base", "python", "run", "apt", "pip", "uv_sync", "poetry", "micromamba", "function", "env", "workdir", "copy",
    "entrypoint", "cmd", "shell", "docker",
)  # fmt: skip


def _docker(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    from cadenza.fs import docker

    return docker.evaluate(step, settings)


def _makers() -> dict[str, _Maker]:
    from cadenza.fs import installs

    return {
        "base": _base, "python": _add_python, "run": _run, "env": _env, "workdir": _workdir, "copy": _copy,
        "entrypoint": _entrypoint, "cmd": _cmd, "shell": _shell, "function": _function, "docker": _docker,
        **installs.MAKERS,
    }  # fmt: skip
