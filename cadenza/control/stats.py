"""Statistics for readers: ``stats.read``, ``metric.*``, ``stats.describe`` and ``function.inputs``.

Source: semantics.md sections 11.1 and 26. Ranges are of whole minutes, two days back and before that of whole hours.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Optional, Protocol, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.control.access import Access
from cadenza.control.history import History
from cadenza.control.request import Caller, Request
from cadenza.control.tally import Tally
from cadenza.observe.histogram import percentiles
from cadenza.observe.names import CURVES
from cadenza.observe.slice import Slice, merged
from cadenza.protocol.functions import FunctionInputs, FunctionRef, InputRow, InputRows
from cadenza.protocol.method import READ
from cadenza.protocol.objects import FunctionSpec
from cadenza.protocol.stats import (
    GROUPS, Distribution, FunctionDetails, MetricDefinition, MetricGroups, MetricQuery, Metrics, MetricSchema,
    MetricSeries, Stats, StatsQuery,
)  # fmt: skip
from cadenza.protocol.statuses import PENDING, SUCCESS, TIMEOUT
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.states import FunctionState
from cadenza.storage.recent import KEPT_INPUTS, Ended
from cadenza.storage.series import AGE_S, MINUTE_S, Kept, SeriesStore

RUNNING = "RUNNING"
"""The status of an input that is in a container; one that waits is PENDING."""
BUCKETS_S = tuple(60 * one for one in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 480, 720, 1440))
ABOUT_BUCKETS = 100
MAX_BUCKETS = 3_000
METRICS_RANGE_S = 24 * 3600.0
"""What a chart shows when nobody says since when."""
LIVE_S = 60.0
"""Up to so long ago, the end of a range is now."""


class App(Protocol):
    """What is needed of an app."""

    @property
    def app_id(self) -> str: ...

    @property
    def environment(self) -> str: ...


class Function(Protocol):
    """What is needed of a function."""

    @property
    def app_id(self) -> str: ...

    @property
    def spec(self) -> FunctionSpec: ...


class Reader:
    """Handlers of statistics."""

    def __init__(
        self,
        tally: Tally,
        series: SeriesStore,
        history: History,
        cluster: Cluster,
        clock: Clock,
        access: Access,
        app: Callable[[str, str], App],
        function: Callable[[str], Function],
        variants: Callable[[str], Iterable[str]],
        versions: Callable[[str], int] = lambda app_id: 0,
    ) -> None:
        """``app(word, environment)`` and ``function(id)`` look things up, or raise NotFoundError; ``variants(id)`` the
        ids of a function's variants; ``versions(app_id)`` how often an app was deployed."""
        self._tally = tally
        self._series = series
        self._history = history
        self._cluster = cluster
        self._clock = clock
        self._access = access
        self._app = app
        self._function = function
        self._variants = variants
        self._versions = versions

    # --- methods ---

    async def read(self, request: Request[StatsQuery]) -> Stats:
        query = request.body
        since, until = self._range(query.since, query.until, 0.0)
        app_id, ids = await self._whose(
            request.caller, query.app, query.environment, query.function_id, query.all_variants and not query.container
        )
        self._history.drain()
        variants = len(ids) - 1 if query.function_id else 0
        if query.container:
            return await self._of_container(ids, query, since or until - AGE_S, until)
        before = LIVE_S if since else 0.0
        kept = await self._kept(app_id if not query.function_id else "", ids, since - before, until)
        earlier = [one for one in kept if one.start + one.step_s <= since]
        kept = [one for one in kept if one.start + one.step_s > since]
        if not since:
            since = float(min((one.start for one in kept), default=until))
        functions = [one for one in map(self._cluster.functions.get, ids) if one is not None]
        is_now = self._clock.now() - until < LIVE_S
        return summary(
            merged(one.slice for one in kept), since, until,
            sum(one.running for one in functions) if is_now else _last(kept, "running"),
            sum(_creating(one) for one in functions) if is_now else _last(kept, "creating"),
            _last(earlier, "containers"), variants, self._versions(app_id) if not query.function_id else 0,
        )  # fmt: skip

    async def _of_container(self, ids: Sequence[str], query: StatsQuery, since: float, until: float) -> Stats:
        """From the inputs that are kept one by one; what its containers did otherwise is not known for one alone."""
        rows: list[Ended] = []
        for one in ids:
            found = await self._history.read(one, since, KEPT_INPUTS)
            rows += [row for row in found if row.container_id == query.container and row.enqueued_at < until]
        mine = Slice()
        for row in rows:
            mine.count(row.status)
        ran = [row for row in rows if row.started_at]
        mine.durations("run", [max(0.0, row.finished_at - row.started_at) for row in ran])
        mine.durations("queue", [max(0.0, row.started_at - row.enqueued_at) for row in ran])
        container = self._cluster.containers.get(query.container)
        return summary(mine, since, until, len(container.attempts) if container is not None else 0, 0, 1, 0, 0)

    async def metric(self, request: Request[MetricQuery]) -> Metrics:
        query = request.body
        groups = checked_groups(query.groups)
        since, until = self._range(query.since, query.until, METRICS_RANGE_S)
        bucket_s = bucket_size(query.bucket_s, until - since)
        app_id, ids = await self._whose(
            request.caller, query.app, query.environment, query.function_id, query.all_variants
        )
        self._history.drain()
        kept = await self._kept(app_id if not query.function_id else "", ids, since, until)
        return curves(kept, since, until, bucket_s, groups)

    async def schema(self, request: Request[MetricGroups]) -> MetricSchema:
        groups = checked_groups(request.body.groups)
        return MetricSchema(
            tuple(
                MetricDefinition(one.name, one.unit, one.aggregation, one.description, one.group)
                for one in CURVES
                if one.group in groups
            )
        )

    async def inputs(self, request: Request[FunctionInputs]) -> InputRows:
        query = request.body
        if query.tail < 0:
            raise InvalidError("tail must not be negative")
        _, ids = await self._whose(request.caller, "", "", query.function_id, query.all_variants)
        limit = min(query.tail or KEPT_INPUTS, KEPT_INPUTS)
        rows: list[InputRow] = []
        wall = self._clock.now() - self._clock.monotonic()
        for name in ids:
            function = self._cluster.functions.get(name)
            if function is not None:
                rows += [one for one in unfinished(function, wall, KEPT_INPUTS) if one.enqueued_at >= query.since]
            ended = await self._history.read(name, query.since, KEPT_INPUTS if query.until else limit)
            rows += [_row(one) for one in ended]
            if query.until:
                rows = [one for one in rows if one.enqueued_at < query.until]
            rows.sort(key=lambda one: one.enqueued_at, reverse=True)
            del rows[limit:]  # after each function: there may be thousands of variants
        return InputRows(tuple(rows))

    async def describe(self, request: Request[FunctionRef]) -> FunctionDetails:
        found = self._function(request.body.function_id)
        self._access.check(request.caller, self._app(found.app_id, "").environment, READ)
        return details(found.app_id, request.body.function_id, found.spec)

    # --- what they need ---

    def _range(self, since: float, until: float, default_s: float) -> tuple[float, float]:
        now = self._clock.now()
        end = until or now
        begin = since or (end - default_s if default_s else 0.0)
        if since and since >= end:
            raise InvalidError("since must be before until")
        return max(begin, now - AGE_S - MINUTE_S) if begin else 0.0, end

    async def _whose(
        self, caller: Caller, app: str, environment: str, function_id: str, all_variants: bool
    ) -> tuple[str, list[str]]:
        """The app and the functions that are meant, if the caller may know of them."""
        if function_id:
            try:
                app_id = self._function(function_id).app_id
            except NotFoundError:
                app_id = await self._series.app_of(function_id)  # its app is stopped: what is kept can be read
                if not app_id:
                    raise
            self._access.check(caller, self._app(app_id, "").environment, READ)
            return app_id, [function_id, *(self._variants(function_id) if all_variants else ())]
        if not app:
            raise InvalidError("name an app or a function")
        found = self._app(app, self._access.environment(caller, environment, READ))
        self._access.check(caller, found.environment, READ)
        ids = [one.function_id for one in self._cluster.functions.values() if one.app_id == found.app_id]
        return found.app_id, [*ids, *(one for one in self._tally.of_app(found.app_id) if one not in ids)]

    async def _kept(self, app_id: str, ids: Sequence[str], since: float, until: float) -> list[Kept]:
        """What is in the table and what is not there yet, in order of time."""
        async with self._tally.writing:  # else a minute could be in both, or in neither
            kept = (
                await self._series.read_app(app_id, since, until)
                if app_id
                else await self._series.read(ids, since, until)
            )
            kept += self._tally.unwritten(ids, since, until)
        return sorted(kept, key=lambda one: one.start)


