"""How many inputs each function has unfinished, against the limits of semantics.md section 3.4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from cadenza.base.errors import ResourceExhaustedError
from cadenza.protocol.calls import MAX_ASYNC_QUEUED, MAX_SYNC_QUEUED, MAX_SYNC_TOTAL
from cadenza.scheduling.states import FunctionState


@dataclass
class Usage:
    """What one function has unfinished."""

    attached: int = 0
    detached: int = 0


def _too_many(text: str) -> ResourceExhaustedError:
    """The refusal that callers wait through: calls that end make room."""
    error = ResourceExhaustedError(text)
    error.throttle = True
    return error


class Limits:
    """Every function's usage. ``functions`` are the cluster's."""

    def __init__(self, functions: Mapping[str, FunctionState]) -> None:
        self.usages: dict[str, Usage] = {}
        self._functions = functions

    def of(self, function_id: str) -> Usage:
        """A function's usage, to be counted up and down."""
        usage = self.usages.get(function_id)
        if usage is None:
            usage = self.usages[function_id] = Usage()
        return usage

    def forget(self, function_id: str) -> None:
        """Keep nothing of a function that is gone, once all its inputs have ended."""
        usage = self.usages.get(function_id)
        if usage is not None and not usage.attached and not usage.detached and function_id not in self._functions:
            del self.usages[function_id]

    def busy(self, app_id: str) -> bool:
        """Whether any input of an app is not finished."""
        for function_id, usage in self.usages.items():
            if usage.attached > 0 or usage.detached > 0:
                function = self._functions.get(function_id)
                if function is not None and function.app_id == app_id:
                    return True
        return False

    def check(self, function_id: str, attached: bool, count: int) -> None:
        """ResourceExhaustedError when ``count`` more are too many. The function is there."""
        usage = self.of(function_id)
        if attached:
            function = self._functions[function_id]
            queued = usage.attached - function.running + count
            if queued > MAX_SYNC_QUEUED:
                raise _too_many(
                    f"{function.spec.name} has {usage.attached} inputs under way; at most {MAX_SYNC_QUEUED} may wait. "
                    "Try again later, or use spawn"
                )
            if usage.attached + count > MAX_SYNC_TOTAL:
                raise _too_many(f"at most {MAX_SYNC_TOTAL} inputs of a function may wait and run")
        elif usage.detached + count > MAX_ASYNC_QUEUED:
            raise _too_many(
                f"{usage.detached} spawned inputs are queued; at most {MAX_ASYNC_QUEUED} may be. Try again later"
            )
