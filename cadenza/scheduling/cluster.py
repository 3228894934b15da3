"""The cluster as one value: nodes, containers, functions, attempts; applying an event is its only way to change.

No I/O and no clock: ``now`` is monotonic seconds, given with each event. The decisions (`dispatch`, `autoscale`,
`placement`) read this value and return events; `cadenza.control.loop` applies them and then acts.

Rules on top of the table of moves (`MOVES`): a container takes inputs only while it is READY and has no order to stop.
An attempt belongs to one container and is in ``attempts`` of it from its assignment until its output, its revocation or
the container's end. The first of them, as many as it has ``slots``, have *begun*; the rest were handed over early and
wait in the container. A *zombie* is an attempt whose input is decided already (cancelled, timed out) and whose code may
still run: it holds its slot until the container says that it ended.

A container *lends* its CPU while each of its running inputs waits for calls of its own: else a machine that is full of
callers would never run what they call. Its memory and its GPUs stay its own.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Optional, Union

from cadenza.base.errors import Bug
from cadenza.base.resources import Resources
from cadenza.protocol.calls import FAILURE, SUCCESS, TIMEOUT, attempt_id
from cadenza.protocol.nodes import GONE, READY, ContainerReport
from cadenza.protocol.objects import AutoscalerPatch
from cadenza.scheduling.events import (
    Adopt, Arrived, Assign, BacklogChanged, Bury, CallBack, ContainerSeen, Detach, Event, FailingOver, FunctionAdded,
    FunctionRemoved, Limited, Nested, NodeAway, NodeSeen, Settle, StartContainer, StartFailed, StopContainer, Wanting,
    Withdrawn, Crashed,
)  # fmt: skip
from cadenza.scheduling.states import (
    NO_LIMITS, AttemptState, ContainerState, FunctionState, NodeState, limited, runs_alike,
)  # fmt: skip
from cadenza.storage.entry import Entry

AVERAGE_WEIGHT = 0.3
"""How much the newest execution counts in a function's moving average."""
_OWN_ENDS = (SUCCESS, FAILURE, TIMEOUT)
"""Ends of an input which say that its container did not crash."""
SLOW_HEAD_S = 0.02
"""When what runs has run so long, inputs that wait behind it in the same container are called back."""


