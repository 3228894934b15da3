"""Classes in real containers, and as plain processes: hooks on every way to the end. semantics.md 10, 12.1, 23."""

# ruff: noqa: F811 (fixtures that come from another module)

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from test_live_agent_containers import NOTHING, LiveWorld, home, packed, root, traces  # noqa: F401

from cadenza.agent.bare import BareImages
from cadenza.protocol import nodes
from cadenza.protocol.calls import Attempt
from cadenza.protocol.nodes import ContainerSpec, StopOrder
from cadenza.protocol.objects import FunctionSpec, MethodSpec, ParameterSpec
from cadenza.runner import terminal, values
from cadenza.runtime.cgroup import detect
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.network import HostNetwork
from cadenza.runtime.oci import OciDriver, runsc
from cadenza.runtime.process import ProcessDriver

pytestmark = pytest.mark.timeout(120)

KINDS = pytest.mark.parametrize("kind", ["crun", "process", "runsc"])

MARKS = """
class Mark:
    def __init__(self, raw, part):
        self.__cadenza_raw__, self.__cadenza_part__ = raw, part
    def __get__(self, obj, owner=None):
        return self.__cadenza_raw__.__get__(obj, owner)
def part(name):
    return lambda raw: Mark(raw, name)
"""
SOURCE = (
    MARKS
    + """
import asyncio, os, time
class Parameter:
    __cadenza_default__ = 1
class C:
    x: int = Parameter()
    @part("enter")
    async def open(self):
        self.loop = asyncio.get_running_loop()
        print("entered", self.x, flush=True)
    @part("method")
    def add(self, y):
        return self.x + y
    @part("method")
    async def aio(self):
        return asyncio.get_running_loop() is self.loop
    @part("method")
    def stuck(self):
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("input over", flush=True)
    @part("exit")
    def leave(self):
        time.sleep(0.05)
        print("left", flush=True)
    @part("exit")
    def hang(self):
        if self.x == 99:
            print("hangs", flush=True)
            time.sleep(60)
"""
)
METHODS = (MethodSpec("add"), MethodSpec("aio", is_async=True), MethodSpec("stuck"))


class AnyWorld(LiveWorld):
    """The agent on the runtime that the test names."""

    def __init__(self, folder: Path, rootfs: str, kind: str, **settings: Any) -> None:
        super().__init__(folder, rootfs, **settings)
        around = self.agent._given
        assert around is not None
        if kind == "runsc":
            dialect = runsc(str(shutil.which("runsc")), "ptrace")
            self.driver = OciDriver(dialect, os.path.join(str(folder), "runtime"), Launcher(), detect())
            around.drivers = {"standard": self.driver}
        if kind == "process":
            driver = ProcessDriver(os.path.join(str(folder), "runtime"), Launcher(), detect())
            around.drivers = {"standard": driver}
            around.store = BareImages(str(folder))
            self.networks = around.networks = HostNetwork()  # type: ignore[assignment]

    async def ready(self, container_id: str, parameters: str = "", **function: Any) -> ContainerSpec:
        """A container of class C that waits for inputs."""
        now = time.time()
        settings = {
            "methods": METHODS, "class_parameters": (ParameterSpec("x", "int", "1"),),
            "files": (self.source(SOURCE),), **function,
        }  # fmt: skip
        spec = FunctionSpec("C.*", "m", "C", parameters=parameters, **settings)
        one = ContainerSpec(container_id, "ap-1", "app", "fu-1", spec, "im-1", "standard", wanted_at=now, placed_at=now)
        self.want(one)
        await self.control.state(container_id, nodes.READY, 60.0)
        return one

    async def call(self, container_id: str, method: str, *args: Any) -> Any:
        """One input to its end."""
        number = len(self.control.given)
        self.begin(container_id, method, *args)
        await self.control.until(lambda: len(self.control.given) > number)
        output = self.control.given[number][1]
        assert output.status == "SUCCESS", output
        return values.unpack(output.data)

    def begin(self, container_id: str, method: str, *args: Any) -> None:
        number = len(self.control.given)
        data = packed(*args)
        one = Attempt(f"in-{number}:1", f"in-{number}", "fc-1", "fu-1", number, data, None, 0, 300.0, method=method)
        self.agent.deliver(container_id, [one])

    def printed(self, container_id: str) -> str:
        return self.control.text(container_id, 1)


@KINDS
def test_a_class_enters_works_and_leaves(root: str, home: Path, kind: str) -> None:
    """12.1: enter, inputs, exit hooks, and only then the end; sync and async methods of one instance."""

    async def go() -> None:
        async with AnyWorld(home, root, kind) as world:
            one = await world.ready("ta-live1", '{"x":7}')
            ready = world.control.containers["ta-live1"]
            assert ready.phases["enter"] > 0 and set(ready.phases) == set(nodes.PHASES)
            assert await world.call("ta-live1", "add", 3) == 10
            assert await world.call("ta-live1", "aio") is True
            assert await world.call("ta-live1", "add", 4) == 11
            world.want(one, stops=(StopOrder("ta-live1", 30.0, True),))
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert (gone.reason, gone.exit_code) == (nodes.EXITED, 0)
            assert world.printed("ta-live1") == "entered 7\nleft\n"
        if kind != "process":
            assert traces(home) == NOTHING

    uvloop.run(go())


