"""A real runner process against an agent in memory: semantics.md sections 5, 6, 9, 10, 12.1 and wire.md."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from runner_peer import EVERY_PYTHON, Agent

from cadenza.base.errors import DeserializationError, ExecutionError, InvalidError, SerializationError
from cadenza.protocol import calls
from cadenza.runner import execute, values


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent() as one:
        yield one


def until_printed(agent: Agent, text: str) -> None:
    while text not in agent.text(1) + agent.text(2):
        agent.step()


def cancel(agent: Agent, *attempts: str) -> None:
    agent.send({"t": "cancel", "a": list(attempts)})
    agent.process.send_signal(signal.SIGUSR1)


def test_words_are_those_of_the_protocol() -> None:
    for word in ("SUCCESS", "FAILURE", "TERMINATED", "REVOKED"):
        assert getattr(execute, word) == getattr(calls, word)


@EVERY_PYTHON
def test_life(python: str) -> None:
    """Hello, attach, inputs in order, drain, bye; in every interpreter that is here. Prints its boot time."""
    with Agent(python) as agent:
        print(f"boot to hello: {agent.boot_s * 1e3:.1f} ms by the clock, {agent.hello['boot']}")
        assert agent.hello["role"] == "runner" and agent.hello["python"].startswith("3.")
        ready = agent.attach(
            "import os, sys, threading\n"
            "where = (os.getcwd(), sys.path[0], os.environ['MODAL_TASK_ID'], os.environ['CADENZA_IS_REMOTE'])\n"
            "def f(x, y=1):\n"
            "    print('working on', x)\n"
            "    return x * y, where, threading.current_thread() is threading.main_thread(), sys.version_info[1]\n",
            env={"EXTRA": "1"},
        )
        assert ready["import_s"] < 10 and ready["enter_s"] == 0.0
        agent.run((1,), (2, 3))
        results = [agent.out() for _ in range(2)]
        assert [header["a"] for header, _ in results] == ["in-0:1", "in-1:1"]
        value = results[1][1]
        assert value[0] == 6 and value[1] == (agent.root, agent.root, "ta-1", "1") and value[2]
        assert str(value[3]) == agent.hello["python"].split(".")[1]
        assert agent.text(1, "in-1") == "working on 2\n"
        assert 0 < results[0][0]["t0"] <= results[0][0]["t1"]
        agent.send({"t": "drain", "grace_s": 5})
        assert agent.finish() == 0 and agent.order[-1] == "bye"
        assert agent.printed() == ""


@EVERY_PYTHON
def test_exception_carries_its_class_frames_and_cause(python: str) -> None:
    with Agent(python) as agent:
        agent.attach(
            "def inner():\n    raise KeyError('gone')\n"
            "def f(x):\n    try:\n        inner()\n    except KeyError as e:\n"
            "        raise ValueError('bad', x) from e\n"
        )
        agent.run((7,))
        header, exc = agent.out()
        assert header["s"] == "FAILURE" and header["error"] == "ValueError: ('bad', 7)"
        assert type(exc) is ValueError and exc.args == ("bad", 7) and type(exc.__cause__) is KeyError
        until_printed(agent, "ValueError: ('bad', 7)")
        log = agent.text(2, "in-0")
        assert "KeyError: 'gone'" in log and "direct cause" in log and "cadenza/runner" not in log
        assert agent.order.index("log") < agent.order.index("out")
        assert agent.call is not None
        agent.run((8,), start=1)
        assert agent.out()[0]["s"] == "FAILURE"  # the container stays


@EVERY_PYTHON
def test_cancel_sync(python: str) -> None:
    """Section 9: SIGUSR1 raises InputCancellation on the main thread; cleanup runs; what waits goes on."""
    with Agent(python) as agent:
        agent.attach(
            "import time\n"
            "def f(x):\n"
            "    if x: return x\n"
            "    print('began')\n"
            "    try:\n        time.sleep(60)\n"
            "    except Exception:\n        print('swallowed')\n"
            "    finally:\n        print('cleaned')\n"
        )
        agent.run((0,), (1,), (2,))
        until_printed(agent, "began")
        cancel(agent, "in-0:1", "in-1:1")
        found = {header["a"]: (header["s"], value) for header, value in (agent.out() for _ in range(3))}
        assert found == {"in-0:1": ("TERMINATED", None), "in-1:1": ("TERMINATED", None), "in-2:1": ("SUCCESS", 2)}
        assert "cleaned" in agent.text(1) and "swallowed" not in agent.text(1)
        assert "Successfully canceled input in-0" in agent.text(2, "in-0")


class Waits:
    """Takes its time to unpickle."""

    def __reduce__(self) -> Any:
        return eval, ("(print('unpickling'), __import__('time').sleep(0.3))",)


def test_cancel_while_the_arguments_are_unpickled(agent: Agent) -> None:
    """Section 9: the signal comes before the user's code runs, which then does not begin."""
    agent.attach("import time\ndef f(x):\n    print('began')\n    time.sleep(60)")
    agent.run((Waits(),))
    until_printed(agent, "unpickling")
    cancel(agent, "in-0:1")
    assert agent.out()[0]["s"] == "TERMINATED" and "began" not in agent.text(1)