class Cluster:
    """The state. Read its fields freely; change it by `apply` alone."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.functions: dict[str, FunctionState] = {}
        self.containers: dict[str, ContainerState] = {}
        self._holders: dict[str, ContainerState] = {}
        """By input id: where it runs."""
        self._alarms: list[tuple[float, int, str]] = []
        self._alarm_number = 0

    def apply(self, event: Event, now: float) -> list[AttemptState]:
        """Change the state. Gives the attempts concerned: those assigned, settled (in step with the outputs, None
        left out), detached or buried; for the end of a container all that were in it."""
        handler = _HANDLERS.get(type(event))
        if handler is None:
            raise Bug(f"not an event: {event!r}")
        return handler(self, event, now)  # type: ignore[no-any-return, operator]

    def holder(self, input_id: str) -> Optional[ContainerState]:
        """The container that has an input, if one has it."""
        return self._holders.get(input_id)

    # --- alarms: when something must be looked at again ---

    def next_alarm(self) -> float:
        """When `due` has something; infinity when nothing is planned."""
        return self._alarms[0][0] if self._alarms else math.inf

    def due(self, now: float) -> list[str]:
        """Ids of containers and functions to be looked at now. Each is armed again by who looks."""
        found = []
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            at, _, name = heapq.heappop(alarms)
            one = self.containers.get(name) or self.functions.get(name)
            if one is not None and one.alarm_at == at:
                one.alarm_at = math.inf
                found.append(name)
        return found

    def arm(self, one: Union[ContainerState, FunctionState], at: float) -> None:
        """Look at ``one`` not later than ``at``."""
        if at < one.alarm_at:
            one.alarm_at = at
            self._alarm_number += 1
            name = one.container_id if isinstance(one, ContainerState) else one.function_id
            heapq.heappush(self._alarms, (at, self._alarm_number, name))

    # --- handlers ---

    def _node_seen(self, event: NodeSeen, now: float) -> list[AttemptState]:
        node = self.nodes.get(event.info.node_id)
        if node is None:
            node = NodeState(event.info, event.info.capacity, dict(event.info.gpus), event.connected)
            self.nodes[event.info.node_id] = node
        else:
            node.connected = event.connected
            for container in node.containers.values():
                self._offer(container)
        return []

    def _node_away(self, event: NodeAway, now: float) -> list[AttemptState]:
        if event.node_id in self.nodes:
            self.nodes[event.node_id].connected = False
        return []

    def _function_added(self, event: FunctionAdded, now: float) -> list[AttemptState]:
        old = self.functions.get(event.function_id)
        if old is None:
            old = self.functions[event.function_id] = FunctionState(
                event.function_id, event.app_id, event.app_name, event.spec, dict(event.layout), event.ephemeral
            )
        else:
            other = event.renew or not runs_alike(old.declared, event.spec)
            if other or old.declared != event.spec:
                old.limits, old.unset = AutoscalerPatch(), ()
            if other or any(event.layout.get(name, value) != value for name, value in old.layout.items()):
                old.generation += 1
                old.average_s = None if other and not event.renew else old.average_s
            # Whoever publishes wants it tried now, also where nothing but its surroundings was put right.
            old.start_failures = old.internal_failures = old.crashes = 0
            old.blocked_until, old.failing, old.fault = 0.0, None, ""
            old.app_id, old.app_name = event.app_id, event.app_name
            old.declared, old.layout = event.spec, dict(event.layout)
            old.spec = limited(event.spec, old.limits, old.unset)
            old.removed, old.ephemeral = False, event.ephemeral
        old.environment, old.base_id = event.environment, event.base_id
        return []

    def _limited(self, event: Limited, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        if event.patch is None:
            function.limits, function.unset = AutoscalerPatch(), ()
        else:
            given = {name: getattr(event.patch, name) for name in NO_LIMITS}
            unset = {*function.unset, *event.unset} - {name for name, value in given.items() if value is not None}
            kept = {name: None if name in unset else getattr(function.limits, name) for name in NO_LIMITS}
            kept.update({name: value for name, value in given.items() if value is not None})
            function.limits, function.unset = AutoscalerPatch(**kept), tuple(sorted(unset))
        function.spec = limited(function.declared, function.limits, function.unset)
        return []

    def _function_removed(self, event: FunctionRemoved, now: float) -> list[AttemptState]:
        function = self.functions.get(event.function_id)
        if function is not None:
            function.removed = True
            self._forget(function)
        return []

    def _forget(self, function: FunctionState) -> None:
        if function.spent:
            self.functions.pop(function.function_id, None)

    def _arrived(self, event: Arrived, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        for one in event.entries:
            one.since = now
        if event.front and event.entries:
            ready = function.ready
            back = list(event.entries)
            last = max(one.seq for one in back)
            while ready and ready[0].returned and ready[0].seq < last:  # they came back before these, in pieces
                back.append(ready.popleft())
            back.sort(key=lambda one: one.seq)
            for one in back:
                one.returned = True
            ready.extendleft(reversed(back))
        else:
            function.ready.extend(event.entries)
            function.arrive(len(event.entries), now)
        return []

    def _backlog_changed(self, event: BacklogChanged, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        function.backlog = max(0, function.backlog + event.change)
        function.delayed = min(function.backlog, max(0, function.delayed + event.delayed))
        return []

    def _withdrawn(self, event: Withdrawn, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        function.ready = deque(one for one in function.ready if not one.done)
        self._forget(function)
        return []

    def _assign(self, event: Assign, now: float) -> list[AttemptState]:
        container = self.containers[event.container_id]
        function = container.function
        spec = container.spec
        given: list[AttemptState] = []
        batch = ""
        if event.method is not None:
            _to_front(function, event.method)
        for _ in range(event.count):
            if not function.ready:
                break
            entry = function.ready.popleft()
            if entry.done:
                continue
            if entry.fresh:
                entry.fresh = False
            else:
                entry.fence = max(entry.fence, event.fence_base) + 1
            entry.attempts += 1
            entry.returned = False
            entry.container_id = container.container_id
            attempt = AttemptState(attempt_id(entry.input_id, entry.fence), entry, now, spec.timeout_s)
            container.attempts[attempt.attempt_id] = attempt
            self._holders[entry.input_id] = container
            container.taken += 1
            function.running += 1
            if spec.batch_max:
                batch = batch or attempt.attempt_id
                self._join(container, attempt, batch)
                self._begin(container, attempt, now)
            elif container.begun < container.slots:
                self._begin(container, attempt, now)
            else:
                container.queued.append(attempt)
                self.arm(container, now + SLOW_HEAD_S)
            given.append(attempt)
        return given

    @staticmethod
    def _adopted_batch(container: ContainerState, entry: Entry) -> str:
        """Which inputs ran together is not known any more: those that could have."""
        for one in container.attempts.values():
            same = one.batch and one.entry.method == entry.method
            if same and container.batches[one.batch] < container.spec.batch_max:
                return one.batch
        return f"adopted {entry.input_id}"

    @staticmethod
    def _join(container: ContainerState, attempt: AttemptState, batch: str) -> None:
        attempt.batch = batch
        container.batches[batch] = container.batches.get(batch, 0) + 1

    def _begin(self, container: ContainerState, attempt: AttemptState, now: float) -> None:
        container.begun += 1
        attempt.begun_at = attempt.entry.begun_at = now
        attempt.entry.took_s = -1.0
        attempt.deadline = now + attempt.timeout_s
        self.arm(container, attempt.deadline)
        if container.lends:
            self._lend(container)

    def _remove(self, container: ContainerState, attempt: AttemptState, now: float) -> None:
        """An attempt leaves its container; the next one in it begins."""
        del container.attempts[attempt.attempt_id]
        function = container.function
        if not attempt.zombie:
            function.running -= 1
        if attempt.begun:
            container.begun -= 1
        else:
            container.queued.remove(attempt)
        if attempt.batch:
            container.batches[attempt.batch] -= 1
            if not container.batches[attempt.batch]:
                del container.batches[attempt.batch]
        while container.queued and container.begun < container.slots:
            self._begin(container, container.queued.popleft(), now)
        if self._holders.get(attempt.entry.input_id) is container:
            del self._holders[attempt.entry.input_id]
        if container.lends or attempt.nested:
            self._lend(container)
        if not container.attempts:
            container.idle_since = now
        self._offer(container)

    def _lend(self, container: ContainerState) -> None:
        """Give its node the CPU of a container that only waits, or take it back: for a while the node may owe some."""
        runs: dict[str, bool] = {}
        for one in container.attempts.values():
            if one.begun:  # of a batch, one waits for all
                name = one.batch or one.attempt_id
                runs[name] = runs.get(name, False) or one.nested > 0
        lends = bool(runs) and all(runs.values())
        if lends != container.lends:
            container.lends = lends
            node = self.nodes[container.node_id]
            cpu = Resources(container.requests.cpu_milli, 0)
            node.free = node.free.plus(cpu) if lends else node.free.minus(cpu)

    def _nested(self, event: Nested, now: float) -> list[AttemptState]:
        container = self._holders.get(event.input_id)
        if container is not None:
            for attempt in container.attempts.values():
                if attempt.entry.input_id == event.input_id:
                    attempt.nested = max(0, attempt.nested + event.change)
            self._lend(container)
        return []

    def _offer(self, container: ContainerState) -> None:
        if not container.in_free and container.usable:
            container.in_free = True
            container.function.free.append(container)

    def _settle(self, event: Settle, now: float) -> list[AttemptState]:
        container = self.containers.get(event.container_id)
        if container is None:
            return []
        settled = []
        function = container.function
        for output in event.outputs:
            attempt = container.attempts.get(output.attempt_id)
            if attempt is None:
                continue
            if output.started_at and output.finished_at >= output.started_at and not attempt.zombie:
                attempt.entry.took_s = took = output.finished_at - output.started_at
                old = function.average_s
                function.average_s = took if old is None else old + AVERAGE_WEIGHT * (took - old)
            if function.crashes and output.status in _OWN_ENDS:
                function.crashes, function.fault = 0, ""
            self._remove(container, attempt, now)
            settled.append(attempt)
        return settled

    def _detach(self, event: Detach, now: float) -> list[AttemptState]:
        container = self.containers.get(event.container_id)
        if container is None:
            return []
        gone = [container.attempts[one] for one in event.attempt_ids if one in container.attempts]
        for one in reversed(gone):  # from the back, so that what waits behind does not begin
            self._remove(container, one, now)
        return gone

    def _bury(self, event: Bury, now: float) -> list[AttemptState]:
        container = self.containers[event.container_id]
        buried = []
        for name in event.attempt_ids:
            attempt = container.attempts.get(name)
            if attempt is None or attempt.zombie:
                continue
            attempt.zombie = True
            container.function.running -= 1
            if event.deadline:
                attempt.deadline = min(attempt.deadline, event.deadline)
                self.arm(container, attempt.deadline)
            buried.append(attempt)
        return buried

    def _call_back(self, event: CallBack, now: float) -> list[AttemptState]:
        container = self.containers[event.container_id]
        for name in event.attempt_ids:
            if name in container.attempts:
                container.attempts[name].revoking = True
        return []

    def _adopt(self, event: Adopt, now: float) -> list[AttemptState]:
        container = self.containers[event.container_id]
        function = container.function
        entry = event.entry
        entry.attempts += 1
        attempt = AttemptState(attempt_id(entry.input_id, entry.fence), entry, now, container.spec.timeout_s)
        container.attempts[attempt.attempt_id] = attempt
        self._holders[entry.input_id] = container
        container.taken += 1
        function.running += 1
        if container.spec.batch_max:
            self._join(container, attempt, self._adopted_batch(container, entry))
        if attempt.batch or container.begun < container.slots:
            self._begin(container, attempt, now)
        else:
            container.queued.append(attempt)
            self.arm(container, now + SLOW_HEAD_S)
        return [attempt]

    def _wanting(self, event: Wanting, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        function.why = event.why
        if not event.lacking:
            function.wanted_since = 0.0
        elif not function.wanted_since:
            function.wanted_since = now
        return []

    def _start_container(self, event: StartContainer, now: float) -> list[AttemptState]:
        function = self.functions[event.function_id]
        node = self.nodes[event.node_id]
        container = ContainerState(
            event.container_id, function, event.node_id, function.wanted_since or now, now, event.why,
            (event.former or function.spec).resources, event.gpus, revision=event.revision, idle_since=now,
        )  # fmt: skip
        if event.former is not None:
            container.spec, container.generation = event.former, 0
        self.containers[container.container_id] = container
        function.containers[container.container_id] = container
        node.containers[container.container_id] = container
        node.free = node.free.minus(container.requests)
        for gpu in event.gpus:
            node.free_gpus[gpu.type] = node.free_gpus.get(gpu.type, 0) - gpu.count
        return []

    def _stop_container(self, event: StopContainer, now: float) -> list[AttemptState]:
        container = self.containers[event.container_id]
        order = container.stop
        if order is None or now + event.grace_s < container.stop_at or (order.drain and not event.drain):
            container.stop = event
            container.stop_at = min(container.stop_at, now + event.grace_s)
            container.why = event.why
        return []

    def _container_seen(self, event: ContainerSeen, now: float) -> list[AttemptState]:
        report = event.report
        container = self.containers.get(report.container_id)
        if container is None or not container.is_news(report):
            return []
        if container.state == report.state:
            return self._resized(container, report, now)
        container.state = report.state
        container.hear(report)
        function = container.function
        if report.state == READY:
            container.ready_since = now
            if container.revision:  # one that was taken over began before it was known here
                took, old = now - container.placed_at, function.start_s
                function.start_s = took if old is None else old + AVERAGE_WEIGHT * (took - old)
            function.start_failures = function.internal_failures = 0
            if not function.crashes:
                function.blocked_until, function.fault = 0.0, ""
            container.idle_since = now
            self._offer(container)
        if report.state != GONE:
            return []
        lost = list(container.attempts.values())
        function.running -= sum(1 for one in lost if not one.zombie)
        del self.containers[container.container_id]
        del function.containers[container.container_id]
        if container.in_free:
            function.free.remove(container)
        node = self.nodes[container.node_id]
        del node.containers[container.container_id]
        for one in lost:
            if self._holders.get(one.entry.input_id) is container:
                del self._holders[one.entry.input_id]
        if container.lends:
            node.free = node.free.minus(Resources(container.requests.cpu_milli, 0))
        node.free = node.free.plus(container.requests)
        for gpu in container.gpus:
            node.free_gpus[gpu.type] += gpu.count
        self._forget(function)
        return lost

    def _resized(self, container: ContainerState, report: ContainerReport, now: float) -> list[AttemptState]:
        """It runs another number of inputs at once from now on; what has begun goes on."""
        container.hear(report)
        while container.queued and container.begun < container.slots:
            self._begin(container, container.queued.popleft(), now)
        self._offer(container)
        return []

    def _start_failed(self, event: StartFailed, now: float) -> list[AttemptState]:
        function = self.functions.get(event.function_id)
        if function is not None:
            if event.blame:
                function.start_failures += 1
            else:
                function.internal_failures += 1
            function.fault = event.text
            function.blocked_until = max(function.blocked_until, event.blocked_until)
            function.failing = event.failing or function.failing
        return []

    def _crashed(self, event: Crashed, now: float) -> list[AttemptState]:
        function = self.functions.get(event.function_id)
        if function is not None:
            function.crashes += 1
            function.fault = event.text
            function.blocked_until = max(function.blocked_until, event.blocked_until)
            function.failing = event.failing or function.failing
        return []

    def _failing_over(self, event: FailingOver, now: float) -> list[AttemptState]:
        function = self.functions.get(event.function_id)
        if function is not None:
            function.failing = None
            function.start_failures = function.internal_failures = function.crashes = 0
            function.blocked_until, function.fault = now, ""
        return []


def _to_front(function: FunctionState, method: str) -> None:
    """Inputs of one method go before the others; else they keep their order."""
    ready = function.ready
    function.ready = deque(one for one in ready if one.method == method)
    function.ready.extend(one for one in ready if one.method != method)


_HANDLERS = {
    NodeSeen: Cluster._node_seen,
    NodeAway: Cluster._node_away,
    FunctionAdded: Cluster._function_added,
    Limited: Cluster._limited,
    FunctionRemoved: Cluster._function_removed,
    Arrived: Cluster._arrived,
    BacklogChanged: Cluster._backlog_changed,
    Withdrawn: Cluster._withdrawn,
    Assign: Cluster._assign,
    Settle: Cluster._settle,
    Detach: Cluster._detach,
    Bury: Cluster._bury,
    CallBack: Cluster._call_back,
    Adopt: Cluster._adopt,
    Nested: Cluster._nested,
    Wanting: Cluster._wanting,
    StartContainer: Cluster._start_container,
    StopContainer: Cluster._stop_container,
    ContainerSeen: Cluster._container_seen,
    StartFailed: Cluster._start_failed,
    Crashed: Cluster._crashed,
    FailingOver: Cluster._failing_over,
}