@KINDS
def test_app_stop_cancels_the_input_and_gives_hooks_their_time(root: str, home: Path, kind: str) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, kind) as world:
            one = await world.ready("ta-live1")
            world.begin("ta-live1", "stuck")
            await world.control.until(lambda: "begun" in world.printed("ta-live1"))
            world.want(one, stops=(StopOrder("ta-live1", 30.0, False, "the app was stopped"),))
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert gone.exit_code == 0
            assert world.printed("ta-live1") == "entered 1\nbegun\ninput over\nleft\n"
            assert [one.status for _, one in world.control.given] == ["TERMINATED"]

    uvloop.run(go())


@KINDS
def test_a_hook_that_hangs_is_killed_at_the_deadline(root: str, home: Path, kind: str) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, kind) as world:
            one = await world.ready("ta-live1", '{"x":99}')
            began = time.monotonic()
            world.want(one, stops=(StopOrder("ta-live1", 1.0, False),))
            await world.control.until(lambda: "hangs" in world.printed("ta-live1"))
            await world.control.state("ta-live1", nodes.GONE)
            assert time.monotonic() - began < 6.0
            said = world.control.text("ta-live1", 0) + world.control.text("ta-live1", 2)
            assert "was killed" in said or "was cut off" in said, "by the agent or by itself, which is first"

    uvloop.run(go())


@KINDS
def test_preemption_by_sigterm_runs_the_hooks(root: str, home: Path, kind: str) -> None:
    async def go() -> None:
        import signal

        async with AnyWorld(home, root, kind) as world:
            await world.ready("ta-live1")
            world.begin("ta-live1", "stuck")
            await world.control.until(lambda: "begun" in world.printed("ta-live1"))
            driver = world.agent._around.drivers["standard"]
            await driver.signal("ta-live1", signal.SIGTERM)
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert (gone.reason, gone.exit_code) == (nodes.EXITED, 0)
            assert world.printed("ta-live1") == "entered 1\nbegun\ninput over\nleft\n"
            assert not world.control.given  # it runs again elsewhere

    uvloop.run(go())


def test_the_servers_end_runs_the_hooks(root: str, home: Path) -> None:
    async def go() -> None:
        world = AnyWorld(home, root, "crun")
        async with world:
            await world.ready("ta-live1")
        assert world.printed("ta-live1") == "entered 1\nleft\n"
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_a_container_that_stops_fetching_gives_back_what_comes_and_ends(root: str, home: Path) -> None:
    """Section 31: what runs goes on to its end."""
    source = MARKS + (
        "import time\nfrom cadenza.runner import slots\nclass C:\n    @part('method')\n    def f(self):\n"
        "        slots.stop_fetching_inputs()\n        print('stopped', flush=True)\n        time.sleep(0.5)\n"
        "        return 'done'\n    @part('exit')\n    def leave(self):\n        print('left', flush=True)\n"
    )

    async def go() -> None:
        async with AnyWorld(home, root, "crun") as world:
            await world.ready(
                "ta-live1", files=(world.source(source),), methods=(MethodSpec("f"),), class_parameters=()
            )
            world.begin("ta-live1", "f")
            await world.control.until(lambda: "stopped" in world.printed("ta-live1"))
            late = Attempt("in-9:1", "in-9", "fc-1", "fu-1", 9, packed(), None, 0, 300.0, method="f")
            world.agent.deliver("ta-live1", [late])
            await world.control.until(lambda: len(world.control.given) == 2)
            found = {one.attempt_id: one.status for _, one in world.control.given}
            assert found == {"in-0:1": "SUCCESS", "in-9:1": "REVOKED"}
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert (gone.reason, gone.exit_code) == (nodes.EXITED, 0)
            assert world.printed("ta-live1") == "stopped\nleft\n"

    uvloop.run(go())


@KINDS
def test_a_terminal_reaches_a_function_by_a_command_in_its_container(root: str, home: Path, kind: str) -> None:
    """Section 23, `run -i`: the relay runs as any other command on a terminal."""
    source = MARKS + (
        "from cadenza.runner import terminal\nclass C:\n    @part('method')\n    def f(self):\n"
        "        terminal.interact()\n        return input('name? ')\n"
    )

    async def go() -> None:
        async with AnyWorld(home, root, kind) as world:
            await world.ready(
                "ta-live1", files=(world.source(source),), methods=(MethodSpec("f"),), class_parameters=(),
                interactive=True,
            )  # fmt: skip
            world.begin("ta-live1", "f")
            await world.control.until(lambda: terminal.WAITS in world.control.text("ta-live1", 0))
            seen = bytearray()
            asked = asyncio.Event()

            def output(fd: int, data: bytes) -> None:
                seen.extend(data)
                if b"name? " in seen:
                    asked.set()

            relay = await world.agent.exec("ta-live1", terminal.relay_argv(), True, output)
            await asyncio.wait_for(asked.wait(), 15)
            relay.write(b"Ada\r")
            assert await asyncio.wait_for(relay.wait(), 15) == 0
            await world.control.until(lambda: world.control.given)
            assert values.unpack(world.control.given[0][1].data) == "Ada"

    uvloop.run(go())
