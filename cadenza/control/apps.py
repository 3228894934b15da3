"""Apps: created, published, kept alive by their client, stopped. The only writer of an app's state.

An ephemeral app lives as long as its client: it stops when the client finishes it, when its connection has been gone
for `CLIENT_GONE_S`, or when no heartbeat came for `HEARTBEAT_LIMIT_S`. A detached one outlives its client and stops
when nothing is left to do. Source: semantics.md section 23.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Callable, Container, Iterable, List, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import ConflictError, Error, InvalidError, NotFoundError
from cadenza.base.ids import IdSource
from cadenza.control.calls import Calls
from cadenza.control.declared import MAX_NAME_CHARS, check_functions, read_spec
from cadenza.control.request import Request
from cadenza.observe.log import Log
from cadenza.protocol.functions import FunctionFind, FunctionInfo, FunctionRef, FunctionStats
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
from cadenza.protocol.objects import AppInfo, FunctionSpec, to_json
from cadenza.storage.db import Database, Transaction

CLIENT_GONE_S = 30.0
"""How long an ephemeral app waits for its client's connection to come back."""
HEARTBEAT_LIMIT_S = 300.0
"""How long an ephemeral app goes on without a heartbeat from a client whose connection is still there."""
STOPPED_KEPT_S = 30 * 24 * 3600.0
MAX_STOPPED = 5_000
"""So many apps that are stopped are kept, the newest, and none longer than `STOPPED_KEPT_S`."""

INITIALIZING, EPHEMERAL, DETACHED, STOPPED, STOPPING = "initializing", "ephemeral", "detached", "stopped", "stopping"

_log = Log("cadenza.control.apps")


@dataclass
class App:
    """One app as the control plane knows it. ``*_at`` of the client are monotonic seconds, the others epoch seconds."""

    app_id: str
    name: str
    environment: str
    state: str
    detached: bool
    created_at: float
    stopped_at: Optional[float] = None
    stop_reason: str = ""
    functions: dict[str, str] = field(default_factory=dict)
    connection_id: str = ""
    heartbeat_at: float = 0.0
    gone_at: Optional[float] = None
    """Since when its client is gone or has finished; None while it is there."""
    was_idle: bool = False
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)


@dataclass(frozen=True)
class Function:
    """A function that can be called."""

    function_id: str
    app_id: str
    name: str
    is_generator: bool
    spec: FunctionSpec


