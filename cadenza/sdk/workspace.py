"""`Workspace`: members, service users, tokens and settings of the server. Source: semantics.md section 24."""

from __future__ import annotations

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.sdk import _dual
from cadenza.sdk.handle import Object
from cadenza.sdk.namespaces import LaterNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Any, Optional, Union

    from cadenza.protocol.accounts import TokenInfo, UserInfo
    from cadenza.sdk.client import Client
    from cadenza.sdk.types import (
        MemberTokenInfo,
        ServiceUserInfo,
        TokenData,
        WorkspaceMemberInfo,
        WorkspaceSettings,
    )

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def lifetime_s(expires_in: Union[int, float, str, timedelta, None], where: str) -> float:
    """Seconds from a number, a timedelta, or a text like ``90d``, ``12h``, ``30m``, ``3600``; 0: for ever.

    InvalidError for anything else.
    """
    from datetime import timedelta as Span

    if expires_in is None:
        return 0.0
    if isinstance(expires_in, Span):
        found = expires_in.total_seconds()
    elif isinstance(expires_in, str):
        text = expires_in.strip()
        number, unit = (text[:-1], _UNITS[text[-1]]) if text and text[-1] in _UNITS else (text, 1)
        if not number.isdigit():
            raise InvalidError(f"{where}: {expires_in!r} is no time: write seconds, or 30m, 12h, 90d")
        found = float(number) * unit
    elif isinstance(expires_in, (int, float)) and not isinstance(expires_in, bool):
        found = float(expires_in)
    else:
        raise InvalidError(f"{where}: expires_in is a number of seconds or a text like '90d', not {expires_in!r}")
    if not 0 < found < float("inf"):
        raise InvalidError(f"{where}: {expires_in!r} is not in the future")
    return found


def _moment(seconds: float) -> datetime:
    from datetime import datetime as Moment
    from datetime import timezone

    return Moment.fromtimestamp(seconds, timezone.utc)


def _maybe(seconds: float) -> Optional[datetime]:
    return _moment(seconds) if seconds else None


class _Group:
    """One group of a workspace's methods."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def _ask(self, method: str, request: Any) -> Any:
        return await (await self._workspace._ready())._request(method, request)

    async def _tokens(self) -> list[TokenInfo]:
        from cadenza.protocol.accounts import TokenList

        return list((await self._ask("token.list", TokenList())).tokens)

    async def _users(self, service_users: bool) -> list[UserInfo]:
        from cadenza.protocol.accounts import UserList

        return list((await self._ask("user.list", UserList(service_users))).users)


class WorkspaceMembersManager(_Group):
    """The members."""

    @_dual.method
    async def list(self) -> list[WorkspaceMemberInfo]:
        """All members. When they were last active is known of those whose tokens the caller may see."""
        from cadenza.sdk.types import WorkspaceMemberInfo as Found

        used: dict[str, float] = {}
        for one in await self._tokens():
            if not one.service_user:
                used[one.user] = max(used.get(one.user, 0.0), one.used_at)
        return [
            Found(one.name, "", one.user_id, one.role, _moment(one.created_at), _maybe(used.get(one.name, 0.0)))
            for one in await self._users(False)
        ]


class WorkspaceSettingsManager(_Group):
    """The settings: default_environment and image_builder_version."""

    @_dual.method
    async def list(self) -> WorkspaceSettings:
        """What is set."""
        from cadenza.protocol.method import Empty
        from cadenza.sdk.types import WorkspaceSettings as Found

        found = await self._ask("workspace.get", Empty())
        return Found(found.default_environment, found.image_builder_version)

    @_dual.method
    async def set(self, name: str, value: str) -> None:
        """Change one. InvalidError for a setting that there is none of."""
        from cadenza.protocol.accounts import WorkspaceSet

        await self._ask("workspace.set", WorkspaceSet(name, value))


class WorkspaceServiceUserManager(_Group):
    """Service users: names for programs, each with a token."""

    @_dual.method
    async def create(self, name: str, *, expires_in: Union[int, str, timedelta, None]) -> TokenData:
        """A service user and its token, whose secret is said this once. ``expires_in``: see `lifetime_s`."""
        from cadenza.protocol.accounts import UserCreate
        from cadenza.sdk.types import TokenData as Made

        until = lifetime_s(expires_in, "Workspace.service_users.create")
        made = await self._ask("user.create", UserCreate(name, service_user=True, expires_in_s=until))
        return Made(made.token_id, made.token_secret)

    @_dual.method
    async def set_role(self, service_user_name: str, environment_name: str, *, role: str) -> None:
        """Its role in a restricted environment: contributor, viewer or no-access."""
        from cadenza.protocol.accounts import RoleSet

        await self._ask("role.set", RoleSet(environment_name, service_user_name, role, True))

    @_dual.method
    async def info(self, name: str) -> ServiceUserInfo:
        """One of them. NotFoundError."""
        for one in await self._all():
            if one.name == name:
                return one
        raise NotFoundError(f"there is no service user {name!r}")

    async def _all(self) -> list[ServiceUserInfo]:
        from cadenza.sdk.types import ServiceUserInfo as Found

        newest = {one.user: one for one in await self._tokens() if one.service_user}
        found = []
        for one in await self._users(True):
            token = newest.get(one.name)
            used, until = (token.used_at, token.expires_at) if token else (0.0, 0.0)
            found.append(
                Found(
                    one.user_id, one.name, token.token_id if token else "", one.created_by, _moment(one.created_at),
                    _maybe(used), _maybe(until), dict(one.roles),
                )
            )  # fmt: skip
        return found

    @_dual.method
    async def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Remove it with its tokens. NotFoundError unless ``allow_missing``."""
        from cadenza.protocol.accounts import UserDelete

        await self._ask("user.delete", UserDelete(name, True, allow_missing))

    @_dual.method
    async def list(self) -> list[ServiceUserInfo]:
        """All of them."""
        return await self._all()


