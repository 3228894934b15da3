"""The one owner of the cluster: drains a queue of events, reads the clock once, asks the engines, acts.

Whoever has news calls a method here; the news waits in the inbox until the next turn of the event loop, so that a burst
is one round. A round applies the news to the cluster, lets `dispatch`, `autoscale` and `placement` decide for the
functions concerned, writes what must survive, and then tells nodes. Between rounds one timer waits for the next
deadline; nothing polls.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Mapping, Optional, Protocol, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import InvalidError
from cadenza.base.ids import IdSource
from cadenza.base.resources import Gpu
from cadenza.protocol import nodes
from cadenza.protocol.calls import (
    FAILURE,
    INIT_FAILURE,
    INTERNAL_FAILURE,
    MAX_INTERNAL_FAILURES,
    REVOKED,
    SUCCESS,
    TERMINATED,
    TIMEOUT,
    Attempt,
    AttemptOutput,
    BlobRef,
    GeneratorItem,
)
from cadenza.protocol.nodes import ContainerReport, ContainerSpec, Desired, Node, NodeReport, StopOrder
from cadenza.protocol.objects import FunctionSpec
from cadenza.scheduling import autoscale, dispatch, events, placement, states
from cadenza.scheduling.cluster import Cluster
from cadenza.scheduling.states import AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry, Taken
from cadenza.storage.queue import Queue

WINDOW_INPUTS = 512
"""How many due inputs of a function are in memory; the rest wait in the table."""
REFILL_BELOW_INPUTS = 256
MAX_INBOX_EVENTS = 10_000
"""With more news than this the round begins at once."""
IMAGES_NAMED = 8
TIMER_GRAIN_S = 0.0005
"""A deadline nearer than this waits this long: event loops ring a little early, and would ring again and again."""
EXIT_GRACE_S = 30.0
"""What exit hooks may take. Source: semantics.md section 12.1."""
EPOCH_FENCES = 1 << 16
"""Fences of one life of the control plane start above those of the last one by this much."""
FENCE_LOST = "the platform lost the container"


class Sink(Protocol):
    """Where results go: `cadenza.control.calls`."""

    def finish(
        self, entry: Entry, status: str, data: bytes, blob: Optional[BlobRef], error: str, items: int,
        container: Optional[ContainerState],
    ) -> None:  # fmt: skip
        """An input's output is decided: commit it."""

    def item(self, entry: Entry, number: int, data: bytes, blob: Optional[BlobRef]) -> None:
        """A generator gave its next value."""

    def is_cancelled(self, call_id: str) -> bool:
        """Whether a call was cancelled: its inputs must not run any more."""


@dataclass
class _Refill:
    """A function's lease of waiting inputs that is under way."""

    running: bool = False
    arrived: int = 0
    """How many inputs were put into the table since it was asked for."""
    next_ready: float = math.inf
    """Monotonic seconds at which the next delayed input is due."""


