"""Schedules by the turned clock: runs exactly once, over restarts, deploys, pauses, changes of the clock and overlaps.

Semantics section 15 and section 33 (17).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Awaitable, Callable, Sequence
from zoneinfo import ZoneInfo

import pytest
from control_fakes import FullDisk

from cadenza.base.clock import ManualClock
from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.base.ids import IdSource
from cadenza.control.appstate import DEPLOYED, STOPPED, App
from cadenza.control.declared import check_functions
from cadenza.control.functions import Function
from cadenza.control.request import Caller, Request
from cadenza.control.schedules import AGAIN_S, Schedules, run_id
from cadenza.protocol.calls import OutputItem
from cadenza.protocol.methods import CallInfo
from cadenza.protocol.objects import FunctionSpec, MethodSpec
from cadenza.protocol.schedules import ScheduleInfo, ScheduleList, SchedulePause, ScheduleRef
from cadenza.runner import values
from cadenza.storage.db import Database

VIENNA = ZoneInfo("Europe/Vienna")
USER = Caller("co-1")


def cron(line: str, zone: str = "UTC", **more: str) -> str:
    return json.dumps({"kind": "cron", "cron_string": line, "timezone": zone, **more})


def period(**units: Any) -> str:
    return json.dumps({"kind": "period", **units})


@dataclass
class Calls:
    """Calls that outlive control planes: id to status."""

    clock: ManualClock
    statuses: dict[str, str] = field(default_factory=dict)
    begun: list[tuple[float, str, str]] = field(default_factory=list)
    """When, which function, which call."""
    refusal: str = ""
    crash: bool = False
    """Be gone after the next call is durable, before anybody is told."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(
        self, function_id: str, kind: str, given: Sequence[Any], *, call_id: str = ""
    ) -> tuple[str, list[str]]:
        if self.refusal:
            raise ResourceExhaustedError(self.refusal)
        call_id = call_id or f"fc-{len(self.begun)}"
        assert call_id not in self.statuses
        assert kind == "spawn"
        assert [values.unpack(data, lambda written: written) for _, data, _ in given] == [((), {})]
        self.statuses[call_id] = "PENDING"
        self.begun.append((self.clock.now(), function_id, call_id))
        if self.crash:
            await asyncio.Event().wait()
        return call_id, [call_id]

    async def info(self, call_id: str) -> CallInfo:
        if call_id not in self.statuses:
            raise NotFoundError(call_id)
        status = self.statuses[call_id]
        return CallInfo(call_id, "fu-1", "f", "ap-1", "spawn", 0.0, 1, int(status != "PENDING"), {status: 1})

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]:
        await self.ended.wait()
        self.ended.clear()
        return OutputItem(0, call_id, self.statuses[call_id], ""), b""  # type: ignore[arg-type]

    def end(self, call_id: str, status: str = "SUCCESS") -> None:
        self.statuses[call_id] = status
        self.ended.set()

    def end_all(self) -> None:
        for one in self.statuses:
            self.end(one)


class Apps:
    """One app, ``ap-1``, as `cadenza.control.apps.Apps` shows it."""

    def __init__(self) -> None:
        self.app = App("ap-1", "report", "main", DEPLOYED, False, 0.0, version=1)
        self.on_change: list[Callable[[App, bool], None]] = []
        self.texts: dict[str, str] = {}
        self.functions = self

    @property
    def alive(self) -> list[App]:
        return [] if self.app.state == STOPPED else [self.app]

    def declared(self, app_id: str) -> list[Function]:
        return [
            Function("fu-" + name, app_id, name, False, FunctionSpec(name, "m", name, options={"schedule": text}))
            for name, text in self.texts.items()
        ]

    def names(self, app_id: str) -> dict[str, str]:
        return {name: "fu-" + name for name in self.texts}

    def find(self, word: str) -> App:
        return self.app

    def for_caller(self, caller: Caller, word: str, environment: str = "", needs: str = "") -> App:
        if word not in ("ap-1", "report"):
            raise NotFoundError(word)
        return self.app

    def deploy(self, **texts: str) -> None:
        self.texts = texts
        self.app.version += 1
        for one in self.on_change:
            one(self.app, True)