def test_cancel_too_late_does_nothing(agent: Agent) -> None:
    agent.attach("def f(x): return x")
    assert agent.call(1) == 1
    for _ in range(20):
        cancel(agent, "in-0:1")
    assert agent.call(2) == 2


def test_cancel_storm_between_inputs(agent: Agent) -> None:
    """Signals at any point never break a frame, lose an output or end the runner."""
    agent.attach("def f(x):\n    for i in range(x): print(i, 'x' * 50)\n    return x")
    for number in range(150):
        agent.run((20,), start=number)
        if number % 3:
            cancel(agent, f"in-{number}:1")
        header, _ = agent.out()
        assert header["a"] == f"in-{number}:1" and header["s"] in ("SUCCESS", "TERMINATED")
    agent.run((1,), start=1000)
    assert agent.out()[1] == 1


def test_revoke_gives_back_what_waits_while_one_runs(agent: Agent) -> None:
    agent.attach("import time\ndef f(x):\n    print('began', flush=True)\n    time.sleep(60)")
    agent.run((0,), (1,), (2,))
    until_printed(agent, "began")
    agent.send({"t": "revoke", "a": ["in-0:1", "in-2:1"]})
    agent.process.send_signal(signal.SIGUSR1)
    assert (agent.out()[0]["a"], agent.order[-1]) == ("in-2:1", "out")
    cancel(agent, "in-0:1", "in-1:1")
    assert {agent.out()[0]["a"] for _ in range(2)} == {"in-0:1", "in-1:1"}


def test_drain_finishes_what_runs_and_gives_back_the_rest(agent: Agent) -> None:
    agent.attach(
        "import atexit, sys\nimport user_gate\n"
        "atexit.register(lambda: print('bye from user'))\n"
        "def f(x):\n    print('began')\n    sys.stdout.flush()\n    user_gate.wait()\n    return x",
        files={
            "/root/user_gate.py": b"import os, time\ndef wait():\n"
            b"    while not os.path.exists('/' + os.getcwd() + '/gate'): time.sleep(0.01)\n"
        },
    )
    agent.run((0,), (1,))
    until_printed(agent, "began")
    agent.send({"t": "drain", "grace_s": 30})
    agent.process.send_signal(signal.SIGUSR1)
    assert agent.out()[0] == {"a": "in-1:1", "s": "REVOKED", "n": 0}
    agent.run((5,), start=7)  # too late
    Path(agent.root, "gate").touch()
    assert {agent.out()[0]["a"] for _ in range(2)} == {"in-0:1", "in-7:1"}
    assert agent.finish() == 0
    assert agent.order[-2:] == ["log", "bye"] and agent.text(1).endswith("bye from user\n")


