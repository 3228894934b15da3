"""Members of the workspace, service users, and their roles in environments. Source: semantics.md section 24."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Optional

from cadenza.base.clock import Clock
from cadenza.base.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from cadenza.base.ids import IdSource
from cadenza.control.access import Access, Standing, role_in
from cadenza.control.directory import SELF_ID, Environment, User
from cadenza.control.request import Request
from cadenza.control.tokens import Tokens
from cadenza.protocol.accounts import (
    ENVIRONMENT_ROLES,
    MANAGER,
    MEMBER,
    OWNER,
    WORKSPACE_ROLES,
    RoleInfo,
    RoleList,
    Roles,
    RoleSet,
    TokenCreated,
    UserCreate,
    UserDelete,
    UserInfo,
    UserList,
    Users,
    UserSetRole,
)
from cadenza.protocol.method import READ, Empty
from cadenza.storage.db import Database, Transaction

MAX_USERS = 2_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}\Z")


class Members:
    """Handlers of ``user.*`` and ``role.*``; the only writer of `Directory.users` and `Directory.roles`."""

    def __init__(self, db: Database, clock: Clock, ids: IdSource, access: Access, tokens: Tokens) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._access = access
        self._directory = access.directory
        self._tokens = tokens
        self._writing = asyncio.Lock()

    async def start(self, own_name: str) -> None:
        """Load what is kept. ``own_name``: what the server's own user is called, where it is not known yet."""
        users = {
            row[0]: User(row[0], row[1], row[2], bool(row[3]), row[4], row[5])
            for row in await self._db.fetch("user_all")
        }
        if SELF_ID not in users:
            name = own_name if _NAME.match(own_name) else "owner"
            own = users[SELF_ID] = User(SELF_ID, name, OWNER, False, self._clock.now())
            await self._db.execute("user_put", _row(own))
        self._directory.users.clear()
        self._directory.users.update(users)
        self._directory.roles.clear()
        self._directory.roles.update({(one[0], one[1]): one[2] for one in await self._db.fetch("role_all")})

    # --- user.* ---

    async def list(self, request: Request[UserList]) -> Users:
        self._access.standing(request.caller)
        wanted = request.body.service_users
        return Users(tuple(self._info(one) for one in self._directory.users.values() if one.service_user == wanted))

    async def create(self, request: Request[UserCreate]) -> TokenCreated:
        body = request.body
        standing = self._access.manage(request.caller, "make a user")
        if not _NAME.match(body.name):
            raise InvalidError(
                f"the name {body.name[:80]!r}: 1 to 64 letters, digits and any of '._@+-', a letter or digit first"
            )
        self._check_role(standing, body.role, body.service_user)
        async with self._writing:
            if self._directory.user_named(body.name, body.service_user) is not None:
                raise AlreadyExistsError(f"there is a {_kind(body.service_user)} {body.name!r} already")
            if len(self._directory.users) >= MAX_USERS:
                raise ResourceExhaustedError(f"there are {MAX_USERS} users, the most that may be")
            user = User(
                self._ids.new("user"), body.name, body.role, body.service_user, self._clock.now(), standing.user.name
            )
            expires_at = self._tokens.lifetime(body.expires_in_s)
            token, secret = self._tokens.make(user, expires_at=expires_at)

            def write(transaction: Transaction) -> None:
                transaction.execute("user_put", _row(user))
                self._tokens.write(transaction, token)

            await self._db.transaction(write)
            self._directory.users[user.user_id] = user
            self._directory.tokens[token.token_id] = token
        return TokenCreated(token.token_id, secret, token.expires_at)

    async def set_role(self, request: Request[UserSetRole]) -> Empty:
        body = request.body
        standing = self._access.manage(request.caller, "change a member's role")
        async with self._writing:
            user = self._user(body.name, False)
            self._check_role(standing, body.role, False)
            self._check_rank(standing, user)
            if user.user_id == SELF_ID and body.role != OWNER:
                raise ConflictError(f"{user.name} is the user that the server runs as, and stays an owner")
            changed = User(user.user_id, user.name, body.role, False, user.created_at, user.created_by)
            await self._db.execute("user_put", _row(changed))
            self._directory.users[user.user_id] = changed
        return Empty()

    async def delete(self, request: Request[UserDelete]) -> Empty:
        body = request.body
        standing = self._access.manage(request.caller, "remove a user")
        async with self._writing:
            user = self._directory.user_named(body.name, body.service_user)
            if user is None and body.allow_missing:
                return Empty()
            user = self._user(body.name, body.service_user)
            self._check_rank(standing, user)
            if user.user_id == SELF_ID:
                raise ConflictError(f"{user.name} is the user that the server runs as, and stays")
            user_id = user.user_id

            def write(transaction: Transaction) -> None:
                for query in ("token_delete_user", "role_delete_user", "user_delete"):
                    transaction.execute(query, (user_id,))

            await self._db.transaction(write)
            self._tokens.forget([one.token_id for one in self._tokens.of(user_id)])
            self._directory.users.pop(user_id, None)
            for key in [one for one in self._directory.roles if one[1] == user_id]:
                del self._directory.roles[key]
        return Empty()

    # --- role.* ---

    async def roles(self, request: Request[RoleList]) -> Roles:
        name = self._access.environment(request.caller, request.body.environment, READ)
        environment = self._directory.environments[name]
        found = []
        for user in self._directory.users.values():
            direct = self._direct(environment, user)
            found.append(RoleInfo(user.name, role_in(user, environment, direct), direct is not None, user.service_user))
        return Roles(tuple(found))

    async def set(self, request: Request[RoleSet]) -> Empty:
        body = request.body
        self._access.manage(request.caller, "change roles")
        async with self._writing:
            environment = self._directory.environments.get(body.environment)
            if environment is None:
                raise NotFoundError(
                    f"there is no environment {body.environment[:80]!r}: see `cadenza environment list`"
                )
            if not environment.restricted:
                raise InvalidError(
                    f"the environment {environment.name!r} is not restricted: every member is a contributor there. "
                    "Roles are for environments made with `cadenza environment create NAME --restricted`"
                )
            if body.role and body.role not in ENVIRONMENT_ROLES:
                raise InvalidError(f"the role {body.role[:40]!r}: it is one of {', '.join(ENVIRONMENT_ROLES)}")
            user = self._user(body.principal, body.service_user)
            if user.role in (OWNER, MANAGER):
                raise InvalidError(f"{user.name} is {user.role} of the workspace, and so may do everything here")
            key = (environment.environment_id, user.user_id)
            if body.role:
                await self._db.execute("role_put", (*key, body.role))
                self._directory.roles[key] = body.role
            else:
                await self._db.execute("role_delete", key)
                self._directory.roles.pop(key, None)
        return Empty()

    # --- rules ---

    def _user(self, name: str, service_user: bool) -> User:
        found = self._directory.user_named(name, service_user)
        if found is None:
            raise NotFoundError(f"there is no {_kind(service_user)} {name[:80]!r}")
        return found

    def _check_role(self, standing: Standing, role: str, service_user: bool) -> None:
        if role not in WORKSPACE_ROLES:
            raise InvalidError(f"the role {role[:40]!r}: it is one of {', '.join(WORKSPACE_ROLES)}")
        if service_user and role != MEMBER:
            raise InvalidError("a service user is a member of the workspace; its roles are those of environments")
        if role == OWNER and standing.user.role != OWNER:
            raise PermissionDeniedError("only an owner of the workspace makes another one")

    def _check_rank(self, standing: Standing, user: User) -> None:
        if user.role == OWNER and standing.user.role != OWNER:
            raise PermissionDeniedError(f"{user.name} is an owner of the workspace: only owners may do that")

    def _direct(self, environment: Environment, user: User) -> Optional[str]:
        if not environment.restricted or user.role in (OWNER, MANAGER):
            return None
        return self._directory.roles.get((environment.environment_id, user.user_id))

    def _info(self, one: User) -> UserInfo:
        roles = {
            self._directory.environment_name(environment_id): role
            for (environment_id, user_id), role in self._directory.roles.items()
            if user_id == one.user_id
        }
        return UserInfo(
            one.user_id, one.name, one.role, one.service_user, one.created_at,
            sum(1 for _ in self._tokens.of(one.user_id)), one.created_by, roles,
        )  # fmt: skip


def _kind(service_user: bool) -> str:
    return "service user" if service_user else "member"


def _row(one: User) -> tuple[Any, ...]:
    return one.user_id, one.name, one.role, int(one.service_user), one.created_at, one.created_by


def handlers(members: Members) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "user.list": members.list,
        "user.create": members.create,
        "user.set_role": members.set_role,
        "user.delete": members.delete,
        "role.list": members.roles,
        "role.set": members.set,
    }
