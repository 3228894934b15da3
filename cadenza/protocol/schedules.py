"""What is said of schedules: when a function runs by itself. Source: semantics.md section 15."""

from __future__ import annotations

from dataclasses import dataclass

from cadenza.protocol.method import CLIENT, READ, Empty, Method


@dataclass(frozen=True)
class ScheduleList:
    """Schedules of an app, or of an environment. ``upcoming``: how many next runs each shows."""

    app: str = ""
    environment: str = ""
    upcoming: int = 1


@dataclass(frozen=True)
class ScheduleInfo:
    schedule_id: str
    app_id: str
    app_name: str
    function_id: str
    function_name: str
    description: str
    """As people write it: ``Cron("0 6 * * *", timezone="Europe/Vienna")``."""
    paused: bool = False
    missed: str = ""
    """What becomes of runs that were due while the server was away."""
    overlap: str = ""
    """What happens when a run is due and the last one is not over."""
    next_at: tuple[float, ...] = ()
    last_at: float = 0.0
    last_call_id: str = ""
    last_status: str = ""
    note: str = ""


@dataclass(frozen=True)
class Schedules:
    schedules: tuple[ScheduleInfo, ...]


@dataclass(frozen=True)
class ScheduleRef:
    """A schedule by its id or by its function's id; ``reason`` for the log."""

    schedule: str


@dataclass(frozen=True)
class SchedulePause:
    schedule: str
    paused: bool = True


@dataclass(frozen=True)
class ScheduleRun:
    call_id: str


ROWS = (
    Method("schedule.list", ScheduleList, Schedules, callers=(CLIENT,), needs=READ),
    Method("schedule.run", ScheduleRef, ScheduleRun, callers=(CLIENT,)),
    Method("schedule.pause", SchedulePause, Empty, callers=(CLIENT,)),
)
