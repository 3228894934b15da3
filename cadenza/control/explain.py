"""Why an input waits and why a container is there, in words: what ``app.explain`` answers.

The sentences are made from the state that decides, at the moment of the question; only the decisions are a record.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Protocol

from cadenza.base.clock import Clock
from cadenza.base.errors import NotFoundError
from cadenza.base.ids import BODY_CHARS
from cadenza.control.attached import call_ids
from cadenza.control.calls import Calls
from cadenza.control.request import Request
from cadenza.protocol.functions import Explain, Explained, Explanation, WaitingInput
from cadenza.scheduling.standing import MAX_INPUTS, Waiting, live_containers, standing, waiting_inputs
from cadenza.scheduling.states import FunctionState
from cadenza.storage.db import Database

MAX_DECISIONS = 200


class App(Protocol):
    """What is needed of an app."""

    @property
    def app_id(self) -> str: ...

    @property
    def name(self) -> str: ...


class Explainer:
    """The handler of ``app.explain``. ``find(word, environment)`` gives an app by id or name, or NotFoundError;
    ``apart(function id)`` what sets a variant apart, for people."""

    def __init__(
        self, db: Database, clock: Clock, calls: Calls, find: Callable[[str, str], App], apart: Callable[[str], str]
    ) -> None:
        self._apart = apart
        self._db = db
        self._clock = clock
        self._calls = calls
        self._find = find

    async def explain(self, request: Request[Explain]) -> Explained:
        body = request.body
        app_id, chosen = await self._of_thing(body.thing) if body.thing else ("", None)
        app = self._find(body.app or app_id, body.environment if body.app else "")
        if app_id and app.app_id != app_id:
            raise NotFoundError(f"{body.thing} is not of the app {body.app}")
        count = min(MAX_DECISIONS, max(0, body.decisions))
        functions = [
            await self._explain(one, count, body.thing)
            for one in sorted(self._calls.loop.cluster.functions.values(), key=lambda one: one.spec.name)
            if one.app_id == app.app_id and (chosen is None or one is chosen)
        ]
        trouble = self._calls.note(app.app_id)
        return Explained(app.app_id, app.name, tuple(functions), (trouble,) if trouble else ())

    async def _of_thing(self, thing: str) -> tuple[str, Optional[FunctionState]]:
        """The app and the function that a thing is of. NotFoundError."""
        cluster = self._calls.loop.cluster
        function: Optional[FunctionState] = cluster.functions.get(thing)
        if thing in cluster.containers:
            function = cluster.containers[thing].function
        elif thing.startswith("in-"):
            holder = cluster.holder(thing)
            if holder is not None:
                function = holder.function
            else:
                whole = len(thing) == 3 + BODY_CHARS
                rows = await self._db.fetch("input_function", (*call_ids(thing), thing)) if whole else []
                queued = [
                    one for one in cluster.functions.values() if any(entry.input_id == thing for entry in one.ready)
                ]
                function = queued[0] if queued else cluster.functions.get(rows[0][0]) if rows else None
        elif thing.startswith("fc-"):
            info = await self._calls.info(thing)
            function = cluster.functions.get(info.function_id)
        if function is None:
            raise NotFoundError(f"nothing is known of {thing[:80]!r} now: it may have ended")
        return function.app_id, function

    async def _explain(self, function: FunctionState, decisions: int, thing: str) -> Explanation:
        clock, cluster = self._clock, self._calls.loop.cluster
        table: list[Waiting] = []
        if function.backlog:
            rows = await self._db.fetch("waiting_in_table", (function.function_id, MAX_INPUTS))
            table = [(a, b, c, d, e) for a, b, c, d, e in rows]
        now = clock.monotonic()
        wall = clock.now() - now
        why = standing(
            cluster, function, now, self._calls.loop.is_stuck(function.function_id),
            self._calls.loop.paused.get(function.function_id, "") or self._calls.loop.refusal(function.spec),
        )  # fmt: skip
        inputs = waiting_inputs(function, now, wall, why, table)
        containers = live_containers(function, wall)
        kept = self._calls.journal.last(
            function.function_id, MAX_DECISIONS if thing in cluster.containers else decisions
        )
        if thing.startswith("in-"):
            inputs = [one for one in inputs if one.input_id == thing] or self._running(thing, wall)
        elif thing.startswith("fc-"):
            inputs = [one for one in inputs if one.call_id == thing]
        elif thing in cluster.containers:
            containers = [one for one in containers if one.container_id == thing]
            kept = tuple(one for one in kept if one.container_id in ("", thing))[:decisions]
        return Explanation(
            function.function_id, function.spec.name, why, len(function.ready) + function.backlog, function.running,
            tuple(inputs), tuple(containers), kept, self._apart(function.function_id),
        )  # fmt: skip

    def _running(self, input_id: str, wall: float) -> list[WaitingInput]:
        """An input that does not wait: where it runs."""
        container = self._calls.loop.cluster.holder(input_id)
        if container is None:
            return []
        for one in container.attempts.values():
            if one.entry.input_id == input_id:
                place = container.container_id
                text = f"it runs in {place}" if one.begun else f"it was handed to {place} early and is next there"
                since = one.begun_at if one.begun else one.assigned_at
                return [WaitingInput(input_id, one.entry.call_id, wall + since, text)]
        return []


def handlers(explainer: Explainer) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"app.explain": explainer.explain}
