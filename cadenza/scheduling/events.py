"""What can happen to the cluster, each as one value: the only way in which `cadenza.scheduling.cluster` changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, Union

from cadenza.base.resources import Gpu
from cadenza.protocol.calls import AttemptOutput
from cadenza.protocol.nodes import ContainerReport, NodeInfo
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec
from cadenza.storage.entry import Entry


@dataclass(frozen=True)
class FailedStart:
    """Why containers of a function do not start: whose fault, a text, and the packed exception if there is one."""

    status: str
    error: str
    data: bytes = b""
    container_id: str = ""
    """The last one that failed."""


@dataclass(frozen=True)
class NodeSeen:
    """A node is there, with what it has."""

    info: NodeInfo
    connected: bool = True


@dataclass(frozen=True)
class NodeAway:
    """A node cannot be reached for the moment. Its containers go on; nothing is given to them."""

    node_id: str


@dataclass(frozen=True)
class FunctionAdded:
    """A function may be called; or is published again: then with another specification, or with ``renew``, its present
    containers are of an earlier generation."""

    function_id: str
    app_id: str
    app_name: str
    spec: FunctionSpec
    layout: Mapping[str, str]
    ephemeral: bool = True
    environment: str = "main"
    base_id: str = ""
    """For a variant: the function that it is a variant of."""
    renew: bool = False


@dataclass(frozen=True)
class Limited:
    """Limits set at run time over those that are declared: fields of ``patch`` that are set, and fields named in
    ``unset`` that have none. ``patch`` None: back to what is declared."""

    function_id: str
    patch: Optional[AutoscalerPatch]
    unset: Sequence[str] = ()


@dataclass(frozen=True)
class FunctionRemoved:
    """Its app has ended: it goes when nothing of it is left."""

    function_id: str


@dataclass(frozen=True)
class Arrived:
    """Inputs that are due; ``front``: they were given out before and come back, in their old order."""

    function_id: str
    entries: Sequence[Entry]
    front: bool = False


@dataclass(frozen=True)
class BacklogChanged:
    """Inputs in the queue's table: more or fewer."""

    function_id: str
    change: int = 0
    delayed: int = 0


@dataclass(frozen=True)
class Withdrawn:
    """Waiting inputs whose output is decided (``done`` is set) leave the line."""

    function_id: str


@dataclass(frozen=True)
class Assign:
    """Give the next ``count`` waiting inputs of its function to a container: of a batched function as one batch."""

    container_id: str
    count: int
    fence_base: int = 0
    method: Optional[str] = None
    """Only inputs of this method; None: the next ones, whichever."""


@dataclass(frozen=True)
class Settle:
    """Attempts' ends as a container tells them."""

    container_id: str
    outputs: Sequence[AttemptOutput]


@dataclass(frozen=True)
class Detach:
    """Attempts leave a container without a word of it: called back, or lost with it."""

    container_id: str
    attempt_ids: Sequence[str]


@dataclass(frozen=True)
class Bury:
    """Attempts become zombies that are to end by ``deadline``."""

    container_id: str
    attempt_ids: Sequence[str]
    deadline: float = 0.0
    """0: their own."""


@dataclass(frozen=True)
class CallBack:
    """Attempts that wait in a container were asked back."""

    container_id: str
    attempt_ids: Sequence[str]


@dataclass(frozen=True)
class Adopt:
    """An attempt of an earlier control plane goes on in its container."""

    container_id: str
    entry: Entry


@dataclass(frozen=True)
class Nested:
    """An input that runs waits for ``change`` more (or fewer) calls of its own."""

    input_id: str
    change: int


@dataclass(frozen=True)
class Wanting:
    """The autoscaler's last word on a function, and whether it lacks a container."""

    function_id: str
    lacking: bool
    why: str


@dataclass(frozen=True)
class StartContainer:
    """A container is wanted, and has its place."""

    container_id: str
    function_id: str
    node_id: str
    gpus: tuple[Gpu, ...]
    why: str
    revision: int = 0
    former: Optional[FunctionSpec] = None
    """For a container of an earlier control plane that was started for another specification: what is known of it."""


@dataclass(frozen=True)
class StopContainer:
    """A container is to end within ``grace_s``; with ``drain`` its running inputs may finish first."""

    container_id: str
    grace_s: float
    drain: bool
    why: str


@dataclass(frozen=True)
class ContainerSeen:
    """A container's state, from its node."""

    report: ContainerReport


@dataclass(frozen=True)
class StartFailed:
    """A container ended before it was ready. ``blame``: by the user's fault."""

    function_id: str
    blame: bool
    blocked_until: float
    failing: Optional[FailedStart] = None
    text: str = ""


@dataclass(frozen=True)
class Crashed:
    """A container ended by itself while it ran inputs."""

    function_id: str
    blocked_until: float
    text: str
    failing: Optional[FailedStart] = None


@dataclass(frozen=True)
class FailingOver:
    """Nothing waits any more for a function whose containers do not start: the next input tries again."""

    function_id: str


Event = Union[
    NodeSeen, NodeAway, FunctionAdded, Limited, FunctionRemoved, Arrived, BacklogChanged, Withdrawn, Assign, Settle,
    Detach, Bury, CallBack, Adopt, Nested, Wanting, StartContainer, StopContainer, ContainerSeen, StartFailed, Crashed,
    FailingOver,
]  # fmt: skip
