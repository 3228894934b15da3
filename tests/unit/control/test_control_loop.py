"""The loop: sizes of pools, room on machines, what a node is told. Semantics: section 11."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "sim"))
from test_control_calls import run, sync
from world import World

from cadenza.base.resources import Resources
from cadenza.protocol.calls import SPAWN_MAP, SUCCESS, AttemptOutput
from cadenza.protocol.nodes import READY, ContainerReport, Desired, NodeReport
from cadenza.protocol.objects import FunctionSpec


def test_a_single_use_container_takes_one_input() -> None:
    async def work(world: World) -> None:
        items = await asyncio.gather(*(sync(world) for _ in range(6)))
        assert len({item.container_id for item in items}) == 6
        await asyncio.sleep(1)
        assert not world.boxes

    run(work, single_use=True, max_containers=2)


def test_the_minimum_is_there_without_any_call() -> None:
    async def work(world: World) -> None:
        await asyncio.sleep(100)
        assert len(world.boxes) == 2
        assert [one.why for one in world.calls.containers()] == ["min_containers is 2"] * 2

    run(work, min_containers=2)


def test_idle_containers_of_one_function_make_room_for_another() -> None:
    async def work(world: World) -> None:
        spec = FunctionSpec("g", resources=Resources(4000, 128))
        world.functions["g"] = spec
        world.calls.add_function("g", "ap-1", "app", spec, {})
        await sync(world)
        begun = world.loop.time()
        call_id, _ = await world.calls.submit("g", SPAWN_MAP, [(0, b"ok 0.1", None)])
        assert (await world.calls.get(call_id, 0, 55))[0].status == SUCCESS
        assert world.loop.time() - begun < 2, "long before the first function's window of 3600 s"

    run(work, scaledown_window_s=3600.0)


def test_what_waits_for_room_says_so() -> None:
    async def work(world: World) -> None:
        await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 5", None) for index in range(4)])
        await asyncio.sleep(1)
        assert "2 wait for room on a machine" in world.calls.loop.cluster.functions["f"].why
        assert world.calls.stats("f").num_total_runners == 2 and world.calls.stats("f").backlog == 2

    run(work, resources=Resources(2000, 128))


def test_memory_holds_a_window_of_a_long_queue() -> None:
    async def work(world: World) -> None:
        for _ in range(4):
            await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 0.001", None) for index in range(500)])
        function = world.calls.loop.cluster.functions["f"]
        assert len(function.ready) <= 512 and function.backlog >= 1000
        most = 0
        while world.calls.app_busy("ap-1"):
            most = max(most, len(function.ready))
            await asyncio.sleep(0.02)
        assert most <= 512 + 4 * 33 and function.backlog == 0

    run(work)


def test_revisions_only_grow_and_name_everything() -> None:
    async def work(world: World) -> None:
        told: list[Desired] = []
        want = world.want

        def record(desired: Desired) -> None:
            told.append(desired)
            want(desired)

        world.want = record  # type: ignore[method-assign]
        await asyncio.gather(*(sync(world, b"ok 1") for _ in range(3)))
        await asyncio.sleep(60)
        revisions = [one.revision for one in told]
        assert revisions == sorted(set(revisions))
        assert len(told[0].containers) == 3 and told[0].images
        assert all(
            {stop.container_id for stop in one.stops} <= {c.container_id for c in one.containers} for one in told
        )
        assert told[-1].containers == ()
        spec = told[0].containers[0]
        assert spec.wanted_at <= spec.placed_at and spec.isolation == "standard"

    run(work)


def test_words_of_those_that_hold_no_lease_fall_on_the_floor() -> None:
    async def work(world: World) -> None:
        call = asyncio.ensure_future(sync(world, b"ok 5"))
        while not any(box.running for box in world.boxes.values()):
            await asyncio.sleep(0.01)
        ((name, box),) = world.boxes.items()
        (attempt,) = box.running
        stale = attempt.rpartition(":")[0] + ":0"
        for container, said in (("ta-other", attempt), (name, stale), (name, "nonsense")):
            world.calls.take_outputs(container, [AttemptOutput(said, SUCCESS, b"wrong")])
        await asyncio.sleep(1)
        assert not call.done()
        assert (await call).status == SUCCESS

    run(work)


def test_a_container_that_gives_its_inputs_back_is_let_go() -> None:
    async def work(world: World) -> Any:
        await sync(world)
        (box,) = world.boxes.values()
        box.draining = True  # it ends by itself, and the node has not said so
        item = await sync(world)
        assert item.status == SUCCESS and item.container_id != box.spec.container_id
        assert dataclasses.asdict(item)["attempts"] == 1

    run(work)


def test_what_runs_in_a_container_that_gives_its_inputs_back_may_go_on() -> None:
    """Section 31, ``stop_fetching_inputs``: the container "exits after the running ones", however long they run."""

    async def work(world: World) -> None:
        long = asyncio.ensure_future(sync(world, b"ok 90"))
        await asyncio.sleep(1)
        ((name, box),) = world.boxes.items()
        box.draining = True
        assert (await sync(world, b"ok 0.01")).container_id != name
        item = await long
        assert (item.status, item.container_id, item.attempts) == (SUCCESS, name, 1)
        await asyncio.sleep(1)
        assert name not in world.boxes

    run(work, max_concurrent=2, target_concurrent=2, timeout_s=300.0)


def test_a_stopped_container_has_time_for_its_exit_hooks_and_its_inputs_go_on_at_once() -> None:
    """Section 12.1: exit hooks run on stops, with 30 s; section 23: "stopping a container reassigns its inputs"."""

    async def work(world: World) -> None:
        told: list[Desired] = []
        want = world.want
        world.want = lambda desired: (told.append(desired), want(desired))[1]  # type: ignore[method-assign]
        call = asyncio.ensure_future(sync(world, b"ok 2"))
        await asyncio.sleep(1)
        (name,) = world.boxes
        began = world.loop.time()
        world.calls.stop_container(name, False)
        item = await call
        assert item.status == SUCCESS and item.container_id != name
        assert world.loop.time() - began < 3, "it did not wait for the old container"
        (order,) = [one for one in told[-1].stops if one.container_id == name] or [told[1].stops[0]]
        assert (order.container_id, order.grace_s, order.drain) == (name, 30.0, False)

    run(work)


def test_a_container_that_runs_fewer_at_once_is_given_fewer() -> None:
    async def work(world: World) -> None:
        await sync(world)
        ((name, _),) = world.boxes.items()
        world.calls.report(NodeReport("no-1", (ContainerReport(name, READY, slots=1),), revision=world.revision))
        await asyncio.gather(*(sync(world, b"ok 1") for _ in range(4)))
        assert len(world.boxes) > 1, "two at a time would have fitted into one"

    run(work, max_concurrent=4, target_concurrent=4)


def test_a_fault_in_a_round_spares_everybody_else_and_does_not_spin() -> None:
    async def work(world: World) -> None:
        loop = world.calls.loop
        failed: list[str] = []
        loop.failed = lambda part, error: failed.append(str(error))  # type: ignore[method-assign]
        world.functions["g"] = FunctionSpec("g")
        world.calls.add_function("g", "ap-1", "app", world.functions["g"], {})
        serve = loop._serve

        def serve_not_g(function: Any, wants: Any) -> None:
            if function.function_id == "g":
                loop.touch("g")
                raise ValueError("no g")
            serve(function, wants)

        def raising() -> None:
            raise ValueError("no news")

        loop._serve = serve_not_g  # type: ignore[method-assign]
        loop.post(raising)
        call_id, _ = await world.calls.submit("g", SPAWN_MAP, [(0, b"ok 0.1", None)])
        assert (await sync(world)).status == SUCCESS
        assert failed[0] == "no news" and "no g" in failed
        failed.clear()
        await asyncio.sleep(10)
        assert 5 <= len(failed) <= 12
        loop._serve = serve  # type: ignore[method-assign]
        assert (await world.calls.get(call_id, 0, 5))[0].status == SUCCESS, "it is tried again, by time alone"
        due = loop.cluster.due
        loop.cluster.due = lambda now: 1 // 0  # type: ignore[assignment, method-assign, return-value]
        failed.clear()
        loop.post(raising)
        await asyncio.sleep(10)
        assert len(failed) <= 14
        loop.cluster.due = due  # type: ignore[method-assign]

    run(work)


def test_buffers_and_minimums_are_not_taken_for_others() -> None:
    async def work(world: World) -> None:
        spec = FunctionSpec("g", resources=Resources(1000, 128), buffer_containers=1)
        world.functions["g"] = spec
        world.calls.add_function("g", "ap-2", "other", spec, {})
        await world.calls.submit("g", SPAWN_MAP, [(0, b"ok 50", None)])
        await asyncio.sleep(1)
        mine = {name for name, box in world.boxes.items() if box.spec.function_id == "g"}
        assert len(mine) == 2
        await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 5", None) for index in range(9)])
        await asyncio.sleep(3)
        assert mine < set(world.boxes) and len(world.boxes) == 4

    run(work, resources=Resources(1000, 128), max_containers=9)


def test_a_function_with_nothing_to_spare_gives_nothing_up() -> None:
    async def work(world: World) -> None:
        spec = FunctionSpec("g", resources=Resources(2000, 128), timeout_s=60.0)
        world.functions["g"] = spec
        world.calls.add_function("g", "ap-2", "other", spec, {})
        await asyncio.sleep(1)
        await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 9", None) for index in range(9)])
        await world.calls.submit("g", SPAWN_MAP, [(0, b"ok 0.1", None)])
        await asyncio.sleep(1)
        assert not [one for one in world.calls.loop.cluster.containers.values() if one.stop is not None]
        assert "wait for room on a machine" in world.calls.loop.cluster.functions["g"].why

    run(work, resources=Resources(2000, 128), min_containers=2, max_containers=2, scaledown_window_s=1.0)


def test_short_inputs_do_not_start_many_containers_and_long_ones_do() -> None:
    async def work(world: World) -> None:
        begun: list[str] = []
        prepare = world._prepare

        def counted(spec: Any) -> None:
            begun.append(spec.container_id)
            prepare(spec)

        world._prepare = counted  # type: ignore[method-assign]
        await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 0.005", None) for index in range(40)])
        await asyncio.sleep(5)
        assert len(begun) <= 4
        world.functions["g"] = FunctionSpec("g", resources=Resources(125, 128))
        world.calls.add_function("g", "ap-1", "app", world.functions["g"], {})
        await world.calls.submit("g", SPAWN_MAP, [(index, b"ok 30", None) for index in range(20)])
        await asyncio.sleep(1)
        assert world.calls.stats("g").num_total_runners == 20

    run(work, resources=Resources(125, 128), max_containers=0)
