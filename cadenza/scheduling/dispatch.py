"""Which waiting input goes to which live container; retries, deadlines, cancellations. Decisions only.

Inputs go first to containers where they can begin at once, last used first, so that the others fall idle and can end.
A function whose recent executions are short gets inputs *early*: they wait in the container, and the gap between two
executions holds no round trip. What waits early is called back as soon as the head turns out to be slow.
A batched function's inputs leave in batches, of one method each: when full, or when the window of the first is over.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from typing import Optional, Sequence, Union

from cadenza.protocol.calls import FAILURE, INTERNAL_FAILURE, MAX_INTERNAL_FAILURES
from cadenza.protocol.nodes import CRASHED, OOM, PREPARING, STARTING, ContainerReport
from cadenza.protocol.objects import FunctionSpec, RetryPolicy
from cadenza.scheduling.cluster import SLOW_HEAD_S, Cluster
from cadenza.scheduling.events import Assign, CallBack, StopContainer
from cadenza.scheduling.states import AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry

EARLY_S = 0.010
"""How much work, by the moving average, may wait in a container."""
MAX_EARLY = 32
MIN_RETRY_DELAY_S = 1.0
"""Source: semantics.md section 7."""
CANCEL_GRACE_S = 2.0
"""How long code may go on in a concurrent container after its input timed out, before the container is stopped."""
KILL_GRACE_S = 2.0
"""What was told to stop past its deadline is killed so long after it. With `CANCEL_GRACE_S` and the time that killing
takes, nothing runs 5 s past its deadline."""
MAX_CRASHED = 3
"""How often an input of an ephemeral app is run at most when its containers crash under it."""
MAX_CRASH_DELAY_S = 60.0
TIMEOUT_KINDS = ("cadenza.exception.FunctionTimeoutError", "cadenza.exception.TimeoutError", "builtins.TimeoutError")
"""What a timeout counts as, where retries name exceptions."""


@dataclass(frozen=True)
class TimedOut:
    """An attempt ran as long as it may."""

    container_id: str
    attempt: AttemptState


@dataclass(frozen=True)
class Verdict:
    """What becomes of an input whose attempt did not succeed.

    ``delay_s`` None: this is its output, with ``status`` and ``error``. Else it runs again after that time.
    """

    delay_s: Optional[float]
    status: str = FAILURE
    error: str = ""
    charged: bool = False
    """Whether it costs a retry."""


def early(function: FunctionState) -> int:
    """How many inputs may wait in a container beyond those that run."""
    average = function.average_s
    if average is None or function.spec.single_use:
        return 0
    return min(MAX_EARLY, int(EARLY_S / max(average, 1e-5)))


def plan(cluster: Cluster, function: FunctionState, now: float, ahead: bool = True) -> Optional[Assign]:
    """The next assignment of a function's waiting inputs, or None. Apply it before asking again.

    ``ahead`` False: only inputs that can begin at once.
    """
    waiting = len(function.ready)
    if not waiting:
        return None
    nodes = cluster.nodes
    free = function.free
    batched = function.spec.batch_max
    group = _due_group(function, now) if batched else None
    if batched and group is None:
        return None
    while free:
        container = free[-1]
        room = container.room
        if room and nodes[container.node_id].connected:
            if group is not None:
                return Assign(container.container_id, group.count, method=group.method)
            return Assign(container.container_id, min(room, waiting))
        free.pop()  # a hint that is used up, not state: `Cluster` offers the container again when it has room
        container.in_free = False
    if batched:
        return None
    extra = early(function) if ahead else 0
    if not extra:
        return None
    best: Optional[ContainerState] = None
    usable = 0
    for container in function.containers.values():
        if not container.usable or not nodes[container.node_id].connected:
            continue
        usable += 1
        outstanding = len(container.attempts)
        if outstanding >= container.target + extra or (best is not None and outstanding >= len(best.attempts)):
            continue
        if outstanding:
            head = next(iter(container.attempts.values()))
            if head.zombie or now - head.begun_at >= SLOW_HEAD_S:
                continue
        best = container
    if best is None:
        return None
    return Assign(
        best.container_id, min(waiting, best.target + extra - len(best.attempts), max(1, -(-waiting // usable)))
    )


@dataclass(frozen=True)
class Group:
    """Waiting inputs that may be one batch. ``method`` None: of a function with one method or none."""

    method: Optional[str]
    count: int
    due_at: float
    """When it leaves: a full one at once, else when the window of its first input is over."""


def groups(function: FunctionState) -> list[Group]:
    """The next batch of each method of a batched function, in the order of their first inputs.

    Source: semantics.md section 10: the window starts at the first waiting input; a batch leaves when full or when the
    window is over.
    """
    spec, ready = function.spec, function.ready
    if not ready:
        return []
    wait_s = spec.batch_wait_ms / 1000
    if len(spec.methods) <= 1:
        found: dict[Optional[str], list[float]] = {None: [float(len(ready)), ready[0].since]}
    else:
        found = {}
        for one in ready:
            known = found.setdefault(one.method, [0.0, one.since])
            known[0] += 1
    return [
        Group(method, min(int(count), spec.batch_max), -math.inf if count >= spec.batch_max else since + wait_s)
        for method, (count, since) in found.items()
    ]


def _due_group(function: FunctionState, now: float) -> Optional[Group]:
    return next((one for one in groups(function) if one.due_at <= now), None)


def next_batch_at(function: FunctionState, now: float) -> float:
    """When the next batch is due that is not due now; infinity when there is none."""
    return min((one.due_at for one in groups(function) if one.due_at > now), default=math.inf)


def burst(cluster: Cluster, function: FunctionState, now: float) -> Optional[Assign]:
    """The next assignment beyond the target, up to ``max_concurrent``: for when no further container is on its way."""
    if not function.ready or function.target >= function.spec.max_concurrent:
        return None
    group = None
    if function.spec.batch_max:
        group = _due_group(function, now)
        if group is None:
            return None
    best: Optional[ContainerState] = None
    for container in function.containers.values():
        if container.stop is None and container.state in (PREPARING, STARTING):
            return None
        room = container.room_to(container.slots)
        if not room or not cluster.nodes[container.node_id].connected:
            continue
        if best is None or container.held < best.held:
            best = container
    if best is None:
        return None
    return (
        Assign(best.container_id, 1) if group is None else Assign(best.container_id, group.count, method=group.method)
    )


def overdue(container: ContainerState, now: float) -> tuple[list[Union[TimedOut, CallBack, StopContainer]], float]:
    """What is to be done about a container's attempts now, and when to look again (infinity: not by time alone)."""
    found: list[Union[TimedOut, CallBack, StopContainer]] = []
    again = math.inf
    slow = False
    for attempt in container.attempts.values():
        if not attempt.begun:
            continue
        if attempt.deadline <= now:
            if not attempt.zombie:
                found.append(TimedOut(container.container_id, attempt))
            elif container.stop is None:
                found.append(
                    StopContainer(container.container_id, KILL_GRACE_S, False, "an input went on after it was ended")
                )
        else:
            again = min(again, attempt.deadline)
            if now - attempt.begun_at >= SLOW_HEAD_S:
                slow = True
            elif container.queued:
                again = min(again, attempt.begun_at + SLOW_HEAD_S)
    if slow and container.queued:
        names = tuple(one.attempt_id for one in container.queued if not one.revoking)
        if names:
            found.append(CallBack(container.container_id, names))
    return found, again


