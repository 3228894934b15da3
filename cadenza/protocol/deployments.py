"""What a client and the control plane say of deployed apps: ``app.deploy`` and what goes with it.

Source: semantics.md section 23.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.method import CLIENT, READ, Method
from cadenza.protocol.objects import AppInfo, BudgetSpec, FunctionSpec

ROLLING, RECREATE = "rolling", "recreate"
STRATEGIES = (ROLLING, RECREATE)
"""Rolling: what runs ends in its container, what has not begun goes to the new version at once. Recreate: old
containers are stopped, and what ran in them runs again."""
RECREATE_WAIT_S = 40.0
MAX_TAG_CHARS = 50


@dataclass(frozen=True)
class GitInfo:
    """The commit of the directory from which an app was deployed; empty when it is in none."""

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    repository: str = ""
    author: str = ""
    message: str = ""


@dataclass(frozen=True)
class AppDeploy:
    """Make an app with a name one that stays, or put a new version of it in force: all its functions, or nothing.

    Images are built and files uploaded before. ``staged``: keep the version, do not put it in force.
    """

    name: str
    functions: tuple[FunctionSpec, ...]
    environment: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    tag: str = ""
    strategy: str = ROLLING
    git: GitInfo = field(default_factory=GitInfo)
    client_version: str = ""
    budget: Optional[BudgetSpec] = None
    staged: bool = False


@dataclass(frozen=True)
class AppDeployed:
    """``changed`` False: the version in force is the same, and nothing was done."""

    app_id: str
    version: int
    changed: bool
    functions: dict[str, str]
    """Name to function id; the same name keeps its id over versions."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedApp:
    """An app by id, or by name in an environment (empty: the caller's)."""

    app: str
    environment: str = ""


@dataclass(frozen=True)
class AppLookup:
    """A deployed app by name; ``create_if_missing`` makes one without functions."""

    name: str
    environment: str = ""
    create_if_missing: bool = False


@dataclass(frozen=True)
class AppRollback:
    """Put an earlier version in force again, as a new version. ``version`` 0: the one before."""

    app: str
    environment: str = ""
    version: int = 0
    strategy: str = ROLLING


@dataclass(frozen=True)
class AppRollover:
    """New containers for all functions, with nothing else changed, as a new version."""

    app: str
    environment: str = ""
    strategy: str = ROLLING


@dataclass(frozen=True)
class AppPromote:
    """Put a staged version in force."""

    app: str
    version: int
    environment: str = ""
    strategy: str = ROLLING


@dataclass(frozen=True)
class Deployment:
    """One version of a deployed app, as its history shows it."""

    version: int
    deployed_at: float
    deployed_by: str = ""
    kind: str = "deploy"
    """deploy, rollback, rollover, staged."""
    of: int = 0
    """For a rollback and a rollover: the version whose functions these are."""
    tag: str = ""
    strategy: str = ROLLING
    git: GitInfo = field(default_factory=GitInfo)
    client_version: str = ""
    functions: tuple[str, ...] = ()
    active: bool = False


@dataclass(frozen=True)
class Deployments:
    deployments: tuple[Deployment, ...]
    """Newest first."""


@dataclass(frozen=True)
class AppSetTags:
    app: str
    tags: dict[str, str]
    environment: str = ""


ROWS = (
    Method("app.deploy", AppDeploy, AppDeployed, callers=(CLIENT,)),
    Method("app.lookup", AppLookup, AppInfo),
    Method("app.history", NamedApp, Deployments, callers=(CLIENT,), needs=READ),
    Method("app.rollback", AppRollback, AppDeployed, callers=(CLIENT,)),
    Method("app.rollover", AppRollover, AppDeployed, callers=(CLIENT,)),
    Method("app.promote", AppPromote, AppDeployed, callers=(CLIENT,)),
    Method("app.set_tags", AppSetTags, AppInfo, callers=(CLIENT,)),
)
