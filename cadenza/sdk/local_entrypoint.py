"""`LocalEntrypoint`: a function that ``cadenza run`` calls in the user's process. Source: semantics.md section 23."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Generic, TypeVar

if TYPE_CHECKING:
    from cadenza.sdk.app import App

E = TypeVar("E")


class LocalEntrypoint(Generic[E]):
    """A function that runs in the user's process when the app is run. Calling it runs it."""

    def __init__(self, app: App, raw: Callable[..., E], name: str) -> None:
        self.app = app
        self.raw = raw
        self.name = name
        functools.update_wrapper(self, raw)

    def __call__(self, *args: Any, **kwargs: Any) -> E:
        return self.raw(*args, **kwargs)
