"""Stand-ins for parts of typing, dataclasses and functools, none of which declaring an app may load.

A container imports the user's program at each cold start, and the real ones take longer to import than all of the SDK.
Type checkers see the real ones.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from functools import update_wrapper as look_like
    from typing import Any
    from typing import Generic as Generic
    from typing import cast as cast

    __all__ = ["Generic", "cast", "look_like", "record"]
else:

    def cast(kind: Any, value: Any) -> Any:
        """``value``."""
        return value

    class Generic:
        """A base whose ``[...]`` is only read by people and type checkers."""

        __slots__ = ()
        __class_getitem__ = classmethod(type(list[int]))

    def record(cls: Any) -> Any:
        """`dataclasses.dataclass` for plain classes: fields by annotation, in order, with class attributes as
        defaults. No inheritance, no factories."""
        cls._fields = tuple(cls.__annotations__)
        cls.__init__ = _init
        cls.__repr__ = _repr
        cls.__eq__ = _eq
        cls.__hash__ = None
        return cls

    def _init(self: Any, *args: Any, **kwargs: Any) -> None:
        names = self._fields
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names)} arguments, not {len(args)}")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name in given or name not in names:
                raise TypeError(f"{type(self).__name__}: {name!r} is given twice or is no field")
            given[name] = value
        for name in names:
            if name not in given and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__}: {name!r} is missing")
        self.__dict__.update(given)

    def _repr(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"

    def _eq(self: Any, other: Any) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def look_like(wrapper: Any, wrapped: Any, updated: Any = ("__dict__",)) -> Any:
        """`functools.update_wrapper`."""
        for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__type_params__"):
            try:
                setattr(wrapper, name, getattr(wrapped, name))
            except AttributeError:
                pass
        for name in updated:
            getattr(wrapper, name).update(getattr(wrapped, name, {}))
        wrapper.__wrapped__ = wrapped
        return wrapper
