"""Functions published, replaced, limited and taken away. Semantics: sections 7, 11.1, 12.1 and 23."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "sim"))
from test_control_calls import run, sync
from world import World

from cadenza.base.errors import InvalidError, NotFoundError
from cadenza.base.resources import Gpu
from cadenza.protocol.calls import FAILURE, INIT_FAILURE, PENDING, SPAWN_MAP, SUCCESS, TERMINATED
from cadenza.protocol.functions import AutoscalerSettings
from cadenza.protocol.nodes import CRASHED, READY
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec, RetryPolicy
from cadenza.scheduling.states import ContainerState, FunctionState


async def spawn(world: World, *values: bytes) -> str:
    given = [(index, value, None) for index, value in enumerate(values)]
    return (await world.calls.submit("f", SPAWN_MAP, given))[0]


def test_a_rolling_deploy_under_load_loses_nothing_and_begins_nothing_in_the_old_version() -> None:
    """semantics.md section 33.15. The world itself raises when an input begins in an old container."""

    async def work(world: World) -> None:
        call_id = await spawn(world, *[b"ok 0.3"] * 40)
        for version in range(3):
            await asyncio.sleep(0.7)
            world.deploy("f", replace(world.functions["f"], env={"V": str(version)}), False, "rolling")
            assert world.calls.old_containers("ap-1") > 0
        await asyncio.sleep(20)
        found, _ = await world.calls.outputs(call_id, 0, None, 0)
        assert [item.status for item, _ in found] == [SUCCESS] * 40
        assert {item.attempts for item, _ in found} == {1}
        assert world.calls.old_containers("ap-1") == 0

    run(work)


def test_recreating_again_and_again_costs_an_input_nothing() -> None:
    async def work(world: World) -> None:
        call_id = await spawn(world, b"ok 2")
        for version in range(12):
            await asyncio.sleep(0.5)
            world.deploy("f", replace(world.functions["f"], env={"V": str(version)}), False, "recreate")
        item, _ = await world.calls.get(call_id, 0, 30)
        assert (item.status, item.attempts) == (SUCCESS, 1)

    run(work, max_containers=0)


@pytest.mark.parametrize(("change", "old"), [({"max_containers": 7, "buffer_containers": 1}, 0), ({"timeout_s": 9}, 1)])
def test_limits_alone_replace_no_container(change: dict[str, Any], old: int) -> None:
    async def work(world: World) -> None:
        await sync(world)
        world.deploy("f", replace(world.functions["f"], **change), False, "rolling")
        assert world.calls.old_containers("ap-1") == old
        world.deploy("f", world.functions["f"], False, "rolling")
        assert world.calls.old_containers("ap-1") == old, "nothing has changed"
        world.deploy("f", world.functions["f"], True, "rolling")
        assert world.calls.old_containers("ap-1") == old + (1 - old), "a rollover renews all"

    run(work)


def test_each_container_keeps_the_limits_that_it_was_started_with() -> None:
    """An input that began before the deploy may run as long as it might then."""

    async def work(world: World) -> None:
        task = asyncio.ensure_future(sync(world, b"ok 5"))
        await asyncio.sleep(1)
        world.deploy("f", replace(world.functions["f"], timeout_s=1.0), False, "rolling")
        assert (await task).status == SUCCESS

    run(work, timeout_s=20.0)


def test_one_function_is_taken_away() -> None:
    async def work(world: World) -> None:
        world.functions["g"] = FunctionSpec("g", max_containers=1)
        world.calls.add_function("g", "ap-1", "app", world.functions["g"], {})
        given = [(index, b"ok 5", None) for index in range(3)]
        call_id, _ = await world.calls.submit("g", SPAWN_MAP, given)
        await asyncio.sleep(1)
        world.calls.remove_function("g", "the new version has no g")
        for index in range(3):
            item, _ = await world.calls.get(call_id, index, 5)
            assert (item.status, item.error) == (TERMINATED, "the new version has no g")
        with pytest.raises(NotFoundError):
            await world.calls.submit("g", SPAWN_MAP, given)
        assert (await sync(world)).status == SUCCESS
        await asyncio.sleep(40)
        assert "g" not in world.calls.loop.cluster.functions

    run(work)


def test_a_strategy_that_is_none_changes_nothing() -> None:
    async def work(world: World) -> None:
        with pytest.raises(InvalidError, match="known are rolling, recreate"):
            world.calls.add_function("f", "ap-1", "app", FunctionSpec("f", env={"A": "1"}), {}, strategy="sudden")
        assert world.calls.loop.cluster.functions["f"].spec == world.functions["f"]

    run(work)


def test_a_variant_keeps_no_containers_warm() -> None:
    """semantics.md section 12.3."""

    async def work(world: World) -> None:
        spec = FunctionSpec("v", min_containers=3)
        world.calls.add_function("v", "ap-1", "app", spec, {}, base_id="f")
        await asyncio.sleep(1)
        assert world.calls.stats("v").num_total_runners == 0

    run(work)


# --- limits at run time ---


def test_limits_at_run_time_change_what_is_given_and_last_until_a_deploy() -> None:
    """semantics.md section 11.1."""

    async def work(world: World) -> None:
        calls = world.calls
        assert calls.settings("f") == AutoscalerSettings(0, 4, 0, 10.0)
        calls.scale("f", AutoscalerPatch(buffer_containers=2), ())
        calls.scale("f", AutoscalerPatch(scaledown_window_s=30.0), ("max_containers",))
        assert calls.settings("f") == AutoscalerSettings(0, None, 2, 30.0)
        calls.scale("f", AutoscalerPatch(max_containers=9))
        assert calls.settings("f") == AutoscalerSettings(0, 9, 2, 30.0)
        world.deploy("f", world.functions["f"], False, "rolling")
        assert calls.settings("f") == AutoscalerSettings(0, 9, 2, 30.0), "a deploy without a change is none"
        world.deploy("f", replace(world.functions["f"], max_containers=5), False, "rolling")
        assert calls.settings("f") == AutoscalerSettings(0, 5, 0, 10.0)
        calls.scale("f", AutoscalerPatch(max_containers=9))
        calls.reset_scale("f")
        assert calls.settings("f") == AutoscalerSettings(0, 5, 0, 10.0)

    run(work)


@pytest.mark.parametrize(
    ("patch", "unset", "text"),
    [
        (AutoscalerPatch(min_containers=5), (), "min_containers 5 is more than max_containers 4"),
        (AutoscalerPatch(max_containers=0), (), "between 1 and 4000"),
        (AutoscalerPatch(max_containers=4001), (), "between 1 and 4000"),
        (AutoscalerPatch(min_containers=-1), (), "between 0 and 4000"),
        (AutoscalerPatch(buffer_containers=4001), (), "between 0 and 4000"),
        (AutoscalerPatch(scaledown_window_s=1.9), (), "between 2 and 3600"),
        (AutoscalerPatch(scaledown_window_s=3601), (), "between 2 and 3600"),
        (AutoscalerPatch(scaledown_window_s=float("nan")), (), "between 2 and 3600"),
        (AutoscalerPatch(max_containers=3), ("max_containers",), "both set and unset"),
        (AutoscalerPatch(), ("cpu",), "no limit named 'cpu'"),
    ],
)
def test_limits_that_cannot_be_change_nothing(patch: AutoscalerPatch, unset: Sequence[str], text: str) -> None:
    async def work(world: World) -> None:
        before = world.calls.settings("f")
        with pytest.raises(InvalidError, match=text):
            world.calls.scale("f", patch, unset)
        assert world.calls.settings("f") == before
        with pytest.raises(NotFoundError):
            world.calls.scale("fu-none", AutoscalerPatch())

    run(work)


def test_what_runs_and_what_could() -> None:
    async def work(world: World) -> None:
        await spawn(world, *[b"ok 5"] * 6)
        await asyncio.sleep(1)
        found = world.calls.stats("f")
        assert (found.backlog, found.num_total_runners, found.num_running_inputs) == (2, 1, 4)
        assert found.input_headroom == 0
        await asyncio.sleep(5.5)
        assert world.calls.stats("f").input_headroom == 2

    run(work, max_containers=1, max_concurrent=4, target_concurrent=4)


# --- what goes wrong ---


def test_variables_that_cannot_be_had_fail_the_start_by_the_user_s_fault() -> None:
    async def work(world: World) -> None:
        def refuse(spec: FunctionSpec, environment: str) -> dict[str, str]:
            raise NotFoundError(f"there is no secret 'db' in {environment}")

        world.calls.loop.variables = refuse
        item = await sync(world)
        assert item.status == INIT_FAILURE and "there is no secret 'db' in main" in item.error
        assert world.boxes == {}
        world.calls.loop.variables = lambda spec, environment: {"A": environment}
        assert (await sync(world)).status == SUCCESS
        (box,) = world.boxes.values()
        assert (box.spec.env, box.spec.environment) == ({"A": "main"}, "main")

    run(work)


def test_in_a_deployed_app_what_waits_outlives_containers_that_do_not_start() -> None:
    """semantics.md section 12.1: crash-loop backoff in place of failures; the app's note says so."""

    async def work(world: World) -> None:
        world.calls.add_function("f", "ap-1", "app", world.functions["f"], {}, ephemeral=False)
        world.faulty, world.faults.start_fails = True, 1.0
        call_id = await spawn(world, b"ok 0.1")
        await asyncio.sleep(100)
        assert (await world.calls.get(call_id, 0, 0))[0].status == PENDING
        assert "containers failed to start one after the other" in world.calls.note("ap-1")
        assert (
            8
            < world.calls.loop.cluster.functions["f"].start_failures
            + world.calls.loop.cluster.functions["f"].internal_failures
            < 16
        )
        world.faulty = False
        assert (await world.calls.get(call_id, 0, 70))[0].status == SUCCESS
        assert world.calls.note("ap-1") == ""

    run(work)


