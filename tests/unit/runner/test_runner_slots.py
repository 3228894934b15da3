"""User code changes how many inputs its container takes: semantics.md section 31."""

from __future__ import annotations

import pytest
from runner_peer import Agent

from cadenza.base.errors import InvalidError
from cadenza.runner import slots

SLOTS = "from cadenza.runner import slots\n"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_concurrent_function_takes_fewer_and_then_more(is_async: bool) -> None:
    source = SLOTS + (
        "import asyncio, threading\nrunning = []\ngo = threading.Event()\n"
        "def f(n):\n"
        "    if n:\n        slots.set_local_input_concurrency(n)\n        return slots.get_local_input_concurrency()\n"
        "    running.append(1)\n    print('runs')\n    go.wait(30)\n"
        "async def g(n):\n"
        "    if n:\n        return f(n)\n"
        "    print('runs')\n    await asyncio.sleep(30)\n"
    )
    with Agent() as agent:
        agent.attach(source, "g" if is_async else "f", max_concurrent=3, is_async=is_async)
        assert agent.call(2) == 2
        assert agent.order.count("slots") == 1
        agent.run((0,), (0,), (0,), start=1)
        while agent.text().count("runs") < 2:
            agent.step()
        agent.run((3,), start=4)
        agent.send({"t": "revoke", "a": ["in-3:1"]})
        header, _ = agent.out()
        assert (header["a"], header["s"]) == ("in-3:1", "REVOKED")  # it waited: two ran at once


def test_numbers_out_of_range_are_refused() -> None:
    with Agent() as agent:
        agent.attach(SLOTS + "def f(n):\n    slots.set_local_input_concurrency(n)\n", max_concurrent=3)
        for number, value in enumerate((0, 4, True, "2")):
            agent.run((value,), start=number)
            header, error = agent.out()
            assert header["s"] == "FAILURE" and isinstance(error, InvalidError)
    with Agent() as agent:
        agent.attach(SLOTS + "def f(n):\n    slots.set_local_input_concurrency(n)\n")
        agent.run((2,))
        assert "without @concurrent" in str(agent.out()[1])
        agent.call(1)


def test_no_more_inputs_is_a_frame_of_its_own() -> None:
    with Agent() as agent:
        agent.attach(SLOTS + "def f():\n    slots.stop_fetching_inputs()\n    return 1\n")
        agent.run(())
        assert agent.out()[1] == 1
        assert agent.order.count("stop_fetching") == 1


def test_outside_of_a_container_there_are_no_inputs() -> None:
    for call in (slots.stop_fetching_inputs, slots.get_local_input_concurrency):
        with pytest.raises(InvalidError, match="in a container"):
            call()
