"""Batches in a real runner process: semantics.md section 10."""

from __future__ import annotations

import signal
from typing import Any, Iterator, Optional

import pytest
from runner_peer import EVERY_PYTHON, Agent

from cadenza.base.errors import InvalidError
from cadenza.runner import values

SOURCE = """
def f(x, y):
    print("together", len(x))
    import cadenza
    from cadenza.runner import context
    return [(a, b, context.current_input_id()) for a, b in zip(x, y)]
"""


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent() as one:
        yield one


def send(
    agent: Agent, *calls: tuple[tuple[Any, ...], dict[str, Any]], batch: Optional[str] = "b-1", start: int = 0,
    **frame: Any,
) -> None:  # fmt: skip
    datas = [values.pack_bytes(one) for one in calls]
    ins = [
        {"a": f"in-{n}:1", "i": f"in-{n}", "c": "fc-1", "n": len(data), **({"b": batch} if batch else {})}
        for n, data in enumerate(datas, start)
    ]
    agent.send({"t": "run", "ins": ins, **frame}, *datas)


def outs(agent: Agent, count: int) -> dict[str, tuple[str, Any]]:
    found = {}
    for _ in range(count):
        header, value = agent.out()
        found[header["i"] if "i" in header else header["a"].split(":")[0]] = (header["s"], value)
    return found


@EVERY_PYTHON
@pytest.mark.parametrize("many", [1, 3])
def test_one_call_with_lists_gives_each_input_its_own(python: str, many: int) -> None:
    with Agent(python) as agent:
        agent.attach(SOURCE, batch_max=10, max_concurrent=many)
        send(agent, ((1, 2), {}), ((3,), {"y": 4}), ((), {"x": 5, "y": 6}))
        assert outs(agent, 3) == {
            "in-0": ("SUCCESS", (1, 2, "in-0")),
            "in-1": ("SUCCESS", (3, 4, "in-0")),
            "in-2": ("SUCCESS", (5, 6, "in-0")),
        }
        assert agent.text(1, "in-0") == "together 3\n"
        send(agent, ((7, 8), {}), batch=None, start=3)
        assert outs(agent, 1) == {"in-3": ("SUCCESS", (7, 8, "in-3"))}


def test_an_async_function_and_several_batches_at_once(agent: Agent) -> None:
    source = (
        "import asyncio\nbegun = []\n"
        "async def f(x):\n    begun.append(x)\n    while len(begun) < 2:\n        await asyncio.sleep(0.001)\n"
        "    return [one * 10 for one in x]\n"
    )
    agent.attach(source, is_async=True, batch_max=2, max_concurrent=2)
    send(agent, ((1,), {}), ((2,), {}), batch="one")
    send(agent, ((3,), {}), ((4,), {}), batch="two", start=2)
    assert {name: value for name, (_, value) in outs(agent, 4).items()} == {
        "in-0": 10, "in-1": 20, "in-2": 30, "in-3": 40,
    }  # fmt: skip


def test_several_batches_at_once_on_threads(agent: Agent) -> None:
    source = (
        "import threading\nbarrier = threading.Barrier(2)\n"
        "def f(x):\n    barrier.wait(10)\n    return [-one for one in x]\n"
    )
    agent.attach(source, batch_max=3, max_concurrent=2)
    send(agent, *[((n,), {}) for n in range(3)], batch="one")
    send(agent, *[((n,), {}) for n in range(3, 6)], batch="two", start=3)
    assert {name: value for name, (_, value) in outs(agent, 6).items()} == {f"in-{n}": -n for n in range(6)}


def test_one_at_a_time_runs_one_batch_at_a_time(agent: Agent) -> None:
    agent.attach("def f(x):\n    return [len(x)] * len(x)\n", batch_max=3)
    send(agent, ((1,), {}), ((2,), {}), batch="one")
    send(agent, ((3,), {}), batch="two", start=2)
    assert {name: value for name, (_, value) in outs(agent, 3).items()} == {"in-0": 2, "in-1": 2, "in-2": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 5", "must return a list with one result for each input; this one returned int"),
        ("return (1, 2)", "returned tuple"),
        ("return [1]", "this one got 2 inputs and returned 1 results"),
        ("return [1, 2, 3]", "returned 3 results"),
    ],
)
def test_what_is_no_list_of_as_many_fails_every_caller(agent: Agent, body: str, words: str) -> None:
    agent.attach(f"def f(x):\n    {body}\n", batch_max=2)
    send(agent, ((1,), {}), ((2,), {}))
    for status, value in outs(agent, 2).values():
        assert status == "FAILURE" and isinstance(value, InvalidError) and words in str(value)


