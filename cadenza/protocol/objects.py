"""What a user declares: app, function, image recipe, files, retries. Plain values, kept by the server as they come."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Iterator, Optional

from cadenza.base.ids import derived
from cadenza.base.resources import Gpu, Resources


@dataclass(frozen=True)
class FileEntry:
    """One file that a container or a build step sees: an absolute ``path``, and its content's SHA-256 in hex."""

    path: str
    digest: str
    size: int
    mode: int = 0o644


@dataclass(frozen=True)
class BuildFunction:
    """The function that a build step runs (``Image.run_function``). Source: semantics.md section 13.3."""

    module: str = ""
    """The module to import; empty when ``serialized``."""
    qualname: str = ""
    serialized: str = ""
    """The digest of an uploaded object that holds the pickled function."""
    arguments: str = ""
    """The digest of an uploaded object that holds the pickled ``(args, kwargs)``; empty: none."""
    source: str = ""
    """SHA-256 in hex over the source text, the globals it uses and the arguments: its part of the step's digest."""
    files: tuple[FileEntry, ...] = ()
    """Its sources, mounted while it runs; no part of the image and of the digest."""
    python: str = ""
    """The caller's Python, ``major.minor``."""
    is_async: bool = False
    is_generator: bool = False


@dataclass(frozen=True)
class ImageStep:
    """One layer of an image. What ``kind`` may be and what it reads:

    ==============  =====================================================================================
    ``base``        ``options["distribution"]``:
                    ``debian_slim`` with ``options["python"]`` = "3.11" or "";
                    ``registry`` with ``options["tag"]``, credentials among ``secrets``;
                    ``micromamba`` with ``options["python"]``; ``scratch``;
                    ``image`` with ``options["image_id"]``: an image that is built
    ``python``      ``options["version"]``: a standalone Python into /usr/local (``add_python``)
    ``run``         ``args``: shell commands, run one after the other by ``sh -c``
    ``apt``         ``args``: package names
    ``pip``         ``args``: requirements; ``options``: find_links, index_url, extra_index_url, pre ("1"),
                    extra_options; ``options["tool"]`` = ``pip`` or ``uv``; ``options["uv_version"]``
    ``uv_sync``     ``files``: pyproject.toml and uv.lock below /.uv; ``options``: groups and extras (joined by
                    commas), frozen ("1"), extra_options, uv_version
    ``poetry``      ``files``: pyproject.toml and poetry.lock below /.poetry; ``options``: with, without, only
                    (joined by commas), poetry_version, old_installer ("1")
    ``micromamba``  ``args``: packages; ``options``: channels (joined by commas), spec_file (a path of ``files``)
    ``function``    ``function``: run in a container of the image so far
    ``env``         ``env``: variables set from here on
    ``workdir``     ``args[0]``
    ``copy``        ``files``: put into the image
    ``entrypoint``  ``args``;  ``cmd``: ``args``;  ``shell``: ``args``
    ``docker``      one instruction of a Dockerfile: ``args`` = (INSTRUCTION in capitals, the rest of its line as
                    written, continuation lines joined; then the text of its here-documents).
                    ``options``: ``args`` = build arguments in force as a JSON object. COPY and ADD: ``files``
                    are what their sources name in the context, each at ``/`` + its path in the context;
                    ``options["directories"]`` those without files as a JSON list;
                    ``images`` the one that ``--from`` names
    ==============  =====================================================================================

    ``secrets`` are variables that the step's commands see and that are no part of the digest or of the image.
    """

    kind: str
    args: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    secret_keys: tuple[str, ...] = ()
    force: bool = False
    """Build this step and all after it again. No part of the digest."""
    secret_refs: tuple[SecretRef, ...] = ()
    """Secrets below ``secrets``, some of which the server keeps: it puts their values into ``secrets`` before the build
    is ordered."""
    images: tuple[ImageSpec, ...] = ()
    """Other images whose files this step reads: built before it."""
    function: Optional[BuildFunction] = None
    resources: Optional[Resources] = None
    """What the step's container may have; None: what the server gives builds. Its GPUs are part of the digest."""
    timeout_s: float = 3600.0
    """How long the step may take. No part of the digest."""

    def content(self) -> dict[str, Any]:
        """What its digest is made of. What older recipes did not have is left out where it says nothing."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "args": list(self.args),
            "options": self.options,
            "env": self.env,
            "files": [[one.path, one.digest, one.mode] for one in self.files],
            "secret_keys": list(self.secret_keys),
        }
        if self.images:
            found["images"] = [one.image_id() for one in self.images]
        if self.function is not None:
            found["function"] = [self.function.module, self.function.qualname, self.function.source]
        if self.resources is not None and self.resources.gpus:
            found["gpus"] = [f"{one.type}:{one.count}" for one in self.resources.gpus]
        return found


@dataclass(frozen=True)
class ImageSpec:
    """An image as a recipe: its steps, first to last."""

    steps: tuple[ImageStep, ...] = ()
    built: str = ""
    """The id of an image that is there, instead of steps."""

    def digests(self) -> tuple[str, ...]:
        """The digest of each prefix of the recipe, in hex: equal digests are one layer, built once."""
        found = []
        before = ""
        for step in self.steps:
            content = {"before": before, **step.content()}
            before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            found.append(before)
        return tuple(found)

    def all_steps(self) -> Iterator[ImageStep]:
        """Its steps and those of the images that they read."""
        for step in self.steps:
            yield step
            for one in step.images:
                yield from one.all_steps()

    def uploads(self) -> list[str]:
        """The digests of all uploaded objects that building it needs."""
        found = []
        for step in self.all_steps():
            found += [one.digest for one in step.files]
            if step.function is not None:
                found += [one.digest for one in step.function.files]
                found += [one for one in (step.function.serialized, step.function.arguments) if one]
        return found

    def image_id(self) -> str:
        """``im-`` and 22 characters that the recipe's digest determines."""
        if self.built:
            return self.built
        return image_id(self.digests()[-1] if self.steps else hashlib.sha256(b"").hexdigest())


