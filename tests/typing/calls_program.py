"""A user's program as type checkers see it. Checked by test_typing_calls.py; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import Any

from typing_extensions import assert_type

from cadenza.sdk.call import FunctionCall
from cadenza.sdk.client import Client
from cadenza.sdk.function import Function, FunctionCurrentStats
from cadenza.sdk.output import enable_output


def sync(f: Function[[int, str], float, float]) -> None:
    assert_type(f.remote(1, "a"), float)
    assert_type(f.local(1, "a"), float)
    assert_type(f.spawn(1, "a"), FunctionCall[float])
    assert_type(f.spawn(1, "a").get(timeout=3), float)
    for one in f.map([1], ["a"]):
        assert_type(one, float)
    for one in f.starmap([(1, "a")], order_outputs=False):
        assert_type(one, float)
    for one in f.spawn(1, "a").iter(start=1):
        assert_type(one, float)
    assert_type(f.for_each([1]), None)
    assert_type(f.spawn_map([1]), None)
    assert_type(f.experimental_spawn_map([1]), FunctionCall[float])
    assert_type(f.get_current_stats(), FunctionCurrentStats)
    assert_type(f.hydrate(), Function[[int, str], float, float])
    assert_type(FunctionCall.gather(f.spawn(1, "a")), list[Any])
    assert_type(FunctionCall.from_id("fc-1"), FunctionCall[Any])
    assert_type(Client.from_env(), Client)
    with enable_output():
        pass


async def asynchronous(f: Function[[int], str, Coroutine[Any, Any, str]]) -> None:
    assert_type(await f.remote.aio(1), str)
    assert_type(await f.local(1), str)
    call = await f.spawn.aio(1)
    assert_type(call, FunctionCall[str])
    assert_type(await call.get.aio(timeout=0), str)
    async for one in f.map.aio([1]):
        assert_type(one, str)
    assert_type(await FunctionCall.gather.aio(call), list[Any])
    assert_type(await Client.from_env.aio(), Client)


def generators(f: Function[[int], Generator[int, None, None], Generator[int, None, None]]) -> Iterator[Any]:
    yield from f.remote_gen(3)
    assert_type(f.local(3), Generator[int, None, None])


async def async_generators(f: Function[[int], AsyncIterator[int], AsyncIterator[int]]) -> None:
    async for _ in f.remote_gen.aio(3):
        pass


def wrong(f: Function[[int], str, str]) -> None:
    f.remote("no int")  # error
    f.remote(1, 2)  # error
    f.remote()  # error
    f.spawn("no int")  # error
    f.local(None)  # error
    f(1)  # error
    f.map([1], order_output=True)  # error
    f.remote.aio("no int")  # error
    f.spawn(1).get("soon")  # error
