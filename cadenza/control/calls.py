"""Calls: what users asked for, and the only writer of results.

`Calls` takes inputs, keeps them durable in `cadenza.storage.queue`, lets `cadenza.control.loop` find containers for
them, commits each result exactly once (only the attempt that holds the lease may give it), and then tells who waits.
All methods are called on the event loop's thread. None blocks; those that wait are coroutines.
"""

from __future__ import annotations

from typing import Callable, Mapping, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.base.ids import IdSource
from cadenza.protocol.calls import AttemptOutput, BlobRef, GeneratorItem, OutputItem
from cadenza.protocol.methods import CallInfo, ContainerInfo, FunctionStats
from cadenza.protocol.nodes import Node, NodeReport
from cadenza.protocol.objects import FunctionSpec
from cadenza.storage.db import Database

OnOutput = Callable[[OutputItem, bytes], None]
OnItem = Callable[[int, bytes, Optional[BlobRef]], None]
Value = tuple[int, bytes, Optional[BlobRef]]
"""An input's index in its call, its bytes (empty when there is a blob), its blob."""


class Calls:
    """Every call of this control plane."""

    def __init__(self, config: Config, db: Database, clock: Clock, ids: IdSource) -> None:
        """Nothing happens before `start`. ``db`` is open."""
        raise NotImplementedError

    async def start(self, node: Node) -> None:
        """Load what is unfinished: detached calls go on, attached ones of an earlier process are dropped."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop deciding; what was accepted and detached stays in the database for the next start."""
        raise NotImplementedError

    # --- functions and apps ---

    def add_function(
        self, function_id: str, app_id: str, app_name: str, spec: FunctionSpec, layout: Mapping[str, str]
    ) -> None:
        """Make a function callable (again). InvalidError when no node can ever hold its containers."""
        raise NotImplementedError

    def remove_app(self, app_id: str, reason: str) -> None:
        """End an app: its unfinished inputs become TERMINATED, its containers stop."""
        raise NotImplementedError

    def app_busy(self, app_id: str) -> bool:
        """Whether any input of the app is not finished."""
        raise NotImplementedError

    # --- calls ---

    async def submit(
        self,
        function_id: str,
        kind: str,
        values: Sequence[Value],
        *,
        call_id: str = "",
        caller: str = "",
        parent_input_id: str = "",
        total: Optional[int] = None,
        on_output: Optional[OnOutput] = None,
        on_item: Optional[OnItem] = None,
    ) -> tuple[str, list[str]]:
        """Open a call with its first inputs: ``(call id, input ids)``.

        For detached kinds it returns when they are durable. ``total`` is how many inputs the call will have, if that is
        known (None for a map that is still being read; see `close`). ``on_output(item, data)`` is called once an
        input, after its output is committed; ``on_item(number, data, blob)`` for a generator's values, in order.
        NotFoundError for an unknown function, ResourceExhaustedError over the limits of semantics.md section 3.4.
        """
        raise NotImplementedError

    async def add(self, call_id: str, values: Sequence[Value]) -> list[str]:
        """More inputs of an open call: their ids. An index that the call has already is ignored."""
        raise NotImplementedError

    def close(self, call_id: str, total: int) -> None:
        """The call will have ``total`` inputs and no more."""
        raise NotImplementedError

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]:
        """One output, waited for up to ``wait_s``; status PENDING if it is not there by then.

        NotFoundError for an unknown call, OutputExpiredError when there is nothing and nothing will come.
        """
        raise NotImplementedError

    async def outputs(
        self, call_id: str, start: int, end: Optional[int], wait_s: float
    ) -> tuple[list[tuple[OutputItem, bytes]], int]:
        """Outputs ``start`` to ``end`` (not included), in order without a gap, and how many inputs the call has."""
        raise NotImplementedError

    async def cancel(self, call_id: str, terminate_containers: bool) -> None:
        """End a call: waiting inputs drop, running ones are cancelled; each becomes TERMINATED, durable on return."""
        raise NotImplementedError

    def abandon(self, caller: str) -> None:
        """A client is gone: its attached calls are cancelled after `CALLER_GONE_GRACE_S`."""
        raise NotImplementedError

    async def info(self, call_id: str) -> CallInfo:
        """How a call stands."""
        raise NotImplementedError

    # --- containers ---

    def stats(self, function_id: str) -> FunctionStats:
        """How many inputs wait and how many containers there are."""
        raise NotImplementedError

    def containers(self, app_id: str = "") -> list[ContainerInfo]:
        """The containers that are not gone, each with the reason for its present state."""
        raise NotImplementedError

    def stop_container(self, container_id: str, graceful: bool) -> None:
        """Stop one container; ``graceful`` lets its running inputs finish. NotFoundError when there is none."""
        raise NotImplementedError

    # --- what a node calls (protocol.nodes.Control: report, outputs, items) ---

    def report(self, report: NodeReport) -> None:
        """A node's current state."""
        raise NotImplementedError

    def take_outputs(self, container_id: str, outputs: Sequence[AttemptOutput]) -> None:
        """What became of attempts. Only the attempt that holds the lease counts; others are dropped."""
        raise NotImplementedError

    def take_items(self, container_id: str, items: Sequence[GeneratorItem]) -> None:
        """Values of generators."""
        raise NotImplementedError