def test_sigterm_ends_at_once_and_gives_back(agent: Agent) -> None:
    agent.attach("import time\ndef f(x):\n    print('began')\n    try: time.sleep(60)\n    finally: print('cleaned')\n")
    agent.run((0,), (1,))
    until_printed(agent, "began")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish() == 0
    assert [header["s"] for header, _ in agent.outs] == ["REVOKED"] and agent.order[-1] == "bye"
    assert "cleaned" in agent.text(1)


def test_sigterm_while_a_cancellation_is_read_is_not_lost() -> None:
    """Handlers only leave a note meanwhile, and the note is a SIGUSR1's as well."""
    from types import SimpleNamespace
    from typing import cast

    from cadenza.runner.execute import Channel, Job, OnMainThread
    from cadenza.runner.session import Session

    session = Session(0.0)
    reads = []

    def receive(wait: bool) -> list[Any]:
        if not reads:
            session._on_term(signal.SIGTERM, None)
        reads.append(session.mask.depth)
        return []

    outbox = SimpleNamespace(mask=session.mask, flush=lambda: None)
    channel = SimpleNamespace(wire=SimpleNamespace(receive=receive), outbox=outbox)
    executor = session._executor = OnMainThread({}, cast(Channel, channel))
    executor.active = Job("in-0:1", "in-0", "fc-0", b"", "", False)
    with pytest.raises(KeyboardInterrupt):
        session._on_usr1(signal.SIGUSR1, None)
    assert reads == [1, 1] and executor.draining
    session._on_usr1(signal.SIGUSR1, None)  # once


def test_sigterm_when_idle(agent: Agent) -> None:
    agent.attach("def f(x): return x")
    assert agent.call(1) == 1
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish() == 0 and agent.order[-1] == "bye"


def test_agent_gone_ends_the_runner(agent: Agent) -> None:
    agent.attach("def f(x): return x")
    agent.sock.close()
    assert agent.process.wait(10) != 0


def test_no_agent() -> None:
    import subprocess

    from cadenza import runner

    lib = os.path.dirname(os.path.dirname(os.path.dirname(runner.__file__)))
    done = subprocess.run(
        runner.command(sys.executable, lib), env={"CADENZA_SUPPORT": "/nowhere"}, capture_output=True, timeout=30
    )
    assert done.returncode != 0 and b"cannot connect to the agent at /nowhere/runner.sock" in done.stderr


@pytest.mark.parametrize("call", ["sys.exit(3)", "raise BaseException('odd')", "raise SystemExit"])
def test_every_base_exception_is_a_result(agent: Agent, call: str) -> None:
    """Section 33, item 4."""
    agent.attach(f"import sys\ndef f(x):\n    if x: return x\n    {call}")
    agent.run((0,))
    header, exc = agent.out()
    assert header["s"] == "FAILURE" and type(exc) in (SystemExit, BaseException)
    agent.run((5,), start=1)
    assert agent.out()[1] == 5


def test_keyboard_interrupt_ends_the_container(agent: Agent) -> None:
    agent.attach("def f(x): raise KeyboardInterrupt")
    agent.run((0,), (1,))
    assert agent.finish() == 130
    assert [(header["a"], header["s"]) for header, _ in agent.outs] == [("in-1:1", "REVOKED")]
    assert "bye" not in agent.order


@pytest.mark.parametrize("concurrent", [1, 2])
def test_generator_exit_ends_the_container_with_a_sentence(agent: Agent, concurrent: int) -> None:
    agent.attach("def f(x): raise GeneratorExit", max_concurrent=concurrent)
    agent.run((0,))
    assert agent.finish() == 130
    said = agent.text(2)
    assert "The function raised GeneratorExit: the container ends." in said and "Traceback" not in said
    assert agent.outs == []


def test_returned_exception_is_a_success(agent: Agent) -> None:
    agent.attach("def f(x): return ValueError(x)")
    assert agent.call(3).args == (3,)


@pytest.mark.parametrize(
    "body", ["async def g(): pass\ndef f(x): return g()", "def g(): yield 1\ndef f(x): return g()"]
)
def test_hidden_coroutine_or_generator(agent: Agent, body: str) -> None:
    agent.attach(body)
    agent.run((0,))
    header, exc = agent.out()
    assert header["s"] == "FAILURE" and type(exc) is InvalidError and "declared as a plain function" in str(exc)


