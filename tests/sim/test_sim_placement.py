"""Placement over several machines as a person reads it, in ``tests/golden/schedule/placement_*.txt``.

Semantics: sections 11.2 to 11.4. ``python tests/sim/test_sim_placement.py --rewrite``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from cadenza.base.resources import Gpu, Resources, gpu_text, parse
from cadenza.protocol import nodes
from cadenza.protocol.nodes import ContainerReport, NodeInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import events
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.placement import Want, place, refusal, where

FOLDER = Path(__file__).parents[1] / "golden" / "schedule"


class Fleet:
    """Machines that are there by name alone, and what is placed on them."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.lines: list[str] = []
        self.count = 0

    def node(
        self, name: str, cores: float, gib: int = 64, gpus: Optional[dict[str, int]] = None, **labels: str
    ) -> None:
        capacity = Resources(int(cores * 1000), gib * 1024, disk_mib=100 * 1024)
        info = NodeInfo(name, capacity, gpus or {}, {"region": "local", "cloud": "local", **labels})
        self.cluster.apply(events.NodeSeen(info), 0.0)
        has = f", {gpu_text([Gpu(*one) for one in sorted((gpus or {}).items())])}" if gpus else ""
        said = "".join(f", {key}={value}" for key, value in labels.items())
        self.lines.append(f"node   {name}: {cores:g} cores, {gib} GiB{has}{said}")

    def want(self, count: int = 1, options: Optional[dict[str, str]] = None, **asked: Any) -> None:
        """Containers of a function that asks so are placed, as many as have room, or are refused for ever."""
        said = ", ".join(f"{key}={value!r}" for key, value in {**asked, **(options or {})}.items())
        self.lines.append(f"want   {count} with {said or 'nothing special'}")
        self.count += 1
        name = f"f{self.count}"
        spec = FunctionSpec(name, resources=parse(**asked), options=options or {})
        refused = refusal(spec.resources, [one.info for one in self.cluster.nodes.values()], where(spec))
        if refused:
            self.lines.append(f"refuse {refused}")
            return
        self.cluster.apply(events.FunctionAdded(name, "ap-1", "app", spec, {}), 0.0)
        placed, stuck = place([Want(name, spec.resources, count, 0, where(spec))], self.cluster.nodes)
        for number, one in enumerate(placed, 1):
            start = events.StartContainer(f"{name}.{number}", name, one.node_id, one.gpus, "test")
            self.cluster.apply(start, 0.0)
            self.lines.append(
                f"place  {name}.{number} on {one.node_id}{' with ' + gpu_text(one.gpus) if one.gpus else ''}"
            )
        if stuck:
            self.lines.append(f"wait   {stuck[name]} of {name}: no machine has room now")

    def end(self, container: str) -> None:
        self.lines.append(f"gone   {container}")
        self.cluster.apply(events.ContainerSeen(ContainerReport(container, nodes.GONE, nodes.EXITED)), 0.0)

    def away(self, name: str) -> None:
        self.lines.append(f"away   {name}")
        self.cluster.apply(events.NodeAway(name), 0.0)


def gpu_fallback(fleet: Fleet) -> None:
    """The first choice on any machine goes before the second choice on any."""
    fleet.node("big", 64, gpus={"A100-80GB": 4})
    fleet.node("small", 16, gpus={"H100": 1, "L4": 2})
    fleet.want(3, gpu=["H100", "A100-80GB"])
    fleet.want(2, gpu=["L4:2", "A100-80GB:2"])
    fleet.end("f1.1")
    fleet.want(1, gpu=["H100", "A100-80GB"])
    fleet.want(1, gpu=["T4", "L40S:2"])
    fleet.want(1, gpu="H100:2")


