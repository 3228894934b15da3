"""`Function` against a fake server: semantics.md sections 3.1, 4, 5, 6 and 34."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import warnings

import pytest

from cadenza.base.errors import (
    ExecutionError,
    FunctionTimeoutError,
    InternalFailure,
    InvalidError,
    NotFoundError,
    RemoteError,
    SerializationError,
    ServiceError,
)
from cadenza.runner import context, values
from cadenza.sdk import handle
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


def define(raw, generator=False, web=False):
    return Function._from_definition(
        None, Definition(raw, raw.__name__, "m", raw.__qualname__, generator, False, lambda: None, web)
    )


@pytest.fixture
def make(server, client):
    def make(raw, generator=False):
        function = define(raw, generator)
        server.functions["fu-" + raw.__name__] = raw
        function._hydrate("fu-" + raw.__name__, client)
        return function

    return make


def double(x, extra=0):
    return 2 * x + extra


def count(n):
    yield from range(n)


def fail(x):
    raise KeyError(x)


def test_remote_gives_the_result_in_both_forms(make):
    f = make(double)
    assert f.remote(4, extra=1) == 9
    assert asyncio.run(f.remote.aio(5)) == 10
    assert f.local(3) == 6


def test_an_argument_that_cannot_be_pickled_is_named(make):
    f = make(double)
    for call, name in (
        (lambda: f.remote(1, threading.Lock()), "argument 2 of double, of type _thread.lock"),
        (lambda: f.remote(1, extra={"a": threading.Lock()}), "argument 'extra' of double, of type builtins.dict"),
        (lambda: f.spawn(threading.Lock()), "argument 1 of double, of type _thread.lock"),
    ):
        with pytest.raises(SerializationError, match=f"Cannot pickle {name}: cannot pickle '_thread.lock'"):
            call()


def test_remote_raises_the_users_exception(make):
    f = make(fail)
    with pytest.raises(KeyError, match="x"):
        f.remote("x")
    with pytest.raises(KeyError):
        asyncio.run(f.remote.aio("x"))


def test_a_function_is_not_callable():
    with pytest.raises(TypeError):
        define(double)(1)


def test_without_a_running_app_the_error_comes_before_all_others():
    """Section 3.1: the hydration check comes before the generator and web checks."""
    for f in (define(double), define(count, generator=True), define(double, web=True)):
        for verb in (f.remote, f.spawn, f.map, f.for_each):
            with pytest.raises(ExecutionError, match="has not been hydrated"):
                verb([1])


def test_generator_and_plain_are_not_mixed_up(make):
    with pytest.raises(InvalidError, match="remote_gen"):
        make(count, generator=True).remote(1)
    with pytest.raises(InvalidError, match=r"\.remote\(\)"):
        make(double).remote_gen(1)
    with pytest.raises(InvalidError, match="Cannot `spawn` a generator function"):
        make(count, generator=True).spawn(1)
    for verb in ("map", "for_each", "spawn_map"):
        with pytest.raises(InvalidError):
            getattr(make(count, generator=True), verb)([1])


def test_a_web_function_cannot_be_called(client):
    f = define(double, web=True)
    f._hydrate("fu-1", client, {"web_url": "http://127.0.0.1:1/x"})
    with pytest.raises(InvalidError, match=r"http://127\.0\.0\.1:1/x"):
        f.remote(1)
    assert f.local(1) == 2
    assert f.get_web_url() == "http://127.0.0.1:1/x"


def test_remote_gen_streams_items(make):
    f = make(count, generator=True)
    assert list(f.remote_gen(5)) == [0, 1, 2, 3, 4]

    async def collect():
        return [x async for x in f.remote_gen.aio(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_items_before_an_exception_come_first(make):
    """Section 6."""

    def some(n):
        yield from range(n)
        raise ValueError("enough")

    got = []
    with pytest.raises(ValueError, match="enough"):
        for one in make(some, generator=True).remote_gen(2):
            got.append(one)
    assert got == [0, 1]


def test_dropping_a_generator_cancels_it(make, server):
    async def endless(peer, number, body, payload):
        data = values.pack_bytes(1)
        while True:
            peer.send("item", number, {"call_id": "fc-1", "values": [{"size": len(data)}]}, data)
            await asyncio.sleep(0.001)

    server.handlers["call.generate"] = endless
    items = make(count, generator=True).remote_gen(1)
    assert next(items) == 1
    items.close()
    make(double).remote(1)  # the same connection, so the cancellation has arrived before
    assert len(server.frames("cancel")) == 1


def test_a_generator_that_is_never_iterated_warns(make, server):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(count, generator=True).remote_gen(1)
        gc.collect()
    assert "never iterated" in str(caught[0].message)
    assert not server.requests("call.generate")


def test_from_name_is_lazy_and_finds_at_first_use(server, client):
    server.functions["fu-double"] = double
    f = Function.from_name("app", "double", client=client)
    assert not server.received and not f.is_hydrated
    assert f.remote(2) == 4
    assert f.is_hydrated and f.object_id == "fu-double"
    missing = Function.from_name("app", "missing", client=client)
    with pytest.raises(NotFoundError, match="missing"):
        missing.remote(1)
    with pytest.raises(NotFoundError):
        missing.hydrate()


def test_from_name_checks_the_verb_once_it_knows(server, client):
    server.functions["fu-count"] = count
    with pytest.raises(InvalidError, match="remote_gen"):
        Function.from_name("app", "count", client=client).remote(1)


def test_from_name_of_a_method_points_to_the_class():
    with pytest.raises(InvalidError, match=r"Cls\.from_name"):
        Function.from_name("a", "B.c")


def test_local_without_a_definition():
    with pytest.raises(ExecutionError, match="definition"):
        Function.from_name("a", "b").local()


@pytest.mark.parametrize(
    ("status", "kind"),
    [("TIMEOUT", FunctionTimeoutError), ("INTERNAL_FAILURE", InternalFailure), ("TERMINATED", RemoteError),
     ("FAILURE", RemoteError), ("INIT_FAILURE", RemoteError)],
)  # fmt: skip
def test_statuses_become_exceptions(make, server, status, kind):
    """Section 5. None of them is a builtin TimeoutError (section 33, item 1)."""

    def answer(peer, number, body, payload):
        output = {"index": 0, "input_id": "in-1", "status": status, "value": {"size": 0}, "error": "so it was"}
        peer.send("rep", number, {"call_id": "fc-1", "output": output})

    server.handlers["call.run"] = answer
    with pytest.raises(kind, match="so it was") as caught:
        make(double).remote(1)
    assert not isinstance(caught.value, TimeoutError)


def test_a_lost_connection_fails_a_call_that_may_not_be_repeated(make, server):
    async def die(peer, number, body, payload):
        peer.writer.transport.abort()

    server.handlers["call.run"] = die
    f = make(double)
    with pytest.raises(ServiceError, match="lost"):
        f.remote(1)
    assert len(server.requests("call.run")) == 1
    del server.handlers["call.run"]
    assert f.remote(1) == 2  # a new connection


def test_handles_travel_as_references_and_unhydrated_ones_do_not(make, server):
    seen = []
    server.functions["fu-double"] = lambda *args: seen.append(args)
    f = make(double)
    server.functions["fu-double"] = lambda *args: seen.append(args) or 1
    f.remote(f, 1)
    assert seen[0][0][0] == "fu-double" and seen[0][0][1] == "Function"
    with pytest.raises(InvalidError, match="has not been hydrated"):
        f.remote(define(double))


def test_a_handle_comes_back_hydrated(make):
    f = make(double)
    copy = handle.persistent_load(handle.persistent_id(f))
    assert copy.is_hydrated and copy.object_id == f.object_id
    assert pickle.loads(pickle.dumps(f)).object_id == f.object_id


def test_in_a_container_handles_find_their_ids(client):
    f = define(double)
    context.become(context.Container("ta-1", layout={"double": "fu-9"}))
    try:
        f._check_verb("remote")
        assert f.object_id == "fu-9"
    finally:
        context.become(None)


def test_calls_name_their_parent(make, server):
    context.enter("in-77", "fc-7")
    try:
        make(double).remote(1)
    finally:
        context.leave()
    assert server.requests("call.run")[0]["parent_input_id"] == "in-77"


def test_stats(make):
    stats = make(double).get_current_stats()
    assert (stats.backlog, stats.num_total_runners) == (3, 2)


def test_large_values_travel_over_the_lane(make, server, monkeypatch):
    """Over 1 MiB: the frame names a blob (wire.md)."""
    blobs = {}

    class Lane:
        def __init__(self, path):
            assert path == "/the/lane.sock"

        def put(self, parts, durable):
            blobs["bl-1"] = b"".join(parts)
            return "bl-1", len(blobs["bl-1"])

        def get(self, blob_id):
            return memoryview(blobs[blob_id])

        def close(self):
            pass

    def answer(peer, number, body, payload):
        assert payload == b""
        blob = body["value"]["blob"]
        (argument,), _ = values.unpack(blobs[blob["blob_id"]])
        blobs["bl-2"] = values.pack_bytes(argument[::-1])
        value = {"size": 0, "blob": {"blob_id": "bl-2", "size": len(blobs["bl-2"])}}
        output = {"index": 0, "input_id": "in-1", "status": "SUCCESS", "value": value}
        peer.send("rep", number, {"call_id": "fc-1", "output": output})

    monkeypatch.setattr("cadenza.runner.lane.Lane", Lane)
    server.lane = "/the/lane.sock"
    server.handlers["call.run"] = answer
    large = b"ab" * (1 << 20)
    assert make(double).remote(large) == large[::-1]
    assert server.requests("call.run")[0]["value"]["blob"] == {"blob_id": "bl-1", "size": len(blobs["bl-1"])}
