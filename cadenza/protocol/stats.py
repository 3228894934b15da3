"""What is said of statistics and metrics over time. Source: semantics.md sections 11.1 and 26."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.base.resources import Gpu
from cadenza.protocol.functions import FunctionRef
from cadenza.protocol.method import CLIENT, READ, Method

GROUPS = ("containers", "cpu", "memory", "network", "gpu", "calls")


@dataclass(frozen=True)
class StatsQuery:
    """``until`` 0: now; ``since`` 0: as far back as is kept. Epoch seconds, ``until`` not included."""

    function_id: str = ""
    app: str = ""
    environment: str = ""
    since: float = 0.0
    until: float = 0.0
    container: str = ""
    all_variants: bool = False


@dataclass(frozen=True)
class Distribution:
    """Values at percentiles (0 to 100), in ``unit``."""

    unit: str
    percentiles: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """Counts over a range. ``inputs`` and ``containers`` map a quantity's name to its distribution."""

    since: float
    until: float
    success: int = 0
    failure: int = 0
    timeout: int = 0
    running_at_end: int = 0
    started: int = 0
    """Containers."""
    errors: int = 0
    """Containers that ended by a failure."""
    creating_at_end: int = 0
    total: int = 0
    variants: int = 0
    deployments: int = 0
    inputs: dict[str, Distribution] = field(default_factory=dict)
    containers: dict[str, Distribution] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricQuery:
    function_id: str = ""
    app: str = ""
    environment: str = ""
    since: float = 0.0
    until: float = 0.0
    bucket_s: float = 0.0
    """0: chosen so that there are about 100."""
    groups: tuple[str, ...] = ()
    all_variants: bool = False


@dataclass(frozen=True)
class MetricDefinition:
    name: str
    unit: str
    aggregation: str
    description: str
    group: str = ""


@dataclass(frozen=True)
class MetricSeries:
    name: str
    unit: str
    aggregation: str
    description: str = ""
    times: tuple[float, ...] = ()
    """The start of each bucket, in epoch seconds."""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Metrics:
    since: float
    until: float
    bucket_s: float
    series: tuple[MetricSeries, ...] = ()


@dataclass(frozen=True)
class MetricGroups:
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricSchema:
    definitions: tuple[MetricDefinition, ...] = ()


@dataclass(frozen=True)
class FunctionDetails:
    """A function as it is declared, without what is secret. ``options``: those that are kept by name alone."""

    function_id: str
    app_id: str
    image_id: str = ""
    cpu_milli: int = 0
    cpu_limit_milli: int = 0
    memory_mib: int = 0
    memory_limit_mib: int = 0
    disk_mib: int = 0
    gpus: tuple[Gpu, ...] = ()
    timeout_s: float = 0.0
    startup_timeout_s: float = 0.0
    max_retries: Optional[int] = None
    max_concurrent: int = 1
    target_concurrent: int = 1
    batch_max: int = 0
    batch_wait_ms: int = 0
    block_network: bool = False
    restricted: bool = False
    single_use: bool = False
    secrets: tuple[str, ...] = ()
    """Names."""
    methods: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


ROWS = (
    Method("stats.read", StatsQuery, Stats, callers=(CLIENT,), needs=READ),
    Method("metric.read", MetricQuery, Metrics, callers=(CLIENT,), needs=READ),
    Method("metric.schema", MetricGroups, MetricSchema, callers=(CLIENT,), needs=READ),
    Method("stats.describe", FunctionRef, FunctionDetails, needs=READ),
)
