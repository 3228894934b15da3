"""`FunctionCall`: a handle of work that was spawned. Source: semantics.md sections 3.2 and 5."""

from __future__ import annotations

import asyncio
import builtins
import time
from functools import partial
from typing import TYPE_CHECKING, Any, AsyncIterator, Coroutine, Generic, Iterable, Optional, Sequence, TypeVar, cast

from cadenza.base.errors import InvalidError
from cadenza.protocol.statuses import PENDING, SUCCESS
from cadenza.sdk import _dual, result
from cadenza.sdk.handle import Object, travels

if TYPE_CHECKING:
    from cadenza.protocol.methods import CallInfo
    from cadenza.sdk.client import Client
    from cadenza.protocol.functions import GraphInput
    from cadenza.sdk.logs import CallLogs
    from cadenza.sdk.types import InputInfo

R = TypeVar("R")

POLL_S = 55.0
"""How long one request waits for an output."""
PAGE_OUTPUTS = 49
"""How many outputs `FunctionCall.iter` asks for at once."""


@travels
class FunctionCall(Object, Generic[R]):
    """A call that runs apart from its caller. Made by ``f.spawn(...)`` or `from_id`; results can be read many times."""

    @classmethod
    def _known(cls, call_id: str, client: Optional[Client]) -> FunctionCall[Any]:
        call: FunctionCall[Any] = cls.__new__(cls)
        call._init_handle()
        call._hydrate(call_id, client)
        return call

    @_dual.class_method_at_once
    def from_id(cls: Any, function_call_id: str, client: Optional[Client] = None) -> FunctionCall[Any]:
        """The call with this id (``fc-...``), in any process. No I/O: NotFoundError comes at the first use."""
        if not isinstance(function_call_id, str) or not function_call_id.startswith("fc-"):
            raise InvalidError(f"FunctionCall.from_id takes an id such as 'fc-...', not {function_call_id!r}")
        return cast("FunctionCall[Any]", cls._known(function_call_id, client))

    def __repr__(self) -> str:
        return f"FunctionCall.from_id({self._object_id!r})"

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> FunctionCall[R]:
        """Ask the server whether it knows the call. NotFoundError."""
        if client is not None:
            self._client = client
        await self._info()
        return self

    async def _info(self) -> CallInfo:
        from cadenza.protocol.methods import CallRef

        client = await self._ready()
        return cast("CallInfo", await client._request("call.info", CallRef(self.object_id)))

    # --- results ---

    @_dual.method
    def get(self, timeout: Optional[float] = None, *, index: int = 0) -> Coroutine[Any, Any, R]:
        """The result of input ``index``, or the exception it raised.

        Waits for ``timeout`` seconds, for ever if None; 0 asks exactly once. Still pending: the builtin TimeoutError.
        OutputExpiredError when the result is no longer kept.
        """
        if timeout is not None and not timeout >= 0:  # so written that NaN is refused too
            raise InvalidError(f"timeout must not be negative, got {timeout}")
        if index < 0:
            raise InvalidError(f"index must not be negative, got {index}")
        return self._get(timeout, index)

    async def _get(self, timeout: Optional[float], index: int) -> R:
        output = await self._output(timeout, index)
        return cast(R, _dual.later(partial(result.value, output)))

    async def _output(self, timeout: Optional[float], index: int) -> result.Output:
        client = await self._ready()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            wait_s = POLL_S if deadline is None else min(POLL_S, max(0.0, deadline - time.monotonic()))
            body = {"call_id": self._object_id, "index": index, "wait_s": wait_s}
            reply, payload = await client._request_raw("call.get", body)
            output = reply["output"]
            if output["status"] != PENDING:
                data, _ = await result.received(client, output["value"], payload, 0)
                return output, data
            if deadline is not None and time.monotonic() >= deadline:
                raise builtins.TimeoutError(f"{self!r}: no result after {timeout} s")

    @_dual.generator
    def iter(self, *, start: int = 0, end: Optional[int] = None) -> AsyncIterator[Iterable[R]]:
        """The results of inputs ``start`` to ``end`` (not included), in order, each as soon as it is there."""
        if start < 0 or (end is not None and end < start):
            raise InvalidError(f"iter(start={start}, end={end}): 0 <= start <= end is needed")
        return self._iter(start, end)

    async def _iter(self, start: int, end: Optional[int]) -> AsyncIterator[Iterable[R]]:
        client = await self._ready()
        at = start
        while end is None or at < end:
            stop = at + PAGE_OUTPUTS if end is None else min(end, at + PAGE_OUTPUTS)
            body = {"call_id": self._object_id, "start": at, "end": stop, "wait_s": POLL_S}
            reply, payload = await client._request_raw("call.outputs", body)
            async for some in result.outputs(client, reply["outputs"], payload):
                at += len(some)
                yield _dual.later(lambda some=some: map(result.value, some))  # type: ignore[misc]
            if at >= reply["total"]:
                return

    @_dual.static_method
    @staticmethod
    def gather(*function_calls: FunctionCall[Any]) -> Coroutine[Any, Any, list[Any]]:
        """The results of all calls, in the order of the arguments. Raises the first failure; cancels nothing."""
        for one in function_calls:
            if not isinstance(one, FunctionCall):
                raise InvalidError(f"FunctionCall.gather takes FunctionCalls, as f.spawn() returns them, not {one!r}")
        return _gather(function_calls)

    # --- about it ---

    @_dual.method
    async def num_inputs(self) -> int:
        """How many inputs the call has."""
        return (await self._info()).inputs

    @_dual.method
    async def get_call_graph(self) -> list[InputInfo]:
        """Its inputs, each with those that its function called, and so on: a list of trees."""
        from cadenza.protocol.functions import CallGraph

        client = await self._ready()
        found = await client._request("call.graph", CallGraph(self.object_id))
        return graph(found.inputs)

    @property
    def logs(self) -> CallLogs:
        """What was written for it: ``fetch``, ``tail`` and ``stream``."""
        from cadenza.sdk.logs import CallLogs

        return CallLogs(self._logs_place, self._is_over)

    async def _logs_place(self) -> tuple[Client, dict[str, str]]:
        found = await self._info()
        return await self._ready(), {"app": found.app_id, "call": found.call_id}

    async def _is_over(self) -> bool:
        found = await self._info()
        return found.finished >= found.inputs

    @_dual.method
    async def cancel(self, terminate_containers: bool = False) -> None:
        """Drop its waiting inputs and cancel its running ones; their results are failures of class RemoteError.

        ``terminate_containers`` also kills the containers that run them: the only way with code stuck in C.
        """
        from cadenza.protocol.methods import CallCancel

        client = await self._ready()
        await client._request("call.cancel", CallCancel(self.object_id, terminate_containers))


