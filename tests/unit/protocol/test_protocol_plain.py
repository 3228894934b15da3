"""Dataclasses to JSON values and back, and that the server's decoder reads the same."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from cadenza.protocol.calls import BlobRef, NewInput, ValueRef
from cadenza.protocol.methods import CallOutputs, LogQuery, MapPut, ServerKeep
from cadenza.protocol.table import METHODS
from cadenza.protocol.objects import AppInfo, FileEntry, FunctionSpec, ImageSpec, ImageStep, RetryPolicy, to_json
from cadenza.protocol.plain import from_plain, to_plain

SPEC = FunctionSpec(
    "f",
    "m",
    "f",
    image=ImageSpec(
        (ImageStep("base", options={"python": "3.11"}), ImageStep("copy", files=(FileEntry("/x", "0", 1),)))
    ),
    files=(FileEntry("/root/m.py", "ab", 3, 0o755),),
    env={"A": "1"},
    retries=RetryPolicy(3),
)


@pytest.mark.parametrize(
    "value",
    [
        SPEC,
        MapPut((NewInput(0, ValueRef(5)), NewInput(1, ValueRef(0, BlobRef("bl-1", 9)))), 2),
        AppInfo("ap-1", "x", "stopped", 1.5, None),
        CallOutputs("fc-1", 1, None),
        LogQuery(app="x", tail=5),
        ServerKeep(True),
    ],
)
def test_there_and_back(value: Any) -> None:
    raw = json.dumps(to_plain(value))
    assert from_plain(type(value), json.loads(raw)) == value
    assert msgspec.json.decode(raw, type=type(value)) == value
    assert json.loads(msgspec.json.encode(value)) == to_plain(value)


def test_an_older_client_reads_a_newer_reply() -> None:
    plain = to_plain(AppInfo("ap-1", "x", "stopped", 1.5))
    plain["invented_later"] = {"a": 1}
    del plain["stop_reason"]
    assert from_plain(AppInfo, plain) == AppInfo("ap-1", "x", "stopped", 1.5)


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    other = dataclasses.replace(SPEC, env=dict(reversed([("A", "1"), ("B", "2")])))
    assert to_json(other) == to_json(dataclasses.replace(SPEC, env={"A": "1", "B": "2"}))


@functools.cache
def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that the protocol uses."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is typing.Union:
        return st.one_of(*(st.none() if one is type(None) else strategy(one) for one in args))
    if origin is tuple:
        return st.lists(strategy(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), strategy(args[1]), max_size=2)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        # Put off: an image's steps may read other images.
        return st.deferred(
            lambda: st.builds(hint, **{one.name: strategy(hints[one.name]) for one in dataclasses.fields(hint)})
        )
    return {
        str: st.text(max_size=5),
        int: st.integers(-(2**53), 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[hint]


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_message_of_the_table_travels(name: str, data: st.DataObject) -> None:
    """What the SDK writes the server reads, and what the server writes the SDK reads."""
    method = METHODS[name]
    for cls in (method.request, method.reply, *([method.item] if method.item is not None else [])):
        value = data.draw(strategy(cls))
        assert msgspec.json.decode(json.dumps(to_plain(value)), type=cls) == value
        assert from_plain(cls, json.loads(msgspec.json.encode(value))) == value