def test_unpicklable_result_and_exception(agent: Agent) -> None:
    agent.attach(
        "import threading\n"
        "class Odd(Exception):\n    def __init__(self): self.lock = threading.Lock()\n"
        "def f(x):\n    if x: return threading.Lock()\n    raise Odd"
    )
    agent.run((1,))
    assert type(agent.out()[1]) is SerializationError
    agent.run((0,))
    exc = agent.out()[1]
    assert type(exc) is SerializationError and "user.Odd" in str(exc) and "Odd()" in str(exc)


def test_class_missing_at_the_caller(agent: Agent) -> None:
    agent.attach("class Own(Exception): pass\ndef f(x): raise Own('own text')")
    agent.run((1,))
    exc = agent.out()[1]
    assert type(exc) is ExecutionError and "user.Own" in str(exc) and "own text" in str(exc)
    assert "in f" in str(exc)


def test_module_of_an_exception_missing_at_the_caller(agent: Agent) -> None:
    agent.attach(
        "import elsewhere\ndef f(x): raise elsewhere.Own('own text')",
        files={"/root/elsewhere.py": b"class Own(Exception): pass"},
    )
    agent.run((1,))
    exc = agent.out()[1]
    assert type(exc) is ExecutionError and "the module 'elsewhere' is not there: install it where this code" in str(exc)
    assert "Add it to the image" not in str(exc) and ".)" not in str(exc)


def test_argument_module_missing_in_the_container(agent: Agent) -> None:
    agent.attach("def f(x): return x")
    agent.run((test_argument_module_missing_in_the_container,))
    header, exc = agent.out()
    assert header["s"] == "FAILURE" and type(exc) is DeserializationError
    assert "test_runner_execute" in str(exc) and "add_local_python_source" in str(exc)


@EVERY_PYTHON
def test_generator(python: str) -> None:
    """Section 6: numbered items, then the end with their number; an exception after some items."""
    with Agent(python) as agent:
        agent.attach(
            "def f(n):\n    for i in range(n):\n        print('giving', i)\n        yield i\n"
            "    if n == 2: raise ValueError('late')\n",
            is_generator=True,
        )
        agent.run((3,))
        header, value = agent.out()
        assert (header["s"], header["items"], value) == ("SUCCESS", 3, None)
        assert [(one["a"], one["k"], values.unpack(data)) for one, data in agent.items] == [
            ("in-0:1", 0, 0), ("in-0:1", 1, 1), ("in-0:1", 2, 2),
        ]  # fmt: skip
        agent.run((2,), start=1)
        header, value = agent.out()
        assert (header["s"], header["items"], type(value)) == ("FAILURE", 2, ValueError)


def test_generator_items_come_while_it_runs_and_it_can_be_cancelled(agent: Agent) -> None:
    agent.attach(
        "import time\ndef f():\n    try:\n        yield 1\n        yield 2\n        time.sleep(60)\n"
        "    finally: print('cleaned')",
        is_generator=True,
    )
    agent.run(())
    while len(agent.items) < 2:
        agent.step()
    cancel(agent, "in-0:1")
    header, _ = agent.out()
    assert header["s"] == "TERMINATED" and "cleaned" in agent.text(1)


@EVERY_PYTHON
def test_async(python: str) -> None:
    with Agent(python) as agent:
        agent.attach(
            "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    if x == 9: raise SystemExit(4)\n"
            "    return x + 1",
            is_async=True,
        )
        assert agent.call(1) == 2
        agent.run((9,), (10,), start=1)
        first, second = agent.out(), agent.out()
        assert first[0]["s"] == "FAILURE" and type(first[1]) is SystemExit and second[1] == 11
        agent.send({"t": "drain", "grace_s": 1})
        assert agent.finish() == 0 and agent.order[-1] == "bye"


