"""Dispatch, retries and deadlines, decided without a clock. Semantics: sections 6, 7, 8 and 9."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cadenza.base.errors import Bug
from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import (
    FAILURE,
    INTERNAL_FAILURE,
    MAX_INTERNAL_FAILURES,
    SUCCESS,
    TIMEOUT,
    AttemptOutput,
    attempt_id,
)
from cadenza.protocol.nodes import ContainerReport, NodeInfo
from cadenza.protocol.objects import FunctionSpec, MethodSpec, RetryPolicy
from cadenza.scheduling import events
from cadenza.scheduling import dispatch
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.states import AttemptState
from cadenza.storage.entry import Entry


def make(containers: int = 1, **spec: Any) -> Cluster:
    """A cluster with function ``f`` and so many READY containers ``c0``, ``c1``..."""
    cluster = Cluster()
    cluster.apply(events.NodeSeen(NodeInfo("n", Resources(100_000, 100_000))), 0.0)
    cluster.apply(events.FunctionAdded("f", "a", "app", FunctionSpec("f", **spec), {}), 0.0)
    for number in range(containers):
        cluster.apply(events.StartContainer(f"c{number}", "f", "n", (), "test"), 0.0)
        cluster.apply(events.ContainerSeen(ContainerReport(f"c{number}", nodes.READY)), 0.0)
    return cluster


def entry(index: int, **more: Any) -> Entry:
    return Entry(index, f"in-{index}", "fc", index, "f", False, **more)


def put(cluster: Cluster, count: int, now: float = 0.0, start: int = 0) -> None:
    cluster.apply(events.Arrived("f", [entry(index) for index in range(start, start + count)]), now)


def give_all(cluster: Cluster, now: float = 0.0) -> dict[str, list[int]]:
    """Carry out every assignment that is possible: container to the indices it got."""
    given: dict[str, list[int]] = {}
    while True:
        assign = dispatch.plan(cluster, cluster.functions["f"], now)
        if assign is None:
            return given
        for attempt in cluster.apply(assign, now):
            given.setdefault(assign.container_id, []).append(attempt.entry.index)


def settle(cluster: Cluster, container: str, index: int, now: float, took: float = 0.0, fence: int = 1) -> None:
    output = AttemptOutput(attempt_id(f"in-{index}", fence), SUCCESS, started_at=50.0, finished_at=50.0 + took)
    cluster.apply(events.Settle(container, [output]), now)


def test_each_container_gets_as_many_as_it_should() -> None:
    cluster = make(2, max_concurrent=4, target_concurrent=2)
    put(cluster, 5)
    given = give_all(cluster)
    assert {name: len(got) for name, got in given.items()} == {"c0": 2, "c1": 2}
    assert [one.index for one in cluster.functions["f"].ready] == [4]


def test_the_last_used_container_is_used_again() -> None:
    cluster = make(3)
    for index in range(4):
        put(cluster, 1, start=index)
        (name,) = give_all(cluster)
        settle(cluster, name, index, 1.0, took=1.0)
        assert name == "c2", "the others fall idle"


def test_short_functions_get_inputs_early_and_slow_ones_do_not() -> None:
    cluster = make(1)
    put(cluster, 1)
    give_all(cluster)
    settle(cluster, "c0", 0, 0.0, took=0.001)
    put(cluster, 50, start=1)
    assert len(give_all(cluster)["c0"]) == 1 + 10, "10 ms of work wait, 1 ms each"
    slow = make(1)
    put(slow, 1)
    give_all(slow)
    settle(slow, "c0", 0, 0.0, took=0.5)
    put(slow, 50, start=1)
    assert len(give_all(slow)["c0"]) == 1


def test_at_most_32_wait_early() -> None:
    cluster = make(1)
    put(cluster, 1)
    give_all(cluster)
    settle(cluster, "c0", 0, 0.0, took=1e-6)
    put(cluster, 100, start=1)
    assert len(give_all(cluster)["c0"]) == 1 + dispatch.MAX_EARLY


def test_what_waits_behind_a_slow_head_is_called_back() -> None:
    cluster = make(1)
    cluster.functions["f"].average_s = 0.001
    put(cluster, 3)
    give_all(cluster, 10.0)
    found, again = dispatch.overdue(cluster.containers["c0"], 10.01)
    assert found == [] and again == pytest.approx(10.02)
    ((back,), _) = dispatch.overdue(cluster.containers["c0"], 10.03)
    assert isinstance(back, events.CallBack)
    assert list(back.attempt_ids) == ["in-1:1", "in-2:1"]
    cluster.apply(back, 10.03)
    assert dispatch.overdue(cluster.containers["c0"], 10.03)[0] == [], "asked once"
    put(cluster, 1, start=9)
    assert give_all(cluster, 10.03) == {}, "and nothing more goes there"


def test_a_time_limit_counts_from_the_beginning_of_each_attempt() -> None:
    cluster = make(1, timeout_s=5.0)
    cluster.functions["f"].average_s = 0.001
    put(cluster, 2)
    give_all(cluster, 10.0)
    settle(cluster, "c0", 0, 14.0)
    assert dispatch.overdue(cluster.containers["c0"], 18.9)[0] == []
    ((late,), _) = dispatch.overdue(cluster.containers["c0"], 19.0)
    assert isinstance(late, dispatch.TimedOut) and late.attempt.entry.index == 1


def test_a_zombie_keeps_its_slot_until_its_end_or_deadline() -> None:
    cluster = make(1, timeout_s=5.0)
    put(cluster, 1)
    give_all(cluster, 10.0)
    cluster.apply(events.Bury("c0", ["in-0:1"]), 11.0)
    put(cluster, 1, start=1)
    assert give_all(cluster, 11.0) == {}
    ((stop,), _) = dispatch.overdue(cluster.containers["c0"], 15.0)
    assert isinstance(stop, events.StopContainer) and stop.grace_s < 5.0 and not stop.drain
    settle(cluster, "c0", 0, 12.0)
    assert give_all(cluster, 12.0) == {"c0": [1]}


def test_a_container_that_is_to_stop_gets_nothing() -> None:
    cluster = make(1)
    cluster.apply(events.StopContainer("c0", 5.0, True, "test"), 0.0)
    put(cluster, 1)
    assert give_all(cluster) == {}


def test_a_fence_grows_with_each_lease() -> None:
    cluster = make(1)
    put(cluster, 1)
    give_all(cluster)
    (attempt,) = cluster.apply(events.Detach("c0", ["in-0:1"]), 1.0)
    cluster.apply(events.Arrived("f", [attempt.entry], front=True), 1.0)
    give_all(cluster, 1.0)
    assert list(cluster.containers["c0"].attempts) == ["in-0:2"]
    settle(cluster, "c0", 0, 2.0, fence=1)
    assert cluster.functions["f"].running == 1, "the old attempt's word counts for nothing"


def test_an_old_report_changes_nothing() -> None:
    cluster = make(1)
    cluster.apply(events.ContainerSeen(ContainerReport("c0", nodes.STARTING)), 1.0)
    assert cluster.containers["c0"].state == nodes.READY


def test_what_is_no_event_is_a_bug() -> None:
    with pytest.raises(Bug):
        Cluster().apply("nonsense", 0.0)  # type: ignore[arg-type]


FIXED = FunctionSpec("f", retries=RetryPolicy(3))
DOUBLING = FunctionSpec("f", retries=RetryPolicy(9, 2.0, 1.0, 10.0))


@pytest.mark.parametrize(
    ("spec", "delays"),
    [
        (FIXED, [1, 1, 1, 1]),
        (DOUBLING, [1, 2, 4, 8, 10, 10]),
        (FunctionSpec("f", retries=RetryPolicy(3, 2.0, 0.1)), [1, 1, 1, 1]),
    ],
)
def test_retry_delays(spec: FunctionSpec, delays: list[float]) -> None:
    """Section 7: fixed or exponential, raised to 1 s, cut at max_delay."""
    assert [dispatch.retry_delay_s(spec, failures) for failures in range(1, len(delays) + 1)] == delays


def test_a_huge_count_of_retries_does_not_overflow() -> None:
    assert dispatch.retry_delay_s(FunctionSpec("f", retries=RetryPolicy(10_000, 10.0, 1.0, 60.0)), 9_000) == 60.0


def test_failures_are_charged_until_the_retries_are_spent() -> None:
    assert dispatch.after_failure(entry(0, retries=2), FIXED, FAILURE, "x").charged
    verdict = dispatch.after_failure(entry(0, retries=3), FIXED, TIMEOUT, "late")
    assert (verdict.delay_s, verdict.status, verdict.error) == (None, TIMEOUT, "late")
    assert dispatch.after_failure(entry(0), FunctionSpec("f"), FAILURE, "x").delay_s is None


def attempt(begun: float = 1.0, **more: Any) -> AttemptState:
    return AttemptState("in-0:1", entry(0, **more), 0.0, 5.0, begun_at=begun)


def test_the_platforms_losses_cost_nothing_and_have_an_end() -> None:
    report = ContainerReport("c", nodes.GONE, nodes.RUNTIME_FAILED, "the mount failed")
    assert dispatch.after_end(attempt(), FunctionSpec("f"), report).delay_s == 0.0
    last = dispatch.after_end(attempt(losses=MAX_INTERNAL_FAILURES), FunctionSpec("f"), report)
    assert last.delay_s is None and last.status == INTERNAL_FAILURE
    assert "the mount failed" in last.error


def test_a_generator_that_has_given_values_is_not_begun_again() -> None:
    given = attempt()
    given.next_item = 3
    report = ContainerReport("c", nodes.GONE, nodes.NODE_LOST)
    verdict = dispatch.after_end(given, FunctionSpec("f", is_generator=True), report)
    assert verdict.status == INTERNAL_FAILURE and "3 values" in verdict.error


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (ContainerReport("c", nodes.GONE, nodes.CRASHED, exit_code=139), "SIGSEGV"),
        (ContainerReport("c", nodes.GONE, nodes.CRASHED, exit_code=-11), "SIGSEGV"),
        (ContainerReport("c", nodes.GONE, nodes.CRASHED, exit_code=3), "exited with code 3"),
        (ContainerReport("c", nodes.GONE, nodes.OOM, exit_code=137), "256 MiB"),
    ],
)
def test_a_crash_says_what_happened(report: ContainerReport, text: str) -> None:
    spec = FunctionSpec("f", resources=Resources(memory_limit_mib=256))
    verdict = dispatch.after_end(attempt(), spec, report)
    assert (verdict.delay_s, verdict.charged) == (0.0, False), "it costs no retries"
    verdict = dispatch.after_end(attempt(losses=dispatch.MAX_CRASHED - 1), spec, report)
    assert verdict.delay_s is None and verdict.status == FAILURE
    assert text in verdict.error and "run 3 times" in verdict.error


def test_what_had_not_begun_in_a_crash_goes_on_elsewhere() -> None:
    report = ContainerReport("c", nodes.GONE, nodes.CRASHED, exit_code=1)
    assert dispatch.after_end(attempt(begun=-1.0), FunctionSpec("f"), report).delay_s == 0.0


@pytest.mark.parametrize(
    ("policy", "runs"),
    [(None, 3), (RetryPolicy(1), 3), (RetryPolicy(5), 6), (RetryPolicy(5, on=("builtins.OSError",)), 3)],
)
def test_in_an_ephemeral_app_a_crashing_input_ends(policy: RetryPolicy | None, runs: int) -> None:
    """semantics.md section 7: retried until too much fails; a policy that asks for more runs gets them."""
    spec, report = FunctionSpec("f", retries=policy), ContainerReport("c", nodes.GONE, nodes.CRASHED, exit_code=1)
    found = [dispatch.after_end(attempt(losses=losses), spec, report).delay_s for losses in range(runs)]
    assert found == [0.0] * (runs - 1) + [None]


def test_in_a_deployed_app_it_is_run_for_ever_later_and_later() -> None:
    """semantics.md section 7: crash-loop backoff. The platform's losses end no input of such an app either."""
    spec, report = FunctionSpec("f"), ContainerReport("c", nodes.GONE, nodes.OOM)
    found = [dispatch.after_end(attempt(losses=losses), spec, report, False).delay_s for losses in (0, 1, 2, 3, 99)]
    assert found == [0.0, 1.0, 2.0, 4.0, 60.0]
    lost = [dispatch.after_loss(attempt(losses=losses), spec, "x", ephemeral=False).delay_s for losses in (0, 7, 8, 99)]
    assert lost == [0.0, 0.0, 1.0, 60.0]


