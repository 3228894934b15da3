"""What code in a container can ask about where it runs. Cheap to import; outside of containers it says None.

The current input is context-local when a container runs several at once, and process-wide when it runs one: then
threads that user code starts see it too. Source: semantics.md sections 10 and 31.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import ContextVar
    from typing import Any, Callable, Optional

    Current = tuple[str, str]


class Container:
    """The container that this process is, or is inside of. ``layout``: the app's functions, name to id."""

    __slots__ = ("app_id", "container_id", "function", "function_id", "image_id", "is_container", "layout")

    def __init__(
        self,
        container_id: str,
        app_id: str = "",
        function_id: str = "",
        image_id: str = "",
        layout: Optional[dict[str, str]] = None,
        function: Optional[dict[str, Any]] = None,
    ) -> None:
        self.container_id = container_id
        self.app_id = app_id
        self.function_id = function_id
        self.image_id = image_id
        self.layout = layout or {}
        self.function = function or {}
        self.is_container = True


BUILD = "build"
"""The id of the container in which a step of an image's build runs a function."""
LAYOUT = "CADENZA_LAYOUT"
"""The variable by which processes that user code starts know the app's functions."""

_container: Optional[Container] = None
_single: Optional[Current] = None
_local: Optional[ContextVar[Optional[Current]]] = None

executor: Any = None
"""The container's `cadenza.runner.execute.Executor`, in the runner's own process: `cadenza.runner.slots` asks it."""

persistent_id: Optional[Callable[[Any], Any]] = None
persistent_load: Optional[Callable[[Any], Any]] = None


def register_handles(pack: Callable[[Any], Any], load: Callable[[Any], Any]) -> None:
    """How the SDK's handles travel inside values: see `values.pack` and `values.unpack`. The SDK calls it."""
    global persistent_id, persistent_load
    persistent_id, persistent_load = pack, load


def _layout(text: str) -> dict[str, str]:
    """What `surroundings.arrange` wrote: a line ``name=id`` for each function."""
    return {name: one for name, _, one in (line.rpartition("=") for line in text.split("\n")) if name}


def current() -> Optional[Container]:
    """The container, or None outside of one. A child process of a container's code knows it from its environment."""
    global _container
    if _container is None and os.environ.get("CADENZA_IS_REMOTE") == "1":
        get = os.environ.get
        _container = Container(
            get("CADENZA_TASK_ID", ""), get("CADENZA_APP_ID", ""), get("CADENZA_FUNCTION_ID", ""),
            get("CADENZA_IMAGE_ID", ""), _layout(get(LAYOUT, "")),
        )  # fmt: skip
    return _container


def current_input_id() -> Optional[str]:
    """The id of the input that this thread or task works on, None outside of one."""
    now = current_input()
    return now[0] if now is not None else None


def current_function_call_id() -> Optional[str]:
    """The id of the call that this thread's or task's input belongs to, None outside of one."""
    now = current_input()
    return now[1] if now is not None else None


def current_input() -> Optional[Current]:
    """``(input id, call id)`` or None."""
    return _single if _local is None else _local.get()


def become(container: Optional[Container], concurrent: bool = False) -> None:
    """Say what this process is. The runner calls it; with ``concurrent`` the current input is context-local."""
    global _container, _local
    _container = container
    _local = None
    if concurrent:
        from contextvars import ContextVar

        _local = ContextVar("cadenza_current_input", default=None)


def enter(input_id: str, call_id: str) -> None:
    """From here on this context works on that input."""
    global _single
    if _local is None:
        _single = (input_id, call_id)
    else:
        _local.set((input_id, call_id))


def leave() -> None:
    """This context works on no input."""
    global _single
    if _local is None:
        _single = None
    else:
        _local.set(None)
