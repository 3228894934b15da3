"""What the agent does for classes and for what user code says of its inputs. semantics.md 9, 10, 12.1, 31."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import Any

import pytest
from agent_fakes import FakeRunner, World, attempt, echo, spec

from cadenza.agent import attachment, bridge
from cadenza.protocol import nodes
from cadenza.protocol.objects import FunctionSpec, MethodSpec, RetryPolicy

CLASS: dict[str, Any] = {"name": "C.*", "qualname": "C", "methods": (MethodSpec("f"), MethodSpec("g", True, True))}


def test_the_attach_frame_says_what_a_class_is_and_nothing_that_says_nothing() -> None:
    plain = attachment.function(FunctionSpec("f", "m", "f", python="3.11"), "shop")
    assert plain == {
        "name": "f", "module": "m", "qualname": "f", "is_generator": False, "is_async": False, "max_concurrent": 1,
        "python": "3.11", "app": "shop",
    }  # fmt: skip
    found = attachment.function(
        FunctionSpec(
            **CLASS,
            module="m",
            parameters='{"x":1}',
            batch_max=3,
            interactive=True,
            retries=RetryPolicy(1, on=("a.B",)),
        ),
        "shop",
    )
    assert found["methods"] == [
        {"name": "f", "is_generator": False, "is_async": False}, {"name": "g", "is_generator": True, "is_async": True},
    ]  # fmt: skip
    assert (found["parameters"], found["batch_max"], found["kinds"], found["interactive"]) == ('{"x":1}', 3, True, True)
    assert "kinds" not in attachment.function(FunctionSpec("f", retries=RetryPolicy(1)), "shop")


def test_no_frame_ends_inside_of_a_batch_without_saying_so() -> None:
    def one(number: int, batch: str) -> Any:
        return replace(attempt(number, b"x" * (3 << 20)), batch=batch)

    frames = bridge.batches([one(0, "a"), one(1, "a"), one(2, "a"), one(3, "b"), one(4, ""), one(5, "")])
    assert [([one.index for one in batch], more) for batch, more in frames] == [
        ([0, 1], True), ([2, 3], False), ([4, 5], False),
    ]  # fmt: skip


@pytest.mark.parametrize("kinds", [(False, False), (False, True), (True, True)])
def test_a_signal_goes_to_a_class_unless_all_of_it_is_async(tmp_path: Any, kinds: tuple[bool, bool]) -> None:
    methods = tuple(MethodSpec(f"m{number}", is_async=one) for number, one in enumerate(kinds))

    def hold(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "cancel":
            runner.send({"t": "out", "outs": [{"a": one, "s": "TERMINATED"} for one in header["a"]]})
        elif header["t"] != "run":
            echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = hold
            world.want(spec("ta-1", **{**CLASS, "methods": methods}))
            await world.control.state("ta-1", nodes.READY)
            world.agent.deliver("ta-1", [attempt(0)])
            world.agent.cancel("ta-1", ["in-0:1"])
            await world.control.until(lambda: world.control.given)
            assert world.driver.signals == ([] if all(kinds) else [("ta-1", signal.SIGUSR1)])

    asyncio.run(go())


def test_a_runner_that_wants_no_more_inputs_is_drained_and_gets_none(tmp_path: Any) -> None:
    drained: list[Any] = []

    def stop(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "run":
            runner.send({"t": "slots", "n": 3})
            runner.send({"t": "stop_fetching"})
        elif header["t"] == "drain":
            drained.append(header)
        else:
            echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = stop
            world.want(spec("ta-1", max_concurrent=4))
            assert (await world.control.state("ta-1", nodes.READY)).slots == 0
            world.agent.deliver("ta-1", [attempt(0)])
            await world.control.until(lambda: world.control.containers["ta-1"].slots == 3)
            while not drained:
                await asyncio.sleep(0)
            assert drained == [{"t": "drain", "grace_s": 0}]
            world.agent.deliver("ta-1", [attempt(1)])
            await world.control.until(lambda: world.control.given)
            assert [(one.attempt_id, one.status) for _, one in world.control.given] == [("in-1:1", "REVOKED")]
            assert world.control.containers["ta-1"].state == nodes.READY  # what runs goes on

    asyncio.run(go())


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_of_the_agent_gives_exit_hooks_their_time(tmp_path: Any, leaves: bool) -> None:
    """12.1; a container without hooks is killed at once, as ever."""
    frames: list[str] = []

    def behave(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
        frames.append(header["t"])
        if header["t"] == "attach":
            runner.send({"t": "ready", "import_s": 0.0, "enter_s": 0.1, "leaves": leaves})
        else:
            echo(runner, header, payload)

    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.behave = behave
            world.want(spec("ta-1", **CLASS))
            await world.control.state("ta-1", nodes.READY)
        assert ("drain" in frames) == leaves
        assert (("ta-1", signal.SIGKILL) in world.driver.signals) != leaves

    asyncio.run(go())
