"""What is said of environments, members of the workspace, roles and tokens. Source: semantics.md section 24."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.method import ADMIN, CLIENT, READ, Empty, Method

OWNER, MANAGER, MEMBER = "owner", "manager", "member"
WORKSPACE_ROLES = (OWNER, MANAGER, MEMBER)
"""An owner and a manager may do everything; only an owner makes and removes owners. A member's rights are those of the
environments."""
CONTRIBUTOR, VIEWER, NO_ACCESS = "contributor", "viewer", "no-access"
ENVIRONMENT_ROLES = (CONTRIBUTOR, VIEWER, NO_ACCESS)


@dataclass(frozen=True)
class EnvironmentInfo:
    environment_id: str
    name: str
    created_at: float
    web_suffix: str = ""
    restricted: bool = False
    default_role: str = CONTRIBUTOR
    image_builder_version: str = ""
    is_default: bool = False
    apps: int = 0


@dataclass(frozen=True)
class EnvironmentList:
    pass


@dataclass(frozen=True)
class Environments:
    environments: tuple[EnvironmentInfo, ...]


@dataclass(frozen=True)
class EnvironmentCreate:
    name: str
    restricted: bool = False
    default_role: str = ""


@dataclass(frozen=True)
class EnvironmentUpdate:
    """None leaves a thing as it is."""

    name: str
    new_name: Optional[str] = None
    web_suffix: Optional[str] = None
    image_builder_version: Optional[str] = None


@dataclass(frozen=True)
class EnvironmentRef:
    name: str = ""
    """Empty: the caller's default."""


@dataclass(frozen=True)
class RoleInfo:
    """Who may do what in an environment; ``direct`` False: by the environment's default or the workspace role."""

    principal: str
    role: str
    direct: bool = True
    service_user: bool = False


@dataclass(frozen=True)
class RoleList:
    environment: str


@dataclass(frozen=True)
class Roles:
    roles: tuple[RoleInfo, ...]


@dataclass(frozen=True)
class RoleSet:
    """Empty ``role``: remove what was set."""

    environment: str
    principal: str
    role: str = ""
    service_user: bool = False


@dataclass(frozen=True)
class UserInfo:
    user_id: str
    name: str
    role: str
    service_user: bool = False
    created_at: float = 0.0
    tokens: int = 0
    created_by: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    """Those set directly, by environment."""


@dataclass(frozen=True)
class UserList:
    service_users: bool = False


@dataclass(frozen=True)
class Users:
    users: tuple[UserInfo, ...]


@dataclass(frozen=True)
class UserCreate:
    """A member of the workspace, or a service user, for which a token is made too."""

    name: str
    role: str = MEMBER
    service_user: bool = False
    expires_in_s: float = 0.0


@dataclass(frozen=True)
class UserSetRole:
    """A member's role in the workspace."""

    name: str
    role: str


@dataclass(frozen=True)
class UserDelete:
    name: str
    service_user: bool = False
    allow_missing: bool = False


@dataclass(frozen=True)
class TokenCreate:
    """A token for ``user`` (empty: who asks). Scopes: read, write, admin; none: all that the user may."""

    user: str = ""
    name: str = ""
    scopes: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    """Only in these; none: in all."""
    expires_in_s: float = 0.0
    replaces: str = ""
    """A token id that ends in the same moment (``token rotate``)."""


@dataclass(frozen=True)
class TokenCreated:
    """The only time that the secret is said."""

    token_id: str
    token_secret: str
    expires_at: float = 0.0


@dataclass(frozen=True)
class TokenInfo:
    token_id: str
    user: str
    name: str = ""
    scopes: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    created_at: float = 0.0
    expires_at: float = 0.0
    used_at: float = 0.0
    disabled: bool = False
    service_user: bool = False


@dataclass(frozen=True)
class TokenList:
    user: str = ""


@dataclass(frozen=True)
class Tokens:
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True)
class TokenRef:
    token_id: str
    allow_missing: bool = False


@dataclass(frozen=True)
class TokenDisable:
    """``every``: all that the caller may change."""

    token_ids: tuple[str, ...] = ()
    every: bool = False
    disabled: bool = True


@dataclass(frozen=True)
class Identity:
    """Who the caller is to the server."""

    user: str
    role: str
    token_id: str = ""
    """Empty: known by the socket, as the server's own user."""
    scopes: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    expires_at: float = 0.0
    container_id: str = ""


@dataclass(frozen=True)
class WorkspaceSettings:
    default_environment: str
    """Which environment a client means that names none."""
    image_builder_version: str = ""
    name: str = ""


@dataclass(frozen=True)
class WorkspaceSet:
    """``name``: default_environment or image_builder_version."""

    name: str
    value: str


ROWS = (
    Method("account.whoami", Empty, Identity, needs=READ),
    Method("environment.list", EnvironmentList, Environments, callers=(CLIENT,), needs=READ),
    Method("environment.get", EnvironmentRef, EnvironmentInfo, needs=READ),
    Method("environment.create", EnvironmentCreate, EnvironmentInfo, callers=(CLIENT,), needs=ADMIN),
    Method("environment.update", EnvironmentUpdate, EnvironmentInfo, callers=(CLIENT,), needs=ADMIN),
    Method("environment.delete", EnvironmentRef, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("role.list", RoleList, Roles, callers=(CLIENT,), needs=READ),
    Method("role.set", RoleSet, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("user.list", UserList, Users, callers=(CLIENT,), needs=READ),
    Method("user.create", UserCreate, TokenCreated, callers=(CLIENT,), needs=ADMIN),
    Method("user.set_role", UserSetRole, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("user.delete", UserDelete, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("token.create", TokenCreate, TokenCreated, callers=(CLIENT,), needs=ADMIN),
    Method("token.list", TokenList, Tokens, callers=(CLIENT,), needs=READ),
    Method("token.delete", TokenRef, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("token.disable", TokenDisable, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("workspace.get", Empty, WorkspaceSettings, callers=(CLIENT,), needs=READ),
    Method("workspace.set", WorkspaceSet, WorkspaceSettings, callers=(CLIENT,), needs=ADMIN),
)