class Loop:
    """The cluster's owner. All methods belong to the event loop's thread; none blocks."""

    def __init__(self, isolation: str, queue: Queue, clock: Clock, ids: IdSource, sink: Sink) -> None:
        self.cluster = Cluster()
        self.isolation = isolation
        self._queue = queue
        self._clock = clock
        self._ids = ids
        self._sink = sink
        self._nodes: dict[str, Node] = {}
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._in_round = False
        self._stopped = False
        self._now = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_at = math.inf
        self._dirty: dict[str, None] = {}
        self._resize: set[str] = set()
        self._stuck: set[str] = set()
        self._refills: dict[str, _Refill] = {}
        self._reserved: dict[str, int] = {}
        self._specs: dict[str, ContainerSpec] = {}
        self._stops: dict[str, StopOrder] = {}
        self._images: OrderedDict[str, None] = OrderedDict()
        self._revision = 0
        self._changed: set[str] = set()
        self._deliveries: dict[str, list[Attempt]] = {}
        self._cancels: list[tuple[str, tuple[str, ...], bool]] = []
        self.fence_base = 0

    # --- news ---

    def post(self, handler: Callable[..., None], *args: Any) -> None:
        """Let ``handler(*args)`` run in the next round."""
        self._inbox.append((handler, args))
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._later_round)
        if len(self._inbox) > MAX_INBOX_EVENTS:
            self.settle()

    def settle(self) -> None:
        """Have the round now instead of in the next turn: for whoever has told all the news of one read."""
        if self._inbox and not self._in_round and not self._stopped:
            self._round()

    def _later_round(self) -> None:
        self._scheduled = False
        self.settle()

    def stop(self) -> None:
        """Decide nothing any more."""
        self._stopped = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()

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

    def touch(self, function_id: str) -> None:
        """Look at a function in this round."""
        self._dirty[function_id] = None
        self._resize.add(function_id)

    def _all_dirty(self) -> None:
        for name in self.cluster.functions:
            self.post(self.touch, name)

    # --- inputs ---

    def room(self, function_id: str) -> int:
        """How many new inputs may go straight to memory: none while others wait in the table before them."""
        function = self.cluster.functions[function_id]
        if function.backlog > function.delayed:
            return 0
        return max(0, WINDOW_INPUTS - len(function.ready) - self._reserved.get(function_id, 0))

    def reserve(self, function_id: str, change: int) -> None:
        """Places in memory for inputs that are on their way; given back by `arrived`, or with a negative ``change``."""
        if change:
            self._reserved[function_id] = max(0, self._reserved.get(function_id, 0) + change)

    def arrived(self, function_id: str, entries: Sequence[Entry], reserved: int = 0) -> None:
        """New inputs, leased with their put."""
        self.reserve(function_id, -reserved)
        if function_id not in self.cluster.functions:
            return
        good = [one for one in entries if not one.done and not self._sink.is_cancelled(one.call_id)]
        if len(good) < len(entries):
            for one in entries:
                if one not in good:
                    self._finish(one, TERMINATED, error="its call was cancelled")
        self.cluster.apply(events.Arrived(function_id, good), self._now)
        self._dirty[function_id] = None

    def nested(self, input_id: str, change: int) -> None:
        """An input that runs waits for one more call of its own, or for one less."""
        self.cluster.apply(events.Nested(input_id, change), self._now)
        for name in self._stuck:
            self.touch(name)

    def stored(self, function_id: str, count: int) -> None:
        """New inputs that wait in the table. Called when their write is asked for, before the next refill is."""
        if function_id in self.cluster.functions and count:
            self.cluster.apply(events.BacklogChanged(function_id, count), self._now)
            self._refill_of(function_id).arrived += count
            self._dirty[function_id] = None

    def removed(self, function_id: str, count: int) -> None:
        """Inputs left the table otherwise than by a lease."""
        if function_id in self.cluster.functions:
            self.cluster.apply(events.BacklogChanged(function_id, -count, -count), self._now)
            self._dirty[function_id] = None

    def end_inputs(self, function_id: str, chosen: Callable[[Entry], bool], error: str, kill: bool) -> None:
        """Inputs in memory that are ``chosen`` become TERMINATED; their running attempts are cancelled."""
        function = self.cluster.functions.get(function_id)
        if function is None:
            return
        waiting = [one for one in function.ready if not one.done and chosen(one)]
        for one in waiting:
            self._finish(one, TERMINATED, error=error)
        if waiting:
            self.cluster.apply(events.Withdrawn(function_id), self._now)
        for container in list(function.containers.values()):
            hit = [one for one in container.attempts.values() if not one.zombie and chosen(one.entry)]
            if not hit:
                if kill and any(one.zombie and chosen(one.entry) for one in container.attempts.values()):
                    self._stop(container, 0.0, False, "its call was cancelled with its containers")
                continue
            for attempt in hit:
                self._finish(attempt.entry, TERMINATED, error=error, container=container)
            names = tuple(one.attempt_id for one in hit)
            self.cluster.apply(events.Bury(container.container_id, names), self._now)
            if kill:
                self._stop(container, 0.0, False, "its call was cancelled with its containers")
            else:
                self._cancels.append((container.container_id, names, False))
        self._dirty[function_id] = None

    def remove_function(self, function_id: str, reason: str) -> None:
        """Its inputs in memory end, its containers stop; those in the table are the caller's to drop."""
        if function_id not in self.cluster.functions:
            return
        self.end_inputs(function_id, lambda entry: True, reason, False)
        function = self.cluster.functions[function_id]
        for container in list(function.containers.values()):
            self._stop(container, EXIT_GRACE_S, False, reason)
        self.cluster.apply(events.FunctionRemoved(function_id), self._now)

    # --- what nodes say ---

    def report(self, report: NodeReport) -> None:
        """A node's current state."""
        node = self.cluster.nodes.get(report.node_id)
        if node is None:
            return
        for one in report.containers:
            self._container_seen(one)
        if not report.whole:
            return
        behind = report.revision < self._revision  # it has not heard our last word
        self._revision = max(self._revision, report.revision)  # an earlier control plane's may be ahead
        again = not node.connected
        if again:
            self.cluster.apply(events.NodeSeen(node.info, True), self._now)
        there = {one.container_id for one in report.containers}
        for container in list(node.containers.values()):
            if container.container_id not in there and container.revision <= report.revision:
                gone = ContainerReport(container.container_id, nodes.GONE, nodes.NODE_LOST, "its node knows it no more")
                self._container_seen(gone)
            elif again and container.attempts:
                # What was under way when the connection broke may be lost: a container ignores what it has.
                self._deliver(container, container.attempts.values())
        if again or behind or there - node.containers.keys():  # or it has what we do not know: it is to end that
            self._changed.add(report.node_id)
        if again:
            self._all_dirty()

    def _container_seen(self, report: ContainerReport) -> None:
        container = self.cluster.containers.get(report.container_id)
        if container is None or report.state not in states.MOVES[container.state]:
            return
        was_ready = container.ready_since > 0
        lost = self.cluster.apply(events.ContainerSeen(report), self._now)
        function = container.function
        self.touch(function.function_id)
        if report.state == nodes.READY:
            self._watch_idle(container)
        if report.state != nodes.GONE:
            return
        self._specs.pop(container.container_id, None)
        self._stops.pop(container.container_id, None)
        self._deliveries.pop(container.container_id, None)
        self._changed.add(container.node_id)
        self._queue.drop_container(container.container_id)
        self._room_again()
        # Of an earlier life and gone with it: that is no failed start.
        outlived = report.reason == nodes.NODE_LOST and not container.revision
        if not was_ready and container.stop is None and not outlived:
            self._start_failed(function, report)
        spec = function.spec
        back: list[Entry] = []
        for attempt in lost:
            if attempt.zombie:
                continue
            if container.stop is not None:
                # Ordered by us: nobody's failure, and not the platform's either while it stays within reason.
                verdict = dispatch.after_loss(attempt, spec, "the container was stopped")
            else:
                verdict = dispatch.after_end(attempt, spec, report)
            self._again(attempt, verdict, container, back)
        self._return(function, back)

    def _start_failed(self, function: FunctionState, report: ContainerReport) -> None:
        blame = report.reason not in (nodes.RUNTIME_FAILED, nodes.NODE_LOST)
        failures = 1 + (function.start_failures if blame else function.internal_failures)
        failing = None
        text = report.message or dispatch.end_text(report, function.spec).replace(" while it ran the input", "")
        if blame and failures >= autoscale.MAX_START_FAILURES and function.ephemeral:
            failing = events.FailedStart(INIT_FAILURE, f"the container did not start: {text}", report.error)
        elif not blame and failures >= MAX_INTERNAL_FAILURES:
            failing = events.FailedStart(INTERNAL_FAILURE, f"no container could be started: {text}")
        if not function.busy:
            failing = None
        until = self._now + autoscale.backoff_s(failures) if blame or failures >= MAX_INTERNAL_FAILURES else 0.0
        self.cluster.apply(events.StartFailed(function.function_id, blame, until, failing), self._now)

    def outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """Ends of attempts. Those that hold no lease any more fall on the floor here."""
        container = self.cluster.containers.get(container_id)
        if container is None:
            return
        refused = False
        said: dict[str, AttemptOutput] = {}
        for output in outputs:
            said.setdefault(output.attempt_id, output)
        function = container.function
        spec = function.spec
        back: list[Entry] = []
        for attempt in self.cluster.apply(events.Settle(container_id, outputs), self._now):
            if attempt.zombie:
                continue
            output = said[attempt.attempt_id]
            status = output.status
            if status in (SUCCESS, TERMINATED):
                self._finish(
                    attempt.entry, status, output.data, output.blob, output.error, output.items, container=container
                )
                continue
            if status == REVOKED:
                verdict = dispatch.Verdict(0.0)
                refused = refused or not attempt.revoking
            elif status == INTERNAL_FAILURE:
                verdict = dispatch.after_loss(attempt, spec, output.error or FENCE_LOST)
            else:
                status = status if status in (TIMEOUT, INIT_FAILURE) else FAILURE
                verdict = dispatch.after_failure(attempt.entry, spec, status, output.error)
            if status != REVOKED and verdict.delay_s is None:
                self._finish(
                    attempt.entry, verdict.status, output.data, output.blob, verdict.error, output.items,
                    container=container,
                )  # fmt: skip
            else:
                self._again(attempt, verdict, container, back, lost=status != REVOKED)
        self._return(function, back)
        if refused and container.stop is None:
            self._stop(container, EXIT_GRACE_S, True, "it gives its inputs back")
        if spec.single_use and container.taken and not container.attempts and container.stop is None:
            self._stop(container, EXIT_GRACE_S, True, "single use: it has had its one input")
        self._watch_idle(container)
        self._dirty[function.function_id] = None

    def items(self, container_id: str, items: Sequence[GeneratorItem]) -> None:
        """Values of generators: each number once, in order."""
        container = self.cluster.containers.get(container_id)
        if container is None:
            return
        for one in items:
            attempt = container.attempts.get(one.attempt_id)
            if attempt is not None and not attempt.zombie and one.number == attempt.next_item:
                attempt.next_item += 1
                self._sink.item(attempt.entry, one.number, one.data, one.blob)

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

    # --- what becomes of inputs ---

    def _finish(
        self, entry: Entry, status: str, data: bytes = b"", blob: Optional[BlobRef] = None, error: str = "",
        items: int = 0, container: Optional[ContainerState] = None,
    ) -> None:  # fmt: skip
        if not entry.done:
            entry.done = True
            self._sink.finish(entry, status, data, blob, error, items, container)

    def _again(
        self, attempt: AttemptState, verdict: dispatch.Verdict, container: Optional[ContainerState], back: list[Entry],
        lost: Optional[bool] = None,
    ) -> None:  # fmt: skip
        """Carry out a verdict on an attempt that has left its container; what runs again at once goes to ``back``."""
        entry = attempt.entry
        if entry.done:
            return
        if self._sink.is_cancelled(entry.call_id):
            self._finish(entry, TERMINATED, error="its call was cancelled", container=container)
        elif verdict.delay_s is None:
            self._finish(entry, verdict.status, error=verdict.error, items=attempt.next_item, container=container)
        elif verdict.delay_s > 0:
            self._later(entry, verdict.delay_s)
        else:
            if lost if lost is not None else attempt.begun:
                entry.losses += 1
            else:
                entry.attempts -= 1  # it never ran
            entry.container_id = ""
            back.append(entry)

    def _later(self, entry: Entry, delay_s: float) -> None:
        """Charge a failure and let the input wait in the table."""
        entry.retries += 1
        entry.ready_at = self._clock.now() + delay_s
        entry.fence = max(entry.fence, self.fence_base)
        self._queue.give_back(entry)
        function_id = entry.function_id
        self.cluster.apply(events.BacklogChanged(function_id, 1, 1), self._now)
        refill = self._refill_of(function_id)
        refill.arrived += 1
        refill.next_ready = min(refill.next_ready, self._now + delay_s)
        self.cluster.arm(self.cluster.functions[function_id], refill.next_ready)

    def _return(self, function: FunctionState, back: list[Entry]) -> None:
        if back:
            back.sort(key=lambda entry: entry.seq)
            self.cluster.apply(events.Arrived(function.function_id, back, front=True), self._now)
            self._dirty[function.function_id] = None

    # --- the round ---

    def _round(self) -> None:
        self._in_round = True
        try:
            self._decide()
        finally:
            self._in_round = False

    def _decide(self) -> None:
        self._now = now = self._clock.monotonic()
        inbox = self._inbox
        while inbox:
            handler, args = inbox.popleft()
            handler(*args)
        for name in self.cluster.due(now):
            container = self.cluster.containers.get(name)
            if container is not None:
                self._check(container)
            else:
                self.touch(name)
        wants: list[placement.Want] = []
        waiting: dict[str, None] = {}
        while self._dirty:
            names, self._dirty = self._dirty, {}
            for name in names:
                function = self.cluster.functions.get(name)
                if function is not None:
                    self._serve(function, wants)
                    if function.ready and function.target < function.spec.max_concurrent:
                        waiting[name] = None
        self._resize.clear()
        if wants:
            self._place(wants)
        for name in waiting:
            function = self.cluster.functions.get(name)
            if function is not None:
                self._burst(function)
        self._act()
        self._set_timer()

    def _check(self, container: ContainerState) -> None:
        """A container's deadline has come, or what runs in it turns out to be slow."""
        found, again = dispatch.overdue(container, self._now)
        for one in found:
            if isinstance(one, dispatch.TimedOut):
                self._timed_out(container, one.attempt)
            elif isinstance(one, events.CallBack):
                self.cluster.apply(one, self._now)
                self._cancels.append((one.container_id, tuple(one.attempt_ids), True))
            else:
                self._stop(container, one.grace_s, one.drain, one.why)
        if again < math.inf and container.container_id in self.cluster.containers:
            self.cluster.arm(container, again)

    def _timed_out(self, container: ContainerState, attempt: AttemptState) -> None:
        function = container.function
        spec = function.spec
        text = f"the input ran longer than its timeout of {attempt.timeout_s:g} s"
        verdict = dispatch.after_failure(attempt.entry, spec, TIMEOUT, text)
        name = attempt.attempt_id
        concurrent = spec.max_concurrent > 1
        deadline = self._now + dispatch.CANCEL_GRACE_S if concurrent else 0.0
        self.cluster.apply(events.Bury(container.container_id, (name,), deadline), self._now)
        self._again(attempt, verdict, container, [])
        self._dirty[function.function_id] = None
        if concurrent:
            self._cancels.append((container.container_id, (name,), False))
        else:
            self._stop(container, dispatch.KILL_GRACE_S, False, text)

    def _serve(self, function: FunctionState, wants: list[placement.Want]) -> None:
        """Give out what waits, ask for more, and size the pool."""
        cluster, now = self.cluster, self._now
        if function.failing is not None:
            self._fail_waiting(function, function.failing)
        else:
            assign = dispatch.plan(cluster, function, now)
            while assign is not None:
                self._give(assign)
                assign = dispatch.plan(cluster, function, now)
        self._refill(function)
        if function.waiting or function.function_id in self._resize:
            self._size(function, wants)

    def _give(self, assign: events.Assign) -> None:
        if self.fence_base:
            assign = events.Assign(assign.container_id, assign.count, self.fence_base)
        given = self.cluster.apply(assign, self._now)
        self._deliver(self.cluster.containers[assign.container_id], given)
        for attempt in given:
            if not attempt.entry.attached:
                self._queue.hold(attempt.entry)

    def _burst(self, function: FunctionState) -> None:
        """What still waits when it is decided who starts."""
        assign = dispatch.burst(self.cluster, function)
        while assign is not None:
            self._give(assign)
            assign = dispatch.burst(self.cluster, function)

    def _fail_waiting(self, function: FunctionState, failing: events.FailedStart) -> None:
        entries = list(function.ready)
        for entry in entries:
            if failing.status == INIT_FAILURE:
                verdict = dispatch.after_failure(entry, function.spec, failing.status, failing.error)
            else:
                verdict = dispatch.Verdict(None, failing.status, failing.error)
            if verdict.delay_s is None:
                self._finish(entry, verdict.status, failing.data, error=verdict.error)
            else:
                entry.done = True  # this copy: the table has it from here on
                self._later(entry, verdict.delay_s)
        self.cluster.apply(events.Withdrawn(function.function_id), self._now)
        if function.backlog <= function.delayed and not function.ready:
            self.cluster.apply(events.FailingOver(function.function_id), self._now)
            self.touch(function.function_id)

    def _size(self, function: FunctionState, wants: list[placement.Want]) -> None:
        decision = autoscale.decide(function, self._now)
        if decision.why != function.why or bool(decision.start) != bool(function.wanted_since):
            event = events.Wanting(function.function_id, decision.start > 0, decision.why)
            self.cluster.apply(event, self._now)
        for name in decision.stop:
            container = self.cluster.containers[name]
            why = f"idle for {function.spec.scaledown_window_s:g} s"
            self._stop(container, EXIT_GRACE_S, True, f"{why}: {decision.why}")
        self._stuck.discard(function.function_id)
        if decision.start:
            wants.append(placement.Want(function.function_id, function.spec.resources, decision.start))
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

    # --- the table ---

    def _refill_of(self, function_id: str) -> _Refill:
        refill = self._refills.get(function_id)
        if refill is None:
            refill = self._refills[function_id] = _Refill()
        return refill

    def _refill(self, function: FunctionState) -> None:
        """Lease more of what waits in the table, when memory runs low."""
        if not function.backlog or len(function.ready) >= REFILL_BELOW_INPUTS:
            return
        refill = self._refill_of(function.function_id)
        if refill.running:
            return
        if function.backlog <= function.delayed and self._now < refill.next_ready:
            if refill.next_ready < math.inf:
                self.cluster.arm(function, refill.next_ready)
            return
        refill.running, refill.arrived, refill.next_ready = True, 0, math.inf
        count = WINDOW_INPUTS - len(function.ready)
        future = self._queue.take(function.function_id, self._clock.now(), count)
        future.add_done_callback(lambda done: self._post_taken(function.function_id, done))

    def _post_taken(self, function_id: str, done: asyncio.Future[Taken]) -> None:
        if not done.cancelled():
            taken = None if done.exception() is not None else done.result()
            self.post(self._taken, function_id, taken)

    def _taken(self, function_id: str, taken: Optional[Taken]) -> None:
        refill = self._refill_of(function_id)
        refill.running = False
        function = self.cluster.functions.get(function_id)
        if taken is None:  # the database refused; try again in a while
            if function is not None:
                refill.next_ready = self._now + 1.0
                self.cluster.apply(events.BacklogChanged(function_id, 0, function.backlog), self._now)
                self.cluster.arm(function, refill.next_ready)
            return
        if function is None:
            return
        good = []
        for entry in taken.entries:
            if function.removed or self._sink.is_cancelled(entry.call_id):
                self._finish(entry, TERMINATED, error="its call was cancelled")
            else:
                good.append(entry)
        count = len(taken.entries)
        self.cluster.apply(events.BacklogChanged(function_id, -count), self._now)
        if taken.more:
            delayed = -function.delayed
        else:
            delayed = function.backlog - refill.arrived - function.delayed
        self.cluster.apply(events.BacklogChanged(function_id, 0, delayed), self._now)
        if not taken.more and taken.next_ready_at is None:  # nothing is left but what came since
            gone = max(0, function.backlog - refill.arrived)
            self.cluster.apply(events.BacklogChanged(function_id, -gone, -gone), self._now)
        if taken.next_ready_at is not None:
            at = self._now + max(0.0, taken.next_ready_at - self._clock.now())
            refill.next_ready = min(refill.next_ready, at)
        if refill.next_ready < math.inf:
            self.cluster.arm(function, refill.next_ready)
        if good:
            self.cluster.apply(events.Arrived(function_id, good), self._now)
        self._dirty[function_id] = None

    # --- acting ---

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

    def _set_timer(self) -> None:
        at = self.cluster.next_alarm()
        if at >= self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf:
            self._timer = asyncio.get_running_loop().call_later(
                max(TIMER_GRAIN_S, at - self._clock.monotonic()), self._ring
            )

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if not self._stopped and not self._in_round:
            self._round()
