"""Retry policies as users write them. Source: semantics.md sections 7 and 34."""

from __future__ import annotations

from typing import Any

import pytest

from cadenza import Retries
from cadenza.exception import InvalidError
from cadenza.protocol.objects import RetryPolicy
from cadenza.sdk.retries import parse_retries


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
