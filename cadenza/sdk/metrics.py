"""A function's metrics over time: ``f.metrics.schema()``, ``f.metrics.export()``. Source: semantics.md section 26."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Optional, Sequence

from cadenza.base.errors import InvalidError
from cadenza.protocol.stats import GROUPS, MetricGroups, MetricQuery, Metrics, MetricSchema
from cadenza.sdk import _dual
from cadenza.sdk.stats import moment, moments
from cadenza.sdk.types import MetricDefinition, MetricSeries, MetricsSchema, ObjectMetrics, TimeSeriesPoint

if TYPE_CHECKING:
    from cadenza.sdk.function import Function


class FunctionMetrics:
    """The metrics of one function."""

    def __init__(self, function: Function[Any, Any, Any]) -> None:
        self._function = function

    @_dual.method
    async def schema(self, groups: Optional[Sequence[str]] = None) -> list[MetricsSchema]:
        """Which metrics there are, group by group: all, or ``groups`` of containers, cpu, memory, network, gpu,
        calls."""
        wanted = _groups("metrics.schema", groups)
        self._function._hydrate_here()
        client = await self._function._ready()
        found: MetricSchema = await client._request("metric.schema", MetricGroups(wanted))
        return [
            MetricsSchema(
                group,
                [
                    MetricDefinition(one.name, one.unit, one.description)
                    for one in found.definitions
                    if one.group == group
                ],
            )
            for group in wanted or GROUPS
        ]

    @_dual.method
    async def export(
        self,
        *,
        since: Optional[datetime] = None,
        until: Optional[datetime] = None,
        bucket_size: Optional[timedelta] = None,
        groups: Optional[Sequence[str]] = None,
        all_variants: bool = False,
    ) -> ObjectMetrics:
        """The values from ``since`` (None: a day before) to ``until`` (None: now), in buckets of ``bucket_size``.

        None: a width that gives about 100 buckets. A bucket in which nothing was measured has the value None.
        ``all_variants``: this function and its variants together. InvalidError for a width that the server has not.
        """
        begin, end = moments("metrics.export", since, until)
        if bucket_size is not None and not isinstance(bucket_size, timedelta):
            raise InvalidError(f"metrics.export: bucket_size must be a timedelta, not {type(bucket_size).__name__}")
        width_s = bucket_size.total_seconds() if bucket_size is not None else 0.0
        if bucket_size is not None and width_s <= 0:
            raise InvalidError("metrics.export: bucket_size must be above 0")
        wanted = _groups("metrics.export", groups)
        self._function._hydrate_here()
        client = await self._function._ready()
        function_id = self._function.object_id
        query = MetricQuery(
            function_id=function_id, since=begin, until=end, bucket_s=width_s, groups=wanted, all_variants=all_variants
        )
        return exported(function_id, await client._request("metric.read", query))


def exported(object_id: str, found: Metrics) -> ObjectMetrics:
    """As users see it: every bucket of the range, with None where nothing was measured. Pure."""
    first = found.since // found.bucket_s * found.bucket_s
    count = int((found.until - first) // found.bucket_s) + 1
    starts = [one for one in (first + number * found.bucket_s for number in range(count)) if one < found.until]
    times = [moment(one) for one in starts]
    series = {}
    for one in found.series:
        values = dict(zip(one.times, one.values))
        points = [TimeSeriesPoint(at, values.get(start)) for at, start in zip(times, starts)]
        series[one.name] = MetricSeries(one.name, one.unit, one.aggregation, points, one.description)
    return ObjectMetrics(
        object_id, moment(found.since), moment(found.until), timedelta(seconds=found.bucket_s), len(starts), series
    )


def _groups(what: str, groups: Optional[Sequence[str]]) -> tuple[str, ...]:
    if groups is None:
        return ()
    if isinstance(groups, str):
        raise InvalidError(f"{what}: groups must be a list, such as [{groups!r}]")
    for one in groups:
        if one not in GROUPS:
            raise InvalidError(f"{what}: there is no group {one!r}: there are {', '.join(GROUPS)}")
    return tuple(groups)
