"""Containers as the cluster's owner wants them: how many, where, until when; and what their nodes are told."""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error, InvalidError
from cadenza.base.ids import IdSource
from cadenza.base.resources import Gpu
from cadenza.control.admission import ASKED_AGAIN_S, Admission
from cadenza.control.inputs import Inputs
from cadenza.control.journal import START, STOP, WAIT
from cadenza.control.round import Sink
from cadenza.protocol.calls import (
    Attempt,
)
from cadenza.protocol.nodes import GONE, INIT_FAILED, ContainerReport, ContainerSpec, Desired, Node, StopOrder
from cadenza.protocol.objects import AutoscalerPatch, FunctionSpec, to_json
from cadenza.scheduling import autoscale, dispatch, events, placement
from cadenza.scheduling.states import NO_LIMITS, AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry
from cadenza.storage.queue import Queue

IMAGES_NAMED = 8
EXIT_GRACE_S = 30.0
"""What exit hooks may take. Source: semantics.md section 12.1."""
ROLLING, RECREATE = "rolling", "recreate"
STRATEGIES = (ROLLING, RECREATE)
REPLACED = "a new version of its function is in force"


class Pools(Inputs):
    """Each function's containers. What is decided in a round is told to the nodes at its end (`_act`)."""

    def __init__(self, isolation: str, queue: Queue, clock: Clock, ids: IdSource, sink: Sink) -> None:
        super().__init__(isolation, queue, clock, ids, sink)
        self.variables: Callable[[FunctionSpec, str], dict[str, str]] = lambda spec, environment: variables(spec)
        """What a container of the environment sees, in clear. An `Error` fails the start, with its text."""
        self.unbuilt: Callable[[FunctionSpec], str] = lambda spec: ""
        """Why a start has to wait for its image; empty: it is there. An `Error` fails the start, with its text."""
        self._nodes: dict[str, Node] = {}
        self._stuck: set[str] = set()
        """Functions that found no room."""
        self.admission: Optional[Admission] = None
        self.paused: dict[str, str] = {}
        """Why `admission` lets a function do no more now."""
        self._capped: set[str] = set()
        """Functions that want more containers than they may have."""
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
        return placement.refusal(spec.resources, infos, placement.where(spec)) if infos else ""

    def add_function(
        self,
        function_id: str,
        app_id: str,
        app_name: str,
        spec: FunctionSpec,
        layout: Mapping[str, str],
        *,
        ephemeral: bool = True,
        environment: str = "main",
        base_id: str = "",
        renew: bool = False,
        strategy: str = ROLLING,
    ) -> None:
        """Publish a function, or replace it: `cadenza.control.published` says how."""
        refused = self.refusal(spec)
        if refused:
            raise InvalidError(f"{spec.name}: {refused}")
        if strategy not in STRATEGIES:
            raise InvalidError(f"there is no strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
        before = self.cluster.functions.get(function_id)
        generation = 0 if before is None else before.generation
        event = events.FunctionAdded(
            function_id, app_id, app_name, spec, layout, ephemeral, environment, base_id, renew
        )
        self.cluster.apply(event, self._clock.monotonic())
        if before is not None and before.generation != generation:
            self.post(self._replace, function_id, strategy)
        self.post(self.touch, function_id)

    def _replace(self, function_id: str, strategy: str) -> None:
        """Containers of an earlier generation end: after what runs in them, or at once."""
        function = self.cluster.functions.get(function_id)
        if function is None:
            return
        for container in list(function.containers.values()):
            if container.generation == function.generation:
                continue
            if strategy == RECREATE:
                self._stop(container, EXIT_GRACE_S, False, REPLACED, free=True)
            elif container.stop is None:
                self._stop(container, self._patience_s(container), True, REPLACED)
        self.touch(function_id)

    @staticmethod
    def _patience_s(container: ContainerState) -> float:
        """How long an orderly end may take: what runs may go on to its timeout."""
        return EXIT_GRACE_S + (container.spec.timeout_s if container.attempts else 0.0)

    def limit(self, function_id: str, patch: Optional[AutoscalerPatch], unset: Sequence[str]) -> None:
        """Limits over those that are declared; ``patch`` None: those that are declared."""
        self.cluster.apply(events.Limited(function_id, patch, unset), self._clock.monotonic())
        self.post(self.touch, function_id)

    def only_input(self, container_id: str) -> str:
        """The input that runs in a container, where there is one alone (of a batch, its first); else empty."""
        container = self.cluster.containers.get(container_id)
        if container is None or container.held != 1:
            return ""
        return next((one.entry.input_id for one in container.attempts.values() if one.begun and not one.zombie), "")

    def nested(self, input_id: str, change: int) -> None:
        """An input that runs waits for one more call of its own, or for one less."""
        self.cluster.apply(events.Nested(input_id, change), self._now)
        for name in self._stuck:
            self.touch(name)

    def _forgotten(self, function_id: str) -> None:
        super()._forgotten(function_id)
        self._stuck.discard(function_id)
        self._capped.discard(function_id)
        self.paused.pop(function_id, None)

    def is_stuck(self, function_id: str) -> bool:
        """Whether a function wants containers for which no machine has room."""
        return function_id in self._stuck

    # --- how many ---

    def _watch_idle(self, container: ContainerState) -> None:
        if not container.attempts:
            function = container.function
            if self.admission is not None:
                self.admission.idle(container, self._now)
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
        name = function.function_id
        if not decision.start:
            self._stuck.discard(name)
        if decision.capped and name not in self._capped:
            self.note(name, WAIT, decision.capped, decision.why, "")
            self._capped.add(name)
        elif not decision.capped:
            self._capped.discard(name)
        if decision.start:
            has = len(function.containers)
            place = placement.where(function.spec)
            wants.append(placement.Want(name, function.spec.resources, decision.start, has, place))
        if decision.again_at < math.inf:
            self.cluster.arm(function, decision.again_at)

    def _place(self, wants: list[placement.Want]) -> None:
        placed, stuck = placement.place(wants, self.cluster.nodes)
        counts: dict[str, int] = {}
        for one in placed:
            counts[one.function_id] = counts.get(one.function_id, 0) + 1
            self._stuck.discard(one.function_id)
        for name, count in counts.items():
            self.note(name, START, count, self.cluster.functions[name].why, "")
        for one in placed:
            function = self.cluster.functions[one.function_id]
            if function.failing is None and function.blocked_until <= self._now:
                self._start(function, one.node_id, one.gpus)
        if not stuck:
            return
        before = set(self._stuck)
        self._stuck.update(stuck)
        for name, count in stuck.items():
            why = f"{self.cluster.functions[name].why}; {count} wait for room on a machine"
            callers = sum(1 for one in self.cluster.containers.values() if one.lends)
            refused = self.refusal(self.cluster.functions[name].spec)  # the machine is not what it was
            if refused:
                why = refused
            elif callers:
                why += f", where {callers} containers wait for other calls and keep their memory meanwhile"
            self.cluster.apply(events.Wanting(name, True, why), self._now)
            if name not in before:
                self.note(name, WAIT, count, why, "")
        ending = sum(1 for one in self.cluster.containers.values() if one.stop is not None)
        count = sum(stuck.values()) - ending
        if count > 0:
            for name in autoscale.spare(self.cluster.functions.values(), count, self._makes_way_for(list(stuck))):
                self._stop(self.cluster.containers[name], EXIT_GRACE_S, True, "idle, and others wait for its room")
        self._share([self.cluster.functions[name] for name in stuck if self.cluster.functions[name].starving], stuck)

    def _makes_way_for(self, names: Sequence[str]) -> Callable[[ContainerState], bool]:
        """Whether the end of a container brings room nearer for one of these functions."""
        nodes = self.cluster.nodes
        wishes = [
            (one.spec.resources, placement.where(one.spec)) for one in map(self.cluster.functions.get, names) if one
        ]
        return lambda one: any(placement.helps(one, nodes[one.node_id], *wish) for wish in wishes)

    def _share(self, starving: list[FunctionState], lacking: Mapping[str, int]) -> None:
        """A function that waits and has no container gets places of the function that has most: its share of them."""
        ending = sum(1 for one in self.cluster.containers.values() if one.stop is not None)
        for function in starving:
            holder = autoscale.largest(self.cluster.functions.values())
            if holder is None:
                return
            name = f"{holder.app_name}/{holder.spec.name}"
            count = len(holder.containers)
            why = f"waiting for room on this machine: {count} containers of {name} hold it"
            self.cluster.apply(events.Wanting(function.function_id, True, why), self._now)
            text = f"{name} has {count} containers, and {function.app_name}/{function.spec.name} waits for its first"
            for _ in range(autoscale.share(len(holder.alive), lacking[function.function_id], len(starving))):
                if ending > 0:
                    ending -= 1
                    continue
                container = autoscale.reclaim(holder, function, self.cluster.nodes)
                if container is None:
                    break
                self._stop(container, self._patience_s(container), True, text)

    def _start(self, function: FunctionState, node_id: str, gpus: tuple[Gpu, ...]) -> None:
        container_id = self._ids.new("container")
        try:
            pause = self.unbuilt(function.spec)
        except Error as error:
            self._cannot_start(function, container_id, error)
            return
        if not pause and self.admission is not None:
            pause = self.admission.start(container_id, function, gpus, self._now)
        if pause:
            self._pause(function, pause)
            return
        self.paused.pop(function.function_id, None)
        try:
            env = self.variables(function.spec, function.environment)
        except Error as error:
            if self.admission is not None:
                self.admission.gone(container_id, self._now)
            self._cannot_start(function, container_id, error)
            return
        event = events.StartContainer(
            container_id, function.function_id, node_id, gpus, function.why, self._revision + 1
        )
        self.cluster.apply(event, self._now)
        container = self.cluster.containers[container_id]
        spec = self._describe(container, env)
        self._specs[container_id] = spec
        self._images[spec.image_id] = None
        self._images.move_to_end(spec.image_id)
        while len(self._images) > IMAGES_NAMED:
            self._images.popitem(last=False)
        kept = {"gpus": [[one.type, one.count] for one in gpus], "why": container.why, "spec": _noted(container.spec)}
        self._queue.put_container(container_id, node_id, function.function_id, json.dumps(kept))
        self._changed.add(node_id)

    def _cannot_start(self, function: FunctionState, container_id: str, error: Error) -> None:
        self.paused.pop(function.function_id, None)
        self._start_failed(function, ContainerReport(container_id, GONE, INIT_FAILED, str(error)))
        self.post(self.touch, function.function_id)

    def image_ended(self, image_id: str) -> None:
        """An image that starts waited for was built, or could not be."""
        for name in self._stuck:
            function = self.cluster.functions.get(name)
            if function is not None and function.spec.image.image_id() == image_id:
                self.post(self.touch, name)

    def _pause(self, function: FunctionState, why: str) -> None:
        """What a function may not do now is asked for again."""
        name = function.function_id
        if self.paused.get(name) != why:
            self.note(name, WAIT, 1, why, "")
        self.paused[name] = why
        self._stuck.add(name)
        self.cluster.arm(function, self._now + ASKED_AGAIN_S)

    def refuse_waiting(self, function: FunctionState, failed: events.FailedStart) -> None:
        """What waits in memory for a function fails. (What waits in the table comes to memory next.)"""
        self._fail_waiting(function, failed)
        self.touch(function.function_id)

    def end_container(self, container: ContainerState, grace_s: float, why: str) -> None:
        """Order a container to end, whatever it was ordered before; inputs that it runs go elsewhere."""
        self._stop(container, grace_s, False, why)

    def _start_failed(self, function: FunctionState, report: ContainerReport) -> None:
        """A container ended before it was ready."""
        raise NotImplementedError

    def _describe(self, container: ContainerState, env: dict[str, str]) -> ContainerSpec:
        function, spec = container.function, container.spec
        wall = self._clock.now() - self._now
        return ContainerSpec(
            container_id=container.container_id,
            app_id=function.app_id,
            app_name=function.app_name,
            function_id=function.function_id,
            function=spec,
            image_id=spec.image.image_id(),
            isolation=spec.isolation or self.isolation,
            gpus=container.gpus,
            layout=container.layout,
            env=env,
            environment=function.environment,
            wanted_at=wall + container.wanted_at,
            placed_at=wall + container.placed_at,
        )

    def adopt(self, container_id: str, node_id: str, function_id: str, kept: str, entries: Iterable[Entry]) -> None:
        """A container of an earlier control plane, which its node may still have, with the attempts it was given."""
        described = json.loads(kept)
        gpus = tuple(Gpu(kind, count) for kind, count in described["gpus"])
        former = _former(self.cluster.functions[function_id].spec, described.get("spec"))
        event = events.StartContainer(container_id, function_id, node_id, gpus, described["why"], 0, former)
        self.cluster.apply(event, self._now)
        container = self.cluster.containers[container_id]
        self._specs[container_id] = self._describe(container, {})  # it has its variables already
        for entry in entries:
            self.cluster.apply(events.Adopt(container_id, entry), self._now)
        self._changed.add(node_id)
        if former is not None:
            self._stop(container, self._patience_s(container), True, REPLACED)

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
            grace_s = self._patience_s(container) if graceful else EXIT_GRACE_S
            self._stop(container, grace_s, graceful, "stopped by a user")

    def _stop(self, container: ContainerState, grace_s: float, drain: bool, why: str, free: bool = False) -> None:
        """Order a container to end; unless it is drained, its inputs go elsewhere now: with ``free`` as if they had
        never run, however often that happens."""
        name = container.container_id
        if name not in self.cluster.containers:
            return
        if container.stop is None:
            self.note(container.function.function_id, STOP, 1, why, name)
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
            verdict = dispatch.after_loss(attempt, container.spec, why, free, function.ephemeral)
            self._again(attempt, verdict, container, back, False if free else None)
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
                    one.batch,
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


def _noted(spec: FunctionSpec) -> dict[str, Any]:
    """What must be known of a container's specification after a restart: whether it is the one in force, and else
    what its end has to do with."""
    limits = replace(spec, **NO_LIMITS)
    asked = spec.resources
    return {
        "digest": hashlib.sha256(to_json(limits).encode()).hexdigest(),
        "cpu_milli": asked.cpu_milli, "memory_mib": asked.memory_mib, "disk_mib": asked.disk_mib,
        "timeout_s": spec.timeout_s, "max_concurrent": spec.max_concurrent, "batch_max": spec.batch_max,
    }  # fmt: skip


def _former(spec: FunctionSpec, noted: Optional[dict[str, Any]]) -> Optional[FunctionSpec]:
    """What a container was started for, as far as it was noted; None when that is ``spec``."""
    if noted is None or noted["digest"] == _noted(spec)["digest"]:
        return None
    asked = replace(
        spec.resources, cpu_milli=noted["cpu_milli"], memory_mib=noted["memory_mib"], disk_mib=noted["disk_mib"]
    )
    return replace(
        spec,
        resources=asked,
        timeout_s=noted["timeout_s"],
        max_concurrent=noted["max_concurrent"],
        batch_max=noted["batch_max"],
        single_use=False,
    )


def variables(spec: FunctionSpec) -> dict[str, str]:
    """What a function's containers see: secrets in order, over them its ``env=`` (semantics.md section 14)."""
    found: dict[str, str] = {}
    for one in spec.secrets:
        found.update(one.values)
    return {**found, **spec.env}
