"""An image recipe becomes layers with commands. Pure: what runs is decided here, and run elsewhere."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from dataclasses import dataclass, field, replace

from cadenza.base.errors import InvalidError
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep

RECIPE = "3"
"""Changes when the same recipe would give another image than before; then images are built anew."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UV = "/.cadenza/uv"
"""Where uv is mounted for the steps that need it."""

# Caches that a step has while it runs, and the paths at which it has them. They are no part of the image.
APT = "apt"
PIP = "pip"
UV_CACHE = "uv"

_APT_NAME = re.compile(r"[a-z0-9][a-z0-9+.~*-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+~:-]+)?[+-]?")
_LOGIN = re.compile(r"://[^/\s@]+@")
"""The name and password in an address: commands get them, but logs, errors and lists do not show them."""
_PIP_FLAGS = (("find_links", "--find-links"), ("index_url", "--index-url"), ("extra_index_url", "--extra-index-url"))
_LOCAL_PIP_ENV = {
    "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off", "PIP_CACHE_DIR": "/.cadenza/cache/pip",
}  # fmt: skip
_LOCAL_UV_ENV = {
    "UV_CACHE_DIR": "/.cadenza/cache/uv", "TMPDIR": "/.cadenza/cache/uv",
    "UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is true of a container of the image beyond its files, at one point of the recipe."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "LANG": "C.UTF-8"})
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    python: str = ""


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
    directory: str = ""
    """Made if it is not there (``workdir``)."""
    python: str = ""
    """For the base: the minor asked for, or empty."""
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """The layers of a recipe, first to last, and the settings at its end (``python`` is known once the base is)."""

    layers: tuple[Layer, ...]
    settings: Settings


def plan(spec: ImageSpec, python_path: str = "/usr/bin/python3") -> Plan:
    """What to do for this recipe. ``python_path``: the base's interpreter. InvalidError for what can never be built."""
    steps = spec.steps or (ImageStep("base", options={"distribution": "debian_slim"}),)
    digests = replace(spec, steps=steps).digests()
    if steps[0].kind != "base":
        raise InvalidError(
            "an image begins with a base, such as Image.debian_slim(); this one begins with " + steps[0].kind
        )
    settings = Settings(python=python_path)
    layers = []
    forced = False
    for index, (step, digest) in enumerate(zip(steps, digests, strict=True)):
        forced = forced or step.force
        if index and step.kind == "base":
            raise InvalidError("an image has one base, and it comes first")
        make = _KINDS.get(step.kind)
        if make is None:
            raise InvalidError(f"this server cannot build an image step of the kind {step.kind!r}")
        settings, layer = make(step, settings)
        key = hashlib.sha256(f"{RECIPE} {digest}".encode()).hexdigest()
        layers.append(replace(layer, kind=step.kind, digest=key, force=forced))
    return Plan(tuple(layers), settings)


def _layer(text: str, **fields: object) -> Layer:
    shown = _LOGIN.sub("://***@", " ".join(text.split()))
    return Layer("", "", shown, **fields)  # type: ignore[arg-type]


def _command_env(step: ImageStep, settings: Settings, **more: str) -> dict[str, str]:
    return {"HOME": "/root", **settings.env, **more, **step.env, **step.secrets}