def test_what_a_replacement_ends_costs_nothing_however_often() -> None:
    assert dispatch.after_loss(attempt(losses=99), FunctionSpec("f"), "replaced", free=True).delay_s == 0.0


@pytest.mark.parametrize(
    ("on", "not_on", "kinds", "again"),
    [
        ((), (), ("builtins.ValueError", "builtins.Exception"), True),
        (("builtins.Exception",), (), ("builtins.ValueError", "builtins.Exception"), True),
        (("builtins.OSError",), (), ("builtins.ValueError", "builtins.Exception"), False),
        (("builtins.Exception",), ("builtins.ValueError",), ("builtins.ValueError", "builtins.Exception"), False),
        (("builtins.TimeoutError",), (), dispatch.TIMEOUT_KINDS, True),
        ((), ("cadenza.exception.FunctionTimeoutError",), dispatch.TIMEOUT_KINDS, False),
        (("builtins.Exception",), (), (), False),
        ((), ("builtins.ValueError",), (), True),
    ],
)
def test_retries_can_name_exceptions(
    on: tuple[str, ...], not_on: tuple[str, ...], kinds: tuple[str, ...], again: bool
) -> None:
    spec = FunctionSpec("f", retries=RetryPolicy(2, on=on, not_on=not_on))
    verdict = dispatch.after_failure(entry(0), spec, FAILURE, "no", kinds)
    assert (verdict.delay_s is not None, verdict.charged) == (again, again)


