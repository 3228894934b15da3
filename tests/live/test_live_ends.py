"""Exit hooks run at every end that somebody orders: semantics.md section 12.1. Inputs that ran then are not lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)

SHOP = """
import os, time
import cadenza

app = cadenza.App("live-ends")
NUMBER = {number}


class Leaves:
    @cadenza.exit()
    def leave(self):
        time.sleep(0.2)
        print("left", type(self).__name__, os.environ["CADENZA_TASK_ID"], flush=True)


@app.cls(scaledown_window=100)
class One(Leaves):
    @cadenza.method()
    def get(self, seconds):
        time.sleep(seconds)
        return os.environ["CADENZA_TASK_ID"]


@app.cls(scaledown_window=100)
@cadenza.concurrent(max_inputs=2)
class Many(Leaves):
    @cadenza.method()
    def get(self, seconds):
        time.sleep(seconds)
        return os.environ["CADENZA_TASK_ID"]


@app.cls(scaledown_window=100, timeout=1)
class Slow(Leaves):
    @cadenza.method()
    def get(self, seconds):
        time.sleep(seconds)
        return os.environ["CADENZA_TASK_ID"]


@app.cls(scaledown_window=100, single_use_containers=True)
class Single(Leaves):
    @cadenza.method()
    def get(self, seconds):
        return os.environ["CADENZA_TASK_ID"]
"""

CALLER = """
import json, sys, time
import cadenza

names, seconds, wait = json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "wait"
calls = [cadenza.Cls.from_name("live-ends", one)().get.spawn(seconds) for one in names]
first = [call.get(timeout=60) for call in calls] if wait else []
print(json.dumps([[call.object_id for call in calls], first]))
"""


def cli(home: Any, *words: str) -> str:
    done = home.cadenza(*words)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def spawned(home: Any, names: list[str], seconds: float, wait: bool) -> tuple[list[str], list[str]]:
    words = [sys.executable, home.program("caller.py", CALLER), json.dumps(names), str(seconds), "wait" if wait else ""]
    done = subprocess.run(words, capture_output=True, text=True, env=home.environ, cwd=home.path, timeout=90)
    assert done.returncode == 0, done.stderr
    calls, first = json.loads(done.stdout)
    return calls, first


def left(home: Any, app: str, containers: list[str], limit_s: float = 20) -> None:
    """Wait until each of these containers has said that its hook ran, and assert that it did so once."""
    until = time.monotonic() + limit_s
    while True:
        said = [one.split()[-1] for one in cli(home, "app", "logs", app, "--since", "1h").splitlines() if "left" in one]
        if set(containers) <= set(said) or time.monotonic() > until:
            assert [said.count(one) for one in containers] == [1] * len(containers), said
            return
        time.sleep(0.3)


def containers_of(home: Any) -> list[str]:
    rows = json.loads(cli(home, "container", "list", "--json"))
    return [one["container_id"] for one in rows if one["app"] == "live-ends"]


def test_each_end_that_is_ordered(home) -> None:
    program = home.program("live_ends.py", SHOP.format(number=1))
    cli(home, "deploy", program)
    app = json.loads(cli(home, "app", "info", "live-ends", "--json"))["app_id"]
    both = ["One", "Many"]

    _, there = spawned(home, ["Single"], 0, True)
    left(home, app, there)
    spawned(home, ["Slow"], 30, False)
    until = time.monotonic() + 20
    while not (there := containers_of(home)) and time.monotonic() < until:
        time.sleep(0.1)
    assert there
    left(home, app, there)

    ends: list[tuple[bool, list[str]]] = [
        (False, ["container", "stop", "-y", "--graceful"]),
        (True, ["container", "stop", "-y"]),
        (False, ["app", "rollover", "live-ends"]),
        (True, ["app", "rollover", "live-ends", "--strategy", "recreate"]),
        (True, ["deploy", program]),
    ]
    for busy, words in ends:
        _, there = spawned(home, both, 0, True)
        calls = spawned(home, both, 2, False)[0] if busy else []
        if words[0] == "deploy":
            home.program("live_ends.py", SHOP.format(number=2))
        for each in there if words[0] == "container" else [""]:
            cli(home, *words, *([each] if each else []))
        left(home, app, there)
        asks = f"import cadenza\nfor one in {calls!r}: cadenza.FunctionCall.from_id(one).get(timeout=60)"
        done = subprocess.run(
            [sys.executable, "-c", asks], capture_output=True, text=True, env=home.environ, timeout=90
        )
        assert done.returncode == 0, (words, done.stderr)

    _, there = spawned(home, both, 0, True)
    spawned(home, both, 60, False)
    cli(home, "app", "stop", "-y", "live-ends")
    left(home, app, there)
