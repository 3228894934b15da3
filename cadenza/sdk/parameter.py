"""`parameter`: a value that a class takes when an instance of it is made. Source: semantics.md section 12.2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _NoDefault:
    def __repr__(self) -> str:
        return "modal.cls._NO_DEFAULT()"


class ClassParameter:
    """Stands in a class's body for a parameter. ``__cadenza_default__`` is not set where there is no default."""

    __slots__ = ("__cadenza_default__",)

    def __init__(self, default: Any) -> None:
        if not isinstance(default, _NoDefault):
            self.__cadenza_default__ = default

    def __repr__(self) -> str:
        shown = repr(self.__cadenza_default__) if hasattr(self, "__cadenza_default__") else ""
        return f"parameter({'default=' + shown if shown else ''})"


def parameter(*, default: Any = _NoDefault(), init: bool = True) -> Any:
    """A parameter of a class under ``@app.cls``: ``x: int = parameter(default=1)``.

    The annotation is needed: str, int, bool or bytes. Each set of values has containers of its own. ``init`` is
    deprecated and ignored.
    """
    if init is not True:
        import warnings

        from cadenza.base.errors import DeprecationError

        warnings.warn("parameter(init=...) is deprecated and does nothing", DeprecationError, stacklevel=2)
    return ClassParameter(default)
