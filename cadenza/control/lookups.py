"""Functions as clients ask for them: by id, by name, by version, with parameters and options.

Source: semantics.md sections 12.2 and 12.3.
"""

from __future__ import annotations

import json
from typing import Any

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.control.apps import Apps
from cadenza.control.appstate import STOPPED, App
from cadenza.control.calls import Calls
from cadenza.control.deployments import Deployments
from cadenza.control.functions import DECLARED, VARIANT, Function
from cadenza.control.request import Request
from cadenza.control.variants import Wish, described
from cadenza.protocol.functions import (
    FunctionBind,
    FunctionFind,
    FunctionInfo,
    FunctionList,
    FunctionRef,
    FunctionRow,
    FunctionRows,
    FunctionStats,
    FunctionVariants,
    Variant,
    Variants,
)
from cadenza.protocol.method import READ
from cadenza.protocol.objects import FunctionSpec, OptionsPatch
from cadenza.scheduling import cron

MAX_LISTED = 10_000
MAX_SHOWN_CHARS = 40
"""Of one parameter's value, where it tells a variant from others."""


def apart(one: Function, pinned_to: int) -> str:
    """What sets a function apart from the declared one of its name, for people; empty of that. ``pinned_to`` is the
    version with which it stays, or 0. Pure."""
    if one.kind == DECLARED:
        return ""
    parts = [f"version {pinned_to}"] if pinned_to else []
    for name, value in json.loads(one.spec.parameters or "{}").items():
        text = json.dumps(value, ensure_ascii=False)
        parts.append(f"{name}={text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + '...'}")
    return ", ".join(filter(None, (*parts, described(one.wish.patch))))


def _schedule(spec: FunctionSpec) -> str:
    text = spec.options.get("schedule", "")
    try:
        return cron.read(text).shown if text else ""
    except InvalidError:  # of an earlier version of the server
        return text


