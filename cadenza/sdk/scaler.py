"""A function's limits at run time: ``f.autoscaler``. Source: semantics.md section 11.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from cadenza.base.errors import InvalidError
from cadenza.sdk import _dual
from cadenza.sdk.options import MAX_SCALEDOWN_S, MIN_SCALEDOWN_S

if TYPE_CHECKING:
    from cadenza.sdk.function import Function
    from cadenza.sdk.types import FunctionAutoscalerSettings

LEAVE = -1
"""A limit that is not to be changed."""


def limits(**given: Optional[int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``(what to set, what to unset)`` as `FunctionScale` has them. InvalidError for what makes no sense."""
    values: dict[str, Any] = {}
    unset = []
    for name, value in given.items():
        field = "scaledown_window_s" if name == "scaledown_window" else name
        if value is None:
            unset.append(field)
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidError(f"autoscaler: {name} must be an integer or None, not {type(value).__name__}")
        if value == LEAVE:
            continue
        least = 1 if name == "max_containers" else 0
        if name == "scaledown_window" and not MIN_SCALEDOWN_S <= value <= MAX_SCALEDOWN_S:
            raise InvalidError(
                f"autoscaler: scaledown_window must be between {MIN_SCALEDOWN_S} and {MAX_SCALEDOWN_S} seconds, "
                f"got {value}"
            )
        if value < least:
            raise InvalidError(f"autoscaler: {name} must be {least} or more, got {value}")
        values[field] = float(value) if field == "scaledown_window_s" else value
    if values.get("min_containers", 0) > values.get("max_containers", values.get("min_containers", 0)):
        raise InvalidError(
            f"autoscaler: min_containers ({values['min_containers']}) is above "
            f"max_containers ({values['max_containers']})"
        )
    return values, tuple(unset)


class Autoscaler:
    """Reads and changes the limits of a function, or of the containers of a class instance."""

    def __init__(self, function: Function[Any, Any, Any]) -> None:
        self._function = function

    async def _client(self) -> Any:
        function = self._function
        if function._method:
            raise InvalidError(
                f"{function!r} is a method and shares its containers with the others of its class: "
                "use the autoscaler of the instance, C(...).autoscaler"
            )
        function._hydrate_here()
        return await function._ready()

    @_dual.method
    async def settings(self) -> FunctionAutoscalerSettings:
        """The limits in force."""
        from cadenza.protocol.functions import FunctionRef
        from cadenza.sdk.types import FunctionAutoscalerSettings

        client = await self._client()
        found = await client._request("function.settings", FunctionRef(self._function.object_id))
        window_s = found.scaledown_window_s
        return FunctionAutoscalerSettings(
            min_containers=found.min_containers,
            max_containers=found.max_containers,
            scaledown_window=None if window_s is None else round(window_s),
            buffer_containers=found.buffer_containers,
        )

    @_dual.method
    async def update(
        self,
        *,
        min_containers: Optional[int] = -1,
        max_containers: Optional[int] = -1,
        buffer_containers: Optional[int] = -1,
        scaledown_window: Optional[int] = -1,
    ) -> None:
        """Change limits until the next deploy. -1 leaves one as it is, None takes it away."""
        from cadenza.protocol.functions import FunctionScale
        from cadenza.protocol.objects import AutoscalerPatch

        values, unset = limits(
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
        )
        client = await self._client()
        wish = FunctionScale(self._function.object_id, AutoscalerPatch(**values), unset)
        await client._request("function.scale", wish)


async def old_update(
    function: Function[Any, Any, Any],
    min_containers: Optional[int],
    max_containers: Optional[int],
    buffer_containers: Optional[int],
    scaledown_window: Optional[int],
) -> None:
    """``update_autoscaler``, in which None leaves a limit as it is."""
    import warnings

    from cadenza.base.errors import DeprecationError

    warnings.warn("update_autoscaler is deprecated: use autoscaler.update(...)", DeprecationError, stacklevel=2)
    given = {
        "min_containers": min_containers,
        "max_containers": max_containers,
        "buffer_containers": buffer_containers,
        "scaledown_window": scaledown_window,
    }
    await Autoscaler(function).update.aio(**{name: value for name, value in given.items() if value is not None})
