"""What methods give back: `modal.types`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
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
