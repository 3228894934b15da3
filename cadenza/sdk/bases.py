"""Where images begin: Debian, a registry, micromamba, a Dockerfile, an image that is there. semantics.md 13.2."""

from __future__ import annotations

import os
import sys

from cadenza.base.errors import InvalidError
from cadenza.runner.context import current as container
from cadenza.sdk import _dual, recipe
from cadenza.sdk.names import check_image_name
from cadenza.sdk.patterns import AUTO_DOCKERIGNORE
from cadenza.sdk.recipe import Step, StepOptions, Wanted, plain
from cadenza.sdk.secret import Secret, check_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Mapping, Optional, Sequence, Union

    from cadenza.sdk.client import Client
    from cadenza.sdk.image import Env, Image, Secrets
    from cadenza.sdk.patterns import Ignore
    from cadenza.sdk.recipe import Gpu, Made

PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t", "3.15", "3.15t")
REGISTRY, AWS, GCP = "registry", "AWS", "Google Cloud"
REGISTRY_KEYS = {
    REGISTRY: ("REGISTRY_USERNAME", "REGISTRY_PASSWORD"),
    AWS: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ROLE_ARN"),
    GCP: ("SERVICE_ACCOUNT_JSON",),
}
"""The variables by which it is seen what kind of registry a secret opens."""


