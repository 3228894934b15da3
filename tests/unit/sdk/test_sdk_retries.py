"""Retry policies as users write them. Source: semantics.md sections 7 and 34."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

import cadenza.exception
from cadenza import Retries
from cadenza.exception import InvalidError
from cadenza.protocol.objects import RetryPolicy
from cadenza.sdk.retries import names, parse_retries


def test_an_integer_waits_one_second_each_time() -> None:
    assert parse_retries(3) == RetryPolicy(3, 1.0, 1.0, 60.0)


def test_the_class_is_exponential_by_default() -> None:
    assert parse_retries(Retries(max_retries=3)) == RetryPolicy(3, 2.0, 1.0, 60.0)
    assert parse_retries(None) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"max_retries": 1, "max_delay": 61},
        {"max_retries": 1, "max_delay": 0.5},
        {"max_retries": 1, "initial_delay": -1},
        {"max_retries": 1, "initial_delay": 61},
        {"max_retries": 1, "backoff_coefficient": 0.9},
        {"max_retries": 1, "backoff_coefficient": 10.1},
        {"max_retries": 1, "backoff_coefficient": "2"},
        {"max_retries": 1, "initial_delay": float("nan")},
    ],
)
def test_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="Retries"):
        Retries(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_retries": 0},
        {"max_retries": 1, "max_delay": 60, "initial_delay": 60, "backoff_coefficient": 10},
        {"max_retries": 1, "max_delay": 1, "initial_delay": 0, "backoff_coefficient": 1},
    ],
)
def test_the_edges_are_allowed(arguments: dict[str, Any]) -> None:
    assert Retries(**arguments)._policy().max_retries == arguments["max_retries"]


@pytest.mark.parametrize("value", ["3", 2.0, True, -1])
def test_other_values(value: Any) -> None:
    with pytest.raises(InvalidError, match="retries"):
        parse_retries(value)


class Own(Exception):
    pass


def test_which_exceptions_are_tried_again_travel_by_name() -> None:
    """Beyond Modal: ``on`` and ``not_on``."""
    policy = Retries(max_retries=2, on=(OSError, Own), not_on=FileNotFoundError)._policy()
    assert policy.on == ("builtins.OSError", f"{Own.__module__}.Own")
    assert policy.not_on == ("builtins.FileNotFoundError",)
    assert Retries(max_retries=2)._policy().on == ()


def test_a_timeout_of_a_function_is_met_by_its_own_class_and_by_the_bases_of_that() -> None:
    timeout = "cadenza.exception.FunctionTimeoutError"
    assert names((cadenza.exception.FunctionTimeoutError,)) == (timeout,)
    assert timeout in names((cadenza.exception.TimeoutError,))
    assert timeout in names((Exception,))
    assert timeout not in names((TimeoutError, OSError))


def test_a_class_of_the_program_has_the_name_of_its_module_in_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is ``__main__`` here, and its file's name there."""
    kind = type("Own", (Exception,), {"__module__": "__main__"})
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    sys.modules["__main__"].__file__ = __file__
    assert names((kind,)) == ("test_sdk_retries.Own", "__main__.Own")
    del sys.modules["__main__"].__file__
    assert names((kind,)) == ("__main__.Own",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"on": (3,)}, "and 3 is none"),
        ({"on": "OSError"}, "takes exception classes"),
        ({"not_on": (int,)}, "is none"),
        ({"on": (OSError,), "not_on": (OSError,)}, "both"),
        ({"on": OSError("made")}, "takes exception classes"),
    ],
)
def test_what_is_no_exception_class_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        Retries(max_retries=1, **given)
