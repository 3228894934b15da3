"""Versions of deployed apps: put in force whole or not at all, kept, put in force again.

A deploy whose configuration equals that of the version in force does nothing. What is compared (`fingerprint`): the
functions as they are kept (after secrets are sealed), sorted by name, and the budget. The strategy, the deployment's
tag, git, and the app's own tags are not. Deploys of one name follow each other; each is whole. The specs of the last
`VERSIONS_KEPT` versions are kept, and name their uploaded files, so that a rollback finds them.
Source: semantics.md section 23.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, AsyncIterator, Iterable, Optional, Sequence

import msgspec

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, InvalidError, NotFoundError
from cadenza.control.apps import Apps
from cadenza.control.appstate import DEPLOYED, App, budget_text, read_budget
from cadenza.control.calls import Calls
from cadenza.control.declared import check_app_name, check_budget, check_tags, functions_of, unpack
from cadenza.control.functions import Functions
from cadenza.control.request import Request
from cadenza.control.access import Access
from cadenza.protocol.deployments import (
    MAX_TAG_CHARS,
    RECREATE,
    RECREATE_WAIT_S,
    ROLLING,
    STRATEGIES,
    AppDeploy,
    AppDeployed,
    AppPromote,
    AppRollback,
    AppRollover,
    Deployment,
    Deployments as DeploymentsReply,
    GitInfo,
    NamedApp,
)
from cadenza.protocol.method import READ
from cadenza.protocol.objects import BudgetSpec, FunctionSpec, to_json
from cadenza.protocol.packed import pack
from cadenza.storage.db import Database, Transaction

VERSIONS_KEPT = 100
"""Of each app; besides, the version in force is always kept."""
RECREATE_POLL_S = 0.05
MAX_GIT_CHARS = 2_000

_GIT_FIELDS = ("commit", "branch", "repository", "author", "message")


_decode_git = msgspec.json.Decoder(GitInfo).decode


def fingerprint(specs: Sequence[FunctionSpec], budget: Optional[BudgetSpec]) -> str:
    """What two deploys have in common when the second changes nothing."""
    digest = hashlib.sha256()
    known: dict[int, str] = {}
    for spec in sorted(specs, key=lambda one: one.name):
        files = known.get(id(spec.files))
        if files is None:
            rows = [[one.path, one.digest, one.mode] for one in sorted(spec.files, key=lambda one: one.path)]
            files = known[id(spec.files)] = json.dumps(rows)
        digest.update(to_json(replace(spec, files=())).encode())
        digest.update(files.encode())
    digest.update(budget_text(budget).encode())
    return digest.hexdigest()


def before(versions: Iterable[tuple[int, str]], active: int) -> int:
    """The version before the one in force, staged ones aside; 0 for none. Pure."""
    return max((number for number, kind in versions if number < active and kind != "staged"), default=0)


def too_old(versions: Iterable[tuple[int, str]], active: int) -> list[int]:
    """Versions that need not be kept. Pure."""
    numbers = sorted((number for number, _ in versions if number != active), reverse=True)
    return numbers[VERSIONS_KEPT - 1 :]


@dataclass(frozen=True)
class _Origin:
    """Where a version comes from, for history."""

    kind: str
    of: int = 0
    by: str = ""
    tag: str = ""
    strategy: str = ROLLING
    git: GitInfo = field(default_factory=GitInfo)
    client_version: str = ""


@dataclass(frozen=True)
class _Kept:
    """A version as it was kept. A rollback to it or a rollover runs the code of its commit, and so shows that."""

    kind: str
    specs: tuple[FunctionSpec, ...]
    budget: Optional[BudgetSpec]
    git: GitInfo


class Deployments:
    """Handlers of ``app.deploy`` and what goes with it."""

    def __init__(
        self, db: Database, clock: Clock, calls: Calls, apps: Apps, functions: Functions, access: Access
    ) -> None:
        self._db = db
        self._clock = clock
        self._calls = calls
        self._apps = apps
        self._functions = functions
        self._access = access

    # --- methods ---

    async def deploy(self, request: Request[AppDeploy]) -> AppDeployed:
        """Put a new version in force, or keep it for later. InvalidError, ConflictError: nothing was changed."""
        body = request.body
        environment = self._access.environment(request.caller, body.environment)
        check_app_name(body.name)
        check_tags(body.tags)
        check_budget(body.budget)
        _check_words(body.tag, body.strategy)
        with self._apps.moving_in(environment):
            deployed = await self._deploy(request, environment)
        await self._gone(deployed, body.strategy)
        return deployed

    async def _deploy(self, request: Request[AppDeploy], environment: str) -> AppDeployed:
        body = request.body
        by = self._apps.who(request.caller)
        origin = _Origin(
            "staged" if body.staged else "deploy", 0, by, body.tag, body.strategy, _cut(body.git),
            body.client_version[:50],
        )  # fmt: skip
        asked = await asyncio.to_thread(functions_of, body.functions, request.payload)
        specs = await self._functions.admit(asked, environment)
        async with self._apps.naming(environment, body.name):
            app = self._apps.deployed(body.name, environment)
            if app is None:
                return await self._first(body, environment, specs, origin)
            async with app.changing:
                self._still_deployed(app)
                return await self._again(app, body, specs, origin)

    async def _first(
        self, body: AppDeploy, environment: str, specs: Sequence[FunctionSpec], origin: _Origin
    ) -> AppDeployed:
        app = self._apps.fresh(body.name, environment, origin.by)
        async with app.changing:
            return await self._put(app, specs, origin, dict(body.tags), body.budget, new=True)

    async def _again(self, app: App, body: AppDeploy, specs: Sequence[FunctionSpec], origin: _Origin) -> AppDeployed:
        tags = dict(body.tags) or app.tags
        print_ = fingerprint(specs, body.budget)
        active = await self._db.fetch("deployment_active", (app.app_id, app.version))
        there = {one.name for one in specs} == set(self._functions.layout(app.app_id))
        if origin.kind != "staged" and there and active and active[0][0] == print_:
            if tags != app.tags:
                await self._db.execute("app_tags", (json.dumps(tags), app.app_id))
                app.tags = tags
            if self._calls.note(app.app_id):  # what it needs, such as its image, may have come back with this deploy
                self._functions.again(app.place)
            notes: tuple[str, ...] = ()
            if body.tag and body.tag != active[0][1]:
                notes = (f"nothing has changed since version {app.version}: the tag {body.tag!r} was not kept",)
            return AppDeployed(app.app_id, app.version, False, self._functions.layout(app.app_id), notes)
        return await self._put(app, specs, origin, tags, body.budget)

    async def history(self, request: Request[NamedApp]) -> DeploymentsReply:
        """An app's versions, newest first. Of a stopped app too, by its id or while no other has its name."""
        app = self._apps.for_caller(request.caller, request.body.app, request.body.environment, READ)
        found = []
        for row in await self._db.fetch("deployment_all", (app.app_id,)):
            version, kind, of, at, by, tag, strategy, git, client_version, names = row
            active = version == app.version and app.state == DEPLOYED
            found.append(
                Deployment(
                    version, at, by, kind, of, tag, strategy, _decode_git(git), client_version,
                    tuple(json.loads(names)), active,
                )
            )  # fmt: skip
        return DeploymentsReply(tuple(found))

    async def rollback(self, request: Request[AppRollback]) -> AppDeployed:
        """Put an earlier version in force again, as a new version."""
        body = request.body
        _check_words("", body.strategy)
        app = self._app(request, body.app, body.environment)
        async with app.changing:
            self._still_deployed(app)
            number = body.version or before(await self._numbers(app), app.version)
            if not number:
                raise NotFoundError(
                    f"the app {app.name} has no version before {app.version}: see `cadenza app history`"
                )
            kept = await self._version(app, number)
            if kept.kind == "staged":
                raise ConflictError(
                    f"version {number} of {app.name} is staged and was never in force: promote it instead"
                )
            if number == app.version:
                raise ConflictError(
                    f"version {number} of {app.name} is in force already: for new containers use a rollover"
                )
            await self._functions.still(kept.specs, app.environment, f"version {number} of {app.name}")
            by = self._apps.who(request.caller)
            origin = _Origin("rollback", number, by, strategy=body.strategy, git=kept.git)
            deployed = await self._put(app, kept.specs, origin, app.tags, kept.budget)
        await self._gone(deployed, body.strategy)
        return deployed

    async def rollover(self, request: Request[AppRollover]) -> AppDeployed:
        """New containers for the version in force, as a new version."""
        body = request.body
        _check_words("", body.strategy)
        app = self._app(request, body.app, body.environment)
        async with app.changing:
            self._still_deployed(app)
            if not app.version:
                raise ConflictError(f"the app {app.name} has no version in force: deploy it first")
            kept = await self._version(app, app.version)
            await self._functions.still(kept.specs, app.environment, f"version {app.version} of {app.name}")
            by = self._apps.who(request.caller)
            origin = _Origin("rollover", app.version, by, strategy=body.strategy, git=kept.git)
            deployed = await self._put(app, kept.specs, origin, app.tags, kept.budget, renew=True)
        await self._gone(deployed, body.strategy)
        return deployed

    async def promote(self, request: Request[AppPromote]) -> AppDeployed:
        """Put a staged version in force, under the number that it has."""
        body = request.body
        _check_words("", body.strategy)
        app = self._app(request, body.app, body.environment)
        async with app.changing:
            self._still_deployed(app)
            kept = await self._version(app, body.version)
            if kept.kind != "staged":
                raise ConflictError(
                    f"version {body.version} of {app.name} is not staged: to go back to it, use a rollback"
                )
            await self._functions.still(kept.specs, app.environment, f"version {body.version} of {app.name}")
            origin = _Origin("promote", body.version, self._apps.who(request.caller), strategy=body.strategy)
            deployed = await self._put(app, kept.specs, origin, app.tags, kept.budget)
        await self._gone(deployed, body.strategy)
        return deployed

    # --- for the rest of the control plane ---

    async def kept(self) -> AsyncIterator[tuple[FunctionSpec, ...]]:
        """The functions of each version that is kept, one version after the other: what they name is not garbage."""
        for app_id, version in await self._db.fetch("deployment_kept"):
            rows = await self._db.fetch("deployment_one", (app_id, version))
            if rows and rows[0][1]:
                yield await asyncio.to_thread(unpack, rows[0][1])

    async def specs_of(self, app: App, version: int) -> tuple[FunctionSpec, ...]:
        """The functions of a version. NotFoundError; ConflictError when something that it needs is gone."""
        kept = await self._version(app, version)
        await self._functions.still(kept.specs, app.environment, f"version {version} of {app.name}")
        return kept.specs

    # --- inside ---

    def _app(self, request: Request[Any], word: str, environment: str) -> App:
        app = self._apps.for_caller(request.caller, word, environment)
        self._still_deployed(app)
        return app

    def _still_deployed(self, app: App) -> None:
        if app.state != DEPLOYED:
            raise ConflictError(
                f"the app {app.name or app.app_id} is {app.state}, not deployed"
                + (f" ({app.stop_reason}): deploy it anew" if app.stop_reason else "")
            )

    async def _numbers(self, app: App) -> list[tuple[int, str]]:
        return [(row[0], row[1]) for row in await self._db.fetch("deployment_numbers", (app.app_id,))]

    async def _version(self, app: App, version: int) -> _Kept:
        rows = await self._db.fetch("deployment_one", (app.app_id, version))
        if not rows:
            raise NotFoundError(
                f"the app {app.name} has no version {version}: see `cadenza app history {app.name}` (of each app "
                f"the last {VERSIONS_KEPT} are kept)"
            )
        kind, data, budget, git = rows[0]
        return _Kept(kind, await asyncio.to_thread(unpack, data), read_budget(budget), _decode_git(git))

    async def _put(
        self,
        app: App,
        specs: Sequence[FunctionSpec],
        origin: _Origin,
        tags: dict[str, str],
        budget: Optional[BudgetSpec],
        *,
        renew: bool = False,
        new: bool = False,
    ) -> AppDeployed:
        """One more version, in one transaction; then it is in force, unless it is staged. The app's lock is held."""
        numbers = [] if new else await self._numbers(app)
        promoted = origin.kind == "promote"
        version = origin.of if promoted else max((one for one, _ in numbers), default=0) + 1
        staged = origin.kind == "staged"
        active = app.version if staged else version
        now = self._clock.now()
        self._apps.check_affords(budget, specs)
        change = self._functions.plan(app.app_id, specs, version, origin.by)
        packed = await asyncio.to_thread(pack, specs)
        row = (
            app.app_id, version, origin.kind, origin.of, now, origin.by, origin.tag, origin.strategy,
            to_json(origin.git), origin.client_version, json.dumps(sorted(one.name for one in specs)),
            fingerprint(specs, budget), budget_text(budget), packed,
        )  # fmt: skip
        old = too_old([*numbers, (version, origin.kind)], active)

        def write(transaction: Transaction) -> None:
            if new:
                self._apps.add_to(transaction, app)
            if promoted:
                transaction.execute("deployment_promote", (now, origin.strategy, app.app_id, version))
            else:
                transaction.execute("deployment_add", row)
            for number in old:
                transaction.execute("deployment_drop", (app.app_id, number))
            if not staged:
                self._functions.write(transaction, change)
                transaction.execute(
                    "app_deployed", (version, now, origin.by, json.dumps(tags), budget_text(budget), app.app_id)
                )

        await self._db.transaction(write)
        if new:
            self._apps.adopt(app)
        if staged:
            layout = self._functions.layout(app.app_id)
            return AppDeployed(app.app_id, version, True, layout, ("staged: not in force before it is promoted",))
        app.version, app.deployed_at, app.deployed_by = version, now, origin.by
        app.tags, app.budget, app.note = tags, budget, ""
        self._apps.budgeted(app)
        self._functions.apply(app.place, change, strategy=origin.strategy, renew=renew)
        self._apps.changed(app, True)
        return AppDeployed(app.app_id, version, True, dict(change.layout))

    async def _gone(self, deployed: AppDeployed, strategy: str) -> None:
        """After a recreate, wait until the old containers are gone; `RECREATE_WAIT_S` at most."""
        if strategy != RECREATE or not deployed.changed:
            return
        until = self._clock.monotonic() + RECREATE_WAIT_S
        while self._calls.old_containers(deployed.app_id) and self._clock.monotonic() < until:
            await asyncio.sleep(RECREATE_POLL_S)


def _check_words(tag: str, strategy: str) -> None:
    if len(tag) > MAX_TAG_CHARS:
        raise InvalidError(f"the tag of a deployment has at most {MAX_TAG_CHARS} characters, not {len(tag)}")
    if strategy not in STRATEGIES:
        raise InvalidError(f"the strategy of a deployment is {' or '.join(STRATEGIES)}, not {strategy[:40]!r}")


def _cut(git: GitInfo) -> GitInfo:
    return replace(git, **{name: getattr(git, name)[:MAX_GIT_CHARS] for name in _GIT_FIELDS})


def handlers(deployments: Deployments) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "app.deploy": deployments.deploy,
        "app.history": deployments.history,
        "app.rollback": deployments.rollback,
        "app.rollover": deployments.rollover,
        "app.promote": deployments.promote,
    }
