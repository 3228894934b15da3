"""Schedules as a person reads them, in ``tests/golden/schedule``. ``python tests/sim/test_sim_golden.py --rewrite``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Awaitable, Callable, Sequence

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from world import Faults, VirtualLoop, World

from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import SPAWN_MAP, SYNC, Attempt, AttemptOutput, OutputItem
from cadenza.protocol.nodes import Desired
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec, RetryPolicy

FOLDER = Path(__file__).parents[1] / "golden" / "schedule"


class Told(World):
    """A world that writes down what control and node say, with short names."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(1, Faults(), loop)
        self.faulty = False
        self.trace = True
        self._names: dict[str, str] = {}
        self._stopping: set[str] = set()

    def _say(self, text: str) -> None:
        pass  # the words below say it with more care

    def note(self, text: str) -> None:
        self.log.append(f"{self.loop.time() - 1000:8.3f}  {text}")

    def name(self, container_id: str) -> str:
        return self._names.setdefault(container_id, f"c{len(self._names) + 1}")

    def want(self, desired: Desired) -> None:
        why = {one.container_id: one.why for one in self.calls.loop.cluster.containers.values()}
        for one in desired.containers:
            if one.container_id not in self._names:
                self.note(f"start  {self.name(one.container_id)}: {why[one.container_id]}")
        for order in desired.stops:
            if order.container_id not in self._stopping:
                self._stopping.add(order.container_id)
                how = "drain" if order.drain else f"grace {order.grace_s:g} s"
                self.note(f"stop   {self.name(order.container_id)}, {how}: {order.reason}")
        super().want(desired)

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        told = ", ".join(f"{one.index}:{one.attempt_id.rpartition(':')[2]} ({one.data.decode()})" for one in attempts)
        batches = {one.batch for one in attempts if one.batch}
        how = f" in {len(batches)} batch{'es' if len(batches) > 1 else ''}" if batches else ""
        self.note(f"give   {self.name(container_id)}{how} {told}")
        super().deliver(container_id, attempts)

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        told = ", ".join(one.rpartition("0")[2] or one for one in attempt_ids)
        self.note(f"{'revoke' if revoke else 'cancel'} {self.name(container_id)} {told}")
        super().cancel(container_id, attempt_ids, revoke)

    def _put_out(self, box: Any, output: AttemptOutput) -> None:
        self.note(f"out    {self.name(box.spec.container_id)} ...{output.attempt_id[-3:]} {output.status}")
        super()._put_out(box, output)

    def _move(self, box: Any, state: str) -> None:
        if state == nodes.READY:
            self.note(f"ready  {self.name(box.spec.container_id)}")
        super()._move(box, state)

    def _end(self, box: Any, reason: str) -> None:
        if box.spec.container_id in self.boxes:
            self.note(f"gone   {self.name(box.spec.container_id)}: {reason}")
        super()._end(box, reason)


def hear(world: Told) -> Callable[[OutputItem, bytes], None]:
    def on_output(item: OutputItem, data: bytes) -> None:
        error = f": {item.error}" if item.error else ""
        world.note(f"result {item.index} {item.status} after {item.attempts}{error}")

    return on_output


async def put(world: Told, *values: str) -> str:
    for value in values:
        world.note(f"call   {value}")
    given = [(index, value.encode(), None) for index, value in enumerate(values)]
    call_id, _ = await world.calls.submit("f", SYNC, given, total=len(values), on_output=hear(world))
    return call_id


async def from_zero_and_back(world: Told) -> None:
    await put(world, "ok 1", "ok 1", "ok 1")
    await asyncio.sleep(20)


async def retry_with_doubling_delays(world: Told) -> None:
    await put(world, "fail 0.1")
    await asyncio.sleep(20)


async def timeout_of_code_that_does_not_listen(world: Told) -> None:
    await put(world, "stuck", "ok 0.1")
    await asyncio.sleep(20)


async def early_and_called_back(world: Told) -> None:
    await put(world, "ok 0.002")
    await asyncio.sleep(1)
    await put(world, "ok 0.002", "ok 2", "ok 0.002", "ok 0.002")
    await asyncio.sleep(20)


