"""The map family against a fake server: semantics.md section 3.3 and section 33 items 13 and 14."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
import warnings

import pytest

from cadenza.base.errors import DeprecationError, InvalidError, SerializationError, ServiceError
from cadenza.sdk import feeding, mapping, output
from cadenza.sdk.client import Client
from cadenza.sdk.function import Definition, Function
from fake_server import FakeServer


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def f(server):
    client = Client("unix:" + server.path)

    def work(x, *more, plus=0):
        if x == "bad":
            raise ValueError("bad input")
        return (x, *more, plus) if more else (x + plus if plus else x)

    function = Function._from_definition(None, Definition(work, "work", "m", "work", False, False, lambda: None))
    function._hydrate("fu-1", client)
    server.functions["fu-1"] = work
    yield function
    client.close()


def test_results_in_order_though_they_come_shuffled(f):
    assert list(f.map(range(700))) == list(range(700))


def test_unordered_gives_the_same_set(f):
    assert sorted(f.map(range(300), order_outputs=False)) == list(range(300))


def test_several_iterables_stop_at_the_shortest_and_kwargs_are_added(f):
    assert list(f.map([1, 2, 3], "ab", kwargs={"plus": 5})) == [(1, "a", 5), (2, "b", 5)]


def test_starmap_unpacks(f):
    assert list(f.starmap([(1, 2), (3, 4)])) == [(1, 2, 0), (3, 4, 0)]


def test_no_inputs(f):
    assert list(f.map([])) == []


def test_nothing_runs_before_the_first_iteration(f, server):
    taken = []
    results = f.map(taken.append(x) or x for x in range(3))
    assert taken == [] and not server.requests("call.map")
    assert list(results) == [0, 1, 2]


def test_a_map_that_is_dropped_warns(f):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f.map([1])
        gc.collect()
    assert "map() was called and never iterated" in str(caught[0].message)


def test_endless_inputs_are_taken_only_as_far_as_allowed(f, server):
    server.max_outstanding = 10
    taken = itertools.count()
    results = f.map(next(taken) for _ in itertools.count())
    assert [next(results) for _ in range(25)] == list(range(25))
    results.close()
    assert server.most_outstanding <= 10
    gc.collect()
    assert next(taken) <= 25 + feeding.AHEAD_INPUTS + 11 + mapping.MAX_BACKLOG_OUTPUTS


def test_the_first_failure_ends_the_map(f):
    got = []
    with pytest.raises(ValueError, match="bad input"):
        for one in f.map([1, 2, "bad", 4], order_outputs=False):
            got.append(one)
    assert "bad" not in got


def test_a_failure_does_not_wait_for_its_turn(f, server):
    """Input 0 never ends; the failure of input 1 is raised all the same."""

    async def only_the_second(peer, number, body, payload):
        peer.send("item", number, {"opened": {"call_id": "fc-1", "max_outstanding": 10}})
        while True:
            header, _ = await peer.client_items[number].get()
            for one in header.get("b", {}).get("inputs", ()):
                if one["index"] == 1:
                    item = {"index": 1, "input_id": "in", "status": "TIMEOUT", "value": {"size": 0}, "error": "late"}
                    peer.send("item", number, {"outputs": [item]})

    server.handlers["call.map"] = only_the_second
    with pytest.raises(Exception, match="late"):
        list(f.map([1, 2]))


def test_return_exceptions_puts_them_in_their_slots_unwrapped(f):
    first, bad, last = f.map([1, "bad", 3], return_exceptions=True)
    assert (first, last) == (1, 3)
    assert type(bad) is ValueError


def test_wrap_returned_exceptions_warns_and_does_nothing(f):
    with pytest.warns(DeprecationError):
        results = f.map(["bad"], return_exceptions=True, wrap_returned_exceptions=True)
    assert type(next(iter(results))) is ValueError


def test_what_the_inputs_raise_reaches_the_consumer(f):
    def broken():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(f.map(broken()))


def test_an_input_that_cannot_be_pickled(f):
    with pytest.raises(SerializationError, match=r"argument 1 of work, of type _thread\.lock"):
        list(f.map([threading.Lock()]))


def test_results_come_while_the_inputs_still_wait(f):
    """A source that waits for the first result before it gives the second."""
    seen = threading.Event()

    def source():
        yield 1
        assert seen.wait(10)
        yield 2

    results = f.map(source())
    assert next(results) == 1
    seen.set()
    assert list(results) == [2]


def test_iteration_in_a_running_loop_is_refused(f):
    async def main():
        for _ in f.map([1]):
            pass

    with pytest.raises(InvalidError, match=r"map\.aio"):
        asyncio.run(main())


def test_aio_with_sync_and_async_inputs(f):
    async def numbers():
        for one in range(3):
            await asyncio.sleep(0)
            yield one

    async def main():
        one = [x async for x in f.map.aio([1, 2])]
        two = [x async for x in f.map.aio(numbers())]
        three = [x async for x in f.map.aio(numbers(), "abcd")]
        return one, two, three

    assert asyncio.run(main()) == ([1, 2], [0, 1, 2], [(0, "a", 0), (1, "b", 0), (2, "c", 0)])


def test_async_inputs_need_the_async_form(f):
    async def numbers():
        yield 1

    with pytest.raises(InvalidError, match=r"map\.aio"):
        f.map(numbers())


def test_more_async_inputs_than_fit_ahead(f):
    async def numbers():
        for one in range(feeding.AHEAD_INPUTS * 2 + 5):
            yield one

    async def main():
        return [x async for x in f.map.aio(numbers())]

    assert asyncio.run(main()) == list(range(feeding.AHEAD_INPUTS * 2 + 5))


def test_for_each_discards_and_raises(f):
    assert f.for_each([1, 2, 3]) is None
    with pytest.raises(ValueError):
        f.for_each([1, "bad"])
    f.for_each([1, "bad"], ignore_exceptions=True)


def test_not_iterable(f):
    with pytest.raises(InvalidError, match="wrap a single input in a list"):
        f.map(3)
    with pytest.raises(InvalidError, match="at least one"):
        f.map()


def test_a_lost_connection_ends_the_map_with_an_error(f, server):
    def die(peer, number, body, payload):
        peer.writer.transport.abort()

    server.handlers["call.map"] = die
    with pytest.raises(ServiceError, match="lost"):
        list(f.map([1, 2]))


def silent(opened):
    """A map whose outputs never come."""

    async def never(peer, number, body, payload):
        peer.send("item", number, {"opened": {"call_id": "fc-1", "max_outstanding": 10}})
        opened.set()
        await asyncio.sleep(3600)

    return never


def test_ctrl_c_ends_a_map_and_tells_the_server(f, server):
    opened = threading.Event()
    server.handlers["call.map"] = silent(opened)

    def interrupt():
        opened.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(f.map(itertools.count()))
    assert f.remote(1) == 1  # by the same connection: the cancellation came before
    assert len(server.frames("cancel")) == 1


def test_leaving_a_map_early_tells_the_server_and_stops_the_inputs(f, server):
    server.max_outstanding = 3
    closed = threading.Event()

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    for one in f.map(source()):
        if one == 2:
            break
    assert closed.wait(10)
    assert f.remote(1) == 1
    assert len(server.frames("cancel")) == 1


def test_cancelling_the_async_form_tells_the_server(f, server):
    opened = threading.Event()
    server.handlers["call.map"] = silent(opened)

    async def main():
        async def consume():
            async for _ in f.map.aio(itertools.count()):
                pass

        task = asyncio.ensure_future(consume())
        await asyncio.get_running_loop().run_in_executor(None, opened.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert f.remote(1) == 1
    assert len(server.frames("cancel")) == 1


def test_spawn_map_makes_a_call_for_each_input_and_returns_none(f, server):
    assert f.spawn_map(range(300)) is None
    assert len(server.requests("call.spawn")) == 300
    assert {one["kind"] for one in server.requests("call.spawn")} == {"spawn"}


def test_experimental_spawn_map_is_one_call(f, server):
    call = f.experimental_spawn_map(range(1200))
    assert call.num_inputs() == 1200
    assert call.get(index=700) == 700
    assert list(call.iter(start=600, end=800)) == list(range(600, 800))
    requests = server.requests("call.spawn")
    assert len(requests) >= 3
    assert all(len(one["inputs"]) <= 512 for one in requests)
    assert requests[0]["call_id"] == "" and requests[1]["call_id"] == call.object_id


def test_spawn_map_waits_when_the_queue_is_full(f, server, monkeypatch):
    monkeypatch.setattr(mapping, "THROTTLE_FIRST_S", 0.001)
    monkeypatch.setattr(mapping, "THROTTLE_WARN_EVERY", 2)
    tries = []

    async def full_at_first(peer, number, body, payload):
        tries.append(number)
        if len(tries) < 5:
            peer.error(number, "resource_exhausted", "queue full")
        else:
            await server.on_call_spawn(peer, number, body, payload)

    server.handlers["call.spawn"] = full_at_first
    with pytest.warns(UserWarning, match="waits for room"):
        f.spawn_map([1])
    assert len(tries) == 5


class Bars(output.PlainSink):
    """Keeps what it is told of maps."""

    def __init__(self):
        super().__init__()
        self.said = []

    def map_progress(self, name, done, total, over):
        self.said.append((name, done, total, over))


def test_progress_is_told_where_output_is_enabled(f):
    """Beyond Modal: a bar for a map in a terminal; at most five times a second, and once at the end."""
    sink = Bars()
    output.install(sink)
    try:
        assert len(list(f.map(range(3000)))) == 3000
    finally:
        output.remove(sink)
    assert sink.said[-1] == ("work", 3000, 3000, True)
    assert 2 <= len(sink.said) < 50
    assert not any(one[3] for one in sink.said[:-1])
    list(f.map(range(3)))
    assert sink.said[-1][1] == 3000


def test_the_clock_bounds_how_often_progress_is_told():
    sink = Bars()

    async def main():
        shown = output.MapProgress(sink, "f")
        for done in range(1000):
            shown.at(done, None)
        shown.over(1000, 1000)

    asyncio.run(main())
    assert sink.said == [("f", 0, None, False), ("f", 1000, 1000, True)]
