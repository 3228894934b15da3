"""What a node and the control plane say to each other: current state up, desired state down.

`Node` is what the control plane calls, `Control` what a node calls back. On one machine both live in one process and
one event loop thread, and these are plain method calls; on a fleet the same words travel in frames. No method of
either blocks, and none raises for a thing that merely happened: it is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional, Protocol, Sequence

from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.calls import Attempt, AttemptOutput, GeneratorItem
from cadenza.protocol.objects import FileEntry, FunctionSpec, ImageSpec

# A container's states as a node reports them, in order. The table of moves is cadenza.agent.container.
PREPARING = "preparing"
STARTING = "starting"
READY = "ready"
STOPPING = "stopping"
GONE = "gone"

# Why a container is gone.
EXITED = "exited"
"""It ended in order: drained, scaled down, single use."""
STOPPED = "stopped"
"""It was told to end and did, or was killed at its deadline."""
CRASHED = "crashed"
"""Its process died by itself: an exit code or a signal that nobody asked for."""
OOM = "oom"
INIT_FAILED = "init_failed"
"""Import or enter hooks raised. The user's fault."""
START_TIMEOUT = "start_timeout"
RUNTIME_FAILED = "runtime_failed"
"""Mounts, network or the runtime program failed. The platform's fault."""
NODE_LOST = "node_lost"
END_REASONS = (EXITED, STOPPED, CRASHED, OOM, INIT_FAILED, START_TIMEOUT, RUNTIME_FAILED, NODE_LOST)

PHASES = ("queued", "placed", "network", "rootfs", "create", "boot", "import", "enter")
"""The phases of a start, in order; each a duration in seconds, together the wall time from demand to readiness."""


@dataclass(frozen=True)
class ContainerSpec:
    """One container that a node should run."""

    container_id: str
    app_id: str
    app_name: str
    function_id: str
    function: FunctionSpec
    image_id: str
    isolation: str
    gpus: tuple[Gpu, ...] = ()
    layout: dict[str, str] = field(default_factory=dict)
    """The app's functions: name to id, so that handles in the container find each other."""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    """The function's secrets and over them its ``env=``, merged. Never written to disk."""
    environment: str = "main"
    wanted_at: float = 0.0
    """Epoch seconds at which demand first asked for it: where the phase ``queued`` begins."""
    placed_at: float = 0.0


@dataclass(frozen=True)
class StopOrder:
    """End a container. ``grace_s`` after the order it is killed, whatever it does. 0: at once."""

    container_id: str
    grace_s: float
    drain: bool = False
    """Let running inputs finish, within ``grace_s``, before exit hooks."""
    reason: str = ""


@dataclass(frozen=True)
class Desired:
    """All that a node should have, as one value. What it runs and is not here is stopped at once and removed."""

    revision: int
    containers: tuple[ContainerSpec, ...] = ()
    stops: tuple[StopOrder, ...] = ()
    """Orders for containers that are also in ``containers`` until they are gone."""
    images: tuple[str, ...] = ()
    """Image ids in recent use, most recent first: what warm containers may be kept for."""


@dataclass(frozen=True)
class ContainerReport:
    """How one container is, now. ``phases`` maps a name of `PHASES` to seconds, as far as it got."""

    container_id: str
    state: str
    reason: str = ""
    """For GONE: one of `END_REASONS`."""
    message: str = ""
    """For people: what happened and, if there is one, the remedy."""
    error: bytes = b""
    """For INIT_FAILED: the packed exception, if the runner could send it."""
    exit_code: Optional[int] = None
    phases: dict[str, float] = field(default_factory=dict)
    ready_at: float = 0.0
    warm: bool = False
    """Whether it came out of the pool."""
    runtime: str = ""
    """crun, runc, runsc, rootless or process."""
    pid: int = 0
    slots: int = 0
    """How many inputs it runs at once by its own word (``set_local_input_concurrency``); 0: as declared."""


@dataclass(frozen=True)
class NodeInfo:
    """What a node is and has."""

    node_id: str
    capacity: Resources
    gpus: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    runtimes: dict[str, str] = field(default_factory=dict)
    """Isolation level to the runtime that gives it here: ``{"standard": "crun", "strong": "runsc"}``."""


@dataclass(frozen=True)
class NodeReport:
    """A node's current state. ``whole``: these are all its containers; else only those that changed."""

    node_id: str
    containers: tuple[ContainerReport, ...] = ()
    whole: bool = False
    revision: int = 0
    """The newest `Desired.revision` the node has taken up."""


@dataclass(frozen=True)
class LogChunk:
    """Output of a container, as bytes, tagged. ``fd``: 1 stdout, 2 stderr, 0 the platform's own words."""

    app_id: str
    container_id: str
    function_id: str
    fd: int
    time: float
    data: bytes
    call_id: str = ""
    input_id: str = ""


@dataclass(frozen=True)
class Usage:
    """What a container uses. ``cpu_s``: CPU seconds since it began; ``time``: when it was read, in epoch seconds."""

    container_id: str
    time: float
    cpu_s: float
    memory_bytes: int
    pids: int = 0


@dataclass(frozen=True)
class BuildOrder:
    """Make an image. ``objects`` of the recipe's files are in the object store when this is given."""

    image_id: str
    spec: ImageSpec
    force: bool = False
    ignore_cache: bool = False
    """Build all steps again, and leave what is cached as it is."""


@dataclass(frozen=True)
class BuildLine:
    """Progress of a build. ``kind``: ``step`` (one begins), ``log`` (its output), ``cached``, ``done`` (of a step)."""

    kind: str
    step: int
    steps: int
    text: str = ""