async def node_away_and_back(world: Told) -> None:
    await put(world, "ok 2", "ok 0.1")
    await asyncio.sleep(1)
    world.note("the node's connection is lost")
    world.disconnect(3.0)
    await asyncio.sleep(20)


async def restart_of_the_control_plane(world: Told) -> None:
    given = [(index, b"ok 2", None) for index in range(3)]
    call_id, _ = await world.calls.submit("f", SPAWN_MAP, given)
    world.note("spawn  3 of ok 2")
    await asyncio.sleep(1)
    world.note("the control plane is killed")
    world.crash()
    await asyncio.sleep(0.5)
    world.note("the control plane starts")
    await world.boot()
    for index in range(3):
        item, _ = await world.calls.get(call_id, index, 55)
        world.note(f"get    {index} {item.status}")
    await asyncio.sleep(20)


async def containers_that_do_not_start(world: Told) -> None:
    world.faulty, world.faults.start_fails, world.start_reasons = True, 1.0, (nodes.INIT_FAILED,)
    world.faults.late_s = 0.0
    await put(world, "ok 1")
    await asyncio.sleep(20)


async def a_long_map_leaves_room_for_others(world: Told) -> None:
    world.calls.add_function("g", "ap-2", "other", FunctionSpec("g", resources=Resources(1000, 128)), {})
    await put(world, *["ok 3"] * 12)
    await asyncio.sleep(1)
    world.note("call   of g")
    given = [(0, b"ok 0.5", None)]
    await world.calls.submit("g", SYNC, given, total=1, on_output=hear(world))
    await asyncio.sleep(0.1)
    world.note("g waits: " + world.calls.loop.cluster.functions["g"].why)
    await asyncio.sleep(30)


async def a_rolling_deploy(world: Told) -> None:
    await put(world, "ok 2", "ok 3", "ok 0.1", "ok 0.1")
    await asyncio.sleep(1)
    world.note("f is deployed anew, rolling")
    world.deploy("f", replace(world.functions["f"], env={"VERSION": "2"}), False, "rolling")
    await asyncio.sleep(20)


async def a_deploy_that_recreates(world: Told) -> None:
    await put(world, "ok 2", "ok 0.1")
    await asyncio.sleep(1)
    world.note("f is deployed anew, recreate")
    world.deploy("f", replace(world.functions["f"], env={"VERSION": "2"}), False, "recreate")
    await asyncio.sleep(40)


async def a_deploy_that_changes_limits_alone(world: Told) -> None:
    await put(world, "ok 0.1")
    await asyncio.sleep(1)
    world.note("f is deployed with min_containers=2")
    world.deploy("f", replace(world.functions["f"], min_containers=2), False, "rolling")
    await asyncio.sleep(20)


async def limits_at_run_time(world: Told) -> None:
    await put(world, *["ok 1"] * 4)
    await asyncio.sleep(1.5)
    world.note("max_containers=3")
    world.calls.scale("f", AutoscalerPatch(max_containers=3))
    await asyncio.sleep(3)
    world.note("min_containers=1, scaledown_window=3")
    world.calls.scale("f", AutoscalerPatch(min_containers=1, scaledown_window_s=3.0))
    await asyncio.sleep(10)
    world.note("back to what is declared")
    world.calls.reset_scale("f")
    await asyncio.sleep(20)


async def batches_full_and_by_their_window(world: Told) -> None:
    await put(world, "ok 1")
    await asyncio.sleep(2)
    await put(world, *["ok 0.5"] * 5)
    await asyncio.sleep(0.1)
    await put(world, "ok 0.5")
    await asyncio.sleep(20)


async def a_batch_that_times_out(world: Told) -> None:
    await put(world, "stuck", "ok 0.1", "ok 0.1")
    await asyncio.sleep(30)


async def a_crash_loop_of_a_deployed_app(world: Told) -> None:
    given = [(0, b"crash 0.1", None), (1, b"ok 0.1", None)]
    call_id, _ = await world.calls.submit("f", SPAWN_MAP, given)
    await asyncio.sleep(0.5)
    item, _ = await world.calls.get(call_id, 1, 0)
    world.note(f"get    1 {item.status}")
    await asyncio.sleep(20)
    world.note("note:  " + (world.calls.note("ap-1") or "nothing is wrong"))
    await world.calls.cancel(call_id, False)
    await asyncio.sleep(15)


