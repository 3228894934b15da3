"""The parts of the cluster's state: nodes, containers, functions, attempts. Read freely; changed by `Cluster` alone."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Sequence

from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.nodes import GONE, PREPARING, READY, STARTING, STOPPING, ContainerReport, NodeInfo
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec
from cadenza.scheduling.events import FailedStart, StopContainer
from cadenza.storage.entry import Entry

RATE_TIME_S = 10.0
"""An input that came so long ago counts a third in the rate of arrivals."""
MOVES: dict[str, tuple[str, ...]] = {
    PREPARING: (STARTING, READY, STOPPING, GONE),
    STARTING: (READY, STOPPING, GONE),
    READY: (STOPPING, GONE),
    STOPPING: (GONE,),
    GONE: (),
}
"""A container's states as the control plane sees them; a report of an earlier state is old news and ignored."""


@dataclass(eq=False)
class AttemptState:
    """One attempt in a container."""

    attempt_id: str
    entry: Entry
    assigned_at: float
    timeout_s: float
    begun_at: float = -1.0
    """Negative while it waits behind others in its container."""
    deadline: float = math.inf
    zombie: bool = False
    revoking: bool = False
    nested: int = 0
    """How many calls of its own it waits for."""
    next_item: int = 0
    """How many of a generator's values were passed on."""
    batch: str = ""
    """Attempts of one container with the same name here are one run of a batched function."""

    @property
    def begun(self) -> bool:
        """Whether its time runs."""
        return self.begun_at >= 0


@dataclass(eq=False)
class ContainerState:
    """One container, from the wish for it until it is gone."""

    container_id: str
    function: FunctionState
    node_id: str
    wanted_at: float
    placed_at: float
    why: str
    requests: Resources
    gpus: tuple[Gpu, ...] = ()
    state: str = PREPARING
    revision: int = 0
    """The `Desired.revision` that first named it."""
    attempts: dict[str, AttemptState] = field(default_factory=dict)
    queued: deque[AttemptState] = field(default_factory=deque)
    """Those of ``attempts`` that have not begun, in order."""
    begun: int = 0
    batches: dict[str, int] = field(default_factory=dict)
    """The batches in it, and how many attempts of each."""
    taken: int = 0
    """How many attempts it has been given in its life."""
    idle_since: float = 0.0
    ready_since: float = 0.0
    """When it was seen READY; 0 before."""
    in_free: bool = False
    lends: bool = False
    """Whether its CPU counts as free, since all that runs in it waits for calls of its own."""
    alarm_at: float = math.inf
    stop: Optional[StopContainer] = None
    stop_at: float = math.inf
    """When the order to stop runs out."""
    report: Optional[ContainerReport] = None
    spec: FunctionSpec = field(init=False)
    """What it was started for. Its function may have been published anew since."""
    layout: dict[str, str] = field(init=False)
    generation: int = field(init=False)
    slots: int = field(init=False)
    """How many runs it has at once at most: as declared, or fewer by its own word (semantics.md section 31)."""

    def __post_init__(self) -> None:
        self.spec, self.layout = self.function.spec, self.function.layout
        self.generation = self.function.generation
        self.slots = self.spec.max_concurrent

    @property
    def replaced(self) -> bool:
        """Whether it was started for what its function is no more."""
        return self.generation != self.function.generation or self.function.removed

    @property
    def held(self) -> int:
        """How many runs it has: inputs, or batches of them."""
        return len(self.batches) if self.spec.batch_max else len(self.attempts)

    def is_news(self, report: ContainerReport) -> bool:
        """Whether a report says more than is known: a later state, or another number of slots."""
        if report.state == self.state == READY:
            return report.slots != (self.report.slots if self.report is not None else 0)
        return report.state in MOVES[self.state]

    def hear(self, report: ContainerReport) -> None:
        """Its node's newest word of it."""
        self.report = report
        most = self.spec.max_concurrent
        self.slots = min(report.slots, most) if report.slots else most

    @property
    def target(self) -> int:
        """How many runs at once it should have."""
        return max(1, min(self.spec.target_concurrent, self.slots))

    @property
    def usable(self) -> bool:
        """Whether it takes inputs."""
        return self.state == READY and self.stop is None

    @property
    def room(self) -> int:
        """How many more runs it should have, by its target."""
        return self.room_to(self.target)

    def room_to(self, concurrent: int) -> int:
        """How many more runs (inputs, or batches) make ``concurrent`` of them."""
        if not self.usable:
            return 0
        if self.spec.single_use:
            return 1 if self.taken == 0 else 0
        return max(0, concurrent - self.held)


