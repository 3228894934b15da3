"""What the server counted of a function or an app, and what a function is declared to be: ``stats`` and ``info``.

Source: semantics.md sections 11.1, 26 and 31.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Mapping, Optional

from cadenza.base.errors import InvalidError
from cadenza.protocol.functions import FunctionRef
from cadenza.protocol.stats import Distribution, FunctionDetails, Stats, StatsQuery
from cadenza.sdk.types import (
    AppInfo,
    AppStats,
    FunctionInfo,
    FunctionStats,
    StatsPercentile,
    StatsPercentileDistribution,
)

if TYPE_CHECKING:
    from cadenza.sdk.app_deployed import AppOnServer
    from cadenza.sdk.client import Client
    from cadenza.sdk.function import Function


def moments(what: str, since: Optional[datetime], until: Optional[datetime]) -> tuple[float, float]:
    """A range in epoch seconds, 0 for what is not given. A time without a zone is local. InvalidError. Pure."""
    for name, value in (("since", since), ("until", until)):
        if value is not None and not isinstance(value, datetime):
            raise InvalidError(f"{what}: {name} must be a datetime, not {type(value).__name__}")
    begin = since.timestamp() if since is not None else 0.0
    end = until.timestamp() if until is not None else 0.0
    if begin and begin >= (end or time.time()):
        raise InvalidError(f"{what}: since must be before until, and not in the future")
    return begin, end


def moment(seconds: float) -> datetime:
    """Epoch seconds as a time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def distributions(found: Mapping[str, Distribution]) -> dict[str, StatsPercentileDistribution]:
    """As users see them. Pure."""
    return {
        name: StatsPercentileDistribution(
            one.unit, [StatsPercentile(float(percent), value) for percent, value in one.percentiles.items()]
        )
        for name, one in found.items()
    }


async def function_stats(
    function: Function[Any, Any, Any],
    since: Optional[datetime],
    until: Optional[datetime],
    container: Optional[str],
    all_variants: bool,
) -> FunctionStats:
    """`Function.stats`."""
    begin, end = moments("Function.stats", since, until)
    if container is not None and not isinstance(container, str):
        raise InvalidError(f"Function.stats: container must be a container's id, not {type(container).__name__}")
    function._hydrate_here()
    client = await function._ready()
    query = StatsQuery(
        function_id=function.object_id, since=begin, until=end, container=container or "", all_variants=all_variants
    )
    found: Stats = await client._request("stats.read", query)
    return FunctionStats(
        since=moment(found.since),
        until=moment(found.until),
        input_success_count=found.success,
        input_failure_count=found.failure,
        input_timeout_count=found.timeout,
        input_running_at_end_count=found.running_at_end,
        input_percentile_stats=distributions(found.inputs),
        container_started_count=found.started,
        container_error_count=found.errors,
        container_creating_at_end_count=found.creating_at_end,
        container_percentile_stats=distributions(found.containers),
        container_total_count=found.total,
        variant_count=found.variants,
        all_variants=all_variants and not container,
    )


async def app_stats(app: AppOnServer, since: Optional[datetime], until: Optional[datetime]) -> AppStats:
    """`App.stats`."""
    begin, end = moments("App.stats", since, until)
    info: AppInfo = await app.info.aio(refresh=True)
    client: Client
    client, _ = await app._logs_place()  # type: ignore[attr-defined]
    found: Stats = await client._request("stats.read", StatsQuery(app=info.app_id, since=begin, until=end))
    group = AppStats.FunctionStatsGroup(
        count=len(info.functions),
        input_success_count=found.success,
        input_failure_count=found.failure,
        input_timeout_count=found.timeout,
        input_running_at_end_count=found.running_at_end,
        container_started_count=found.started,
        container_error_count=found.errors,
        container_creating_at_end_count=found.creating_at_end,
        container_total_count=found.total,
        input_percentile_stats=distributions(found.inputs),
        container_percentile_stats=distributions(found.containers),
    )
    return AppStats(
        since=moment(found.since),
        until=moment(found.until),
        functions=group,
        servers=AppStats.ServerStatsGroup(),
        sandboxes=AppStats.SandboxCounts(),
        lifecycle=info.lifecycle,
        deployment_count=found.deployments or None,
    )


async def function_info(function: Function[Any, Any, Any]) -> FunctionInfo:
    """`Function.info`."""
    function._hydrate_here()
    client = await function._ready()
    return described(await client._request("stats.describe", FunctionRef(function.object_id)))


def described(found: FunctionDetails) -> FunctionInfo:
    """What a function is declared to be, as users see it. Pure."""
    options = found.options
    concurrency = batching = None
    if found.batch_max:
        batching = FunctionInfo.BatchingInfo(found.batch_max, found.batch_wait_ms)
    if found.max_concurrent > 1:
        concurrency = FunctionInfo.ConcurrencyInfo(found.max_concurrent, found.target_concurrent)
    cpu, most = found.cpu_milli / 1000.0, found.cpu_limit_milli / 1000.0
    regions = [one for one in options.get("region", "").split(",") if one]
    return FunctionInfo(
        cpu=(cpu, most) if most else cpu,
        memory_mib=(found.memory_mib, found.memory_limit_mib) if found.memory_limit_mib else found.memory_mib,
        gpus=[(one.type, one.count) for one in found.gpus],
        ephemeral_disk_mib=found.disk_mib or None,
        image_info=FunctionInfo.ImageInfo(found.image_id),
        startup_timeout=int(found.startup_timeout_s) or None,
        timeout=int(found.timeout_s),
        max_retries=found.max_retries,
        nonpreemptible=bool(options.get("nonpreemptible")),
        regions=regions or None,
        routing_region=options.get("routing_region") or None,
        cloud=options.get("cloud") or None,
        cluster_info=None,
        batching_info=batching,
        concurrency_info=concurrency,
        schedule=options.get("schedule") or None,
        restrict_modal_access=found.restricted,
        block_network=found.block_network,
        single_use_containers=found.single_use,
        secrets=list(found.secrets),
        method_names=list(found.methods) or None,
    )
