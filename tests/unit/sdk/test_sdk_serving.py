"""The loop of ``cadenza serve``, with children and changes of our making. Source: semantics.md section 23."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, AsyncIterator, Optional

import pytest

from cadenza.protocol.methods import AppCreated, Empty
from cadenza.sdk import output
from cadenza.sdk import serving
from cadenza.sdk.serving import Described, Serving, Watched, modules_of_program


def test_what_matters(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    watched = Watched((str(tmp_path / "a.py"),), (str(tmp_path / "data"),))
    assert watched.directories() == (str(tmp_path), str(tmp_path / "data"))
    assert watched.concerns(str(tmp_path / "a.py"))
    assert watched.concerns(str(tmp_path / "data/new.txt"))
    for other in ("b.py", "data/.a.txt.swp", "data/x.pyc", "data/x~", "data/__pycache__", "data/below/x"):
        assert not watched.concerns(str(tmp_path / other)), other
    (tmp_path / "data/one").write_text("")
    (tmp_path / "data/.two").write_text("")
    assert watched.listing() == {str(tmp_path / "data"): ["one"]}


def test_the_users_own_modules(tmp_path: Path) -> None:
    def module(path: Any) -> Any:
        return SimpleNamespace(__file__=path)

    own = [str(tmp_path / "main.py"), str(tmp_path / "part/b.py")]
    others = [os.__file__, output.__file__, str(tmp_path / "venv/lib/site-packages/c.py"), "/elsewhere/d.py", None]
    found = modules_of_program(own[0], [module(one) for one in [*own, *others]], "/nowhere")
    assert found == own


class Child:
    """One version: what it is described as, and how many functions it has (None: it fails)."""

    def __init__(self, title: str, functions: Optional[int], gate: Optional[asyncio.Event] = None) -> None:
        self.title, self.functions, self.gate = title, functions, gate
        self.published_to = ""
        self.ended = False

    async def described(self) -> Described:
        return Described(self.title, {}, Watched(("/a.py",), ()))

    async def publish(self, app_id: str) -> Optional[int]:
        if self.gate is not None:
            await self.gate.wait()
        self.published_to = app_id
        return self.functions

    async def end(self) -> None:
        self.ended = True


class Client:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def _request(self, method: str, body: Any, payload: Any = ()) -> Any:
        self.asked.append((method, body))
        return AppCreated("ap-1") if method == "app.create" else Empty()

    async def _stream(self, method: str, body: Any, payload: Any = ()) -> Any:
        async def receive() -> None:
            return None

        return SimpleNamespace(receive=receive, cancel=lambda: None)


class World:
    def __init__(self, *children: Child) -> None:
        self.children = list(children)
        self.started: list[Child] = []
        self.changed: asyncio.Queue[set[str]] = asyncio.Queue()
        self.said: list[str] = []
        self.heard = asyncio.Event()
        self.client: Any = Client()
        self.serving = Serving(
            self.client, "dev", 60.0, self.start, self.changes, self.say, output.PlainSink(show_progress=False)
        )

    async def start(self) -> Any:
        self.started.append(self.children.pop(0))
        return self.started[-1]

    async def changes(self, watched: Watched) -> AsyncIterator[set[str]]:
        yield set()
        while True:
            yield await self.changed.get()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.heard.set()

    async def until(self, words: str) -> None:
        while not any(words in one for one in self.said):
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), 10)


async def stop(task: Any) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_broken_version_changes_nothing() -> None:
    async def go() -> None:
        world = World(Child("app", 2), Child("", None), Child("app", None), Child("app", 3))
        task = asyncio.ensure_future(world.serving.run(None))
        await world.until("app runs: 2 functions. Watching 1 file")
        for words in ("the one before goes on", "the one before goes on", "runs anew: 3 functions"):
            world.said.clear()
            await world.changed.put({"/elsewhere.py"})
            await world.changed.put({"/a.py"})
            await world.until(words)
            assert "Changed: /a.py" in world.said
        await stop(task)
        assert [one.published_to for one in world.started] == ["ap-1", "", "ap-1", "ap-1"]
        assert all(one.ended for one in world.started)
        created = [body for method, body in world.client.asked if method == "app.create"]
        assert [(one.name, one.environment) for one in created] == [("app", "dev")]
        assert world.client.asked[-1][0] == "app.finish" and "interrupted" in world.client.asked[-1][1].reason

    asyncio.run(go())


def test_a_change_while_a_version_is_on_its_way_begins_anew() -> None:
    async def go() -> None:
        slow = Child("app", 1, asyncio.Event())
        world = World(Child("app", 1), slow, Child("app", 5))
        task = asyncio.ensure_future(world.serving.run(None))
        await world.until("app runs: 1 function.")
        await world.changed.put({"/a.py"})
        await world.until("Changed")
        await world.changed.put({"/a.py"})
        await world.until("runs anew: 5 functions")
        assert slow.ended and not slow.published_to
        await stop(task)

    asyncio.run(go())


def test_an_interruption_ends_the_version_on_its_way() -> None:
    """Also the process that makes it, before the server is told that all is over."""

    async def go() -> None:
        slow = Child("app", 1, asyncio.Event())
        world = World(Child("app", 1), slow)
        task = asyncio.ensure_future(world.serving.run(None))
        await world.until("app runs: 1 function.")
        await world.changed.put({"/a.py"})
        await world.until("Changed")
        while len(world.started) < 2:
            await asyncio.sleep(0)
        await stop(task)
        assert slow.ended
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


def test_a_child_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither descriptors when it cannot start, nor the processes that it started."""
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print(child.pid, file=open(sys.argv[1], 'w'), flush=True)\n"
        'open(int(sys.argv[3]), \'w\').write(\'{"watched": {"files": [], "trees": []}}\\n\')\n'
        "child.wait()\n"
    )
    pid = tmp_path / "pid"

    async def go() -> None:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await serving.Child.start([str(tmp_path / "nothing")], {})
        await asyncio.sleep(0)  # the loop closes its ends
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1
        child = await serving.Child.start([sys.executable, "-c", program, str(pid)], os.environ)
        await child.described()
        await child.end()
        stat = Path(f"/proc/{pid.read_text().strip()}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(go(), 30))


def test_the_first_version_must_work() -> None:
    async def go() -> None:
        world = World(Child("", None))
        assert await world.serving.run(None) is False
        assert not world.client.asked
        world = World(Child("app", None))
        assert await world.serving.run(None) is False
        assert world.client.asked[-1][0] == "app.finish"

    asyncio.run(go())


def test_its_time() -> None:
    async def go() -> None:
        world = World(Child("app", 1))
        assert await world.serving.run(0.0) is True
        assert world.said[-1] == "Served no longer: its time is over."

    asyncio.run(go())


def test_a_change_before_it_watches_is_not_missed(tmp_path: Path) -> None:
    """What is newer than the version's beginning is one more change, once."""

    class Late(Child):
        async def described(self) -> Described:
            program.write_text("changed meanwhile")
            return Described("app", {}, Watched((str(program),), ()))

    program = tmp_path / "a.py"
    program.write_text("")
    os.utime(program, (1, 1))

    class Same(Child):
        async def described(self) -> Described:
            return Described("app", {}, Watched((str(program),), ()))

    async def go() -> None:
        world = World(Late("app", 1), Same("app", 2))
        task = asyncio.ensure_future(world.serving.run(None))
        await world.until("runs anew: 2 functions")
        await asyncio.sleep(0)
        assert not world.children and len([one for one in world.said if one.startswith("Changed")]) == 1
        await stop(task)

    asyncio.run(go())
