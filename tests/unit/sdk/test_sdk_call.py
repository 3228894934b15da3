"""`FunctionCall` against a fake server: semantics.md section 3.2 and section 33 item 1."""

from __future__ import annotations

import asyncio
import builtins

import pytest

from cadenza.base.errors import InvalidError, NotFoundError, OutputExpiredError, RemoteError
from cadenza.base.errors import TimeoutError as OurTimeoutError
from cadenza.sdk.call import FunctionCall
from cadenza.sdk.client import Client
from cadenza.sdk.function import Definition, Function
from fake_server import FakeServer


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def client(server):
    one = Client("unix:" + server.path)
    yield one
    one.close()


@pytest.fixture
def f(server, client):
    def work(x):
        if x < 0:
            raise ValueError(f"negative: {x}")
        return x * 10

    function = Function._from_definition(None, Definition(work, "work", "m", "work", False, False, lambda: None))
    function._hydrate("fu-1", client)
    server.functions["fu-1"] = work
    return function


def pending(peer, number, body, payload):
    output = {"index": body["index"], "input_id": "in-1", "status": "PENDING", "value": {"size": 0}}
    peer.send("rep", number, {"call_id": body["call_id"], "output": output})


def test_spawn_and_get_as_often_as_wanted(f, client):
    call = f.spawn(4)
    assert call.object_id.startswith("fc-")
    assert call.get() == 40
    assert call.get(timeout=0) == 40
    again = FunctionCall.from_id(call.object_id, client)
    assert again.get() == 40
    assert asyncio.run(again.get.aio()) == 40
    assert again.num_inputs() == 1


def test_get_raises_what_the_function_raised(f):
    with pytest.raises(ValueError, match="negative"):
        f.spawn(-1).get()


def test_timeout_zero_asks_once_and_raises_the_builtin(f, server):
    call = f.spawn(1)
    server.handlers["call.get"] = pending
    with pytest.raises(builtins.TimeoutError) as caught:
        call.get(timeout=0)
    assert not isinstance(caught.value, OurTimeoutError)
    assert [one["wait_s"] for one in server.requests("call.get")] == [0.0]


def test_a_long_wait_is_cut_into_polls(f, server):
    call = f.spawn(1)
    times = []

    async def later(peer, number, body, payload):
        times.append(body["wait_s"])
        if len(times) < 3:
            pending(peer, number, body, payload)
        else:
            await server.on_call_get(peer, number, body, payload)

    server.handlers["call.get"] = later
    assert call.get() == 10
    assert times == [55.0] * 3


def test_an_expired_result(f, server):
    call = f.spawn(1)
    server.handlers["call.get"] = lambda peer, number, body, payload: peer.error(number, "output_expired", "too old")
    with pytest.raises(OutputExpiredError, match="too old"):
        call.get()


def test_gather(f):
    assert FunctionCall.gather() == []
    calls = [f.spawn(one) for one in (3, 1, 2)]
    assert FunctionCall.gather(*calls) == [30, 10, 20]
    assert asyncio.run(FunctionCall.gather.aio(*calls)) == [30, 10, 20]
    with pytest.raises(ValueError, match="negative: -1"):
        FunctionCall.gather(calls[0], f.spawn(-1))
    with pytest.raises(InvalidError, match=r"f\.spawn"):
        FunctionCall.gather(3)


def test_gather_raises_the_first_failure_without_waiting_for_the_rest(f, server):
    """Section 3.2. The first call never ends."""
    stuck, bad = f.spawn(1), f.spawn(-1)

    async def only_bad(peer, number, body, payload):
        if body["call_id"] == bad.object_id:
            await server.on_call_get(peer, number, body, payload)

    server.handlers["call.get"] = only_bad
    with pytest.raises(ValueError, match="negative"):
        FunctionCall.gather(stuck, bad)


def test_from_id_needs_no_server_and_unknown_ids_fail_at_first_use(client, server):
    call = FunctionCall.from_id("fc-nothing", client)
    assert not server.received
    with pytest.raises(NotFoundError):
        call.get()
    with pytest.raises(InvalidError, match="fc-"):
        FunctionCall.from_id("fu-1")


def test_cancel(f, server):
    call = f.spawn(1)
    call.cancel(terminate_containers=True)
    assert server.requests("call.cancel") == [{"call_id": call.object_id, "terminate_containers": True}]
    item, _ = server.calls[call.object_id][0]
    item.update(status="TERMINATED", value={"size": 0}, error="the input was cancelled")
    server.calls[call.object_id][0] = (item, b"")
    with pytest.raises(RemoteError, match="cancelled"):
        call.get()


def test_polls_are_repeated_when_the_connection_breaks(f, server):
    call = f.spawn(2)
    broken = []

    async def once(peer, number, body, payload):
        if not broken:
            broken.append(number)
            peer.writer.transport.abort()
        else:
            await server.on_call_get(peer, number, body, payload)

    server.handlers["call.get"] = once
    assert call.get() == 20
    assert server.hellos == 2


def test_iter_is_in_order(f):
    call = f.experimental_spawn_map(range(120))
    assert list(call.iter()) == [10 * one for one in range(120)]
    assert list(call.iter(start=118)) == [1180, 1190]
    assert list(call.iter(end=2)) == [0, 10]

    async def collect():
        return [one async for one in call.iter.aio(start=117, end=119)]

    assert asyncio.run(collect()) == [1170, 1180]
    with pytest.raises(InvalidError):
        call.iter(start=-1)


def test_a_call_graph_is_a_list_of_trees():
    """Section 3.1: each call names its parent, so graphs cross functions."""
    from cadenza.protocol.functions import GraphInput
    from cadenza.sdk.call import graph
    from cadenza.sdk.types import InputStatus

    def one(number, parent="", status="SUCCESS"):
        return GraphInput(f"in-{number}", "fc-1", "fu-1", f"f{number}", "m", status, "ta-1", parent)

    trees = graph(
        [one(1), one(2, "in-1", "PENDING"), one(3, "in-2", "INTERNAL_FAILURE"), one(4, "in-gone"), one(5, "in-5")]
    )
    assert [tree.input_id for tree in trees] == ["in-1", "in-4", "in-5"]
    assert trees[0].children[0].status is InputStatus.PENDING
    assert trees[0].children[0].children[0].status is InputStatus.FAILURE
    assert (trees[0].function_name, trees[0].module_name, trees[0].task_id) == ("f1", "m", "ta-1")
