"""Steps that install packages: apt, pip, uv, poetry, micromamba. Pure: what runs is decided here. semantics.md 13.3."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

from cadenza.base.errors import InvalidError
from cadenza.fs.recipe import APT, PATH, PIP, UV, UV_CACHE, Layer, Settings, command_env, layer_of
from cadenza.protocol.objects import FileEntry, ImageStep

UV_PROJECT = "/.uv"
POETRY_PROJECT = "/.poetry"

_APT_NAME = re.compile(r"[a-z0-9][a-z0-9+.~*-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+~:-]+)?[+-]?")
_PIP_FLAGS = (("find_links", "--find-links"), ("index_url", "--index-url"), ("extra_index_url", "--extra-index-url"))
_LOCAL_PIP_ENV = {
    "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1",
    "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_PROGRESS_BAR": "off", "PIP_CACHE_DIR": "/.cadenza/cache/pip",
}  # fmt: skip
_LOCAL_UV_ENV = {
    "UV_CACHE_DIR": "/.cadenza/cache/uv", "TMPDIR": "/.cadenza/cache/uv",
    "UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never",
}  # fmt: skip


def _extra(step: ImageStep) -> list[str]:
    """The words of ``extra_options``."""
    text = step.options.get("extra_options", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidError(f"extra_options={text!r} cannot be split into words: {error}") from None


def _list(step: ImageStep, option: str) -> list[str]:
    return [one.strip() for one in step.options.get(option, "").split(",") if one.strip()]


def _python(settings: Settings, what: str) -> str:
    if not settings.python:
        raise InvalidError(f"{what} needs a Python in the image, and it has none: give it one by add_python")
    return settings.python


def _apt(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if not _APT_NAME.fullmatch(one):
            raise InvalidError(f"apt_install takes names of packages, and {one!r} is none")
    names = tuple(sorted(step.args))
    command = ("apt-get", "install", "-y", "-q", *names)
    env = command_env(step, settings)
    return settings, layer_of(
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
    flags += _extra(step)
    names = tuple(sorted(step.args))
    python = _python(settings, f"{tool}_install" if tool == "pip" else "uv_pip_install")
    if tool == "uv":
        # The environment of an image is the system's: there is no virtual environment to protect.
        command = (
            UV, "pip", "install", "--python", python, "--break-system-packages", "--compile-bytecode", *flags, *names,
        )  # fmt: skip
        env = command_env(step, settings, **_LOCAL_UV_ENV)
        caches: tuple[str, ...] = (UV_CACHE,)
    else:
        command = (python, "-m", "pip", "install", *flags, *names)
        env = command_env(step, settings, **_LOCAL_PIP_ENV)
        caches = (PIP,)
    commands = (command,) if names or flags else ()
    cwd = settings.workdir or "/"
    return settings, layer_of(
        f"{tool} install " + " ".join((*flags, *names)),
        commands=commands, env=env, cwd=cwd, caches=caches, uv_version=step.options.get("uv_version", ""),
    )  # fmt: skip


def _uv_sync(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    """The environment of a lock file at /.uv/.venv, first in PATH from here on."""
    python = _python(settings, "uv_sync")
    flags = ["--frozen"] if step.options.get("frozen") == "1" else []
    for option, flag in (("groups", "--group"), ("extras", "--extra")):
        for one in _list(step, option):
            flags += [flag, one]
    flags += _extra(step)
    command = (
        UV, "sync", "--project", UV_PROJECT, "--python", python, "--no-install-workspace", "--compile-bytecode", *flags,
    )  # fmt: skip
    venv = UV_PROJECT + "/.venv"
    env = command_env(step, settings, UV_PROJECT_ENVIRONMENT=venv, **_LOCAL_UV_ENV)
    path = f"{venv}/bin:{settings.env.get('PATH', PATH)}"
    after = replace(settings, env={**settings.env, "PATH": path, "VIRTUAL_ENV": venv}, python=venv + "/bin/python3")
    return after, layer_of(
        "uv sync " + " ".join(flags), commands=(command,), env=env, caches=(UV_CACHE,), files=_below(step, UV_PROJECT),
        uv_version=step.options.get("uv_version", ""),
    )  # fmt: skip


def _poetry(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    """A lock file's packages into the image's own Python; poetry itself comes and goes with the step."""
    python = _python(settings, "poetry_install_from_file")
    tool = POETRY_PROJECT + "/tool"
    version = step.options.get("poetry_version", "")
    flags: list[str] = []
    for option in ("with", "without", "only"):
        if _list(step, option):
            flags += ["--" + option, ",".join(_list(step, option))]
    env = command_env(
        step, settings, POETRY_VIRTUALENVS_CREATE="false", POETRY_NO_INTERACTION="1", POETRY_CACHE_DIR="/tmp/poetry",
        **_LOCAL_PIP_ENV,
    )  # fmt: skip
    if step.options.get("old_installer") == "1":
        env["POETRY_EXPERIMENTAL_NEW_INSTALLER"] = "false"
    wanted = "poetry" + (
        "" if not version or version == "latest" else version if version[0] in "=<>~!" else "==" + version
    )
    commands = (
        (python, "-m", "venv", tool),
        (tool + "/bin/python", "-m", "pip", "install", "-q", wanted),
        (tool + "/bin/poetry", "install", "--directory", POETRY_PROJECT, "--no-root", *flags),
        ("rm", "-rf", tool, "/tmp/poetry"),
    )
    return settings, layer_of(
        "poetry install " + " ".join(flags), commands=commands, env=env, caches=(PIP,),
        files=_below(step, POETRY_PROJECT),
    )  # fmt: skip


def _below(step: ImageStep, directory: str) -> tuple[FileEntry, ...]:
    for one in step.files:
        if not one.path.startswith(directory + "/"):
            raise InvalidError(f"{step.kind} takes files below {directory}, and {one.path!r} is not")
    return step.files


def _micromamba(step: ImageStep, settings: Settings) -> tuple[Settings, Layer]:
    for one in step.args:
        if one.lstrip().startswith("-"):
            raise InvalidError(f"a package may not begin with a dash: {one!r}")
    flags: list[str] = []
    for one in _list(step, "channels"):
        flags += ["--channel", one]
    if step.options.get("spec_file"):
        flags += ["--file", step.options["spec_file"]]
    names = tuple(sorted(step.args))
    command = ("micromamba", "install", "--yes", "--name", "base", *flags, *names)
    return settings, layer_of(
        "micromamba install " + " ".join((*flags, *names)), commands=(command,) if names or flags else (),
        env=command_env(step, settings), files=step.files,
    )  # fmt: skip


MAKERS = {"apt": _apt, "pip": _pip, "uv_sync": _uv_sync, "poetry": _poetry, "micromamba": _micromamba}
