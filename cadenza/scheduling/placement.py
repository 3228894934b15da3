"""Which node takes each wanted container, by requests, free resources, GPUs by type, and where the node is.

What fits nowhere now waits; what no node can ever hold is refused (`refusal`). Pure. Rules: semantics.md sections 11.2
to 11.4.

Where a node is: its labels ``region``, ``cloud`` and ``preemptible``. A label that nobody has set (`UNSET`, the agent's
default) says nothing, so such a node takes every region and every cloud, and a program written for a cloud runs on one
machine as it is. A label that an operator has set is matched: ``region="us"`` takes ``us``, ``us-east`` and
``us-east-1``, ``region="us-east"`` takes the last two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Iterable, Mapping, Optional, Sequence

from cadenza.base.resources import Gpu, Resources, gpu_choices, gpu_text
from cadenza.protocol.nodes import NodeInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling.states import ContainerState, NodeState

UNSET = ("", "local")
"""Values of the labels ``region`` and ``cloud`` with which a node says nothing of where it is."""
ANY_CLOUD = ("", "auto", "any")
NO = ("", "0", "false", "no")


@dataclass(frozen=True)
class Where:
    """Which nodes a function may run on. Empty: any. Names in lower case."""

    regions: tuple[str, ...] = ()
    clouds: tuple[str, ...] = ()
    nonpreemptible: bool = False

    def __str__(self) -> str:
        parts = []
        if self.regions:
            parts.append("region " + " or ".join(self.regions))
        if self.clouds:
            parts.append("cloud " + " or ".join(self.clouds))
        if self.nonpreemptible:
            parts.append("nonpreemptible")
        return ", ".join(parts)


ANYWHERE = Where()


def where(spec: FunctionSpec) -> Where:
    """What a function's options say of its place; ``routing_region`` says nothing of it."""
    options = spec.options
    if not options:
        return ANYWHERE
    return Where(
        _names(options.get("region", "")),
        tuple(one for one in _names(options.get("cloud", "")) if one not in ANY_CLOUD),
        options.get("nonpreemptible", "").lower() not in NO,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (one.strip().lower() for one in text.split(","))))


def _label(labels: Mapping[str, str], name: str) -> str:
    """A node's label; empty when nobody has set it."""
    value = labels.get(name, "").strip().lower()
    return "" if value in UNSET else value


