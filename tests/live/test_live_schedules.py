"""A schedule in real containers: while an app runs, while it is deployed, over a kill of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import time
import cadenza

app = cadenza.App("schedules-live")

@app.function(schedule=cadenza.Period(seconds=1))
def tick():
    print("tick", flush=True)

@app.function(schedule=cadenza.Cron("0 6 * * *", timezone="Europe/Vienna"))
def morning():
    print("good morning", flush=True)

@app.local_entrypoint()
def main(seconds: float = 4.0):
    time.sleep(seconds)
"""


def schedules(home) -> dict[str, Any]:
    done = home.cadenza("schedule", "list", "--next", "2", "--json")
    assert done.returncode == 0, done.stderr
    return {one["function"]: one for one in json.loads(done.stdout)}


def until(what, limit_s: float = 30.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


def test_while_an_app_runs(home) -> None:
    """Semantics 15: active for deployed apps and while `serve`/`run` is up; gone with it."""
    done = home.cadenza("run", home.program("schedules_run.py", PROGRAM), "--seconds", "8")
    assert done.returncode == 0, done.stderr + home.server_log()
    assert 2 <= len(re.findall("^tick$", done.stdout, re.MULTILINE)) <= 9, done.stdout
    assert schedules(home) == {}


def test_a_deployed_app_over_pause_run_now_and_a_killed_server(home) -> None:
    path = home.program("schedules_deploy.py", PROGRAM)
    done = home.cadenza("deploy", path)
    assert done.returncode == 0, done.stderr + home.server_log()
    try:
        until(lambda: schedules(home)["tick"]["last_status"] == "SUCCESS")
        found = schedules(home)
        assert len(found["morning"]["next_runs"]) == 2 and found["morning"]["last_run"] is None
        assert found["morning"]["schedule"] == "Cron('0 6 * * *', timezone='Europe/Vienna')"
        assert home.cadenza("schedule", "pause", "tick").returncode == 0
        assert home.cadenza("schedule", "run", "schedules-live/morning").returncode == 0
        until(lambda: schedules(home)["morning"]["last_status"] == "SUCCESS")
        stopped = schedules(home)["tick"]
        pid = home.server_pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: home.server_pid() != pid)
        time.sleep(1.5)
        found = schedules(home)  # starts a server
        assert (found["tick"]["state"], found["tick"]["last_run"]) == ("paused", stopped["last_run"])
        assert home.cadenza("schedule", "resume", "tick").returncode == 0
        until(lambda: schedules(home)["tick"]["last_run"] != stopped["last_run"])
        logs = home.cadenza("app", "logs", "schedules-live").stdout
        assert "tick" in logs and "good morning" in logs
        unknown = home.cadenza("schedule", "run", "nothing")
        assert unknown.returncode == 2 and "schedule list" in unknown.stderr
    finally:
        assert home.cadenza("app", "stop", "schedules-live", "-y").returncode == 0
    assert schedules(home) == {}


def test_a_wrong_line_is_said_at_the_deploy(home) -> None:
    """Semantics 15: cron syntax is validated by the server at deploy, not by the client."""
    wrong = home.program("schedules_wrong.py", PROGRAM.replace("0 6 * * *", "0 26 * * *"))
    done = home.cadenza("deploy", wrong)
    assert done.returncode == 1
    assert "hour" in done.stderr and "'26'" in done.stderr and "Traceback" not in done.stderr
    assert schedules(home) == {}
