"""A real runner process as a class's container: semantics.md sections 5, 9, 10, 12.1 and 12.2."""

from __future__ import annotations

import signal
from typing import Any, Iterator

import pytest
from runner_peer import EVERY_PYTHON, Agent

from cadenza.base.errors import InvalidError
from cadenza.protocol import parameters
from cadenza.protocol.objects import ParameterSpec
from cadenza.runner import occupant, values

MARKS = """
class Mark:
    def __init__(self, raw, part):
        self.__cadenza_raw__, self.__cadenza_part__ = raw, part
    def __get__(self, obj, owner=None):
        return self.__cadenza_raw__.__get__(obj, owner)
def part(name):
    return lambda raw: Mark(raw, name)
class Parameter:
    __slots__ = ("__cadenza_default__",)
    def __init__(self, *default):
        if default:
            self.__cadenza_default__ = default[0]
"""


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent() as one:
        yield one


def method(name: str, is_async: bool = False, is_generator: bool = False) -> dict[str, Any]:
    return {"name": name, "is_async": is_async, "is_generator": is_generator}


def attach(agent: Agent, source: str, *methods: dict[str, Any], **function: Any) -> dict[str, Any]:
    return agent.attach(MARKS + source, "C.*", methods=list(methods), **{"max_concurrent": 1, **function})


def ask(agent: Agent, name: str, *args: Any, start: int = 0) -> Any:
    agent.run(args, start=start, m=name)
    header, value = agent.out()
    assert header["s"] == "SUCCESS", (header, value)
    return value


def drain(agent: Agent, grace_s: float = 30) -> int:
    agent.send({"t": "drain", "grace_s": grace_s})
    return agent.finish()


def until_printed(agent: Agent, text: str) -> None:
    while text not in agent.text(1) + agent.text(2):
        agent.step()


LIFE = """
events = []
class Base:
    @part("enter")
    def base(self):
        events.append("base")
class C(Base):
    x: int = Parameter(1)
    name: str = Parameter("n")
    raw: bytes = Parameter(b"")
    @part("enter")
    def own(self):
        events.append("own")
    @part("enter_snap")
    def early(self):
        events.append("early")
    @part("method")
    def look(self, y):
        return events, self.x, self.name, self.raw, y, self.plain()
    def plain(self):
        return "plain"
    @part("exit")
    def leave(self):
        print("left after", len(events))
"""


@EVERY_PYTHON
def test_hooks_parameters_and_methods(python: str) -> None:
    """12.1: snap hooks, then the others; 12.2: parameters with defaults are attributes; exit hooks before the bye."""
    declared = [
        ParameterSpec("x", "int", "1"), ParameterSpec("name", "str", '"n"'), ParameterSpec("raw", "bytes", ""),
    ]  # fmt: skip
    text = parameters.bind(declared, {"x": 7, "raw": b"\x00\xff"})
    with Agent(python) as agent:
        ready = attach(agent, LIFE, method("look"), parameters=text)
        assert ready["leaves"] is True and ready["enter_s"] >= 0.0
        assert ask(agent, "look", 5) == (["early", "base", "own"], 7, "n", b"\x00\xff", 5, "plain")
        assert drain(agent) == 0
        assert agent.text(1) == "left after 3\n"
        assert agent.order[-1] == "bye"


def test_parameters_are_read_as_the_protocol_writes_them() -> None:
    declared = [ParameterSpec(name, kind) for name, kind in (("a", "int"), ("b", "str"), ("c", "bool"), ("d", "bytes"))]
    text = parameters.bind(declared, {"a": -5, "b": 'x"\n\u00e9', "c": True, "d": bytes(range(256))})
    assert occupant.values(text) == parameters.values(text)
    assert occupant.values("") == {}


def test_a_fault_in_an_enter_hook_is_an_init_failure_of_its_own(agent: Agent) -> None:
    """12.1: the container fails; exit hooks do not run, for nothing was entered."""
    source = (
        "class C:\n    @part('enter')\n    def load(self):\n        raise OSError('no weights')\n"
        "    @part('exit')\n    def leave(self):\n        print('left')\n"
    )
    failed = agent.attach(MARKS + source, "C.*", methods=[method("f")], ready=False)
    assert failed["where"] == "enter"
    assert "no weights" in failed["text"] and "in load" in failed["text"]
    assert isinstance(values.unpack_exception(failed["payload"], "ta-1"), OSError)
    assert agent.finish() == 1
    assert "left" not in agent.text(1)