def accepts(place: Where, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one of those that are wished for, or says nothing of where it is."""
    region, cloud = _label(labels, "region"), _label(labels, "cloud")
    if place.regions and region and not any(region == one or region.startswith(one + "-") for one in place.regions):
        return False
    if place.clouds and cloud and cloud not in place.clouds:
        return False
    return not (place.nonpreemptible and labels.get("preemptible", "").strip().lower() not in NO)


@dataclass(frozen=True)
class Want:
    """So many more containers of one function."""

    function_id: str
    requests: Resources
    count: int
    has: int = 0
    """How many it has: who has fewer is served first."""
    where: Where = ANYWHERE


@dataclass(frozen=True)
class Placed:
    """One container's place, and the GPUs it gets there."""

    function_id: str
    node_id: str
    gpus: tuple[Gpu, ...] = ()


def place(wants: Sequence[Want], nodes: Mapping[str, NodeState]) -> tuple[list[Placed], dict[str, int]]:
    """Places, one function after the other in turns, and how many of each function found none."""
    wants = sorted(wants, key=lambda one: one.has)
    room = {
        name: _Room(node.info.labels, node.free, dict(node.free_gpus))
        for name, node in sorted(nodes.items())
        if node.connected
    }
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


@dataclass
class _Room:
    """What is left of a node while places are given out."""

    labels: Mapping[str, str]
    free: Resources
    gpus: dict[str, int]


def _choose(want: Want, room: dict[str, _Room]) -> Optional[Placed]:
    """The node with the first GPU of the wish list that is free anywhere; of several such the one with the most free
    CPU, and for what needs no GPU one without them first. Takes the room away."""
    able = [
        (name, one) for name, one in room.items() if want.requests.fits_in(one.free) and accepts(want.where, one.labels)
    ]
    gpu: Optional[Gpu] = None
    if want.requests.gpus:
        for choice in gpu_choices(want.requests.gpus):
            have = [(name, one) for name, one in able if one.gpus.get(choice.type, 0) >= choice.count]
            if have:
                gpu, able = choice, have
                break
        else:
            return None
    if not able:
        return None
    name, best = max(
        reversed(able),  # of equals the first
        key=lambda one: (
            gpu is not None or not any(one[1].gpus.values()),
            one[1].free.cpu_milli,
            one[1].free.memory_mib,
        ),
    )
    if gpu is not None:
        best.gpus[gpu.type] -= gpu.count
    best.free = best.free.minus(want.requests)
    return Placed(want.function_id, name, () if gpu is None else (gpu,))


def makes_room(container: ContainerState, node: NodeState, requests: Resources, place: Where = ANYWHERE) -> bool:
    """Whether the end of a container leaves room for one with ``requests``."""
    if container.lends or not requests.fits_in(node.free.plus(container.requests)):
        return False
    gpus = dict(node.free_gpus)
    for one in container.gpus:
        gpus[one.type] = gpus.get(one.type, 0) + one.count
    return (not requests.gpus or _has_gpus(requests, gpus)) and accepts(place, node.info.labels)


def helps(container: ContainerState, node: NodeState, requests: Resources, place: Where = ANYWHERE) -> bool:
    """Whether the end of a container brings room for one with ``requests`` nearer: alone or with the end of others."""
    if not accepts(place, node.info.labels) or not _can_hold(requests, node.info):
        return False
    return not requests.gpus or bool(container.gpus) or _has_gpus(requests, node.free_gpus)


def _has_gpus(requests: Resources, gpus: Mapping[str, int]) -> bool:
    return any(gpus.get(one.type, 0) >= one.count for one in gpu_choices(requests.gpus))


def _can_hold(requests: Resources, node: NodeInfo) -> bool:
    return requests.fits_in(node.capacity) and (not requests.gpus or _has_gpus(requests, node.gpus))


MACHINES_NAMED = 5


def refusal(requests: Resources, nodes: Iterable[NodeInfo], place: Where = ANYWHERE) -> str:
    """Why no node can ever hold such a container, in a sentence that says what there is; empty when one can."""
    known = list(nodes)
    if any(_can_hold(requests, one) and accepts(place, one.labels) for one in known):
        return ""
    if not known:
        return "there is no machine here that could hold a container"
    bare = replace(requests, gpus=())
    if requests.gpus and not any(_has_gpus(requests, one.gpus) for one in known):
        there = _each(_gpus(one) or "no GPU" for one in known)
        return f"there is no such GPU here: {gpu_text(requests.gpus)} is asked for, and there is {there}"
    if place != ANYWHERE and not any(accepts(place, one.labels) for one in known):
        there = _each(_placed(one.labels, place) for one in known)
        return f"no machine here is what is asked for, {place}: there is {there}. Ask for one of these, or for none"
    asked = f"{requests.cpu_milli / 1000:g} cores and {requests.memory_mib} MiB of memory"
    if requests.disk_mib:
        asked += f", {requests.disk_mib} MiB of disk"
    together = any(_can_hold(bare, one) for one in known)
    if requests.gpus:
        asked += f", gpu {gpu_text(requests.gpus)}"
    if place != ANYWHERE:
        asked += f", {place}"
    there = _each(
        f"{one.capacity.cpu_milli / 1000:g} cores, {one.capacity.memory_mib} MiB of memory"
        + (f", {one.capacity.disk_mib} MiB of disk" if requests.disk_mib else "")
        + (f", {_gpus(one) or 'no GPU'}" if requests.gpus else "")
        + (f", {_placed(one.labels, place)}" if place != ANYWHERE else "")
        for one in known
    )
    advice = "Ask for what one machine has together" if together else "Ask for less"
    return f"no machine here can hold a container with {asked}: there is {there}. {advice}"


def _each(machines: Iterable[str]) -> str:
    """What there is, machine by machine; equal ones once."""
    counts = Counter(machines)
    texts = [text if count == 1 else f"{count} machines, each with {text}" for text, count in counts.items()]
    more = [f"{len(texts) - MACHINES_NAMED} other kinds of machine"] if len(texts) > MACHINES_NAMED else []
    return "; ".join(texts[:MACHINES_NAMED] + more)


def _gpus(node: NodeInfo) -> str:
    return ", ".join(f"{kind}:{count}" for kind, count in sorted(node.gpus.items()))


def _placed(labels: Mapping[str, str], place: Where) -> str:
    """Of a node's labels those that are asked for."""
    parts = [
        f"{name} {labels.get(name) or 'not set'}"
        for name, wished in (("region", place.regions), ("cloud", place.clouds))
        if wished
    ]
    if place.nonpreemptible:
        parts.append("nonpreemptible" if accepts(Where(nonpreemptible=True), labels) else "preemptible")
    return ", ".join(parts)