def _base(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    distribution = step.options.get("distribution", "debian_slim")
    if distribution != "debian_slim":
        raise InvalidError(f"this server makes images from debian_slim alone, not from {distribution!r}")
    python = step.options.get("python", "")
    text = "Image.debian_slim(" + (repr(python) if python else "") + ")"
    return settings, _layer(text, python=python)


def _run(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if not one.strip() or "\0" in one:
            raise InvalidError(f"run_commands needs shell commands, not {one!r}")
    commands = tuple((*settings.shell, one) for one in step.args)
    text = "RUN " + " && ".join(step.args)
    return settings, _layer(text, commands=commands, env=_command_env(step, settings), cwd=settings.workdir or "/")


def _apt(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if not _APT_NAME.fullmatch(one):
            raise InvalidError(f"apt_install takes names of packages, and {one!r} is none")
    names = tuple(sorted(step.args))
    command = ("apt-get", "install", "-y", "-q", *names)
    env = _command_env(step, settings)
    return settings, _layer(
        "apt-get install " + " ".join(names), commands=(command,) if names else (), env=env, caches=(APT,)
    )


def _pip(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if one.lstrip().startswith("-"):
            raise InvalidError(f"a package may not begin with a dash: {one!r}; give flags by extra_options")
    tool = step.options.get("tool", "pip")
    if tool not in ("pip", "uv"):
        raise InvalidError(f"packages are installed by pip or uv, not by {tool!r}")
    flags: list[str] = []
    for option, flag in _PIP_FLAGS:
        if step.options.get(option):
            flags += [flag, step.options[option]]
    if step.options.get("pre") == "1":
        flags += ["--prerelease", "allow"] if tool == "uv" else ["--pre"]
    try:
        flags += shlex.split(step.options.get("extra_options", ""))
    except ValueError as error:
        raise InvalidError(
            f"extra_options={step.options['extra_options']!r} cannot be split into words: {error}"
        ) from None
    names = tuple(sorted(step.args))
    if tool == "uv":
        # The environment of an image is the system's: there is no virtual environment to protect.
        command = (
            UV,
            "pip",
            "install",
            "--python",
            settings.python,
            "--break-system-packages",
            "--compile-bytecode",
            *flags,
            *names,
        )
        env = _command_env(step, settings, **_LOCAL_UV_ENV)
        caches: tuple[str, ...] = (UV_CACHE,)
    else:
        command = (settings.python, "-m", "pip", "install", *flags, *names)
        env = _command_env(step, settings, **_LOCAL_PIP_ENV)
        caches = (PIP,)
    commands = (command,) if names or flags else ()
    cwd = settings.workdir or "/"
    return settings, _layer(
        f"{tool} install " + " ".join((*flags, *names)), commands=commands, env=env, cwd=cwd, caches=caches
    )


def _env(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for name, value in step.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidError(f"{name!r} cannot be an environment variable")
    shown = " ".join(f"{name}={value}" for name, value in step.env.items())
    return replace(settings, env={**settings.env, **step.env}), _layer("ENV " + shown, changes=False)


def _workdir(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    if len(step.args) != 1 or not step.args[0]:
        raise InvalidError("workdir takes one path")
    path = posixpath.normpath(posixpath.join(settings.workdir or "/", step.args[0]))
    path = "/" + path.lstrip("/")
    return replace(settings, workdir=path), _layer("WORKDIR " + path, directory=path)


def _copy(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.files:
        if not one.path.startswith("/") or posixpath.normpath(one.path) != one.path.replace("//", "/"):
            raise InvalidError(f"files go to absolute paths in an image, and {one.path!r} is none")
    first = step.files[0].path if step.files else "nothing"
    text = f"COPY {first}" + (f" and {len(step.files) - 1} more" if len(step.files) > 1 else "")
    return settings, _layer(text, files=step.files)


def _entrypoint(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return replace(settings, entrypoint=step.args), _layer("ENTRYPOINT " + shlex.join(step.args), changes=False)


def _cmd(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    return replace(settings, cmd=step.args), _layer("CMD " + shlex.join(step.args), changes=False)


def _shell(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    if not step.args:
        raise InvalidError("shell takes a command, as in ['/bin/bash', '-c']")
    return replace(settings, shell=step.args), _layer("SHELL " + shlex.join(step.args), changes=False)


_KINDS = {
    "base": _base, "run": _run, "apt": _apt, "pip": _pip, "env": _env, "workdir": _workdir, "copy": _copy,
    "entrypoint": _entrypoint, "cmd": _cmd, "shell": _shell,
}  # fmt: skip
