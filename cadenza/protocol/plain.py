"""Dataclasses to plain JSON values and back, with the standard library alone. No I/O.

The SDK uses both ways. Servers decode with msgspec, which reads the same dataclasses and checks every type at the edge;
`from_plain` trusts its peer more: it ignores unknown keys, so that an older client can read a newer server's reply.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, TypeVar, Union

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses become dictionaries, tuples become lists, the rest is left as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, dict):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    return value


def from_plain(cls: type[T], value: Any) -> T:
    """The dataclass ``cls`` from what `to_plain` made. TypeError or KeyError when the shape is another."""
    return typing.cast(T, _read(cls, value))


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(cls))


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is Union:
        if value is None:
            return None
        inner = [one for one in typing.get_args(hint) if one is not type(None)]
        return _read(inner[0], value) if len(inner) == 1 else value
    if origin in (tuple, list):
        args = typing.get_args(hint)
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return tuple(_read(one, part) for one, part in zip(args, value))
        return origin(_read(args[0], one) for one in value)
    if origin is dict:
        of = typing.get_args(hint)[1]
        return {key: _read(of, one) for key, one in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{name: _read(hints[name], value[name]) for name in _names(hint) if name in value})
    return value