def test_in_an_ephemeral_app_everything_fails_when_every_container_crashes() -> None:
    """semantics.md section 7: retried until the failure rate is too high, and then all pending inputs fail."""

    async def work(world: World) -> None:
        call_id = await spawn(world, *[b"crash 0.01"] * 100)
        await asyncio.sleep(60)
        found, _ = await world.calls.outputs(call_id, 0, None, 0)
        texts = [item.error for item, _ in found]
        assert [item.status for item, _ in found] == [FAILURE] * 100
        assert sum("10 containers crashed one after the other" in one for one in texts) > 50
        assert len(world.ended) < 40

    run(work, max_containers=2)


def test_one_crashing_input_takes_no_other_with_it() -> None:
    async def work(world: World) -> None:
        call_id = await spawn(world, b"crash 0.01", *[b"ok 0.2"] * 20)
        await asyncio.sleep(60)
        found, _ = await world.calls.outputs(call_id, 0, None, 0)
        assert [item.status for item, _ in found] == [FAILURE] + [SUCCESS] * 20
        assert "run 3 times" in found[0][0].error
        assert sum(1 for one in world.ended.values() if one.reason == CRASHED) == 3

    run(work, max_containers=2, retries=RetryPolicy(1))


# --- the seam for budgets ---


class Purse:
    """So many containers and no more; so many inputs and no more."""

    def __init__(self, starts: int, inputs: int) -> None:
        self.starts, self.inputs = starts, inputs
        self.told: list[str] = []

    def covers(self, function: FunctionState) -> bool:
        return True

    def start(self, container_id: str, function: FunctionState, gpus: Sequence[Gpu], now: float) -> str:
        self.starts -= 1
        return "" if self.starts >= 0 else "the budget of 1 container is spent"

    def give(self, container: ContainerState, now: float) -> str:
        assert container.state == READY
        self.inputs -= 1
        return "" if self.inputs >= 0 else "the budget of 2 inputs is spent"

    def idle(self, container: ContainerState, now: float) -> None:
        self.told.append("idle")

    def gone(self, container_id: str, now: float) -> None:
        self.told.append("gone")