def gpu_upgrades(fleet: Fleet) -> None:
    """A better card serves where Modal gives one, the exact one goes first, and ``!`` takes no other."""
    fleet.node("a", 64, gpus={"H200": 2, "A100-80GB": 2})
    fleet.node("b", 64, gpus={"H100": 1, "A100-40GB": 1, "B300": 1})
    fleet.want(2, gpu="H100")
    fleet.want(1, gpu="H100!")
    fleet.want(2, gpu="A100")
    fleet.want(1, gpu="A100-80GB")
    fleet.want(1, gpu="B200")
    fleet.want(1, gpu="B200+")
    fleet.want(2, gpu="any")


def any_gpu(fleet: Fleet) -> None:
    """``any`` takes the smallest card that is free, so that large ones stay for who asks for them."""
    fleet.node("a", 64, gpus={"H100": 1, "T4": 1})
    fleet.node("b", 64, gpus={"L4": 2})
    fleet.want(1, gpu="any:2")
    fleet.want(3, gpu="any")


def regions(fleet: Fleet) -> None:
    """Broad names hold narrow ones; a machine without labels takes all."""
    fleet.node("east", 4, region="us-east-1", cloud="aws")
    fleet.node("west", 2, region="us-west", cloud="gcp")
    fleet.node("paris", 2, region="eu-west-3", cloud="aws")
    fleet.want(1, cpu=1, options={"region": "us-east"})
    fleet.want(4, cpu=1, options={"region": "us"})
    fleet.want(2, cpu=1, options={"region": "us,eu"})
    fleet.want(1, cpu=1, options={"region": "EU", "cloud": "gcp"})
    fleet.want(1, cpu=1, options={"region": "ap"})
    fleet.want(1, cpu=1, options={"region": "eu-west-3a"})
    fleet.want(1, cpu=1, options={"cloud": "oci"})
    fleet.want(1, cpu=0.5, options={"cloud": "auto", "routing_region": "ap-south"})


def one_machine_without_labels(fleet: Fleet) -> None:
    """A program written for a cloud runs as it is, whatever region it names."""
    fleet.node("here", 8)
    fleet.want(1, options={"region": "us-east,eu", "cloud": "aws", "nonpreemptible": "1", "routing_region": "us-west"})
    fleet.want(1, memory=100_000)
    fleet.want(1, cpu=9)
    fleet.want(1, ephemeral_disk=200_000)
    fleet.want(1, gpu="H100")


def preemptible(fleet: Fleet) -> None:
    fleet.node("spot", 32, preemptible="true")
    fleet.node("own", 4)
    fleet.want(1, cpu=1)
    fleet.want(5, cpu=1, options={"nonpreemptible": "1"})
    fleet.want(1, cpu=8, options={"nonpreemptible": "1"})


def machines_come_and_go(fleet: Fleet) -> None:
    """What has no room now waits; a machine that is away counts for what can ever be, not for now."""
    fleet.node("a", 4, gib=8)
    fleet.node("b", 2, gib=8)
    fleet.want(5, cpu=1)
    fleet.away("a")
    fleet.want(1, cpu=3)
    fleet.want(2, cpu=1)
    fleet.end("f1.5")
    fleet.node("c", 4, gib=8)
    fleet.want(2, cpu=1)


STORIES: dict[str, Callable[[Fleet], None]] = {
    f"placement_{one.__name__}": one
    for one in (
        gpu_fallback,
        gpu_upgrades,
        any_gpu,
        regions,
        one_machine_without_labels,
        preemptible,
        machines_come_and_go,
    )
}


def transcript(name: str) -> str:
    fleet = Fleet()
    STORIES[name](fleet)
    return "\n".join(fleet.lines) + "\n"


@pytest.mark.parametrize("name", STORIES)
def test_placement_is_as_written(name: str) -> None:
    assert transcript(name) == (FOLDER / f"{name}.txt").read_text(), "if this is meant: run this file with --rewrite"


def test_every_transcript_of_placement_has_its_story() -> None:
    assert {path.stem for path in FOLDER.glob("placement_*.txt")} == set(STORIES)


if __name__ == "__main__":
    if "--rewrite" not in sys.argv:
        sys.exit("usage: test_sim_placement.py --rewrite")
    for one in STORIES:
        (FOLDER / f"{one}.txt").write_text(transcript(one))
