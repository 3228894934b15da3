"""How many containers, and why. Semantics: sections 11.1 and 12.1."""

from __future__ import annotations

from typing import Any

import pytest

from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import INIT_FAILURE
from cadenza.protocol.nodes import ContainerReport, NodeInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import autoscale
from cadenza.scheduling import events
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.events import FailedStart
from cadenza.storage.entry import Entry


def make(waiting: int = 0, containers: int = 0, ready: bool = True, **spec: Any) -> Cluster:
    cluster = Cluster()
    cluster.apply(events.NodeSeen(NodeInfo("n", Resources(100_000, 100_000))), 0.0)
    cluster.apply(events.FunctionAdded("f", "a", "app", FunctionSpec("f", **spec), {}), 0.0)
    for number in range(containers):
        cluster.apply(events.StartContainer(f"c{number}", "f", "n", (), "test"), 0.0)
        if ready:
            cluster.apply(events.ContainerSeen(ContainerReport(f"c{number}", nodes.READY)), float(number))
    cluster.apply(events.Arrived("f", [Entry(i, f"in-{i}", "fc", i, "f", False) for i in range(waiting)]), 0.0)
    return cluster


def decide(cluster: Cluster, now: float = 0.0) -> autoscale.Decision:
    return autoscale.decide(cluster.functions["f"], now)


@pytest.mark.parametrize(
    ("waiting", "spec", "start"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (7, {}, 7),
        (7, {"max_concurrent": 10, "target_concurrent": 3}, 3),
        (7, {"max_containers": 4}, 4),
        (0, {"min_containers": 2}, 2),
        (0, {"buffer_containers": 3}, 0),
        (1, {"buffer_containers": 3}, 4),
        (1, {"buffer_containers": 3, "max_containers": 2}, 2),
        (9_000, {}, 4_000),
    ],
)
def test_from_zero(waiting: int, spec: dict[str, Any], start: int) -> None:
    assert decide(make(waiting, **spec)).start == start


def test_containers_on_their_way_count() -> None:
    assert decide(make(5, containers=3, ready=False)).start == 2


def test_the_table_s_backlog_counts_but_not_what_is_not_due() -> None:
    cluster = make()
    cluster.apply(events.BacklogChanged("f", 6, 2), 0.0)
    assert decide(cluster).start == 4


def test_short_work_is_not_worth_a_start() -> None:
    cluster = make(50, containers=1)
    cluster.functions["f"].average_s = 0.001
    decision = decide(cluster)
    assert decision.start == 0 and "done in 0.05 s" in decision.why
    cluster.functions["f"].average_s = 1.0
    assert decide(cluster).start == 49


def test_idle_containers_end_after_the_window_oldest_first() -> None:
    cluster = make(containers=3, min_containers=1, scaledown_window_s=60.0)
    for one in cluster.containers.values():
        one.taken = 1
    assert decide(cluster, 59.0).stop == ()
    assert decide(cluster, 59.0).again_at == 60.0
    assert decide(cluster, 60.5).stop == ("c0",)
    assert decide(cluster, 99.0).stop == ("c0", "c1"), "one stays: min_containers"


def test_those_that_are_stopping_count_against_the_maximum() -> None:
    cluster = make(3, containers=2, max_containers=2)
    cluster.apply(events.StopContainer("c0", 30.0, True, "test"), 0.0)
    assert decide(cluster).start == 0, "its place is free when it is gone"


def test_an_ended_app_wants_nothing() -> None:
    cluster = make(1, containers=1)
    cluster.apply(events.FunctionRemoved("f"), 0.0)
    assert decide(cluster, 1e6) == autoscale.Decision(0, (), "its app has ended")


def test_failed_starts_are_spaced_out_and_said_why() -> None:
    assert [autoscale.backoff_s(failures) for failures in (1, 2, 3, 4, 50)] == [0.0, 0.25, 0.5, 1.0, 60.0]
    cluster = make(1)
    cluster.apply(events.StartFailed("f", True, 7.5), 5.0)
    decision = decide(cluster, 5.0)
    assert (decision.start, decision.again_at) == (0, 7.5)
    assert "next start is in 2.5 s" in decision.why
    cluster.apply(events.StartFailed("f", True, 7.5, FailedStart(INIT_FAILURE, "ImportError: x")), 5.0)
    assert "ImportError" in decide(cluster, 9.0).why


def test_idle_containers_make_room_for_others_but_not_below_the_minimum() -> None:
    cluster = make(containers=3, min_containers=1)
    assert autoscale.spare(cluster.functions.values(), 5) == ["c0", "c1"]
    assert autoscale.spare(cluster.functions.values(), 1) == ["c0"]


def test_a_function_of_which_nothing_is_known_grows_in_steps() -> None:
    unknown = make(50, containers=0).functions["f"]
    assert autoscale.decide(unknown, 0.0, 8).start == 8
    starting = make(50, containers=8, ready=False).functions["f"]
    assert autoscale.decide(starting, 0.0, 8).start == 0
    ready = make(50, containers=8).functions["f"]
    assert autoscale.decide(ready, 10.0, 8).start == 8
    known = make(50, containers=8).functions["f"]
    known.average_s = 10.0
    assert autoscale.decide(known, 10.0, 8).start == 42


@pytest.mark.parametrize("spec", [{"max_containers": 50}, {"single_use": True}])
def test_what_the_user_asked_for_starts_at_once(spec: dict[str, Any]) -> None:
    assert autoscale.decide(make(50, **spec).functions["f"], 0.0, 8).start == 50


