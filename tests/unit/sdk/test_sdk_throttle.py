"""Waiting for room at the server (semantics.md sections 2 and 3.4)."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest

from cadenza.base.errors import ResourceExhaustedError, ServerWarning, from_kind
from cadenza.sdk import throttle
from cadenza.sdk.client import Client
from cadenza.sdk.function import Definition, Function
from fake_server import FakeServer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(throttle, "FIRST_DELAY_S", 0.0001)
    monkeypatch.setattr(throttle, "MOST_DELAY_S", 0.001)


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def full(server):
    """Refuses the first requests of a method; the numbers of those that came."""
    tries: list[int] = []

    def refuse(method: str, times: int) -> list[int]:
        def answer(peer: Any, number: int, body: Any, payload: bytes) -> Any:
            tries.append(number)
            if len(tries) <= times:
                return peer.error(number, "resource_exhausted", "the queue is full")
            return getattr(server, "on_" + method.replace(".", "_"))(peer, number, body, payload)

        server.handlers[method] = answer
        return tries

    return refuse


@pytest.fixture
def f(server):
    def twice(x):
        return 2 * x

    def count(n):
        yield from range(n)

    client = Client("unix:" + server.path)
    functions = []
    for raw, generator in ((twice, False), (count, True)):
        one = Function._from_definition(None, Definition(raw, raw.__name__, "m", "q", generator, False, lambda: None))
        server.functions["fu-" + raw.__name__] = raw
        one._hydrate("fu-" + raw.__name__, client)
        functions.append(one)
    yield functions
    client.close()


def test_each_verb_waits_until_there_is_room(f, full, quick, server):
    tries = full("call.run", 4)
    assert f[0].remote(3) == 6 and len(tries) == 5
    tries.clear()
    full("call.generate", 2)
    assert list(f[1].remote_gen(3)) == [0, 1, 2] and len(tries) == 3
    tries.clear()
    full("call.spawn", 2)
    assert f[0].spawn(1).object_id.startswith("fc-") and len(tries) == 3


def test_zero_raises_at_once(f, full, quick, monkeypatch):
    monkeypatch.setenv("CADENZA_MAX_THROTTLE_WAIT", "0")
    tries = full("call.run", 1)
    with pytest.raises(ResourceExhaustedError, match="the queue is full"):
        f[0].remote(1)
    assert len(tries) == 1


def test_a_limit_is_kept_and_ends_with_one_more_try(f, full, quick, monkeypatch):
    monkeypatch.setenv("MODAL_MAX_THROTTLE_WAIT", "0.01")
    tries = full("call.run", 1_000_000)
    with pytest.raises(ResourceExhaustedError):
        f[0].remote(1)
    assert len(tries) >= 2


def test_who_waits_for_long_is_told(quick, monkeypatch):
    monkeypatch.setattr(throttle, "WARN_EVERY_S", 0.0)
    left = [3]

    async def attempt() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ResourceExhaustedError("no room")
        return "done"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert asyncio.run(throttle.until_room(attempt, "f", "remote")) == "done"
    assert [one.category for one in caught] == [ServerWarning, ServerWarning]
    assert "'f'.remote() has waited" in str(caught[0].message) and "no room" in str(caught[0].message)


def test_delays_double_up_to_a_limit_and_are_spread():
    middle = [throttle.next_delay_s(tries, 0.5) for tries in range(1, 30)]
    assert middle[:3] == [0.1, 0.2, 0.4] and middle[-1] == throttle.MOST_DELAY_S
    assert throttle.next_delay_s(1, 0.0) == pytest.approx(0.075) and throttle.next_delay_s(1, 1.0) == 0.125


def test_other_errors_are_not_tried_again(quick):
    async def attempt() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(throttle.until_room(attempt, "f", "remote"))


@pytest.mark.parametrize("detail", [{"throttle": True}, {}])
def test_a_limit_on_calls_is_waited_for(quick, detail):
    refusals = [from_kind("resource_exhausted", "no room", detail)]

    async def attempt() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert asyncio.run(throttle.until_room(attempt, "f", "spawn")) == "done"


def test_what_no_waiting_helps_is_told_at_once(quick, f, server):
    tries = []

    def full_disk(peer: Any, number: int, body: Any, payload: bytes) -> Any:
        tries.append(number)
        error = {"kind": "resource_exhausted", "message": "the disk is full", "detail": {"throttle": False}}
        return peer.send("err", number, e=error)

    server.handlers["call.spawn"] = full_disk
    for spawn in (lambda: f[0].spawn(1), lambda: f[0].spawn_map([1])):
        with pytest.raises(ResourceExhaustedError, match="the disk is full"):
            spawn()
    assert len(tries) == 2


def test_a_disk_that_gets_full_ends_the_waiting(quick):
    refusals = [from_kind("resource_exhausted", "x", {"throttle": one}) for one in (False, True, True)]

    async def attempt() -> None:
        raise refusals.pop()

    with pytest.raises(ResourceExhaustedError):
        asyncio.run(throttle.until_room(attempt, "f", "spawn"))
    assert not refusals
