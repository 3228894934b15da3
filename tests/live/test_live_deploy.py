"""Deployed apps in real containers: from one process into others, under load, across crashes. semantics.md 23."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import os, time
import cadenza

app = cadenza.App({name!r})

@app.function(max_containers=3, scaledown_window=10)
def work(x, seconds=0.0):
    time.sleep(seconds)
    return ({version!r}, x)

@app.function(max_containers=1, scaledown_window=10)
def outer(x):
    return work.remote(x)
"""
MORE = """

@app.function(scaledown_window=10)
def more(x):
    return x
"""


def write(home, name: str, version: str = "v1", more: str = "") -> str:
    return home.program(f"{name.replace('-', '_')}.py", PROGRAM.format(name=name, version=version) + more)


def deploy(home, path: str, *options: str) -> str:
    done = home.cadenza("deploy", path, *options, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr + home.server_log()[-3000:]
    return done.stdout


def python(home, text: str, timeout: float = 120) -> str:
    """Run a program that does not have the app's own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=timeout, env=home.environ, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + home.server_log()[-3000:]
    return done.stdout.strip()


def start(home, text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=home.environ, cwd="/",
    )  # fmt: skip


def versions(home, name: str) -> list[int]:
    return [one["version"] for one in json.loads(home.cadenza("app", "history", name, "--json").stdout)]


def test_another_process_calls_what_was_deployed(home) -> None:
    path = write(home, "called")
    deploy(home, path)
    text = (
        "import cadenza\nf = cadenza.Function.from_name('called', 'work')\nprint(f.remote(3))\n"
        "print(cadenza.Function.from_name('called', 'outer').remote(4))\n"
        "print(sorted(f.map(range(5))) == [('v1', n) for n in range(5)])"
    )
    assert python(home, text).split("\n") == ["('v1', 3)", "('v1', 4)", "True"]


def test_an_unchanged_deploy_does_nothing_and_is_quick(home) -> None:
    """The issue: under 1.0 s for the whole command."""
    path = write(home, "same")
    deploy(home, path)
    took = []
    for _ in range(3):
        began = time.monotonic()
        deploy(home, path)
        took.append(time.monotonic() - began)
    assert versions(home, "same") == [1]
    assert min(took) < 1.0, took


def test_a_new_version_a_rollback_and_a_removal(home) -> None:
    path = write(home, "moves", "v1", MORE)
    deploy(home, path)
    ask = "import cadenza\nprint(cadenza.Function.from_name('moves', 'work').remote(1))"
    assert python(home, ask) == "('v1', 1)"
    deploy(home, write(home, "moves", "v2"))
    assert python(home, ask) == "('v2', 1)"
    gone = (
        "import cadenza\ntry:\n    cadenza.Function.from_name('moves', 'more').remote(1)\n"
        "except cadenza.exception.NotFoundError as error:\n    print(error)"
    )
    assert "has no function 'more'; it has outer, work" in python(home, gone)
    pinned = "import cadenza\nprint(cadenza.Function.from_name('moves', 'outer', version=1).remote(1))"
    assert python(home, pinned) == "('v1', 1)"
    done = home.cadenza("app", "rollback", "moves")
    assert done.returncode == 0, done.stderr
    assert python(home, ask) == "('v1', 1)"
    assert python(home, gone.replace("print(error)", "raise").replace("remote(1)", "hydrate()")) == ""
    assert versions(home, "moves") == [3, 2, 1]
    assert home.cadenza("app", "stop", "moves", "--yes").returncode == 0
    assert "stopped" in home.cadenza("app", "list").stdout


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_redeploys_under_load_lose_no_input(home, strategy: str) -> None:
    """semantics.md sections 3.4 and 23: a stream of calls while the app is deployed five times; each gives its result,
    and a call made after a deploy runs in the new version."""
    name = f"load-{strategy}"
    deploy(home, write(home, name, "v0"))
    load = start(
        home,
        f"""
import sys, threading, time
import cadenza
f = cadenza.Function.from_name({name!r}, "work")
stop = threading.Event()
spawned, direct, failures = [], [], []

def spawn():
    n = 0
    while not stop.is_set():
        spawned.append((n, f.spawn(n, 0.05)))
        n += 1
        time.sleep(0.03)

def call():
    n = 0
    while not stop.is_set():
        try:
            direct.append((n, f.remote(n, 0.02)))
        except Exception as error:
            failures.append(repr(error))
        n += 1

threads = [threading.Thread(target=one) for one in (spawn, call, call)]
for one in threads:
    one.start()
print("begun", flush=True)
sys.stdin.readline()
stop.set()
for one in threads:
    one.join()
results = [(n, call.get(timeout=60)) for n, call in spawned]
wrong = [one for one in results + direct if one[1][1] != one[0]]
print(len(results), len(direct), len(wrong), failures[:3], sorted({{one[1][0] for one in results + direct}}))
""",
    )
    assert load.stdout is not None
    assert load.stdout.readline() == "begun\n", load.communicate()[1]
    ask = f"import cadenza\nprint(cadenza.Function.from_name({name!r}, 'work').remote(1)[0])"
    for number in range(1, 6):
        deploy(home, write(home, name, f"v{number}"), "--strategy", strategy)
        assert python(home, ask) == f"v{number}"
    out, error = load.communicate("\n", timeout=120)
    assert load.returncode == 0, error
    spawned, direct, wrong, rest = out.split(" ", 3)
    assert int(spawned) > 20 and int(direct) > 20 and wrong == "0", out
    assert rest.startswith("[] "), f"calls failed: {rest}"
    assert "'v0'" in rest and "'v5'" in rest
    assert versions(home, name) == [6, 5, 4, 3, 2, 1]
    home.cadenza("app", "stop", name, "--yes")


@pytest.mark.parametrize(("strategy", "ended_by"), [("rolling", "v1"), ("recreate", "v2")])
def test_what_runs_goes_on_or_runs_again(home, strategy: str, ended_by: str) -> None:
    """Rolling: what runs ends where it is. Recreate: it runs again in the new version."""
    name = f"runs-{strategy}"
    deploy(home, write(home, name, "v1"))
    find = f"import cadenza, time\nf = cadenza.Function.from_name({name!r}, 'work')\n"
    call = python(
        home,
        find + "call = f.spawn(7, 5)\nwhile not f.get_current_stats().num_running_inputs:\n    time.sleep(0.05)\n"
        "time.sleep(0.5)\nprint(call.object_id)",
    )
    deploy(home, write(home, name, "v2"), "--strategy", strategy)
    found = python(home, f"import cadenza\nprint(cadenza.FunctionCall.from_id({call!r}).get(timeout=60))")
    assert found == f"({ended_by!r}, 7)"
    home.cadenza("app", "stop", name, "--yes")


def test_two_deploys_at_once_are_both_whole(home) -> None:
    first, second = write(home, "twice", "one"), write(home, "twice2", "two")
    with open(second) as file:
        text = file.read().replace("'twice2'", "'twice'")
    with open(second, "w") as file:
        file.write(text)
    both = [home.start("deploy", one) for one in (first, second)]
    for one in both:
        _, error = one.communicate(timeout=100)
        assert one.returncode == 0, error
    assert versions(home, "twice") == [2, 1]
    said = python(home, "import cadenza\nprint(cadenza.Function.from_name('twice', 'work').remote(1)[0])")
    assert said in ("one", "two")
    whole = python(home, "import cadenza\nprint(cadenza.Function.from_name('twice', 'outer').remote(1)[0])")
    assert whole == said


def test_spawned_inputs_outlive_a_server_that_is_killed(make_home) -> None:
    """semantics.md section 3.4: asynchronous inputs of a deployed app are executed, whatever happened meanwhile."""
    home = make_home()
    deploy(home, write(home, "kill", "v1"))
    calls = python(
        home,
        "import cadenza, json\nf = cadenza.Function.from_name('kill', 'work')\n"
        "print(json.dumps([f.spawn(n, 0.3).object_id for n in range(40)]))",
    )
    pid = home.server_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    results = python(
        home,
        f"import cadenza, json\ncalls = {calls}\n"
        "print(json.dumps([cadenza.FunctionCall.from_id(one).get(timeout=100)[1] for one in calls]))",
        timeout=200,
    )
    assert json.loads(results) == list(range(40))
    assert home.server_pid() != pid
    assert versions(home, "kill") == [1]


def test_a_deployed_app_lets_an_idle_server_stop_and_comes_back(make_home) -> None:
    home = make_home(CADENZA_IDLE_STOP_S="1")
    path = home.program(
        "idle.py",
        "import cadenza\napp = cadenza.App('idle')\n@app.function(scaledown_window=2)\ndef f(x):\n    return x\n",
    )
    deploy(home, path)
    assert python(home, "import cadenza\nprint(cadenza.Function.from_name('idle', 'f').remote(1))") == "1"
    until = time.monotonic() + 40
    while home.server_pid() is not None and time.monotonic() < until:
        time.sleep(0.2)
    assert home.server_pid() is None
    assert python(home, "import cadenza\nprint(cadenza.Function.from_name('idle', 'f').remote(2))") == "2"
