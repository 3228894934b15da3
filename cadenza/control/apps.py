"""Apps: created, published, kept alive by their client, stopped. The only writer of an app's state.

An ephemeral app lives as long as its client: it stops when the client finishes it, when its connection has been gone
for `CLIENT_GONE_S`, or when no heartbeat came for `HEARTBEAT_LIMIT_S`. A detached one outlives its client and stops
when nothing is left to do. A deployed one stays until it is stopped; what puts its versions in force is
`cadenza.control.deployments`. Source: semantics.md section 23.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import contextmanager, suppress
from typing import Any, Callable, Iterator, List, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, Error, InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.base.ids import IdSource
from cadenza.control import appstate
from cadenza.control.access import Access
from cadenza.control.appstate import (
    DEPLOYED as DEPLOYED,
    DETACHED,
    EPHEMERAL,
    INITIALIZING,
    STOPPED as STOPPED,
    STOPPED_KEPT_S,
    App as App,
    forgotten,
    keeps_running,
    overdue,
)
from cadenza.control.budgets import Budgets
from cadenza.control.calls import Calls
from cadenza.control.declared import MAX_NAME_CHARS, check_app_name, check_budget, check_tags, functions_of
from cadenza.control.functions import Function, Functions
from cadenza.control.request import Caller, Request
from cadenza.observe.log import Log
from cadenza.protocol.deployments import AppLookup, AppSetTags
from cadenza.protocol.method import READ, WRITE
from cadenza.protocol.methods import (
    AppCreate,
    AppCreated,
    AppFinish,
    AppList,
    AppPublish,
    AppPublished,
    AppRef,
    Apps as AppsReply,
    Empty,
)
from cadenza.protocol.objects import AppInfo, BudgetSpec, FunctionSpec
from cadenza.storage.db import Database, Transaction

_log = Log("cadenza.control.apps")


class Apps:
    """Every app of this control plane."""

    def __init__(
        self, db: Database, clock: Clock, ids: IdSource, calls: Calls, functions: Functions, access: Access
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._calls = calls
        self.functions = functions
        self._access = access
        self._apps: dict[str, App] = {}
        self._naming: dict[tuple[str, str], asyncio.Lock] = {}
        self._moving_in: Counter[str] = Counter()
        self.budgets: Optional[Budgets] = None
        self.on_change: List[Callable[[App, bool], None]] = []
        """Called with an app after its functions have changed, and with True when that was a deploy (or rollback,
        rollover, promotion, publishing) and not its end. `functions.declared` has what it declares now."""

    async def start(self) -> None:
        """Load what was there: deployed and detached apps go on, ephemeral ones lost their client with the last
        process."""
        for row in await self._db.fetch("app_all"):
            app = appstate.read(row)
            self._apps[app.app_id] = app
        for app in list(self._apps.values()):
            if app.state == INITIALIZING or app.state == EPHEMERAL:
                self._stopped(app, "the server was restarted")
                await self._keep_end(app)
                self._forget_budget(app)
        await self.forget()
        for app in self.alive:
            self.budgeted(app)
        broken = await self.functions.load({one.app_id: one.place for one in self.alive})
        for app_id, reason in broken.items():
            if self._apps[app_id].state == DEPLOYED:
                await self._set_aside(self._apps[app_id], reason)
            else:
                await self.end(self._apps[app_id], reason)

    async def _set_aside(self, app: App, reason: str) -> None:
        """A deployed app whose functions cannot be read goes on without them: its versions are still there, and a
        deploy or a rollback puts one in force."""
        app.note = f"{reason}. Deploy it again, or roll it back"
        self.functions.end(app.app_id)
        self._calls.remove_app(app.app_id, reason)
        await self._db.execute("function_end", (app.app_id,))

    # --- methods ---

    async def create(self, request: Request[AppCreate]) -> AppCreated:
        body = request.body
        if len(body.name) > MAX_NAME_CHARS:
            raise InvalidError(f"an app's name has at most {MAX_NAME_CHARS} characters")
        check_tags(body.tags)
        check_budget(body.budget)
        app = App(
            app_id=self._ids.new("app"),
            name=body.name,
            environment=self._access.environment(request.caller, body.environment),
            state=INITIALIZING,
            detached=body.detach,
            created_at=self._clock.now(),
            tags=dict(body.tags),
            budget=body.budget,
            created_by=self.who(request.caller),
            connection_id=request.caller.connection_id,
            heartbeat_at=self._clock.monotonic(),
        )
        with self.moving_in(app.environment):
            await self._db.execute("app_add", appstate.row(app))
            self._apps[app.app_id] = app
        self.budgeted(app)
        return AppCreated(app.app_id)

    async def publish(self, request: Request[AppPublish]) -> AppPublished:
        """Make functions callable: all of them, or none and an error. Those of an app that has some replace them."""
        app = self._alive(request.body.app_id)
        self._access.check(request.caller, app.environment)
        if app.state == DEPLOYED:
            raise ConflictError(f"the app {app.name} is deployed: use app.deploy")
        self._seen(app, request.caller.connection_id)
        asked = await asyncio.to_thread(functions_of, request.body.functions, request.payload)
        specs: Sequence[FunctionSpec] = await self.functions.admit(asked, app.environment)
        self.check_affords(app.budget, specs)
        async with app.changing:
            app = self._alive(app.app_id)
            change = self.functions.plan(app.app_id, specs, app.version, self.who(request.caller))
            state = DETACHED if app.detached else EPHEMERAL

            def write(transaction: Transaction) -> None:
                self.functions.write(transaction, change)
                transaction.execute("app_state", (state, None, "", app.app_id))

            await self._db.transaction(write)
            self._alive(app.app_id)
            self.functions.apply(app.place, change, strategy="recreate")
            if app.state == INITIALIZING:
                appstate.move(app, state)
            self.changed(app, True)
        return AppPublished(dict(change.layout))

    async def heartbeat(self, request: Request[AppRef]) -> Empty:
        app = self._alive(request.body.app)
        self._access.check(request.caller, app.environment)
        self._seen(app, request.caller.connection_id)
        return Empty()

    async def finish(self, request: Request[AppFinish]) -> Empty:
        body = request.body
        app = self._by_id(body.app_id)
        self._access.check(request.caller, app.environment)
        if app.state == STOPPED:
            return Empty()
        if app.state == DEPLOYED:
            raise ConflictError(f"the app {app.name} is deployed: it does not end with a client; app.stop stops it")
        if app.detached and not body.error and app.state == DETACHED:
            app.gone_at = self._clock.monotonic()
            return Empty()
        await self.end(app, body.reason or ("the client failed" if body.error else "the client finished"))
        return Empty()

    async def stop(self, request: Request[AppRef]) -> Empty:
        app = self.for_caller(request.caller, request.body.app, request.body.environment)
        await self.end(app, "stopped by the user")
        return Empty()

    async def get(self, request: Request[AppRef]) -> AppInfo:
        app = self.for_caller(request.caller, request.body.app, request.body.environment, READ)
        return self.info(app)

    async def list(self, request: Request[AppList]) -> AppsReply:
        wanted = request.body.environment
        visible = (
            (self._access.environment(request.caller, wanted, READ),)
            if wanted
            else self._access.visible(request.caller, READ)
        )
        counts: dict[str, int] = {}
        for one in self._calls.containers():
            counts[one.app_id] = counts.get(one.app_id, 0) + 1
        apps = [one for one in self._apps.values() if one.environment in visible]
        apps.sort(key=lambda one: (one.state == STOPPED, -one.created_at))
        if request.body.limit > 0:
            apps = apps[: request.body.limit]
        return AppsReply(tuple(self._info(one, counts.get(one.app_id, 0)) for one in apps))

    async def lookup(self, request: Request[AppLookup]) -> AppInfo:
        """A deployed app by name. NotFoundError, unless one is to be made."""
        body = request.body
        needs = WRITE if body.create_if_missing else READ
        environment = self._access.environment(request.caller, body.environment, needs)
        check_app_name(body.name)
        with self.moving_in(environment):
            return self.info(await self._named(request, environment))

    async def _named(self, request: Request[AppLookup], environment: str) -> App:
        body = request.body
        async with self.naming(environment, body.name):
            app = self.deployed(body.name, environment)
            if app is None:
                if not body.create_if_missing:
                    raise NotFoundError(
                        f"no app named {body.name!r} is deployed in the environment {environment!r}: see "
                        "`cadenza app list`, or pass create_if_missing=True"
                    )
                app = self.fresh(body.name, environment, self.who(request.caller))
                await self._db.execute("app_add", appstate.row(app))
                self.adopt(app)
            return app

    async def set_tags(self, request: Request[AppSetTags]) -> AppInfo:
        """Replace the tags of an app that is not stopped."""
        app = self.for_caller(request.caller, request.body.app, request.body.environment)
        check_tags(request.body.tags)
        self._alive(app.app_id)
        tags = dict(request.body.tags)
        await self._db.execute("app_tags", (json.dumps(tags), app.app_id))
        app.tags = tags
        return self.info(app)

    # --- deployed apps ---

    def naming(self, environment: str, name: str) -> asyncio.Lock:
        """Held by whoever gives a name to an app: of two deploys of one name the second follows the first."""
        for key in [key for key, lock in self._naming.items() if not lock.locked() and key != (environment, name)]:
            del self._naming[key]
        return self._naming.setdefault((environment, name), asyncio.Lock())

    @contextmanager
    def moving_in(self, environment: str) -> Iterator[None]:
        """Keep the environment there while an app is made in it. To be entered in the same turn of the loop in which
        the caller has seen that it is there."""
        self._moving_in[environment] += 1
        try:
            yield
        finally:
            self._moving_in[environment] -= 1
            self._moving_in += Counter()  # without those that are zero

    def living_in(self, environment: str) -> int:
        """How many apps that are not stopped an environment has, with those that are being made."""
        return sum(one.environment == environment for one in self.alive) + self._moving_in[environment]

    def deployed(self, name: str, environment: str) -> Optional[App]:
        """The deployed app of this name, or None."""
        for one in self._apps.values():
            if one.state == DEPLOYED and one.name == name and one.environment == environment:
                return one
        return None

    def fresh(self, name: str, environment: str, by: str) -> App:
        """A deployed app without functions that nobody knows yet."""
        return App(self._ids.new("app"), name, environment, DEPLOYED, False, self._clock.now(), created_by=by)

    def add_to(self, transaction: Transaction, app: App) -> None:
        """Keep a `fresh` app."""
        transaction.execute("app_add", appstate.row(app))

    def adopt(self, app: App) -> None:
        """A `fresh` app was kept: from now on it is known."""
        self._apps[app.app_id] = app

    def changed(self, app: App, redeployed: bool) -> None:
        """Tell who wants to know that an app has other functions now."""
        for one in self.on_change:
            try:
                one(app, redeployed)
            except Exception as error:  # the deploy is done, whatever its followers make of it
                _log.error("a follower of deployments failed", exc=error, app=app.app_id)

    # --- for the rest of the control plane ---

    def who(self, caller: Caller) -> str:
        """What history calls a caller."""
        if caller.container_id:
            return caller.container_id
        return self._access.standing(caller).user.name

    def for_caller(self, caller: Caller, word: str, environment: str = "", needs: str = WRITE) -> App:
        """An app that a caller means and may do ``needs`` with: by id, or by name in its environment. NotFoundError,
        PermissionDeniedError."""
        found = self._apps.get(word)
        if found is not None:
            try:
                self._access.check(caller, found.environment, needs)
            except NotFoundError:
                if found.state != STOPPED:  # else its environment may be gone
                    raise
            return found
        return self.find(word, self._access.environment(caller, environment, needs))

    def find(self, word: str, environment: str = "") -> App:
        """An app by id, or by name: the deployed one, else the newest that runs, else the newest. NotFoundError."""
        found = self._apps.get(word)
        if found is not None:
            return found
        named = [
            one
            for one in self._apps.values()
            if one.name == word and word and (not environment or one.environment == environment)
        ]
        if not named:
            where = f" in the environment {environment!r}" if environment else ""
            raise NotFoundError(f"there is no app {word!r}{where}: see `cadenza app list`")
        return max(named, key=lambda one: (one.state == DEPLOYED, one.state != STOPPED, one.created_at))

    def function(self, function_id: str) -> Function:
        """A function by id. NotFoundError."""
        return self.functions.get(function_id)

    @property
    def function_ids(self) -> List[str]:
        """Every function that can be called."""
        return [one.function_id for one in self.functions]

    def specs(self) -> List[FunctionSpec]:
        """What the functions that can be called are declared to be. Of earlier versions: `deployments.kept`."""
        return [one.spec for one in self.functions]

    def names(self, app_id: str) -> dict[str, str]:
        """Function name to id of one app."""
        return self.functions.layout(app_id)

    def ended(self, app_id: str) -> bool:
        """Whether nothing of the app can still write a log: it is stopped and has no containers."""
        app = self._apps.get(app_id)
        return app is None or (app.state == STOPPED and not self._calls.containers(app_id))

    async def environment_renamed(self, old: str, new: str) -> None:
        """What is known of stopped apps follows; the database has been told. Apps that live forbid a renaming."""
        for one in self._apps.values():
            if one.environment == old:
                one.environment = new

    @property
    def alive(self) -> List[App]:
        """Apps that are not stopped."""
        return [one for one in self._apps.values() if one.state != STOPPED]

    def needed(self) -> bool:
        """Whether an app needs the server to run. A deployed one does while it has inputs, containers to keep, or a
        schedule; else it can wait for the next client."""
        for app in self._apps.values():
            if app.state == STOPPED:
                continue
            if app.state != DEPLOYED or self._calls.app_busy(app.app_id):
                return True
            if any(keeps_running(one) for one in self.functions.of_app(app.app_id)):
                return True
        return False

    def connection_closed(self, connection_id: str) -> None:
        """A client is gone; its apps wait a while for it."""
        for app in self._apps.values():
            if app.connection_id == connection_id and app.state not in (STOPPED, DEPLOYED) and app.gone_at is None:
                app.gone_at = self._clock.monotonic()

    async def tick(self) -> None:
        """Stop the apps whose time is over, and keep ends that could not be kept. Called about once a second."""
        now = self._clock.monotonic()
        for app in self.alive:
            busy = (
                app.detached and app.state == DETACHED and app.gone_at is not None and self._calls.app_busy(app.app_id)
            )
            reason = overdue(app, busy, now)
            app.was_idle = not busy
            if reason:
                _log.info("app stops", app=app.app_id, reason=reason)
                try:
                    await self.end(app, reason)
                except Exception as error:  # the others' time is over too
                    _log.error("an app's end could not be kept", exc=error, app=app.app_id)
        for app in [one for one in self._apps.values() if one.unkept and not one.changing.locked()]:
            with suppress(Error):  # it was said when it ended
                await self.end(app, "")

    async def end(self, app: App, reason: str) -> None:
        """Stop an app for good: its inputs end, its containers too. Its name is free again.

        ResourceExhaustedError when the disk is full: it is stopped all the same, and `tick` keeps that once it can.
        """
        async with app.changing:
            if app.state != STOPPED:
                self.functions.end(app.app_id)
                self._calls.remove_app(app.app_id, reason)
                self._stopped(app, reason)
                self._forget_budget(app)
                self.changed(app, False)
            if app.unkept:
                await self._keep_end(app)

    def _forget_budget(self, app: App) -> None:
        if self.budgets is not None:  # it may have had one
            self.budgets.end(app.app_id)

    def budgeted(self, app: App) -> None:
        """The app's budget is in force from now on."""
        if self.budgets is not None:
            self.budgets.put(app.app_id, app.budget)

    def check_affords(self, budget: Optional[BudgetSpec], specs: Sequence[FunctionSpec]) -> None:
        """InvalidError when an app with this budget could never run one of these functions."""
        refused = self.budgets.refusal(budget, specs) if self.budgets is not None else ""
        if refused:
            raise InvalidError(refused)

    def _stopped(self, app: App, reason: str) -> None:
        appstate.move(app, STOPPED)
        app.stopped_at, app.stop_reason, app.unkept = self._clock.now(), reason[:500], True

    async def _keep_end(self, app: App) -> None:
        """It is stopped. What its functions were goes, and their secrets with it: nothing reads it again."""

        def write(transaction: Transaction) -> None:
            transaction.execute("app_state", (STOPPED, app.stopped_at, app.stop_reason, app.app_id))
            transaction.execute("function_end", (app.app_id,))
            transaction.execute("deployment_close", (app.app_id,))

        try:
            await self._db.transaction(write)
        except ResourceExhaustedError as error:
            raise ResourceExhaustedError(
                f"the app {app.name or app.app_id} is stopped, but that could not be written: the disk is full, and a "
                "restart of the server before there is space would bring it back"
            ) from error
        app.unkept = False

    async def forget(self) -> None:
        """Let go of apps that have been stopped for long, and of the oldest beyond `MAX_STOPPED`. Now and then."""
        gone = forgotten(self._apps.values(), self._clock.now() - STOPPED_KEPT_S)
        gone = [one for one in gone if not self._apps[one].unkept and not self._calls.containers(one)]

        def write(transaction: Transaction) -> None:
            for app_id in gone:
                transaction.execute("deployment_forget", (app_id,))
                transaction.execute("app_forget", (app_id,))

        if gone:
            await self._db.transaction(write)
        for app_id in gone:
            self._apps.pop(app_id, None)

    def _by_id(self, app_id: str) -> App:
        app = self._apps.get(app_id)
        if app is None:
            raise NotFoundError(f"there is no app {app_id}")
        return app

    def _alive(self, app_id: str) -> App:
        app = self._by_id(app_id)
        if app.state == STOPPED:
            raise ConflictError(f"the app {app.name or app_id} is stopped: {app.stop_reason}")
        return app

    def _seen(self, app: App, connection_id: str) -> None:
        app.connection_id = connection_id
        app.heartbeat_at = self._clock.monotonic()
        app.gone_at = None

    def info(self, app: App) -> AppInfo:
        """An app as clients see it."""
        return self._info(app, len(self._calls.containers(app.app_id)))

    def _info(self, app: App, containers: int) -> AppInfo:
        spent = self.budgets.text(app.app_id) if self.budgets is not None else ""
        note = self._calls.note(app.app_id) if app.state != STOPPED else ""  # it looks through all functions
        return appstate.info(app, containers, note, spent)


def handlers(apps: Apps) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "app.create": apps.create,
        "app.publish": apps.publish,
        "app.heartbeat": apps.heartbeat,
        "app.finish": apps.finish,
        "app.stop": apps.stop,
        "app.get": apps.get,
        "app.list": apps.list,
        "app.lookup": apps.lookup,
        "app.set_tags": apps.set_tags,
    }
