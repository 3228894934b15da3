"""What is counted of inputs and containers, kept, and read again (semantics.md sections 11.1 and 26)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Awaitable, Callable, Optional

import pytest

from cadenza.base.clock import ManualClock
from cadenza.base.errors import InternalError, InvalidError, NotFoundError
from cadenza.base.resources import Resources
from cadenza.control import history, stats
from cadenza.control.access import Access
from cadenza.control.history import History
from cadenza.control.request import Caller
from cadenza.control.tally import Tally
from cadenza.observe.slice import Slice
from cadenza.protocol import nodes
from cadenza.protocol.calls import AttemptOutput
from cadenza.protocol.functions import FunctionInputs, FunctionRef
from cadenza.protocol.nodes import ContainerReport, NodeInfo, NodeReport, Usage
from cadenza.protocol.objects import FunctionSpec, SecretRef
from cadenza.protocol.stats import GROUPS, MetricGroups, MetricQuery, StatsQuery
from cadenza.scheduling import events
from cadenza.scheduling.cluster import Cluster
from cadenza.storage.db import Database
from cadenza.storage.entry import Entry
from cadenza.storage.recent import RecentStore
from cadenza.storage.series import Kept, SeriesStore

START = 60.0 * 20_000_000


@dataclass
class App:
    app_id: str = "ap-1"
    environment: str = "main"


SECRET = SecretRef("st-1", {"KEY": "hidden"}, ("KEY",), name="vault")


@dataclass
class Function:
    app_id: str = "ap-1"
    spec: FunctionSpec = field(default_factory=lambda: FunctionSpec("f", secrets=(SECRET,)))


class World:
    """A cluster with two functions and a container for each, and all that counts."""

    def __init__(self, db: Database) -> None:
        self.clock = ManualClock(START)
        self.cluster = Cluster()
        self._apply(events.NodeSeen(NodeInfo("n", Resources(100_000, 100_000))))
        for number in (1, 2):
            self._apply(events.FunctionAdded(f"fu-{number}", "ap-1", "shop", FunctionSpec(f"f{number}"), {}))
            self._apply(events.StartContainer(f"ta-{number}", f"fu-{number}", "n", (), "test"))
        self.series, self.recent = SeriesStore(db), RecentStore(db)
        self.begin()

    def begin(self) -> None:
        """A life of the server."""
        self.tally = Tally(self.series, self.clock, self.cluster, lambda app_id: "main")
        self.history = History(self.recent, self.tally, self.clock)
        self.gone: set[str] = set()
        self.reader = stats.Reader(
            self.tally, self.series, self.history, self.cluster, self.clock, Access(), self.app, self.function,
            lambda name: ["fu-2"], lambda app_id: 3,
        )  # fmt: skip

    def app(self, word: str, environment: str) -> App:
        if word not in ("ap-1", "shop"):
            raise NotFoundError("no app")
        return App()

    def function(self, name: str) -> Function:
        if name in self.gone or not name.startswith("fu-"):
            raise NotFoundError("no function")
        return Function()

    def _apply(self, event: Any) -> Any:
        return self.cluster.apply(event, self.clock.monotonic())

    def ready(self, number: int, **more: Any) -> None:
        report = ContainerReport(f"ta-{number}", nodes.READY, phases={"boot": 0.1, "import": 0.3}, **more)
        self.tally.report(NodeReport("n", (report,)))
        self._apply(events.ContainerSeen(report))

    def end(self, number: int, reason: str) -> None:
        self.clock.advance(1.0)
        report = ContainerReport(f"ta-{number}", nodes.GONE, reason)
        self.tally.report(NodeReport("n", (report,)))
        self._apply(events.ContainerSeen(report))

    def run(self, name: str, number: int = 1, status: str = "SUCCESS", took: float = 0.5, error: str = "") -> None:
        """One input waits a second and runs for ``took``."""
        entry = self.waiting(name, number)
        self.clock.advance(1.0)
        attempt = self._apply(events.Assign(f"ta-{number}", 1))[0]
        self.clock.advance(took)
        now = self.clock.now()
        self._apply(
            events.Settle(
                f"ta-{number}", [AttemptOutput(attempt.attempt_id, status, started_at=now - took, finished_at=now)]
            )
        )
        self.history.note(entry, status, error, self.cluster.containers.get(f"ta-{number}"))
        self.history.drain()  # as once a second

    def waiting(self, name: str, number: int = 1) -> Entry:
        entry = Entry(1, f"in-{name}", "fc-1", 0, f"fu-{number}", True, ready_at=self.clock.now())
        self._apply(events.Arrived(f"fu-{number}", [entry]))
        return entry


def ask(body: Any) -> Any:
    return SimpleNamespace(body=body, caller=Caller("co-1"))


def with_world(tmp_path: Any, test: Callable[[World], Awaitable[None]]) -> None:
    async def steps() -> None:
        db = await Database.open(str(tmp_path / "cadenza.db"))
        try:
            await test(World(db))
        finally:
            await db.close()

    asyncio.run(steps())


def test_nothing_is_remembered_of_containers_of_a_lost_node(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.ready(2)
        world.tally.usage([Usage("ta-1", 100.0, 5.0, 1), Usage("ta-2", 100.0, 5.0, 1)])
        world._apply(events.ContainerSeen(ContainerReport("ta-1", nodes.GONE, nodes.NODE_LOST)))
        world.clock.advance(60.0)
        world.tally.sample()
        assert (world.tally._started, set(world.tally._used)) == ({"ta-2"}, {"ta-2"})

    with_world(tmp_path, test)


def test_stats_of_a_function_over_restarts(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.run("a")
        world.run("b", status="FAILURE", error="ValueError: no")
        world.clock.advance(60.0)
        world.run("c", status="TIMEOUT", took=2.0)
        found = await world.reader.read(ask(StatsQuery("fu-1")))
        assert (found.success, found.failure, found.timeout, found.started) == (1, 1, 1, 1)
        assert found.since == START
        assert found.inputs["execution_time"].percentiles["50"] == pytest.approx(0.5, rel=0.07)
        assert found.inputs["queue_time"].percentiles["50"] == pytest.approx(1.0, rel=0.07)
        assert found.containers["startup_time"].percentiles["99"] == pytest.approx(0.4, rel=0.07)
        await world.history.write(everything=True)
        await world.tally.write(everything=True)
        world.begin()
        world.run("d")
        again = await world.reader.read(ask(StatsQuery("fu-1")))
        assert (again.success, again.failure, again.timeout, again.started) == (2, 1, 1, 1)
        later = await world.reader.read(ask(StatsQuery("fu-1", since=START + 60, until=START + 600)))
        assert (later.success, later.timeout) == (1, 1)
        rows = (await world.reader.inputs(ask(FunctionInputs("fu-1")))).inputs
        assert [one.input_id for one in rows] == ["in-d", "in-c", "in-b", "in-a"]
        assert (rows[2].status, rows[2].error, rows[2].container_id) == ("FAILURE", "ValueError: no", "ta-1")
        assert rows[3].enqueued_at == START
        assert (rows[3].started_at, rows[3].finished_at) == (START + 1.0, START + 1.5)

    with_world(tmp_path, test)


def test_whose_statistics(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.ready(2, warm=True)
        world.run("a")
        world.run("b", number=2)
        one = await world.reader.read(ask(StatsQuery("fu-1")))
        both = await world.reader.read(ask(StatsQuery("fu-1", all_variants=True)))
        app = await world.reader.read(ask(StatsQuery(app="shop")))
        assert [one.success, both.success, app.success] == [1, 2, 2]
        assert (both.variants, app.deployments, app.started) == (1, 3, 2)
        mine = await world.reader.read(ask(StatsQuery("fu-1", container="ta-1")))
        other = await world.reader.read(ask(StatsQuery("fu-1", container="ta-9")))
        assert (mine.success, other.success) == (1, 0)
        with pytest.raises(InvalidError, match="name an app or a function"):
            await world.reader.read(ask(StatsQuery()))
        with pytest.raises(InvalidError, match="since must be before until"):
            await world.reader.read(ask(StatsQuery("fu-1", since=START, until=START - 1)))
        await world.tally.write(everything=True)
        world.gone = {"fu-1", "fu-8"}  # its app is stopped: what is kept can be read
        assert (await world.reader.read(ask(StatsQuery("fu-1")))).success == 1
        with pytest.raises(NotFoundError):
            await world.reader.read(ask(StatsQuery("fu-8")))

    with_world(tmp_path, test)


def test_containers_that_fail_and_those_that_are_stopped(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.ready(1)  # said again: counted once
        world.end(1, nodes.CRASHED)
        world._apply(events.StopContainer("ta-2", 0.0, False, "scaled down"))
        world.end(2, nodes.STOPPED)
        found = await world.reader.read(ask(StatsQuery(app="shop")))
        assert (found.started, found.errors) == (1, 1)

    with_world(tmp_path, test)


def test_usage_becomes_cores(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.tally.usage([Usage("ta-1", 100.0, 5.0, 1 << 20), Usage("ta-9", 100.0, 1.0, 1)])
        world.tally.usage([Usage("ta-1", 110.0, 10.0, 3 << 20)])
        world.tally.usage([Usage("ta-1", 110.0, 4.0, 3 << 20)])  # a count that went back is none
        part = world.tally.slice("fu-1")
        assert part.sums["cpu"] == [1, 0.5, 0.5, 0.5]
        assert part.most("memory") == 3 << 20

    with_world(tmp_path, test)


def test_inputs_that_wait_and_run_come_first(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.run("a")
        world.waiting("b")
        world.clock.advance(1.0)
        world._apply(events.Assign("ta-1", 1))
        world.waiting("c")
        found = (await world.reader.inputs(ask(FunctionInputs("fu-1")))).inputs
        assert [(one.input_id, one.status) for one in found] == [
            ("in-c", "PENDING"), ("in-b", "RUNNING"), ("in-a", "SUCCESS"),
        ]  # fmt: skip
        tail = (await world.reader.inputs(ask(FunctionInputs("fu-1", tail=1)))).inputs
        assert [one.input_id for one in tail] == ["in-c"]
        ranged = FunctionInputs("fu-1", tail=0, since=START + 0.5, until=START + 2.0)
        assert [one.input_id for one in (await world.reader.inputs(ask(ranged))).inputs] == ["in-b"]
        with pytest.raises(InvalidError):
            await world.reader.inputs(ask(FunctionInputs("fu-1", tail=-1)))

    with_world(tmp_path, test)


def test_rings_are_bounded_and_nothing_is_counted_twice(tmp_path: Any, monkeypatch: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.run("first")
        entry = Entry(1, "in-x", "fc-1", 0, "fu-1", True, ready_at=world.clock.now(), begun_at=world.clock.now())
        for number in range(3 * history.MAX_PENDING):
            world.history.note(replace(entry, input_id=f"in-{number}"), "SUCCESS", "", None)
        assert len(world.history._pending) < history.MAX_PENDING
        found = await world.reader.read(ask(StatsQuery("fu-1")))
        assert found.success == 3 * history.MAX_PENDING + 1
        await world.history.write(everything=True)
        await world.history.write(everything=True)
        assert len(await world.recent.read("fu-1", 0.0, 100_000)) == history.RING_INPUTS
        rows = await world.history.read("fu-1", 0.0, 100_000)
        assert len({one.input_id for one in rows}) == len(rows) == history.RING_INPUTS
        monkeypatch.setattr(history, "ALL_RINGS_INPUTS", 10)
        world.run("last", number=1)
        await world.history.write(everything=True)
        world.run("other", number=2)
        world.history.drain()
        assert "fu-1" not in world.history._rings
        assert (await world.history.read("fu-1", 0.0, 1))[0].input_id == "in-last"

    with_world(tmp_path, test)


def test_what_the_database_refuses_is_kept_for_later(tmp_path: Any, monkeypatch: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.run("a")

        async def full(rows: Any) -> None:
            raise InternalError("full")

        good: list[Optional[Any]] = [world.series.add, world.recent.add]
        monkeypatch.setattr(world.series, "add", full)
        monkeypatch.setattr(world.recent, "add", full)
        for write in (world.history.write, world.tally.write):
            with pytest.raises(InternalError):
                await write(everything=True)
        assert (await world.reader.read(ask(StatsQuery("fu-1")))).success == 1
        monkeypatch.setattr(world.series, "add", good[0])
        monkeypatch.setattr(world.recent, "add", good[1])
        await world.history.write(everything=True)
        await world.tally.write(everything=True)
        assert len(await world.recent.read("fu-1", 0.0, 10)) == 1
        assert (await world.series.read(["fu-1"], 0, START + 60))[0].slice.counts["SUCCESS"] == 1

    with_world(tmp_path, test)


def test_totals_only_grow_and_gauges_of_what_is_gone_are_zero(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.tally.sample()
        world.run("a")
        world.clock.advance(120.0)
        await world.tally.write()
        world.run("b")
        world.history.drain()
        total = dict(world.tally.totals())
        label = next(one for one in total if one.function == "f1")
        assert label == ("ap-1", "shop", "f1", "main")
        assert total[label].counts["SUCCESS"] == 2
        assert total[label].last("containers") == 1
        world.end(1, nodes.EXITED)
        world._apply(events.FunctionRemoved("fu-1"))
        assert dict(world.tally.totals())[label].last("containers") == 0

    with_world(tmp_path, test)


def test_metrics_over_time(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        world.ready(1)
        world.run("a")
        world.clock.advance(300.0)
        world.run("b")
        found = await world.reader.metric(ask(MetricQuery("fu-1", bucket_s=60, groups=("calls",))))
        by_name = {one.name: one for one in found.series}
        assert by_name["modal.input_events.total_inputs"].times == (START, START + 300)
        assert by_name["modal.input_events.total_inputs"].values == (1.0, 1.0)
        assert "modal.container.started" not in by_name
        with pytest.raises(InvalidError, match="no group of metrics named 'disk'"):
            await world.reader.metric(ask(MetricQuery("fu-1", groups=("disk",))))
        schema = await world.reader.schema(ask(MetricGroups(("cpu",))))
        assert [one.name for one in schema.definitions] == ["modal.cpu.utilization", "modal.cpu.utilization.max"]

    with_world(tmp_path, test)


def test_widths_of_buckets() -> None:
    assert stats.bucket_size(0.0, 3600.0) == 60.0
    assert stats.bucket_size(0.0, 24 * 3600.0) == 900.0
    assert stats.bucket_size(0.0, 365 * 24 * 3600.0) == 86_400.0
    assert stats.bucket_size(120.0, 3600.0) == 120.0
    with pytest.raises(InvalidError, match="a bucket may be"):
        stats.bucket_size(90.0, 3600.0)
    with pytest.raises(InvalidError, match="buckets"):
        stats.bucket_size(60.0, 30 * 24 * 3600.0)


def test_hours_and_minutes_share_a_bucket() -> None:
    one = Slice()
    one.count("SUCCESS", 2)
    kept = [Kept(0, 3600, one), Kept(3600, 60, one), Kept(3660, 60, one), Kept(7200, 60, one)]
    found = stats.curves(kept, 10.0, 7200.0, 3600.0, GROUPS)
    series = next(each for each in found.series if each.name == "modal.input_events.successes")
    assert (series.times, series.values) == ((0.0, 3600.0), (2.0, 4.0))


def test_a_declaration_has_no_secret_values(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        found = await world.reader.describe(ask(FunctionRef("fu-1")))
        assert found.secrets == ("vault",)
        assert "hidden" not in repr(found)

    with_world(tmp_path, test)


def test_of_very_many_inputs_all_are_counted_and_failures_listed(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        entry = Entry(1, "in-x", "fc-1", 0, "fu-1", True, ready_at=world.clock.now(), begun_at=world.clock.now())
        world.clock.advance(0.25)
        for number in range(2_000):
            status = "FAILURE" if number % 100 == 99 else "SUCCESS"
            world.history.note(replace(entry, input_id=f"in-{number}", took_s=0.25), status, "", None)
        found = await world.reader.read(ask(StatsQuery("fu-1")))
        assert (found.success, found.failure) == (1_980, 20)
        rows = await world.history.read("fu-1", 0.0, 10_000)
        assert sum(one.status == "FAILURE" for one in rows) == 20
        assert history.LISTED_INPUTS < len(rows) < 600
        counted = sum(world.tally.slice("fu-1").times["run"].values())
        assert counted == 2_000

    with_world(tmp_path, test)