def summary(
    one: Slice, since: float, until: float, running: float, creating: float, before: float, variants: int,
    deployments: int,
) -> Stats:  # fmt: skip
    """What a slice says in short. ``before``: how many containers there were when the range began. Pure."""
    ended = {name: count for name, count in one.counts.items() if name.isupper()}
    good, late = ended.pop(SUCCESS, 0), ended.pop(TIMEOUT, 0)
    started = one.counts.get("started", 0)
    inputs = {
        name: Distribution("s", percentiles(one.times[source]))
        for name, source in (("execution_time", "run"), ("queue_time", "queue"), ("cold_start_time", "cold"))
        if one.times.get(source)
    }
    containers = {}
    if one.times.get("start"):
        containers["startup_time"] = Distribution("s", percentiles(one.times["start"]))
    return Stats(
        since, until, good, sum(ended.values()), late, int(running), started, one.counts.get("failed", 0),
        int(creating), max(started + int(before), int(one.most("containers"))), variants, deployments, inputs,
        containers,
    )  # fmt: skip


def curves(kept: Sequence[Kept], since: float, until: float, bucket_s: float, groups: Iterable[str]) -> Metrics:
    """One series for each metric of ``groups`` that has values; a bucket without any is left out. Pure."""
    buckets: dict[float, Slice] = {}
    for one in kept:
        start = one.start // bucket_s * bucket_s
        if start < until and one.start + one.step_s > since:
            buckets.setdefault(start, Slice()).merge(one.slice)
    found = []
    for curve in CURVES:
        if curve.group not in groups:
            continue
        points = [(start, value) for start in sorted(buckets) if (value := curve.read(buckets[start])) is not None]
        if points:
            times, values = zip(*points)
            found.append(MetricSeries(curve.name, curve.unit, curve.aggregation, curve.description, times, values))
    return Metrics(since, until, bucket_s, tuple(found))


