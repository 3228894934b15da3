"""Groups of methods that are for later, and the error for what is not built yet."""

from __future__ import annotations

from cadenza.base.errors import UnimplementedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def unbuilt(what: str, instead: str) -> UnimplementedError:
    """The error for what is not built yet."""
    return UnimplementedError(f"{what} is not built yet; {instead}")


class LaterNamespace:
    """A group of methods of which none is built yet: the error comes at the first use."""

    def __init__(self, name: str, instead: str) -> None:
        self._name = name
        self._instead = instead

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        raise unbuilt(f"{self._name}.{method}", self._instead)
