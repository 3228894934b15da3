"""What every queue does: the one in the database and its twin in memory. Semantics: sections 3, 7 and 9."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Awaitable, Callable

import pytest

from cadenza.base.errors import InternalError
from cadenza.protocol.calls import INTERNAL_FAILURE, SUCCESS, TERMINATED, BlobRef
from cadenza.storage.db import Database
from cadenza.storage.entry import CallRecord, Entry, Output
from cadenza.storage.queue import Queue
from cadenza.storage.queue_memory import MemoryQueue, MemoryStore
from cadenza.storage.queue_sqlite import SqliteQueue

Work = Callable[[Callable[[], Awaitable[Queue]]], Awaitable[Any]]


@pytest.fixture(params=["sqlite", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Work], Any]:
    """Run ``work(open)``; each ``await open()`` is a new process's queue on what is committed."""

    def go(work: Work) -> Any:
        async def main() -> Any:
            store = MemoryStore()
            opened: list[Database] = []

            async def open_() -> Queue:
                if request.param == "memory":
                    return MemoryQueue(store)
                for one in opened:
                    await one.close()
                opened[:] = [await Database.open(str(tmp_path / "cadenza.db"))]
                return SqliteQueue(opened[0])

            try:
                return await work(open_)
            finally:
                for one in opened:
                    await one.close()

        return asyncio.run(main())

    return go


def record(call_id: str = "fc-1", attached: bool = False, inputs: int = 0) -> CallRecord:
    return CallRecord(call_id, "fu-1", "ap-1", "spawn_map", attached, created_at=1.0, inputs=inputs)


def entries(queue: Queue, count: int, call_id: str = "fc-1", fence: int = 0, **more: Any) -> list[Entry]:
    return [
        Entry(
            queue.next_seq(), f"in-{call_id}-{index}", call_id, index, "fu-1", more.get("attached", False),
            b"%d" % index, fence=fence, ready_at=more.get("ready_at", 5.0),
        )
        for index in range(more.get("start", 0), more.get("start", 0) + count)
    ]  # fmt: skip


async def ack(queue: Queue, entry: Entry, data: bytes = b"r") -> bool:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    queue.ack(
        entry, Output(entry.call_id, entry.index, entry.input_id, SUCCESS, data, expires_at=100.0), future.set_result
    )
    return await future


