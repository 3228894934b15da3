"""`Environment`: a namespace of apps and named things, and who may do what in it. Source: semantics.md section 24."""

from __future__ import annotations

from cadenza.base.errors import AlreadyExistsError, DeprecationError, InvalidError, NotFoundError
from cadenza.sdk import _dual
from cadenza.sdk.handle import Object, client_of
from cadenza.sdk.namespaces import LaterNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

    from cadenza.protocol.accounts import EnvironmentInfo
    from cadenza.sdk.client import Client
    from cadenza.sdk.types import EnvironmentRoles


def _check(name: object, where: str) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where} takes the name of an environment, not {name!r}")
    return name


class EnvironmentManager:
    """The workspace's environments, as a whole."""

    @_dual.static_method
    @staticmethod
    async def create(
        name: str,
        *,
        restricted: bool = False,
        default_role: Optional[str] = None,
        experimental_options: Optional[dict[str, Any]] = None,
        client: Optional[Client] = None,
    ) -> None:
        """Make an environment. AlreadyExistsError, InvalidError for a name that cannot be.

        ``restricted``: members have ``default_role`` in it (else ``no-access``) unless they are given another one."""
        from cadenza.protocol.accounts import EnvironmentCreate

        if experimental_options:
            raise InvalidError(f"there is no experimental option {sorted(experimental_options)[0]!r}")
        request = EnvironmentCreate(_check(name, "Environment.objects.create"), bool(restricted), default_role or "")
        await (await client_of(client))._request("environment.create", request)

    @_dual.static_method
    @staticmethod
    async def list(*, client: Optional[Client] = None) -> list[Environment]:
        """Handles of all environments that the caller may see."""
        from cadenza.protocol.accounts import EnvironmentList

        to = await client_of(client)
        found = await to._request("environment.list", EnvironmentList())
        return [Environment._from_info(one, to) for one in found.environments]

    @_dual.static_method
    @staticmethod
    async def delete(name: str, *, client: Optional[Client] = None) -> None:
        """Delete an environment and its secrets. ConflictError while an app in it is not stopped."""
        from cadenza.protocol.accounts import EnvironmentRef

        request = EnvironmentRef(_check(name, "Environment.objects.delete"))
        await (await client_of(client))._request("environment.delete", request)


class EnvironmentRolesManager:
    """Who has which role in one environment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @_dual.method
    async def list(self, *, exclude_default: bool = False) -> EnvironmentRoles:
        """The role of each member and service user; ``exclude_default``: only those set directly."""
        from cadenza.protocol.accounts import RoleList
        from cadenza.sdk.types import EnvironmentRoles as Found

        client = await self._environment._ready()
        rows = (await client._request("role.list", RoleList(self._environment._named))).roles
        rows = [one for one in rows if one.direct or not exclude_default]
        return Found(
            {one.principal: one.role for one in rows if not one.service_user},
            {one.principal: one.role for one in rows if one.service_user},
        )

    @_dual.method
    async def update(
        self, *, users: Optional[dict[str, str]] = None, service_users: Optional[dict[str, str]] = None
    ) -> None:
        """Set roles: name to ``contributor``, ``viewer`` or ``no-access``. InvalidError in an environment that is not
        restricted. Each is set by itself: those before one that fails stay set."""
        await self._set(users, service_users)

    async def _set(self, users: Optional[dict[str, str]], service_users: Optional[dict[str, str]]) -> None:
        from cadenza.protocol.accounts import RoleSet

        client = await self._environment._ready()
        for group, is_service in ((users, False), (service_users, True)):
            for principal, role in (group or {}).items():
                await client._request("role.set", RoleSet(self._environment._named, principal, role, is_service))


class EnvironmentMembersManager:
    """The former name of `Environment.roles`."""

    def __init__(self, environment: Environment) -> None:
        self._roles = EnvironmentRolesManager(environment)

    @_dual.method
    async def update(
        self, *, users: Optional[dict[str, str]] = None, service_users: Optional[dict[str, str]] = None
    ) -> None:
        """Deprecated: `Environment.roles.update`."""
        _say_old("update")
        await self._roles._set(users, service_users)

    @_dual.method
    async def remove(self, *, users: Optional[list[str]] = None, service_users: Optional[list[str]] = None) -> None:
        """Deprecated. The principals have the environment's default role again."""
        _say_old("remove")
        await self._roles._set(dict.fromkeys(users or (), ""), dict.fromkeys(service_users or (), ""))

    @_dual.method
    async def list(self) -> EnvironmentRoles:
        """Deprecated: `Environment.roles.list`."""
        _say_old("list")
        return await self._roles.list.aio()


def _say_old(method: str) -> None:
    import warnings

    warnings.warn(f"Environment.members.{method} is deprecated: use Environment.roles", DeprecationError, stacklevel=4)


class Environment(Object):
    """A namespace of apps, secrets and other named things. Made by `from_name` or `from_context`."""

    objects = EnvironmentManager
    """All environments."""
    _name: Optional[str]
    _create: bool

    def __init__(self) -> None:
        raise InvalidError("Environment() cannot be called: use Environment.from_name(name)")

    @classmethod
    def _make(cls, name: Optional[str], create: bool, client: Optional[Client]) -> Environment:
        self = cls.__new__(cls)
        self._init_handle(None, client)
        self._name = name
        self._create = create
        return self

    @classmethod
    def _from_info(cls, info: EnvironmentInfo, client: Client) -> Environment:
        self = cls._make(info.name, False, client)
        self._hydrate(info.environment_id, client)
        return self

    @staticmethod
    def from_name(name: str, *, create_if_missing: bool = False, client: Optional[Client] = None) -> Environment:
        """An environment by name. Nothing is asked of the server until it is first used."""
        return Environment._make(_check(name, "Environment.from_name"), bool(create_if_missing), client)

    @staticmethod
    def from_context(*, client: Optional[Client] = None) -> Environment:
        """The environment that is meant where none is named: the container's, the configured one, else the default."""
        return Environment._make(None, False, client)

    @property
    def name(self) -> Optional[str]:
        """Its name; None for `from_context` that has not been hydrated."""
        return self._name

    @property
    def _named(self) -> str:
        assert self._name is not None
        return self._name

    @property
    def roles(self) -> EnvironmentRolesManager:
        """Who has which role: ``list`` and ``update``."""
        return EnvironmentRolesManager(self)

    @property
    def members(self) -> EnvironmentMembersManager:
        """Deprecated: `roles`."""
        return EnvironmentMembersManager(self)

    @property
    def apps(self) -> LaterNamespace:
        """Its apps."""
        return LaterNamespace("Environment.apps", "use `cadenza app list --env NAME`")

    @property
    def billing(self) -> LaterNamespace:
        """What it costs."""
        return LaterNamespace("Environment.billing", "a server of one's own has no bill")

    async def _find(self, client: Client) -> None:
        from cadenza.protocol.accounts import EnvironmentCreate, EnvironmentRef

        try:
            found = await client._request("environment.get", EnvironmentRef(self._name or ""))
        except NotFoundError:
            if not self._create or self._name is None:
                raise
            try:
                found = await client._request("environment.create", EnvironmentCreate(self._name))
            except AlreadyExistsError:  # somebody else was quicker
                found = await client._request("environment.get", EnvironmentRef(self._name))
        self._name = found.name
        self._hydrate(found.environment_id, self._client)

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Environment:
        """Ask the server for it. NotFoundError when there is none of the name."""
        if client is not None:
            self._client = client
        await self._ready()
        return self

    def __repr__(self) -> str:
        return f"Environment.from_name({self._name!r})" if self._name else "Environment.from_context()"
