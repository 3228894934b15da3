"""Which inputs called which: the tree under a call, from what is known of calls in memory and in the table.

What is known: detached calls for as long as their results are kept; attached ones while they run, and the last
`ENDED_CALLS_KNOWN` after that, as long as the server runs; of an attached call's inputs above `ENDS_KNOWN` not each
one's end is remembered, and the call's most frequent one is shown. What has been forgotten is left out, with all under
it.
Source: semantics.md section 31, ``call_graph``.
"""

from __future__ import annotations

from typing import Any, Iterable, Optional

from cadenza.base.errors import NotFoundError
from cadenza.control.attached import ENDS_KNOWN, Attached, input_id
from cadenza.control.calls import Calls
from cadenza.control.request import Request
from cadenza.protocol.calls import PENDING
from cadenza.protocol.functions import CallGraph, GraphInput, GraphInputs
from cadenza.storage.db import Database
from cadenza.storage.entry import CallRecord
from cadenza.storage.rows import record

MAX_INPUTS = 2_000
"""How many inputs a graph has at most."""
MAX_DEPTH = 50


class Graphs:
    """The handler of ``call.graph``."""

    def __init__(self, db: Database, calls: Calls) -> None:
        self._db = db
        self._calls = calls

    async def graph(self, request: Request[CallGraph]) -> GraphInputs:
        """The inputs of a call, of the calls that those made, and so on: parents before children. NotFoundError."""
        call_id = request.body.call_id
        state = self._calls.attached(call_id)
        root = state.record if state is not None else await self._calls.record(call_id)
        if root is None:
            raise NotFoundError(f"there is no call {call_id}, or it is no longer known")
        found: list[GraphInput] = []
        level = [(root, state)]
        attached = self._by_parent()
        for _ in range(MAX_DEPTH):
            begun = len(found)
            for one, live in level:
                found += (await self._inputs(one, live))[: MAX_INPUTS - len(found)]
                if len(found) >= MAX_INPUTS:
                    return GraphInputs(tuple(found))
            level = []
            for parent in found[begun:]:
                if len(level) >= MAX_INPUTS:
                    break  # more calls than there is room for inputs
                level += [(each.record, each) for each in attached.get(parent.input_id, ())]
                rows = await self._db.fetch("graph_children", (parent.input_id, MAX_INPUTS))
                known = {each.record.call_id for each in attached.get(parent.input_id, ())}
                level += [(each, None) for each in map(record, rows) if each.call_id not in known]
            if not level:
                break
        return GraphInputs(tuple(found))

    def _by_parent(self) -> dict[str, list[Attached]]:
        found: dict[str, list[Attached]] = {}
        for one in self._calls.attached_calls():
            if one.record.parent_input_id:
                found.setdefault(one.record.parent_input_id, []).append(one)
        return found

    async def _inputs(self, call: CallRecord, state: Optional[Attached]) -> list[GraphInput]:
        """A call's inputs, in order, as far as they fit."""
        if state is None:
            done = await self._db.fetch("graph_outputs", (call.call_id, MAX_INPUTS))
            waits = await self._db.fetch("graph_inputs", (call.call_id, MAX_INPUTS))
            rows = [(index, name, status, place) for index, name, status, place in done]
            rows += [(index, name, PENDING, place) for index, name, place in waits]
        else:
            rows = list(_of_attached(state))
        function = self._calls.loop.cluster.functions.get(call.function_id)
        name, module = ("", "") if function is None else (function.spec.name, function.spec.module)
        if call.method:
            name = name.replace("*", call.method)
        found = []
        for _, one, status, place in sorted(rows)[:MAX_INPUTS]:
            holder = self._calls.loop.cluster.holder(one)
            if holder is not None:
                place = holder.container_id
            found.append(
                GraphInput(one, call.call_id, call.function_id, name, module, status, place, call.parent_input_id)
            )
        return found


def _of_attached(state: Attached) -> Iterable[tuple[int, str, str, str]]:
    """Index, id, status and container of each input of a call in memory."""
    counted = sorted(state.statuses.items(), key=lambda one: -one[1])
    over = state.record.total is not None and state.finished >= state.record.total
    usual = counted[0][0] if over and counted else PENDING
    for index in range(min(state.below, MAX_INPUTS)):
        status, place = state.ends.get(index, (usual if index >= ENDS_KNOWN else PENDING, ""))
        yield index, input_id(state.record.call_id, index) or "", status, place


def handlers(graphs: Graphs) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"call.graph": graphs.graph}
