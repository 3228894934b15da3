"""The links of an `Image`'s chain: steps that make layers and mounts of local files; and their resolution.

A link is made when the user calls a method, and reads no file then. `resolve` turns a chain into what the server is
told.
"""

from __future__ import annotations

import os
import posixpath
import sys
from cadenza.base import demand
from cadenza.base.errors import InvalidError, UnimplementedError
from cadenza.sdk._light import record
from cadenza.sdk.secret import check_secrets, check_variables, merge, references

TYPE_CHECKING = False  # what resolving needs, hashlib above all, is loaded when a chain is resolved
if TYPE_CHECKING:
    from pathlib import PurePath
    from typing import Any, Callable, Mapping, Optional, Sequence, Union

    from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep, SecretRef
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.secret import Secret
    from cadenza.sdk.source import HashedFile, LocalFile

    Gpu = Union[str, Sequence[Optional[str]], None]

PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
REQUIREMENTS_DIRECTORY = "/.cadenza-requirements"


@record
class StepOptions:
    """What all building methods take. ``env`` and ``secrets`` are seen by the step's commands and not by the image."""

    force: bool
    env: dict[str, str]
    secrets: tuple[Secret, ...]

    @staticmethod
    def read(where: str, force: bool, env: object, secrets: object, gpu: Gpu) -> StepOptions:
        """Checked at the call. InvalidError for wrong types, UnimplementedError for a GPU."""
        if demand.gpus(gpu):
            raise UnimplementedError(f"{where}(gpu=...): building with a GPU is not built yet; leave gpu out")
        variables = check_variables(env, f"{where}: env", drop_none=True) if env is not None else {}
        return StepOptions(bool(force), variables, check_secrets(secrets, where))

    def step(self, kind: str, args: Sequence[str] = (), options: Optional[dict[str, str]] = None) -> ImageStep:
        """A step with these options. A change of ``env`` makes another layer, a change of a secret's value does not."""
        stored = [one for one in self.secrets if one._is_stored]
        variables = {**({} if stored else merge(self.secrets)), **self.env}
        keys = {*merge(self.secrets), *self.env, *(f"secret {one._environment}/{one.name}" for one in stored)}
        found = dict(options or {})
        if self.env:
            import hashlib
            import json

            found["env_digest"] = hashlib.sha256(json.dumps(self.env, sort_keys=True).encode()).hexdigest()
        return _step(
            kind,
            tuple(args),
            options=found,
            secrets=variables,
            secret_keys=tuple(sorted(keys)),
            force=self.force,
            secret_refs=references(self.secrets) if stored else (),
        )


def _step(
    kind: str,
    args: tuple[str, ...] = (),
    options: Optional[dict[str, str]] = None,
    env: Optional[dict[str, str]] = None,
    files: tuple[FileEntry, ...] = (),
    secrets: Optional[dict[str, str]] = None,
    secret_keys: tuple[str, ...] = (),
    force: bool = False,
    secret_refs: tuple[SecretRef, ...] = (),
) -> ImageStep:
    from cadenza.protocol.objects import ImageStep

    return ImageStep(kind, args, options or {}, env or {}, files, secrets or {}, secret_keys, force, secret_refs)


@record
class Step:
    """A link that makes layers. ``name`` is the method's; ``make`` reads what it needs."""

    name: str
    make: Callable[[], tuple[list[ImageStep], list[HashedFile]]]


@record
class Mount:
    """A link whose files are mounted when a container starts. ``list`` names them."""

    name: str
    list: Callable[[], list[LocalFile]]


@record
class Resolved:
    """A chain as the server is told it: the recipe, the files mounted at start, and all files to send."""

    spec: ImageSpec
    mounts: tuple[FileEntry, ...]
    files: tuple[HashedFile, ...]


def resolve(links: Sequence[Union[Step, Mount]]) -> Resolved:
    """Read the files and check the order. InvalidError for a step after files that are mounted at start."""
    from cadenza.protocol.objects import ImageSpec
    from cadenza.sdk.source import hash_files

    steps: list[ImageStep] = []
    files: list[HashedFile] = []
    local: list[LocalFile] = []
    mounted = ""
    for link in links:
        if isinstance(link, Mount):
            mounted = mounted or link.name
            local.extend(link.list())
            continue
        if mounted:
            raise InvalidError(
                f"{link.name} comes after {mounted}, whose files are mounted only when a container starts: "
                f"move {mounted} to the end of the image, or make the files a layer with {mounted}(..., copy=True)"
            )
        made, read = link.make()
        steps.extend(made)
        files.extend(read)
    hashed = hash_files(local)
    return Resolved(ImageSpec(tuple(steps)), tuple(one.entry for one in hashed), (*files, *hashed))


# --- checks ---


def flatten(where: str, values: Sequence[Any]) -> list[str]:
    """Strings and lists of strings as one list. InvalidError for anything else."""
    found: list[str] = []
    for value in values:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(one, str):
                raise InvalidError(f"{where} takes strings or lists of strings, not {type(one).__name__}")
            found.append(one)
    return found


def check_no_flags(where: str, names: Sequence[str]) -> None:
    """InvalidError for an empty name or an option among package names."""
    for name in names:
        if not name.strip():
            raise InvalidError(f"{where}: a package's name is empty")
        if name.lstrip().startswith("-"):
            more = "" if where == "apt_install" else "; options go into extra_options"
            raise InvalidError(f"{where}: {name!r} is an option and not a package{more}")


def absolute(where: str, path: Union[str, PurePath]) -> str:
    """A path in the container as text. InvalidError if it is relative."""
    text = os.fspath(path)
    if not text.startswith("/"):
        raise InvalidError(f"{where}: remote_path must be absolute, such as /root/{text}; got {text!r}")
    clean = posixpath.normpath(text)
    clean = clean[1:] if clean.startswith("//") else clean
    return clean + "/" if text.endswith("/") and clean != "/" else clean