def test_inputs_are_taken_once_and_in_order(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        assert await queue.put(record(inputs=5), entries(queue, 5)) == [0, 1, 2, 3, 4]
        first = await queue.take("fu-1", 10.0, 3)
        assert [one.index for one in first.entries] == [0, 1, 2]
        assert first.more
        assert [one.data for one in first.entries] == [b"0", b"1", b"2"]
        second = await queue.take("fu-1", 10.0, 3)
        assert [one.index for one in second.entries] == [3, 4]
        assert not second.more and second.next_ready_at is None
        assert (await queue.take("fu-2", 10.0, 3)).entries == []

    run(work)


def test_what_is_not_due_waits(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        await queue.put(record(inputs=1), entries(queue, 1))
        (entry,) = (await queue.take("fu-1", 10.0, 3)).entries
        entry.ready_at, entry.retries, entry.fence = 20.0, 2, 4
        queue.give_back(entry)
        early = await queue.take("fu-1", 19.0, 3)
        assert early.entries == [] and early.next_ready_at == 20.0
        (again,) = (await queue.take("fu-1", 20.0, 3)).entries
        assert (again.retries, again.fence, again.input_id) == (2, 4, entry.input_id)

    run(work)


def test_only_the_holder_of_the_newest_lease_commits_and_only_once(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        (entry,) = entries(queue, 1, fence=1)
        await queue.put(record(inputs=1), [entry])
        entry.fence, entry.container_id = 2, "ta-2"
        queue.hold(entry)
        stale = Entry(entry.seq, entry.input_id, entry.call_id, 0, "fu-1", False, fence=1)
        assert not await ack(queue, stale, b"old")
        assert await ack(queue, entry, b"new")
        assert not await ack(queue, entry, b"twice")
        (output,) = await queue.outputs("fc-1", 0, 10, 10)
        assert output.data == b"new"
        assert await queue.unfinished("fc-1") == 0

    run(work)


def test_a_stale_acknowledgement_in_a_batch_spares_the_others(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        mine = entries(queue, 150, fence=1)
        await queue.put(record(inputs=150), mine)
        mine[70].fence = 9
        results = await asyncio.gather(*(ack(queue, one) for one in mine))
        assert [index for index, good in enumerate(results) if not good] == [70]
        assert await queue.statuses("fc-1") == {SUCCESS: 149}
        assert await queue.unfinished("fc-1", 70) == 1
        assert await queue.unfinished("fc-1", 71) == 0

    run(work)


def test_indices_put_again_are_ignored(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        mine = entries(queue, 3, fence=1)
        await queue.put(record(inputs=3), mine)
        await ack(queue, mine[0])
        assert await queue.put(None, entries(queue, 5)) == [3, 4]
        found = await queue.call("fc-1")
        assert found is not None and found.inputs == 5

    run(work)


def test_a_restart_keeps_detached_calls_and_forgets_attached_ones(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        assert (await queue.load()).epoch == 0
        held, waiting = entries(queue, 2, fence=1), entries(queue, 3, start=2)
        await queue.put(record(inputs=5), held + waiting)
        await queue.put(record("fc-2", attached=True, inputs=2), entries(queue, 2, "fc-2", 1, attached=True))
        held[0].container_id, held[0].fence = "ta-1", 2
        queue.hold(held[0])
        assert await ack(queue, held[1])
        queue.put_container("ta-1", "no-1", "fu-1", "{}")
        await queue.flush()
        queue = await open_()
        left = await queue.load()
        assert left.epoch == 1
        assert [(one.index, one.container_id, one.fence) for one in left.held] == [(0, "ta-1", 2)]
        assert left.waiting == {"fu-1": 3}
        assert left.containers == [("ta-1", "no-1", "fu-1", "{}")]
        assert queue.next_seq() > waiting[-1].seq
        assert await queue.call("fc-2") is None
        assert [one.index for one in await queue.outputs("fc-1", 0, 9, 9)] == [1]

    run(work)


def test_dropping_a_call_spares_what_is_in_hand(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        held = entries(queue, 1, fence=1)
        await queue.put(record(inputs=4), held + entries(queue, 3, start=1))
        dropped = await queue.drop_waiting("fc-1", "cancelled", 50.0)
        assert sorted(dropped) == [("fu-1", index, f"in-fc-1-{index}") for index in (1, 2, 3)]
        assert await queue.statuses("fc-1") == {TERMINATED: 3}
        assert await queue.unfinished("fc-1") == 1
        found = await queue.call("fc-1")
        assert found is not None and found.cancelled

    run(work)


def test_dropping_a_function_goes_in_steps(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        await queue.put(record(inputs=5), entries(queue, 5))
        assert len(await queue.drop_function("fu-1", "gone", 50.0, 3)) == 3
        assert len(await queue.drop_function("fu-1", "gone", 50.0, 3)) == 2
        assert (await queue.take("fu-1", 99.0, 9)).entries == []

    run(work)


def test_results_expire(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        mine = entries(queue, 2, fence=1)
        await queue.put(record(inputs=2), mine)
        await ack(queue, mine[0])
        assert await queue.expire(99.0) == 0
        assert await queue.expire(100.0) == 1
        assert await queue.outputs("fc-1", 0, 9, 9) == []
        assert await queue.call("fc-1") is not None
        await queue.expire(1e9)
        assert await queue.call("fc-1") is not None, "it still has an input"
        await ack(queue, mine[1])
        await queue.expire(1e9)
        assert await queue.call("fc-1") is None

    run(work)


def test_blobs_and_forgetting(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        (entry,) = entries(queue, 1)
        entry.data, entry.blob = b"", BlobRef("bl-1", 7)
        await queue.put(record(inputs=1), [entry])
        (taken,) = (await queue.take("fu-1", 9.0, 1)).entries
        assert taken.blob == BlobRef("bl-1", 7)
        queue.forget_calls(["fc-1"])
        await queue.flush()
        assert await queue.call("fc-1") is None
        assert not await ack(queue, taken)

    run(work)


def test_attached_inputs_are_written_behind_and_only_if_they_last(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        short, long_, back = entries(queue, 3, fence=1, attached=True)
        for one in (short, long_, back):
            queue.keep(one)
        queue.forget(short)
        back.ready_at = 3.0
        queue.give_back(back)
        await queue.flush_once()
        assert await queue.unfinished("fc-1") == 1, "only what waits in the table must be there at once"
        (taken,) = (await queue.take("fu-1", 5.0, 9)).entries
        assert (taken.index, taken.attached) == (2, True)
        await queue.flush()
        assert [await queue.unfinished("fc-1", index) for index in range(3)] == [0, 1, 1]
        queue.forget(long_)
        queue.forget(taken)
        await queue.flush()
        assert await queue.unfinished("fc-1") == 0

    run(work)


@pytest.mark.parametrize("run", ["sqlite"], indirect=True)
def test_what_can_not_be_written_goes_alone(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        good, second, third = entries(queue, 3, fence=1)
        poisoned = Entry(queue.next_seq(), "in-x", "fc-x", 2**63, "fu-1", True, fence=1)
        (kept,) = entries(queue, 1, "fc-k", fence=1, attached=True)
        queue.keep(poisoned)
        queue.keep(kept)
        assert await queue.put(record(), [good, second, third]) == [0, 1, 2]
        bad_put = queue.put(record("fc-2"), [Entry(queue.next_seq(), "in-y", "fc-2", -(2**63) - 1, "fu-1", False)])
        told: list[bool] = []
        queue.ack(good, Output("fc-1", 0, good.input_id, SUCCESS, expires_at=100.0), told.append)
        queue.ack(second, Output("fc-1", 1, second.input_id, SUCCESS, items=2**70, expires_at=100.0), told.append)
        queue.ack(third, Output("fc-1", 2, third.input_id, SUCCESS, expires_at=100.0), told.append)
        with pytest.raises(InternalError, match="cannot be stored"):
            await bad_put
        await asyncio.wait_for(queue.flush(), 5)
        assert told == [True, True, True]
        assert [one.status for one in await queue.outputs("fc-1", 0, 9, 9)] == [SUCCESS, INTERNAL_FAILURE, SUCCESS]
        assert await queue.unfinished("fc-k") == 1
        assert await queue.unfinished("fc-x") == 0

    run(work)


def test_the_same_key_is_the_same_call(run: Any) -> None:
    """Also when both come in one write, and after a restart; never for another function."""

    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        first = queue.put_once(record("fc-1", inputs=2), entries(queue, 2), "order 7")
        second = queue.put_once(record("fc-2", inputs=2), entries(queue, 2, "fc-2"), "order 7")
        other = queue.put_once(record("fc-3", inputs=1), entries(queue, 1, "fc-3"), "order 8")
        assert await first == ("fc-1", [0, 1])
        assert await second == ("fc-1", [])
        assert await other == ("fc-3", [0])
        assert await queue.call("fc-2") is None and await queue.unfinished("fc-2") == 0
        elsewhere = replace(record("fc-4", inputs=1), function_id="fu-2")
        assert await queue.put_once(elsewhere, entries(queue, 1, "fc-4"), "order 7") == ("fc-4", [0])
        queue = await open_()
        await queue.load()
        assert await queue.put_once(record("fc-5"), entries(queue, 1, "fc-5"), "order 7") == ("fc-1", [])

    run(work)


def test_a_key_goes_with_its_call(run: Any) -> None:
    async def work(open_: Any) -> None:
        queue = await open_()
        await queue.load()
        (one,) = entries(queue, 1, fence=1)
        await queue.put_once(record("fc-1", inputs=1), [one], "k")
        assert await ack(queue, one)
        await queue.expire(1e12)
        assert await queue.call("fc-1") is None
        (again,) = entries(queue, 1, "fc-9")
        assert await queue.put_once(record("fc-9", inputs=1), [again], "k") == ("fc-9", [0])

    run(work)
