"""Budgets through the server: what can never fit is refused at once, what is spent is shown and survives a restart.

That no interleaving spends more than the cap: tests/sim/test_sim_budget.py.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import FullDisk
from test_control_deployments import deploy, run, spec
from test_control_main import World, in_world, until

from cadenza.base.errors import InvalidError
from cadenza.control.budgets import SpentTable, another, period_of
from cadenza.scheduling.budget import read_prices
from cadenza.storage.db import Database


def test_days_and_months_are_those_of_utc() -> None:
    assert period_of("", 0.0) == ""
    assert period_of("day", 86_399.0) == "1970-01-01"
    assert period_of("day", 86_400.0) == "1970-01-02"
    assert period_of("month", 31 * 86_400.0) == "1970-02"


def test_another_day_begins_anew_and_another_kind_of_period_does_not() -> None:
    assert another("2026-11-22", "2026-11-23") and another("2026-11", "2026-12") and another("2026-11-30", "2026-12")
    for same in (("2026-11-22", "2026-11"), ("2026-11", "2026-11-22"), ("", "2026-11"), ("2026-11", ""), ("", "")):
        assert not another(*same)


def test_a_price_table() -> None:
    prices = read_prices(" cpu=2, memory=0.5,gpu.h100=7 ")
    assert (prices.cpu_core, prices.memory_gib, prices.gpus) == (2.0, 0.5, {"H100": 7.0})
    for wrong in ("cpu", "cpu=-1", "cpu=inf", "disk=1", "cpu=x"):
        with pytest.raises(InvalidError):
            read_prices(wrong)


def test_what_can_never_fit_is_refused_when_it_is_published(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.client()
        short = {"budget": {"container_s": 100.0}}
        error = await deploy(client, spec(timeout_s=300.0), name="a", **short)
        assert error["kind"] == "invalid"
        assert "echo: it may take 606 container-seconds" in error["message"]
        error = await deploy(client, spec(), name="a", budget={"money": 1.0})
        assert "price table" in error["message"]
        fits = spec(timeout_s=20.0, startup_timeout_s=20.0)
        deployed = await deploy(client, fits, name="a", budget={"container_s": 100.0})
        assert deployed["version"] == 1

    in_world(tmp_path, story)


def test_what_is_spent_is_shown_and_refuses_in_words(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.client()
        fits = spec(timeout_s=20.0, startup_timeout_s=20.0)
        deployed = await deploy(client, fits, name="a", budget={"container_s": 100.0, "per": "day"})
        function_id = deployed["functions"]["echo"]
        assert (await run(client, function_id))["output"]["status"] == "SUCCESS"
        assert (await client.ask("app.get", {"app": "a"}))["budget"].endswith(
            "of 100 container-seconds are spent this day"
        )
        assert world.control._parts is not None
        account = world.control._parts.budgets._accounts[deployed["app_id"]]
        account.spent_s = 99.0  # as if others had run
        for hold in account.holds.values():  # and what the warm container holds is used up
            hold.paid_until = hold.since + 6.0
        refused = (await run(client, function_id))["output"]
        assert refused["status"] == "FAILURE"
        assert "the app's budget does not reach" in refused["error"]
        assert "begins anew with the next day" in refused["error"]
        await client.ask("app.stop", {"app": "a"})
        parts = world.control._parts
        await until(lambda: not parts.budgets._accounts)
        assert parts.calls.loop.admission is None

    in_world(tmp_path, story)


def test_what_was_spent_is_not_forgotten_by_a_deploy_without_a_budget(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.client()
        fits = spec(timeout_s=20.0, startup_timeout_s=20.0)
        capped = {"name": "a", "budget": {"container_s": 100.0}}
        deployed = await deploy(client, fits, **capped)
        assert (await run(client, deployed["functions"]["echo"]))["output"]["status"] == "SUCCESS"
        assert world.control._parts is not None
        world.control._parts.budgets._accounts[deployed["app_id"]].spent_s = 50.0
        world.clock.advance(3.0)
        await deploy(client, fits, name="a")
        parts = world.control._parts
        function = parts.calls.loop.cluster.functions[deployed["functions"]["echo"]]
        assert not parts.budgets._accounts and not parts.budgets._owners and not parts.budgets.covers(function)
        await parts.db.transaction(lambda transaction: None)
        assert await parts.db.fetch("budget_hold_all") == []
        world.clock.advance(3.0)  # which nobody counts
        await deploy(client, fits, **capped)
        assert parts.budgets.covers(function)
        spent = (await client.ask("app.get", {"app": "a"}))["budget"]
        assert spent == "53.0 of 100 container-seconds are spent"
        await deploy(client, fits, name="a")
        client.close()
        await world.control.close()
        await world.start()  # the same over a restart without a budget
        client = await world.client()
        await deploy(client, fits, **capped)
        assert (await client.ask("app.get", {"app": "a"}))["budget"] == spent
        await deploy(client, fits, name="a")
        await client.ask("app.stop", {"app": "a"})
        parts = world.control._parts
        assert await parts.db.fetch("budget_spent_all") == []

    in_world(tmp_path, story)


def test_what_a_full_disk_refused_is_kept_with_what_comes_next(tmp_path: Path) -> None:
    async def story() -> None:
        db = await Database.open(str(tmp_path / "cadenza.db"))
        disk = FullDisk(db)
        table = SpentTable(disk)  # type: ignore[arg-type]
        table.save([("ap-1", "", 1.0, 0.0)], [("ta-1", "ap-1", 0.0, 9.0, 0.0), ("ta-2", "ap-1", 0.0, 9.0, 0.0)], [])
        await asyncio.sleep(0)
        table.save([("ap-1", "", 2.0, 0.0)], [], ["ta-2"])
        table.drop("ap-2")
        await asyncio.sleep(0)
        assert await table.load() == ([], [])
        disk.full = False
        table.save([("ap-2", "", 5.0, 0.0)], [], [])
        await db.transaction(lambda transaction: None)
        assert await table.load() == (
            [("ap-1", "", 2.0, 0.0), ("ap-2", "", 5.0, 0.0)], [("ta-1", "ap-1", 0.0, 9.0, 0.0)],
        )  # fmt: skip
        await db.close()

    asyncio.run(story())


def test_what_is_held_is_in_the_database_at_every_turn(tmp_path: Path) -> None:
    """So that a crash forgets no spending: when it starts, when it is given an input, when it is idle again."""

    async def story(world: World) -> None:
        client = await world.client()
        fits = {"timeout_s": 100.0, "startup_timeout_s": 5.0, "max_concurrent": 2, "target_concurrent": 2}
        body = {"name": "a", "functions": [spec(**fits), spec("never", **fits)], "budget": {"container_s": 1e4}}
        deployed = await client.ask("app.deploy", body)
        parts = world.control._parts
        assert parts is not None

        async def held() -> list[float]:
            """For how long each container is paid from now on, as the database has it; memory says the same."""
            await asyncio.sleep(0)
            await parts.db.transaction(lambda transaction: None)
            found = {row[0]: row[3] for row in await parts.db.fetch("budget_hold_all")}
            shift = world.clock.now() - world.clock.monotonic()
            holds = parts.budgets._accounts[deployed["app_id"]].holds
            assert found == {name: hold.paid_until + shift for name, hold in holds.items()}
            return sorted(round(one - world.clock.now(), 3) for one in found.values())

        await run(client, deployed["functions"]["echo"])
        assert await held() == [16.0]  # idle: a piece of time and the margin
        world.clock.advance(8.0)
        await run(client, deployed["functions"]["echo"])
        assert await held() == [16.0]
        for number in (1, 2):
            client.begin("call.run", {"function_id": deployed["functions"]["never"], "value": {}})
            await until(lambda: bool(world.node.running))
            await until(lambda number=number: len(parts.calls.loop.cluster._holders) == number)
            assert (await held())[-1] >= 106.0  # an input to its timeout
            world.clock.advance(50.0)

    in_world(tmp_path, story)
