"""Classes, variants and limits in real containers: semantics.md sections 3, 10, 11.1, 12 and 33 (11, 12)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import json, os, sys, time
import cadenza

app = cadenza.App("live-classes")
HERE = lambda: os.environ["CADENZA_TASK_ID"]


class Base:
    size: int = cadenza.parameter(default=3)

    @cadenza.method()
    def inherited(self):
        return ["base", self.size]


@app.cls()
class Model(Base):
    name: str = cadenza.parameter(default="m")

    @cadenza.enter()
    def first(self):
        self.order = ["first"]

    @cadenza.enter()
    async def second(self):
        self.order.append("second")

    @cadenza.method()
    def where(self, x=0):
        return [HERE(), self.name, self.size, self.order, os.environ.get("VALUE"), x]

    @cadenza.method()
    async def double(self, x):
        return 2 * x

    @cadenza.method()
    def chain(self, x):
        return self.where.remote(self.inherited.local()[1] + x)

    @cadenza.method()
    def items(self, n):
        yield from range(n)

    @cadenza.exit()
    def bye(self):
        print("goodbye of", self.name, flush=True)


@app.cls()
@cadenza.concurrent(max_inputs=4)
class Many:
    @cadenza.method()
    def wait(self, seconds):
        time.sleep(seconds)
        return HERE()

    @cadenza.method()
    def ask(self, model, cls):
        return [model.where.remote()[1], cls(name="made here").where.remote()[1]]


@app.cls(serialized=True)
class Travels:
    @cadenza.batched(max_batch_size=3, wait_ms=500)
    def batch(self, xs):
        return [[x, len(xs)] for x in xs]


@app.function(serialized=True)
def by_value():
    other = value.with_options(env={"VALUE": "9"})
    return [Model(name="s").where.remote()[1], SMALL.where.remote()[1:3], other.remote()[1], CHANGED.remote()[1]]


@app.cls()
class Broken:
    @cadenza.enter()
    def fail(self):
        raise OSError("no model here")

    @cadenza.method()
    def get(self):
        return 1


@app.function(env={"VALUE": "base"}, max_containers=3)
def value():
    return [HERE(), os.environ.get("VALUE")]


SMALL = Model(name="small", size=1)
CHANGED = value.with_options(env={"VALUE": "8"})
TRIES = cadenza.Retries(max_retries=2, initial_delay=0.0, on=(OSError, TimeoutError), not_on=(FileNotFoundError,))


@app.function(retries=TRIES, timeout=1, max_containers=1, min_containers=0)
def flaky(kind):
    print("tried", kind, flush=True)
    if kind == "slow":
        time.sleep(30)
    raise {"os": ConnectionError, "file": FileNotFoundError, "value": ValueError}[kind](kind)


found = {}


def note(name, make):
    try:
        found[name] = make()
    except Exception as error:
        found[name] = type(error).__name__ + ": " + str(error)


def settings():
    value.autoscaler.update(max_containers=1, scaledown_window=30)
    first = value.autoscaler.settings()
    value.autoscaler.update(max_containers=None)
    return [first.max_containers, first.scaledown_window, value.autoscaler.settings().max_containers]


def stats():
    value.remote()
    found = value.get_current_stats()
    return [found.backlog, found.num_total_runners, found.num_running_inputs]


def graph():
    call = Model(name="a").chain.spawn(1)
    call.get(timeout=60)
    return [
        [one.function_name, one.status.name, [child.function_name for child in one.children]]
        for one in call.get_call_graph()
    ]


if __name__ == "__main__":
    with app.run():
        a = Model(name="a")
        note("where", lambda: a.where.remote(5))
        note("again", lambda: a.where.remote())
        note("async", lambda: a.double.remote(4))
        note("chain", lambda: a.chain.remote(4))
        note("inherited", a.inherited.remote)
        note("default", Model().where.remote)
        note("same default", Model(name="m", size=3).where.remote)
        note("items", lambda: list(a.items.remote_gen(3)))
        note("map", lambda: list(a.double.map(range(4))))
        note("spawn", lambda: a.double.spawn(8).get(timeout=60))
        note("travels", lambda: Many().ask.remote(a, Model))
        note("concurrent", lambda: len(set(Many().wait.map([0.3] * 4))))
        note("batched", lambda: list(Travels().batch.map(range(3))))
        note("batched local", lambda: Travels().batch.local([1, 2]))
        note("by value", by_value.remote)
        note("broken", Broken().get.remote)
        note("option", value.with_options(env={"VALUE": "1"}).remote)
        note("same option", value.with_options(env={"VALUE": "1"}).remote)
        note("class option", lambda: Model.with_options(env={"VALUE": "2"})(name="a").chain.remote(1))
        note("gpu", value.with_options(gpu="H100").remote)
        note("wrong", Model(name=3).where.remote)
        for kind in ("os", "file", "value", "slow"):
            note(kind, lambda: flaky.remote(kind))
        note("settings", settings)
        note("stats", stats)
        note("once", lambda: value.spawn_once("k").object_id == value.spawn_once("k").object_id)
        note("handle", lambda: list(a.double.spawn_map([1, 2], return_call=True).iter()))
        note("graph", graph)
    print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def run(make_home):
    home = make_home()
    path = home.program("classes_program.py", PROGRAM)
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, env=home.environ, timeout=280, cwd=home.path
    )
    assert "FOUND" in done.stdout, done.stdout + done.stderr + home.server_log()[-3000:]
    return home, json.loads(done.stdout.partition("FOUND")[2])


@pytest.fixture(scope="module")
def found(run):
    return run[1]


def test_order_of_events_and_parameters(found) -> None:
    """Sections 12.1 and 12.2: hooks before the first input, in order; one container for one set of parameters."""
    container, *rest = found["where"]
    assert rest == ["a", 3, ["first", "second"], None, 5]
    assert found["again"] == [container, "a", 3, ["first", "second"], None, 0]
    assert found["async"] == 8
    assert found["inherited"] == ["base", 3]
    assert found["items"] == [0, 1, 2]
    assert found["map"] == [0, 2, 4, 6]
    assert found["spawn"] == 16


def test_self_calls_its_own_pool(found) -> None:
    """``self.where.remote()`` goes to containers with the same parameters and options."""
    assert found["chain"][1:3] == ["a", 3]
    assert found["chain"][5] == 7
    assert found["class option"][1:5] == ["a", 3, ["first", "second"], "2"]


def test_defaults_share_a_pool(found) -> None:
    """Section 33 point 11."""
    assert found["default"][0] == found["same default"][0] != found["where"][0]


def test_handles_travel(found) -> None:
    assert found["travels"] == ["a", "made here"]


def test_concurrent_and_batched_classes(found) -> None:
    """Section 10."""
    assert found["concurrent"] == 1
    assert found["batched"] == [[0, 3], [1, 3], [2, 3]]
    assert found["batched local"] == [[1, 2], [2, 2]]


def test_handles_inside_of_what_travels_by_value(found) -> None:
    """Section 4: what is not hydrated when the function is pickled is found by name in the container."""
    assert found["by value"] == ["s", ["small", 1], "9", "8"]


def test_a_hook_that_fails(found) -> None:
    assert "no model here" in found["broken"]


def test_equal_options_share_a_pool(found) -> None:
    """Section 12.3 and section 33 point 12."""
    assert found["option"][1] == "1"
    assert found["option"] == found["same option"]


def test_what_is_refused(found) -> None:
    assert found["gpu"].startswith("InvalidError")
    assert "H100" in found["gpu"]
    assert found["wrong"] == "InvalidError: Model: the parameter 'name' takes str, not int"


def test_limits_at_run_time(found) -> None:
    """Section 11.1."""
    assert found["settings"] == [1, 30, None]
    assert found["stats"] == [0, 1, 0]


def test_calls_made_once_and_their_graph(found) -> None:
    assert found["once"] is True
    assert found["graph"] == [["Model.chain", "SUCCESS", ["Model.where"]]]
    assert found["handle"] == [2, 4]


def test_retries_by_exception(run) -> None:
    """Which failures are tried again: subclasses of ``on`` but not of ``not_on``, timeouts by the builtin class."""
    home, found = run
    log = home.cadenza("app", "logs", "live-classes").stdout
    assert {kind: log.count(f"tried {kind}") for kind in ("os", "file", "value", "slow")} == {
        "os": 3, "file": 1, "value": 1, "slow": 3,
    }, found  # fmt: skip
    assert found["slow"].startswith("FunctionTimeoutError")


def test_exit_hooks_ran(run) -> None:
    """Section 12.1: an exit hook runs when the app ends, and its words are in the log."""
    home, _ = run
    assert "goodbye of a" in home.cadenza("app", "logs", "live-classes").stdout