class World:
    """A database, an app, calls, and a clock that tests turn; control planes come and go."""

    def __init__(self, path: Path, now: float) -> None:
        self.path = path
        self.clock = ManualClock(now)
        self.calls = Calls(self.clock)
        self.apps = Apps()
        self.schedules: Schedules

    def live(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """A life of a control plane."""

        async def life() -> Any:
            self.calls.ended = asyncio.Event()
            self.apps.on_change.clear()
            db = await Database.open(str(self.path / "cadenza.db"))
            self.schedules = Schedules(db, self.clock, IdSource(), self.calls, self.apps)  # type: ignore[arg-type]
            try:
                await self.schedules.start()
                await self.settle()
                return await work()
            finally:
                await self.schedules.close()
                await db.close()

        return asyncio.run(life())

    async def settle(self) -> None:
        """Look at the clock, and let what that begins come to where it waits."""
        for _ in range(3):
            self.schedules.look()
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.sleep(0.002)
            tasks = [one.task for one in self.schedules._by_function.values() if one.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=0.05)

    async def pass_time(self, seconds: float, step: float) -> None:
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            self.clock.advance(min(step, until - self.clock.now()))
            await self.settle()

    async def info(self, upcoming: int = 1, name: str = "f") -> ScheduleInfo:
        found = await self.schedules.list(ask(ScheduleList(upcoming=upcoming)))
        return next(one for one in found.schedules if one.function_name == name)

    @property
    def times(self) -> list[float]:
        return [one[0] for one in self.calls.begun]


def ask(body: Any) -> Request[Any]:
    return Request(1, body, b"", USER, None)  # type: ignore[arg-type]


def at(text: str, zone: ZoneInfo = ZoneInfo("UTC")) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


START = at("2026-01-01T00:00")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, START)


@pytest.mark.parametrize(
    ("begin", "hours_between"), [("2026-03-28T00:00", [23.5, 23.5]), ("2026-10-24T00:00", [24.0, 25.0])]
)
def test_across_changes_of_the_clocks(tmp_path: Path, begin: str, hours_between: list[float]) -> None:
    """Every night at 02:30 in Vienna: once a night, also in the night without that time and in the one that has two."""
    world = World(tmp_path, at(begin, VIENNA))

    async def work() -> None:
        world.apps.deploy(f=cron("30 2 * * *", "Europe/Vienna"))
        await world.pass_time(60 * 3600, 1800)
        local = [datetime.fromtimestamp(one, VIENNA) for one in world.times]
        assert len({one.date() for one in local}) == len(local) == 3
        expected = ["02:30", "03:00" if "03-28" in begin else "02:30", "02:30"]
        assert [one.strftime("%H:%M") for one in local] == expected
        assert [(b - a) / 3600 for a, b in zip(world.times, world.times[1:])] == hours_between

    world.live(work)


def test_a_period_restarts_at_each_deploy_and_a_line_does_not(world: World) -> None:
    """Semantics 33 (17): Period schedules restart at each deploy."""

    async def work() -> None:
        world.apps.deploy(f=period(hours=1), g=cron("0 * * * *"))
        await world.pass_time(1800, 600)
        world.apps.deploy(f=period(hours=1), g=cron("0 * * * *"))
        await world.pass_time(1800, 600)
        assert [one[1] for one in world.calls.begun] == ["fu-g"]
        await world.pass_time(1800, 600)
        assert [(one[0] - START, one[1]) for one in world.calls.begun] == [(3600, "fu-g"), (5400, "fu-f")]

    world.live(work)


def test_what_is_not_deployed_anew_goes_on(world: World) -> None:
    """An unchanged deploy makes no version, and a restart of the server is no deploy."""

    async def first() -> None:
        world.apps.deploy(f=period(hours=1))
        await world.pass_time(1800, 600)
        for one in world.apps.on_change:
            one(world.apps.app, True)

    world.live(first)
    world.live(lambda: world.pass_time(1800, 600))
    assert world.times == [START + 3600]


def test_a_deploy_that_nobody_followed_is_followed_at_the_next_start(world: World) -> None:
    """The server died between a deploy's commit and its schedules."""

    async def first() -> None:
        world.apps.deploy(f=period(hours=1), gone=cron("* * * * *"))

    async def second() -> None:
        await world.pass_time(3600, 600)

    world.live(first)
    world.clock.advance(1800)
    world.apps.on_change.clear()
    world.apps.deploy(f=period(hours=1), new=cron("30 * * * *"))
    world.live(second)
    assert [(one[0] - START, one[1]) for one in world.calls.begun] == [(5400, "fu-f"), (5400, "fu-new")]


