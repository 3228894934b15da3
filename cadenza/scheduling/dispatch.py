"""Which waiting input goes to which live container; retries, deadlines, cancellations. Decisions only.

Inputs go first to containers where they can begin at once, last used first, so that the others fall idle and can end.
A function whose recent executions are short gets inputs *early*: they wait in the container, and the gap between two
executions holds no round trip. What waits early is called back as soon as the head turns out to be slow.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from typing import Optional, Union

from cadenza.protocol.calls import FAILURE, INTERNAL_FAILURE, MAX_INTERNAL_FAILURES
from cadenza.protocol.nodes import CRASHED, OOM, PREPARING, STARTING, ContainerReport
from cadenza.protocol.objects import FunctionSpec
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
MAX_KILLED = 3
"""How often an input is run again after its process was killed from outside (SIGKILL, and not for memory)."""


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


def plan(cluster: Cluster, function: FunctionState, now: float) -> Optional[Assign]:
    """The next assignment of a function's waiting inputs, or None. Apply it before asking again."""
    waiting = len(function.ready)
    if not waiting:
        return None
    nodes = cluster.nodes
    free = function.free
    while free:
        container = free[-1]
        room = container.room
        if room and nodes[container.node_id].connected:
            return Assign(container.container_id, min(room, waiting))
        free.pop()  # a hint that is used up, not state: `Cluster` offers the container again when it has room
        container.in_free = False
    ahead = early(function)
    if not ahead:
        return None
    limit = function.target + ahead
    best: Optional[ContainerState] = None
    usable = 0
    for container in function.containers.values():
        if not container.usable or not nodes[container.node_id].connected:
            continue
        usable += 1
        outstanding = len(container.attempts)
        if outstanding >= limit or (best is not None and outstanding >= len(best.attempts)):
            continue
        if outstanding:
            head = next(iter(container.attempts.values()))
            if head.zombie or now - head.begun_at >= SLOW_HEAD_S:
                continue
        best = container
    if best is None:
        return None
    return Assign(best.container_id, min(waiting, limit - len(best.attempts), max(1, -(-waiting // usable))))


def burst(cluster: Cluster, function: FunctionState) -> Optional[Assign]:
    """The next assignment beyond the target, up to ``max_concurrent``: for when no further container is on its way."""
    waiting = len(function.ready)
    if not waiting or function.target >= function.spec.max_concurrent:
        return None
    best: Optional[ContainerState] = None
    for container in function.containers.values():
        if container.stop is None and container.state in (PREPARING, STARTING):
            return None
        room = container.room_to(function.spec.max_concurrent)
        if not room or not cluster.nodes[container.node_id].connected:
            continue
        if best is None or len(container.attempts) < len(best.attempts):
            best = container
    return None if best is None else Assign(best.container_id, 1)


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


def after_failure(entry: Entry, spec: FunctionSpec, status: str, error: str) -> Verdict:
    """After a failure that counts against the retries: the user's exception, a timeout, a crash, a failed start."""
    if spec.retries is None or spec.is_generator or entry.retries >= spec.retries.max_retries:
        return Verdict(None, status, error)
    return Verdict(retry_delay_s(spec, entry.retries + 1), status, error, charged=True)


def after_loss(attempt: AttemptState, spec: FunctionSpec, error: str, free: bool = False) -> Verdict:
    """After the platform lost an attempt: again at once and for nothing, but unless it is ``free`` not for ever."""
    if spec.is_generator and attempt.next_item:
        return Verdict(None, INTERNAL_FAILURE, f"{error}; the generator had given {attempt.next_item} values already")
    if attempt.entry.losses >= MAX_INTERNAL_FAILURES and not free:
        return Verdict(None, INTERNAL_FAILURE, f"{error}; it was tried {attempt.entry.losses + 1} times")
    return Verdict(0.0, INTERNAL_FAILURE, error)


def after_end(attempt: AttemptState, spec: FunctionSpec, report: ContainerReport) -> Verdict:
    """After an attempt's container ended under it. What had not begun goes on elsewhere as if nothing had been."""
    if not attempt.begun:
        return Verdict(0.0)
    if report.reason not in (CRASHED, OOM):
        return after_loss(attempt, spec, report.message or f"the container ended ({report.reason})")
    text = end_text(report, spec)
    killed = report.reason == CRASHED and _signal(report.exit_code) == signal.SIGKILL and not spec.is_generator
    if killed and attempt.entry.losses < MAX_KILLED:
        return Verdict(0.0, FAILURE, text)  # nobody of ours sent it: as if the machine had taken it away
    return after_failure(attempt.entry, spec, FAILURE, text)


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
