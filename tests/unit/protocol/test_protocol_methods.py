"""The table of methods is whole and says what the server needs of it."""

from __future__ import annotations

import dataclasses

from cadenza.protocol.method import CLIENT, CONTAINER
from cadenza.protocol.table import METHODS


def test_rows_are_named_by_noun_and_verb() -> None:
    for name, method in METHODS.items():
        assert name == method.name
        assert name.count(".") == 1
        assert name.islower()


def test_a_row_says_who_may_call_and_which_way_it_streams() -> None:
    for method in METHODS.values():
        assert method.stream in ("", "down", "both")
        assert (method.item is not None) == (method.stream == "both"), method.name
        assert method.callers in ((CLIENT,), (CLIENT, CONTAINER))
        for cls in (method.request, method.reply):
            assert dataclasses.is_dataclass(cls)
            assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_a_container_can_call_functions_and_nothing_that_governs_the_server() -> None:
    open_to_containers = {name for name, one in METHODS.items() if CONTAINER in one.callers}
    assert {"call.run", "call.map", "call.spawn", "function.find"} <= open_to_containers
    assert not {one for one in open_to_containers if one.startswith(("server.", "container.", "object.", "image."))}
