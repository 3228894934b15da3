"""How functions stand, in words: why an input waits, why a container is there, what is wrong. Pure.

The sentences are made from the state that decides, at the moment of the question.
"""

from __future__ import annotations

from typing import Iterable, Sequence

from cadenza.protocol.functions import LiveContainer, WaitingInput
from cadenza.protocol.nodes import PHASES, PREPARING, READY, STARTING
from cadenza.scheduling import dispatch
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.states import ContainerState, FunctionState

MAX_INPUTS = 20
MAX_CONTAINERS = 100
HOLDERS = 3

Waiting = tuple[str, str, float, int, int]
"""An input that waits in the table: its id, its call, from when it may run (epoch), its retries and losses."""


def phase(container: ContainerState) -> str:
    """Which phase of its start a container is in."""
    done = {} if container.report is None else container.report.phases
    at = max((PHASES.index(one) for one in done if one in PHASES), default=1)
    return PHASES[min(at + 1, len(PHASES) - 1)]


def holders(cluster: Cluster, but: FunctionState) -> str:
    """Which other functions hold the machines, those with most containers first."""
    counts: dict[str, int] = {}
    for one in cluster.containers.values():
        if one.function is not but:
            name = f"{one.function.app_name or one.function.app_id}/{one.function.spec.name}"
            counts[name] = counts.get(name, 0) + 1
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:HOLDERS]
    return ", ".join(f"{_count(count, 'container', 'containers')} of {name}" for name, count in most)


def standing(cluster: Cluster, function: FunctionState, now: float, stuck: bool, pause: str = "") -> str:
    """How a function stands: what its waiting inputs wait for, in a sentence. Pure; ``now`` in monotonic seconds.

    ``stuck``: it found no room on a machine. ``pause``: why nothing of it may start, if that is so.
    """
    if function.removed:
        return "it has ended; its containers are on their way out"
    trouble = _trouble(function, now)
    if not function.waiting:
        return trouble or _at_rest(function.running)
    if pause:
        return pause
    starting = [one for one in function.alive if one.state in (PREPARING, STARTING)]
    ready = [one for one in function.alive if one.state == READY]
    if trouble and not ready:
        return trouble
    if starting and not ready:
        oldest = min(starting, key=lambda one: one.placed_at)
        count = "a container is" if len(starting) == 1 else f"{len(starting)} containers are"
        since = f"for {now - oldest.placed_at:.1f} s now" + ("" if len(starting) == 1 else ", the oldest one")
        return f"{count} starting for it, {since}, in the phase {phase(oldest)!r}"
    most = function.spec.max_containers
    if stuck:
        by = holders(cluster, function)
        return f"no machine has room for one more container{': it is held by ' + by if by else ''}. {function.why}"
    if most and len(function.containers) >= most:
        old = sum(1 for one in function.containers.values() if one.stop is not None)
        whole = f"all {most} containers that it may have are" if most > 1 else "the one container that it may have is"
        text = f"{whole} busy (max_containers is {most})"
        return text + (f"; {old} of them are ending and may finish what they run first" if old else "")
    if not function.containers:
        return f"it has no container yet: {function.why}"
    more = f", and {_count(len(starting), 'more is', 'more are')} starting" if starting else ""
    return f"{_count(len(ready), 'container of it is', 'containers of it are')} busy{more}: {function.why}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _at_rest(running: int) -> str:
    return f"nothing waits; {_count(running, 'input runs', 'inputs run')}" if running else "nothing waits or runs"


def _trouble(function: FunctionState, now: float) -> str:
    """What is wrong with its containers, or an empty string."""
    if function.failing is not None:
        return f"its containers do not start, and what waits fails: {function.failing.error}"
    if not function.fault:
        return ""
    wait_s = function.blocked_until - now
    again = (
        f"the next start is in {wait_s:.1f} s" if wait_s > 0 else "the next start comes with the next input that is due"
    )
    if function.crashes:
        return f"{function.crashes} of its containers crashed one after the other; {again}: {function.fault}"
    failures = function.start_failures + function.internal_failures
    return f"{failures} of its containers failed to start one after the other; {again}: {function.fault}"


def note(functions: Iterable[FunctionState], now: float) -> str:
    """What is wrong with an app's functions now, in a sentence; empty when nothing is."""
    found = []
    for one in functions:
        again_and_again = one.start_failures + one.internal_failures + one.crashes >= 2
        trouble = _trouble(one, now) if again_and_again or one.failing is not None else ""
        if trouble:
            found.append(f"{one.spec.name}: {trouble}")
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more functions" if len(found) > 3 else "")


def waiting_inputs(
    function: FunctionState, now: float, wall: float, why: str, table: Sequence[Waiting]
) -> list[WaitingInput]:
    """The first inputs that wait, in memory and then in the table, each with its own reason. Pure.

    ``wall``: epoch seconds at the monotonic clock's 0.
    """
    found = []
    windows = {one.method: one for one in dispatch.groups(function)} if function.spec.batch_max else {}
    for entry in list(function.ready)[:MAX_INPUTS]:
        reason = why
        group = windows.get(entry.method) or windows.get(None)
        if group is not None and group.due_at > now:
            reason = (
                f"its batch has {group.count} of up to {function.spec.batch_max} inputs; "
                f"it leaves in {group.due_at - now:.2f} s at the latest"
            )
        found.append(WaitingInput(entry.input_id, entry.call_id, wall + entry.since, reason))
    for input_id, call_id, ready_at, retries, losses in table[: MAX_INPUTS - len(found)]:
        wait_s = ready_at - (wall + now)
        if wait_s > 0:
            what = f"its container ended under it {losses} times" if losses else f"it failed {retries} times"
            reason = f"{what}; it runs again in {wait_s:.1f} s"
        else:
            reason = f"it is queued behind {len(function.ready)} others; {why}"
        found.append(WaitingInput(input_id, call_id, ready_at, reason))
    return found


def live_containers(function: FunctionState, wall: float) -> list[LiveContainer]:
    """Its containers, oldest first."""
    ordered = sorted(function.containers.values(), key=lambda one: one.placed_at)[:MAX_CONTAINERS]
    return [
        LiveContainer(
            one.container_id, one.state if one.stop is None else "stopping", wall + one.placed_at, one.begun, one.why
        )
        for one in ordered
    ]
