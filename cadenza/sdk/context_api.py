"""Where am I: `is_local`, `current_input_id` and their like. Source: semantics.md section 31."""

from __future__ import annotations

from cadenza.base.errors import InvalidError
from cadenza.runner import context
from cadenza.runner.context import current as container  # what the runner says of this container; None on the host
from cadenza.sdk import _dual

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine, Optional

__all__ = ["apps_here", "container", "current_function_call_id", "current_input_id", "interact", "is_local"]


apps_here: list[Any] = []
"""In a container: the apps that the program has made so far. Each container belongs to one of them."""


def is_local() -> bool:
    """Whether this process is the user's own and not a container."""
    return container() is None


def current_input_id() -> Optional[str]:
    """The id of the input that is being run here; None in a local process. Its own in each thread and task."""
    return context.current_input_id()


def current_function_call_id() -> Optional[str]:
    """The id of the call whose input is being run here; None in a local process. Its own in each thread and task."""
    return context.current_function_call_id()


async def _connected() -> None:
    """There is nothing more to wait for."""


@_dual.function
def interact() -> Coroutine[Any, Any, None]:
    """Connect the terminal of an interactive run to this container. InvalidError without one."""
    if is_local():
        raise InvalidError("interact() works in a container only: call it inside of a function")
    from cadenza.runner import terminal

    terminal.interact()  # in the caller's thread, whose terminal it is
    return _connected()
