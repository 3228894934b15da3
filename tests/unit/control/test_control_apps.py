"""When an app must stop, and what a function may never be: the pure rules. semantics.md section 23."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cadenza.base.errors import InvalidError
from cadenza.control.apps import CLIENT_GONE_S, HEARTBEAT_LIMIT_S, App, check_functions, overdue
from cadenza.protocol.objects import FunctionSpec, RetryPolicy

EPHEMERAL = App("ap-1", "a", "main", "ephemeral", False, 0.0, heartbeat_at=1000.0)
DETACHED = App("ap-1", "a", "main", "detached", True, 0.0, heartbeat_at=0.0)


def app(template: App, **changes: Any) -> App:
    return replace(template, **changes)


def test_an_ephemeral_app_needs_its_client() -> None:
    assert overdue(EPHEMERAL, True, 1000.0 + HEARTBEAT_LIMIT_S - 1) == ""
    assert "heartbeat" in overdue(EPHEMERAL, True, 1000.0 + HEARTBEAT_LIMIT_S)
    gone = app(EPHEMERAL, gone_at=1010.0)
    assert overdue(gone, True, 1010.0 + CLIENT_GONE_S - 1) == ""
    assert "gone" in overdue(gone, True, 1010.0 + CLIENT_GONE_S)


def test_a_detached_app_needs_work_once_its_client_has_left() -> None:
    assert overdue(DETACHED, False, 1e9) == ""  # its client is there
    assert overdue(app(DETACHED, gone_at=0.0, was_idle=False), False, 1e9) == ""
    assert overdue(app(DETACHED, gone_at=0.0, was_idle=True), True, 1e9) == ""
    assert overdue(app(DETACHED, gone_at=0.0, was_idle=True), False, 1e9) == "all work is done"


def test_a_detached_app_that_was_never_published_ends_with_its_client() -> None:
    assert overdue(app(DETACHED, state="initializing", gone_at=0.0), False, CLIENT_GONE_S) != ""


GOOD = FunctionSpec("f", "m", "f")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 201},
        {"qualname": ""},
        {"timeout_s": 0.5},
        {"startup_timeout_s": 1e9},
        {"retries": RetryPolicy(11)},
        {"retries": RetryPolicy(1), "is_generator": True},
        {"min_containers": -1},
        {"min_containers": 2, "max_containers": 1},
        {"max_concurrent": 0},
        {"isolation": "vm"},
    ],
)
def test_functions_that_can_never_be(change: dict[str, Any]) -> None:
    check_functions([GOOD])
    with pytest.raises(InvalidError, match="function"):
        check_functions([replace(GOOD, **change)])


def test_a_name_is_there_once_and_functions_are_not_endless() -> None:
    with pytest.raises(InvalidError, match="twice"):
        check_functions([GOOD, GOOD])
    with pytest.raises(InvalidError, match="at most"):
        check_functions([replace(GOOD, name=f"f{number}") for number in range(1001)])
    check_functions([replace(GOOD, module="", qualname="", serialized="0" * 64)])
