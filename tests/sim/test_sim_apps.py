"""Apps that end and callers that vanish, at any moment of a bad world: nothing is lost, and nothing is kept for ever.

Semantics: sections 3.4 ("pending inputs of an ephemeral app vanish when the app stops; asynchronous inputs of a
deployed app survive redeploys"), 23, and 33 (15: "async inputs survive redeploy and client death; sync inputs must be
dropped when the caller vanishes"; 16: "a detached ephemeral app must keep running until idle").
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from world import Broken, Sent, VirtualLoop, World, check, draw_faults, draw_function, draw_value, stuck

from cadenza.base.errors import Error
from cadenza.protocol.calls import CALLER_GONE_GRACE_S, MAP, SPAWN_MAP, SUCCESS, SYNC, TERMINATED

SEEDS = 240
KEPT = (1049,)
"""Seeds that once broke something."""
GROUPS = 6
ENDED = "the app has ended: by its user"


async def play(world: World) -> None:
    """Two functions, of which one ends with its app at some moment; one caller, who vanishes at another."""
    rng = world.random
    for name in ("gone", "kept"):
        world.functions[name] = draw_function(rng, name)
    world.deployed = rng.random() < 0.5
    await world.boot()
    sent: dict[str, list[Sent]] = {"gone": [], "kept": []}
    events = ["spawn"] * 4 + ["attached"] * 5 + ["end", "vanish"] + ["restart"] * min(1, world.faults.restarts)
    events += ["disconnect"] * world.faults.disconnects
    rng.shuffle(events)
    vanished_at = ended_at = 0.0
    life = 0
    lives: dict[str, int] = {}
    for number, event in enumerate(events):
        await asyncio.sleep(rng.choice((0.0, 0.01, 0.3, 2.0)))
        name = rng.choice(("gone", "kept"))
        spec = world.functions.get(name)
        method = rng.choice(spec.methods).name if spec is not None and spec.methods else ""
        alone = spec is not None and not spec.batch_max and not world.deployed
        try:
            if event == "spawn":
                values = [draw_value(rng, alone) for _ in range(rng.choice((1, 3, 20)))]
                call_id, _ = await world.calls.submit(
                    name, SPAWN_MAP, [(index, value, None) for index, value in enumerate(values)], method=method
                )
                sent[name].append(Sent(call_id, values, cancelled=name == "gone"))
            elif event == "attached" and not vanished_at:
                count = rng.choice((1, 8))
                key = f"{number}"
                await world.calls.submit(
                    name, SYNC if count == 1 else MAP, [(n, draw_value(rng, alone), None) for n in range(count)],
                    total=count, caller="co-1", on_output=world.on_output(key), method=method,
                )  # fmt: skip
                lives[key] = life
            elif event == "end":
                world.calls.remove_function("gone", ENDED)
                del world.functions["gone"]
                ended_at = world.loop.time()
            elif event == "vanish":
                world.calls.abandon("co-1")
                vanished_at = world.loop.time()
            elif event == "disconnect":
                world.disconnect(rng.uniform(0.1, 3.0))
            elif event == "restart":
                world.crash()
                life += 1
                world.connected = True
                await world.boot()
        except Error:
            pass  # refused: the app has ended, the disk is full
    assert ended_at and vanished_at
    await asyncio.sleep(CALLER_GONE_GRACE_S)
    world.faulty = False
    world.store.full = False
    if not world.connected:
        world.reconnect()
    until = world.loop.time() + 600.0
    while world.store.inputs or world.calls.app_busy("ap-1"):
        if world.loop.time() > until:
            raise Broken(f"the app never falls idle, and a detached one would run for ever: {stuck(world)}")
        await asyncio.sleep(5.0)
    await asyncio.sleep(120.0)
    check(world, [*sent["gone"], *sent["kept"]], [])
    _check_ends(world, sent)
    await world.calls.stop()


def _check_ends(world: World, sent: dict[str, list[Sent]]) -> None:
    cluster = world.calls.loop.cluster
    if "gone" in cluster.functions:
        raise Broken(f"what is gone is still known: {stuck(world)}")
    if any(box.spec.function_id == "gone" for box in world.boxes.values()):
        raise Broken("a container of an app that has ended is still there")
    for call in sent["gone"]:
        for index in range(len(call.values)):
            row = world.store.outputs[call.call_id, index]
            if row[3] == TERMINATED and "ended" not in row[7]:
                raise Broken(f"it was ended with its app, and says {row[7]!r}")
    for call in sent["kept"]:
        for index, value in enumerate(call.values):
            if world.store.outputs[call.call_id, index][3] == TERMINATED:
                raise Broken("a spawned input ended with somebody else's app, or with its caller")
            if value.startswith(b"ok 0.001") and world.deployed and not world.faults.disconnects:
                status = world.store.outputs[call.call_id, index][3]
                if status != SUCCESS:
                    raise Broken(f"an input of a deployed app that works ended {status}")
    if world.calls._attached or world.calls._by_caller:
        raise Broken("calls of a caller who has vanished are kept")


def run_seed(seed: int) -> None:
    loop = VirtualLoop()
    rng = random.Random(seed * 104_729 + 5)
    world = World(seed, draw_faults(rng), loop)
    world.faults.deploys = 0
    failures: list[BaseException] = []

    def caught(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, asyncio.CancelledError):
            failures.append(error)

    loop.set_exception_handler(caught)
    try:
        loop.run_until_complete(play(world))
        if failures:
            raise failures[0]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.parametrize("group", range(GROUPS))
def test_apps_end_and_callers_vanish(group: int) -> None:
    for seed in range(group * SEEDS // GROUPS, (group + 1) * SEEDS // GROUPS):
        try:
            run_seed(seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("seed", KEPT)
def test_seeds_that_once_broke(seed: int) -> None:
    run_seed(seed)
