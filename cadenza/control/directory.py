"""What the server knows of environments, people and tokens, in memory: written by their nouns, read by `Access`.

Source: semantics.md section 24.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.accounts import CONTRIBUTOR, MEMBER, OWNER

MAIN = "main"
"""The environment that is always there."""
MAIN_ID = "en-main"
SELF_ID = "us-server"
"""The user that the server runs as. Who reaches the server's socket without a token is this one: the kernel says so."""


@dataclass
class Environment:
    """A namespace of apps, secrets and other named things."""

    environment_id: str
    name: str
    created_at: float = 0.0
    web_suffix: str = ""
    restricted: bool = False
    default_role: str = CONTRIBUTOR
    image_builder_version: str = ""


@dataclass
class User:
    """A member of the workspace, or a service user: a name for programs."""

    user_id: str
    name: str
    role: str = MEMBER
    service_user: bool = False
    created_at: float = 0.0
    created_by: str = ""


@dataclass
class Token:
    """A token without its secret. Times are epoch seconds; ``expires_at`` 0: never."""

    token_id: str
    user_id: str
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    name: str = ""
    scopes: tuple[str, ...] = ()
    environment_ids: tuple[str, ...] = ()
    """Only in these, by id: a renamed environment stays, and one that is deleted never becomes "all"."""
    created_at: float = 0.0
    expires_at: float = 0.0
    used_at: float = 0.0
    disabled: bool = False


@dataclass
class Directory:
    """One workspace. ``environments`` by name, ``users`` and ``tokens`` by id, ``roles`` by environment and user id."""

    environments: dict[str, Environment] = field(default_factory=lambda: {MAIN: Environment(MAIN_ID, MAIN)})
    users: dict[str, User] = field(default_factory=lambda: {SELF_ID: User(SELF_ID, "owner", OWNER)})
    roles: dict[tuple[str, str], str] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    default_environment: str = MAIN
    image_builder_version: str = ""

    def environment_name(self, environment_id: str) -> str:
        """The name of an environment of this id, or the id of one that is gone."""
        for one in self.environments.values():
            if one.environment_id == environment_id:
                return one.name
        return environment_id

    def user_named(self, name: str, service_user: bool = False) -> Optional[User]:
        """A member, or a service user, by name."""
        for one in self.users.values():
            if one.name == name and one.service_user == service_user:
                return one
        return None
