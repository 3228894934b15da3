"""Containers as the cluster's owner wants them: how many, where, until when; and what their nodes are told."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Iterable, Mapping

from cadenza.base.clock import Clock
from cadenza.base.errors import InvalidError
from cadenza.base.ids import IdSource
from cadenza.base.resources import Gpu
from cadenza.control.inputs import Inputs
from cadenza.control.round import Sink
from cadenza.protocol.calls import (
    Attempt,
)
from cadenza.protocol.nodes import ContainerSpec, Desired, Node, StopOrder
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import autoscale, dispatch, events, placement
from cadenza.scheduling.states import AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry
from cadenza.storage.queue import Queue

IMAGES_NAMED = 8
EXIT_GRACE_S = 30.0
"""What exit hooks may take. Source: semantics.md section 12.1."""


class Pools(Inputs):
    """Each function's containers. What is decided in a round is told to the nodes at its end (`_act`)."""

    def __init__(self, isolation: str, queue: Queue, clock: Clock, ids: IdSource, sink: Sink) -> None:
        super().__init__(isolation, queue, clock, ids, sink)
        self._nodes: dict[str, Node] = {}
        self._stuck: set[str] = set()
        self._specs: dict[str, ContainerSpec] = {}
        self._stops: dict[str, StopOrder] = {}
        self._images: OrderedDict[str, None] = OrderedDict()
        self._revision = 0
        self._changed: set[str] = set()
        self._deliveries: dict[str, list[Attempt]] = {}
        self._cancels: list[tuple[str, tuple[str, ...], bool]] = []

    # --- nodes and functions ---

    def attach(self, node: Node, connected: bool = True) -> None:
        """A node can be used."""
        info = node.info()
        self._nodes[info.node_id] = node
        self.cluster.apply(events.NodeSeen(info, connected), self._clock.monotonic())
        self._all_dirty()

    def away(self, node_id: str) -> None:
        """A node cannot be reached: nothing is given to it until its next whole report."""
        self.cluster.apply(events.NodeAway(node_id), self._clock.monotonic())

    def refusal(self, spec: FunctionSpec) -> str:
        """Why no node can ever hold the function's containers; empty when one can, or none is known yet."""
        infos = [one.info for one in self.cluster.nodes.values()]
        return placement.refusal(spec.resources, infos) if infos else ""

    def add_function(
        self, function_id: str, app_id: str, app_name: str, spec: FunctionSpec, layout: Mapping[str, str]
    ) -> None:
        """InvalidError when no node can ever hold its containers."""
        refused = self.refusal(spec)
        if refused:
            raise InvalidError(f"{spec.name}: {refused}")
        event = events.FunctionAdded(function_id, app_id, app_name, spec, layout)
        self.cluster.apply(event, self._clock.monotonic())
        self.post(self.touch, function_id)

    def nested(self, input_id: str, change: int) -> None:
        """An input that runs waits for one more call of its own, or for one less."""
        self.cluster.apply(events.Nested(input_id, change), self._now)
        for name in self._stuck:
            self.touch(name)

    # --- how many ---

    def _watch_idle(self, container: ContainerState) -> None:
        if not container.attempts:
            function = container.function
            self.cluster.arm(function, self._now + function.spec.scaledown_window_s)
            if not function.busy:
                self._room_again()

    def _room_again(self) -> None:
        """Functions that found no room look again: a container has ended, or could end for them."""
        for name in self._stuck:
            self.touch(name)

    def _size(self, function: FunctionState, wants: list[placement.Want]) -> None:
        decision = autoscale.decide(function, self._now, autoscale.first_step(self.cluster.nodes.values()))
        if decision.why != function.why or bool(decision.start) != bool(function.wanted_since):
            event = events.Wanting(function.function_id, decision.start > 0, decision.why)
            self.cluster.apply(event, self._now)
        for name in decision.stop:
            container = self.cluster.containers[name]
            why = f"idle for {function.spec.scaledown_window_s:g} s"
            self._stop(container, EXIT_GRACE_S, True, f"{why}: {decision.why}")
        self._stuck.discard(function.function_id)
        if decision.start:
            has = len(function.containers)
            wants.append(placement.Want(function.function_id, function.spec.resources, decision.start, has))
        if decision.again_at < math.inf:
            self.cluster.arm(function, decision.again_at)

    def _place(self, wants: list[placement.Want]) -> None:
        placed, stuck = placement.place(wants, self.cluster.nodes)
        for one in placed:
            self._start(self.cluster.functions[one.function_id], one.node_id, one.gpus)
        if not stuck:
            return
        self._stuck.update(stuck)
        for name, count in stuck.items():
            why = f"{self.cluster.functions[name].why}; {count} wait for room on a machine"
            callers = sum(1 for one in self.cluster.containers.values() if one.lends)
            if callers:
                why += f", where {callers} containers wait for other calls and keep their memory meanwhile"
            self.cluster.apply(events.Wanting(name, True, why), self._now)
        ending = sum(1 for one in self.cluster.containers.values() if one.stop is not None)
        count = sum(stuck.values()) - ending
        if count > 0:
            for name in autoscale.spare(self.cluster.functions.values(), count):
                self._stop(self.cluster.containers[name], EXIT_GRACE_S, True, "idle, and others wait for its room")
        self._share([self.cluster.functions[name] for name in stuck if self.cluster.functions[name].starving])

    def _share(self, starving: list[FunctionState]) -> None:
        """A function that waits and has no container gets a place of the function that has most, one at a time."""
        ending = sum(1 for one in self.cluster.containers.values() if one.stop is not None)
        for number, function in enumerate(starving):
            holder = autoscale.largest(self.cluster.functions.values())
            if holder is None:
                return
            name = f"{holder.app_name}/{holder.spec.name}"
            count = len(holder.containers)
            why = f"waiting for room on this machine: {count} containers of {name} hold it"
            self.cluster.apply(events.Wanting(function.function_id, True, why), self._now)
            if number < ending:
                continue
            container = autoscale.reclaim(holder, function, self.cluster.nodes)
            if container is not None:
                grace_s = EXIT_GRACE_S + (holder.spec.timeout_s if container.attempts else 0.0)
                text = (
                    f"{name} has {count} containers, and {function.app_name}/{function.spec.name} waits for its first"
                )
                self._stop(container, grace_s, True, text)

    def _start(self, function: FunctionState, node_id: str, gpus: tuple[Gpu, ...]) -> None:
        container_id = self._ids.new("container")
        event = events.StartContainer(
            container_id, function.function_id, node_id, gpus, function.why, self._revision + 1
        )
        self.cluster.apply(event, self._now)
        container = self.cluster.containers[container_id]
        spec = self._describe(container)
        self._specs[container_id] = spec
        self._images[spec.image_id] = None
        self._images.move_to_end(spec.image_id)
        while len(self._images) > IMAGES_NAMED:
            self._images.popitem(last=False)
        kept = {"gpus": [[one.type, one.count] for one in gpus], "why": container.why}
        self._queue.put_container(container_id, node_id, function.function_id, json.dumps(kept))
        self._changed.add(node_id)

    def _describe(self, container: ContainerState) -> ContainerSpec:
        function = container.function
        wall = self._clock.now() - self._now
        return ContainerSpec(
            container_id=container.container_id,
            app_id=function.app_id,
            app_name=function.app_name,
            function_id=function.function_id,
            function=function.spec,
            image_id=function.spec.image.image_id(),
            isolation=function.spec.isolation or self.isolation,
            gpus=container.gpus,
            layout=function.layout,
            env=variables(function.spec),
            wanted_at=wall + container.wanted_at,
            placed_at=wall + container.placed_at,
        )

    def adopt(self, container_id: str, node_id: str, function_id: str, kept: str, entries: Iterable[Entry]) -> None:
        """A container of an earlier control plane, which its node may still have, with the attempts it was given."""
        described = json.loads(kept)
        gpus = tuple(Gpu(kind, count) for kind, count in described["gpus"])
        event = events.StartContainer(container_id, function_id, node_id, gpus, described["why"], 0)
        self.cluster.apply(event, self._now)
        self._specs[container_id] = self._describe(self.cluster.containers[container_id])
        for entry in entries:
            self.cluster.apply(events.Adopt(container_id, entry), self._now)
        self._changed.add(node_id)

    def stop_container(self, container_id: str, graceful: bool) -> bool:
        """By a user's wish. False when there is no such container."""
        container = self.cluster.containers.get(container_id)
        if container is None:
            return False
        self.post(self._stop_by_user, container_id, graceful)
        return True

    def _stop_by_user(self, container_id: str, graceful: bool) -> None:
        container = self.cluster.containers.get(container_id)
        if container is not None:
            grace = container.function.spec.timeout_s + EXIT_GRACE_S if graceful else 0.0
            self._stop(container, grace, graceful, "stopped by a user")

    def _stop(self, container: ContainerState, grace_s: float, drain: bool, why: str) -> None:
        """Order a container to end; unless it is drained, its inputs go elsewhere now."""
        name = container.container_id
        if name not in self.cluster.containers:
            return
        self.cluster.apply(events.StopContainer(name, grace_s, drain, why), self._now)
        order = container.stop
        assert order is not None
        self._stops[name] = StopOrder(name, order.grace_s, order.drain, order.why)
        self._changed.add(container.node_id)
        function = container.function
        self.touch(function.function_id)
        if drain:
            return
        alive = [one.attempt_id for one in container.attempts.values() if not one.zombie]
        back: list[Entry] = []
        for attempt in self.cluster.apply(events.Detach(name, alive), self._now):
            self._again(attempt, dispatch.after_loss(attempt, function.spec, why), container, back)
        self._return(function, back)

    # --- what nodes are told ---

    def _deliver(self, container: ContainerState, attempts: Iterable[AttemptState]) -> None:
        out = self._deliveries.setdefault(container.container_id, [])
        function_id = container.function.function_id
        for one in attempts:
            entry = one.entry
            if one.zombie:
                continue
            out.append(
                Attempt(
                    one.attempt_id,
                    entry.input_id,
                    entry.call_id,
                    function_id,
                    entry.index,
                    entry.data,
                    entry.blob,
                    entry.retries,
                    one.timeout_s,
                    not entry.attached,
                    entry.method,
                )
            )

    def _act(self) -> None:
        changed, self._changed = self._changed, set()
        for node_id in sorted(changed):
            self._want(node_id)
        deliveries, self._deliveries = self._deliveries, {}
        for container_id, attempts in deliveries.items():
            container = self.cluster.containers.get(container_id)
            if container is not None and attempts:
                self._nodes[container.node_id].deliver(container_id, attempts)
        cancels, self._cancels = self._cancels, []
        for container_id, names, revoke in cancels:
            container = self.cluster.containers.get(container_id)
            if container is not None:
                self._nodes[container.node_id].cancel(container_id, names, revoke)

    def _want(self, node_id: str) -> None:
        node = self.cluster.nodes.get(node_id)
        if node is None or not node.connected:
            return  # said when it is back
        self._revision += 1
        names = list(node.containers)
        self._nodes[node_id].want(
            Desired(
                self._revision,
                tuple(self._specs[one] for one in names),
                tuple(self._stops[one] for one in names if one in self._stops),
                tuple(reversed(self._images)),
            )
        )


def variables(spec: FunctionSpec) -> dict[str, str]:
    """What a function's containers see: secrets in order, over them its ``env=`` (semantics.md section 14)."""
    found: dict[str, str] = {}
    for one in spec.secrets:
        found.update(one.values)
    return {**found, **spec.env}
