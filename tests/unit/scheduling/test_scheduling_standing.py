"""Why inputs wait and containers are there, in words."""

from __future__ import annotations

from typing import Any

from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import INIT_FAILURE
from cadenza.protocol.nodes import ContainerReport, NodeInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import events
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.standing import live_containers, note, standing, waiting_inputs
from cadenza.storage.entry import Entry


def make(waiting: int = 1, **spec: Any) -> Cluster:
    cluster = Cluster()
    cluster.apply(events.NodeSeen(NodeInfo("n", Resources(100_000, 100_000))), 0.0)
    cluster.apply(events.FunctionAdded("f", "a", "app", FunctionSpec("f", **spec), {}, ephemeral=False), 0.0)
    cluster.apply(events.Wanting("f", True, "1 waiting"), 0.0)
    cluster.apply(events.Arrived("f", [Entry(i, f"in-{i}", "fc", i, "f", False) for i in range(waiting)]), 0.0)
    return cluster


def start(cluster: Cluster, name: str, *reports: ContainerReport, function: str = "f") -> None:
    cluster.apply(events.StartContainer(name, function, "n", (), "1 waiting"), 1.0)
    for one in reports:
        cluster.apply(events.ContainerSeen(one), 2.0)


def said(cluster: Cluster, now: float = 3.0, stuck: bool = False, pause: str = "") -> str:
    return standing(cluster, cluster.functions["f"], now, stuck, pause)


def test_each_thing_that_an_input_can_wait_for() -> None:
    assert said(make(0)) == "nothing waits or runs"
    assert said(make()) == "it has no container yet: 1 waiting"
    assert said(make(), pause="the budget is spent") == "the budget is spent"
    starting = make()
    start(starting, "c", ContainerReport("c", nodes.STARTING, phases={"queued": 0.0, "network": 0.1, "rootfs": 0.2}))
    assert said(starting) == "a container is starting for it, for 2.0 s now, in the phase 'create'"
    busy = make(2, max_containers=1)
    start(busy, "c", ContainerReport("c", nodes.READY))
    busy.apply(events.Assign("c", 1), 2.0)
    assert said(busy) == "the one container that it may have is busy (max_containers is 1)"
    busy.apply(events.StopContainer("c", 30.0, True, "test"), 3.0)
    assert said(busy).endswith("1 of them are ending and may finish what they run first")
    more = make(2)
    start(more, "c", ContainerReport("c", nodes.READY))
    more.apply(events.Assign("c", 1), 2.0)
    assert said(more) == "1 container of it is busy: 1 waiting"
    more.apply(events.FunctionRemoved("f"), 3.0)
    assert "has ended" in said(more)


def test_who_holds_the_machine() -> None:
    cluster = make()
    cluster.apply(events.FunctionAdded("g", "b", "other", FunctionSpec("g"), {}), 0.0)
    for number in range(3):
        start(cluster, f"g{number}", function="g")
    text = said(cluster, stuck=True)
    assert text == "no machine has room for one more container: it is held by 3 containers of other/g. 1 waiting"


def test_crash_loops() -> None:
    cluster = make()
    functions = cluster.functions.values()
    cluster.apply(events.StartFailed("f", True, 3.5, text="ImportError: x"), 3.0)
    assert said(cluster) == (
        "1 of its containers failed to start one after the other; the next start is in 0.5 s: ImportError: x"
    )
    assert note(functions, 3.0) == "", "once is no loop"
    cluster.apply(events.StartFailed("f", True, 7.0, text="ImportError: x"), 3.0)
    assert note(functions, 3.0).startswith("f: 2 of its containers failed to start")
    start(cluster, "c", ContainerReport("c", nodes.READY))
    assert note(functions, 4.0) == ""
    cluster.apply(events.Crashed("f", 9.0, "SIGSEGV"), 4.0)
    cluster.apply(events.Crashed("f", 9.0, "SIGSEGV"), 4.0)
    assert note(functions, 5.0) == (
        "f: 2 of its containers crashed one after the other; the next start is in 4.0 s: SIGSEGV"
    )
    failing = events.FailedStart(INIT_FAILURE, "ImportError: y")
    cluster.apply(events.StartFailed("f", True, 9.0, failing, "ImportError: y"), 5.0)
    assert "what waits fails: ImportError: y" in note(functions, 5.0)


def test_each_input_has_its_own_reason() -> None:
    cluster = make(2, batch_max=4, batch_wait_ms=500)
    table = [("in-8", "fc", 103.5, 0, 2), ("in-9", "fc", 107.0, 1, 0), ("in-10", "fc", 50.0, 0, 0)]
    found = waiting_inputs(cluster.functions["f"], 0.1, 100.0, "because", table)
    assert [one.why for one in found] == [
        "its batch has 2 of up to 4 inputs; it leaves in 0.40 s at the latest",
        "its batch has 2 of up to 4 inputs; it leaves in 0.40 s at the latest",
        "its container ended under it 2 times; it runs again in 3.4 s",
        "it failed 1 times; it runs again in 6.9 s",
        "it is queued behind 2 others; because",
    ]
    assert found[0].since == 100.0
    due = waiting_inputs(cluster.functions["f"], 0.6, 100.0, "because", [])
    assert {one.why for one in due} == {"because"}


def test_containers_oldest_first_with_their_reasons() -> None:
    cluster = make()
    start(cluster, "c", ContainerReport("c", nodes.READY))
    cluster.apply(events.StopContainer("c", 30.0, True, "idle for 60 s"), 3.0)
    (one,) = live_containers(cluster.functions["f"], 100.0)
    assert (one.container_id, one.state, one.since, one.why) == ("c", "stopping", 101.0, "idle for 60 s")
