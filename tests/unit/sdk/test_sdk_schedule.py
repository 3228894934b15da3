"""Schedules as values. Source: semantics.md sections 15 and 34."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cadenza import Cron, Period
from cadenza.exception import InvalidError


def test_a_cron_line_is_not_read_here() -> None:
    assert json.loads(Cron("x")._text()) == {"kind": "cron", "cron_string": "x", "timezone": "UTC"}


def test_a_period_keeps_its_units() -> None:
    found = json.loads(Period(days=1, seconds=0.5)._text())
    assert (found["kind"], found["days"], found["seconds"], found["weeks"]) == ("period", 1, 0.5, 0)


def test_equal_schedules() -> None:
    assert Cron("* * * * *") == Cron("* * * * *", timezone="UTC")
    assert Period(days=1) != Period(days=2)
    assert len({Period(days=1), Period(days=1)}) == 1


@pytest.mark.parametrize("arguments", [{"days": 1.5}, {"hours": "1"}, {"seconds": "x"}, {"weeks": True}])
def test_wrong_types(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="Period"):
        Period(**arguments)


def test_wrong_types_of_cron() -> None:
    with pytest.raises(InvalidError, match="Cron"):
        Cron(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="Cron"):
        Cron("* * * * *", timezone=1)  # type: ignore[arg-type]


def test_what_becomes_of_missed_and_overlapping_runs() -> None:
    """Parameters of ours; the defaults leave no trace, so that a declaration stays what it was."""
    assert Cron("* * * * *", missed="once", overlap="allow") == Cron("* * * * *")
    found = json.loads(Cron("* * * * *", missed="all", overlap="wait")._text())
    assert (found["missed"], found["overlap"]) == ("all", "wait")
    assert json.loads(Period(days=1, overlap="skip")._text())["overlap"] == "skip"
    for wrong in ({"missed": "some"}, {"overlap": None}, {"missed": []}):
        with pytest.raises(InvalidError, match=next(iter(wrong))):
            Cron("* * * * *", **wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match=next(iter(wrong))):
            Period(days=1, **wrong)  # type: ignore[arg-type]
