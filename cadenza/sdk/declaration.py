"""`Declaration`: one function, or class, as its decorators describe it."""

from __future__ import annotations

from cadenza.sdk._light import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from cadenza.sdk.decorators import Marks
    from cadenza.sdk.image import Image
    from cadenza.sdk.options import FunctionOptions
    from cadenza.sdk.secret import Secret


@record
class Method:
    """One method of a class that runs in containers."""

    name: str
    is_generator: bool
    is_async: bool


@record
class Parameter:
    """One parameter of a class; ``type`` is str, int, bool or bytes. Without ``has_default``, ``default`` is None."""

    name: str
    type: str
    has_default: bool
    default: Any = None


@record
class Declaration:
    """One function, or class, as its decorators describe it. Nothing is read from disk before
    `cadenza.sdk.publish.prepare`."""

    name: str
    raw: Callable[..., Any]
    is_generator: bool
    is_async: bool
    serialized: bool
    include_source: bool
    options: FunctionOptions
    marks: Marks
    image: Callable[[], Image]
    app_secrets: Callable[[], Sequence[Secret]]
    methods: tuple[Method, ...] = ()
    """Of a class, which is called ``Name.*``."""
    parameters: tuple[Parameter, ...] = ()
