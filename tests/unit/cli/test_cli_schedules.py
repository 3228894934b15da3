"""``cadenza schedule``: what is shown, and which schedule a word means."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cadenza.cli import schedules as module
from cadenza.cli.schedules import matching, schedule
from cadenza.protocol.methods import Empty
from cadenza.protocol.schedules import ScheduleInfo, ScheduleRun, Schedules

ONE = ScheduleInfo(
    "sc-1", "ap-1", "report", "fu-1", "morning", "Cron('0 6 * * *')",
    next_at=(1e9, 2e9), last_status="SUCCESS", last_at=1.0,
)  # fmt: skip
TWO = ScheduleInfo("sc-2", "ap-1", "report", "fu-2", "tick", "Period(days=1)", paused=True)
OTHER = ScheduleInfo("sc-3", "ap-2", "billing", "fu-3", "tick", "Period(days=1)")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    said: list[Any] = []

    def ask(method: str, request: Any) -> Any:
        said.append((method, request))
        replies = {"schedule.list": Schedules((ONE, TWO, OTHER)), "schedule.run": ScheduleRun("fc-1")}
        return replies.get(method, Empty())

    monkeypatch.setattr(module, "ask", ask)
    return said


def run(*argv: str) -> Any:
    return CliRunner().invoke(schedule, argv)


def test_list(asked: list[Any]) -> None:
    rows = json.loads(run("list", "--json", "--next", "2", "--app", "report", "-e", "dev").output)
    assert (asked[0][1].app, asked[0][1].environment, asked[0][1].upcoming) == ("report", "dev", 2)
    assert len(rows[0]["next_runs"]) == 2 and rows[0]["last_status"] == "SUCCESS"
    assert (rows[1]["state"], rows[1]["next_runs"], rows[1]["last_run"]) == ("paused", [], None)
    assert "morning\tCron('0 6 * * *')\tactive" in run("list").output
    assert run("list", "--next", "101").exit_code == 2


def test_which_one_is_meant() -> None:
    every = (ONE, TWO, OTHER)
    for word in ("sc-1", "fu-1", "report/morning", "ap-1/morning", "morning"):
        assert matching(every, word) is ONE
    assert matching(every, "billing/tick") is OTHER
    with pytest.raises(click.UsageError, match="report/tick, billing/tick"):
        matching(every, "tick")
    with pytest.raises(click.UsageError, match="schedule list"):
        matching(every, "nothing")


def test_run_pause_resume(asked: list[Any]) -> None:
    assert "fc-1" in run("run", "morning").output
    assert run("pause", "report/tick").exit_code == 0
    assert run("resume", "sc-3").exit_code == 0
    assert run("pause", "tick").exit_code == 2
    told = [
        (method, request.schedule, getattr(request, "paused", None))
        for method, request in asked
        if method != "schedule.list"
    ]
    assert told == [
        ("schedule.run", "fu-1", None),
        ("schedule.pause", "fu-2", True),
        ("schedule.pause", "fu-3", False),
    ]
