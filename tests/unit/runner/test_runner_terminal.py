"""interact() and breakpoint() in a real runner process, with the relay on a real terminal: semantics.md section 23."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any, Iterator

import pytest
from runner_peer import EVERY_PYTHON, WAIT_S, Agent

from cadenza.base.errors import InvalidError
from cadenza.runner import terminal


class User:
    """A person at a terminal, which is connected with a container by the relay."""

    def __init__(self, agent: Agent, python: str = sys.executable) -> None:
        while terminal.WAITS not in agent.text(0):
            agent.step()
        assert agent.text(0).startswith(terminal.WAITS)
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        argv = [python, *terminal.relay_argv()[1:]]
        env = {"CADENZA_TASK_ID": agent.container_id, "PATH": "/usr/bin:/bin"}
        self.relay = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until ``text`` is on the screen."""
        end = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def leave(self) -> int:
        code = self.relay.wait(WAIT_S)
        os.close(self.fd)
        return code


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with Agent() as one:
        one.container_id = f"ta-{os.getpid()}"
        yield one


TALK = """
import os, sys
from cadenza.runner import terminal
def f():
    print("before")
    terminal.interact()
    terminal.interact()
    name = input("name? ")
    size = os.get_terminal_size()
    print("hello", name, sys.stdin.isatty(), sys.stdout.isatty(), size.lines, size.columns)
    os.system("echo from a child; stty size")
    return name
def g():
    print("after")
    return sys.stdout.isatty(), os.isatty(0), os.isatty(1)
"""


@EVERY_PYTHON
def test_a_function_talks_with_the_terminal_until_its_input_ends(python: str) -> None:
    with Agent(python) as agent:
        agent.container_id = f"ta-{os.getpid()}"
        agent.attach(TALK + "calls = iter([f, g])\ndef h():\n    return next(calls)()\n", "h", interactive=True)
        agent.run((), ())
        user = User(agent, python)
        user.until("name? ")
        user.type("Ada\r")
        user.until("hello Ada True True 33 99")
        user.until("from a child\r\n33 99")
        assert agent.out()[1] == "Ada"
        assert agent.out()[1] == (False, False, False)
        assert user.leave() == 0
        assert agent.text(1) == "before\nafter\n"
        assert not os.path.exists(terminal.folder(agent.container_id))


def test_ctrl_c_at_the_terminal_fails_the_input_and_not_the_container(agent: Agent) -> None:
    source = (
        "import time\nfrom cadenza.runner import terminal\n"
        "def f(stays):\n    if not stays:\n        return 1\n"
        "    terminal.interact()\n    print('ready')\n    time.sleep(30)\n"
    )
    agent.attach(source, interactive=True)
    agent.run((True,))
    user = User(agent)
    user.until("ready")
    user.type("\x03")
    header, value = agent.out()
    assert header["s"] == "FAILURE" and isinstance(value, KeyboardInterrupt)
    assert user.leave() == 0
    agent.run((False,), start=1)
    assert agent.out()[1] == 1


def test_a_user_who_hangs_up_leaves_the_function_with_the_log(agent: Agent) -> None:
    source = (
        "import sys, time\nfrom cadenza.runner import terminal\n"
        "def f():\n    terminal.interact()\n    print('ready')\n"
        "    try:\n        input()\n    except (EOFError, OSError):\n        pass\n"
        "    while sys.stdout.isatty():\n        time.sleep(0.005)\n"
        "    print('alone')\n    return 1\n"
    )
    agent.attach(source, interactive=True)
    agent.run(())
    user = User(agent)
    user.until("ready")
    user.relay.kill()
    assert agent.out()[1] == 1
    assert agent.text(1) == "alone\n"
    user.leave()


def test_breakpoint_opens_the_debugger_where_it_stands(agent: Agent) -> None:
    agent.attach("def f(x):\n    y = x + 1\n    breakpoint()\n    return y\n", interactive=True)
    agent.run((41,))
    user = User(agent)
    user.until("(Pdb) ")
    user.type("p y\r")
    user.until("\r\n42\r\n")
    user.type("y = 5\r")
    user.type("c\r")
    assert agent.out()[1] == 5
    assert user.leave() == 0


@pytest.mark.parametrize("body", ["breakpoint()", "terminal.interact()"])
def test_a_run_without_a_terminal_says_so(agent: Agent, body: str) -> None:
    """Section 23: otherwise InvalidError."""
    agent.attach(f"from cadenza.runner import terminal\ndef f():\n    {body}\n")
    agent.run(())
    _, value = agent.out()
    assert isinstance(value, InvalidError) and "cadenza run -i" in str(value)


def test_a_cancelled_input_stops_waiting_for_a_terminal(agent: Agent) -> None:
    import signal

    agent.attach("from cadenza.runner import terminal\ndef f():\n    terminal.interact()\n", interactive=True)
    agent.run(())
    while terminal.WAITS not in agent.text(0):
        agent.step()
    agent.send({"t": "cancel", "a": ["in-0:1"]})
    agent.process.send_signal(signal.SIGUSR1)
    assert agent.out()[0]["s"] == "TERMINATED"
    relay: Any = subprocess.run(
        [sys.executable, *terminal.relay_argv()[1:]], env={"CADENZA_TASK_ID": agent.container_id},
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert relay.returncode == 1 and "does not wait for a terminal" in relay.stderr


def test_outside_of_a_container_there_is_no_terminal() -> None:
    with pytest.raises(InvalidError, match="in a container only"):
        terminal.interact()