def image_id(digest: str) -> str:
    """The id of the image whose recipe has this digest (hex)."""
    return derived("image", int(digest, 16))


@dataclass(frozen=True)
class RetryPolicy:
    """How failures of one input are tried again. Seconds. Source: semantics.md section 7."""

    max_retries: int
    backoff_coefficient: float = 1.0
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0
    on: tuple[str, ...] = ()
    """Only failures by these exceptions and their subclasses, as ``module.qualname``; empty: any failure."""
    not_on: tuple[str, ...] = ()
    """Never failures by these; wins over ``on``."""


@dataclass(frozen=True)
class SecretRef:
    """A set of secret variables: one that the server keeps (``secret_id``), or, on its way there, the values.

    The server replaces ``values`` by the id of a sealed copy before it keeps a declaration; nothing that is kept or
    listed has values in it.
    """

    secret_id: str = ""
    values: dict[str, str] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] = ()
    """The names of its variables, as far as they are known."""
    name: str = ""
    """Of a stored secret: the server finds it by this name, in ``environment`` or else in the app's."""
    environment: str = ""
    required: tuple[str, ...] = ()
    """Variables that a secret found by name must have."""


@dataclass(frozen=True)
class MethodSpec:
    """One method of a class that runs in containers."""

    name: str
    is_generator: bool = False
    is_async: bool = False


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a class: ``type`` is str, int, bool or bytes. Source: semantics.md section 12.2."""

    name: str
    type: str
    default: str = ""
    """The default as JSON, as `cadenza.protocol.parameters.to_value` has values; empty: there is none."""


@dataclass(frozen=True)
class FunctionSpec:
    """One function of an app, with everything a container needs to run it. A class is one, with ``methods``."""

    name: str
    """Its name in the app; for a class ``Name.*``."""
    module: str = ""
    """The module to import; empty when ``serialized``."""
    qualname: str = ""
    serialized: str = ""
    """The digest of an uploaded object that holds the pickled function; empty when it is imported by name."""
    is_generator: bool = False
    is_async: bool = False
    image: ImageSpec = field(default_factory=ImageSpec)
    files: tuple[FileEntry, ...] = ()
    """Files mounted at start: the function's source and ``add_local_*(copy=False)``."""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables of the decorator's ``env=``: over those of ``secrets`` (semantics.md section 14)."""
    secrets: tuple[SecretRef, ...] = ()
    """The app's first, then the function's own; a later one wins."""
    resources: Resources = field(default_factory=Resources)
    timeout_s: float = 300.0
    startup_timeout_s: float = 300.0
    retries: Optional[RetryPolicy] = None
    min_containers: int = 0
    max_containers: int = 0
    """0: no limit but the machine's."""
    buffer_containers: int = 0
    scaledown_window_s: float = 60.0
    single_use: bool = False
    max_concurrent: int = 1
    target_concurrent: int = 1
    batch_max: int = 0
    batch_wait_ms: int = 0
    isolation: str = ""
    """``standard``, ``strong``, or empty for the server's rule."""
    block_network: bool = False
    python: str = ""
    """The caller's Python, ``major.minor``: what ``serialized`` functions and pickles need."""
    methods: tuple[MethodSpec, ...] = ()
    """For a class: what can be called of it. Empty: a plain function."""
    class_parameters: tuple[ParameterSpec, ...] = ()
    parameters: str = ""
    """For a class: the values of its parameters, as `cadenza.protocol.parameters.bind` writes them."""
    restricted: bool = False
    """``restrict_modal_access=True``: its containers may ask the server nothing."""
    interactive: bool = False
    """Its containers may ask for a terminal (``run -i``)."""
    options: dict[str, str] = field(default_factory=dict)
    """What is carried and matched but decided elsewhere: region, cloud, nonpreemptible, schedule (JSON),
    memory_snapshot, experimental (JSON)."""

    def generates(self, method: str) -> bool:
        """Whether this method, or the function where it is empty, is a generator."""
        if not method:
            return self.is_generator
        return any(one.name == method and one.is_generator for one in self.methods)