def test_admission_is_asked_before_a_start_and_before_inputs_are_given() -> None:
    async def work(world: World) -> None:
        purse = Purse(1, 2)
        world.calls.loop.admission = purse
        call_id = await spawn(world, *[b"ok 0.1"] * 3)
        await asyncio.sleep(8)
        assert len(world.boxes) == 1
        assert len((await world.calls.outputs(call_id, 0, None, 0))[0]) == 2
        assert world.calls.loop.paused["f"] == "the budget of 2 inputs is spent"
        purse.inputs = 5
        assert (await world.calls.get(call_id, 2, 5))[0].status == SUCCESS
        await asyncio.sleep(15)
        assert purse.told[-1] == "gone" and "idle" in purse.told
        assert world.calls.loop.paused == {}

    run(work)


def test_a_starving_function_gets_its_share_at_once() -> None:
    async def work(world: World) -> None:
        asked = world.functions["f"].resources
        await spawn(world, *[b"ok 3"] * 40)
        await asyncio.sleep(1)
        world.functions["g"] = FunctionSpec("g", resources=asked)
        world.calls.add_function("g", "ap-2", "other", world.functions["g"], {})
        await world.calls.submit("g", SPAWN_MAP, [(index, b"ok 9", None) for index in range(9)])
        await asyncio.sleep(5)
        assert world.calls.stats("g").num_total_runners == 2, "half of the four places"

    run(work, resources=replace(FunctionSpec("f").resources, cpu_milli=1000), max_containers=0)