async def a_deployed_app_whose_containers_do_not_start(world: Told) -> None:
    world.faulty, world.faults.start_fails, world.start_reasons = True, 1.0, (nodes.INIT_FAILED,)
    world.faults.late_s = 0.0
    await put(world, "ok 1")
    await asyncio.sleep(40)
    world.note("note:  " + world.calls.note("ap-1"))
    world.faulty = False
    await asyncio.sleep(60)


async def a_burst_of_short_inputs(world: Told) -> None:
    await put(world, "ok 0.1")
    await asyncio.sleep(20)
    world.note("it has no container; it is known to take 0.1 s")
    given = [(index, b"ok 0.1", None) for index in range(20)]
    await world.calls.submit("f", SPAWN_MAP, given)
    await asyncio.sleep(20)


Play = Callable[[Told], Awaitable[None]]
STORIES: dict[str, tuple[Play, dict[str, Any]]] = {
    "from_zero_and_back": (from_zero_and_back, {"max_containers": 2}),
    "retry_with_doubling_delays": (retry_with_doubling_delays, {"retries": RetryPolicy(2, 2.0, 2.0)}),
    "timeout_of_code_that_does_not_listen": (timeout_of_code_that_does_not_listen, {"max_containers": 1}),
    "early_and_called_back": (early_and_called_back, {}),
    "node_away_and_back": (node_away_and_back, {"max_containers": 1}),
    "restart_of_the_control_plane": (restart_of_the_control_plane, {"max_containers": 1}),
    "containers_that_do_not_start": (containers_that_do_not_start, {}),
    "a_long_map_leaves_room_for_others": (
        a_long_map_leaves_room_for_others,
        {"resources": Resources(1000, 128), "max_containers": 99},
    ),
    "a_rolling_deploy": (a_rolling_deploy, {"max_containers": 2}),
    "a_deploy_that_recreates": (a_deploy_that_recreates, {"max_containers": 3}),
    "a_deploy_that_changes_limits_alone": (a_deploy_that_changes_limits_alone, {"max_containers": 2}),
    "limits_at_run_time": (limits_at_run_time, {"max_containers": 1}),
    "batches_full_and_by_their_window": (
        batches_full_and_by_their_window,
        {"batch_max": 4, "batch_wait_ms": 200, "max_containers": 2},
    ),
    "a_batch_that_times_out": (a_batch_that_times_out, {"batch_max": 3, "retries": RetryPolicy(1)}),
    "a_crash_loop_of_a_deployed_app": (a_crash_loop_of_a_deployed_app, {"max_containers": 1}),
    "a_deployed_app_whose_containers_do_not_start": (a_deployed_app_whose_containers_do_not_start, {}),
    "a_burst_of_short_inputs": (a_burst_of_short_inputs, {"resources": Resources(125, 128)}),
}


def transcript(name: str) -> str:
    """What happens in a story, one line an event: seconds, who, what."""
    play, spec = STORIES[name]
    loop = VirtualLoop()
    world = Told(loop)
    world.functions["f"] = FunctionSpec("f", **{"timeout_s": 5.0, "scaledown_window_s": 10.0, **spec})

    async def main() -> None:
        world.deployed = "deployed" in name
        await world.boot()
        await play(world)
        await world.calls.stop()

    try:
        loop.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    return "\n".join(world.log) + "\n"


@pytest.mark.parametrize("name", STORIES)
def test_schedule_is_as_written(name: str) -> None:
    assert transcript(name) == (FOLDER / f"{name}.txt").read_text(), "if this is meant: run this file with --rewrite"


def test_every_transcript_has_its_story() -> None:
    found = {path.stem for path in FOLDER.glob("*.txt") if not path.stem.startswith("placement_")}
    assert found == set(STORIES)


if __name__ == "__main__":
    if "--rewrite" not in sys.argv:
        sys.exit("usage: test_sim_golden.py --rewrite")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for one in STORIES:
        (FOLDER / f"{one}.txt").write_text(transcript(one))
