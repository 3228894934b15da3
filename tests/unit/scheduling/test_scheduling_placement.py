"""Which node takes which container. Semantics: section 11.2 and 11.3."""

from __future__ import annotations

from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.nodes import NodeInfo
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.events import NodeSeen
from cadenza.scheduling.placement import Want, place, refusal

SMALL = NodeInfo("no-a", Resources(1000, 1000))
LARGE = NodeInfo("no-b", Resources(4000, 1000))
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
    text = refusal(Resources(64_000, 128, gpus=(Gpu("H100", 4),)), [LARGE, GPUS])
    assert "64 cores and 128 MiB" in text and "gpu H100:4" in text and "H100:2" in text and "Ask for less" in text
