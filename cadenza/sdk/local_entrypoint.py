"""`LocalEntrypoint`: a function that ``cadenza run`` calls in the user's process. Source: semantics.md section 23."""

from __future__ import annotations

from cadenza.sdk._light import Generic, look_like

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, ParamSpec, TypeVar

    from cadenza.sdk.app import App

    P = ParamSpec("P")
    E = TypeVar("E")
else:
    P = E = None


class LocalEntrypoint(Generic[P, E]):
    """A function that runs in the user's process when the app is run. Calling it runs it."""

    def __init__(self, app: App, raw: Callable[P, E], name: str) -> None:
        self.app = app
        self.raw = raw
        self.name = name
        look_like(self, raw)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> E:
        return self.raw(*args, **kwargs)
