"""No interleaving spends more than a budget's cap: the real control plane from seeds, with faults and restarts.

Spending is measured at the node, where containers are: from the moment one is made until it is gone.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from world import Faults, VirtualLoop, World, _Box

from cadenza.base.resources import Resources
from cadenza.control.budgets import Budgets, HoldRow, SpentRow
from cadenza.protocol.calls import MAP, SPAWN, SUCCESS, OutputItem
from cadenza.protocol.nodes import ContainerSpec
from cadenza.protocol.objects import BudgetSpec, FunctionSpec
from cadenza.scheduling.budget import STOP_MARGIN_S, Prices

CAP_S, CAP_MONEY = 120.0, 90.0
SEEDS = range(150)


class Kept:
    """A store that survives the control plane."""

    def __init__(self) -> None:
        self.spent: dict[str, SpentRow] = {}
        self.holds: dict[str, HoldRow] = {}

    async def load(self) -> tuple[list[SpentRow], list[HoldRow]]:
        return list(self.spent.values()), list(self.holds.values())

    def save(self, spent: Any, holds: Any, gone: Any) -> None:
        for name in gone:
            self.holds.pop(name, None)
        self.holds.update({one[0]: one for one in holds})
        self.spent.update({one[0]: one for one in spent})

    def drop(self, app_id: str) -> None:
        self.spent.pop(app_id, None)


class Paid(World):
    """A world whose one app has a budget; it books what its containers cost."""

    def __init__(self, seed: int, faults: Faults, loop: VirtualLoop) -> None:
        super().__init__(seed, faults, loop)
        self.kept = Kept()
        self.made: dict[str, tuple[float, float]] = {}
        self.used_s = self.used_money = 0.0
        self.prices = Prices(cpu_core=1.0, memory_gib=0.5)
        self.highest = 0.0

    async def equip(self) -> None:
        self.budgets = Budgets(self.calls, self.clock, self.kept, self.prices)
        await self.budgets.load()
        self.budgets.put("ap-1", BudgetSpec(CAP_S, CAP_MONEY))

    async def boot(self) -> None:
        await super().boot()
        self.budgets.settle()

    def _prepare(self, spec: ContainerSpec) -> None:
        self.made[spec.container_id] = (self.loop.time(), self.prices.rate(spec.function.resources, spec.gpus))
        super()._prepare(spec)

    def _remove(self, box: _Box) -> None:
        since, rate = self.made.pop(box.spec.container_id, (self.loop.time(), 0.0))
        took = self.loop.time() - since
        self.used_s += took
        self.used_money += took * rate
        super()._remove(box)
        self.check()

    def check(self) -> None:
        now = self.loop.time()
        seconds = self.used_s + sum(now - since for since, _ in self.made.values())
        money = self.used_money + sum((now - since) * rate for since, rate in self.made.values())
        self.highest = max(self.highest, seconds / CAP_S, money / CAP_MONEY)
        assert seconds <= CAP_S + 1e-6, f"{seconds} container-seconds of {CAP_S}"
        assert money <= CAP_MONEY + 1e-6, f"{money} of {CAP_MONEY}"


def spec(name: str, **more: Any) -> FunctionSpec:
    settings: dict[str, Any] = {
        "module": "m", "qualname": name, "timeout_s": 5.0, "startup_timeout_s": 3.0, "scaledown_window_s": 4.0,
        "resources": Resources(500, 512), **more,
    }  # fmt: skip
    return FunctionSpec(name=name, **settings)


async def story(world: Paid) -> dict[int, OutputItem]:
    """Maps and spawns of inputs that are short, long, stuck, failing; until the money is gone."""
    random = world.random
    world.functions = {
        "a": spec("a"),
        "b": spec("b", max_concurrent=3, target_concurrent=2, min_containers=random.choice((0, 1))),
        "c": spec("c", max_containers=1, single_use=True),
    }
    await world.boot()
    outputs: dict[int, OutputItem] = {}
    words = ("ok 0.05", "ok 1", "ok 4.9", "stuck", "fail 0.2", "crash 0.3")
    total = 0
    for _ in range(6):
        for name in world.functions:
            count = random.randint(1, 25)
            values = [(index, random.choice(words).encode(), None) for index in range(count)]
            base = total

            def on_output(item: OutputItem, data: bytes, base: int = base) -> None:
                outputs[base + item.index] = item

            if random.random() < 0.7:
                world.calls.attach(name, MAP, values, total=count, on_output=on_output)
                total += count
            else:
                await world.calls.submit(name, SPAWN, values[:1])
        await asyncio.sleep(random.uniform(0, 12))
        world.check()
        if world.faults.restarts and random.random() < 0.5:
            world.budgets.close()
            world.crash()
            outputs.clear()
            total = 0
            # On one machine the node ends with the control plane. One that does not cannot be told to end anything
            # while nobody is there to tell it.
            await asyncio.sleep(random.uniform(0, 2) if world.faults.node_dies_with_control else 0)
            await world.boot()
    deadline = world.loop.time() + 600
    while len(outputs) < total and world.loop.time() < deadline:
        await asyncio.sleep(1.0)
        world.check()
    assert len(outputs) == total, "an input was neither run nor refused"
    await asyncio.sleep(60)
    world.check()
    world.budgets.close()
    await world.calls.stop()
    return outputs


def run(seed: int, faults: Faults) -> tuple[Paid, dict[int, OutputItem]]:
    loop = VirtualLoop()
    try:
        world = Paid(seed, faults, loop)
        return world, loop.run_until_complete(asyncio.wait_for(story(world), 5_000))
    finally:
        loop.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_spend_is_never_above_the_cap(seed: int) -> None:
    faults = Faults(
        start_fails=0.1 * (seed % 3), dies=0.1 * (seed % 2), doubled=0.1 * (seed % 2), late_s=0.05,
        restarts=int(seed % 5 == 0), node_dies_with_control=seed % 10 == 0,
    )  # fmt: skip
    run(seed, faults)


def test_a_budget_is_used_and_what_it_does_not_reach_is_refused_in_words() -> None:
    world, outputs = run(1, Faults())
    statuses = [one.status for one in outputs.values()]
    refused = [one for one in outputs.values() if "budget" in one.error]
    assert SUCCESS in statuses
    assert refused, statuses
    assert "are spent" in refused[0].error
    least = 5.0 + 3.0 + STOP_MARGIN_S  # what one start and one input may take
    assert world.highest >= 1 - least / CAP_S - 0.35, "much of the budget was never used"
    assert math.isfinite(world.used_s)
