"""One app: its record, its states, and the pure rules of when it ends. Source: semantics.md section 23."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Iterable, Optional, Sequence

import msgspec

from cadenza.base.errors import Bug
from cadenza.control.functions import Function, Place
from cadenza.protocol.objects import AppInfo, BudgetSpec, to_json

CLIENT_GONE_S = 30.0
"""How long an ephemeral app waits for its client's connection to come back."""
HEARTBEAT_LIMIT_S = 300.0
"""How long an ephemeral app goes on without a heartbeat from a client whose connection is still there."""
STOPPED_KEPT_S = 30 * 24 * 3600.0
MAX_STOPPED = 5_000
"""So many apps that are stopped are kept, the newest, and none longer than `STOPPED_KEPT_S`."""

INITIALIZING, EPHEMERAL, DETACHED, DEPLOYED = "initializing", "ephemeral", "detached", "deployed"
STOPPED, STOPPING = "stopped", "stopping"
MOVES = {
    INITIALIZING: (EPHEMERAL, DETACHED, STOPPED),
    EPHEMERAL: (STOPPED,),
    DETACHED: (STOPPED,),
    DEPLOYED: (STOPPED,),
    STOPPED: (),
}
"""An app's life. A deployed app begins as such. What lists call stopping is stopped and still has containers."""

_decode_budget = msgspec.json.Decoder(BudgetSpec).decode


@dataclass
class App:
    """One app as the control plane knows it. ``*_at`` of the client are monotonic seconds, the others epoch seconds."""

    app_id: str
    name: str
    environment: str
    state: str
    detached: bool
    created_at: float
    stopped_at: Optional[float] = None
    stop_reason: str = ""
    version: int = 0
    """Of a deployed app: the version in force; 0 before the first."""
    deployed_at: Optional[float] = None
    tags: dict[str, str] = field(default_factory=dict)
    budget: Optional[BudgetSpec] = None
    created_by: str = ""
    deployed_by: str = ""
    note: str = ""
    """What is wrong with it, for lists."""
    connection_id: str = ""
    heartbeat_at: float = 0.0
    gone_at: Optional[float] = None
    """Since when its client is gone or has finished; None while it is there."""
    was_idle: bool = False
    unkept: bool = False
    """It is stopped, and the database does not know it yet."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)
    """Held by whoever changes its functions."""

    @property
    def place(self) -> Place:
        """What its functions know of it."""
        return Place(self.app_id, self.name, self.environment, self.state != DEPLOYED)


def move(app: App, state: str) -> None:
    """Change an app's state. `Bug` for a move that `MOVES` does not have."""
    if state not in MOVES[app.state]:
        raise Bug(f"the app {app.app_id} is {app.state} and cannot be {state}")
    app.state = state


def keeps_running(one: Function) -> bool:
    """Whether a deployed function needs the server even when nobody calls it. Pure."""
    return one.spec.min_containers > 0 or bool(one.spec.options.get("schedule"))


def overdue(app: App, busy: bool, now: float) -> str:
    """Why an app must stop now, or an empty string. Pure. ``now`` in monotonic seconds."""
    if app.state == DEPLOYED:
        return ""
    if app.detached and app.state == DETACHED:
        # Twice idle, so that a call that ends and starts another one between two looks is not cut short.
        return "all work is done" if app.gone_at is not None and not busy and app.was_idle else ""
    if app.gone_at is not None and now - app.gone_at >= CLIENT_GONE_S:
        return "its client is gone"
    if now - app.heartbeat_at >= HEARTBEAT_LIMIT_S:
        return f"no heartbeat from its client for {HEARTBEAT_LIMIT_S:g} seconds"
    return ""


def forgotten(apps: Iterable[App], oldest: float) -> list[str]:
    """The ids of the apps that need not be kept: stopped before ``oldest``, or with many stopped later. Pure."""
    stopped = sorted((one for one in apps if one.state == STOPPED), key=lambda one: -(one.stopped_at or 0.0))
    return [
        one.app_id for number, one in enumerate(stopped) if number >= MAX_STOPPED or (one.stopped_at or 0.0) < oldest
    ]


def info(app: App, containers: int, note: str = "", spent: str = "") -> AppInfo:
    """An app as clients see it, with so many containers; ``note``: what is wrong with them; ``spent`` of its budget."""
    state = STOPPING if app.state == STOPPED and containers else app.state
    return AppInfo(
        app.app_id, app.name, state, app.created_at, app.stopped_at, containers, app.stop_reason, app.environment,
        app.version, dict(app.tags), app.deployed_at, app.note or note, created_by=app.created_by,
        deployed_by=app.deployed_by, budget=spent,
    )  # fmt: skip


def row(app: App) -> tuple[Any, ...]:
    """What ``app_add`` takes."""
    return (
        app.app_id, app.name, app.environment, app.state, int(app.detached), app.created_at, json.dumps(app.tags),
        budget_text(app.budget), app.created_by,
    )  # fmt: skip


def budget_text(budget: Optional[BudgetSpec]) -> str:
    """A budget as it is kept; empty for none."""
    return to_json(budget) if budget is not None else ""


def read_budget(text: str) -> Optional[BudgetSpec]:
    """The inverse of `budget_text`."""
    return _decode_budget(text) if text else None


def read(kept: Sequence[Any]) -> App:
    """An app from a row of ``app_all``."""
    app_id, name, environment, state, detached, created_at, stopped_at, reason, *more = kept
    version, deployed_at, tags, budget, created_by, deployed_by = more
    return App(
        app_id, name, environment, state, bool(detached), created_at, stopped_at, reason, version, deployed_at,
        json.loads(tags), read_budget(budget), created_by, deployed_by, gone_at=0.0,
    )  # fmt: skip