MIXED = """
import asyncio, threading
class C:
    @part("enter")
    async def open(self):
        self.loop = asyncio.get_running_loop()
        self.gate = asyncio.Event()
        self.ticks = 0
        async def tick():
            while True:
                self.ticks += 1
                await asyncio.sleep(0.001)
        self.ticking = asyncio.ensure_future(tick())
    @part("method")
    def sync(self):
        main = threading.current_thread() is threading.main_thread()
        return main, asyncio.run(self.same()), self.loop.is_running()
    async def same(self):
        return "own loop"
    @part("method")
    async def aio(self):
        await asyncio.sleep(0.005)
        return asyncio.get_running_loop() is self.loop, self.ticks > 1
    @part("method")
    def gen(self, n):
        for i in range(n):
            yield i
    @part("method")
    async def agen(self, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i * 10
    @part("method")
    def stuck(self):
        import time
        print("begun")
        try:
            time.sleep(30)
        finally:
            print("cleaned up")
    @part("exit")
    async def close(self):
        self.ticking.cancel()
        print("closed on the loop:", asyncio.get_running_loop() is self.loop)
    @part("exit")
    def last(self):
        print("last")
"""
MIXED_METHODS = (
    method("sync"), method("aio", is_async=True), method("gen", is_generator=True),
    method("agen", is_async=True, is_generator=True), method("stuck"),
)  # fmt: skip


@EVERY_PYTHON
def test_sync_and_async_methods_share_an_instance_and_one_loop(python: str) -> None:
    """Sync ones run on the main thread with no loop in their way, async ones and hooks on the loop of the container."""
    with Agent(python) as agent:
        attach(agent, MIXED, *MIXED_METHODS)
        assert ask(agent, "sync") == (True, "own loop", False)
        assert ask(agent, "aio", start=1) == (True, True)
        assert ask(agent, "sync", start=2) == (True, "own loop", False)
        agent.run((3,), start=3, m="gen")
        header, _ = agent.out()
        assert header["items"] == 3
        agent.run((2,), start=4, m="agen")
        header, _ = agent.out()
        assert header["items"] == 2
        assert [values.unpack(data) for _, data in agent.items] == [0, 1, 2, 0, 10]
        assert drain(agent) == 0
        assert agent.text(1) == "closed on the loop: True\nlast\n"


def test_a_sync_method_of_a_class_with_a_loop_is_cancelled_on_the_main_thread(agent: Agent) -> None:
    """Section 9: SIGUSR1, the user's clean-up runs, and the next input finds the container as it was."""
    attach(agent, MIXED, *MIXED_METHODS)
    agent.run((), m="stuck")
    until_printed(agent, "begun")
    agent.run((), start=1, m="aio")
    agent.send({"t": "cancel", "a": ["in-0:1"]})
    agent.process.send_signal(signal.SIGUSR1)
    assert agent.out()[0]["s"] == "TERMINATED"
    assert agent.out()[1] == (True, True)
    assert "cleaned up" in agent.text(1)


def test_an_unknown_method_fails_its_own_input_only(agent: Agent) -> None:
    attach(agent, LIFE, method("look"))
    for start, name, words in ((0, "nothing", "no method 'nothing'"), (1, "", "say which method")):
        agent.run((), start=start, m=name)
        header, value = agent.out()
        assert header["s"] == "FAILURE" and isinstance(value, InvalidError)
        assert words in str(value) and "it has look" in str(value)
    assert ask(agent, "look", 1, start=2)[4] == 1


def test_a_method_of_a_function_fails(agent: Agent) -> None:
    agent.attach("def f():\n    return 1\n")
    agent.run((), m="go")
    assert "this is a function and not a class" in str(agent.out()[1])
    assert agent.call() == 1