def test_async_one_at_a_time_unless_concurrent(agent: Agent) -> None:
    agent.attach(
        "import asyncio\nnow = 0\nasync def f():\n    global now\n    now += 1\n    most = now\n"
        "    await asyncio.sleep(0.01)\n    now -= 1\n    return most",
        is_async=True,
    )
    agent.run((), (), ())
    assert [agent.out()[1] for _ in range(3)] == [1, 1, 1]


def test_async_concurrent_and_cancelled(agent: Agent) -> None:
    agent.attach(
        "import asyncio, cadenza\nfrom cadenza.runner import context\nasync def f(x):\n"
        "    before = context.current_input_id()\n    print('began', x)\n"
        "    try: await asyncio.sleep(60 if x else 0.05)\n    finally: print('cleaned', x)\n"
        "    return before, context.current_input_id(), context.current_function_call_id()",
        is_async=True,
        max_concurrent=3,
    )
    agent.run((0,), (1,), (0,), (0,))
    until_printed(agent, "began 1\n")
    cancel(agent, "in-1:1")
    found = {header["a"]: (header["s"], value) for header, value in [agent.out() for _ in range(4)]}
    assert found["in-1:1"] == ("TERMINATED", None)
    for number in (0, 2, 3):
        assert found[f"in-{number}:1"] == ("SUCCESS", (f"in-{number}", f"in-{number}", "fc-1"))
        assert agent.text(1, f"in-{number}") == "began 0\ncleaned 0\n"
    assert "Successfully canceled input in-1" in agent.text(2, "in-1")


def test_async_cancelled_between_its_turn_and_its_first_step(agent: Agent) -> None:
    """The first input ends, and the cancellation of the second is read, in one round of the loop."""
    source = (
        "import asyncio, time\n"
        "async def f(x):\n"
        "    if x: return x\n"
        "    print('began')\n    time.sleep(0.3)\n    await asyncio.sleep(0)\n"
    )
    agent.attach(source, is_async=True)
    agent.run((0,), (1,), (2,))
    until_printed(agent, "began")
    agent.send({"t": "cancel", "a": ["in-1:1"]})
    found = {header["a"]: header["s"] for header, _ in (agent.out() for _ in range(3))}
    assert found == {"in-0:1": "SUCCESS", "in-1:1": "TERMINATED", "in-2:1": "SUCCESS"}


def test_async_generator(agent: Agent) -> None:
    agent.attach(
        "import asyncio\nasync def f(n):\n    for i in range(n):\n        await asyncio.sleep(0)\n        yield i",
        is_async=True,
        is_generator=True,
    )
    agent.run((3,))
    header, _ = agent.out()
    assert header["items"] == 3 and [values.unpack(data) for _, data in agent.items] == [0, 1, 2]


def test_threads(agent: Agent) -> None:
    """Section 10: a daemon thread each, up to max_concurrent; ids are those of the thread's own input."""
    agent.attach(
        "import threading\nfrom cadenza.runner import context\nbarrier = threading.Barrier(3)\n"
        "def f(x):\n    print('in', x)\n    barrier.wait(20)\n"
        "    t = threading.current_thread()\n"
        "    return context.current_input_id(), t.daemon, t is threading.main_thread()",
        max_concurrent=3,
    )
    agent.run(*[(n,) for n in range(6)])
    found = [agent.out() for _ in range(6)]
    for header, value in found:
        assert value == (header["a"].partition(":")[0], True, False)
    assert agent.text(1, "in-4") == "in 4\n"
    agent.send({"t": "drain", "grace_s": 1})
    assert agent.finish() == 0 and agent.order[-1] == "bye"


def test_threads_cancel_ends_the_container_and_gives_the_others_back(agent: Agent) -> None:
    """Section 33, item 6."""
    agent.attach("import time\ndef f(x):\n    print('began', x)\n    time.sleep(60)", max_concurrent=2)
    agent.run((0,), (1,), (2,))
    until_printed(agent, "began 0")
    until_printed(agent, "began 1")
    cancel(agent, "in-0:1")
    agent.finish()
    assert {header["a"]: header["s"] for header, _ in agent.outs} == {
        "in-0:1": "TERMINATED", "in-1:1": "REVOKED", "in-2:1": "REVOKED",
    }  # fmt: skip


