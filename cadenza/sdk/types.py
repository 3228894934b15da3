"""What methods give back: `modal.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Literal, Optional


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