EXITS = """
import os, signal, time
class C:
    @part("method")
    def work(self, how):
        print("working")
        if how == "interrupt":
            raise KeyboardInterrupt
        try:
            time.sleep(30)
        finally:
            print("input over")
    @part("exit")
    def bad(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        raise ValueError("in the hook")
    @part("exit")
    def good(self):
        time.sleep(0.01)
        print("good hook")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_hooks_run_after_a_signal_once_the_input_is_over(agent: Agent, number: signal.Signals) -> None:
    """12.1: preemption; signals are ignored while they run; what a hook raises is in the log, and the next one runs."""
    attach(agent, EXITS, method("work"))
    agent.run(("sleep",), m="work")
    until_printed(agent, "working")
    agent.process.send_signal(number)
    assert agent.finish() == (0 if number == signal.SIGTERM else 130)
    assert agent.text(1) == "working\ninput over\ngood hook\n"
    assert "The exit hook C.bad failed" in agent.text(2) and "in the hook" in agent.text(2)
    assert not agent.outs


def test_exit_hooks_run_after_a_keyboard_interrupt_of_the_users_own(agent: Agent) -> None:
    attach(agent, EXITS, method("work"))
    agent.run(("interrupt",), m="work")
    assert agent.finish() == 130
    assert agent.text(1) == "working\ngood hook\n"


@pytest.mark.parametrize("beside", ["", "    @part('method')\n    async def other(self): pass\n"])
def test_a_keyboard_interrupt_in_a_thread_ends_the_container_at_once(agent: Agent, beside: str) -> None:
    """Section 33 point 4: also while the main thread waits for the agent, and others still run."""
    source = (
        "import time\nclass C:\n    @part('method')\n    def f(self, x):\n"
        "        time.sleep(60 if not x else 0.1)\n        raise KeyboardInterrupt\n"
        f"{beside}    @part('exit')\n    def leave(self):\n        print('left')\n"
    )
    others = [method("other", True)] if beside else []
    attach(agent, source, method("f"), *others, max_concurrent=3)
    agent.run((0,), (1,), m="f")
    assert agent.finish() == 130
    assert not agent.outs
    assert agent.text(1) == "left\n"


def test_a_keyboard_interrupt_in_an_enter_hook_is_said_to_be_there(agent: Agent) -> None:
    source = (
        "class C:\n    @part('enter')\n    def open(self):\n        raise KeyboardInterrupt\n"
        "    @part('method')\n    def f(self): pass\n"
    )
    with pytest.raises(EOFError):
        attach(agent, source, method("f"))
    assert agent.process.wait() == 130
    assert agent.text(2) == "The import or an enter hook raised KeyboardInterrupt: the container ends.\n"


def test_the_trace_of_an_async_hook_is_the_users_own(agent: Agent) -> None:
    source = (
        "class C:\n    @part('enter')\n    async def open(self):\n        raise OSError('closed')\n"
        "    @part('method')\n    def f(self): pass\n"
    )
    text = str(attach(agent, source, method("f"), ready=False)["text"])
    assert "in open" in text and "asyncio" not in text


@pytest.mark.parametrize("many", [1, 4])
@pytest.mark.parametrize("is_async", [False, True])
def test_exit_hooks_run_in_every_way_of_running(agent: Agent, many: int, is_async: bool) -> None:
    keyword = "async " if is_async else ""
    source = (
        f"class C:\n    @part('method')\n    {keyword}def f(self, x):\n        return x\n"
        f"    @part('exit')\n    {keyword}def leave(self):\n        print('left')\n"
    )
    attach(agent, source, method("f", is_async), max_concurrent=many)
    assert ask(agent, "f", 1) == 1
    assert drain(agent) == 0
    assert agent.text(1) == "left\n"


def test_a_hook_that_hangs_ends_with_the_grace_period(agent: Agent) -> None:
    source = (
        "import time\nclass C:\n    @part('method')\n    def f(self):\n        return 1\n"
        "    @part('exit')\n    def leave(self):\n        time.sleep(60)\n"
    )
    attach(agent, source, method("f"))
    drain(agent, grace_s=0.3)
    assert "the exit hook C.leave" in agent.text(2)
    assert "The exit hook C.leave did not end within 0.3 s and was cut off\n" in agent.text(2)


CONCURRENT = """
import asyncio, threading, time
class C:
    @part("enter")
    def open(self):
        self.barrier = threading.Barrier(2)
    @part("method")
    def meet(self, x):
        self.barrier.wait(10)
        return x, threading.current_thread() is threading.main_thread()
    @part("method")
    async def wait(self, x):
        print("waits")
        try:
            await asyncio.sleep(x)
        except asyncio.CancelledError:
            print("stopped waiting")
            raise
        return x
    @part("method")
    def stuck(self):
        print("stuck")
        time.sleep(60)
    @part("exit")
    def leave(self):
        print("left")
