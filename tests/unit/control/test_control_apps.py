"""When an app must stop, and what a function may never be: the pure rules. semantics.md section 23."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cadenza.base.errors import InvalidError
from cadenza.control import appstate as module
from cadenza.control.appstate import CLIENT_GONE_S, HEARTBEAT_LIMIT_S, App, forgotten, overdue
from cadenza.control.declared import check_functions
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
        {"startup_timeout_s": 1e10},
        {"retries": RetryPolicy(11)},
        {"retries": RetryPolicy(1), "is_generator": True},
        {"min_containers": -1},
        {"min_containers": 2, "max_containers": 1},
        {"max_concurrent": 0},
        {"max_concurrent": 1001},
        {"target_concurrent": 2},
        {"max_containers": 4001},
        {"buffer_containers": -1},
        {"scaledown_window_s": 1.9},
        {"scaledown_window_s": 3601.0},
        {"scaledown_window_s": float("nan")},
        {"timeout_s": float("nan")},
        {"retries": RetryPolicy(-1)},
        {"retries": RetryPolicy(1, backoff_coefficient=0.5)},
        {"retries": RetryPolicy(1, backoff_coefficient=11.0)},
        {"retries": RetryPolicy(1, initial_delay_s=-1.0)},
        {"retries": RetryPolicy(1, initial_delay_s=61.0)},
        {"retries": RetryPolicy(1, max_delay_s=0.5)},
        {"retries": RetryPolicy(1, max_delay_s=61.0)},
        {"batch_max": 1001},
        {"batch_wait_ms": 600_001},
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


def test_the_limits_themselves_are_allowed() -> None:
    """semantics.md sections 7, 8, 11 and 30."""
    check_functions(
        [
            replace(
                GOOD, timeout_s=86_400.0, scaledown_window_s=3600.0, max_concurrent=1000, target_concurrent=1000,
                max_containers=4000, retries=RetryPolicy(10, 10.0, 60.0, 60.0),
            ),
            replace(GOOD, name="g", timeout_s=1.0, scaledown_window_s=2.0, retries=RetryPolicy(0, 1.0, 0.0, 1.0)),
        ]
    )  # fmt: skip


def test_old_and_too_many_stopped_apps_are_forgotten(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MAX_STOPPED", 2)
    stopped = [App(f"ap-{number}", "a", "main", "stopped", False, 0.0, stopped_at=float(number)) for number in range(4)]
    assert forgotten([EPHEMERAL, *stopped], 0.0) == ["ap-1", "ap-0"]
    assert forgotten([EPHEMERAL, *stopped[2:]], 3.0) == ["ap-2"]