def test_a_generating_method_of_a_class_has_no_retries() -> None:
    spec = FunctionSpec("C.*", retries=RetryPolicy(2), methods=(MethodSpec("g", is_generator=True), MethodSpec("m")))
    found = [dispatch.after_failure(entry(0, method=name), spec, FAILURE, "no").delay_s for name in ("g", "m")]
    assert found == [None, 1.0]


def batched(containers: int = 1, **spec: Any) -> Cluster:
    return make(containers, **{"batch_max": 4, "batch_wait_ms": 100, **spec})


def give_batches(cluster: Cluster, now: float) -> list[tuple[str, list[int]]]:
    """Carry out every assignment that is possible: container and indices of each batch."""
    found = []
    while (assign := dispatch.plan(cluster, cluster.functions["f"], now)) is not None:
        given = cluster.apply(assign, now)
        assert len({one.batch for one in given}) == 1 and given[0].batch
        found.append((assign.container_id, [one.entry.index for one in given]))
    return found


def test_a_batch_leaves_when_it_is_full_or_when_the_window_of_its_first_input_is_over() -> None:
    """semantics.md section 10."""
    cluster = batched(3)
    put(cluster, 3, now=10.0)
    assert give_batches(cluster, 10.0) == []
    assert dispatch.next_batch_at(cluster.functions["f"], 10.0) == pytest.approx(10.1)
    put(cluster, 3, now=10.05, start=3)
    assert give_batches(cluster, 10.05) == [("c2", [0, 1, 2, 3])]
    assert dispatch.next_batch_at(cluster.functions["f"], 10.05) == pytest.approx(10.15)
    assert give_batches(cluster, 10.151) == [("c1", [4, 5])]