class Apps:
    """Every app of this control plane, and their functions by id."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ids: IdSource,
        calls: Calls,
        missing: Callable[[Sequence[str]], list[str]],
        images: Callable[[], Container[str]],
        refusal: Callable[[FunctionSpec], str],
    ) -> None:
        """``missing(digests)`` gives those that are not uploaded, in a thread; ``images()`` the ids of the images that
        are built; ``refusal(spec)`` why no node can ever hold a function's containers, or an empty string."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._calls = calls
        self._missing = missing
        self._images = images
        self._refusal = refusal
        self._apps: dict[str, App] = {}
        self._functions: dict[str, Function] = {}

    async def start(self) -> None:
        """Load what was there: detached apps go on, ephemeral ones lost their client with the last process."""
        await self._db.execute("erase_for_good")
        await self._db.execute("function_forget")
        for app_id, name, environment, state, detached, created_at, stopped_at, reason in await self._db.fetch(
            "app_all"
        ):
            self._apps[app_id] = App(
                app_id, name, environment, state, bool(detached), created_at, stopped_at, reason, gone_at=0.0
            )
        for app in list(self._apps.values()):
            if app.state == INITIALIZING or app.state == EPHEMERAL:
                await self._save(app, "the server was restarted")
        await self.forget()
        rows: dict[str, list[tuple[str, str, str]]] = {}
        for function_id, app_id, name, raw in await self._db.fetch("function_all"):
            rows.setdefault(app_id, []).append((function_id, name, raw))
        for app_id, functions in rows.items():
            app = self._apps[app_id]
            app.functions = {name: function_id for function_id, name, _ in functions}
            try:
                for function_id, spec in [(one[0], read_spec(one[1], one[2])) for one in functions]:
                    self._add(app, function_id, spec, app.functions)
            except Error as error:
                _log.error("an app cannot go on", app=app_id, reason=str(error))
                await self.end(app, str(error))

    def _add(self, app: App, function_id: str, spec: FunctionSpec, layout: dict[str, str]) -> None:
        self._calls.add_function(function_id, app.app_id, app.name, spec, layout)
        self._functions[function_id] = Function(function_id, app.app_id, spec.name, spec.is_generator, spec)

    # --- methods ---

    async def create(self, request: Request[AppCreate]) -> AppCreated:
        body = request.body
        if len(body.name) > MAX_NAME_CHARS:
            raise InvalidError(f"an app's name has at most {MAX_NAME_CHARS} characters")
        app = App(
            app_id=self._ids.new("app"),
            name=body.name,
            environment=body.environment,
            state=INITIALIZING,
            detached=body.detach,
            created_at=self._clock.now(),
            connection_id=request.caller.connection_id,
            heartbeat_at=self._clock.monotonic(),
        )
        await self._db.execute(
            "app_add", (app.app_id, app.name, app.environment, app.state, int(app.detached), app.created_at)
        )
        self._apps[app.app_id] = app
        return AppCreated(app.app_id)

    async def publish(self, request: Request[AppPublish]) -> AppPublished:
        """Make functions callable: all of them, or none and an error."""
        app = self._alive(request.body.app_id)
        self._seen(app, request.caller.connection_id)
        async with app.publishing:
            return await self._publish(app, request.body.functions)

    async def _publish(self, app: App, specs: Sequence[FunctionSpec]) -> AppPublished:
        check_functions(specs)
        needed = [one.digest for spec in specs for one in spec.files] + [
            one.serialized for one in specs if one.serialized
        ]
        missing = await asyncio.to_thread(self._missing, needed)
        if missing:
            raise ConflictError(
                f"{len(missing)} files of the app are not uploaded, the first is {missing[0]}: upload them first"
            )
        built = self._images()
        for spec in specs:
            if spec.image.image_id() not in built:
                raise ConflictError(f"the image of function {spec.name} is not built: build it first (image.build)")
            refused = self._refusal(spec)
            if refused:
                raise InvalidError(f"{spec.name}: {refused}")
        app = self._alive(app.app_id)  # it may have ended meanwhile
        functions = {spec.name: app.functions.get(spec.name) or self._ids.new("function") for spec in specs}
        dropped = [app.functions[name] for name in set(app.functions) - set(functions)]
        state = DETACHED if app.detached else EPHEMERAL
        rows = [(functions[spec.name], app.app_id, spec.name, to_json(spec)) for spec in specs]

        def write(transaction: Transaction) -> None:
            for function_id in dropped:
                transaction.execute("function_drop", (function_id,))
            for row in rows:
                transaction.execute("function_put", row)
            transaction.execute("app_state", (state, None, "", app.app_id))

        await self._db.transaction(write)
        app = self._alive(app.app_id)
        for spec in specs:
            self._add(app, functions[spec.name], spec, functions)
        for function_id in dropped:
            self._functions.pop(function_id, None)
        app.functions = functions
        if app.state == INITIALIZING:
            app.state = state
        return AppPublished(dict(functions))

    async def heartbeat(self, request: Request[AppRef]) -> Empty:
        app = self._alive(request.body.app)
        self._seen(app, request.caller.connection_id)
        return Empty()

    async def finish(self, request: Request[AppFinish]) -> Empty:
        body = request.body
        app = self._by_id(body.app_id)
        if app.state == STOPPED:
            return Empty()
        if app.detached and not body.error and app.state == DETACHED:
            app.gone_at = self._clock.monotonic()
            return Empty()
        await self.end(app, body.reason or ("the client failed" if body.error else "the client finished"))
        return Empty()

    async def stop(self, request: Request[AppRef]) -> Empty:
        app = self.find(request.body.app)
        if app.state != STOPPED:
            await self.end(app, "stopped by the user")
        return Empty()

    async def get(self, request: Request[AppRef]) -> AppInfo:
        app = self.find(request.body.app)
        return self._info(app, len(self._calls.containers(app.app_id)))

    async def list(self, request: Request[AppList]) -> AppsReply:
        counts: dict[str, int] = {}
        for one in self._calls.containers():
            counts[one.app_id] = counts.get(one.app_id, 0) + 1
        apps = sorted(self._apps.values(), key=lambda one: (one.state == STOPPED, -one.created_at))
        if request.body.limit > 0:
            apps = apps[: request.body.limit]
        return AppsReply(tuple(self._info(one, counts.get(one.app_id, 0)) for one in apps))

    async def function_get(self, request: Request[FunctionRef]) -> FunctionInfo:
        return _function_info(self.function(request.body.function_id))

    async def function_find(self, request: Request[FunctionFind]) -> FunctionInfo:
        app = self.find(request.body.app, request.body.environment)
        function_id = app.functions.get(request.body.name)
        if function_id is None or function_id not in self._functions:
            known = ", ".join(sorted(app.functions)) or "none"
            raise NotFoundError(
                f"the app {app.name or app.app_id} has no function {request.body.name!r}; it has {known}"
            )
        return _function_info(self._functions[function_id])

    async def function_stats(self, request: Request[FunctionRef]) -> FunctionStats:
        self.function(request.body.function_id)
        return self._calls.stats(request.body.function_id)

    # --- for the rest of the control plane ---

    def find(self, word: str, environment: str = "") -> App:
        """An app by id, or by name: the newest that is not stopped, else the newest. NotFoundError."""
        found = self._apps.get(word)
        if found is not None:
            return found
        named = [
            one
            for one in self._apps.values()
            if one.name == word and word and (not environment or one.environment == environment)
        ]
        if not named:
            raise NotFoundError(f"there is no app {word!r}: see `cadenza app list`")
        return max(named, key=lambda one: (one.state != STOPPED, one.created_at))

    def function(self, function_id: str) -> Function:
        """A function by id. NotFoundError."""
        found = self._functions.get(function_id)
        if found is None:
            raise NotFoundError(f"there is no function {function_id}: its app has been stopped")
        return found

    @property
    def function_ids(self) -> List[str]:
        """Every function that can be called."""
        return list(self._functions)

    def specs(self) -> List[FunctionSpec]:
        """What the functions that can be called are declared to be."""
        return [one.spec for one in self._functions.values()]

    def names(self, app_id: str) -> dict[str, str]:
        """Function name to id of one app."""
        found = self._apps.get(app_id)
        return dict(found.functions) if found is not None else {}

    def ended(self, app_id: str) -> bool:
        """Whether nothing of the app can still write a log: it is stopped and has no containers."""
        app = self._apps.get(app_id)
        return app is None or (app.state == STOPPED and not self._calls.containers(app_id))

    @property
    def alive(self) -> List[App]:
        """Apps that are not stopped."""
        return [one for one in self._apps.values() if one.state != STOPPED]

    def connection_closed(self, connection_id: str) -> None:
        """A client is gone; its apps wait a while for it."""
        for app in self._apps.values():
            if app.connection_id == connection_id and app.state != STOPPED and app.gone_at is None:
                app.gone_at = self._clock.monotonic()

    async def tick(self) -> None:
        """Stop the apps whose time is over. Called about once a second."""
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

    async def end(self, app: App, reason: str) -> None:
        """Stop an app: its inputs end, its containers too."""
        if app.state == STOPPED:
            return
        for function_id in app.functions.values():
            self._functions.pop(function_id, None)
        self._calls.remove_app(app.app_id, reason)
        await self._save(app, reason)

    async def _save(self, app: App, reason: str) -> None:
        """It is stopped. What its functions were goes, and their secrets with it: nothing reads it again."""
        app.state, app.stopped_at, app.stop_reason = STOPPED, self._clock.now(), reason[:500]
        row = (app.state, app.stopped_at, app.stop_reason, app.app_id)

        def write(transaction: Transaction) -> None:
            transaction.execute("app_state", row)
            transaction.execute("function_end", (app.app_id,))

        await self._db.transaction(write)

    async def forget(self) -> None:
        """Let go of apps that have been stopped for long, and of the oldest beyond `MAX_STOPPED`. Now and then."""
        gone = forgotten(self._apps.values(), self._clock.now() - STOPPED_KEPT_S)
        gone = [one for one in gone if not self._calls.containers(one)]

        def write(transaction: Transaction) -> None:
            for app_id in gone:
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

    def _info(self, app: App, containers: int) -> AppInfo:
        state = STOPPING if app.state == STOPPED and containers else app.state
        return AppInfo(app.app_id, app.name, state, app.created_at, app.stopped_at, containers, app.stop_reason)


