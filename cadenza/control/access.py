"""Who may do what where: a caller's environment, and whether its token and its roles reach so far.

A caller is one of three: the server's own user, a token, a container. What a token may is the least of what its scopes,
its environments and its user's role allow. Source: semantics.md section 24.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from cadenza.base.errors import AuthError, NotFoundError, PermissionDeniedError
from cadenza.control.directory import MAIN as MAIN
from cadenza.control.directory import SELF_ID, Directory, Environment, User
from cadenza.control.request import Caller
from cadenza.protocol.accounts import CONTRIBUTOR, MANAGER, NO_ACCESS, OWNER, VIEWER
from cadenza.protocol.method import ADMIN, READ, WRITE

RANK = {READ: 0, WRITE: 1, ADMIN: 2}
"""Each scope has those before it in it."""
MAY = {CONTRIBUTOR: RANK[WRITE], VIEWER: RANK[READ], NO_ACCESS: -1}
"""The highest scope that a role in an environment allows."""


@dataclass(frozen=True)
class Standing:
    """What is known of a caller on the host. ``scopes`` and ``environment_ids`` empty: all."""

    user: User
    token_id: str = ""
    scopes: tuple[str, ...] = ()
    environment_ids: tuple[str, ...] = ()

    @property
    def rules(self) -> bool:
        """Whether it is an owner or a manager of the workspace."""
        return self.user.role in (OWNER, MANAGER)


def within_scopes(scopes: tuple[str, ...], needs: str) -> bool:
    """Whether a token with these scopes may do what needs ``needs``. Pure."""
    return not scopes or max((RANK.get(one, -1) for one in scopes), default=-1) >= RANK[needs]


def role_in(user: User, environment: Environment, direct: Optional[str]) -> str:
    """A user's role in an environment: of the workspace, else set directly, else the environment's default. Pure."""
    if user.role in (OWNER, MANAGER):
        return user.role
    if not environment.restricted:
        return CONTRIBUTOR
    return direct or environment.default_role


def refusal(standing: Standing, environment: Environment, direct: Optional[str], needs: str) -> str:
    """Why the caller may not do what needs ``needs`` in ``environment``; empty when it may. Pure."""
    token = f"the token {standing.token_id}"
    if not within_scopes(standing.scopes, needs):
        return f"{token} has the scope {', '.join(standing.scopes)}; this needs {needs!r}"
    if standing.environment_ids and environment.environment_id not in standing.environment_ids:
        return f"{token} is not for the environment {environment.name!r}"
    role = role_in(standing.user, environment, direct)
    if role in (OWNER, MANAGER):
        return ""
    if RANK[needs] > MAY.get(role, -1):
        wanted = {READ: "viewer", WRITE: "contributor"}.get(needs, "manager of the workspace")
        return (
            f"{standing.user.name} has the role {role!r} in the environment {environment.name!r}; this needs the role "
            f"{wanted!r}"
        )
    return ""


class Access:
    """Asked by every noun, before it looks at anything. ``home(container_id)`` is the environment of a container."""

    def __init__(
        self,
        home: Callable[[str], str] = lambda container_id: MAIN,
        directory: Optional[Directory] = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._home = home
        self.directory = directory if directory is not None else Directory()
        self._now = now
        self.workspace = ""
        """The workspace's name."""

    def environment(self, caller: Caller, wanted: str, needs: str = WRITE) -> str:
        """The environment that a request means: ``wanted``, or where it is empty the caller's own.

        NotFoundError when there is none of the name, PermissionDeniedError when the caller may not do ``needs`` there.
        """
        found = wanted or self._own(caller)
        self.check(caller, found, needs)
        return found

    def check(self, caller: Caller, environment: str, needs: str = WRITE) -> None:
        """As `environment`, for a thing whose environment is known."""
        if caller.container_id:
            home = self._home(caller.container_id)
            if environment != home:
                raise PermissionDeniedError(
                    f"a container of the environment {home!r} may not use the environment {environment!r}"
                )
            if needs == ADMIN:
                raise PermissionDeniedError("a container may not change who may do what")
            return
        standing = self.standing(caller)
        found = self.directory.environments.get(environment)
        if found is None:
            raise NotFoundError(f"there is no environment {environment!r}: see `cadenza environment list`")
        refused = refusal(
            standing, found, self.directory.roles.get((found.environment_id, standing.user.user_id)), needs
        )
        if refused:
            raise PermissionDeniedError(refused)

    def standing(self, caller: Caller) -> Standing:
        """Who a caller on the host is, now. AuthError when its token has expired, is disabled or gone."""
        directory = self.directory
        if not caller.token_id:
            return Standing(directory.users[SELF_ID])
        token = directory.tokens.get(caller.token_id)
        user = directory.users.get(token.user_id) if token is not None else None
        if token is None or user is None:
            raise AuthError(f"the token {caller.token_id} is no longer there")
        if token.disabled:
            raise AuthError(f"the token {caller.token_id} is disabled")
        if token.expires_at and self._now() >= token.expires_at:
            raise AuthError(f"the token {caller.token_id} has expired: make a new one (cadenza token new)")
        return Standing(user, token.token_id, token.scopes, token.environment_ids)

    def scope(self, caller: Caller, needs: str) -> None:
        """Whether the caller may do such a thing at all, in whatever environment. PermissionDeniedError, AuthError."""
        if caller.container_id:
            return
        standing = self.standing(caller)
        if not within_scopes(standing.scopes, needs):
            raise PermissionDeniedError(
                f"the token {standing.token_id} has the scope {', '.join(standing.scopes)}; this needs {needs!r}"
            )

    def manage(self, caller: Caller, what: str) -> Standing:
        """The standing of a caller that may change the workspace. PermissionDeniedError for all others."""
        if caller.container_id:
            raise PermissionDeniedError(f"a container may not {what}")
        standing = self.standing(caller)
        if not within_scopes(standing.scopes, ADMIN):
            raise PermissionDeniedError(
                f"the token {standing.token_id} has the scope {', '.join(standing.scopes)}; to {what} needs 'admin'"
            )
        if standing.environment_ids:
            raise PermissionDeniedError(f"the token {standing.token_id} is for single environments: it cannot {what}")
        if not standing.rules:
            raise PermissionDeniedError(
                f"{standing.user.name} has the role {standing.user.role!r} in the workspace; to {what} needs the role "
                "'manager' or 'owner'"
            )
        return standing

    def visible(self, caller: Caller, needs: str = READ) -> tuple[str, ...]:
        """The names of all environments in which the caller may do ``needs``."""
        if caller.container_id:
            return (self._home(caller.container_id),)
        standing = self.standing(caller)
        return tuple(
            one.name
            for one in self.directory.environments.values()
            if not refusal(standing, one, self.directory.roles.get((one.environment_id, standing.user.user_id)), needs)
        )

    def _own(self, caller: Caller) -> str:
        """Where a caller is that says nothing of it."""
        if caller.container_id:
            return self._home(caller.container_id)
        if caller.environment:
            return caller.environment
        default = self.directory.default_environment
        if caller.token_id:
            only = self.standing(caller).environment_ids
            if len(only) == 1:  # a token for one environment means that one
                return self.directory.environment_name(only[0])
        return default
