"""What the commands of statistics print, from what a server would say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from cadenza.cli import logs, stats
from cadenza.protocol.functions import FunctionInputs, InputRow, InputRows
from cadenza.protocol.stats import Distribution, MetricQuery, Metrics, MetricSeries, Stats, StatsQuery

SERIES = MetricSeries("modal.cpu.utilization", "cores", "avg", "CPU", (0.0, 120.0), (0.5, 1.0))
ROW = InputRow("in-1", "fc-1", "fu-1", "FAILURE", 100.0, 101.0, 101.5, "ta-1", "", 2, "Traceback\nValueError: no")


@pytest.fixture
def asked(monkeypatch: Any) -> list[Any]:
    found: list[Any] = []
    replies = {
        "stats.read": Stats(0.0, 60.0, 3, 1, 2, inputs={"queue_time": Distribution("s", {"50": 0.25, "99": 2.0})}),
        "metric.read": Metrics(0.0, 180.0, 60.0, (SERIES,)),
        "function.inputs": InputRows((ROW,)),
    }

    def ask(method: str, request: Any, start: bool = True) -> Any:
        found.append(request)
        return replies[method]

    monkeypatch.setattr(stats, "ask", ask)
    return found


def run(command: Any, *argv: str) -> str:
    result = CliRunner().invoke(command, list(argv), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.output)


def refused(command: Any, *argv: str) -> str:
    result = CliRunner().invoke(command, list(argv))
    assert result.exit_code == 2
    return str(result.output)


def test_stats(asked: list[Any]) -> None:
    shown = run(stats.function_stats, "fu-1", "--container", "ta-1", "--all-variants")
    assert "250 ms" in shown
    found = json.loads(run(stats.function_stats, "fu-1", "--json"))
    assert [found[f"input_{one}_count"] for one in ("success", "failure", "timeout")] == [3, 1, 2]
    assert found["input_percentile_stats"]["queue_time"]["percentiles"] == {"50": 0.25, "99": 2.0}
    assert asked[0] == StatsQuery("fu-1", container="ta-1", all_variants=True)
    assert "before" in refused(stats.function_stats, "fu-1", "--since", "1h", "--until", "2h")


def test_metrics(asked: list[Any]) -> None:
    assert "modal.cpu.utilization" in run(stats.function_metrics, "fu-1", "--group", "cpu", "--bucket-size", "1h")
    assert asked[0] == MetricQuery("fu-1", bucket_s=3600.0, groups=("cpu",))
    lines = run(stats.function_metrics, "fu-1", "--csv").splitlines()
    assert lines[0] == "time,metric,aggregation,unit,value"
    assert lines[1].endswith(",modal.cpu.utilization,avg,cores,0.5")
    points = json.loads(run(stats.function_metrics, "fu-1", "--json"))["series"]["modal.cpu.utilization"]["points"]
    assert [one["value"] for one in points] == [0.5, 1.0]
    assert "not both" in refused(stats.function_metrics, "fu-1", "--json", "--csv")
    refused(stats.function_metrics, "fu-1", "--group", "disk")


def test_calls(asked: list[Any]) -> None:
    shown = run(stats.function_calls, "fu-1", "--show-function-call-id")
    assert ("fc-1" in shown, "ValueError: no" in shown, "Traceback" in shown) == (True, True, False)
    assert asked[0] == FunctionInputs("fu-1", 10)
    assert json.loads(run(stats.function_calls, "fu-1", "--json"))[0]["attempts"] == 2
    assert "cannot be combined" in refused(stats.function_calls, "fu-1", "-n", "3", "--since", "1h")


def test_bars_leave_gaps() -> None:
    assert stats.bars([None, 0.0, 4.0, 8.0]) == " ▁▄█"
    assert stats.bars([0.0]) == "▁"


def test_lines_end_at_line_feeds_only() -> None:
    assert logs.lines_of("a\rb\nc\u2028d") == ["a\rb\n", "c\u2028d"]
