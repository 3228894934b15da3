"""What happens to functions, counted by the minute while it happens: inputs, containers, samples.

The minute that is under way is in memory; `write` puts closed ones into the table. Besides, each function has a running
total since the server began, for Prometheus and OpenTelemetry, which want counters that only grow.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import Callable, Iterable, NamedTuple, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error
from cadenza.observe.log import Log
from cadenza.observe.slice import Slice
from cadenza.protocol import nodes
from cadenza.protocol.nodes import NodeReport, Usage
from cadenza.scheduling.cluster import Cluster
from cadenza.storage.series import MINUTE_S, Kept, SeriesStore

SAMPLE_EVERY_S = 15.0
MAX_UNWRITTEN = 20_000
"""Slices that wait for a database that refuses them; what comes beyond is lost, and the log says so."""
FORGET_AFTER_S = 3600.0
"""A function that is gone stays in the totals for so long: whoever collects them comes by meanwhile."""
FAILED = (
    nodes.CRASHED, nodes.OOM, nodes.INIT_FAILED, nodes.START_TIMEOUT, nodes.RUNTIME_FAILED, nodes.NODE_LOST,
)  # fmt: skip
USED = ("cpu", "memory")
SAMPLED = ("pending", "running", "containers", "creating", *USED)
"""What is sampled: 0 now, of a function that is gone."""

_log = Log("cadenza.control.tally")


class Label(NamedTuple):
    """What a function is called where its numbers are shown."""

    app_id: str
    app: str
    function: str
    environment: str


class _Live:
    """A function's numbers."""

    __slots__ = ("label", "minute", "seen_at", "slice", "total")

    def __init__(self, label: Label, minute: int) -> None:
        self.label = label
        self.minute = minute
        self.slice = Slice()
        self.total = Slice()
        self.seen_at = 0.0


