"""Environments: their rows of the table of methods, and what is kept of them. Source: semantics.md section 24."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any, Awaitable, Callable

from cadenza.base.clock import Clock
from cadenza.base.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    ResourceExhaustedError,
)
from cadenza.base.ids import IdSource
from cadenza.control.access import Access
from cadenza.control.directory import MAIN, MAIN_ID, Environment
from cadenza.control.request import Request
from cadenza.protocol.accounts import (
    CONTRIBUTOR,
    ENVIRONMENT_ROLES,
    NO_ACCESS,
    EnvironmentCreate,
    EnvironmentInfo,
    EnvironmentList,
    EnvironmentRef,
    EnvironmentUpdate,
    WorkspaceSet,
    WorkspaceSettings,
)
from cadenza.protocol.accounts import Environments as EnvironmentsReply
from cadenza.protocol.method import READ, Empty
from cadenza.storage.db import Database, Transaction

MAX_ENVIRONMENTS = 1_500
MAX_NAME_CHARS = 64
MAX_SUFFIX_CHARS = 63
SETTINGS = ("default_environment", "image_builder_version")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_SUFFIX = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_BUILDER = re.compile(r"[A-Za-z0-9.-]{0,32}\Z")


def check_name(name: str) -> None:
    """InvalidError when an environment cannot have this name."""
    if name.startswith("en-"):
        raise InvalidError(f"the environment name {name[:80]!r} begins with 'en-', as ids do: choose another")
    if not _NAME.match(name):
        raise InvalidError(
            f"the environment name {name[:80]!r}: 1 to {MAX_NAME_CHARS} letters, digits, '-' and '_', the first of "
            "them a letter or a digit"
        )


def check_suffix(suffix: str) -> None:
    """InvalidError when a web suffix is no part of a host name."""
    if suffix and not _SUFFIX.match(suffix):
        raise InvalidError(
            f"the web suffix {suffix[:80]!r}: lower-case letters, digits and '-', at most {MAX_SUFFIX_CHARS}, no '-' "
            "at its ends; or empty"
        )


def free_suffix(name: str, taken: set[str]) -> str:
    """A web suffix for a new environment, from its name. Pure."""
    base = name.lower().replace("_", "-").strip("-")[:MAX_SUFFIX_CHARS].strip("-") or "environment"
    found, number = base, 1
    while found in taken:
        number += 1
        tail = f"-{number}"
        found = base[: MAX_SUFFIX_CHARS - len(tail)].strip("-") + tail
    return found


class Environments:
    """Handlers of ``environment.*`` and ``workspace.*``; the only writer of `Directory.environments`."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ids: IdSource,
        access: Access,
        apps: Callable[[str], int] = lambda environment: 0,
    ) -> None:
        """``apps(name)``: how many apps that are not stopped an environment has."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._access = access
        self._directory = access.directory
        self._apps = apps
        self._writing = asyncio.Lock()
        self._deleted: list[Callable[[str], Awaitable[None]]] = []
        self._renamed: list[Callable[[str, str], Awaitable[None]]] = []

    def on_delete(self, callback: Callable[[str], Awaitable[None]]) -> None:
        """Await ``callback(name)`` when an environment is gone, with the rows of its things: whoever knows of them
        forgets them, and removes what was written meanwhile."""
        self._deleted.append(callback)

    def on_rename(self, callback: Callable[[str, str], Awaitable[None]]) -> None:
        """Await ``callback(old, new)`` when an environment has a new name, or is gone: then ``new`` is its id."""
        self._renamed.append(callback)

    async def start(self) -> None:
        """Load what is kept; the environment main is made when it is not there."""
        known = {}
        for one in await self._db.fetch("environment_all"):
            known[one[1]] = Environment(one[0], one[1], one[2], one[3], bool(one[4]), one[5], one[6])
        if MAIN not in known:
            known = {MAIN: Environment(MAIN_ID, MAIN, self._clock.now()), **known}
            await self._db.execute("environment_put", _row(known[MAIN]))
        self._directory.environments.clear()
        self._directory.environments.update(known)
        settings: dict[str, str] = dict(await self._db.fetch("setting_all"))
        if settings.get("default_environment") in known:
            self._directory.default_environment = settings["default_environment"]
        self._directory.image_builder_version = settings.get("image_builder_version", "")

    # --- methods ---

    async def list(self, request: Request[EnvironmentList]) -> EnvironmentsReply:
        visible = self._access.visible(request.caller)
        return EnvironmentsReply(tuple(self._info(self._directory.environments[one]) for one in visible))

    async def get(self, request: Request[EnvironmentRef]) -> EnvironmentInfo:
        name = self._access.environment(request.caller, request.body.name, READ)
        return self._info(self._directory.environments[name])

    async def create(self, request: Request[EnvironmentCreate]) -> EnvironmentInfo:
        body = request.body
        self._access.manage(request.caller, "make an environment")
        check_name(body.name)
        if body.default_role and body.default_role not in ENVIRONMENT_ROLES:
            raise InvalidError(f"the role {body.default_role!r}: it is one of {', '.join(ENVIRONMENT_ROLES)}")
        if body.default_role and not body.restricted:
            raise InvalidError("a default role is for a restricted environment: in others every member is contributor")
        async with self._writing:
            known = self._directory.environments
            if body.name in known:
                raise AlreadyExistsError(f"there is an environment {body.name!r} already")
            if len(known) >= MAX_ENVIRONMENTS:
                raise ResourceExhaustedError(f"there are {MAX_ENVIRONMENTS} environments, the most that may be")
            made = Environment(
                self._ids.new("environment"),
                body.name,
                self._clock.now(),
                free_suffix(body.name, {one.web_suffix for one in known.values()}),
                body.restricted,
                body.default_role or (NO_ACCESS if body.restricted else CONTRIBUTOR),
            )
            await self._db.execute("environment_put", _row(made))
            known[made.name] = made
        return self._info(made)

    async def update(self, request: Request[EnvironmentUpdate]) -> EnvironmentInfo:
        body = request.body
        self._access.manage(request.caller, "change an environment")
        async with self._writing:
            old = self._named(body.name)
            known = self._directory.environments
            new = replace(old)
            if body.new_name is not None and body.new_name != old.name:
                if old.name == MAIN:
                    raise ConflictError(f"the environment {MAIN!r} keeps its name: it is always there")
                check_name(body.new_name)
                alive = self._apps(old.name)
                if alive:
                    raise ConflictError(_inhabited(alive, old.name))
                if body.new_name in known:
                    raise AlreadyExistsError(f"there is an environment {body.new_name!r} already")
                new.name = body.new_name
            if body.web_suffix is not None:
                check_suffix(body.web_suffix)
                holder = next((one for one in known.values() if one.web_suffix == body.web_suffix), old)
                if holder is not old:
                    raise AlreadyExistsError(f"the environment {holder.name!r} has the web suffix {body.web_suffix!r}")
                new.web_suffix = body.web_suffix
            if body.image_builder_version is not None:
                _check_builder(body.image_builder_version)
                new.image_builder_version = body.image_builder_version
            await self._save(old, new)
        return self._info(new)

    async def _save(self, old: Environment, new: Environment) -> None:
        directory, moved = self._directory, new.name != old.name
        defaults = moved and directory.default_environment == old.name

        def write(transaction: Transaction) -> None:
            transaction.execute("environment_put", _row(new))
            if moved:
                transaction.execute("environment_apps_move", (new.name, old.name))
                transaction.execute("environment_secrets_move", (new.name, old.name))
                transaction.execute("environment_images_move", (new.name, old.name))
                transaction.execute("environment_publications_move", (new.name, old.name))
            if defaults:
                transaction.execute("setting_put", ("default_environment", new.name))

        await self._db.transaction(write)
        if not moved:
            directory.environments[old.name] = new
            return
        rows = [new if one is old else one for one in directory.environments.values()]  # in the order of their making
        directory.environments.clear()
        directory.environments.update({one.name: one for one in rows})
        if defaults:
            directory.default_environment = new.name
        for callback in self._renamed:
            await callback(old.name, new.name)

    async def delete(self, request: Request[EnvironmentRef]) -> Empty:
        self._access.manage(request.caller, "delete an environment")
        async with self._writing:
            known = self._directory.environments
            gone = self._named(request.body.name)
            if gone.name == MAIN:
                raise ConflictError(f"the environment {MAIN!r} cannot be deleted: it is always there")
            if gone.name == self._directory.default_environment:
                raise ConflictError(
                    f"{gone.name!r} is the workspace's default environment: set another one first "
                    "(cadenza workspace settings set default_environment NAME)"
                )
            alive = self._apps(gone.name)
            if alive:
                raise ConflictError(_inhabited(alive, gone.name))
            order = list(known.items())
            del known[gone.name]  # nothing new may begin in it meanwhile

            def write(transaction: Transaction) -> None:
                transaction.execute("environment_delete", (gone.environment_id,))
                transaction.execute("role_delete_environment", (gone.environment_id,))
                transaction.execute("environment_apps_move", (gone.environment_id, gone.name))
                transaction.execute("environment_secrets_drop", (gone.name,))
                transaction.execute("environment_images_drop", (gone.name,))
                transaction.execute("environment_publications_drop", (gone.name,))

            try:
                await self._db.transaction(write)
            except BaseException:
                known.clear()
                known.update(order)
                raise
            for callback in self._deleted:
                await callback(gone.name)
            for key in [one for one in self._directory.roles if one[0] == gone.environment_id]:
                del self._directory.roles[key]
            # What its stopped apps left is not for those who may use another environment of this name: no environment
            # is ever named as an id.
            for renamed in self._renamed:
                await renamed(gone.name, gone.environment_id)
        return Empty()

    async def settings(self, request: Request[Empty]) -> WorkspaceSettings:
        """The workspace's settings; every caller on the host may know them."""
        return self._settings()

    async def set(self, request: Request[WorkspaceSet]) -> WorkspaceSettings:
        body = request.body
        self._access.manage(request.caller, "change the workspace's settings")
        if body.name not in SETTINGS:
            raise InvalidError(f"the workspace has no setting {body.name[:80]!r}: it has {' and '.join(SETTINGS)}")
        async with self._writing:
            if body.name == "default_environment":
                self._named(body.value)
            else:
                _check_builder(body.value)
            await self._db.execute("setting_put", (body.name, body.value))
            setattr(self._directory, body.name, body.value)
        return self._settings()

    def _settings(self) -> WorkspaceSettings:
        found = self._directory
        return WorkspaceSettings(found.default_environment, found.image_builder_version, self._access.workspace)

    def _named(self, name: str) -> Environment:
        found = self._directory.environments.get(name or self._directory.default_environment)
        if found is None:
            raise NotFoundError(f"there is no environment {name[:80]!r}: see `cadenza environment list`")
        return found

    def _info(self, one: Environment) -> EnvironmentInfo:
        return EnvironmentInfo(
            one.environment_id,
            one.name,
            one.created_at,
            one.web_suffix,
            one.restricted,
            one.default_role,
            one.image_builder_version,
            one.name == self._directory.default_environment,
            self._apps(one.name),
        )


def _row(one: Environment) -> tuple[Any, ...]:
    return (
        one.environment_id, one.name, one.created_at, one.web_suffix, int(one.restricted), one.default_role,
        one.image_builder_version,
    )  # fmt: skip


def _inhabited(apps: int, name: str) -> str:
    count = "an app lives" if apps == 1 else f"{apps} apps live"
    return (
        f"{count} in the environment {name!r}: stop {'it' if apps == 1 else 'them'} first (cadenza app list -e {name})"
    )


def _check_builder(version: str) -> None:
    if not _BUILDER.match(version):
        raise InvalidError(f"the image builder version {version[:80]!r}: letters, digits, '.' and '-', at most 32")


def handlers(environments: Environments) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "environment.list": environments.list,
        "environment.get": environments.get,
        "environment.create": environments.create,
        "environment.update": environments.update,
        "environment.delete": environments.delete,
        "workspace.get": environments.settings,
        "workspace.set": environments.set,
    }
