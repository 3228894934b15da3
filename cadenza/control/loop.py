"""The one owner of the cluster: drains a queue of events, reads the clock once, asks the engines, acts.

Whoever has news calls a method here; the news waits in the inbox until the next turn of the event loop, so that a burst
is one round. A round applies the news to the cluster, lets `dispatch`, `autoscale` and `placement` decide for the
functions concerned, writes what must survive, and then tells nodes. Between rounds one timer waits for the next
deadline; nothing polls.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

from cadenza.control.journal import BLOCK, REFUSE, UNBLOCK
from cadenza.control.pools import EXIT_GRACE_S, Pools
from cadenza.control.round import FAULT_WAIT_S
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
    AttemptOutput,
    GeneratorItem,
)
from cadenza.protocol.nodes import ContainerReport, NodeReport
from cadenza.scheduling import autoscale, dispatch, events, placement
from cadenza.scheduling.states import AttemptState, ContainerState, FunctionState
from cadenza.storage.entry import Entry

EPOCH_FENCES = 1 << 16
"""Fences of one life of the control plane start above those of the last one by this much."""
FENCE_LOST = "the platform lost the container"


class Loop(Pools):
    """The cluster's owner. All methods belong to the event loop's thread; none blocks."""

    # --- news of functions ---

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
        self.touch(function_id)

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
        if container is None or not container.is_news(report):
            return
        was_ready = container.ready_since > 0
        faulty = container.function.start_failures + container.function.internal_failures
        lost = self.cluster.apply(events.ContainerSeen(report), self._now)
        function = container.function
        self.touch(function.function_id)
        if report.state == nodes.READY:
            self._watch_idle(container)
            if faulty:
                self.note(function.function_id, UNBLOCK, 1, "a container has started", container.container_id)
        if report.state != nodes.GONE:
            return
        self._specs.pop(container.container_id, None)
        self._stops.pop(container.container_id, None)
        self._deliveries.pop(container.container_id, None)
        self._changed.add(container.node_id)
        self._queue.drop_container(container.container_id)
        if self.admission is not None:
            self.admission.gone(container.container_id, self._now)
        self._room_again()
        # Of an earlier life and gone with it: that is no failed start.
        outlived = report.reason == nodes.NODE_LOST and not container.revision
        if not was_ready and container.stop is None and not outlived:
            self._start_failed(function, report)
        crashed = report.reason in (nodes.CRASHED, nodes.OOM) and container.stop is None
        if crashed and any(one.begun and not one.zombie for one in lost):
            self._crashed(container, report)
        spec = container.spec
        back: list[Entry] = []
        for attempt in lost:
            if attempt.zombie:
                continue
            if container.stop is not None:
                # Ordered by us: nobody's failure, and not the platform's either while it stays within reason.
                verdict = dispatch.after_loss(attempt, spec, "the container was stopped", ephemeral=function.ephemeral)
            else:
                verdict = dispatch.after_end(attempt, spec, report, function.ephemeral)
            self._again(attempt, verdict, container, back)
        self._return(function, back)

    def _start_failed(self, function: FunctionState, report: ContainerReport) -> None:
        blame = report.reason not in (nodes.RUNTIME_FAILED, nodes.NODE_LOST)
        failures = 1 + (function.start_failures if blame else function.internal_failures)
        failing = None
        text = report.message or dispatch.end_text(report, function.spec).replace(" while it ran the input", "")
        if blame and failures >= autoscale.MAX_START_FAILURES and function.ephemeral:
            text = f"the container did not start: {text}"
            failing = events.FailedStart(INIT_FAILURE, text, report.error, report.container_id)
        elif not blame and failures >= MAX_INTERNAL_FAILURES and function.ephemeral:
            text = f"no container could be started: {text}"
            failing = events.FailedStart(INTERNAL_FAILURE, text, container_id=report.container_id)
        if not function.busy:
            failing = None
        until = self._now + autoscale.backoff_s(failures) if blame or failures >= MAX_INTERNAL_FAILURES else 0.0
        self.cluster.apply(events.StartFailed(function.function_id, blame, until, failing, text), self._now)
        self._note_fault(function, "failed to start", failures, text, report.container_id)

    def _note_fault(self, function: FunctionState, what: str, count: int, text: str, container_id: str) -> None:
        wait_s = max(0.0, function.blocked_until - self._now)
        why = f"{count} in a row {what}; the next start is in {wait_s:.3g} s: {text}"
        self.note(function.function_id, REFUSE if function.failing else BLOCK, 1, why, container_id)

    def _crashed(self, container: ContainerState, report: ContainerReport) -> None:
        """A container ended by itself under its inputs: the next start waits, and in an ephemeral app not for ever."""
        function = container.function
        crashes = function.crashes + 1
        text = dispatch.end_text(report, container.spec)
        failing = None
        if crashes >= autoscale.MAX_CRASHES and function.ephemeral:
            why = f"{crashes} containers crashed one after the other; the last one: {text}"
            failing = events.FailedStart(FAILURE, why, container_id=report.container_id)
        until = self._now + autoscale.backoff_s(crashes)
        self.cluster.apply(events.Crashed(function.function_id, until, text, failing), self._now)
        self._note_fault(function, "crashed", crashes, text, report.container_id)

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
        spec = container.spec
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
                verdict = dispatch.after_loss(attempt, spec, output.error or FENCE_LOST, ephemeral=function.ephemeral)
            else:
                status = status if status in (TIMEOUT, INIT_FAILURE) else FAILURE
                kinds = dispatch.TIMEOUT_KINDS if status == TIMEOUT else output.kinds
                verdict = dispatch.after_failure(attempt.entry, spec, status, output.error, kinds)
            if status != REVOKED and verdict.delay_s is None:
                self._finish(
                    attempt.entry, verdict.status, output.data, output.blob, verdict.error, output.items,
                    container=container,
                )  # fmt: skip
            else:
                self._again(attempt, verdict, container, back, lost=status != REVOKED)
        self._return(function, back)
        if refused and container.stop is None:
            self._stop(container, self._patience_s(container), True, "it gives its inputs back")
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

    # --- the round ---

    def _decide(self) -> None:
        """A part of a round that fails is logged and left out; what else there is to decide and to say goes on."""
        now = self._now
        while self._inbox:
            handler, args = self._inbox.popleft()
            self._guarded(handler, *args)
        for name in self.cluster.due(now):
            container = self.cluster.containers.get(name)
            if container is not None:
                if not self._guarded(self._check, container):
                    self.cluster.arm(container, now + FAULT_WAIT_S)
            else:
                self.touch(name)
        wants: list[placement.Want] = []
        waiting: dict[str, None] = {}
        while self._dirty:
            names, self._dirty = self._dirty, {}
            for name in names:
                function = self.cluster.functions.get(name)
                if function is not None and function.spent:  # its last input left the table after its last container
                    self.cluster.apply(events.FunctionRemoved(name), now)
                    function = None
                if function is None:
                    self._guarded(self._forgotten, name)
                    continue
                if not self._guarded(self._serve, function, wants):
                    self._dirty.pop(name, None)
                    self.cluster.arm(function, now + FAULT_WAIT_S)
                elif function.ready and function.target < function.spec.max_concurrent:
                    waiting[name] = None
        self._resize.clear()
        if wants:
            self._guarded(self._place, wants)
        for name in waiting:
            function = self.cluster.functions.get(name)
            if function is not None:
                self._guarded(self._burst, function)

    def _check(self, container: ContainerState) -> None:
        """A container's deadline has come, or what runs in it turns out to be slow."""
        found, again = dispatch.overdue(container, self._now)
        timed_out = [one.attempt for one in found if isinstance(one, dispatch.TimedOut)]
        if timed_out:
            self._timed_out(container, timed_out)
        for one in found:
            if isinstance(one, dispatch.TimedOut):
                continue
            if isinstance(one, events.CallBack):
                self.cluster.apply(one, self._now)
                self._cancels.append((one.container_id, tuple(one.attempt_ids), True))
            else:
                self._stop(container, one.grace_s, one.drain, one.why)
        if again < math.inf and container.container_id in self.cluster.containers:
            self.cluster.arm(container, again)

    def _timed_out(self, container: ContainerState, attempts: Sequence[AttemptState]) -> None:
        """Inputs that ran as long as they may: one, or those of a batch."""
        function = container.function
        spec = container.spec
        text = f"the input ran longer than its timeout of {attempts[0].timeout_s:g} s"
        names = tuple(one.attempt_id for one in attempts)
        concurrent = spec.max_concurrent > 1
        deadline = self._now + dispatch.CANCEL_GRACE_S if concurrent else 0.0
        self.cluster.apply(events.Bury(container.container_id, names, deadline), self._now)
        for attempt in attempts:
            verdict = dispatch.after_failure(attempt.entry, spec, TIMEOUT, text, dispatch.TIMEOUT_KINDS)
            self._again(attempt, verdict, container, [])
        self._dirty[function.function_id] = None
        if concurrent:
            self._cancels.append((container.container_id, names, False))
        else:
            self._stop(container, dispatch.KILL_GRACE_S, False, text)

    def _serve(self, function: FunctionState, wants: list[placement.Want]) -> None:
        """Give out what waits, ask for more, and size the pool."""
        cluster, now = self.cluster, self._now
        if function.failing is not None:
            self._fail_waiting(function, function.failing)
        else:
            ahead = self.admission is None or not self.admission.covers(function)
            assign = dispatch.plan(cluster, function, now, ahead)
            while assign is not None and self._give(assign):
                assign = dispatch.plan(cluster, function, now, ahead)
            if function.spec.batch_max and function.ready:
                cluster.arm(function, dispatch.next_batch_at(function, now))
        self._refill(function)
        if function.waiting or function.function_id in self._resize:
            self._size(function, wants)

    def _give(self, assign: events.Assign) -> bool:
        """Carry out an assignment; False when it may not be."""
        if self.admission is not None:
            container = self.cluster.containers[assign.container_id]
            pause = self.admission.give(container, self._now)
            if pause:
                self._pause(container.function, pause)
                return False
            self.paused.pop(container.function.function_id, None)
        if self.fence_base:
            assign = events.Assign(assign.container_id, assign.count, self.fence_base, assign.method)
        given = self.cluster.apply(assign, self._now)
        self._deliver(self.cluster.containers[assign.container_id], given)
        for attempt in given:
            if not attempt.entry.attached:
                self._queue.hold(attempt.entry)
        return True

    def _burst(self, function: FunctionState) -> None:
        """What still waits when it is decided who starts."""
        assign = dispatch.burst(self.cluster, function, self._now)
        while assign is not None and self._give(assign):
            assign = dispatch.burst(self.cluster, function, self._now)