# --- the steps ---


def debian_slim(python_version: Optional[str], force: bool) -> Step:
    """Debian with a Python."""

    def make() -> tuple[list[ImageStep], list[HashedFile]]:
        version = python_version or f"{sys.version_info[0]}.{sys.version_info[1]}"
        if version not in PYTHON_VERSIONS:
            hint = "only major.minor, " if version.count(".") != 1 else ""
            whose = (
                "python_version"
                if python_version
                else "this process's Python, taken because python_version is not given,"
            )
            raise InvalidError(
                f"debian_slim: {whose} is {version}; it must be {hint}one of {', '.join(PYTHON_VERSIONS)}"
            )
        return [_step("base", options={"distribution": "debian_slim", "python": version}, force=force)], []

    return Step("debian_slim", make)


def pip_options(
    tool: str,
    find_links: Optional[str],
    index_url: Optional[str],
    extra_index_url: Optional[str],
    pre: bool,
    extra_options: str,
) -> dict[str, str]:
    """The options of a ``pip`` step. InvalidError for what is not text."""
    given = {
        "find_links": find_links,
        "index_url": index_url,
        "extra_index_url": extra_index_url,
        "extra_options": extra_options,
    }
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise InvalidError(f"{name} must be a string, not {type(value).__name__}")
    found = {name: value for name, value in given.items() if value}
    if pre:
        found["pre"] = "1"
    return {"tool": tool, **found}


def pip(
    name: str, packages: Sequence[str], options: dict[str, str], step: StepOptions, requirements: Sequence[str] = ()
) -> Step:
    """Python packages, by name and from requirements files."""
    paths = [os.path.abspath(one) for one in requirements]

    def make() -> tuple[list[ImageStep], list[HashedFile]]:
        from cadenza.sdk.source import LocalFile, hash_files

        names = set(packages)
        whole: list[str] = []
        for path in paths:
            plain = plain_requirements(path)
            if plain is None:
                whole.append(path)
            else:
                names.update(plain)
        if not whole:
            return ([step.step("pip", sorted(names), options)] if names else []), []
        # A file with options of its own (-r, -c, --hash, ...) goes into the image as it is.
        remote = {
            path: f"{REQUIREMENTS_DIRECTORY}/{number}-{os.path.basename(path)}" for number, path in enumerate(whole)
        }
        hashed = hash_files([LocalFile(path, remote[path]) for path in whole])
        flags = " ".join(["-r " + _quote(one) for one in remote.values()] + [options.get("extra_options", "")]).strip()
        return [
            _step("copy", files=tuple(one.entry for one in hashed), force=step.force),
            step.step("pip", sorted(names), {**options, "extra_options": flags}),
        ], hashed

    return Step(name, make)


def _quote(text: str) -> str:
    import shlex

    return shlex.quote(text)


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


def apt(names: Sequence[str], step: StepOptions) -> Step:
    """Debian packages."""
    return Step("apt_install", lambda: ([step.step("apt", sorted(set(names)))], []))


def run(lines: Sequence[str], step: StepOptions) -> Step:
    """Shell commands."""
    return Step("run_commands", lambda: ([step.step("run", lines)], []))


def env(variables: Mapping[str, str]) -> Step:
    """Variables of the image."""
    checked = check_variables(variables, "Image.env")
    return Step("env", lambda: ([_step("env", env=checked)], []))


def setting(kind: str, values: Sequence[str]) -> Step:
    """``workdir``, ``entrypoint``, ``cmd`` or ``shell``. InvalidError if it is not a list of strings."""
    if isinstance(values, str) or not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise InvalidError(f'Image.{kind} takes a list of strings such as ["sh", "-c"]')
    args = tuple(values)
    return Step(kind, lambda: ([_step(kind, args)], []))


# --- local files ---


def _local(name: str, copy: bool, files: Callable[[], list[LocalFile]]) -> Union[Step, Mount]:
    if not copy:
        return Mount(name, files)

    def make() -> tuple[list[ImageStep], list[HashedFile]]:
        from cadenza.sdk.source import hash_files

        hashed = hash_files(files())
        return [_step("copy", files=tuple(one.entry for one in hashed))], hashed

    return Step(name, make)


def local_file(local: str, remote: str, copy: bool) -> Union[Step, Mount]:
    """One file."""

    def files() -> list[LocalFile]:
        from cadenza.sdk.source import LocalFile

        if os.path.isdir(local):
            raise InvalidError(f"add_local_file: {local} is a directory: use add_local_dir")
        if not os.path.exists(local):
            raise FileNotFoundError(f"add_local_file: no file {local}")
        return [LocalFile(local, remote + os.path.basename(local) if remote.endswith("/") else remote)]

    return _local("add_local_file", copy, files)


def local_dir(local: str, remote: str, copy: bool, ignore: Ignore) -> Union[Step, Mount]:
    """A directory's files."""

    def files() -> list[LocalFile]:
        from cadenza.sdk.source import directory_source

        if os.path.isfile(local):
            raise InvalidError(f"add_local_dir: {local} is a file: use add_local_file")
        if not os.path.isdir(local):
            raise FileNotFoundError(f"add_local_dir: no directory {local}")
        return directory_source(local, remote, ignore)

    return _local("add_local_dir", copy, files)


def python_source(modules: Sequence[str], copy: bool, ignore: Ignore) -> Union[Step, Mount]:
    """Modules and packages."""

    def files() -> list[LocalFile]:
        from cadenza.sdk.source import package_source

        return [file for module in modules for file in package_source(module, ignore)]

    return _local("add_local_python_source", copy, files)
