"""What methods give back: `modal.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import Literal, Optional, Union


@dataclass(frozen=True)
class LogEntry:
    """One line that a container, or the platform about it, wrote; ``message`` has its line end, where there is one."""

    message: str
    timestamp: datetime
    """With a time zone: UTC."""
    source: Literal["stdout", "stderr", "system"]
    object_id: str
    """The function that wrote it; of the platform's own words sometimes only the app."""
    context_ids: list[str] = field(default_factory=list)
    """Its container, call and input, as far as they are known."""


@dataclass(frozen=True)
class FunctionCurrentStats:
    """What is under way now. ``input_headroom``: how many more inputs the present containers could run at once."""

    backlog: int
    num_total_runners: int
    num_running_inputs: int = 0
    input_headroom: int = 0


@dataclass(frozen=True)
class SecretInfo:
    """A stored secret, without its values. Times are in UTC."""

    name: Optional[str]
    environment_name: str
    created_at: datetime
    created_by: Optional[str]
    last_used: Optional[datetime]
    """When a container was last given it, within ten minutes."""


@dataclass(frozen=True)
class FunctionAutoscalerSettings:
    """A function's limits in force; None: none. ``scaledown_window`` in seconds."""

    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    scaledown_window: Optional[int] = None
    buffer_containers: Optional[int] = None


class InputStatus(IntEnum):
    """How an input of a call graph is."""

    PENDING = 0
    SUCCESS = 1
    FAILURE = 2
    INIT_FAILURE = 5
    TERMINATED = 3
    TIMEOUT = 4


@dataclass
class InputInfo:
    """One input of a call graph, and those that its function called. ``task_id`` is its container's, or empty."""

    input_id: str
    function_call_id: str
    task_id: str
    status: InputStatus
    function_name: str
    module_name: str
    children: list[InputInfo]


class AppState(Enum):
    """Where an app is in its life."""

    EPHEMERAL = "ephemeral"
    DETACHED = "detached"
    DEPLOYED = "deployed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    INITIALIZING = "initializing"
    DISABLED = "disabled"


@dataclass(frozen=True)
class AppLifecycle:
    """An app's state and how it came to it. Times are in UTC; ``version`` is of a deployed app."""

    state: AppState
    version: Optional[int]
    created_at: datetime
    created_by: str
    deployed_at: Optional[datetime] = None
    deployed_by: Optional[str] = None
    stopped_at: Optional[datetime] = None
    stopped_by: Optional[str] = None


