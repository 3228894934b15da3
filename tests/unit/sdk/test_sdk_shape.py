"""Kinds and parameters of functions agree with `inspect`'s (semantics.md sections 10, 15 and 34)."""

from __future__ import annotations

import functools
import inspect
from typing import Any, AsyncIterator, Iterator

import pytest

from cadenza.sdk import shape
from cadenza.sdk._light import look_like, record


def plain(a: int, b: int = 1, *rest: int, c: int, d: int = 2, **more: int) -> None: ...


def positional(a: int, b: int = 1, /, c: int = 2) -> None: ...


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@functools.wraps(plain)
def wrapped(*args: Any) -> None: ...


class Thing:
    def method(self, a: int, b: int = 1) -> None: ...

    async def waits(self) -> None: ...


ALL = [
    plain,
    positional,
    coroutine,
    generator,
    async_generator,
    wrapped,
    Thing().method,
    Thing().waits,
    Thing.method,
    len,
]


@pytest.mark.parametrize("raw", ALL)
def test_as_inspect_has_it(raw: Any) -> None:
    assert shape.is_generator(raw) is (inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw))
    assert shape.is_async(raw) is (inspect.iscoroutinefunction(raw) or inspect.isasyncgenfunction(raw))
    assert shape.is_routine(raw) is inspect.isroutine(raw)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert shape.parameters(raw) == [
        (one.name, one.default is not one.empty)
        for one in inspect.signature(raw).parameters.values()
        if one.kind not in variadic
    ]


def test_a_class_is_no_routine() -> None:
    assert not shape.is_routine(Thing)
    assert not shape.is_async(Thing) and not shape.is_generator(Thing)


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="before Python 3.12 nothing can be marked")
def test_a_function_marked_as_async() -> None:
    marked = inspect.markcoroutinefunction(lambda: coroutine())  # type: ignore[attr-defined,unused-ignore]
    assert shape.is_async(marked)


def test_look_like_is_update_wrapper() -> None:
    def wrapper() -> None: ...

    assert vars(look_like(wrapper, plain)) == vars(functools.update_wrapper(wrapper, plain))
    assert inspect.signature(wrapper) == inspect.signature(plain) and wrapper.__name__ == "plain"


def test_record() -> None:
    @record
    class Pair:
        left: int
        right: int = 2

    assert (Pair(1).left, Pair(1).right) == (1, 2)
    assert Pair(1, 3) == Pair(right=3, left=1) != Pair(1)
    assert repr(Pair(1)) == "Pair(left=1, right=2)"
    bad: list[Any] = [lambda: Pair(), lambda: Pair(1, 2, 3), lambda: Pair(1, left=2), lambda: Pair(1, middle=2)]  # type: ignore[call-arg, misc]
    for make in bad:
        with pytest.raises(TypeError, match="Pair"):
            make()
