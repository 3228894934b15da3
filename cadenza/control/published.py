"""The functions that can be called: published, replaced, limited at run time, taken away.

A function keeps its id over all versions of its app. When it is published with another specification, what has not
begun runs by the new one; containers of the old one end after what runs in them (``rolling``), or at once, and their
inputs run again at no cost (``recreate``). Limits of the autoscaler alone change in place.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Callable, Coroutine, Mapping, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error, InvalidError, NotFoundError
from cadenza.control.declared import MAX_CONTAINERS, MAX_WINDOW_S, MIN_WINDOW_S
from cadenza.control.journal import Journal
from cadenza.control.limits import Limits
from cadenza.control.loop import Loop
from cadenza.protocol.calls import RESULT_KEPT_S, TERMINATED
from cadenza.protocol.functions import AutoscalerSettings, FunctionStats
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec
from cadenza.scheduling.standing import note
from cadenza.scheduling.states import NO_LIMITS, FunctionState, limited
from cadenza.storage.entry import Output
from cadenza.storage.queue import Queue

APP_ENDED = "the app has ended"
DROP_ROWS = 5_000
"""How many waiting inputs of an ended function are dropped in one transaction."""


class Published:
    """What `cadenza.control.calls.Calls` knows of functions. All methods on the event loop's thread; none blocks."""

    loop: Loop
    _queue: Queue
    _clock: Clock
    _limits: Limits
    journal: Journal
    on_reset: Callable[[str], None] = staticmethod(lambda function_id: None)
    """Told of each function whose limits are the declared ones again, or that is gone."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on beside, until the end."""
        self._spawn(work)

    def _spawn(self, work: Any) -> None:
        raise NotImplementedError

    def _ended(self, output: Output, function_id: str, dropped: bool = False) -> None:
        raise NotImplementedError

    # --- there and not there ---

    def add_function(
        self,
        function_id: str,
        app_id: str,
        app_name: str,
        spec: FunctionSpec,
        layout: Mapping[str, str],
        *,
        ephemeral: bool = True,
        environment: str = "main",
        base_id: str = "",
        renew: bool = False,
        strategy: str = "rolling",
    ) -> None:
        """Make a function callable, or replace it.

        Where ``spec`` differs from the one in force by more than the autoscaler's limits, or with ``renew``, the
        present containers end by ``strategy``, ``rolling`` or ``recreate``. ``ephemeral=False``: of a deployed app,
        whose containers are tried for ever. ``base_id``: it is a variant of that function. Limits set by `scale` go
        with a change. InvalidError when no node can ever hold its containers, and nothing has changed then.
        """
        if base_id and spec.min_containers:
            spec = replace(spec, min_containers=0)  # semantics.md section 12.3
        before = self.loop.cluster.functions.get(function_id)
        limited_before = before is not None and bool(before.unset or before.limits != AutoscalerPatch())
        self.loop.add_function(
            function_id, app_id, app_name, spec, layout, ephemeral=ephemeral, environment=environment, base_id=base_id,
            renew=renew, strategy=strategy,
        )  # fmt: skip
        if before is not None and limited_before and not before.unset and before.limits == AutoscalerPatch():
            self.on_reset(function_id)

    def remove_function(self, function_id: str, reason: str) -> None:
        """Take one function away: its unfinished inputs become TERMINATED, its containers stop."""
        function = self.loop.cluster.functions.get(function_id)
        if function is not None and not function.removed:
            self.loop.post(self.loop.remove_function, function_id, reason)
            self._spawn(self._drop_function(function_id, reason))

    def remove_app(self, app_id: str, reason: str) -> None:
        """End an app: its unfinished inputs become TERMINATED, its containers stop."""
        text = f"{APP_ENDED}: {reason}" if reason else APP_ENDED
        for function in list(self.loop.cluster.functions.values()):
            if function.app_id == app_id:
                self.remove_function(function.function_id, text)

    async def _drop_function(self, function_id: str, reason: str) -> None:
        while True:
            expires_at = self._clock.now() + RESULT_KEPT_S
            try:
                dropped = await self._queue.drop_function(function_id, reason, expires_at, DROP_ROWS)
            except Error:
                await asyncio.sleep(1.0)
                continue
            for call_id, index, name in dropped:
                self._ended(Output(call_id, index, name, TERMINATED, error=reason), function_id, True)
            self.loop.post(self.loop.removed, function_id, len(dropped))
            if len(dropped) < DROP_ROWS:
                return

    def forgotten(self, function_id: str) -> None:
        """`cadenza.control.round.Sink`: a function is gone."""
        self._limits.forget(function_id)
        self.journal.forget(function_id)
        self.on_reset(function_id)

    # --- how an app stands ---

    def app_busy(self, app_id: str) -> bool:
        """Whether any input of the app is not finished."""
        return self._limits.busy(app_id)

    def old_containers(self, app_id: str) -> int:
        """How many containers of an app are there for what its functions are no more."""
        containers = self.loop.cluster.containers.values()
        return sum(1 for one in containers if one.function.app_id == app_id and one.replaced)

    def note(self, app_id: str) -> str:
        """What is wrong with an app's containers now, in a sentence; empty when nothing is."""
        functions = [one for one in self.loop.cluster.functions.values() if one.app_id == app_id and not one.removed]
        return note(functions, self._clock.monotonic()) if functions else ""

    # --- limits at run time ---

    def scale(self, function_id: str, patch: AutoscalerPatch, unset: Sequence[str] = ()) -> None:
        """Set limits over those that are declared, until the next deploy; those named in ``unset`` go.

        NotFoundError for an unknown function, InvalidError for limits that cannot be, and nothing has changed then.
        """
        function = self._known(function_id)
        unknown = sorted(set(unset) - set(NO_LIMITS))
        if unknown:
            raise InvalidError(f"there is no limit named {unknown[0]!r}; known are {', '.join(NO_LIMITS)}")
        fault = scale_fault(function, patch, unset)
        if fault:
            raise InvalidError(f"{function.spec.name}: {fault}")
        self.loop.limit(function_id, patch, unset)

    def reset_scale(self, function_id: str) -> None:
        """The limits are those that are declared. Nothing happens for an unknown function."""
        if function_id in self.loop.cluster.functions:
            self.loop.limit(function_id, None, ())
            self.on_reset(function_id)

    def settings(self, function_id: str) -> AutoscalerSettings:
        """The limits in force. NotFoundError for an unknown function."""
        spec = self._known(function_id).spec
        return AutoscalerSettings(
            spec.min_containers, spec.max_containers or None, spec.buffer_containers, spec.scaledown_window_s
        )

    def stats(self, function_id: str) -> FunctionStats:
        """How many inputs wait and run, and how many containers there are. NotFoundError for an unknown function."""
        function = self._known(function_id)
        alive = function.alive
        room = sum(one.room_to(one.spec.max_concurrent) for one in alive) * max(1, function.spec.batch_max)
        return FunctionStats(len(function.ready) + function.backlog, len(alive), function.running, room)

    def _known(self, function_id: str) -> FunctionState:
        function = self.loop.cluster.functions.get(function_id)
        if function is None:
            raise NotFoundError(f"there is no function {function_id}, or its app has ended")
        return function