def test_taking_a_function_away_and_stopping_the_app(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *"), g=cron("* * * * *"))
        world.apps.deploy(g=cron("* * * * *"))
        await world.pass_time(60, 60)
        assert [one[1] for one in world.calls.begun] == ["fu-g"]
        world.apps.app.state = STOPPED
        world.apps.on_change[0](world.apps.app, False)
        await world.pass_time(600, 60)
        assert len(world.calls.begun) == 1
        assert (await world.schedules.list(ask(ScheduleList()))).schedules == ()

    world.live(work)


@pytest.mark.parametrize(
    ("missed", "away_s", "expected"),
    [
        ("once", 3 * 86400 + 7200, [3 * 86400 + 7200]),
        ("skip", 3 * 86400 + 7200, []),
        ("skip", 86400 + 30, [86400 + 30]),
        ("all", 3 * 86400 + 7200, [3 * 86400 + 7200] * 3),
    ],
)
def test_runs_that_were_missed(world: World, missed: str, away_s: int, expected: list[int]) -> None:
    async def deploy() -> None:
        world.apps.deploy(f=period(days=1, missed=missed))

    async def back() -> None:
        await world.settle()
        assert [one - START for one in world.times] == expected
        info = await world.info()
        assert ("left out" in info.note) == (not expected)
        await world.pass_time(86400, 3600)
        assert len(world.times) == len(expected) + 1

    world.live(deploy)
    world.clock.advance(away_s)
    world.live(back)
    assert len({one[2] for one in world.calls.begun}) == len(world.calls.begun)


def test_a_crash_after_the_call_was_kept_does_not_run_it_twice(world: World) -> None:
    """Between the commit of the call and that of the schedule."""

    async def crash() -> None:
        world.apps.deploy(f=cron("0 * * * *"))
        world.calls.crash = True
        await world.pass_time(3600, 600)
        assert len(world.times) == 1

    async def back() -> None:
        await world.settle()
        assert len(world.times) == 1
        assert (await world.info()).last_call_id == world.calls.begun[0][2]
        await world.pass_time(3600, 600)
        assert len(world.times) == 2

    world.live(crash)
    world.calls.crash = False
    world.live(back)


def test_overlap_allow_is_the_default(world: World) -> None:
    """Semantics 15: a new run is simply another input."""

    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *"))
        await world.pass_time(180, 60)
        assert len(world.times) == 3

    world.live(work)


def test_overlap_skip(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *", overlap="skip"))
        await world.pass_time(180, 60)
        assert world.times == [START + 60]
        assert "not over" in (await world.info()).note
        world.calls.end_all()
        await world.pass_time(60, 60)
        assert world.times == [START + 60, START + 240]
        assert (await world.info()).note == ""

    world.live(work)


def test_overlap_wait(world: World) -> None:
    """At most one waits: it begins when the one before it is over, and not at the next time."""

    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *", overlap="wait"))
        await world.pass_time(200, 20)
        assert world.times == [START + 60]
        world.calls.end_all()
        await world.settle()
        assert world.times[:2] == [START + 60, START + 200]
        world.calls.end_all()
        await world.settle()
        assert len(world.times) == 3  # those due meanwhile are one
        world.calls.end_all()
        await world.settle()
        assert len(world.times) == 3

    world.live(work)


def test_waiting_for_the_last_run_ends_with_the_schedule(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *", overlap="wait"))
        await world.pass_time(120, 60)
        entry = world.schedules._by_function["fu-f"]
        assert entry.task is not None
        world.apps.deploy()
        await world.settle()
        assert entry.task is None and len(world.times) == 1

    world.live(work)


def test_pause_and_resume_survive_restarts_and_deploys(world: World) -> None:
    async def pause() -> None:
        world.apps.deploy(f=cron("0 * * * *"))
        await world.schedules.pause(ask(SchedulePause("fu-f")))
        await world.pass_time(7200, 1800)
        info = await world.info()
        assert (info.paused, info.next_at, world.times) == (True, (), [])

    async def still() -> None:
        world.apps.deploy(f=cron("0 * * * *"))
        await world.pass_time(7200 + 1800, 1800)
        assert world.times == []
        schedule_id = (await world.info()).schedule_id
        await world.schedules.pause(ask(SchedulePause(schedule_id, False)))
        await world.settle()
        assert world.times == []  # nothing is made up
        await world.pass_time(1800, 1800)
        assert world.times == [START + 5 * 3600]

    world.live(pause)
    world.live(still)
    world.live(lambda: world.pass_time(3600, 3600))
    assert len(world.times) == 2


def test_run_now_leaves_the_times_as_they_are(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=period(hours=1))
        await world.schedules.pause(ask(SchedulePause("fu-f")))
        done = await world.schedules.run(ask(ScheduleRef("fu-f")))
        assert world.calls.begun == [(START, "fu-f", done.call_id)]
        await world.schedules.pause(ask(SchedulePause("fu-f", False)))
        info = await world.info()
        assert (info.last_call_id, info.last_status, info.next_at) == (done.call_id, "PENDING", (START + 3600,))
        world.calls.end(done.call_id, "FAILURE")
        assert (await world.info()).last_status == "FAILURE"
        for word in ("fu-none", "sc-" + "x" * 22):
            with pytest.raises(NotFoundError, match="cadenza schedule list"):
                await world.schedules.run(ask(ScheduleRef(word)))

    world.live(work)


def test_a_run_that_is_refused_comes_later(world: World) -> None:
    """Too many inputs wait: the run is not lost."""

    async def work() -> None:
        world.apps.deploy(f=cron("0 * * * *"))
        world.calls.refusal = "too many inputs wait"
        await world.pass_time(3600, 600)
        assert "too many inputs wait" in (await world.info()).note
        world.calls.refusal = ""
        await world.settle()
        assert world.times == []
        await world.pass_time(AGAIN_S, AGAIN_S)
        assert world.times == [START + 3600 + AGAIN_S]

    world.live(work)


def test_a_clock_that_was_set_back_is_followed(world: World) -> None:
    """The machine began with a clock in 2030 and was put right."""

    async def wrong() -> None:
        world.clock = world.calls.clock = world.schedules._clock = ManualClock(at("2030-01-01T00:00"))
        world.apps.deploy(f=cron("* * * * *"))
        await world.pass_time(60, 60)

    async def right() -> None:
        world.clock = world.calls.clock = world.schedules._clock = ManualClock(START)
        await world.settle()
        await world.pass_time(60, 60)
        assert world.times[-1] == START + 60

    world.live(wrong)
    world.live(right)


def test_a_small_step_back_runs_nothing_twice(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=cron("* * * * *"))
        await world.pass_time(61, 61)
        world.clock = world.calls.clock = world.schedules._clock = ManualClock(START + 58)
        await world.settle()
        await world.pass_time(5, 1)
        assert len(world.times) == 1
        await world.pass_time(60, 20)
        assert len(world.times) == 2

    world.live(work)


def test_the_timer_waits_for_the_earliest_time_and_looks_once_a_minute(world: World) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        schedules = world.schedules
        assert schedules._timer is None  # nothing to wait for
        world.apps.deploy(f=cron("0 0 1 1 *"))
        assert schedules._timer is not None
        assert schedules._timer.when() - loop.time() == pytest.approx(60, abs=1)
        world.apps.deploy(f=cron("0 0 1 1 *"), g=period(seconds=5))
        assert schedules._timer.when() - loop.time() == pytest.approx(5, abs=1)
        world.apps.deploy()
        assert schedules._timer is None

    world.live(work)


def test_what_is_listed(world: World) -> None:
    async def work() -> None:
        world.apps.deploy(f=cron("0 6 * * *", "Europe/Vienna", missed="all"), g=period(days=1, overlap="wait"))
        info = await world.info(3)
        assert info.description == "Cron('0 6 * * *', timezone='Europe/Vienna', missed='all')"
        assert (info.app_name, info.missed, info.overlap) == ("report", "all", "allow")
        assert info.next_at == tuple(START + 5 * 3600 + day * 86400 for day in range(3))
        assert (await world.info(2, "g")).next_at == (START + 86400, START + 2 * 86400)
        assert (await world.info(0)).next_at == ()
        assert (await world.schedules.list(ask(ScheduleList("report")))).schedules
        with pytest.raises(InvalidError, match="upcoming"):
            await world.schedules.list(ask(ScheduleList(upcoming=101)))

    world.live(work)


def test_ids_of_runs() -> None:
    assert run_id("sc-1", 5.0) == run_id("sc-1", 5.0)
    assert len({run_id("sc-1", 5.0), run_id("sc-2", 5.0), run_id("sc-1", 5.5)}) == 3
    assert len(run_id("sc-1", 5.0)) == 25 and run_id("sc-1", 5.0).startswith("fc-")


def test_the_server_reads_the_line_when_an_app_is_deployed() -> None:
    """Semantics 15 and 34: Cron("x") is accepted by the client."""

    def spec(text: str, **more: Any) -> FunctionSpec:
        return FunctionSpec("f", "m", "f", options={"schedule": text}, **more)

    check_functions([spec(cron("0 9 * * 1")), FunctionSpec("g", "m", "g", options={"schedule": ""})])
    for wrong, fault in (
        (spec(cron("61 * * * *")), "minute"),
        (spec(cron("* * * * *", "Europe/Nowhere")), "time zone"),
        (spec(period(seconds=0.1)), "at least 1 second"),
        (spec(cron("* * * * *"), methods=(MethodSpec("m"),)), "class"),
    ):
        with pytest.raises(InvalidError, match=fault):
            check_functions([wrong])


def test_a_pause_that_cannot_be_kept_is_none(world: World) -> None:
    world.apps.texts = {"f": period(hours=1)}

    async def work() -> None:
        db = world.schedules._db
        disk = world.schedules._db = FullDisk(db)  # type: ignore[assignment]
        with pytest.raises(ResourceExhaustedError):
            await world.schedules.pause(ask(SchedulePause("fu-f")))
        info = await world.info()
        assert not info.paused and info.next_at == (START + 3600.0,)
        disk.full = False
        await world.schedules.pause(ask(SchedulePause("fu-f")))
        assert (await world.info()).paused

    world.live(work)
