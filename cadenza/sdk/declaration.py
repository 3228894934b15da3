"""`Declaration`: one function as its decorators describe it."""

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
class Declaration:
    """One function as its decorators describe it. Nothing is read from disk before
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