class Bases:
    """The constructors of `Image`."""

    @staticmethod
    def debian_slim(python_version: Optional[str] = None, force_build: bool = False) -> Image:
        """Debian with Python and without compilers, which ``apt_install("build-essential")`` adds. ``python_version``
        is "major.minor"; None is this process's own."""
        _text_or_none("debian_slim", "python_version", python_version)
        return _image(debian_slim(python_version, force_build))

    @staticmethod
    def from_registry(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """An image of a registry, such as ``"python:3.12-slim"``, for linux/amd64. It needs a Python, or
        ``add_python="3.12"`` puts one into /usr/local, after ``setup_dockerfile_commands``. ``secret``: for a private
        registry, with REGISTRY_USERNAME and REGISTRY_PASSWORD, AWS keys, or SERVICE_ACCOUNT_JSON.

        A tag is fetched once; ``force_build=True`` looks again. InvalidError for a secret with keys of two kinds.
        """
        return _registry("from_registry", tag, secret, None, setup_dockerfile_commands, force_build, add_python, kwargs)

    @staticmethod
    def from_gcp_artifact_registry(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """`from_registry` with a secret that holds SERVICE_ACCOUNT_JSON, a service account's key."""
        name = "from_gcp_artifact_registry"
        return _registry(name, tag, secret, GCP, setup_dockerfile_commands, force_build, add_python, kwargs)

    @staticmethod
    def from_aws_ecr(
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: Optional[str] = None,
        **kwargs: Any,
    ) -> Image:
        """`from_registry` with a secret that holds AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. AWS_ROLE_ARN alone is
        refused when the image is built: nobody here could vouch for it."""
        return _registry("from_aws_ecr", tag, secret, AWS, setup_dockerfile_commands, force_build, add_python, kwargs)

    @staticmethod
    def from_dockerfile(
        path: Union[str, Path],
        *,
        force_build: bool = False,
        context_dir: Union[str, Path, None] = None,
        ignore: Ignore = AUTO_DOCKERIGNORE,
        build_args: Mapping[str, str] = {},
        registry_secret: Optional[Secret] = None,
        secrets: Secrets = None,
        env: Env = None,
        gpu: Gpu = None,
        add_python: Optional[str] = None,
    ) -> Image:
        """What a Dockerfile describes: its last stage. COPY and ADD take files below ``context_dir`` (None: the working
        directory), without those that ``.dockerignore``, or ``ignore``, names. The file is read when the image is
        resolved; its faults are InvalidErrors that name file and line."""
        where = "from_dockerfile"
        options = StepOptions.read(where, force_build, env, secrets, gpu)
        arguments = check_variables(build_args, f"{where}: build_args")
        credentials = _check_registry_secret(where, registry_secret, None)
        source = os.path.abspath(path)
        context = os.path.abspath(os.getcwd() if context_dir is None else context_dir)
        check_ignore(ignore)
        _text_or_none(where, "add_python", add_python)

        def make() -> Made:
            from cadenza.sdk import stages

            build = stages.Build(context, ignore, arguments, options, credentials)
            made, files = build.dockerfile(source)
            return made + _add_python(where, add_python), files

        return _image(Step(where, make))

    @staticmethod
    def from_scratch(force_build: bool = False) -> Image:
        """An empty image: for files that are added with ``copy=True``."""
        return _image(
            Step(
                "from_scratch",
                lambda: ([plain(force_build).step("base", options={"distribution": "scratch"})], []),
            )
        )

    @staticmethod
    def micromamba(python_version: Optional[str] = None, force_build: bool = False) -> Image:
        """An image with micromamba and a Python from conda-forge, for `micromamba_install`. ``python_version`` is
        "major.minor" or "major.minor.patch"; None is this process's minor."""
        _text_or_none("micromamba", "python_version", python_version)

        def make() -> Made:
            version = python_version or _own_version()
            minor = ".".join(version.split(".")[:2])
            if minor not in PYTHON_VERSIONS or version.count(".") > 2:
                raise _unsupported("micromamba", version, python_version is not None)
            options = {"distribution": "micromamba", "python": version}
            return [plain(force_build).step("base", options=options)], []

        return _image(Step("micromamba", make))

    @_dual.class_method_at_once
    def from_id(cls, image_id: str, client: Optional[Client] = None) -> Image:
        """An image that was built, by its id. Nothing is asked of the server until it is first used; NotFoundError
        then when there is none."""
        if not isinstance(image_id, str) or not image_id.startswith("im-"):
            raise InvalidError(f"Image.from_id: ids of images begin with im-, and {image_id!r} does not")
        image = _image(Step("from_id", _nothing, Wanted(image_id=image_id)))
        image._client = client
        return image

    @staticmethod
    def from_name(name: str, *, environment_name: Optional[str] = None, client: Optional[Client] = None) -> Image:
        """An image that was published as ``[environment/]name[:tag]``; the tag is ``latest`` where none is given.
        Nothing is asked of the server until it is first used, and nothing is built: NotFoundError then when there is
        none."""
        text, environment = check_image_name("Image.from_name", name, environment_name)
        image = _image(Step("from_name", _nothing, Wanted(name=text, environment=environment)))
        image._client = client
        return image


def _image(*links: Step) -> Image:
    from cadenza.sdk.image import Image

    return Image._make(links)


def _nothing() -> Made:
    return [], []


def _text_or_none(where: str, name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise InvalidError(f'{where}: {name} is a string such as "3.12", not {value!r}')


def _own_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _unsupported(where: str, version: str, given: bool, name: str = "python_version") -> InvalidError:
    hint = "only major.minor, " if version.count(".") != 1 else ""
    whose = name if given else f"this process's Python, taken because {name} is not given,"
    return InvalidError(f"{where}: {whose} is {version}; it must be {hint}one of {', '.join(PYTHON_VERSIONS)}")


def debian_slim(python_version: Optional[str], force: bool) -> Step:
    """Debian with a Python."""

    def make() -> Made:
        version = python_version or _own_version()
        if version not in PYTHON_VERSIONS:
            raise _unsupported("debian_slim", version, bool(python_version))
        return [plain(force).step("base", options={"distribution": "debian_slim", "python": version})], []

    return Step("debian_slim", make)


def _add_python(where: str, version: Optional[str]) -> list[Any]:
    """The step that adds a Python. InvalidError for a version that is not to be had."""
    if version is None:
        return []
    if version not in PYTHON_VERSIONS:
        raise _unsupported(where, version, True, "add_python")
    return [plain().step("python", options={"version": version})]


def _registry(
    where: str,
    tag: str,
    secret: Optional[Secret],
    kind: Optional[str],
    setup: Sequence[str],
    force: bool,
    add_python: Optional[str],
    more: Mapping[str, Any],
) -> Image:
    if more:
        raise TypeError(f"{where}() got an unexpected keyword argument {next(iter(more))!r}")
    if not isinstance(tag, str) or not tag.strip() or any(map(str.isspace, tag)):
        raise InvalidError(f'{where} takes the name of an image, such as "python:3.12-slim", not {tag!r}')
    _text_or_none(where, "add_python", add_python)
    credentials = _check_registry_secret(where, secret, kind)
    commands = recipe.flatten(f"{where}: setup_dockerfile_commands", [setup])
    context = os.getcwd() if commands else ""

    def make() -> Made:
        options = StepOptions(bool(force), {}, credentials)
        steps = [options.step("base", options={"distribution": "registry", "tag": tag})]
        found: Made = (steps, [])
        if commands:
            from cadenza.sdk import stages

            build = stages.Build(context, AUTO_DOCKERIGNORE, {}, plain(), credentials)
            found = build.commands(commands, f"{where}: setup_dockerfile_commands", {})
            found[0][:0] = steps
        return found[0] + _add_python(where, add_python), found[1]

    return _image(Step(where, make))


def _check_registry_secret(where: str, secret: Optional[Secret], kind: Optional[str]) -> tuple[Secret, ...]:
    """A registry's secret as a sequence. InvalidError for keys of two kinds, or of another than ``kind``."""
    if secret is None:
        return ()
    if not isinstance(secret, Secret):
        raise InvalidError(f"{where}: the registry's secret must be a Secret, not {type(secret).__name__}")
    if secret._is_stored or container() is not None:  # its keys are seen by the server, or not here at all
        return (secret,)
    values = secret._variables()
    kinds = [one for one, keys in REGISTRY_KEYS.items() if any(key in values for key in keys)]
    if len(kinds) > 1:
        raise InvalidError(
            f"{where}: the secret has keys of two kinds, {' and '.join(kinds)}: give the keys of one registry only"
        )
    if (kind is not None and kinds != [kind]) or not kinds:
        wanted = {kind: REGISTRY_KEYS[kind]} if kind else REGISTRY_KEYS
        raise InvalidError(
            f"{where}: the secret has none of the keys that open a registry: "
            + "; or ".join(f"{', '.join(keys)} ({name})" for name, keys in wanted.items())
        )
    missing = [key for key in REGISTRY_KEYS[REGISTRY] if key not in values] if kinds == [REGISTRY] else []
    if missing:
        raise InvalidError(f"{where}: the secret has no {missing[0]}")
    return (secret,)


def check_ignore(ignore: Ignore) -> None:
    """InvalidError for what ``ignore=`` does not take."""
    if ignore is not AUTO_DOCKERIGNORE:
        from cadenza.sdk.patterns import as_predicate

        as_predicate(ignore)
