"""Calls from submission to result, in virtual time, around the real loop and engines. Semantics: sections 3, 5 to 9."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Awaitable, Callable

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "sim"))
from world import Faults, VirtualLoop, World

from cadenza.base.errors import InvalidError, NotFoundError, OutputExpiredError, ResourceExhaustedError
from cadenza.base.resources import Resources
from cadenza.control.inputs import LARGE_INPUT_BYTES, WINDOW_INPUTS
from cadenza.protocol import nodes
from cadenza.protocol.calls import (
    CALLER_GONE_GRACE_S,
    FAILURE,
    GENERATOR,
    INIT_FAILURE,
    INTERNAL_FAILURE,
    MAP,
    MAX_SYNC_QUEUED,
    PENDING,
    RESULT_KEPT_S,
    SPAWN,
    SPAWN_MAP,
    SUCCESS,
    SYNC,
    TERMINATED,
    TIMEOUT,
    GeneratorItem,
    OutputItem,
)
from cadenza.protocol.nodes import ContainerReport, NodeReport
from cadenza.protocol.objects import FunctionSpec, RetryPolicy
from cadenza.storage.queue import WRITE_BEHIND_S


def run(work: Callable[[World], Awaitable[Any]], **spec: Any) -> Any:
    """``work(world)`` with function ``f`` and no faults but those that the test makes."""
    loop = VirtualLoop()
    world = World(1, Faults(), loop)
    world.faulty = False
    world.functions["f"] = FunctionSpec("f", **{"max_containers": 4, "scaledown_window_s": 10.0, **spec})
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> Any:
        await world.boot()
        result = await work(world)
        await world.calls.stop()
        return result

    try:
        result = loop.run_until_complete(main())
        assert not errors, errors
        return result
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def sync(world: World, value: bytes = b"ok 0.01", kind: str = SYNC, **more: Any) -> OutputItem:
    """One attached input and its output."""
    future: asyncio.Future[OutputItem] = asyncio.get_running_loop().create_future()
    await world.calls.submit(
        "f", kind, [(0, value, None)], total=1, on_output=lambda item, data: future.set_result(item), **more
    )
    return await future


def test_a_call_runs_and_leaves_nothing_behind() -> None:
    async def work(world: World) -> None:
        item = await sync(world)
        assert (item.status, item.index, item.attempts) == (SUCCESS, 0, 1)
        assert item.container_id.startswith("ta-") and item.input_id.startswith("in-") and len(item.input_id) == 25
        await world.calls._queue.flush()
        assert not world.store.inputs and not world.store.outputs and not world.store.calls
        await asyncio.sleep(60)
        assert not world.boxes, "and scales to zero"

    run(work)


def test_a_warm_call_says_that_it_waited_for_no_start() -> None:
    async def work(world: World) -> None:
        for phases in ({"boot": 0.5}, {}):
            call_id = f"fc-{'x' * 20}{len(phases):02}"
            future = asyncio.ensure_future(sync(world, call_id=call_id))
            await asyncio.sleep(0)
            if phases:
                while not any(box.state == nodes.READY for box in world.boxes.values()):
                    await asyncio.sleep(0.001)
                for container in world.calls.loop.cluster.containers.values():
                    container.report = ContainerReport(container.container_id, nodes.READY, phases=phases)
            await future
            assert (await world.calls.info(call_id)).start == phases

    run(work)


def test_detached_results_can_be_asked_for_again_and_expire() -> None:
    async def work(world: World) -> None:
        call_id, ids = await world.calls.submit("f", SPAWN, [(0, b"ok 5", None)])
        item, _ = await world.calls.get(call_id, 0, 0)
        assert (item.status, item.input_id) == (PENDING, ids[0])
        for _ in range(2):
            item, data = await world.calls.get(call_id, 0, 55)
            assert (item.status, data) == (SUCCESS, b"!")
        info = await world.calls.info(call_id)
        assert (info.inputs, info.finished, info.statuses) == (1, 1, {SUCCESS: 1})
        await asyncio.sleep(RESULT_KEPT_S + 1000)
        with pytest.raises(OutputExpiredError, match="7 days"):
            await world.calls.get(call_id, 0, 0)

    run(work)


def test_what_never_was_is_not_found() -> None:
    async def work(world: World) -> None:
        with pytest.raises(NotFoundError):
            await world.calls.get("fc-none", 0, 1)
        with pytest.raises(NotFoundError):
            await world.calls.submit("fu-none", SYNC, [])
        with pytest.raises(NotFoundError):
            await world.calls.info("fc-none")
        with pytest.raises(NotFoundError):
            await world.calls.cancel("fc-none", False)
        with pytest.raises(NotFoundError):
            world.calls.stop_container("ta-none", False)
        with pytest.raises(InvalidError):
            await world.calls.submit("f", "nonsense", [])
        call_id, _ = await world.calls.submit("f", SPAWN, [(0, b"ok 0.01", None)])
        with pytest.raises(NotFoundError, match="1 inputs"):
            await world.calls.get(call_id, 3, 1)

    run(work)


def test_outputs_come_in_order_without_gaps() -> None:
    async def work(world: World) -> None:
        values = [(0, b"ok 0.5", None), (1, b"ok 2", None), (2, b"ok 0.01", None)]
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, values)
        assert await world.calls.add(call_id, [(2, b"ok 9", None), (3, b"ok 0.01", None)])
        first, total = await world.calls.outputs(call_id, 0, None, 55)
        assert total == 4 and [item.index for item, _ in first] == [0]
        rest, _ = await world.calls.outputs(call_id, 1, None, 55)
        assert [item.index for item, _ in rest] == [1, 2, 3]
        assert await world.calls.outputs(call_id, 4, None, 55) == ([], 4)

    run(work)


def test_a_map_is_fed_in_any_order_and_ends_with_its_total() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", MAP, [], on_output=world.on_output("m"))
        await world.calls.add(call_id, [(index, b"ok 0.01", None) for index in (3, 1)])
        await world.calls.add(call_id, [(index, b"ok 0.01", None) for index in (0, 1, 2)])
        await asyncio.sleep(5)
        assert len(world.outputs) == 4
        assert (await world.calls.info(call_id)).finished == 4
        world.calls.close(call_id, 4)
        assert world.calls.app_busy("ap-1") is False
        assert not world.calls._attached

    run(work)


def test_a_flaky_input_is_retried_after_its_delay_and_spares_others() -> None:
    async def work(world: World) -> float:
        begun = world.loop.time()
        item = await sync(world, b"flaky 0.01")
        assert item.status == SUCCESS
        return world.loop.time() - begun

    assert 3.0 < run(work, retries=RetryPolicy(2, 2.0, 3.0, 10.0)) < 3.5


def test_retries_end_with_the_failure() -> None:
    async def work(world: World) -> None:
        item = await sync(world, b"fail 0.01")
        assert (item.status, item.attempts) == (FAILURE, 3)

    run(work, retries=RetryPolicy(2))


def test_a_timeout_frees_its_slot_within_five_seconds() -> None:
    async def work(world: World) -> None:
        begun = world.loop.time()
        late = asyncio.ensure_future(sync(world, b"stuck"))
        behind = asyncio.ensure_future(sync(world, b"ok 0.01"))
        item = await late
        assert item.status == TIMEOUT and "timeout of 7 s" in item.error
        assert 7.0 <= world.loop.time() - begun < 7.3
        assert (await behind).status == SUCCESS
        assert world.loop.time() - begun < 12.3

    run(work, timeout_s=7.0, max_containers=1)


def test_nothing_waits_behind_a_slow_input_while_a_container_could_start() -> None:
    async def work(world: World) -> None:
        for _ in range(5):
            await sync(world, b"ok 0.001")
        slow = asyncio.ensure_future(sync(world, b"ok 3"))
        quick = [asyncio.ensure_future(sync(world, b"ok 0.001")) for _ in range(5)]
        begun = world.loop.time()
        await asyncio.gather(*quick)
        assert world.loop.time() - begun < 1.0
        assert (await slow).status == SUCCESS

    run(work)


def test_cancelling_ends_waiting_and_running_inputs() -> None:
    async def work(world: World) -> None:
        values = [(index, b"ok 30", None) for index in range(20)]
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, values)
        other, _ = await world.calls.submit("f", SPAWN, [(0, b"ok 0.01", None)])
        await asyncio.sleep(1.0)
        await world.calls.cancel(call_id, False)
        assert (await world.calls.info(call_id)).statuses == {TERMINATED: 20}
        await world.calls.cancel(call_id, False)
        with pytest.raises(InvalidError, match="cancelled"):
            await world.calls.add(call_id, [(20, b"ok 1", None)])
        assert (await world.calls.get(other, 0, 55))[0].status == SUCCESS

    run(work)


def test_cancelling_with_containers_ends_those() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN, [(0, b"stuck", None)])
        await asyncio.sleep(1.0)
        assert len(world.boxes) == 1
        await world.calls.cancel(call_id, True)
        await asyncio.sleep(0.1)
        assert not world.boxes

    run(work)


def test_a_caller_that_is_gone_takes_its_attached_calls_along() -> None:
    async def work(world: World) -> None:
        detached, _ = await world.calls.submit("f", SPAWN, [(0, b"ok 40", None)], caller="co-1")
        heard: list[OutputItem] = []
        await world.calls.submit(
            "f", MAP, [(index, b"ok 40", None) for index in range(9)], caller="co-1",
            on_output=lambda item, data: heard.append(item),
        )  # fmt: skip
        world.calls.abandon("co-1")
        await asyncio.sleep(CALLER_GONE_GRACE_S - 1)
        assert world.calls._attached
        await asyncio.sleep(2)
        assert not world.calls._attached and not heard
        assert (await world.calls.get(detached, 0, 100))[0].status == SUCCESS
        assert not world.calls.app_busy("ap-1")

    run(work)


def test_an_app_that_ends_takes_its_inputs_and_containers_along() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 99", None) for index in range(600)])
        await asyncio.sleep(1.0)
        assert world.calls.app_busy("ap-1") and world.boxes
        world.calls.remove_app("ap-1", "stopped by a user")
        await asyncio.sleep(40)
        assert (await world.calls.info(call_id)).statuses == {TERMINATED: 600}
        assert not world.boxes and not world.calls.app_busy("ap-1") and not world.calls.loop.cluster.functions
        with pytest.raises(NotFoundError):
            await world.calls.submit("f", SPAWN, [(0, b"ok 1", None)])

    run(work)


def test_a_function_that_does_not_import_fails_its_inputs_soon() -> None:
    async def work(world: World) -> None:
        world.faulty = True
        world.faults.start_fails = 1.0
        world.start_reasons = (nodes.INIT_FAILED,)
        begun = world.loop.time()
        item = await sync(world)
        assert item.status == INIT_FAILURE and "did not start" in item.error
        assert item.container_id in world.ended, "whose traceback it is"
        assert world.loop.time() - begun < 10
        world.faulty = False
        assert (await sync(world)).status == SUCCESS, "the next input tries again"

    run(work)


def test_queued_inputs_are_limited() -> None:
    async def work(world: World) -> None:
        many = [(index, b"ok 1", None) for index in range(MAX_SYNC_QUEUED)]
        await world.calls.submit("f", MAP, many, caller="co-1")
        with pytest.raises(ResourceExhaustedError, match="Try again later"):
            await world.calls.submit("f", SYNC, [(0, b"ok 1", None)], total=1)
        await world.calls.submit("f", SPAWN, [(0, b"ok 1", None)])

    run(work)


def test_what_no_machine_can_hold_is_refused() -> None:
    async def work(world: World) -> None:
        with pytest.raises(InvalidError, match="no machine here can hold"):
            world.calls.add_function("g", "ap-1", "app", FunctionSpec("g", resources=Resources(99_000, 128)), {})

    run(work)


def test_a_full_disk_refuses_calls_and_the_next_one_works() -> None:
    async def work(world: World) -> None:
        assert (await sync(world)).status == SUCCESS
        world.store.full = True
        with pytest.raises(ResourceExhaustedError):
            await world.calls.submit("f", SPAWN, [(0, b"ok 0.01", None)])
        assert (await sync(world)).status == SUCCESS, "what nobody keeps needs no disk"
        many: list[OutputItem] = []
        large = b"ok 0.001" + b" " * LARGE_INPUT_BYTES
        await world.calls.submit(
            "f", MAP, [(index, large, None) for index in range(WINDOW_INPUTS + 3)], total=WINDOW_INPUTS + 3,
            on_output=lambda item, data: many.append(item),
        )  # fmt: skip
        await asyncio.sleep(5)
        world.store.full = False
        lost = sorted((one.index, one.status) for one in many if one.status != SUCCESS)
        assert lost == [(WINDOW_INPUTS + extra, INTERNAL_FAILURE) for extra in range(3)], "memory had no room for them"
        assert len(many) == WINDOW_INPUTS + 3
        assert (await sync(world)).status == SUCCESS
        assert not world.calls.app_busy("ap-1")

    run(work)


def test_all_small_attached_inputs_that_may_wait_go_without_the_table() -> None:
    async def work(world: World) -> None:
        assert (await sync(world)).status == SUCCESS
        world.store.full = True
        many: list[OutputItem] = []
        await world.calls.submit(
            "f", MAP, [(index, b"ok 0.001", None) for index in range(MAX_SYNC_QUEUED)], total=MAX_SYNC_QUEUED,
            on_output=lambda item, data: many.append(item),
        )  # fmt: skip
        await asyncio.sleep(60)
        world.store.full = False
        assert sorted(one.index for one in many if one.status == SUCCESS) == list(range(MAX_SYNC_QUEUED))

    run(work)


def test_an_attached_output_does_not_wait_for_the_database() -> None:
    """Section 3: nothing of an attached call outlives the process, so nobody waits for what is written of it."""

    async def work(world: World) -> None:
        world.calls._queue._latency_s = lambda: 100.0  # type: ignore[attr-defined]
        began = world.loop.time()
        assert (await sync(world)).status == SUCCESS
        assert world.loop.time() - began < 5.0

    run(work)


def test_only_what_waits_longer_than_a_write_cycle_is_written() -> None:
    async def work(world: World) -> None:
        assert (await sync(world)).status == SUCCESS
        written: list[int] = []
        keep = world.calls._queue._do_keep  # type: ignore[attr-defined]
        world.calls._queue._do_keep = lambda rows: (written.append(len(rows)), keep(rows))  # type: ignore
        assert (await sync(world, b"ok 0.01")).status == SUCCESS
        await asyncio.sleep(3 * WRITE_BEHIND_S)
        assert not written
        waiting = asyncio.ensure_future(sync(world, b"ok 1"))
        await asyncio.sleep(3 * WRITE_BEHIND_S)
        assert written == [1] and len(world.store.inputs) == 1
        assert (await waiting).status == SUCCESS
        await asyncio.sleep(3 * WRITE_BEHIND_S)
        assert not world.store.inputs

    run(work)


def test_a_machine_full_of_callers_runs_what_they_call() -> None:
    async def work(world: World) -> None:
        cores = world.capacity.cpu_milli
        world.calls.add_function("g", "ap-1", "app", FunctionSpec("g", resources=Resources(cores, 128)), {})
        world.calls.add_function("h", "ap-1", "app", FunctionSpec("h", resources=Resources(cores, 128)), {})
        item = await asyncio.wait_for(sync(world, b"nest g"), 60)
        assert item.status == SUCCESS
        await asyncio.wait_for(asyncio.gather(*(sync(world, b"nest g") for _ in range(3))), 60)
        assert world.calls.loop.cluster.nodes["no-1"].free.cpu_milli <= cores
        await asyncio.sleep(100)
        assert world.calls.loop.cluster.nodes["no-1"].free == world.capacity, "what was lent is given back"

    run(work, resources=Resources(4000, 128))


def test_a_caller_that_leaves_no_memory_is_told_why_it_waits() -> None:
    async def work(world: World) -> None:
        memory = world.capacity.memory_mib
        world.calls.add_function("g", "ap-1", "app", FunctionSpec("g", resources=Resources(125, memory)), {})
        waiting = asyncio.ensure_future(sync(world, b"nest g"))
        await asyncio.sleep(3)
        why = world.calls.loop.cluster.functions["g"].why
        assert "wait for room on a machine, where 1 containers wait for other calls and keep their memory" in why
        waiting.cancel()

    run(work, timeout_s=10.0)


def test_containers_go_beyond_their_target_only_when_there_can_be_no_more() -> None:
    """Section 8: target_inputs is what scaling aims at, max_inputs the ceiling of a burst."""

    async def work(world: World) -> None:
        await sync(world, b"ok 3")
        tasks = [asyncio.ensure_future(sync(world, b"ok 3")) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert [len(box.running) for box in world.boxes.values()] == [1, 0], "the rest waits for the second container"
        await asyncio.sleep(1.5)
        assert sorted(len(box.running) for box in world.boxes.values()) == [2, 3]
        await asyncio.gather(*tasks)

    run(work, max_containers=2, max_concurrent=4, target_concurrent=1)


def test_generators_give_each_value_once_and_in_order() -> None:
    async def work(world: World) -> None:
        got: list[int] = []
        call = asyncio.ensure_future(
            sync(world, b"ok 5", kind=GENERATOR, on_item=lambda number, data, blob: got.append(number))
        )
        while not any(box.running for box in world.boxes.values()):
            await asyncio.sleep(0.01)
        ((name, box),) = world.boxes.items()
        (attempt,) = box.running
        for numbers in ((0, 1), (1, 2), (2,)):
            world.calls.take_items(name, [GeneratorItem(attempt, number) for number in numbers])
        world.calls.take_items(name, [GeneratorItem("in-other:1", 3)])
        assert (await call).status == SUCCESS
        assert got == [0, 1, 2]

    run(work, is_generator=True)


def test_a_container_that_dies_takes_only_its_inputs_along_and_no_retries() -> None:
    async def work(world: World) -> None:
        both = [asyncio.ensure_future(sync(world, b"ok 2")) for _ in range(2)]
        await asyncio.sleep(1.0)
        world._end(next(iter(world.boxes.values())), nodes.CRASHED)  # exit code 137, and not for memory
        items = await asyncio.gather(*both)
        assert sorted(item.attempts for item in items) == [1, 2]
        assert all(item.status == SUCCESS for item in items)

    run(work)


def test_stopping_a_container_gracefully_lets_its_input_finish() -> None:
    async def work(world: World) -> None:
        call = asyncio.ensure_future(sync(world, b"ok 3"))
        await asyncio.sleep(1.0)
        (name,) = world.boxes
        world.calls.stop_container(name, True)
        await asyncio.sleep(0.01)
        (info,) = world.calls.containers("ap-1")
        assert (info.state, info.why, info.running_inputs) == ("stopping", "stopped by a user", 1)
        assert (await call).attempts == 1
        await asyncio.sleep(0.1)
        assert not world.boxes

    run(work)


def test_a_restart_goes_on_with_detached_calls_and_adopts_what_runs() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 3", None) for index in range(6)])
        await world.calls.submit("f", SYNC, [(0, b"ok 3", None)], total=1)
        await asyncio.sleep(2.0)
        before = set(world.boxes)
        world.crash()
        await asyncio.sleep(0.5)
        await world.boot()
        item, _ = await world.calls.get(call_id, 0, 0.9)
        assert item.status == SUCCESS, "it ran on, in the container that had it: begun again it would take 3 s"
        assert set(world.boxes) & before
        for index in range(6):
            assert (await world.calls.get(call_id, index, 55))[0].status == SUCCESS
        assert not world.store.inputs

    run(work)


def test_a_node_that_says_nothing_after_a_restart_has_nothing() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN, [(0, b"ok 3", None)])
        await asyncio.sleep(2.0)
        world.faults.node_dies_with_control = True
        world.crash()
        world._hello = lambda generation: None  # type: ignore[method-assign]
        begun = world.loop.time()
        await world.boot()
        assert world.loop.time() == begun, "a start waits for nobody"
        assert (await world.calls.get(call_id, 0, 6))[0].status == SUCCESS

    run(work)


def test_an_unknown_container_is_ended() -> None:
    async def work(world: World) -> None:
        await sync(world)
        spec = next(iter(world.boxes.values())).spec
        import dataclasses

        world._prepare(dataclasses.replace(spec, container_id="ta-stranger"))
        report = NodeReport("no-1", tuple(ContainerReport(name, nodes.READY) for name in world.boxes), whole=True)
        world.calls.report(report)
        await asyncio.sleep(0.1)
        assert "ta-stranger" not in world.boxes

    run(work)


def test_inputs_of_an_app_that_ended_with_the_server_end_too() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, [(index, b"ok 99", None) for index in range(600)])
        await asyncio.sleep(2.0)
        world.crash()
        spec = world.functions.pop("f")  # an ephemeral app: its functions are not loaded again
        await world.boot()
        for index in (0, 599):
            item, _ = await world.calls.get(call_id, index, 5)
            assert item.status == TERMINATED and "the app has ended" in item.error
        await asyncio.sleep(5)
        assert (await world.calls.info(call_id)).statuses == {TERMINATED: 600}
        assert not world.boxes and not world.store.inputs and not world.calls._limits.usages
        world.functions["f"] = spec

    run(work)


def test_code_that_cannot_be_cancelled_is_dead_within_five_seconds_of_its_deadline() -> None:
    async def work(world: World) -> None:
        world.cancel = lambda *args, **more: None  # type: ignore[method-assign]
        assert (await sync(world, b"stuck")).status == TIMEOUT
        ended = world.loop.time()
        (container,) = world.calls.loop.cluster.containers.values()
        while container.stop is None:
            await asyncio.sleep(0.1)
        assert container.stop_at <= ended + 4.0 + 0.1

    run(work, timeout_s=7.0, max_containers=1, max_concurrent=2)


def test_an_output_of_an_open_call_is_waited_for() -> None:
    async def work(world: World) -> None:
        call_id, _ = await world.calls.submit("f", SPAWN_MAP, [(0, b"ok 0.01", None)])
        third = asyncio.ensure_future(world.calls.get(call_id, 2, 50))
        await asyncio.sleep(5)
        assert not third.done()
        await world.calls.add(call_id, [(1, b"ok 0.01", None), (2, b"ok 0.01", None)])
        assert (await third)[0].status == SUCCESS
        assert (await world.calls.get(call_id, 3, 0.1))[0].status == PENDING
        world.calls.close(call_id, 3)
        await world.calls._queue.flush()
        with pytest.raises(NotFoundError, match="3 inputs"):
            await world.calls.get(call_id, 3, 50)

    run(work)


def test_an_idempotency_key_answers_with_the_first_call() -> None:
    async def work(world: World) -> None:
        calls = world.calls
        value = [(0, b"ok 0.1", None)]
        first, second = await asyncio.gather(
            calls.submit("f", SPAWN, value, total=1, idempotency_key="k"),
            calls.submit("f", SPAWN, [(0, b"ok 9", None)], total=1, idempotency_key="k"),
        )
        assert first == second
        assert calls._limits.of("f").detached == 1, "the other one counts nowhere"
        await calls.get(first[0], 0, 5.0)
        assert (await calls.submit("f", SPAWN, value, total=1, idempotency_key="k"))[0] == first[0]
        assert (await calls.submit("f", SPAWN, value, total=1, idempotency_key="l"))[0] != first[0]
        one, again, other = [
            (await calls.submit("f", SPAWN, value, total=1, method=name, idempotency_key="m"))[0]
            for name in ("a", "a", "b")
        ]
        assert one == again != other, "another method is another piece of work"
        with pytest.raises(InvalidError, match="256 characters"):
            await calls.submit("f", SPAWN, value, idempotency_key="k" * 257)
        await asyncio.sleep(5)
        assert calls.loop._reserved.get("f", 0) == 0

    run(work)