@dataclass(frozen=True)
class OptionsPatch:
    """What ``with_options``, ``with_concurrency`` and ``with_batching`` change of a function; None leaves it.

    ``secrets`` and ``env`` replace the whole earlier set; ``min_containers`` of a variant is always 0.
    Source: semantics.md section 12.3.
    """

    cpu_milli: Optional[int] = None
    cpu_limit_milli: Optional[int] = None
    memory_mib: Optional[int] = None
    memory_limit_mib: Optional[int] = None
    disk_mib: Optional[int] = None
    gpus: Optional[tuple[Gpu, ...]] = None
    secrets: Optional[tuple[SecretRef, ...]] = None
    env: Optional[dict[str, str]] = None
    retries: Optional[RetryPolicy] = None
    timeout_s: Optional[float] = None
    max_containers: Optional[int] = None
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None
    max_concurrent: Optional[int] = None
    target_concurrent: Optional[int] = None
    batch_max: Optional[int] = None
    batch_wait_ms: Optional[int] = None
    options: dict[str, str] = field(default_factory=dict)
    """Single keys of `FunctionSpec.options`: region, cloud, routing_region."""


@dataclass(frozen=True)
class BudgetSpec:
    """A hard cap on what an app may spend. 0: no cap of that kind. ``per``: day, month, or empty for its whole life."""

    container_s: float = 0.0
    money: float = 0.0
    """By the server's price table, in its currency."""
    per: str = ""


@dataclass(frozen=True)
class AutoscalerPatch:
    """Limits set at run time over those of the declaration, until the next deploy. None: as declared."""

    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None


@dataclass(frozen=True)
class AppInfo:
    """One app as lists show it. ``state``: initializing, ephemeral, detached, deployed, stopping, stopped."""

    app_id: str
    name: str
    state: str
    created_at: float
    stopped_at: Optional[float] = None
    containers: int = 0
    stop_reason: str = ""
    environment: str = "main"
    version: int = 0
    """Of a deployed app: the version in force."""
    tags: dict[str, str] = field(default_factory=dict)
    deployed_at: Optional[float] = None
    note: str = ""
    """What is wrong with it now, in a sentence: containers that do not start, a budget that is spent."""
    created_by: str = ""
    deployed_by: str = ""
    budget: str = ""
    """For an app with a budget: how much of it is spent, for people."""
    """Who put the version in force there."""


def to_json(value: Any) -> str:
    """A declared object as the canonical JSON in which the server keeps it."""
    from cadenza.protocol.plain import to_plain

    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))