def test_a_container_holds_as_many_batches_as_it_may_have_inputs() -> None:
    cluster = batched(1, max_concurrent=2, target_concurrent=1)
    put(cluster, 12, now=1.0)
    assert give_batches(cluster, 1.0) == [("c0", [0, 1, 2, 3])]
    more = dispatch.burst(cluster, cluster.functions["f"], 1.0)
    assert more is not None and more.count == 4
    cluster.apply(more, 1.0)
    assert dispatch.burst(cluster, cluster.functions["f"], 1.0) is None
    for index in range(3):
        settle(cluster, "c0", index, 2.0)
    assert give_batches(cluster, 2.0) == [], "a batch is over when all its inputs are"
    settle(cluster, "c0", 3, 2.0)
    assert give_batches(cluster, 2.0) == [], "one still runs, and one is the target"


def test_a_batch_is_of_one_method() -> None:
    cluster = batched(2, methods=(MethodSpec("a"), MethodSpec("b")))
    found = [entry(index, method="ab"[index % 2]) for index in range(9)]
    cluster.apply(events.Arrived("f", found), 1.0)
    assert give_batches(cluster, 1.0) == [("c1", [0, 2, 4, 6]), ("c0", [1, 3, 5, 7])]
    assert [one.index for one in cluster.functions["f"].ready] == [8]