@dataclass(frozen=True)
class ImageInfo:
    """One image that is built and kept. ``size`` in bytes on this node."""

    image_id: str
    size: int
    created_at: float
    used_at: float
    description: str = ""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    workdir: str = ""
    python: str = ""
    """The minor version of the Python in it, as ``3.11``; empty: it has none."""
    entries: int = 0
    """Files, directories and links in it."""
    tree: str = ""
    """The digest of its tree in hex; empty where images are no trees."""


@dataclass(frozen=True)
class ImageLayer:
    """One step of an image as it was built. ``size``: bytes of the files that it added or changed."""

    text: str
    digest: str
    size: int
    entries: int
    seconds: float
    created_at: float
    cached: bool = False


@dataclass(frozen=True)
class ImageDetail:
    """All that is known of one image."""

    image: ImageInfo
    layers: tuple[ImageLayer, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    user: str = ""
    local_size: int = 0
    """Bytes of its content that are on this machine now."""
    shared_size: int = 0
    """Bytes of its content that other images here have too."""
    names: tuple[str, ...] = ()
    source: str = ""
    """Where it came from, if it was not made here: a registry's reference with its digest, or the store."""


@dataclass(frozen=True)
class CollectOrder:
    """Remove content that no image names. ``images``: forget these too. ``dry_run``: only say what would go.

    ``remote``: also from the bucket, what no machine's images name.
    """

    images: tuple[str, ...] = ()
    dry_run: bool = False
    remote: bool = False


@dataclass(frozen=True)
class CollectReport:
    """What went, or would: see `cadenza.protocol.images.Collected`."""

    images: tuple[str, ...] = ()
    objects: int = 0
    size: int = 0
    kept_objects: int = 0
    kept_size: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageLogLine:
    """A line that a step of a build wrote. ``time`` in epoch seconds; ``step``: the step's words."""

    text: str
    time: float = 0.0
    step: str = ""


@dataclass(frozen=True)
class PushOrder:
    """Send an image to a registry. ``credentials``: variables as `Image.from_registry` takes them from a secret."""

    image_id: str
    ref: str
    credentials: dict[str, str] = field(default_factory=dict, repr=False)


class Exec(Protocol):
    """A command running inside a container. Output comes by the callback given to `Node.exec`."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Until there is room for more input. Await it after each `write`, and before the sender gets more credit."""

    def pause(self) -> None:
        """Give no more output for now. Some of what is on its way may still come."""

    def resume(self) -> None:
        """Give output again."""

    def close_stdin(self) -> None: ...

    def resize(self, rows: int, columns: int) -> None: ...

    def kill(self) -> None: ...

    async def wait(self) -> int:
        """The exit code; 128 + n for a signal."""


class Node(Protocol):
    """What the control plane calls. Implemented by `cadenza.agent`, and by a simulated node in tests."""

    def info(self) -> NodeInfo: ...

    def want(self, desired: Desired) -> None:
        """Take up a newer desired state. An older revision than the last is ignored."""

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        """Hand attempts to a container that is READY. If it is gone, its GONE report says so; nothing is raised."""

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        """Cancel attempts that run. ``revoke``: give back those that have not begun (status REVOKED), no others."""

    async def build(self, order: BuildOrder, progress: Callable[[BuildLine], None]) -> ImageInfo:
        """Make an image, or return at once when it is there. ImageBuildError when a step fails."""

    def images(self) -> list[ImageInfo]: ...

    async def image(self, image_id: str) -> ImageDetail:
        """All that is known of a built image. NotFoundError when it is not built."""

    async def image_log(self, image_id: str, layers: int) -> list[ImageLogLine]:
        """What the last ``layers`` steps of an image's build wrote, oldest first; 0: all steps. Of a build that failed
        too, as far as it is kept. NotFoundError when nothing is known of the image."""

    async def collect(self, order: CollectOrder) -> CollectReport:
        """Forget images, and remove content that none has. Images that containers have, or that were used since the
        order was made, stay."""

    async def push(self, order: PushOrder, progress: Callable[[str], None]) -> str:
        """Send an image to a registry; the digest of its manifest. NotFoundError when it is not built; errors of the
        registry name image and remedy."""

    async def exec(
        self, container_id: str, argv: Sequence[str], pty: bool, output: Callable[[int, bytes], None], rows: int = 0,
        columns: int = 0,
    ) -> Exec:  # fmt: skip
        """Run a command in a container. ``output(fd, data)``. NotFoundError when it is not running.

        ``rows``, ``columns``: the size with which its terminal begins, with ``pty``; 0: not known.
        """

    async def close(self, keep_containers: bool = False) -> None:
        """End: stop everything and leave nothing behind. ``keep_containers``: not offered by any node yet, ignored."""


class Control(Protocol):
    """What a node calls back. Implemented by `cadenza.control`, and by a recorder in tests."""

    def report(self, report: NodeReport) -> None: ...

    def outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None: ...

    def items(self, container_id: str, items: Sequence[GeneratorItem]) -> None: ...

    def logs(self, chunks: Sequence[LogChunk]) -> None: ...

    def usage(self, samples: Sequence[Usage]) -> None:
        """What the node's containers use, now and then."""

    def object_path(self, digest: str) -> Optional[str]:
        """The path of an uploaded object on this machine's disk, or None. (A fleet's agents fetch it instead.)"""

    def missing_objects(self, files: Sequence[FileEntry]) -> list[str]: ...