def graph(inputs: Sequence[GraphInput]) -> list[InputInfo]:
    """The trees of inputs that name their parents; an input whose parent is not among them is a root."""
    from cadenza.protocol import statuses
    from cadenza.sdk.types import InputInfo, InputStatus

    seen = {
        statuses.PENDING: InputStatus.PENDING,
        statuses.SUCCESS: InputStatus.SUCCESS,
        statuses.INIT_FAILURE: InputStatus.INIT_FAILURE,
        statuses.TERMINATED: InputStatus.TERMINATED,
        statuses.TIMEOUT: InputStatus.TIMEOUT,
    }
    nodes = {
        one.input_id: InputInfo(
            input_id=one.input_id,
            function_call_id=one.call_id,
            task_id=one.container_id,
            status=seen.get(one.status, InputStatus.FAILURE),
            function_name=one.function_name,
            module_name=one.module,
            children=[],
        )
        for one in inputs
    }
    roots: list[InputInfo] = []
    for one in inputs:
        parent = nodes.get(one.parent_input_id) if one.parent_input_id != one.input_id else None
        (roots if parent is None else parent.children).append(nodes[one.input_id])
    return roots


async def _gather(calls: tuple[FunctionCall[Any], ...]) -> list[Any]:
    tasks = [asyncio.ensure_future(one._output(None, 0)) for one in calls]
    try:
        for done in asyncio.as_completed(tasks):
            output = await done
            if output[0]["status"] != SUCCESS:
                return _dual.later(partial(result.raise_failure, output))
    finally:
        for task in tasks:
            task.cancel()
    return _dual.later(lambda: [result.value(task.result()) for task in tasks])
