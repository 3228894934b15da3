"""Outputs on their way in: large ones of detached calls become durable first, and no container's end overtakes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Awaitable, Callable, Optional, Sequence

from cadenza.base.errors import Error
from cadenza.control.loop import Loop
from cadenza.observe.log import Log
from cadenza.protocol.calls import INTERNAL_FAILURE, AttemptOutput
from cadenza.protocol.nodes import GONE, NODE_LOST, ContainerReport, NodeReport

LAST_COPIES_S = 5.0
"""How long the values under way may take when the control plane stops."""

Persist = Callable[[str], Awaitable[None]]
"""Makes a blob durable: `cadenza.control.lane.LaneServer.persist`."""
_log = Log("cadenza.control.results")


class Results:
    """What nodes say of attempts and containers, in the order in which it may be believed."""

    def __init__(self, loop: Loop) -> None:
        self.persist: Optional[Persist] = None
        """Without one, values are durable when they come."""
        self._loop = loop
        self._keeping: dict[str, int] = {}
        """By container: how many batches of its outputs are being made durable."""
        self._ends: dict[str, NodeReport] = {}
        """Ends of those containers, held back."""
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """What became of attempts."""
        persist = self.persist
        later = []
        if persist is not None:
            later = [one for one in outputs if one.blob is not None and self._outlives(container_id, one.attempt_id)]
        if persist is not None and later:
            self._keeping[container_id] = self._keeping.get(container_id, 0) + 1
            task = asyncio.get_running_loop().create_task(self._keep(container_id, later, persist))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            outputs = [one for one in outputs if all(one is not other for other in later)]
        if outputs:
            self._loop.tell(self._loop.outputs, container_id, outputs)

    def _outlives(self, container_id: str, attempt_id: str) -> bool:
        """Whether an attempt's value is for more than a client that waits now."""
        container = self._loop.cluster.containers.get(container_id)
        attempt = None if container is None else container.attempts.get(attempt_id)
        return attempt is None or not attempt.entry.attached

    async def _keep(self, container_id: str, outputs: Sequence[AttemptOutput], persist: Persist) -> None:
        try:
            for one in outputs:
                assert one.blob is not None
                try:
                    await persist(one.blob.blob_id)
                except (Error, OSError) as error:
                    _log.warning("a result could not be kept", attempt=one.attempt_id, error=str(error))
                    text = f"the result could not be kept: {error}"
                    one = replace(one, status=INTERNAL_FAILURE, blob=None, error=text)
                self._loop.post(self._loop.outputs, container_id, [one])
        finally:
            self._keeping[container_id] -= 1
            if not self._keeping[container_id]:
                del self._keeping[container_id]
                end = self._ends.pop(container_id, None)
                if end is not None:
                    self._loop.post(self._loop.report, end)

    def report(self, report: NodeReport) -> None:
        """A node's state. The end of a container whose outputs are being kept is believed after those."""
        if self._keeping:
            report = self._without_ends(report)
        self._loop.post(self._loop.report, report)

    def _without_ends(self, report: NodeReport) -> NodeReport:
        said = {one.container_id: one for one in report.containers}
        for name in self._keeping:
            container = self._loop.cluster.containers.get(name)
            if container is None or container.node_id != report.node_id:
                continue
            end = said.get(name)
            if end is None and report.whole and container.revision <= report.revision:
                end = ContainerReport(name, GONE, NODE_LOST, "its node knows it no more")
            if end is not None and end.state == GONE:
                self._ends.setdefault(name, NodeReport(report.node_id, (end,), revision=report.revision))
                said[name] = ContainerReport(name, container.state)  # old news, which changes nothing
        return replace(report, containers=tuple(said.values()))

    async def finish(self) -> None:
        """Let the values under way arrive, for a while."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=LAST_COPIES_S)
        for task in list(self._tasks):
            task.cancel()