@pytest.mark.parametrize(
    "other", [((1,), {}), ((1, 2, 3), {}), ((1,), {"z": 2})], ids=["too few", "too many", "another name"]
)
def test_inputs_that_pass_other_arguments_fail_every_caller(agent: Agent, other: Any) -> None:
    agent.attach("def f(x, y):\n    return x\n", batch_max=2)
    send(agent, ((1, 2), {}), other)
    for status, value in outs(agent, 2).values():
        assert status == "FAILURE" and isinstance(value, InvalidError) and "must pass the same arguments" in str(value)


def test_an_exception_fails_every_input_and_names_its_kinds(agent: Agent) -> None:
    agent.attach("def f(x):\n    raise KeyError(x)\n", batch_max=2, kinds=True)
    send(agent, ((1,), {}), ((2,), {}))
    found = [agent.out() for _ in range(2)]
    assert [(header["s"], type(value), header["kinds"][0]) for header, value in found] == [
        ("FAILURE", KeyError, "builtins.KeyError")
    ] * 2
    assert agent.text(2).count("Traceback") == 1


def test_a_result_or_an_argument_of_its_own_fails_one_alone(agent: Agent) -> None:
    agent.attach(
        "import threading\ndef f(x):\n    return [threading.Lock() if one == 2 else one for one in x]\n", batch_max=3
    )
    send(agent, ((1,), {}), ((2,), {}), ((3,), {}))
    found = outs(agent, 3)
    assert found["in-0"] == ("SUCCESS", 1) and found["in-2"] == ("SUCCESS", 3) and found["in-1"][0] == "FAILURE"
    data = values.pack_bytes(((4,), {}))
    bad = b"\xff" + data[1:]
    ins = [{"a": f"in-{n}:1", "i": f"in-{n}", "c": "fc-1", "n": len(data), "b": "b"} for n in (4, 5)]
    agent.send({"t": "run", "ins": ins}, bad, data)
    found = outs(agent, 2)
    assert found["in-4"][0] == "FAILURE" and found["in-5"] == ("SUCCESS", 4)


STUCK = """
import os, time
def f(x):
    print("begun", len(x))
    end = time.monotonic() + 30
    try:
        while not os.path.exists(x[0]) and time.monotonic() < end:
            time.sleep(0.005)
    finally:
        print("over")
    return x
"""


def test_one_that_is_cancelled_leaves_the_batch_and_the_others_go_on(agent: Agent) -> None:
    """And with the last of them the run itself is cancelled."""
    agent.attach(STUCK, batch_max=3)
    path = f"{agent.home}/go"
    send(agent, ((path,), {}), (("b",), {}), (("c",), {}))
    while "begun" not in agent.text(1):
        agent.step()
    agent.send({"t": "cancel", "a": ["in-1:1"]})
    agent.process.send_signal(signal.SIGUSR1)
    assert outs(agent, 1) == {"in-1": ("TERMINATED", None)}
    with open(path, "w"):
        pass
    assert outs(agent, 2) == {"in-0": ("SUCCESS", path), "in-2": ("SUCCESS", "c")}

    send(agent, (("never",), {}), (("e",), {}), start=3)
    while "begun 2" not in agent.text(1):
        agent.step()
    agent.send({"t": "cancel", "a": ["in-3:1", "in-4:1"]})
    agent.process.send_signal(signal.SIGUSR1)
    assert {status for status, _ in outs(agent, 2).values()} == {"TERMINATED"}
    while agent.text(1).count("over") < 2:
        agent.step()
    send(agent, ((path,), {}), start=5)
    assert outs(agent, 1) == {"in-5": ("SUCCESS", path)}


def test_an_async_batch_is_cancelled_with_its_last_input(agent: Agent) -> None:
    source = (
        "import asyncio\nasync def f(x):\n    print('begun')\n    try:\n        await asyncio.sleep(x[0])\n"
        "    except asyncio.CancelledError:\n        print('stopped')\n        raise\n    return x\n"
    )
    agent.attach(source, is_async=True, batch_max=2)
    send(agent, ((30,), {}), ((30,), {}))
    while "begun" not in agent.text(1):
        agent.step()
    agent.send({"t": "cancel", "a": ["in-0:1", "in-1:1"]})
    assert {status for status, _ in outs(agent, 2).values()} == {"TERMINATED"}
    while "stopped" not in agent.text(1):
        agent.step()
    send(agent, ((0,), {}), start=2)
    assert outs(agent, 1) == {"in-2": ("SUCCESS", 0)}


def test_a_batch_over_two_frames_is_one_run(agent: Agent) -> None:
    agent.attach("def f(x):\n    return [len(x)] * len(x)\n", batch_max=4)
    send(agent, ((1,), {}), ((2,), {}), more=True)
    send(agent, ((3,), {}), start=2)
    assert {value for _, value in outs(agent, 3).values()} == {3}
