"""What one input costs the control plane: submit, dispatch, output, commit; no container, a real database.

``python bench/control.py`` prints CPU and wall time an input for one caller, a map, 64 callers and 100,000 spawned
inputs, and the process's memory before and after those.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import Any, Awaitable, Callable, Sequence

import uvloop

from cadenza.base.clock import SystemClock
from cadenza.base.config import Config
from cadenza.base.ids import IdSource
from cadenza.base.resources import Resources
from cadenza.control.calls import Calls
from cadenza.protocol.calls import MAP, SPAWN_MAP, SUCCESS, SYNC, Attempt, AttemptOutput, OutputItem
from cadenza.protocol.nodes import GONE, READY, STOPPED, ContainerReport, Desired, NodeInfo, NodeReport
from cadenza.protocol.objects import FunctionSpec
from cadenza.storage.db import Database

PAYLOAD = b"x" * 200


class EchoNode:
    """Containers that are ready at once and give back what they get, in the next turn of the loop."""

    def __init__(self) -> None:
        self.calls: Calls
        self._known: set[str] = set()
        self._box: dict[str, list[Attempt]] = {}

    def info(self) -> NodeInfo:
        return NodeInfo("no-1", Resources(64_000, 64_000))

    def want(self, desired: Desired) -> None:
        for spec in desired.containers:
            if spec.container_id not in self._known:
                self._known.add(spec.container_id)
                self._say(ContainerReport(spec.container_id, READY))
        for order in desired.stops:
            if order.container_id in self._known:
                self._known.discard(order.container_id)
                self._say(ContainerReport(order.container_id, GONE, STOPPED))

    def _say(self, report: ContainerReport) -> None:
        self.calls.report(NodeReport("no-1", (report,)))

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        if not self._box:
            asyncio.get_running_loop().call_soon(self._run)
        self._box.setdefault(container_id, []).extend(attempts)

    def _run(self) -> None:
        box, self._box = self._box, {}
        now = time.time()
        for container_id, attempts in box.items():
            outputs = [
                AttemptOutput(one.attempt_id, SUCCESS, one.data, started_at=now, finished_at=now + 1e-4)
                for one in attempts
            ]
            self.calls.take_outputs(container_id, outputs)

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        pass


async def once(calls: Calls) -> OutputItem:
    future: asyncio.Future[OutputItem] = asyncio.get_running_loop().create_future()
    await calls.submit(
        "fu-1", SYNC, [(0, PAYLOAD, None)], total=1, on_output=lambda item, data: future.set_result(item)
    )
    return await future


async def one_caller(calls: Calls) -> int:
    for _ in range(2_000):
        await once(calls)
    return 2_000


async def many_callers(calls: Calls) -> int:
    async def work() -> None:
        for _ in range(150):
            await once(calls)

    await asyncio.gather(*(work() for _ in range(64)))
    return 64 * 150


async def one_map(calls: Calls) -> int:
    count, chunk, done = 20_000, 50, 0
    more = asyncio.Event()

    def on_output(item: OutputItem, data: bytes) -> None:
        nonlocal done
        done += 1
        more.set()

    call_id, _ = await calls.submit("fu-1", MAP, [], on_output=on_output)
    for start in range(0, count, chunk):
        while start - done > 950:
            more.clear()
            await more.wait()
        await calls.add(call_id, [(index, PAYLOAD, None) for index in range(start, start + chunk)])
    calls.close(call_id, count)
    while done < count:
        more.clear()
        await more.wait()
    return count


async def spawned(calls: Calls) -> int:
    for _ in range(200):
        await calls.submit("fu-1", SPAWN_MAP, [(index, PAYLOAD, None) for index in range(500)])
    while calls.app_busy("ap-1"):
        await asyncio.sleep(0.05)
    return 100_000


def memory_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(label: str, work: Callable[[Calls], Awaitable[int]], calls: Calls) -> None:
    cpu, wall, before = time.process_time(), time.perf_counter(), memory_mib()
    count = await work(calls)
    cpu, wall = (time.process_time() - cpu) / count * 1e6, (time.perf_counter() - wall) / count * 1e6
    print(f"{label:<12} {cpu:7.1f} us CPU  {wall:7.1f} us wall  memory {before:.0f} -> {memory_mib():.0f} MiB")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        db = await Database.open(os.path.join(folder, "cadenza.db"))
        node: Any = EchoNode()
        calls = node.calls = Calls(Config(), db, SystemClock(), IdSource())
        calls.add_function("fu-1", "ap-1", "app", FunctionSpec("f", max_containers=4), {})
        await calls.start(node)
        await once(calls)
        for label, work in (
            ("one caller", one_caller),
            ("map", one_map),
            ("64 callers", many_callers),
            ("spawned", spawned),
        ):
            await measure(label, work, calls)
        await calls.stop()
        await db.close()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