def bucket_size(wanted_s: float, range_s: float) -> float:
    """The width of buckets: ``wanted_s``, or about `ABOUT_BUCKETS` of them. InvalidError for a width that is none of
    `BUCKETS_S`, or so small that there would be more than `MAX_BUCKETS`. Pure."""
    if not wanted_s:
        return float(next((one for one in BUCKETS_S if range_s / one <= ABOUT_BUCKETS), BUCKETS_S[-1]))
    if wanted_s not in BUCKETS_S:
        known = ", ".join(f"{one // 60}m" for one in BUCKETS_S)
        raise InvalidError(f"a bucket may be {known} long, not {wanted_s:g} seconds")
    if range_s / wanted_s > MAX_BUCKETS:
        raise InvalidError(f"that would be more than {MAX_BUCKETS:,} buckets: ask for wider ones or a shorter range")
    return float(wanted_s)


def checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """The groups that are meant: none means all. InvalidError for an unknown one. Pure."""
    for one in groups:
        if one not in GROUPS:
            raise InvalidError(f"there is no group of metrics named {one[:40]!r}: there are {', '.join(GROUPS)}")
    return tuple(groups) or GROUPS


def unfinished(function: FunctionState, wall: float, limit: int) -> list[InputRow]:
    """The inputs of a function that wait in memory or run. ``wall`` makes epoch seconds of monotonic ones."""
    rows = []
    for container in function.containers.values():
        for attempt in container.attempts.values():
            entry = attempt.entry
            if not attempt.zombie and not entry.done:
                started_at = wall + attempt.begun_at if attempt.begun else 0.0
                rows.append(
                    InputRow(
                        entry.input_id, entry.call_id, function.function_id, RUNNING if attempt.begun else PENDING,
                        entry.ready_at, started_at, 0.0, container.container_id, entry.method,
                        entry.attempts + entry.retries,
                    )
                )  # fmt: skip
    for entry in function.ready:
        if len(rows) >= limit:
            break
        if not entry.done:
            rows.append(
                InputRow(
                    entry.input_id, entry.call_id, function.function_id, PENDING, entry.ready_at, method=entry.method,
                    attempts=entry.attempts + entry.retries,
                )
            )  # fmt: skip
    return rows


def details(app_id: str, function_id: str, spec: FunctionSpec) -> FunctionDetails:
    """A function as it is declared, without what is secret. Pure."""
    needs = spec.resources
    return FunctionDetails(
        function_id=function_id,
        app_id=app_id,
        image_id=spec.image.image_id(),
        cpu_milli=needs.cpu_milli,
        cpu_limit_milli=needs.cpu_limit_milli,
        memory_mib=needs.memory_mib,
        memory_limit_mib=needs.memory_limit_mib,
        disk_mib=needs.disk_mib,
        gpus=tuple(needs.gpus),
        timeout_s=spec.timeout_s,
        startup_timeout_s=spec.startup_timeout_s,
        max_retries=spec.retries.max_retries if spec.retries is not None else None,
        max_concurrent=spec.max_concurrent,
        target_concurrent=spec.target_concurrent,
        batch_max=spec.batch_max,
        batch_wait_ms=spec.batch_wait_ms,
        block_network=spec.block_network,
        restricted=spec.restricted,
        single_use=spec.single_use,
        secrets=tuple(one.name for one in spec.secrets if one.name),
        methods=tuple(one.name for one in spec.methods),
        options=dict(spec.options),
    )


def _row(one: Ended) -> InputRow:
    return InputRow(
        one.input_id, one.call_id, one.function_id, one.status, one.enqueued_at, one.started_at, one.finished_at,
        one.container_id, one.method, one.attempts, one.error,
    )  # fmt: skip


def _creating(function: FunctionState) -> int:
    return sum(1 for one in function.containers.values() if not one.ready_since)


def _last(kept: Sequence[Kept], name: str) -> float:
    found: Optional[Kept] = next((one for one in reversed(kept) if name in one.slice.sums), None)
    return found.slice.last(name) if found is not None else 0.0


def handlers(reader: Reader) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "stats.read": reader.read,
        "metric.read": reader.metric,
        "metric.schema": reader.schema,
        "function.inputs": reader.inputs,
        "stats.describe": reader.describe,
    }
