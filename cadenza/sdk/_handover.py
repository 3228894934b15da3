"""What the background loop leaves to the caller's own thread."""

from __future__ import annotations

from cadenza.sdk._light import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, TypeVar

    R = TypeVar("R")


class Later:
    """A result that the caller's own thread still has to make."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def later(make: Callable[[], R]) -> R:
    """Let ``make()`` run in the caller's thread; only as the last word of a `method` or as a batch of a `generator`."""
    return cast("R", Later(make))


def finish(value: Any) -> Any:
    """The result itself. Runs in the caller's thread."""
    return value.make() if type(value) is Later else value
