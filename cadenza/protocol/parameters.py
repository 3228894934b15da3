"""The values of a class's parameters as one text: the same values give the same text, so that they share a pool.

A JSON object, keys sorted, defaults filled in; bytes are ``{"bytes": "<base64>"}``. Source: semantics.md section 12.2.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Mapping, Sequence

from cadenza.base.errors import InvalidError
from cadenza.protocol.objects import ParameterSpec

MAX_PARAMETERS_BYTES = 16 << 10
"""Of the values, as they are and not as the text has them: what is a byte or a letter to a caller counts as one."""
TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}


def to_value(value: Any) -> Any:
    """A parameter's value as JSON has it."""
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def from_value(value: Any) -> Any:
    """The inverse of `to_value`. ValueError for what is none."""
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"], validate=True)
    return value


def bind(declared: Sequence[ParameterSpec], given: Mapping[str, Any], where: str = "") -> str:
    """``given`` with defaults, as text; empty when the class has no parameters.

    InvalidError for an unknown or missing name, a wrong type, and more than `MAX_PARAMETERS_BYTES`.
    """
    begin = f"{where}: " if where else ""
    known = {one.name: one for one in declared}
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise InvalidError(f"{begin}there is no parameter {name!r}; it has {has}")
    values = {}
    for one in declared:
        if one.name not in given:
            if not one.default:
                raise InvalidError(f"{begin}the parameter {one.name!r} has no default and was not given")
            values[one.name] = json.loads(one.default)
            continue
        value = given[one.name]
        if type(value) is not TYPES[one.type]:  # True is no int here
            raise InvalidError(f"{begin}the parameter {one.name!r} takes {one.type}, not {type(value).__name__}")
        values[one.name] = to_value(value)
    if not values:
        return ""
    if sum(map(_size, values.values())) > MAX_PARAMETERS_BYTES:
        raise InvalidError(
            f"{begin}the parameters together have over {MAX_PARAMETERS_BYTES >> 10} KiB: pass what is large as an "
            "argument of the method"
        )
    try:
        return json.dumps(values, sort_keys=True, separators=(",", ":"))
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidError(f"{begin}the parameters cannot be written down: {error}") from None


def _size(value: Any) -> int:
    """Bytes of one value, as `to_value` gives it."""
    if isinstance(value, dict):
        return len(from_value(value))
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else (value.bit_length() + 7) // 8


def check(declared: Sequence[ParameterSpec], text: str) -> str:
    """A bound text from a client, checked and normalised again. InvalidError as `bind`."""
    try:
        given = {name: from_value(one) for name, one in json.loads(text or "{}").items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidError(f"these are no parameters of a class: {error}") from None
    return bind(declared, given)


def values(text: str) -> dict[str, Any]:
    """What `bind` wrote, as keyword arguments."""
    return {name: from_value(one) for name, one in json.loads(text or "{}").items()}