def retry_delay_s(spec: FunctionSpec, failures: int) -> float:
    """Seconds before the next attempt after ``failures`` charged ones (at least 1). Source: semantics.md section 7."""
    policy = spec.retries
    if policy is None:
        return MIN_RETRY_DELAY_S
    delay = policy.initial_delay_s
    for _ in range(failures - 1):
        if delay >= policy.max_delay_s:
            break
        delay *= policy.backoff_coefficient
    return max(MIN_RETRY_DELAY_S, min(delay, policy.max_delay_s))


def counts(policy: RetryPolicy, kinds: Sequence[str]) -> bool:
    """Whether a failure of these kinds (an exception's class and its bases) is tried again; none: not an exception."""
    if any(one in policy.not_on for one in kinds):
        return False
    return not policy.on or any(one in policy.on for one in kinds)


def after_failure(entry: Entry, spec: FunctionSpec, status: str, error: str, kinds: Sequence[str] = ()) -> Verdict:
    """After a failure that counts against the retries: the user's exception, a timeout, a failed start."""
    policy = spec.retries
    if policy is None or entry.retries >= policy.max_retries or not counts(policy, kinds):
        return Verdict(None, status, error)
    if spec.generates(entry.method):
        return Verdict(None, status, error)
    return Verdict(retry_delay_s(spec, entry.retries + 1), status, error, charged=True)