@dataclass(frozen=True)
class AppInfo:
    """What the server knows of an app. ``functions`` and ``servers``: name to id."""

    app_id: str
    description: str
    lifecycle: AppLifecycle
    functions: dict[str, str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvironmentRoles:
    """Who has which role in an environment: contributor, viewer or no-access; owner or manager of the workspace."""

    users: dict[str, str]
    service_users: dict[str, str]


@dataclass(frozen=True)
class WorkspaceMemberInfo:
    """A member of the workspace. Times are in UTC."""

    name: str
    email: str
    """Empty: a server of one's own knows no addresses."""
    user_id: str
    role: str
    """owner, manager or member."""
    joined_at: datetime
    last_active_at: Optional[datetime]
    """When one of its tokens was last used."""


@dataclass(frozen=True)
class WorkspaceSettings:
    """What is set for the whole workspace."""

    default_environment: str
    image_builder_version: str


@dataclass(frozen=True)
class TokenData:
    """A new token. Its secret is said this once."""

    token_id: str
    token_secret: str = field(repr=False)


@dataclass(frozen=True)
class MemberTokenInfo:
    """A member's token, without its secret. Times are in UTC."""

    name: Optional[str]
    token_id: str
    user_id: str
    username: str
    created_at: datetime
    last_used_at: Optional[datetime]
    expires_at: Optional[datetime]
    disabled: bool


@dataclass(frozen=True)
class ServiceUserInfo:
    """A service user and its token. Times are in UTC."""

    service_user_id: str
    name: str
    token_id: str
    """The newest; empty when it has none left."""
    created_by: str
    created_at: datetime
    last_used_at: Optional[datetime]
    expires_at: Optional[datetime]
    environment_roles: dict[str, str]
    """Those set directly."""


@dataclass(frozen=True)
class TimeSeriesPoint:
    """The value of the bucket that begins at ``time``; None: nothing was measured."""

    time: datetime
    value: Optional[float]


@dataclass(frozen=True)
class MetricSeries:
    """One metric over time. ``aggregation``: how the values of a bucket become one (sum, avg, max, p50, ...)."""

    name: str
    unit: str
    aggregation: str
    points: list[TimeSeriesPoint]
    description: str


@dataclass(frozen=True)
class MetricDefinition:
    """What a metric is."""

    name: str
    unit: str
    description: str


@dataclass(frozen=True)
class MetricsSchema:
    """The metrics of one group."""

    name: str
    definitions: list[MetricDefinition]


@dataclass(frozen=True)
class ObjectMetrics:
    """The metrics of a function in a range of time. ``metrics[name]`` is a series."""

    object_id: str
    since: datetime
    until: datetime
    bucket_size: timedelta
    point_count: int
    series: dict[str, MetricSeries]

    def __getitem__(self, name: str) -> MetricSeries:
        return self.series[name]


@dataclass(frozen=True)
class StatsPercentile:
    """``percentile`` percent of all values are at most ``value``."""

    percentile: float
    value: float


@dataclass(frozen=True)
class StatsPercentileDistribution:
    """How values are distributed, in ``unit``."""

    unit: str
    percentiles: list[StatsPercentile]


@dataclass(frozen=True)
class FunctionStats:
    """What happened to a function from ``since`` to ``until``, in UTC. Durations by name: execution_time, queue_time,
    cold_start_time of inputs, startup_time of containers."""

    since: datetime
    until: datetime
    input_success_count: int
    input_failure_count: int
    input_timeout_count: int
    input_running_at_end_count: int
    input_percentile_stats: dict[str, StatsPercentileDistribution]
    container_started_count: int
    container_error_count: int
    container_creating_at_end_count: int
    container_percentile_stats: dict[str, StatsPercentileDistribution]
    container_total_count: int
    variant_count: int
    all_variants: bool


@dataclass(frozen=True)
class AppStats:
    """What happened to all functions of an app from ``since`` to ``until``, in UTC."""

    @dataclass(frozen=True)
    class FunctionStatsGroup:
        """Its functions together; ``count``: how many it has."""

        count: int = 0
        input_success_count: int = 0
        input_failure_count: int = 0
        input_timeout_count: int = 0
        input_running_at_end_count: int = 0
        container_started_count: int = 0
        container_error_count: int = 0
        container_creating_at_end_count: int = 0
        container_total_count: int = 0
        input_percentile_stats: dict[str, StatsPercentileDistribution] = field(default_factory=dict)
        container_percentile_stats: dict[str, StatsPercentileDistribution] = field(default_factory=dict)

    @dataclass(frozen=True)
    class ServerStatsGroup:
        """Its servers: none yet."""

        count: int = 0

    @dataclass(frozen=True)
    class SandboxCounts:
        """Its sandboxes: none yet."""

        count: int = 0

    since: datetime
    until: datetime
    functions: FunctionStatsGroup
    servers: ServerStatsGroup
    sandboxes: SandboxCounts
    lifecycle: AppLifecycle
    deployment_count: Optional[int]


@dataclass(frozen=True)
class VolumeMountInfo:
    """A volume in a container."""

    name: Optional[str]
    volume_id: Optional[str]
    read_only: bool
    sub_path: Optional[str]


@dataclass(frozen=True)
class CloudBucketMountInfo:
    """A bucket in a container."""

    bucket_name: str
    bucket_type: Literal["s3", "r2", "gcp"]
    read_only: bool
    key_prefix: Optional[str]


@dataclass(frozen=True)
class FunctionInfo:
    """What a function is declared to be. ``cpu`` in cores and ``memory_mib`` may be pairs of request and limit; times
    are in seconds; ``secrets`` are names."""

    @dataclass(frozen=True)
    class ImageInfo:
        """Its image."""

        image_id: str

    @dataclass(frozen=True)
    class ClusterInfo:
        """Containers that run together: none yet."""

        size: int = 1

    @dataclass(frozen=True)
    class BatchingInfo:
        """How its inputs are put together."""

        max_batch_size: int
        wait_ms: int

    @dataclass(frozen=True)
    class ConcurrencyInfo:
        """How many inputs a container runs at once."""

        max_inputs: int
        target_inputs: int

    @dataclass(frozen=True)
    class WebInfo:
        """Its address."""

        web_url: Optional[str] = None

    @dataclass(frozen=True)
    class _InnerServerInfo:
        """Of a server."""

        port: int = 0

    cpu: Union[float, tuple[float, float], None]
    memory_mib: Union[int, tuple[int, int], None]
    gpus: list[tuple[str, int]]
    ephemeral_disk_mib: Optional[int]
    image_info: ImageInfo
    startup_timeout: Optional[int]
    timeout: int
    max_retries: Optional[int]
    nonpreemptible: bool
    regions: Optional[list[str]]
    routing_region: Optional[str]
    cloud: Optional[str]
    cluster_info: Optional[ClusterInfo] = None
    batching_info: Optional[BatchingInfo] = None
    concurrency_info: Optional[ConcurrencyInfo] = None
    schedule: Optional[str] = None
    restrict_modal_access: bool = False
    block_network: bool = False
    single_use_containers: bool = False
    volumes: dict[str, VolumeMountInfo] = field(default_factory=dict)
    cloud_bucket_mounts: dict[str, CloudBucketMountInfo] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    web_info: Optional[WebInfo] = None
    method_names: Optional[list[str]] = None
    method_details: Optional[dict[str, WebInfo]] = None
    _inner_server_info: Optional[_InnerServerInfo] = None