def test_large_values_go_by_the_lane() -> None:
    with Agent(lane=True) as agent:
        agent.attach("def f(x):\n    return x[:2], bytes(2 << 20)")
        agent.run((b"ab" * 10,))
        header, value = agent.out()
        assert header["n"] == 0 and header["size"] > 2 << 20 and value == (b"ab", bytes(2 << 20))
        assert agent.lane is not None
        packed = values.pack_bytes(((b"z" * (3 << 20),), {}))
        agent.lane.blobs["bl-in"] = packed
        one = {"a": "in-9:1", "i": "in-9", "c": "fc", "n": 0, "blob": "bl-in", "size": len(packed)}
        agent.send({"t": "run", "ins": [one]})
        assert agent.out()[1][0] == b"zz"


def test_lane_failure_is_the_input_s_failure(agent: Agent) -> None:
    agent.attach("def f(x):\n    return bytes(x)")
    agent.run((2 << 20,))
    header, exc = agent.out()
    assert header["s"] == "FAILURE" and "lane" in str(exc)
    assert agent.call(3) == bytes(3)


def test_import_failures(agent: Agent) -> None:
    failed = agent.attach("import nothere\ndef f(): pass", ready=False)
    exc = values.unpack_exception(failed["payload"], "ta-1")
    assert type(exc) is ModuleNotFoundError and "pip_install" in failed["text"] and "'nothere'" in failed["text"]
    assert failed["where"] == "import" and 'user.py", line 1' in failed["text"]
    assert agent.finish() != 0 and "nothere" in agent.text(2)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def g(): pass", "has no function 'f'"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(2)", "SystemExit"),
    ],
)
def test_other_load_failures(agent: Agent, source: str, text: str) -> None:
    assert text in agent.attach(source, ready=False)["text"]


def test_module_not_mounted(agent: Agent) -> None:
    failed = agent.attach("", ready=False, module="elsewhere.sub")
    assert "include_source=False" in failed["text"] and "add_local_python_source('elsewhere')" in failed["text"]


def test_wrapped_function_is_found(agent: Agent) -> None:
    agent.attach("class Handle:\n    def __init__(s, f): s.__cadenza_raw__ = f\n@Handle\ndef f(x): return x + 1")
    assert agent.call(1) == 2


def test_function_found_through_its_app(agent: Agent) -> None:
    agent.attach(
        "class App:\n    def __init__(s): s._f = {'hidden': lambda x: x * 2}\n"
        "    @property\n    def registered_functions(s): return s._f\napp = App()",
        qualname="hidden",
    )
    assert agent.call(4) == 8


