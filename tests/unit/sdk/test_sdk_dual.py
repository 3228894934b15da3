"""Blocking and async forms of one method: semantics.md section 1."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import signal
import threading
import time
import warnings

import pytest

from cadenza.base.errors import AsyncUsageWarning, Bug, InvalidError
from cadenza.sdk import _dual, _loop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Thing:
    def __init__(self, factor=2):
        self.factor = factor
        self.events = []

    @_dual.method
    async def times(self, x):
        """Multiply."""
        await asyncio.sleep(0)
        return self.factor * x, threading.current_thread().name

    @_dual.method
    def prepared(self, x):
        where = threading.get_ident()

        async def run():
            return _dual.later(lambda: (where, threading.get_ident(), x))

        return run()

    @_dual.class_method
    async def made(cls, factor):
        return cls(factor)

    @_dual.static_method
    async def added(a, b):
        return a + b

    @_dual.method
    async def wait_for_ever(self):
        self.events.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            self.events.append("cleaned")

    @_dual.method
    async def read_variable(self):
        return variable.get()

    @_dual.method
    async def fail(self):
        raise LookupError("so it is")

    @_dual.generator
    async def count(self, n):
        try:
            for one in range(0, n, 2):
                yield range(one, min(n, one + 2))
        finally:
            self.events.append("closed")

    @_dual.strict_generator
    async def strict(self):
        yield [1]

    @_dual.context
    async def open(self, error=None):
        self.events.append("in")
        try:
            yield self
        finally:
            self.events.append("out")


def test_both_forms_run_on_the_one_background_loop():
    assert Thing().times(4) == (8, "cadenza-loop")
    assert asyncio.run(Thing().times.aio(5)) == (10, "cadenza-loop")


def test_tools_see_a_method():
    thing = Thing()
    assert thing.times.__name__ == "times"
    assert str(inspect.signature(thing.times)) == "(x)"
    assert str(inspect.signature(thing.count)) == "(n)"
    assert not hasattr(thing.times, "anything_else")
    assert Thing.times(thing, 3)[0] == 6


def test_class_and_static_methods():
    assert Thing.made(3).factor == 3
    assert Thing.added(1, 2) == 3
    assert asyncio.run(Thing.added.aio(1, b=2)) == 3
    assert asyncio.run(Thing.made.aio(7)).factor == 7


def test_what_touches_user_objects_runs_in_the_callers_thread():
    here = threading.get_ident()
    assert Thing().prepared(1) == (here, here, 1)
    assert asyncio.run(Thing().prepared.aio(1)) == (here, here, 1)


def test_exceptions_come_through():
    with pytest.raises(LookupError, match="so it is"):
        Thing().fail()
    with pytest.raises(LookupError, match="so it is"):
        asyncio.run(Thing().fail.aio())


def test_the_callers_context_is_seen():
    variable.set("mine")
    assert Thing().read_variable() == "mine"

    async def main():
        variable.set("the task's")
        return await Thing().read_variable.aio()

    assert asyncio.run(main()) == "the task's"


def test_generators_in_both_forms():
    assert list(Thing().count(5)) == [0, 1, 2, 3, 4]

    async def collect():
        return [one async for one in Thing().count.aio(5)]

    assert asyncio.run(collect()) == [0, 1, 2, 3, 4]


def test_a_generator_that_is_left_early_is_closed():
    thing = Thing()
    for one in thing.count(100):
        if one == 3:
            break
    _dual.run(asyncio.sleep(0))
    _dual.run(asyncio.sleep(0))
    assert thing.events == ["closed"]


def test_next_works_without_iter():
    items = Thing().count(3)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(items)


def test_the_warning_comes_once_for_each_place_in_the_program():
    async def blocking():
        for _ in range(3):
            list(Thing().count(1))
        next(Thing().count(1))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        asyncio.run(blocking())
    assert [one.category for one in caught] == [AsyncUsageWarning] * 2
    assert all(one.filename == __file__ for one in caught)
    assert caught[0].lineno + 1 == caught[1].lineno


def test_plain_methods_do_not_warn_in_a_running_loop(recwarn):
    async def blocking():
        return Thing().times(3)[0]

    assert asyncio.run(blocking()) == 6
    assert not recwarn.list


def test_blocking_generators_in_a_running_loop_warn_or_are_refused():
    async def blocking():
        return list(Thing().count(2))

    with pytest.warns(AsyncUsageWarning, match=r"count\.aio"):
        assert asyncio.run(blocking()) == [0, 1]

    async def refused():
        return list(Thing().strict())

    with pytest.raises(InvalidError, match=r"strict\.aio"):
        asyncio.run(refused())


def test_a_generator_dropped_unused_warns():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Thing().count(1)
        Thing().count.aio(1)
    assert ["never iterated" in str(one.message) for one in caught] == [True, True]


def test_contexts_in_both_forms():
    thing = Thing()
    with thing.open() as inside:
        assert inside is thing and thing.events == ["in"]

    async def main():
        async with thing.open() as again:
            return again

    assert asyncio.run(main()) is thing
    assert thing.events == ["in", "out"] * 2
    with pytest.raises(ZeroDivisionError), thing.open():
        raise ZeroDivisionError
    assert thing.events == ["in", "out"] * 3


def test_ctrl_c_cancels_cleans_up_and_raises():
    thing = Thing()

    def interrupt():
        while not thing.events:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        thing.wait_for_ever()
    assert thing.events == ["begun", "cleaned"]


def test_cancelling_the_async_form_is_passed_on():
    thing = Thing()

    async def main():
        task = asyncio.ensure_future(thing.wait_for_ever.aio())
        while not thing.events:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert thing.events == ["begun", "cleaned"]


def test_cancelled_before_it_began():
    """Nothing is left waiting, and no coroutine is left unawaited."""

    async def main():
        tasks = [asyncio.ensure_future(Thing().wait_for_ever.aio()) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = asyncio.run(main())
    assert [type(one) for one in ends] == [asyncio.CancelledError] * 20


def test_an_interrupt_at_any_moment_ends_the_wait(monkeypatch):
    """Also one that comes before the coroutine was handed over."""

    class Interrupted:
        def __init__(self, loop, after):
            self.loop, self.after = loop, after

        def call_soon_threadsafe(self, work):
            self.after -= 1
            if self.after == 0:
                raise KeyboardInterrupt
            self.loop.call_soon_threadsafe(work)

    Thing().times(1)
    monkeypatch.setattr(_loop._background, "loop", Interrupted(_loop._background.loop, after=1))
    with pytest.raises(KeyboardInterrupt):
        Thing().times(1)


def test_blocking_on_the_background_loop_itself_is_a_bug():
    async def main():
        return Thing().times(1)

    with pytest.raises(Bug, match="wait for itself"):
        _dual.run(main())


def test_async_form_on_the_background_loop_needs_no_hop():
    async def main():
        return await Thing().times.aio(1)

    assert _dual.run(main()) == (2, "cadenza-loop")


def test_the_loop_works_again_after_a_fork():
    Thing().times(1)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn that a fork with threads may deadlock
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(Thing().times(3)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"(6, 'cadenza-loop')"
    os.close(read)
    os.close(write)