class Tally:
    """The numbers of all functions."""

    def __init__(
        self, store: SeriesStore, clock: Clock, cluster: Cluster, environment: Callable[[str], str] = lambda app_id: ""
    ) -> None:
        """``environment(app_id)`` names an app's environment."""
        self._store = store
        self._clock = clock
        self._cluster = cluster
        self._environment = environment
        self._live: dict[str, _Live] = {}
        self._closed: list[tuple[str, str, int, Slice]] = []
        self._started: set[str] = set()
        self._used: dict[str, tuple[float, float]] = {}
        self._sampled_at = -SAMPLE_EVERY_S
        self.writing = asyncio.Lock()
        """Held while slices go to the table, and by those who read both."""

    # --- what happens ---

    def knows(self, function_id: str) -> bool:
        """Whether the function's numbers have their labels already."""
        return function_id in self._live

    def slice(self, function_id: str) -> Slice:
        """The function's slice of this minute, to add to."""
        minute = int(self._clock.now()) // MINUTE_S * MINUTE_S
        live = self._live.get(function_id)
        if live is None:
            live = self._live[function_id] = _Live(self._label(function_id), minute)
        if live.minute != minute:
            self._close(function_id, live, minute)
        live.seen_at = self._clock.monotonic()
        return live.slice

    def _label(self, function_id: str) -> Label:
        function = self._cluster.functions.get(function_id)
        if function is None:
            return Label("", "", function_id, "")
        try:
            environment = self._environment(function.app_id)
        except Error:
            environment = ""
        return Label(function.app_id, function.app_name, function.spec.name, environment)

    def _close(self, function_id: str, live: _Live, minute: int) -> None:
        if not live.slice.empty:
            live.total.merge(live.slice)
            if len(self._closed) < MAX_UNWRITTEN:
                self._closed.append((function_id, live.label.app_id, live.minute, live.slice))
            else:
                _log.warning("statistics are lost: the database does not take them", function=function_id)
        live.minute, live.slice = minute, Slice()

    def report(self, report: NodeReport) -> None:
        """Containers that became ready or are gone. Before the cluster hears of it: it still knows those gone."""
        for one in report.containers:
            name = one.container_id
            if one.state == nodes.READY:
                if name not in self._started and name in self._cluster.containers:
                    self._started.add(name)
                    self._ready(self._cluster.containers[name].function.function_id, one)
            elif one.state == nodes.GONE:
                self._started.discard(name)
                self._used.pop(name, None)
                container = self._cluster.containers.get(name)
                if container is not None and container.stop is None and one.reason in FAILED:
                    self.slice(container.function.function_id).count("failed")

    def _ready(self, function_id: str, report: nodes.ContainerReport) -> None:
        mine = self.slice(function_id)
        mine.count("started")
        if report.warm:
            mine.count("warm")
        mine.durations("start", [sum(report.phases.values())])
        for phase, seconds in report.phases.items():
            mine.sample("phase." + phase, seconds)

    def usage(self, samples: Sequence[Usage]) -> None:
        """What containers use, from their node."""
        means: dict[tuple[str, str], list[float]] = {}
        for one in samples:
            container = self._cluster.containers.get(one.container_id)
            if container is None:
                continue
            function_id = container.function.function_id
            means.setdefault((function_id, "memory"), []).append(one.memory_bytes)
            before = self._used.get(one.container_id)
            self._used[one.container_id] = (one.time, one.cpu_s)
            if before is not None and one.time > before[0] and one.cpu_s >= before[1]:
                cores = (one.cpu_s - before[1]) / (one.time - before[0])
                means.setdefault((function_id, "cpu"), []).append(cores)
        for (function_id, name), values in means.items():
            mine = self.slice(function_id)
            for value in values:
                mine.sample(name, value)
            mine.sums[name][3] = sum(values) / len(values)  # what it uses now: the mean of its containers

    def sample(self) -> None:
        """How much waits and runs, each `SAMPLE_EVERY_S`. Called about once a second."""
        now = self._clock.monotonic()
        if now - self._sampled_at < SAMPLE_EVERY_S:
            return
        self._sampled_at = now
        there = self._cluster.containers  # what a lost node had is gone without a word of it
        self._started &= there.keys()
        self._used = {name: used for name, used in self._used.items() if name in there}
        for function_id, function in self._cluster.functions.items():
            pending = len(function.ready) + function.backlog
            if not (pending or function.running or function.containers or function_id in self._live):
                continue
            mine = self.slice(function_id)
            ready = sum(1 for one in function.containers.values() if one.state == nodes.READY)
            creating = sum(1 for one in function.containers.values() if one.state in (nodes.PREPARING, nodes.STARTING))
            mine.sample("pending", pending)
            mine.sample("running", function.running)
            mine.sample("containers", ready)
            mine.sample("creating", creating)

    # --- what is kept ---

    async def write(self, everything: bool = False) -> None:
        """Keep the minutes that are over; at the end (``everything``) also the one under way."""
        minute = int(self._clock.now()) // MINUTE_S * MINUTE_S
        for function_id, live in list(self._live.items()):
            if live.minute != minute or everything:
                self._close(function_id, live, minute)
            if self._clock.monotonic() - live.seen_at > FORGET_AFTER_S and function_id not in self._cluster.functions:
                del self._live[function_id]
        async with self.writing:
            rows, self._closed = self._closed, []
            try:
                await self._store.add(rows)
            except BaseException:
                self._closed = rows + self._closed
                raise

    # --- for readers ---

    def unwritten(self, function_ids: Iterable[str], since: float, until: float) -> list[Kept]:
        """What of these functions is not in the table yet, in order of time."""
        wanted = set(function_ids)
        found = [Kept(start, MINUTE_S, one) for function_id, _, start, one in self._closed if function_id in wanted]
        for function_id in wanted:
            live = self._live.get(function_id)
            if live is not None and not live.slice.empty:
                found.append(Kept(live.minute, MINUTE_S, live.slice))
        return [one for one in found if one.start + one.step_s > since and one.start < until]

    def of_app(self, app_id: str) -> list[str]:
        """The functions of an app that have numbers in memory."""
        return [name for name, live in self._live.items() if live.label.app_id == app_id]

    def totals(self) -> list[tuple[Label, Slice]]:
        """Everything since the server began, for each function; those that were busy last come first."""
        found = sorted(self._live.items(), key=lambda row: -row[1].seen_at)
        return [(live.label, self._whole(name, live)) for name, live in found]

    def _whole(self, function_id: str, live: _Live) -> Slice:
        whole = Slice()
        whole.merge(live.total)
        whole.merge(live.slice)
        function = self._cluster.functions.get(function_id)
        for name in SAMPLED if function is None else USED if not function.containers else ():
            if name in whole.sums:
                whole.sums[name][3] = 0.0
        return whole