class WorkspaceMemberTokenManager(_Group):
    """The tokens of members. Owners and managers see all, others their own."""

    @_dual.method
    async def list(self) -> list[MemberTokenInfo]:
        """All that the caller may see."""
        from cadenza.sdk.types import MemberTokenInfo as Found

        users = {one.name: one.user_id for one in await self._users(False)}
        return [
            Found(
                one.name or None, one.token_id, users.get(one.user, ""), one.user, _moment(one.created_at),
                _maybe(one.used_at), _maybe(one.expires_at), one.disabled,
            )
            for one in await self._tokens()
            if not one.service_user
        ]  # fmt: skip

    @_dual.method
    async def disable(self, *token_ids: str) -> None:
        """Let nobody in with these until they are enabled again."""
        await self._switch(token_ids, True)

    @_dual.method
    async def enable(self, *token_ids: str) -> None:
        """Let these in again."""
        await self._switch(token_ids, False)

    async def _switch(self, token_ids: tuple[str, ...], disabled: bool) -> None:
        from cadenza.protocol.accounts import TokenDisable

        if token_ids:
            await self._ask("token.disable", TokenDisable(token_ids, disabled=disabled))

    @_dual.method
    async def delete(self, token_id: str, *, allow_missing: bool = False) -> None:
        """Delete one for good. NotFoundError unless ``allow_missing``."""
        from cadenza.protocol.accounts import TokenRef

        await self._ask("token.delete", TokenRef(token_id, allow_missing))


class Workspace(Object):
    """The server's people and settings. Made by `from_context`."""

    _name: Optional[str] = None

    def __init__(self) -> None:
        raise InvalidError("Workspace() cannot be called: use Workspace.from_context()")

    @staticmethod
    def from_context(*, client: Optional[Client] = None) -> Workspace:
        """The workspace of the configured server."""
        self = Workspace.__new__(Workspace)
        self._init_handle(None, client)
        return self

    @property
    def name(self) -> Optional[str]:
        """Its name; None until it is hydrated."""
        return self._name

    @property
    def members(self) -> WorkspaceMembersManager:
        """Its members."""
        return WorkspaceMembersManager(self)

    @property
    def settings(self) -> WorkspaceSettingsManager:
        """Its settings."""
        return WorkspaceSettingsManager(self)

    @property
    def service_users(self) -> WorkspaceServiceUserManager:
        """Names for programs."""
        return WorkspaceServiceUserManager(self)

    @property
    def member_tokens(self) -> WorkspaceMemberTokenManager:
        """Tokens of members."""
        return WorkspaceMemberTokenManager(self)

    @property
    def proxy_tokens(self) -> LaterNamespace:
        """Tokens for web functions."""
        return LaterNamespace("Workspace.proxy_tokens", "web functions come with a later version")

    @property
    def billing(self) -> LaterNamespace:
        """What it costs."""
        return LaterNamespace("Workspace.billing", "a server of one's own has no bill")

    async def _find(self, client: Client) -> None:
        from cadenza.protocol.method import Empty

        found = await client._request("workspace.get", Empty())
        self._name = found.name
        self._hydrate("ws-" + found.name, self._client)

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Workspace:
        """Ask the server for it."""
        if client is not None:
            self._client = client
        await self._ready()
        return self

    def __repr__(self) -> str:
        return "Workspace.from_context()"
