"""Classes and batches that meet trouble, in real containers: semantics.md sections 4, 6, 10, 12.2, 30 and 33 (4, 6)."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import json, os, sys, threading, time
import modal

app = modal.App("live-classes-faults")


@app.cls(serialized=True)
class ByValue:
    x: int = modal.parameter(default=1)

    @modal.method()
    def times(self, v):
        return v * self.x

    @modal.method()
    def items(self, n):
        yield from range(n)

    @modal.method()
    def both(self, v):
        return [self.times.local(v), list(self.items.remote_gen(2)), self.times.remote(v)]


@app.cls()
class Wide:
    data: bytes = modal.parameter(default=b"")
    text: str = modal.parameter(default="")

    @modal.method()
    def size(self):
        return [len(self.data), len(self.text)]


@app.cls(retries=modal.Retries(max_retries=2, initial_delay=0.0))
class Tried:
    @modal.method()
    def items(self):
        yield os.environ["MODAL_TASK_ID"]
        raise ValueError("after one")


@app.function()
def ask(method):
    return method.remote()


@app.function()
@modal.concurrent(max_inputs=2)
def interrupted(x):
    time.sleep(0.1)
    raise KeyboardInterrupt


@app.function()
def dies():
    print("last words", flush=True)
    os._exit(3)


@app.cls(timeout=1)
class Late:
    @modal.method()
    def work(self):
        try:
            time.sleep(60)
        finally:
            print("late: input over", flush=True)

    @modal.exit()
    def leave(self):
        print("late: left", flush=True)


@app.function()
@modal.batched(max_batch_size=3, wait_ms=100)
def batch(xs, how):
    if how[0] == "short":
        return xs[1:]
    if how[0] == "slow":
        time.sleep(1)
    if how[0] == "lock":
        return [threading.Lock() if x == 1 else x for x in xs]
    return xs


def result(call):
    try:
        return call.get(timeout=30)
    except Exception as error:
        return type(error).__name__


def cancelled():
    calls = [batch.spawn(x, "slow") for x in range(3)]
    time.sleep(0.6)
    calls[1].cancel()
    return [result(one) for one in calls]


def mixed():
    calls = [batch.spawn(1, "ok"), batch.spawn(2, how="ok"), batch.spawn(how="ok", xs=3)]
    return [result(one) for one in calls]


def spoiled(how):
    return [type(one).__name__ for one in batch.map(range(3), kwargs={"how": how}, return_exceptions=True)]


def generated():
    found = []
    try:
        for one in Tried().items.remote_gen():
            found.append(one)
    except ValueError as error:
        found.append(str(error))
    return [len(found), found[-1]]


@app.local_entrypoint()
def main():
    began = time.time()
    slow = {"interrupted": interrupted.spawn(1), "dies": dies.spawn(), "late": Late().work.spawn()}
    found = {
        "by value": ByValue(x=3).both.remote(4),
        "wide": Wide(data=b"x" * 16384).size.remote(),
        "letters": Wide(text="\\u00e9" * 8192).size.remote(),
        "method": ask.remote(Wide(data=b"fresh").size),
        "generated": generated(),
        "cancelled": cancelled(),
        "mixed": mixed(),
        "short": spoiled("short"),
        "lock": spoiled("lock"),
        **{name: result(call) for name, call in slow.items()},
    }
    print("FOUND" + json.dumps(found) + "END")
"""


@pytest.fixture(scope="module")
def run(home):
    done = home.cadenza("run", home.program("classes_faults.py", PROGRAM))
    assert "FOUND" in done.stdout, done.stdout + done.stderr + home.server_log()[-3000:]
    return json.loads(done.stdout.partition("FOUND")[2].partition("END")[0]), done.stdout + done.stderr


def test_a_class_by_value_calls_itself(run) -> None:
    """Section 4 and 12.2: ``self.other.remote()`` of a class with ``serialized=True``."""
    assert run[0]["by value"] == [12, [0, 1], 12]


def test_parameters_at_their_limit(run) -> None:
    """Section 30: 16 KiB of values, bytes and letters that are longer as text too."""
    assert run[0]["wide"] == [16384, 0]
    assert run[0]["letters"] == [0, 8192]


def test_a_method_of_a_fresh_instance_is_an_argument(run) -> None:
    assert run[0]["method"] == [5, 0]


def test_generator_methods_are_not_tried_again(run) -> None:
    """Section 6: the items come first, then the exception; the class's retries are for its other methods."""
    assert run[0]["generated"] == [2, "after one"]


def test_batches(run) -> None:
    """Section 10: who cancels leaves; arguments by name and position; what spoils a batch or one input."""
    found = run[0]
    assert found["cancelled"] == [0, "RemoteError", 2]
    assert found["mixed"] == [1, 2, 3]
    assert found["short"] == ["InvalidError"] * 3
    assert found["lock"] == ["int", "SerializationError", "int"]


def test_ends(run) -> None:
    """Section 33 point 4; what was flushed before a crash is in the log; exit hooks after a timeout."""
    found, printed = run
    assert found["interrupted"] == found["dies"] == "RemoteError"
    assert printed.count("last words") == 3
    assert found["late"] == "FunctionTimeoutError"
    assert printed.index("late: input over") < printed.index("late: left")
