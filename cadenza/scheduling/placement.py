"""Which node takes each wanted container, by requests and free resources, GPUs by type; what fits nowhere now waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from cadenza.base.resources import Gpu, Resources, gpu_inventory_fits, gpu_text
from cadenza.protocol.nodes import NodeInfo
from cadenza.scheduling.states import ContainerState, NodeState


@dataclass(frozen=True)
class Want:
    """So many more containers of one function."""

    function_id: str
    requests: Resources
    count: int
    has: int = 0
    """How many it has: who has fewer is served first."""


@dataclass(frozen=True)
class Placed:
    """One container's place, and the GPUs it gets there."""

    function_id: str
    node_id: str
    gpus: tuple[Gpu, ...] = ()


def place(wants: Sequence[Want], nodes: Mapping[str, NodeState]) -> tuple[list[Placed], dict[str, int]]:
    """Places, one function after the other in turns, and how many of each function found none."""
    wants = sorted(wants, key=lambda one: one.has)
    room = {name: (node.free, dict(node.free_gpus)) for name, node in sorted(nodes.items()) if node.connected}
    left = {one.function_id: one.count for one in wants if one.count > 0}
    stuck: dict[str, int] = {}
    placed: list[Placed] = []
    while left:
        for want in wants:
            if want.function_id not in left:
                continue
            found = _choose(want, room)
            if found is None:
                stuck[want.function_id] = left.pop(want.function_id)
                continue
            placed.append(found)
            left[want.function_id] -= 1
            if not left[want.function_id]:
                del left[want.function_id]
    return placed, stuck


def _choose(want: Want, room: dict[str, tuple[Resources, dict[str, int]]]) -> Placed | None:
    """The node with the most free CPU; one without GPUs first for what needs none. Takes the room away."""
    best = ""
    best_gpu: Gpu | None = None
    best_rank: tuple[bool, int, int] | None = None
    for name, (free, gpus) in room.items():
        if not want.requests.fits_in(free):
            continue
        gpu = None
        if want.requests.gpus:
            gpu = gpu_inventory_fits(want.requests.gpus, gpus)
            if gpu is None:
                continue
        rank = (gpu is not None or not any(gpus.values()), free.cpu_milli, free.memory_mib)
        if best_rank is None or rank > best_rank:
            best, best_gpu, best_rank = name, gpu, rank
    if not best:
        return None
    free, gpus = room[best]
    if best_gpu is not None:
        gpus[best_gpu.type] -= best_gpu.count
    room[best] = (free.minus(want.requests), gpus)
    return Placed(want.function_id, best, () if best_gpu is None else (best_gpu,))


def makes_room(container: ContainerState, node: NodeState, requests: Resources) -> bool:
    """Whether the end of a container leaves room for one with ``requests``."""
    if container.lends or not requests.fits_in(node.free.plus(container.requests)):
        return False
    gpus = dict(node.free_gpus)
    for one in container.gpus:
        gpus[one.type] = gpus.get(one.type, 0) + one.count
    return not requests.gpus or gpu_inventory_fits(requests.gpus, gpus) is not None


def refusal(requests: Resources, nodes: Iterable[NodeInfo]) -> str:
    """Why no node can ever hold such a container, in a sentence; empty when one can."""
    known = list(nodes)
    for node in known:
        if requests.fits_in(node.capacity) and (
            not requests.gpus or gpu_inventory_fits(requests.gpus, node.gpus) is not None
        ):
            return ""
    asked = f"{requests.cpu_milli / 1000:g} cores and {requests.memory_mib} MiB of memory"
    if requests.disk_mib:
        asked += f", {requests.disk_mib} MiB of disk"
    if requests.gpus:
        asked += f", gpu {gpu_text(requests.gpus)}"
    there = "; ".join(
        f"{one.capacity.cpu_milli / 1000:g} cores, {one.capacity.memory_mib} MiB of memory"
        + (f", {one.capacity.disk_mib} MiB of disk" if requests.disk_mib else "")
        + (", GPUs " + (", ".join(f"{kind}:{n}" for kind, n in sorted(one.gpus.items())) or "none"))
        for one in known
    )
    return f"no machine here can hold a container with {asked}: there is {there or 'none'}. Ask for less"
