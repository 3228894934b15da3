"""How many containers each function should have now, and why. Rules: semantics.md sections 11.1 and 12.1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterable, Mapping, Optional, Sequence

from cadenza.protocol.nodes import READY
from cadenza.scheduling.cluster import SLOW_HEAD_S
from cadenza.scheduling.placement import makes_room, where
from cadenza.scheduling.states import ContainerState, FunctionState, NodeState

MAX_CONTAINERS_PER_FUNCTION = 4_000
"""Source: semantics.md section 30."""
START_WORTH_S = 0.25
"""Work that the present containers finish within this, or within the time of a start, is not worth another one."""
MIN_WINDOW_S = 2.0
UNUSED_SHARE = 1 / 6
"""A container beyond the need that never had an input ends after this share of the window, but not before
`MIN_WINDOW_S`. Source: semantics.md section 11.1: "if the pool is over-provisioned some end sooner"."""
MAX_START_FAILURES = 3
"""Failed starts by the user's fault, with none that succeeded between, until what waits fails with INIT_FAILURE."""
MAX_CRASHES = 10
"""Containers that crash one after the other, with no input that came to its own end between, until all that waits in an
ephemeral app fails. Source: semantics.md section 7."""
ASKED_AT_ONCE = 64
"""Up to so many containers, a user who says how many there may be gets them at once."""
FIRST_STEP_MILLI_CPU = 2_000
"""One container at first for so much of the machines' capacity, which counts each core four times: two on a core."""
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Decision:
    """Start ``start`` more, stop those named. ``again_at``: when time alone may change this."""

    start: int
    stop: tuple[str, ...]
    why: str
    again_at: float = math.inf
    capped: int = 0
    """How many it would have beyond the most that it may have."""


