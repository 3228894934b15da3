"""What files say of Python packages: requirements, pyproject.toml, lock files. Loaded when an image is resolved."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Optional, Sequence
from urllib import parse

from cadenza.base.errors import InvalidError
from cadenza.sdk.source import HashedFile, LocalFile, hash_files

if TYPE_CHECKING:
    from cadenza.sdk.recipe import Made, StepOptions

REQUIREMENTS_DIRECTORY = "/.cadenza-requirements"
UV_PROJECT = "/.uv"
POETRY_PROJECT = "/.poetry"


def pip(packages: Sequence[str], paths: Sequence[str], options: dict[str, str], step: StepOptions) -> Made:
    """The steps for packages and requirements files."""
    names = set(packages)
    whole: list[str] = []
    for path in paths:
        listed = plain_requirements(path)
        if listed is None:
            whole.append(path)
        else:
            names.update(listed)
    if not whole:
        return ([step.step("pip", sorted(names), options)] if names else []), []
    # A file with options of its own (-r, -c, --hash, ...) goes into the image as it is.
    remote = {path: f"{REQUIREMENTS_DIRECTORY}/{number}-{os.path.basename(path)}" for number, path in enumerate(whole)}
    hashed = hash_files([LocalFile(path, remote[path]) for path in whole])
    flags = " ".join(["-r " + shlex.quote(one) for one in remote.values()] + [options.get("extra_options", "")]).strip()
    from cadenza.sdk.recipe import plain

    return [
        plain(step.force).step("copy", files=[one.entry for one in hashed]),
        step.step("pip", sorted(names), {**options, "extra_options": flags}),
    ], [*hashed]


def plain_requirements(path: str) -> Optional[list[str]]:
    """The requirements in a file, or None if it has more than plain ones: options, or lines joined by ``\\``."""
    try:
        with open(path, encoding="utf8") as stream:
            text = stream.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no requirements file {path}") from None
    found = []
    for line in text.splitlines():
        line = line.split(" #", 1)[0].strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("-") or " --" in line or line.endswith("\\") or "${" in line:
            return None
        found.append(line)
    return found


def toml(path: str) -> dict[str, Any]:
    """A TOML file's content. FileNotFoundError, or InvalidError when it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise InvalidError(f"reading {path} needs Python 3.11 or the package tomli: pip install tomli") from None
    try:
        with open(path, "rb") as stream:
            found: dict[str, Any] = tomllib.loads(stream.read().decode())
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidError(f"{path} is no TOML: {error}") from None
    return found


def of_pyproject(path: str, groups: Sequence[str]) -> list[str]:
    """The dependencies of a project, and those of some of its optional groups. InvalidError where it names none."""
    project = toml(path).get("project")
    if not isinstance(project, dict) or not isinstance(project.get("dependencies"), list):
        raise InvalidError(
            f"{path} has no dependencies under [project]; for those of [tool.poetry] use poetry_install_from_file"
        )
    found = list(project["dependencies"])
    optional = project.get("optional-dependencies", {})
    for group in groups:
        if group not in optional:
            raise InvalidError(
                f"{path} has no optional dependencies {group!r}; it has {', '.join(sorted(optional)) or 'none'}"
            )
        found += optional[group]
    if not all(isinstance(one, str) for one in found):
        raise InvalidError(f"{path}: dependencies under [project] are lists of strings")
    return found


def private_commands(repositories: Sequence[str], user: str, options: dict[str, str]) -> list[str]:
    """Shell commands that install from private repositories. git alone is told the token, by variables: no command
    line, no package's record and no file of the image has it."""
    from cadenza.sdk.image_python import TOKENS

    hosts = sorted({one.partition("/")[0] for one in repositories})
    lines, count = [], 0
    exports: list[str] = []
    for host in hosts:
        token = TOKENS[host]
        lines.append(f'test -n "${token}" || {{ echo "{token} is not set by the secrets of this step" >&2; exit 1; }}')
        key = f"url.https://{parse.quote(user, safe='')}:${{{token}}}@{host}/.insteadOf"
        exports += [f'GIT_CONFIG_KEY_{count}="{key}"', f'GIT_CONFIG_VALUE_{count}="https://{host}/"']
        count += 1
    flags: list[str] = []
    for name, flag in (
        ("find_links", "--find-links"),
        ("index_url", "--index-url"),
        ("extra_index_url", "--extra-index-url"),
    ):
        if options.get(name):
            flags += [flag, options[name]]
    if options.get("pre"):
        flags.append("--pre")
    words = [*flags, *(f"git+https://{one}" for one in sorted(set(repositories)))]
    extra = options.get("extra_options", "")
    install = f"python3 -m pip install {shlex.join(words)} {extra}".rstrip()
    settings = " ".join(
        [
            "GIT_TERMINAL_PROMPT=0",
            "PIP_BREAK_SYSTEM_PACKAGES=1",
            "PIP_ROOT_USER_ACTION=ignore",
            f"GIT_CONFIG_COUNT={count}",
            *exports,
        ]
    )
    return [*lines, f"{settings} {install}"]


def uv_files(directory: str) -> list[HashedFile]:
    """A uv project's files for the image; the lock file may be missing. InvalidError for a workspace."""
    project = os.path.join(directory, "pyproject.toml")
    if not os.path.isfile(project):
        raise FileNotFoundError(f"uv_sync: no file {project}: uv_project_dir is the directory that has it")
    settings = toml(project).get("tool", {}).get("uv", {})
    members = [
        name for name, one in settings.get("sources", {}).items() if isinstance(one, dict) and one.get("workspace")
    ]
    if "workspace" in settings or members:
        raise InvalidError(
            f"uv_sync: {project} is part of a workspace, which uv_sync does not support: write what `uv export` prints "
            "into a file and use uv_pip_install(requirements=[...])"
        )
    files = [LocalFile(project, f"{UV_PROJECT}/pyproject.toml")]
    lock = os.path.join(directory, "uv.lock")
    if os.path.isfile(lock):
        files.append(LocalFile(lock, f"{UV_PROJECT}/uv.lock"))
    return hash_files(files)


def poetry_files(project: str, lock: Optional[str], ignore_lock: bool) -> list[HashedFile]:
    """A poetry project's files for the image. FileNotFoundError for a lock file that is missing."""
    if not os.path.isfile(project):
        raise FileNotFoundError(f"poetry_install_from_file: no file {project}")
    files = [LocalFile(project, f"{POETRY_PROJECT}/pyproject.toml")]
    if not ignore_lock:
        found = lock or os.path.join(os.path.dirname(project), "poetry.lock")
        if not os.path.isfile(found):
            raise FileNotFoundError(
                f"poetry_install_from_file: no lock file {found}: run `poetry lock`, or give ignore_lockfile=True"
            )
        files.append(LocalFile(found, f"{POETRY_PROJECT}/poetry.lock"))
    return hash_files(files)


def poetry_command(options: dict[str, str]) -> str:
    """The command by which the image's own poetry installs."""
    words = ["poetry", "install", "--directory", POETRY_PROJECT, "--no-root"]
    for name in ("with", "without", "only"):
        if options.get(name):
            words += [f"--{name}", options[name]]
    old = "POETRY_EXPERIMENTAL_NEW_INSTALLER=false " if options.get("old_installer") else ""
    return f"{old}POETRY_VIRTUALENVS_CREATE=false POETRY_NO_INTERACTION=1 {shlex.join(words)}"
