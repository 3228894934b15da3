"""Traffic of several shapes through the real engine in virtual time, measured against a scaler that knows the future.

What is measured of a run: how long inputs wait from their arrival until they begin (mean, p50, p99, longest), and
*container-seconds*: of each container the time from the wish for it until it is gone, starts and idle time included.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

sys.path.insert(0, str(Path(__file__).parent))
from world import Faults, VirtualLoop, World

from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import SUCCESS, SYNC, Attempt
from cadenza.protocol.nodes import ContainerSpec
from cadenza.protocol.objects import FunctionSpec

CORES = 16
"""Of the machine: enough for every shape, so that the autoscaler decides and not the room."""
WINDOW_S = 60.0
"""The scaledown_window, as it is by default."""


@dataclass(frozen=True)
class Trace:
    """Inputs in order of arrival: when each comes, and how long it runs. Seconds."""

    arrivals: tuple[float, ...]
    durations: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """Waiting times and container-seconds of one run."""

    waits: tuple[float, ...]
    container_s: float
    containers: int
    """How many were started in all."""
    unfinished: int = 0

    @property
    def mean(self) -> float:
        return sum(self.waits) / max(1, len(self.waits))

    def quantile(self, q: float) -> float:
        """The waiting time that the share ``q`` of the inputs does not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else 0.0


# --- shapes: when inputs come ---


def step(rate: float, for_s: float, random_: random.Random) -> list[float]:
    """From nothing to ``rate`` inputs a second, evenly."""
    return [number / rate for number in range(int(rate * for_s))]


def ramp(rate: float, for_s: float, random_: random.Random) -> list[float]:
    """The rate grows from nothing to ``rate``, as a straight line."""
    count = int(rate * for_s / 2)
    return [for_s * math.sqrt((number + 0.5) / count) for number in range(count)]


def burst(rate: float, for_s: float, random_: random.Random) -> list[float]:
    """As many as ``rate`` brings in a fifth of the time, all at once."""
    return [0.0] * int(rate * for_s / 5)


def on_off(rate: float, for_s: float, random_: random.Random) -> list[float]:
    """A sixth of the time at ``rate``, then as long a silence, and so on; the last silence is longer than a window."""
    part = for_s / 6
    found = [n * 2 * part + k / rate for n in range(3) for k in range(int(rate * part))]
    late = 6 * part + 2 * WINDOW_S
    return found + [late + k / rate for k in range(int(rate * part))]


def diurnal(rate: float, for_s: float, random_: random.Random) -> list[float]:
    """Poisson arrivals whose rate is a wave between nothing and ``rate``; two days, each half of the time."""
    found, now = [], 0.0
    while now < for_s:
        now += random_.expovariate(rate)
        if random_.random() < (1 - math.cos(4 * math.pi * now / for_s)) / 2:  # thinned to the wave
            found.append(now)
    return found


SHAPES: dict[str, Callable[[float, float, random.Random], list[float]]] = {
    "step": step, "ramp": ramp, "burst": burst, "on-off": on_off, "diurnal": diurnal,
}  # fmt: skip


# --- how long they run ---


def fixed(mean_s: float, random_: random.Random) -> float:
    return mean_s


def heavy(mean_s: float, random_: random.Random) -> float:
    """Pareto with exponent 1.5: most are short, a few very long; at most 40 times the mean."""
    return min(40 * mean_s, mean_s / 3 * random_.paretovariate(1.5))


TIMES: dict[str, Callable[[float, random.Random], float]] = {"fixed": fixed, "heavy": heavy}


def trace(shape: str, times: str, rate: float, for_s: float, mean_s: float, seed: int = 1) -> Trace:
    """The same for the same arguments."""
    random_ = random.Random(f"{shape} {times} {seed}")
    arrivals = sorted(SHAPES[shape](rate, for_s, random_))
    return Trace(tuple(arrivals), tuple(round(TIMES[times](mean_s, random_), 6) for _ in arrivals))


# --- the scaler that knows the future ---