def first_step(nodes: Iterable[NodeState]) -> int:
    """How many containers are started at once for a function of which nothing is known yet."""
    return max(2, sum(one.info.capacity.cpu_milli for one in nodes if one.connected) // FIRST_STEP_MILLI_CPU)


def decide(function: FunctionState, now: float, first: int = MAX_CONTAINERS_PER_FUNCTION) -> Decision:
    """What a function's pool should become.

    While nothing is known of how long its inputs take, at most ``first`` containers start (or as many as the user said
    there may be, up to `ASKED_AT_ONCE`), and then as many again as are ready. Once it is known, it is asked how much
    work is left when a container that starts now would be ready: what waits and runs, and what comes meanwhile at the
    present rate, less what the present ones and those on their way do until then. Each one that starts
    has of that `START_WORTH_S` at least, and half of its own start. Where inputs turn out to take longer, the pool
    doubles.
    """
    spec = function.spec
    if function.removed:
        return Decision(0, (), "its app has ended")
    containers = function.containers
    alive = function.alive
    held, waiting = sum(one.held for one in alive), function.waiting_runs
    target = _target(function, alive)
    load = held + waiting
    needed = math.ceil(load / target - 1e-9)
    why = _demand(waiting, held, "batch" if spec.batch_max else "input", target, needed)
    again = math.inf
    average_s = function.average_s
    if spec.single_use:
        pass  # each input needs its own, however short it is
    elif average_s is None:
        ready = sum(1 for one in alive if one.state == READY)
        step = max(first, 2 * ready, min(spec.max_containers, ASKED_AT_ONCE))
        if min(needed, spec.max_containers or needed) > step:
            needed = step
            why += f"; {step} to begin with, since it is not known yet how long one takes"
    elif needed > len(alive):
        slow_s = max(SLOW_HEAD_S, 2 * average_s)
        slow = sum(1 for one in alive if one.state == READY and _is_slow(one, now, slow_s))
        able = sum(1 for one in alive if one.state == READY) - slow
        start_s = _start_s(function, alive, now)
        horizon_s = max(START_WORTH_S, start_s)
        work_s = load * average_s / spec.max_concurrent
        later_s = max(0.0, start_s - START_WORTH_S)
        coming_s = function.rate_now(now) * average_s / spec.max_concurrent * later_s
        worth_s = max(START_WORTH_S, start_s / 2)
        # Those on their way also have the work for which they were started: it must not start others again.
        done_s = able * horizon_s + sum(
            min(horizon_s, horizon_s - (start_s - (now - one.placed_at)) + worth_s)
            for one in alive
            if one.state != READY
        )
        left_s = work_s + coming_s - done_s
        worth = max(1, len(alive) - slow + max(0, math.ceil(left_s / worth_s - 1e-9)))
        each = f"at {average_s * 1000:.1f} ms each"
        if able and worth + slow <= len(alive) and 2 * slow <= len(alive):
            needed = len(alive)
            again = now + slow_s  # the average may be wrong about what runs now
            why += f"; but {each} it is done in {work_s / able:.2f} s by those that are ready ({able})"
        elif max(worth + slow, 2 * slow) < needed:
            needed = max(worth + slow, 2 * slow, len(alive))
            again = now + slow_s if able else math.inf
            why += f"; but {each} it is work for {worth}" + (f" beside {slow} that are busy for longer" if slow else "")
    if load and spec.buffer_containers:
        needed += spec.buffer_containers
        why += f", and {spec.buffer_containers} more as a buffer"
    wanted = needed
    if wanted < spec.min_containers:
        wanted, why = spec.min_containers, f"min_containers is {spec.min_containers}"
    most = spec.max_containers or MAX_CONTAINERS_PER_FUNCTION
    capped = max(0, wanted - most)
    if capped:
        wanted = most
        why += f"; it may have at most {most}"
    start = max(0, min(wanted - len(alive), most - len(containers)))
    if start and function.failing is not None:
        start, why = 0, "its containers do not start: " + function.failing.error
    elif start and now < function.blocked_until:
        start, again = 0, min(again, function.blocked_until)
        why += f"; the next start is in {function.blocked_until - now:.1f} s, because the last ones failed"
    stop: list[str] = []
    surplus = len(alive) - wanted
    if surplus > 0:
        idle = sorted((one for one in alive if one.usable and not one.attempts), key=_idle_order)
        share = 1.0 if spec.buffer_containers else UNUSED_SHARE  # a buffer is there to be unused
        unused_s = max(MIN_WINDOW_S, spec.scaledown_window_s * share)
        idle.sort(key=lambda one: one.taken > 0)
        for one in idle[:surplus]:
            until = one.idle_since + (spec.scaledown_window_s if one.taken else unused_s)
            if until <= now:
                stop.append(one.container_id)
            else:
                again = min(again, until)
    return Decision(start, tuple(stop), why, again, capped)


def _demand(waiting: int, held: int, noun: str, target: float, needed: int) -> str:
    """What there is to do, and for how many containers, in words."""
    if not waiting and not held:
        return "nothing waits or runs"
    plural = noun + ("es" if noun == "batch" else "s")
    does = "" if not waiting else f"1 {noun} waits" if waiting == 1 else f"{waiting} {plural} wait"
    if held:
        verb = "runs" if held == 1 else "run"
        does += f" and {held} {verb}" if waiting else f"{held} {noun if held == 1 else plural} {verb}"
    at_once = "" if target == 1 else f", {target:g} at a time in each"
    return f"{does}, which needs {needed} container{'' if needed == 1 else 's'}{at_once}"


def _start_s(function: FunctionState, alive: Sequence[ContainerState], now: float) -> float:
    """How long a container takes to start: as lately, and no shorter than one that is starting takes already."""
    oldest = min((one.placed_at for one in alive if one.state != READY), default=now)
    return max(function.start_s or 0.0, now - oldest)


def _target(function: FunctionState, alive: Sequence[ContainerState]) -> float:
    """How many runs at once a container should have: as declared, or the mean of what the present ones take."""
    if any(one.target != function.target for one in alive):
        return sum(one.target for one in alive) / len(alive)
    return function.target


def _is_slow(one: ContainerState, now: float, slow_s: float) -> bool:
    """Whether the oldest input of a container runs so long that the average says nothing about it."""
    for attempt in one.attempts.values():
        return attempt.zombie or (attempt.begun and now - attempt.begun_at >= slow_s)
    return False


def _idle_order(one: ContainerState) -> tuple[float, str]:
    return (one.idle_since, one.container_id)


def spare(
    functions: Iterable[FunctionState], count: int, useful: Callable[[ContainerState], bool] = lambda one: True
) -> list[str]:
    """Up to ``count`` idle containers above their functions' minimum and buffer, longest idle first: room for others.

    One that is still starting counts as idle when its function has nothing to do any more. ``useful``: whether the end
    of one would help."""
    found: list[ContainerState] = []
    for function in functions:
        if function.waiting:
            continue
        alive = function.alive
        idle = sorted((one for one in alive if not one.attempts and (one.usable or not function.busy)), key=_idle_order)
        kept = function.spec.buffer_containers if function.busy else 0
        idle = idle[: max(0, min(len(idle) - kept, len(alive) - function.spec.min_containers))]
        found += [one for one in idle if useful(one)]
    found.sort(key=_idle_order)
    return [one.container_id for one in found[:count]]


def largest(functions: Iterable[FunctionState]) -> Optional[FunctionState]:
    """The function that has most containers above its minimum and its buffer, and keeps one; None when none has."""
    best, most = None, 0
    for function in functions:
        keeps = max(1, function.spec.min_containers + function.spec.buffer_containers)
        count = len(function.alive)
        if count > keeps and count > most:
            best, most = function, count
    return best


def share(held: int, lacking: int, starving: int) -> int:
    """How many of the ``held`` places of the function that has most go to one of the ``starving`` ones."""
    return max(1, min(lacking, held // (1 + starving)))


def reclaim(
    function: FunctionState, starving: FunctionState, nodes: Mapping[str, NodeState]
) -> Optional[ContainerState]:
    """Which container of ``function`` gives its place to ``starving``, which waits and has none: an idle one, else the
    one with the fewest inputs, the oldest first. None when no single one leaves enough room."""
    requests, place = starving.spec.resources, where(starving.spec)
    able = (
        one
        for one in function.alive
        if nodes[one.node_id].connected and makes_room(one, nodes[one.node_id], requests, place)
    )
    return min(able, key=lambda one: (len(one.attempts), one.placed_at, one.container_id), default=None)


def backoff_s(failures: int) -> float:
    """How long to wait with the next start after so many failed ones in a row: the second comes at once."""
    if failures <= 1:
        return 0.0
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 2, 10))