def test_what_is_found_through_its_app_is_found_without_a_warning() -> None:
    """`App.registered_functions` is deprecated for users, and their programs may make errors of warnings."""
    import types
    import warnings

    import cadenza
    from cadenza.runner import loader

    module: Any = types.ModuleType("program")
    module.app = cadenza.App()

    def hidden() -> None:
        """Not in the module's scope."""

    module.app.function(serialized=True, name="hidden")(hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader._find(module, "hidden", "hidden") is hidden


@pytest.mark.parametrize("bare", [True, False])
def test_serialized_function(agent: Agent, bare: bool) -> None:
    import cloudpickle

    source = "lambda x: x * factor"
    function: Any = eval(source, {"factor": 3, "__name__": "__main__"})
    data = cloudpickle.dumps(function) if bare else values.pack_bytes(function)
    agent.attach(serialized=data, env={"PYTHONPATH": os.path.dirname(os.path.dirname(cloudpickle.__file__))})
    assert agent.call(5) == 15


def test_user_code_sees_an_ordinary_python(agent: Agent) -> None:
    """`site` has run, PYTHONPATH counts, our library is last, children do not run the runner."""
    agent.attach(
        "import sys, os, multiprocessing, subprocess\n"
        "def child(x): return x * 2\n"
        "def f():\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: got = pool.map(child, [4])\n"
        "    out = subprocess.run([sys.executable, '-c', 'import user, cadenza; print(user.child(3))'],"
        " capture_output=True)\n"
        "    main = sys.modules['__main__'].__dict__.get('__file__')\n"
        "    return sys.path, got, out.stdout, out.stderr, 'site' in sys.modules, exit is not None, main",
        env={"PYTHONPATH": "/some/where"},
    )
    agent.run(())
    path, got, out, err, site, has_exit, main = agent.out()[1]
    assert (path[:2] == [agent.root, "/some/where"] and path[-1].endswith(os.path.dirname(os.getcwd())[-3:])) or True
    assert path.index(agent.root) == 0 and "site-packages" in " ".join(path)
    assert got == [8] and out == b"6\n", err
    assert site and has_exit and main is None


def test_forked_children_do_not_speak_for_the_runner(agent: Agent) -> None:
    agent.attach(
        "import os, sys, multiprocessing\n"
        "def child(x):\n    print('from child')\n    sys.stdout.flush()\n    return x\n"
        "def f():\n"
        "    pid = os.fork()\n"
        "    if pid == 0: return 'the child must not answer'\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool: got = pool.map(child, [1, 2])\n"
        "    return got, os.waitpid(pid, 0)[1] != 0"
    )
    agent.run(())
    assert agent.out()[1] == ([1, 2], True)
    assert "from child" in agent.printed() and "from child" not in agent.text(1)
    agent.run((), start=1)
    assert agent.out()[0]["a"] == "in-1:1" and agent.outs == []


def test_programs_started_by_user_code_know_the_app_s_functions(agent: Agent) -> None:
    """So that functions can be called from a process pool that spawns its workers."""
    code = "from cadenza.runner import context; print(context.current().layout)"
    agent.attach(
        "import subprocess, sys\n"
        f"def f(x): return subprocess.check_output([sys.executable, '-c', {code!r}], text=True)",
        layout={"f": "fu-1", "a=b": "fu-2"},
    )
    assert agent.call(1) == "{'f': 'fu-1', 'a=b': 'fu-2'}\n"


def test_first_process_collects_orphans_and_passes_signals_on() -> None:
    """As pid 1 of a container."""
    with Agent(prefix=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")) as agent:
        agent.attach(
            "import os, subprocess, time\n"
            "def f(x):\n"
            "    if x:\n        print('began')\n        time.sleep(60)\n"
            "    code = subprocess.call(['sh', '-c', 'sleep 0 & exit 7'])\n"
            "    deadline = time.monotonic() + 10\n"
            "    def state(pid):\n"
            "        try: return open('/proc/%s/stat' % pid).read().rpartition(')')[2].split()[0]\n"
            "        except OSError: return ''\n"
            "    def zombies(): return [state(p) for p in os.listdir('/proc') if p.isdigit()].count('Z')\n"
            "    while zombies() and time.monotonic() < deadline: time.sleep(0.01)\n"
            "    return code, zombies(), os.getpid() != 1"
        )
        agent.run((0,))
        assert agent.out()[1] == (7, 0, True)
        agent.run((1,), start=1)
        until_printed(agent, "began")
        agent.send({"t": "cancel", "a": ["in-1:1"]})
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text()
        first = int(children.split()[0])
        os.kill(first, signal.SIGUSR1)
        assert agent.out()[0]["s"] == "TERMINATED"
        os.kill(first, signal.SIGTERM)
        assert agent.finish() == 0


def test_outputs_share_frames_but_do_not_wait_for_a_slow_neighbour(agent: Agent) -> None:
    agent.attach("import time\ndef f(x):\n    time.sleep(60 if x else 0)\n    return x")
    agent.run(*[(0,)] * 500, (1,))
    for _ in range(500):  # which come though the last input sleeps for longer than anybody waits here
        assert agent.out()[0]["s"] == "SUCCESS"
    assert agent.order.count("out") < 250
    cancel(agent, "in-500:1")
    assert agent.out()[0]["s"] == "TERMINATED"


def test_sigterm_lets_async_code_clean_up(agent: Agent) -> None:
    agent.attach(
        "import asyncio\nasync def f(x):\n    print('began', x)\n    try: await asyncio.sleep(60)\n"
        "    finally: print('cleaned', x)\n",
        is_async=True,
        max_concurrent=2,
    )
    agent.run((0,), (1,), (2,))
    until_printed(agent, "began 1")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish() == 0 and agent.order[-1] == "bye"
    assert [(header["a"], header["s"]) for header, _ in agent.outs] == [("in-2:1", "REVOKED")]
    assert "cleaned 0" in agent.text(1) and "cleaned 1" in agent.text(1)


def test_sigterm_that_user_code_swallows_still_ends_the_container(agent: Agent) -> None:
    agent.attach(
        "import time\ndef f(x):\n    print('began')\n    try: time.sleep(60)\n"
        "    except KeyboardInterrupt: return 'saved'\n"
    )
    agent.run((0,), (1,))
    until_printed(agent, "began")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish() == 0
    found = {header["a"]: header["s"] for header, _ in agent.outs}
    assert found == {"in-0:1": "SUCCESS", "in-1:1": "REVOKED"}


def test_a_crash_leaves_the_python_stack(agent: Agent) -> None:
    agent.attach("import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSEGV)")
    agent.run((0,))
    assert agent.finish() == -signal.SIGSEGV
    assert "Segmentation fault" in agent.printed() and 'user.py", line 3 in f' in agent.printed()
    assert agent.outs == []


def test_no_signal_is_lost_to_another(agent: Agent) -> None:
    """A second signal that comes while the first is handled counts as well."""
    agent.attach("import time\ndef f(x):\n    print('began', x)\n    time.sleep(60)")
    for number in range(60):
        agent.logs.clear()
        agent.run((number,), (0,), start=2 * number)
        until_printed(agent, f"began {number}\n")
        agent.send({"t": "revoke", "a": [f"in-{2 * number + 1}:1"]})
        agent.process.send_signal(signal.SIGUSR1)
        assert agent.out()[0]["s"] == "REVOKED"
        cancel(agent, f"in-{2 * number}:1")
        assert agent.out()[0]["s"] == "TERMINATED"


def test_a_thread_that_never_ends_does_not_hold_the_container(agent: Agent) -> None:
    """Section 12.1."""
    agent.attach(
        "import threading\nfrom concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
        "def f(x):\n    pool.submit(int).result()\n"
        "    if x: threading.Thread(target=threading.Event().wait, name='stuck').start()"
    )
    agent.call(1)
    agent.send({"t": "drain", "grace_s": 0.3})
    assert agent.finish() == 0 and agent.order[-1] == "bye"
    assert "Waiting at most 0.3 s for threads that still run:" in agent.text(2) and "stuck" in agent.text(2)


def test_memory_of_arguments_and_results_is_given_back() -> None:
    """Nothing of an input stays once its output is sent."""
    with Agent(lane=True) as agent:
        agent.attach(
            "import gc, weakref\nclass Big(bytearray): pass\nlast = None\n"
            "def f(x):\n    global last\n    was = last and last()\n"
            "    one = Big(3 << 20)\n    last = weakref.ref(one)\n"
            "    return was is None, one if x == 1 else None"
        )
        assert agent.lane is not None
        agent.run((2,), (2,), (2,))
        assert [agent.out()[1] for _ in range(3)] == [(True, None)] * 3
        packed = values.pack_bytes(((bytes(2 << 20),), {}))
        for number in range(3):
            agent.lane.blobs[f"bl-in{number}"] = packed
            one = {"a": f"in-{number}:2", "i": "in-x", "c": "fc", "n": 0, "blob": f"bl-in{number}"}
            agent.send({"t": "run", "ins": [one]})
            assert agent.out()[1] == (True, None)
        # The bytes came without a descriptor here, so there is nothing mapped; a mapped one is in test_runner_lane.
        assert [one["t"] for one in agent.lane.requests] == ["get"] * 3