def test_containers_that_run_fewer_at_once_are_counted_so() -> None:
    """Section 31: ``set_local_input_concurrency`` of the present containers tells what further ones will take."""
    cluster = make(12, containers=2, max_concurrent=8, target_concurrent=8)
    assert decide(cluster).start == 0
    for name in ("c0", "c1"):
        cluster.apply(events.ContainerSeen(ContainerReport(name, nodes.READY, slots=2)), 2.0)
    decision = decide(cluster)
    assert decision.start == 4 and "6 containers, 2 at a time in each" in decision.why


@pytest.mark.parametrize(
    ("waiting", "held", "spec", "words"),
    [
        (1, 0, {}, "1 input waits, which needs 1 container"),
        (3, 1, {}, "3 inputs wait and 1 runs, which needs 4 containers"),
        (0, 2, {}, "2 inputs run, which needs 2 containers"),
        (0, 1, {}, "1 input runs, which needs 1 container"),
        (0, 0, {}, "nothing waits or runs"),
        (9, 0, {"max_containers": 4}, "9 inputs wait, which needs 9 containers; it may have at most 4"),
        (7, 0, {"batch_max": 3}, "3 batches wait, which needs 3 containers"),
        (7, 0, {"max_concurrent": 3, "target_concurrent": 3}, "needs 3 containers, 3 at a time in each"),
    ],
)
def test_reasons_are_sentences(waiting: int, held: int, spec: dict[str, Any], words: str) -> None:
    cluster = make(waiting + held, containers=held, **spec)
    for number in range(held):
        cluster.apply(events.Assign(f"c{number}", 1), 0.0)
    assert decide(cluster).why.endswith(words)


def test_containers_beyond_the_need_that_never_had_an_input_end_sooner() -> None:
    """Section 11.1: "if the pool is over-provisioned some end sooner"."""
    cluster = make(containers=3, scaledown_window_s=60.0)
    cluster.containers["c0"].taken = 1
    assert decide(cluster, 10.9).stop == () and decide(cluster, 10.9).again_at == 11.0
    assert decide(cluster, 12.0).stop == ("c1", "c2"), "and the one that had one stays for the window"
    assert decide(cluster, 60.0).stop == ("c1", "c2", "c0")
    assert decide(make(containers=1, scaledown_window_s=2.0), 1.9).stop == ()
    assert decide(make(containers=1, buffer_containers=1), 59.0).stop == (), "a buffer is there to be unused"
    assert decide(make(containers=1, min_containers=1), 1e6).stop == ()


def test_what_is_done_before_another_one_would_be_ready_starts_none() -> None:
    """200 inputs of 0.5 s wait for 20 containers: in the 20 s that a start takes these are done with all of it."""
    cluster = make(200, containers=20)
    function = cluster.functions["f"]
    function.average_s, function.start_s, function.rate = 0.5, 20.0, 0.0
    assert decide(cluster, 20.0).start == 0
    function.start_s = 1.0
    assert decide(cluster, 20.0).start == 160, "each with half a second of work, which is half of its start"
    function.start_s = 20.0
    function.rate, function.rate_at = 100.0, 20.0
    assert decide(cluster, 20.0).start == 69, "100 a second need 50 at least"


def test_those_that_start_count_for_the_time_in_which_they_are_ready() -> None:
    cluster = make(200, containers=20, ready=False)
    function = cluster.functions["f"]
    function.average_s, function.start_s, function.rate = 0.5, 20.0, 0.0
    assert decide(cluster, 0.0).start == 0, "each will have 5 s of work, where 10 s are worth a start"
    function.average_s = 1.5
    assert decide(cluster, 0.0).start == 10, "they were started for 10 s each: 100 s are left"
    assert decide(cluster, 9.0).start == 0, "and 190 s when they have more than half of their starts behind them"


def test_a_decision_is_not_made_twice() -> None:
    """What was started for what waits is not started again with the next arrival, although it is not ready for long."""
    cluster = make(2000, containers=32)
    function = cluster.functions["f"]
    function.average_s, function.start_s, function.rate, function.rate_at = 0.5, 20.0, 85.0, 20.0
    first = decide(cluster, 20.0).start
    assert 100 <= first <= 130
    for number in range(first):
        cluster.apply(events.StartContainer(f"d{number}", "f", "n", (), "test", 1), 20.0)
    assert decide(cluster, 20.01).start <= 1


def test_how_long_a_start_takes_and_how_fast_inputs_come_is_known() -> None:
    cluster = make()
    function = cluster.functions["f"]
    for number, took in enumerate((4.0, 8.0)):
        cluster.apply(events.StartContainer(f"c{number}", "f", "n", (), "test", 1), 100.0)
        cluster.apply(events.ContainerSeen(ContainerReport(f"c{number}", nodes.READY)), 100.0 + took)
    assert function.start_s == pytest.approx(4.0 + 0.3 * 4.0)
    for second in range(60):
        entries = [Entry(i, f"in-{second}-{i}", "fc", i, "f", False) for i in range(7)]
        cluster.apply(events.Arrived("f", entries), 200.0 + second)
    assert function.rate_now(260.0) == pytest.approx(7.0, rel=0.1)
    assert function.rate_now(300.0) < 0.2
    cluster.apply(events.Arrived("f", entries, front=True), 300.0)
    assert function.rate_now(300.0) < 0.2, "what comes back did not arrive"