def clairvoyant(what: Trace, start_s: float, most: int = 0) -> Measured:
    """What a scaler does that knows every arrival and duration.

    The rule, offline: inputs are taken in order. Each begins at its arrival, in the container that fell idle last; if
    none is idle, in a new one, which was started ``start_s`` before, so that it is up just in time. Where ``most``
    containers are there already, the input waits for the one that falls idle first. A container is kept over an idle
    time that is shorter than a start, and else ended at once and started anew just in time. So nobody waits where
    ``most`` allows it, and no container is there for longer than that needs; with fixed durations no scaler that lets
    nobody wait has fewer container-seconds, but for the assignment of inputs to containers.
    """
    free_at: list[float] = []
    spans: list[list[float]] = []
    waits = []
    total_s, started = 0.0, 0
    for arrival, took in zip(what.arrivals, what.durations):
        idle = [number for number, at in enumerate(free_at) if at <= arrival]
        if idle:
            chosen = max(idle, key=lambda number: free_at[number])
        elif most and len(free_at) >= most:
            chosen = min(range(len(free_at)), key=lambda number: free_at[number])
        else:
            chosen = len(free_at)
            free_at.append(arrival)
            spans.append([arrival, arrival])
            total_s, started = total_s + start_s, started + 1
        begins = max(arrival, free_at[chosen])
        waits.append(begins - arrival)
        if begins - free_at[chosen] > start_s:  # it was ended meanwhile
            total_s += spans[chosen][1] - spans[chosen][0] + start_s
            started += 1
            spans[chosen] = [begins, begins]
        free_at[chosen] = spans[chosen][1] = begins + took
    total_s += sum(end - begin for begin, end in spans)
    return Measured(tuple(waits), total_s, started)


# --- the engine ---


@dataclass
class _Life:
    """Of one container."""

    since: float
    until: Optional[float] = None


class _Traffic(World):
    """A world without faults whose containers take a given time to start."""

    def __init__(self, loop: VirtualLoop, start_s: float) -> None:
        super().__init__(1, Faults(), loop)
        self.faulty = False
        self.capacity = Resources(CORES * 4_000, 1 << 20)
        self.start_s = start_s
        self.lives: dict[str, _Life] = {}
        self.began: dict[str, float] = {}
        """By call."""
        self._call_of: dict[str, str] = {}

    def _prepare(self, spec: ContainerSpec) -> None:
        super()._prepare(spec)
        box = self.boxes[spec.container_id]
        for handle in box.handles:
            handle.cancel()
        box.handles = [self.loop.call_later(self.start_s, self._move, box, nodes.READY)]
        self.lives[spec.container_id] = _Life(self.loop.time())

    def _remove(self, box: Any) -> None:
        super()._remove(box)
        life = self.lives[box.spec.container_id]
        life.until = life.until or self.loop.time()

    def _delivered(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        for one in attempts:
            self._call_of[one.attempt_id] = one.call_id
        super()._delivered(container_id, attempts)

    def _ran(self, box: Any, attempt: str, word: str, begun: float, retry: int) -> None:
        self.began[self._call_of[attempt]] = begun
        super()._ran(box, attempt, word, begun, retry)


@dataclass
class _Run:
    calls: dict[str, float] = field(default_factory=dict)
    """When each call arrived."""
    ended: int = 0


def engine(what: Trace, start_s: float, **spec: Any) -> Measured:
    """The trace through the control plane, from nothing to nothing. ``spec``: fields of the `FunctionSpec`."""
    loop = VirtualLoop()
    world = _Traffic(loop, start_s)
    world.functions["f"] = FunctionSpec(
        "f", **{"resources": Resources(125, 128), "timeout_s": 3600.0, "scaledown_window_s": WINDOW_S, **spec}
    )
    run = _Run()

    def arrive(took: float) -> None:
        def done(item: Any, data: bytes) -> None:
            run.ended += item.status == SUCCESS

        call_id, _ = world.calls.attach("f", SYNC, [(0, b"ok %.6f" % took, None)], total=1, on_output=done)
        run.calls[call_id] = loop.time()

    async def play() -> None:
        await world.boot()
        await asyncio.sleep(1.0)
        begin = loop.time()
        for at, took in zip(what.arrivals, what.durations):
            loop.call_at(begin + at, arrive, took)
        last = max(what.arrivals) + 1.0
        await asyncio.sleep(last)
        for _ in range(100_000):
            if run.ended == len(what.arrivals) and not world.boxes:
                break
            await asyncio.sleep(5.0)
        await world.calls.stop()

    try:
        loop.run_until_complete(play())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    waits = tuple(world.began[call] - arrived for call, arrived in run.calls.items() if call in world.began)
    container_s = sum((one.until or loop.time()) - one.since for one in world.lives.values())
    return Measured(waits, container_s, len(world.lives), len(what.arrivals) - run.ended)