class Lookups:
    """Handlers of ``function.*`` that say what there is."""

    def __init__(self, apps: Apps, deployments: Deployments, calls: Calls) -> None:
        self._apps = apps
        self._functions = apps.functions
        self._deployments = deployments
        self._calls = calls

    async def get(self, request: Request[FunctionRef]) -> FunctionInfo:
        one = self._function(request, request.body.function_id)
        return self._info(one)

    async def find(self, request: Request[FunctionFind]) -> FunctionInfo:
        """A function of an app by name. With a version: in a pool of its own that stays on that version, whose calls
        to functions of the same app stay there too."""
        body = request.body
        app = self._apps.for_caller(request.caller, body.app, body.environment, READ)
        _check_runs(app)
        if body.version:
            return self._info(await self._pinned(request, app, body.name, body.version))
        found = self._functions.layout(app.app_id).get(body.name)
        if found is None:
            raise NotFoundError(absent(app, body.name, list(self._functions.layout(app.app_id))))
        return self._info(self._functions.get(found))

    async def _pinned(self, request: Request[Any], app: App, name: str, version: int) -> Function:
        self._apps.for_caller(request.caller, app.app_id)  # it makes something: to read is not enough
        async with app.changing:
            _check_runs(app)  # it may have ended meanwhile
            there = self._functions.pinned(app.app_id, version)
            if not there:
                specs = await self._deployments.specs_of(app, version)
                if any(one.name == name for one in specs):
                    there = await self._functions.pin(app.place, version, specs, self._apps.who(request.caller))
                else:
                    raise NotFoundError(absent(app, name, [one.name for one in specs], version))
        if name not in there:
            raise NotFoundError(absent(app, name, list(there), version))
        return there[name]

    async def bind(self, request: Request[FunctionBind]) -> FunctionInfo:
        """The function with other parameters or options: the same wish gives the same id to everybody."""
        body = request.body
        one = self._function(request, body.function_id, READ)
        app = self._apps.find(one.app_id)
        wish = Wish(body.parameters, body.patch or OptionsPatch())
        if wish.empty and (one.kind == VARIANT or not one.spec.class_parameters):
            return self._info(one)
        async with app.changing:
            found = await self._functions.bind(app.place, one.function_id, wish, self._apps.who(request.caller))
        return self._info(found)

    async def stats(self, request: Request[FunctionRef]) -> FunctionStats:
        one = self._function(request, request.body.function_id)
        return self._calls.stats(one.function_id)

    async def variants(self, request: Request[FunctionVariants]) -> Variants:
        """A function's variants and what is pinned of it, newest first."""
        one = self._function(request, request.body.function_id)
        limit = min(request.body.limit or MAX_LISTED, MAX_LISTED)
        found = sorted(self._functions.variants(one.function_id), key=lambda one: -one.created_at)[: max(0, limit)]
        return Variants(tuple(self._variant(each) for each in found))

    def _variant(self, one: Function) -> Variant:
        stats = self._calls.stats(one.function_id)
        return Variant(
            one.function_id, one.spec.parameters, described(one.wish.patch), one.version, stats.num_total_runners,
            stats.backlog, one.created_at,
        )  # fmt: skip

    async def list(self, request: Request[FunctionList]) -> FunctionRows:
        """What an app declares. The counts are of the functions with their variants."""
        app = self._apps.for_caller(request.caller, request.body.app, request.body.environment, READ)
        rows = []
        for one in sorted(self._functions.declared(app.app_id), key=lambda one: one.name):
            all_stats = [
                self._calls.stats(each.function_id) for each in (one, *self._functions.variants(one.function_id))
            ]
            rows.append(
                FunctionRow(
                    one.function_id,
                    one.name,
                    bool(one.spec.methods),
                    sum(each.num_total_runners for each in all_stats),
                    sum(each.backlog for each in all_stats),
                    sum(each.num_running_inputs for each in all_stats),
                    _schedule(one.spec),
                )
            )
        return FunctionRows(tuple(rows))

    def _function(self, request: Request[Any], function_id: str, needs: str = READ) -> Function:
        one = self._functions.get(function_id)
        self._apps.for_caller(request.caller, one.app_id, needs=needs)
        return one

    def _info(self, one: Function) -> FunctionInfo:
        app = self._apps.find(one.app_id)
        return FunctionInfo(
            function_id=one.function_id,
            app_id=one.app_id,
            name=one.name,
            is_generator=one.is_generator,
            app_name=app.name,
            methods=one.spec.methods,
            class_parameters=one.spec.class_parameters,
            parameters=one.spec.parameters,
            base_id="" if one.kind == DECLARED else one.base_id,
            version=self._functions.pinned_to(one) or app.version,
            created_at=one.created_at,
            created_by=one.created_by,
        )


def _check_runs(app: App) -> None:
    if app.state == STOPPED:
        raise NotFoundError(f"the app {app.name or app.app_id} is stopped: {app.stop_reason}")


def absent(app: App, name: str, known: list[str], version: int = 0) -> str:
    """The sentence for a function that an app does not have. Pure."""
    of = f"version {version} of the app" if version else "the app"
    if name + ".*" in known:
        return f"{name} in {of} {app.name} is a class: look it up with Cls.from_name({app.name!r}, {name!r})"
    if name.endswith(".*") and name[:-2] in known:
        plain = name[:-2]
        return f"{plain} in {of} {app.name} is a function: look it up with Function.from_name({app.name!r}, {plain!r})"
    if name.endswith(".*"):
        shown = ", ".join(sorted(one[:-2] for one in known if one.endswith(".*"))[:50]) or "none"
        return f"{of} {app.name or app.app_id} has no class {name[:-2]!r}; it has {shown}"
    shown = ", ".join(sorted(known)[:50]) or "none"
    return f"{of} {app.name or app.app_id} has no function {name!r}; it has {shown}"


def handlers(lookups: Lookups) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "function.get": lookups.get,
        "function.find": lookups.find,
        "function.bind": lookups.bind,
        "function.stats": lookups.stats,
        "function.variants": lookups.variants,
        "function.list": lookups.list,
    }
