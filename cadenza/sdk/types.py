"""What methods give back: `modal.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
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