"""
CONCURRENT_METHODS = (method("meet"), method("wait", is_async=True), method("stuck"))


def test_sync_methods_on_threads_beside_async_ones_on_the_loop(agent: Agent) -> None:
    """Section 10: all methods share the slots, and wait for one when all are taken."""
    attach(agent, CONCURRENT, *CONCURRENT_METHODS, max_concurrent=3)
    agent.run((30,), start=0, m="wait")
    until_printed(agent, "waits")
    agent.run((1,), (2,), start=1, m="meet")
    assert sorted(agent.out()[1] for _ in range(2)) == [(1, False), (2, False)]
    agent.run((20,), (20,), (0,), start=3, m="wait")
    agent.send({"t": "cancel", "a": ["in-3:1"]})
    heads = [agent.out() for _ in range(2)]
    assert [(header["a"], header["s"]) for header, _ in heads] == [("in-3:1", "TERMINATED"), ("in-5:1", "SUCCESS")]


def test_cancelling_a_sync_input_among_others_ends_the_container_and_gives_them_back(agent: Agent) -> None:
    """Sections 9 and 33.6: the others run elsewhere; tasks may clean up; exit hooks run."""
    attach(agent, CONCURRENT, *CONCURRENT_METHODS, max_concurrent=3)
    agent.run((30,), start=0, m="wait")
    agent.run((), start=1, m="stuck")
    until_printed(agent, "stuck\n")
    agent.run((1,), (2,), start=2, m="meet")
    agent.send({"t": "cancel", "a": ["in-1:1"]})
    assert agent.finish() == 0
    found = {header["a"]: header["s"] for header, _ in agent.outs}
    assert found == {"in-0:1": "REVOKED", "in-1:1": "TERMINATED", "in-2:1": "REVOKED", "in-3:1": "REVOKED"}
    assert "stopped waiting" in agent.text(1) and agent.text(1).endswith("left\n")


def test_failures_name_their_exceptions_where_the_retries_ask(agent: Agent) -> None:
    source = (
        "class Own(FileNotFoundError):\n    pass\n"
        "def f(kind):\n    raise {'own': Own, 'exit': SystemExit, 'value': ValueError}[kind]('x')\n"
    )
    agent.attach(source, kinds=True)
    agent.run(("own",), ("exit",))
    assert agent.out()[0]["kinds"] == [
        "user.Own", "builtins.FileNotFoundError", "builtins.OSError", "builtins.Exception",
    ]  # fmt: skip
    assert agent.out()[0]["kinds"] == ["builtins.SystemExit"]
    agent.run((3,), start=2)  # not an exception of the function's: KeyError from its own dictionary
    assert agent.out()[0]["kinds"][0] == "builtins.KeyError"


def test_failures_name_nothing_where_nobody_asks(agent: Agent) -> None:
    agent.attach("def f():\n    raise ValueError\n")
    agent.run(())
    assert "kinds" not in agent.out()[0]


def test_a_hook_whose_decorator_hides_that_it_is_async_runs_all_the_same(agent: Agent) -> None:
    source = (
        "import functools\ndef quiet(f):\n    @functools.wraps(f)\n    def g(self):\n        return f(self)\n"
        "    del g.__wrapped__\n    return g\n"
        "class C:\n    @part('enter')\n    @quiet\n    async def load(self):\n        self.x = 5\n"
        "    @part('method')\n    def f(self):\n        return self.x\n"
    )
    attach(agent, source, method("f"))
    assert ask(agent, "f") == 5


def test_ten_thousand_parameters_worth_of_bytes_arrive(agent: Agent) -> None:
    """12.2: up to 16 KiB of parameters."""
    text = parameters.bind([ParameterSpec("raw", "bytes", "")], {"raw": bytes(range(256)) * 40})
    source = (
        "class C:\n    raw: bytes = Parameter(b'')\n    @part('method')\n    def f(self):\n        return self.raw\n"
    )
    attach(agent, source, method("f"), parameters=text)
    assert ask(agent, "f") == bytes(range(256)) * 40