@dataclass(eq=False)
class FunctionState:
    """One function: what waits for it, what runs it."""

    function_id: str
    app_id: str
    app_name: str
    spec: FunctionSpec
    layout: dict[str, str]
    ephemeral: bool = True
    removed: bool = False
    ready: deque[Entry] = field(default_factory=deque)
    """Inputs that are due and in memory, in order."""
    backlog: int = 0
    """Inputs that wait in the queue's table."""
    delayed: int = 0
    """Those of ``backlog`` that are thought not to be due yet."""
    running: int = 0
    """Attempts in containers, zombies not counted."""
    containers: dict[str, ContainerState] = field(default_factory=dict)
    free: list[ContainerState] = field(default_factory=list)
    """Containers that may have room, last used last; see `dispatch`."""
    average_s: Optional[float] = None
    start_s: Optional[float] = None
    """How long its containers take to start, as a moving average."""
    rate: float = 0.0
    """Inputs a second, lately, as of ``rate_at``; see `arrive`."""
    rate_at: float = 0.0
    start_failures: int = 0
    """Starts that failed by the user's fault since one last succeeded."""
    internal_failures: int = 0
    crashes: int = 0
    """Containers that ended by themselves under an input, since an input last came to its own end."""
    fault: str = ""
    """Why the last container did not start, or crashed; empty once one is in order again."""
    blocked_until: float = 0.0
    """No start before this."""
    failing: Optional[FailedStart] = None
    """Set while what waits is failed because containers do not start."""
    wanted_since: float = 0.0
    """Since when it has wanted a container that it does not have; 0: it wants none."""
    alarm_at: float = math.inf
    why: str = ""
    """The autoscaler's last reason."""
    environment: str = "main"
    base_id: str = ""
    generation: int = 1
    """Grows when it is published with another specification."""
    declared: FunctionSpec = field(init=False)
    """As it was published; ``spec`` is that with ``limits`` over it."""
    limits: AutoscalerPatch = field(default_factory=AutoscalerPatch)
    """Limits set at run time."""
    unset: tuple[str, ...] = ()
    """Fields of the limits that were taken away at run time."""

    def __post_init__(self) -> None:
        self.declared = self.spec

    @property
    def target(self) -> int:
        """How many inputs at once each container should have; up to ``max_concurrent`` when there can be no more."""
        return max(1, min(self.spec.target_concurrent, self.spec.max_concurrent))

    def arrive(self, count: int, now: float) -> None:
        """So many inputs have come."""
        self.rate = self.rate_now(now) + count / RATE_TIME_S
        self.rate_at = now

    def rate_now(self, now: float) -> float:
        """Inputs a second: older ones count less."""
        return self.rate * math.exp(min(0.0, self.rate_at - now) / RATE_TIME_S)

    @property
    def waiting(self) -> int:
        """Inputs that are due and wait."""
        return len(self.ready) + max(0, self.backlog - self.delayed)

    @property
    def waiting_runs(self) -> int:
        """How many runs those inputs make: each its own, or whole batches."""
        return -(-self.waiting // max(1, self.spec.batch_max))

    @property
    def alive(self) -> list[ContainerState]:
        """Its containers that are not to end."""
        return [one for one in self.containers.values() if one.stop is None]

    @property
    def starving(self) -> bool:
        """Whether it waits and has no container at all."""
        return self.waiting > 0 and not self.containers

    @property
    def spent(self) -> bool:
        """Whether it has ended, and nothing of it is left."""
        return self.removed and not self.containers and not self.busy

    @property
    def busy(self) -> bool:
        """Whether any input is not finished."""
        return bool(self.ready) or self.backlog > 0 or self.running > 0


@dataclass(eq=False)
class NodeState:
    """One machine and what is left of it."""

    info: NodeInfo
    free: Resources
    free_gpus: dict[str, int]
    connected: bool = True
    containers: dict[str, ContainerState] = field(default_factory=dict)


NO_LIMITS: dict[str, Any] = {
    "min_containers": 0,
    "max_containers": 0,
    "buffer_containers": 0,
    "scaledown_window_s": 60.0,
}
"""The fields of `AutoscalerPatch` where nothing is declared. Source: semantics.md section 11.1."""


def limited(declared: FunctionSpec, patch: AutoscalerPatch, unset: Sequence[str]) -> FunctionSpec:
    """A declaration with the limits that were set at run time."""
    changes: dict[str, Any] = {name: NO_LIMITS[name] for name in unset}
    for name in NO_LIMITS:
        value = getattr(patch, name)
        if value is not None:
            changes[name] = value
    return replace(declared, **changes) if changes else declared


def runs_alike(one: FunctionSpec, other: FunctionSpec) -> bool:
    """Whether containers started for one may go on for the other: they differ in limits of the autoscaler alone."""
    return one == other or replace(one, **NO_LIMITS) == replace(other, **NO_LIMITS)
