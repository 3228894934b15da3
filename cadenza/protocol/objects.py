"""What a user declares: app, function, image recipe, files, retries. Plain values, kept by the server as they come."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Optional

from cadenza.base.ids import ALPHABET, BODY_CHARS
from cadenza.base.resources import Resources


@dataclass(frozen=True)
class FileEntry:
    """One file that a container or a build step sees: an absolute ``path``, and its content's SHA-256 in hex."""

    path: str
    digest: str
    size: int
    mode: int = 0o644


@dataclass(frozen=True)
class ImageStep:
    """One layer of an image. What ``kind`` may be and what it reads:

    ==============  =====================================================================================
    ``base``        ``options["distribution"]`` = ``debian_slim``, ``options["python"]`` = "3.11" or ""
    ``run``         ``args``: shell commands, run one after the other by ``sh -c``
    ``apt``         ``args``: package names
    ``pip``         ``args``: requirements; ``options``: find_links, index_url, extra_index_url, pre ("1"),
                    extra_options; ``options["tool"]`` = ``pip`` or ``uv``
    ``env``         ``env``: variables set from here on
    ``workdir``     ``args[0]``
    ``copy``        ``files``: put into the image
    ``entrypoint``  ``args``;  ``cmd``: ``args``;  ``shell``: ``args``
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


@dataclass(frozen=True)
class ImageSpec:
    """An image as a recipe: its steps, first to last."""

    steps: tuple[ImageStep, ...] = ()

    def digests(self) -> tuple[str, ...]:
        """The digest of each prefix of the recipe, in hex: equal digests are one layer, built once."""
        found = []
        before = ""
        for step in self.steps:
            content = {
                "before": before,
                "kind": step.kind,
                "args": list(step.args),
                "options": step.options,
                "env": step.env,
                "files": [[one.path, one.digest, one.mode] for one in step.files],
                "secret_keys": list(step.secret_keys),
            }
            before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            found.append(before)
        return tuple(found)

    def image_id(self) -> str:
        """``im-`` and 22 characters that the recipe's digest determines."""
        return image_id(self.digests()[-1] if self.steps else hashlib.sha256(b"").hexdigest())


def image_id(digest: str) -> str:
    """The id of the image whose recipe has this digest (hex)."""
    number = int(digest, 16)
    body = []
    for _ in range(BODY_CHARS):
        number, digit = divmod(number, 62)
        body.append(ALPHABET[digit])
    return "im-" + "".join(body)


@dataclass(frozen=True)
class RetryPolicy:
    """How failures of one input are tried again. Seconds. Source: semantics.md section 7."""

    max_retries: int
    backoff_coefficient: float = 1.0
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0


@dataclass(frozen=True)
class FunctionSpec:
    """One function of an app, with everything a container needs to run it."""

    name: str
    """Its name in the app."""
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
    """Variables in the order of semantics.md section 14 already merged, image variables not included."""
    secret_keys: tuple[str, ...] = ()
    """Which of ``env`` are secret: never shown."""
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
    options: dict[str, str] = field(default_factory=dict)
    """What is carried and matched but decided elsewhere: region, cloud, nonpreemptible, schedule."""


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


def to_json(value: Any) -> str:
    """A declared object as the canonical JSON in which the server keeps it."""
    from cadenza.protocol.plain import to_plain

    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))
