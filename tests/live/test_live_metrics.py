"""Statistics, recent inputs, metrics and their endpoint, with real containers (semantics.md sections 11.1 and 26)."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import time
import cadenza

app = cadenza.App("measured")

@app.function(max_containers=1)
def work(x):
    end = time.time() + 0.05
    while time.time() < end:
        pass
    if x == 3:
        raise ValueError("three")
    return x

@app.local_entrypoint()
def main(wait: float = 0.0):
    list(work.map(range(6), return_exceptions=True))
    stats = work.stats()
    print("STATS", stats.input_success_count, stats.input_failure_count, stats.container_started_count)
    for name, one in stats.input_percentile_stats.items():
        print("TIME", name, one.unit, one.percentiles[0].value)
    info = work.info()
    print("INFO", info.timeout, info.cpu[0], info.max_retries)
    whole = app.stats()
    print("APP", whole.functions.count, whole.functions.input_success_count, whole.lifecycle.state.value)
    found = work.metrics.export(groups=["calls"])["modal.input_events.total_inputs"]
    print("METRIC", sum(point.value or 0 for point in found.points))
    print("ID", work.object_id)
    time.sleep(wait)
"""


def words(output: str, first: str) -> list[list[str]]:
    """The lines that begin with a word, in words."""
    return [line.split()[1:] for line in output.splitlines() if line.startswith(first + " ")]


@pytest.fixture(scope="module")
def ran(make_home: Any) -> Any:
    """A home with an endpoint, whose program has run for long enough to be sampled twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = make_home(CADENZA_METRICS_ADDRESS=f"127.0.0.1:{port}", CADENZA_IDLE_STOP_S="600")
    process = home.start("run", home.program("measured.py", PROGRAM), "--wait", "35")
    page = ""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                page = reply.read().decode()
        except OSError:
            pass
        if "modal_cpu_utilization{" in page:
            break
        time.sleep(1.0)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return home, output, page


def test_the_sdk_knows_what_happened(ran: Any) -> None:
    _, output, _ = ran
    assert words(output, "STATS") == [["5", "1", "1"]]
    times = {name: (unit, float(value)) for name, unit, value in words(output, "TIME")}
    assert set(times) == {"execution_time", "queue_time", "cold_start_time"}
    assert times["execution_time"][0] == "s"
    assert 0.045 < times["execution_time"][1] < 1.0
    assert words(output, "INFO") == [["300", "0.125", "None"]]
    assert words(output, "APP") == [["1", "5", "ephemeral"]]
    assert words(output, "METRIC") == [["6.0"]]


def test_the_endpoint_shows_inputs_and_what_containers_use(ran: Any) -> None:
    _, _, page = ran
    label = 'app="measured",environment="main",function="work"'
    lines = dict(line.rpartition(" ")[::2] for line in page.splitlines() if not line.startswith("#"))
    assert lines[f'modal_input_events_total_inputs_total{{{label},status="SUCCESS"}}'] == "5.0"
    assert lines[f'modal_input_events_total_inputs_total{{{label},status="FAILURE"}}'] == "1.0"
    assert float(lines[f"modal_memory_usage{{{label}}}"]) > 1 << 20
    assert 0.0 <= float(lines[f"modal_cpu_utilization{{{label}}}"]) < 64.0
    assert float(lines[f"modal_container_started_total{{{label}}}"]) == 1.0


def test_a_restarted_server_still_knows(ran: Any) -> None:
    home, output, _ = ran
    function_id = words(output, "ID")[0][0]
    home.cadenza("down", "--force")
    rows = json.loads(home.cadenza("function", "calls", function_id, "--since", "1h", "--json").stdout)
    assert sorted(one["status"] for one in rows) == ["FAILURE"] + ["SUCCESS"] * 5
    assert {one["container_id"][:3] for one in rows} == {"ta-"}
    failed = next(one for one in rows if one["status"] == "FAILURE")
    assert "three" in failed["error"]
    stats = json.loads(home.cadenza("function", "stats", function_id, "--json").stdout)
    assert (stats["input_success_count"], stats["input_failure_count"]) == (5, 1)
    whole = json.loads(home.cadenza("app", "stats", "measured", "--json").stdout)
    assert (whole["input_success_count"], whole["state"]) == (5, "stopped")
    metrics = json.loads(home.cadenza("function", "metrics", function_id, "--json").stdout)["series"]
    assert metrics["modal.cpu.utilization"]["points"]
    assert "modal.input_events.successes" in home.cadenza("function", "metrics", function_id, "--csv").stdout
    wrong = home.cadenza("function", "calls", function_id, "-n", "3", "--since", "1h")
    assert (wrong.returncode, "cannot be combined" in wrong.stderr) == (2, True)


def test_logs_have_their_limit_of_days(ran: Any) -> None:
    home, _, _ = ran
    found = home.cadenza("app", "logs", "measured", "--since", "36d")
    assert (found.returncode, "35 days" in found.stderr) == (1, True)
    assert "ValueError: three" in home.cadenza("app", "logs", "measured", "--since", "34d", "--source", "stderr").stderr
