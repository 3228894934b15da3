"""Which node takes which container. Semantics: section 11.2 and 11.3."""

from __future__ import annotations

import pytest

from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.nodes import READY, ContainerReport, NodeInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import autoscale
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.events import ContainerSeen, FunctionAdded, NodeSeen, StartContainer
from cadenza.scheduling.placement import Want, accepts, helps, place, refusal, where

SMALL = NodeInfo("no-a", Resources(1000, 1000))
LARGE = NodeInfo("no-b", Resources(4000, 1000))
HUGE = NodeInfo("no-h", Resources(8000, 90_000))
GPUS = NodeInfo("no-g", Resources(8000, 8000), gpus={"H100": 2, "T4": 1})


def nodes(*infos: NodeInfo) -> Cluster:
    cluster = Cluster()
    for one in infos:
        cluster.apply(NodeSeen(one), 0.0)
    return cluster


def test_the_node_with_most_room_takes_it_and_what_is_left_over_waits() -> None:
    placed, left = place([Want("f", Resources(1000, 100), 7)], nodes(SMALL, LARGE).nodes)
    assert [one.node_id for one in placed] == ["no-b", "no-b", "no-b", "no-a", "no-b"]
    assert left == {"f": 2}


def test_functions_take_turns() -> None:
    wants = [Want("f", Resources(500, 100), 9), Want("g", Resources(500, 100), 9)]
    placed, left = place(wants, nodes(SMALL).nodes)
    assert [one.function_id for one in placed] == ["f", "g"]
    assert left == {"f": 8, "g": 8}


def test_gpus_by_preference_and_count() -> None:
    wish = Resources(100, 100, gpus=(Gpu("A10"), Gpu("H100", 2)))
    placed, left = place([Want("f", wish, 2)], nodes(SMALL, GPUS).nodes)
    assert [(one.node_id, one.gpus) for one in placed] == [("no-g", (Gpu("H100", 2),))]
    assert left == {"f": 1}


def test_work_without_gpus_leaves_them_alone() -> None:
    placed, _ = place([Want("f", Resources(100, 100), 1)], nodes(SMALL, GPUS).nodes)
    assert placed[0].node_id == "no-a"


def test_nothing_goes_to_a_node_that_is_away() -> None:
    cluster = nodes(LARGE)
    cluster.apply(NodeSeen(LARGE, connected=False), 0.0)
    assert place([Want("f", Resources(1, 1), 1)], cluster.nodes) == ([], {"f": 1})


def test_what_no_node_can_ever_hold_is_refused_in_a_sentence() -> None:
    assert refusal(Resources(4000, 1000), [SMALL, LARGE]) == ""
    text = refusal(Resources(64_000, 128), [LARGE, GPUS])
    assert "64 cores and 128 MiB" in text and "8 cores, 8000 MiB" in text and "Ask for less" in text
    text = refusal(Resources(100, 128, gpus=(Gpu("H100", 4),)), [LARGE, GPUS])
    assert "no such GPU" in text and "H100:4" in text and "there is no GPU; H100:2, T4:1" in text
    assert "what one machine has together" in refusal(Resources(100, 9000, gpus=(Gpu("T4"),)), [LARGE, GPUS, HUGE])
    assert refusal(Resources(), []) != ""


def test_equal_machines_are_named_once_and_many_are_counted() -> None:
    many = [NodeInfo(f"no-{n}", Resources(1000 * (1 + n // 2), 1000)) for n in range(16)]
    text = refusal(Resources(100_000, 1), many)
    assert "2 machines, each with 1 cores" in text and "3 other kinds of machine" in text and len(text) < 500


@pytest.mark.parametrize(
    ("options", "labels", "good"),
    [
        ({"region": "us"}, {"region": "us-east-1"}, True),
        ({"region": "us-east"}, {"region": "us-east-1"}, True),
        ({"region": "US-East"}, {"region": "us-east"}, True),
        ({"region": "us"}, {"region": "usa"}, False),
        ({"region": "us-east-1"}, {"region": "us-east"}, False),
        ({"region": "eu, us"}, {"region": "us-west"}, True),
        ({"region": "us"}, {}, True),
        ({"region": "us"}, {"region": "local"}, True),
        ({"cloud": "aws"}, {"cloud": "local", "region": "home"}, True),
        ({"cloud": "aws"}, {"cloud": "gcp"}, False),
        ({"cloud": "auto"}, {"cloud": "gcp"}, True),
        ({"region": "us", "cloud": "aws"}, {"region": "us", "cloud": "gcp"}, False),
        ({}, {"region": "us", "cloud": "gcp", "preemptible": "true"}, True),
        ({"nonpreemptible": "1"}, {"preemptible": "true"}, False),
        ({"nonpreemptible": "1"}, {"preemptible": "false"}, True),
        ({"routing_region": "eu"}, {"region": "us"}, True),
    ],
)
def test_labels_are_matched_once_they_are_set(options: dict[str, str], labels: dict[str, str], good: bool) -> None:
    """Section 11.4; a machine that nobody has labelled takes every region and cloud."""
    place = where(FunctionSpec("f", options=options))
    assert accepts(place, labels) == good
    node = NodeInfo("no-a", Resources(1000, 1000), labels=labels)
    assert (refusal(Resources(), [node], place) == "") == good
    assert (not placed_on([Want("f", Resources(), 1, 0, place)], node)) != good


def placed_on(wants: list[Want], *infos: NodeInfo) -> list[str]:
    return [one.node_id for one in place(wants, nodes(*infos).nodes)[0]]


def test_room_is_made_only_where_it_helps() -> None:
    """Idle containers on a machine that could never hold what waits are left alone."""
    cluster = nodes(LARGE, GPUS, NodeInfo("no-us", Resources(4000, 1000), labels={"region": "us"}))
    cluster.apply(FunctionAdded("f", "a", "app", FunctionSpec("f"), {}), 0.0)
    for number, name in enumerate(("no-b", "no-g", "no-us")):
        cluster.apply(StartContainer(f"c{number}", "f", name, (), "test"), 0.0)
        cluster.apply(ContainerSeen(ContainerReport(f"c{number}", READY)), float(number))

    def useful(requests: Resources, options: dict[str, str]) -> list[str]:
        place = where(FunctionSpec("g", options=options))
        return autoscale.spare(
            cluster.functions.values(), 9, lambda one: helps(one, cluster.nodes[one.node_id], requests, place)
        )

    assert useful(Resources(), {}) == ["c0", "c1", "c2"]
    assert useful(Resources(8000, 100), {}) == ["c1"]
    assert useful(Resources(gpus=(Gpu("T4"),)), {}) == ["c1"]
    assert useful(Resources(), {"region": "eu"}) == ["c0", "c1"]
    cluster.nodes["no-g"].free_gpus["T4"] = 0
    assert useful(Resources(gpus=(Gpu("T4"),)), {}) == [], "it has no card that it could give"