def overdue(app: App, busy: bool, now: float) -> str:
    """Why an app must stop now, or an empty string. Pure. ``now`` in monotonic seconds."""
    if app.detached and app.state == DETACHED:
        # Twice idle, so that a call that ends and starts another one between two looks is not cut short.
        return "all work is done" if app.gone_at is not None and not busy and app.was_idle else ""
    if app.gone_at is not None and now - app.gone_at >= CLIENT_GONE_S:
        return "its client is gone"
    if now - app.heartbeat_at >= HEARTBEAT_LIMIT_S:
        return f"no heartbeat from its client for {HEARTBEAT_LIMIT_S:g} seconds"
    return ""


def forgotten(apps: Iterable[App], oldest: float) -> list[str]:
    """The ids of the apps that need not be kept: stopped before ``oldest``, or with many stopped later. Pure."""
    stopped = sorted((one for one in apps if one.state == STOPPED), key=lambda one: -(one.stopped_at or 0.0))
    return [
        one.app_id for number, one in enumerate(stopped) if number >= MAX_STOPPED or (one.stopped_at or 0.0) < oldest
    ]


def _function_info(one: Function) -> FunctionInfo:
    return FunctionInfo(one.function_id, one.app_id, one.name, one.is_generator)


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
        "function.get": apps.function_get,
        "function.find": apps.function_find,
        "function.stats": apps.function_stats,
    }
