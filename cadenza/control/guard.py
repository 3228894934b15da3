"""Every request's environment, found and checked before its handler runs.

`Guard.table` puts a check around each handler. What a request is about is read from its fields: an app, a function, a
call, a container, an environment. So a new row of the table is guarded as soon as it names its things as the others do,
and a row that names nothing must stand in one of the sets below, or it does not start (`Bug`).
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from typing import Any, Awaitable, Mapping, Optional, Protocol, cast

from cadenza.base.errors import AuthError, Bug, NotFoundError, PermissionDeniedError
from cadenza.control.access import Access
from cadenza.control.request import Caller, Handler, Request
from cadenza.protocol.method import Method
from cadenza.protocol.table import METHODS

OWN = frozenset(("account", "environment", "role", "user", "token", "workspace", "secret"))
"""Nouns whose handlers ask `Access` themselves, for every request."""
ANYWHERE = frozenset(
    (
        "object.missing", "object.put", "image.build", "image.list", "image.log", "image.remove", "server.status",
        "metric.schema",
    )
)  # fmt: skip
"""Rows about nothing in an environment: who may do as much in any environment may do them."""
WORKSPACE = frozenset(("server.keep", "server.stop", "secret.rekey", "image.collect"))
"""Rows about everything: for owners and managers."""
EVERYWHERE = frozenset(("app.list", "container.list", "schedule.list"))
"""Rows where no environment means all that the caller may see; their replies are cut down to those."""
WITHOUT_TOKEN = frozenset(
    (
        "account.whoami", "server.status", "server.keep", "server.stop", "token.create", "token.list", "token.delete",
        "token.disable",
    )
)  # fmt: skip
"""What the server's own user may do without a token where one is required (`Config.require_token`): come by a token,
and end the server. It owns the files, so it could have both anyway."""
KNOWN_CALLS = 4_096


@dataclass(frozen=True)
class Home:
    """Where a container is. ``restricted``: it may ask for nothing (``restrict_modal_access``)."""

    environment: str
    restricted: bool = False


class Lookup(Protocol):
    """Where things are. Each gives an environment, or None for a thing that is not there (any more)."""

    def app(self, app_id: str) -> Optional[str]: ...

    def function(self, function_id: str) -> Optional[str]: ...

    def container(self, container_id: str) -> Optional[Home]: ...

    async def call(self, call_id: str) -> Optional[str]: ...


class Guard:
    """The check before every handler. ``require_token``: `Config.require_token`."""

    def __init__(self, access: Access, lookup: Lookup, require_token: bool = False) -> None:
        self._access = access
        self._lookup = lookup
        self._require_token = require_token
        self._calls: OrderedDict[str, str] = OrderedDict()

    async def environment_renamed(self, old: str, new: str) -> None:
        """Another environment may have the name soon: what was known of calls is looked up again."""
        self._calls.clear()

    def table(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """The same handlers, each behind the check. Bug for a row of which nothing says where it belongs."""
        return {name: self._guarded(METHODS[name], handler) for name, handler in handlers.items()}

    def _guarded(self, method: Method, handler: Handler) -> Handler:
        names = {one.name for one in fields(method.request)}
        if not subjects(method):
            raise Bug(f"{method.name}: its request names nothing by which it could be checked; see {__name__}")
        asks_calls = "call_id" in names
        open_to_own = not names & {"app", "environment"} and method.name not in WORKSPACE and not self._require_token
        """Nothing to fill in, nothing to check for the server's own user: decided once, not at each call."""
        if not inspect.iscoroutinefunction(handler):
            if asks_calls:
                raise Bug(f"{method.name}: a handler that is no coroutine cannot wait for the call's record")

            def direct(request: Request[Any]) -> None:
                caller = request.caller
                if caller.container_id or caller.token_id or not open_to_own:
                    self.admit(method, request)
                handler(request)

            return direct

        async def waiting(request: Request[Any]) -> Any:
            caller = request.caller
            if caller.container_id or caller.token_id or not open_to_own:
                self.admit(method, request)
                if asks_calls and request.body.call_id and self._limited(caller):
                    await self._check_call(method, caller, request.body.call_id)
            reply = await cast(Awaitable[Any], handler(request))
            return self._cut(method, request, reply) if method.name in EVERYWHERE else reply

        return waiting

    def admit(self, method: Method, request: Request[Any]) -> None:
        """All that needs no waiting. What the request leaves open is filled in: which environment, which app.

        AuthError, PermissionDeniedError, NotFoundError.
        """
        caller, body, name = request.caller, request.body, method.name
        if caller.container_id:
            home = self._lookup.container(caller.container_id)
            if home is None:
                raise PermissionDeniedError("this container belongs to no running app")
            if home.restricted:
                raise AuthError(
                    "this function runs with restrict_modal_access=True: its containers may ask the server for nothing"
                )
        elif self._require_token and not caller.token_id and name not in WITHOUT_TOKEN:
            raise AuthError(
                "this server wants a token (require_token): `cadenza token new` makes one and puts it into your profile"
            )
        self._access.scope(caller, method.needs)
        if name in WORKSPACE:
            self._access.manage(caller, f"do {name}")
            return
        if name.partition(".")[0] in OWN:
            return
        if name in ANYWHERE:
            if not self._access.visible(caller, method.needs):
                raise PermissionDeniedError(f"there is no environment in which you may do what needs {method.needs!r}")
            return
        request.body = self._things(method, caller, body)

    def _things(self, method: Method, caller: Caller, body: Any) -> Any:
        """Check each thing that the request names; the request, with its environment filled in."""
        limited = self._limited(caller)
        if limited:
            for field, look in (
                ("function_id", self._lookup.function),
                ("app_id", self._lookup.app),
                ("container_id", self._of_container),
                ("container", self._of_any if not getattr(body, "app", "") else self._of_container),
                ("function", self._of_function),
                ("schedule", self._of_function),  # of one named by its own id its handler knows the app
                ("thing", self._of_any),
            ):
                word = getattr(body, field, "")
                if word:
                    self._check(method, caller, look(word))
        app = getattr(body, "app", "")
        if app and (found := self._lookup.app(app)) is not None:
            self._check(method, caller, found)
            return body
        if not hasattr(body, "environment"):
            return body
        if body.environment or (self._open(body) and (app or method.name not in EVERYWHERE)):
            environment = self._access.environment(caller, body.environment, method.needs)
            if environment != body.environment:
                body = replace(body, environment=environment)
        return body

    def _open(self, body: Any) -> bool:
        """Whether nothing else in the request says where it belongs."""
        return not any(getattr(body, one, "") for one in ("function_id", "container", "thing"))

    def _check(self, method: Method, caller: Caller, environment: Optional[str]) -> None:
        """None: the thing is not there, which its handler says better."""
        if environment is not None:
            self._access.check(caller, environment, method.needs)

    async def _check_call(self, method: Method, caller: Caller, call_id: str) -> None:
        found: Optional[str] = self._calls.get(call_id)
        if found is None:
            found = await self._lookup.call(call_id)
            if found is None:
                raise NotFoundError(f"there is no call {call_id[:80]}, or its results are no longer kept")
            self._calls[call_id] = found
            if len(self._calls) > KNOWN_CALLS:
                self._calls.popitem(last=False)
        self._check(method, caller, found)

    def _limited(self, caller: Caller) -> bool:
        """Whether there is anything that the caller may not do."""
        if not caller.container_id and not caller.token_id:
            return False
        if caller.container_id:
            return True
        standing = self._access.standing(caller)
        return not standing.rules or bool(standing.scopes or standing.environment_ids)

    def _of_container(self, container_id: str) -> Optional[str]:
        home = self._lookup.container(container_id)
        return home.environment if home is not None else None

    def _of_function(self, word: str) -> Optional[str]:
        """By an id. A log's ``function`` may be a name too, within the app that is named with it."""
        return self._lookup.function(word) if word.startswith("fu-") else None

    def _of_any(self, word: str) -> Optional[str]:
        found = self._lookup.function(word) or self._of_container(word) or self._lookup.app(word)
        if found is None:  # it may have ended in an environment that is not the caller's: nobody knows any more
            raise NotFoundError(f"there is no {word[:80]!r} now: name its app too, or its function")
        return found

    def _cut(self, method: Method, request: Request[Any], reply: Any) -> Any:
        """A list of things of many environments, without those of others than the caller may see or asked for."""
        caller = request.caller
        wanted = getattr(request.body, "environment", "")
        if not wanted and not self._limited(caller):
            return reply
        visible = {wanted} if wanted else set(self._access.visible(caller, method.needs))
        name = fields(reply)[0].name
        kept = tuple(one for one in getattr(reply, name) if self._lookup.app(one.app_id) in visible)
        return replace(reply, **{name: kept})


def subjects(method: Method) -> frozenset[str]:
    """By what a row is checked: fields of its request, or the set in which it stands. Pure."""
    named = {one.name for one in fields(method.request)} & {
        "app", "app_id", "function_id", "call_id", "container_id", "environment", "schedule",
    }  # fmt: skip
    if "environment" not in named:
        named.discard("app")  # a name alone says nothing
    if method.name.partition(".")[0] in OWN:
        named.add("own")
    if method.name in ANYWHERE:
        named.add("anywhere")
    if method.name in WORKSPACE:
        named.add("workspace")
    return frozenset(named)
