"""`Function`: a handle of one function of an app, and the verbs that call it. Source: semantics.md section 3."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Coroutine,
    Generic,
    Optional,
    Sequence,
    TypeVar,
    cast,
)

from cadenza.base.errors import ExecutionError, InvalidError
from cadenza.sdk import _dual
from cadenza.sdk.handle import Object

if TYPE_CHECKING or sys.version_info >= (3, 10):
    from typing import ParamSpec

    P = ParamSpec("P")
else:
    P = TypeVar("P")
R = TypeVar("R")
"""What the call gives: for ``async def`` the awaited value."""
O = TypeVar("O")  # noqa: E741
"""What the user's own callable returns: for ``async def`` the coroutine."""

if TYPE_CHECKING:
    from cadenza.protocol.objects import FunctionSpec
    from cadenza.sdk.client import Client


@dataclass
class Definition:
    """A function as ``@app.function`` found it."""

    raw: Callable[..., Any]
    """The user's callable, as it was decorated."""
    name: str
    """Its name in the app."""
    module: str
    qualname: str
    is_generator: bool
    is_async: bool
    spec: Callable[[], FunctionSpec]
    """Makes what the server needs; called when the app is published, and may raise InvalidError."""
    is_web: bool = False


class Function(Object, Generic[P, R, O]):
    """A function that runs in containers. Made by ``@app.function``, `from_name` or `from_id`; it cannot be called
    itself: ``f.remote(...)`` runs it in a container, ``f.local(...)`` in this process."""

    _app: Any
    _definition: Optional[Definition]

    @classmethod
    def _from_definition(cls, app: Any, definition: Definition) -> Function[Any, Any, Any]:
        """The handle that ``@app.function`` gives. Hydrated by `_hydrate` when the app is published."""
        function: Function[Any, Any, Any] = cls.__new__(cls)
        function._init_handle()
        function._app = app
        function._definition = definition
        return function