def scale_fault(function: FunctionState, patch: AutoscalerPatch, unset: Sequence[str]) -> str:
    """What is wrong with limits at run time, in words; empty when nothing is."""
    for name in ("min_containers", "max_containers", "buffer_containers"):
        value, least = getattr(patch, name), 1 if name == "max_containers" else 0
        if value is not None and not least <= value <= MAX_CONTAINERS:
            return f"{name} must be between {least} and {MAX_CONTAINERS}, not {value}"
    window_s = patch.scaledown_window_s
    if window_s is not None and not MIN_WINDOW_S <= window_s <= MAX_WINDOW_S:
        return f"scaledown_window must be between {MIN_WINDOW_S:g} and {MAX_WINDOW_S:g} s, not {window_s:g}"
    given = [name for name in NO_LIMITS if getattr(patch, name) is not None]
    both = sorted(set(given) & set(unset))
    if both:
        return f"{both[0]} is both set and unset"
    before = [name for name in (*function.unset, *unset) if name not in given]
    kept = {name: getattr(patch if name in given else function.limits, name) for name in NO_LIMITS}
    found = limited(function.declared, AutoscalerPatch(**{**kept, **dict.fromkeys(before)}), before)
    if found.max_containers and found.min_containers > found.max_containers:
        return f"min_containers {found.min_containers} is more than max_containers {found.max_containers}"
    return ""
