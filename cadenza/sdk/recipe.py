"""The links of an `Image`'s chain: steps that make layers and mounts of local files; and their resolution.

A link is made when the user calls a method, and reads no file then. `resolve` turns a chain into what the server is
told. Bases are in `cadenza.sdk.bases`, Python packages in `image_python`, Dockerfiles in `stages`.
"""

from __future__ import annotations

import os
import posixpath

from cadenza.base import demand
from cadenza.base.errors import InvalidError
from cadenza.sdk._light import record
from cadenza.sdk.secret import check_secrets, check_variables, merge, references

TYPE_CHECKING = False  # what resolving needs, hashlib above all, is loaded when a chain is resolved
if TYPE_CHECKING:
    from pathlib import PurePath
    from typing import Any, Callable, Mapping, Optional, Sequence, Union

    from cadenza.protocol.objects import BuildFunction, FileEntry, ImageSpec, ImageStep
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.secret import Secret
    from cadenza.sdk.source import HashedFile, LocalFile, Upload

    Gpu = Union[str, Sequence[Optional[str]], None]
    Made = tuple[list[ImageStep], list[Union[HashedFile, Upload]]]
    """Steps, and the content that the server must have to build them."""

DEFAULT_TIMEOUT_S = 3600.0


@record
class StepOptions:
    """What all building methods take. ``env`` and ``secrets`` are seen by the step's commands and not by the image."""

    force: bool
    env: dict[str, str]
    secrets: tuple[Secret, ...]
    numbers: Optional[demand.Numbers] = None
    """What the step's container may have, as `demand.read` says it; None: what the server gives builds."""
    timeout_s: float = DEFAULT_TIMEOUT_S

    @staticmethod
    def read(
        where: str,
        force: object,
        env: object,
        secrets: object,
        gpu: Gpu,
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> StepOptions:
        """Checked at the call. InvalidError for wrong types."""
        asked = demand.gpus(gpu) or cpu is not None or memory is not None
        variables = check_variables(env, f"{where}: env", drop_none=True) if env is not None else {}
        numbers = demand.read(cpu, memory, gpu) if asked else None
        return StepOptions(bool(force), variables, check_secrets(secrets, where), numbers, timeout_s)

    def step(
        self,
        kind: str,
        args: Sequence[str] = (),
        options: Optional[dict[str, str]] = None,
        files: Sequence[FileEntry] = (),
        images: Sequence[ImageSpec] = (),
        function: Optional[BuildFunction] = None,
    ) -> ImageStep:
        """A step with these options. A change of ``env`` makes another layer, a change of a secret's value does not."""
        from cadenza.base import resources
        from cadenza.protocol.objects import ImageStep

        stored = [one for one in self.secrets if one._is_stored]
        variables = {**({} if stored else merge(self.secrets)), **self.env}
        keys = {*merge(self.secrets), *self.env, *(f"secret {one._environment}/{one.name}" for one in stored)}
        found = dict(options or {})
        if self.env:
            import hashlib
            import json

            found["env_digest"] = hashlib.sha256(json.dumps(self.env, sort_keys=True).encode()).hexdigest()
        return ImageStep(
            kind,
            tuple(args),
            options=found,
            files=tuple(files),
            secrets=variables,
            secret_keys=tuple(sorted(keys)),
            force=self.force,
            secret_refs=references(self.secrets) if stored else (),
            images=tuple(images),
            function=function,
            resources=None if self.numbers is None else resources.of(self.numbers),
            timeout_s=self.timeout_s,
        )


def plain(force: object = False) -> StepOptions:
    """The options of a step without any."""
    return StepOptions(bool(force), {}, ())


@record
class Wanted:
    """An image that the server has: by its id, or by its name in an environment."""

    image_id: str = ""
    name: str = ""
    environment: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """By which `resolve` is told its id."""
        return self.image_id, self.name, self.environment


@record
class Step:
    """A link that makes layers. ``name`` is the method's; ``make`` reads what it needs."""

    name: str
    make: Callable[[], Made]
    wanted: Optional[Wanted] = None
    """Begins with this image; ``make`` makes nothing then."""


@record
class Mount:
    """A link whose files are mounted when a container starts. ``list`` names them."""

    name: str
    list: Callable[[], list[LocalFile]]


@record
class Resolved:
    """A chain as the server is told it: the recipe, the files mounted at start, and all content to send."""

    spec: ImageSpec
    mounts: tuple[FileEntry, ...]
    files: tuple[Union[HashedFile, Upload], ...]


def wanted(links: Sequence[Union[Step, Mount]]) -> list[Wanted]:
    """The images of the server that a chain begins with: `resolve` takes their ids."""
    return [link.wanted for link in links if isinstance(link, Step) and link.wanted is not None]


def resolve(links: Sequence[Union[Step, Mount]], ids: Optional[Mapping[tuple[str, str, str], str]] = None) -> Resolved:
    """Read the files and check the order. ``ids``: of the images that the chain begins with, by `Wanted.key`.

    InvalidError for a step after files that are mounted at start.
    """
    from cadenza.protocol.objects import ImageSpec
    from cadenza.sdk.source import hash_files

    steps: list[ImageStep] = []
    files: list[Union[HashedFile, Upload]] = []
    local: list[LocalFile] = []
    mounted = built = ""
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
        if link.wanted is not None:
            built = (ids or {}).get(link.wanted.key, "") or link.wanted.image_id
            if not built:
                raise InvalidError(f"the image {link.wanted.name!r} was not looked up: its id is not known")
            continue
        made, read = link.make()
        steps.extend(made)
        files.extend(read)
    hashed = hash_files(local)
    if built and steps:
        steps.insert(0, plain().step("base", options={"distribution": "image", "image_id": built}))
    spec = ImageSpec(tuple(steps)) if steps else ImageSpec(built=built)
    return Resolved(spec, tuple(one.entry for one in hashed), (*files, *hashed))


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
        flags = [word for word in name.split() if word.startswith("-")]
        if flags:
            more = "; options go into extra_options" if where.endswith("pip_install") else ""
            what = "is an option and not a package" if flags == [name.strip()] else f"holds an option, {flags[0]}"
            raise InvalidError(f"{where}: {name!r} {what}{more}")


def path(where: str, name: str, value: object) -> str:
    """A path as text. InvalidError for what is none."""
    try:
        found = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if not isinstance(found, str) or not found or "\0" in found:
        shown = repr(value) if isinstance(value, (str, bytes)) else type(value).__name__
        raise InvalidError(f"{where}: {name} must be a path, not {shown}")
    return found


def absolute(where: str, remote: Union[str, PurePath]) -> str:
    """A path in the container as text. InvalidError if it is relative."""
    text = path(where, "remote_path", remote)
    if not text.startswith("/"):
        raise InvalidError(f"{where}: remote_path must be absolute, such as /root/{text}; got {text!r}")
    clean = posixpath.normpath(text)
    clean = clean[1:] if clean.startswith("//") else clean
    return clean + "/" if text.endswith("/") and clean != "/" else clean


# --- the steps ---


def apt(names: Sequence[str], step: StepOptions) -> Step:
    """Debian packages."""
    return Step("apt_install", lambda: ([step.step("apt", sorted(set(names)))], []))


def run(lines: Sequence[str], step: StepOptions) -> Step:
    """Shell commands."""
    return Step("run_commands", lambda: ([step.step("run", lines)], []))


def env(variables: Mapping[str, str]) -> Step:
    """Variables of the image."""
    checked = check_variables(variables, "Image.env")

    def make() -> Made:
        from cadenza.protocol.objects import ImageStep

        return [ImageStep("env", env=checked)], []

    return Step("env", make)


def setting(kind: str, values: Sequence[str]) -> Step:
    """``workdir``, ``entrypoint``, ``cmd`` or ``shell``. InvalidError if it is not a list of strings."""
    if isinstance(values, str) or not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise InvalidError(f'Image.{kind} takes a list of strings such as ["sh", "-c"]')
    args = tuple(values)
    return Step(kind, lambda: ([plain().step(kind, args)], []))


# --- local files ---


def _local(name: str, copy: bool, files: Callable[[], list[LocalFile]]) -> Union[Step, Mount]:
    if not copy:
        return Mount(name, files)

    def make() -> Made:
        from cadenza.sdk.source import hash_files

        hashed = hash_files(files())
        return [plain().step("copy", files=[one.entry for one in hashed])], [*hashed]

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