def after_loss(
    attempt: AttemptState, spec: FunctionSpec, error: str, free: bool = False, ephemeral: bool = True
) -> Verdict:
    """After the platform lost an attempt: again at once and for nothing.

    In an ephemeral app not for ever, unless it is ``free``; in a deployed one later and later.
    """
    if attempt.next_item and spec.generates(attempt.entry.method):
        return Verdict(None, INTERNAL_FAILURE, f"{error}; the generator had given {attempt.next_item} values already")
    losses = attempt.entry.losses
    if losses >= MAX_INTERNAL_FAILURES and not free:
        if ephemeral:
            return Verdict(None, INTERNAL_FAILURE, f"{error}; it was tried {losses + 1} times")
        return Verdict(crash_delay_s(losses - MAX_INTERNAL_FAILURES + 1), INTERNAL_FAILURE, error)
    return Verdict(0.0, INTERNAL_FAILURE, error)


def crash_delay_s(losses: int) -> float:
    """How long an input of a deployed app waits before it is run again, after so many earlier losses."""
    return 0.0 if losses <= 0 else min(MAX_CRASH_DELAY_S, 2.0 ** min(losses - 1, 10))


def after_end(attempt: AttemptState, spec: FunctionSpec, report: ContainerReport, ephemeral: bool = True) -> Verdict:
    """After an attempt's container ended under it. What had not begun goes on elsewhere as if nothing had been.

    A crash costs no retries. In an ephemeral app an input is run `MAX_CRASHED` times, or as often as its retries
    allow if that is more; in a deployed one for ever, later and later. Source: semantics.md section 7.
    """
    if not attempt.begun:
        return Verdict(0.0)
    if report.reason not in (CRASHED, OOM):
        error = report.message or f"the container ended ({report.reason})"
        return after_loss(attempt, spec, error, ephemeral=ephemeral)
    text = end_text(report, spec)
    losses = attempt.entry.losses
    if attempt.next_item and spec.generates(attempt.entry.method):
        return Verdict(None, FAILURE, f"{text}; the generator had given {attempt.next_item} values already")
    if not ephemeral:
        return Verdict(crash_delay_s(losses), FAILURE, text)
    policy = spec.retries
    runs = MAX_CRASHED if policy is None or not counts(policy, ()) else max(MAX_CRASHED, policy.max_retries + 1)
    if losses + 1 < runs:
        return Verdict(0.0, FAILURE, text)
    return Verdict(None, FAILURE, f"{text}; it was run {losses + 1} times")


def _signal(exit_code: Optional[int]) -> int:
    """The signal that an exit code tells of, as -n or as 128 + n; 0 when it tells of none."""
    if exit_code is None:
        return 0
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if 128 < exit_code < 128 + 65 else 0


def end_text(report: ContainerReport, spec: FunctionSpec) -> str:
    """Why a container ended while it ran an input, in words."""
    if report.reason == OOM:
        limit = spec.resources.memory_limit_mib
        has = f"its limit of {limit} MiB" if limit else "what the machine has"
        return (
            f"the container ran out of memory: it needed more than {has}. "
            "Raise it with @app.function(memory=(request, limit)) or use less"
        )
    number = _signal(report.exit_code)
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"the container's process was ended by {name} while it ran the input"
    if report.exit_code is not None:
        return f"the container's process exited with code {report.exit_code} while it ran the input"
    return report.message or "the container's process ended while it ran the input"