def test_a_batch_lends_when_one_of_it_waits_for_a_call() -> None:
    cluster = batched(1)
    put(cluster, 4, now=1.0)
    give_batches(cluster, 1.0)
    cluster.apply(events.Nested("in-0", 1), 1.0)
    assert cluster.containers["c0"].lends


def test_nothing_planned_means_no_alarm() -> None:
    assert make(0).next_alarm() == math.inf


def resize(cluster: Cluster, container: str, slots: int, now: float = 0.0) -> None:
    cluster.apply(events.ContainerSeen(ContainerReport(container, nodes.READY, slots=slots)), now)


def test_a_container_gets_as_many_as_it_says_that_it_runs() -> None:
    """Section 31: ``set_local_input_concurrency``; never more than declared."""
    cluster = make(2, max_concurrent=4, target_concurrent=4)
    resize(cluster, "c0", 2)
    resize(cluster, "c1", 9)
    put(cluster, 8)
    assert {name: len(got) for name, got in give_all(cluster).items()} == {"c0": 2, "c1": 4}
    settle(cluster, "c0", 4, 1.0, took=1.0)
    settle(cluster, "c0", 5, 1.0, took=1.0)
    resize(cluster, "c0", 4, 1.0)
    assert len(give_all(cluster, 1.0)["c0"]) == 2, "and takes more when the number grows"


def test_time_counts_only_for_what_runs_in_a_container_with_fewer_slots() -> None:
    cluster = make(max_concurrent=4, target_concurrent=4, timeout_s=5.0)
    resize(cluster, "c0", 1)
    cluster.functions["f"].average_s = 0.001
    put(cluster, 3)
    give_all(cluster)
    container = cluster.containers["c0"]
    assert (container.begun, len(container.queued)) == (1, 2)
    resize(cluster, "c0", 3, 2.0)
    assert [one.deadline for one in container.attempts.values()] == [5.0, 7.0, 7.0]


def test_the_burst_respects_the_slots_too() -> None:
    cluster = make(max_concurrent=4, target_concurrent=2)
    resize(cluster, "c0", 3)
    put(cluster, 6)
    given = give_all(cluster)["c0"]
    while (assign := dispatch.burst(cluster, cluster.functions["f"], 0.0)) is not None:
        given += [one.entry.index for one in cluster.apply(assign, 0.0)]
    assert len(given) == 3


def test_the_same_number_of_slots_is_no_news() -> None:
    cluster = make(max_concurrent=4, target_concurrent=4)
    resize(cluster, "c0", 2)
    known = cluster.containers["c0"].report
    resize(cluster, "c0", 2)
    assert cluster.containers["c0"].report is known
    cluster.apply(events.ContainerSeen(ContainerReport("c0", nodes.STARTING, slots=1)), 0.0)
    assert cluster.containers["c0"].slots == 2, "a report of an earlier state is old"
