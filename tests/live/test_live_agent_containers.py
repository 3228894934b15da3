"""The agent with crun and the real runner, as root, on a small root file system; only the control plane is a twin."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "agent"))

from agent_fakes import FakeStore, World, attempt, spec

from cadenza.agent import support
from cadenza.base.resources import Resources
from cadenza.fs.images import Lowers, StepRun
from cadenza.protocol import nodes
from cadenza.protocol.nodes import StopOrder
from cadenza.protocol.objects import FileEntry
from cadenza.runner import values
from cadenza.runtime.cgroup import detect
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.network import NETNS_FOLDER, Network, tag_of
from cadenza.runtime.oci import OciDriver, crun, runc

pytestmark = pytest.mark.timeout(120)

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE = "/usr"


def make_root(root: str) -> None:
    """A root file system with this machine's Python: hard links, so it is quick."""

    def put(path: str) -> None:
        for one in dict.fromkeys((path, os.path.realpath(path))):
            target = os.path.join(root, one.lstrip("/"))
            if os.path.lexists(target):
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.islink(one):
                os.symlink(os.readlink(one), target)
            else:
                try:
                    os.link(one, target)
                except OSError:
                    shutil.copy2(one, target)

    os.makedirs(os.path.join(root, "usr/lib64"))
    os.makedirs(os.path.join(root, "usr/lib/x86_64-linux-gnu"))
    os.makedirs(os.path.join(root, "usr/bin"))
    for name in ("bin", "lib", "lib64"):
        os.symlink(f"usr/{name}", os.path.join(root, name))
    for name in ("root", "tmp", "etc", "proc", "sys", "dev"):
        os.makedirs(os.path.join(root, name))
    shutil.copytree(
        f"{BASE}/lib/{PYTHON}", f"{root}/usr/lib/{PYTHON}",
        symlinks=True, ignore=shutil.ignore_patterns("test", "config-*", "idlelib", "tkinter"),
    )  # fmt: skip
    binaries = [
        f"/usr/bin/{PYTHON}",
        "/usr/bin/python3",
        "/usr/bin/dash",
        "/usr/bin/sh",
        "/usr/bin/sleep",
        "/usr/bin/cat",
    ]
    modules = [str(one) for one in Path(f"{BASE}/lib/{PYTHON}/lib-dynload").glob("*.so")]
    libraries = {"/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"}  # loaded late, when a thread is ended
    for line in subprocess.run(
        ["ldd", *binaries, *modules], capture_output=True, text=True, check=False
    ).stdout.split():
        if line.startswith("/") and not line.endswith(":"):
            libraries.add(line if line.startswith("/usr") else "/usr" + line)
    for one in [*binaries, *sorted(libraries)]:
        put(one)


class Store(FakeStore):
    """One image: the small root file system."""

    def __init__(self, root: str) -> None:
        self.root = root

    async def lend(self, image_id: str) -> Lowers:
        return Lowers((self.root,))

    def image(self, image_id: str) -> Optional[nodes.ImageInfo]:
        return nodes.ImageInfo(image_id, 1, 0.0, 0.0, python="3")


class LiveWorld(World):
    """The agent on crun."""

    def __init__(self, home: Any, root: str, program: str = "crun", **settings: Any) -> None:
        super().__init__(home, **settings)
        around = self.agent._given
        assert around is not None
        dialect = {"crun": crun, "runc": runc}[program](str(shutil.which(program)))
        self.driver = OciDriver(dialect, os.path.join(str(home), "runtime"), Launcher(), detect())
        self.networks = Network(os.path.join(str(home), "runtime"))
        around.drivers = {"standard": self.driver}
        around.store = Store(root)  # type: ignore[assignment]
        around.networks = self.networks
        self.folder = os.path.join(str(home), "objects")
        os.makedirs(self.folder, exist_ok=True)
        real_support(home)

    async def __aenter__(self) -> LiveWorld:
        await self.networks.open()
        await super().__aenter__()
        return self

    def source(self, text: str, name: str = "m") -> FileEntry:
        """A module of the user's, uploaded."""
        content = text.encode()
        digest = hashlib.sha256(content).hexdigest()
        path = os.path.join(self.folder, digest)
        Path(path).write_bytes(content)
        self.control.objects[digest] = path
        return FileEntry(f"/root/{name}.py", digest, len(content))


_prepare = support.prepare


def real_support(home: Any) -> None:
    from cadenza.agent import main

    main.support.prepare = _prepare


def packed(*args: Any) -> bytes:
    """The arguments of a call as a client packs them."""
    found = values.pack((args, {}))
    return found if isinstance(found, bytes) else b"".join(bytes(one) for one in found)


@pytest.fixture(scope="session")
def root() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="cadenza-live-root-")
    os.chmod(path, 0o755)
    make_root(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cadenza-live-agent-"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


def mounts() -> list[str]:
    return sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if "cadenza-live" in line)


def cgroups() -> list[str]:
    return sorted(str(one) for one in Path("/sys/fs/cgroup").glob("**/cadenza/*") if one.is_dir())


def processes() -> list[int]:
    """Those in our containers."""
    found = []
    for path in cgroups():
        if os.path.basename(path).startswith("ta-live"):
            found += [int(one) for one in Path(path, "cgroup.procs").read_text().split()]
    return sorted(set(found))


def alive(pids: list[int]) -> list[int]:
    """Those that run; one that has ended and waits to be collected by its new parent does not."""
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
                found.append(pid)
        except OSError:
            continue
    return found


def traces(home: Path) -> dict[str, Any]:
    """What of this test's containers is on the machine."""
    containers = home / "containers"
    return {
        "mounts": [one for one in mounts() if str(home) in one],
        "directories": sorted(os.listdir(containers)) if containers.exists() else [],
        "networks": [one for one in os.listdir(NETNS_FOLDER) if one.startswith(tag_of(str(home / "runtime")))],
        "cgroups": [one for one in cgroups() if os.path.basename(one).startswith("ta-live")],
    }


NOTHING: dict[str, Any] = {"mounts": [], "directories": [], "networks": [], "cgroups": []}

SOURCE = """
import os, signal, sys, time
def f(x):
    print("hello", x)
    return x + 1
def stubborn(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            time.sleep(100)
        except BaseException:
            pass
def hog(x):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
def crash(x):
    os.kill(os.getpid(), signal.SIGSEGV)
def child(x):
    os.system("sleep 1000 & echo from a child")
    return 1
"""


@pytest.mark.parametrize("program", ["crun", "runc"])
def test_a_function_runs_in_a_container_and_nothing_is_left(root: str, home: Path, program: str) -> None:
    async def go() -> None:
        async with LiveWorld(home, root, program) as world:
            one = spec("ta-live1", files=(world.source(SOURCE),))
            world.want(one)
            ready = await world.control.state("ta-live1", nodes.READY)
            assert ready.runtime == program
            assert sum(ready.phases.values()) == pytest.approx(ready.ready_at - one.wanted_at, rel=0.02)
            print(ready.phases)
            world.agent.deliver("ta-live1", [attempt(0, packed(41))])
            await world.control.until(lambda: world.control.given)
            output = world.control.given[0][1]
            assert (output.status, output.error) == ("SUCCESS", "")
            assert values.unpack(output.data) == 42
            assert "hello 41" in world.control.text("ta-live1", 1)
            world.want(one, stops=(StopOrder("ta-live1", 5.0, True),))
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert (gone.reason, gone.exit_code) == (nodes.EXITED, 0), world.control.text("ta-live1", 2)
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_a_function_that_ignores_every_signal_is_dead_within_5_s_of_its_deadline(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            one = spec("ta-live2", files=(world.source(SOURCE),), qualname="stubborn")
            world.want(one)
            await world.control.state("ta-live2", nodes.READY)
            world.agent.deliver("ta-live2", [attempt(0, packed(1))])
            await asyncio.sleep(0.3)
            began = time.monotonic()
            world.want(one, stops=(StopOrder("ta-live2", 0.5, False),))
            gone = await world.control.state("ta-live2", nodes.GONE)
            assert 0.5 <= time.monotonic() - began < 5.5
            assert gone.reason == nodes.STOPPED
        assert traces(home) == NOTHING

    uvloop.run(go())


@pytest.mark.parametrize(
    ("name", "reason", "words"), [("hog", nodes.OOM, "64 MiB"), ("crash", nodes.CRASHED, "SIGSEGV")]
)
def test_a_violent_end_is_explained(root: str, home: Path, name: str, reason: str, words: str) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            resources = Resources(memory_limit_mib=64)
            world.want(spec("ta-live3", files=(world.source(SOURCE),), qualname=name, resources=resources))
            await world.control.state("ta-live3", nodes.READY)
            world.agent.deliver("ta-live3", [attempt(0, packed(1))])
            gone = await world.control.state("ta-live3", nodes.GONE)
            assert gone.reason == reason, gone
            assert words in gone.message
            assert words in world.control.text("ta-live3", 0)
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_children_of_the_function_write_to_the_log_and_end_with_it(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            world.want(spec("ta-live4", files=(world.source(SOURCE),), qualname="child"))
            await world.control.state("ta-live4", nodes.READY)
            world.agent.deliver("ta-live4", [attempt(0, packed(1))])
            await world.control.until(lambda: world.control.given)
            await world.control.until(lambda: "from a child" in world.control.text("ta-live4", 1))
            inside = processes()
            assert len(inside) >= 3
            world.want()
            await world.control.state("ta-live4", nodes.GONE)
            assert alive(inside) == []
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_large_sets_of_files_come_as_a_layer(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            big = world.source("DATA = '" + "x" * (5 << 20) + "'", "big")
            source = world.source("import big\ndef f(x):\n    return len(big.DATA)\n")
            world.want(spec("ta-live5", files=(big, source)))
            await world.control.state("ta-live5", nodes.READY)
            world.agent.deliver("ta-live5", [attempt(0, packed(1))])
            await world.control.until(lambda: world.control.given)
            assert values.unpack(world.control.given[0][1].data) == 5 << 20
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_the_pool_saves_all_but_the_import(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root, pool_containers=1) as world:
            files = (world.source(SOURCE),)
            one = spec("ta-live6", files=files)
            world.want(one, images=("im-1",))
            await world.control.state("ta-live6", nodes.READY)
            while not any(cell.life.state == "idle" for cell in world.agent._cells.values()):
                await asyncio.sleep(0.02)
            two = spec("ta-live7", files=files, resources=Resources(memory_limit_mib=77))
            world.want(one, two, images=("im-1",))
            ready = await world.control.state("ta-live7", nodes.READY)
            assert ready.warm
            print("warm", ready.phases)
            world.agent.deliver("ta-live7", [attempt(0, packed(1))])
            await world.control.until(lambda: world.control.given)
            assert values.unpack(world.control.given[0][1].data) == 2
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_commands_run_beside_the_function(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            world.want(spec("ta-live8", files=(world.source(SOURCE),), env={"A": "secret"}))
            await world.control.state("ta-live8", nodes.READY)
            got: list[tuple[int, bytes]] = []
            command = ["sh", "-c", 'cat; echo "$A" "$MODAL_TASK_ID"; echo bad >&2; exit 3']
            running = await world.agent.exec("ta-live8", command, False, lambda fd, data: got.append((fd, data)))
            running.write(b"typed\n")
            running.close_stdin()
            assert await running.wait() == 3
            assert b"".join(data for fd, data in got if fd == 1) == b"typed\nsecret ta-live8\n"
            assert b"".join(data for fd, data in got if fd == 2) == b"bad\n"
            got.clear()
            command = ["python3", "-c", "import sys; print(len(sys.stdin.buffer.read()))"]
            counting = await world.agent.exec("ta-live8", command, False, lambda fd, data: got.append((fd, data)))
            for _ in range(10):
                counting.write(bytes(1 << 20))
                await counting.drain()
            counting.close_stdin()
            assert await counting.wait() == 0
            assert b"".join(data for _, data in got).strip() == b"10485760"
            got.clear()
            terminal = await world.agent.exec("ta-live8", ["sh"], True, lambda fd, data: got.append((fd, data)))
            terminal.resize(40, 100)
            terminal.write(b"exit 7\n")
            assert await terminal.wait() == 7
        assert traces(home) == NOTHING

    uvloop.run(go())


@pytest.mark.parametrize("program", ["crun", "runc"])
def test_another_user_does_not_get_to_a_containers_sockets(root: str, home: Path, program: str) -> None:
    async def go() -> None:
        async with LiveWorld(home, root, program) as world:
            world.want(spec("ta-live10", files=(world.source(SOURCE),)))
            await world.control.state("ta-live10", nodes.READY)
            run = world.agent._wanted["ta-live10"].paths.run
            code = (
                "import socket, sys\n"
                "for name in ('runner', 'client', 'lane'):\n"
                "    try: socket.socket(socket.AF_UNIX).connect(f'{sys.argv[1]}/{name}.sock')\n"
                "    except PermissionError: print('refused')\n"
            )
            done = await asyncio.to_thread(
                subprocess.run,
                ["/usr/bin/python3", "-c", code, run],
                user=65534, group=65534, extra_groups=[], capture_output=True, text=True, cwd="/",
            )  # fmt: skip
            assert done.stdout == "refused\n" * 3, done.stderr
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_a_build_step_writes_to_its_layer(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            for name in ("upper", "work"):
                (home / name).mkdir()
            said: list[bytes] = []
            step = StepRun(
                "im-1", (root,), str(home / "upper"), str(home / "work"),
                ("sh", "-c", "echo made > /made; echo $TOKEN; exit 5"), {"TOKEN": "t", "PATH": "/usr/bin"}, "/",
                said.append,
            )  # fmt: skip
            assert await world.agent._run_step(step) == 5
            assert (home / "upper" / "made").read_text() == "made\n"
            assert b"".join(said) == b"t\n"
        assert traces(home) == NOTHING

    uvloop.run(go())


@pytest.mark.parametrize(("blocked", "interfaces"), [(True, ["lo"]), (False, ["eth0", "lo"])])
def test_each_container_has_its_own_network_or_none(
    root: str, home: Path, blocked: bool, interfaces: list[str]
) -> None:
    source = "import os\ndef f(x):\n    return sorted(os.listdir('/sys/class/net'))\n"

    async def go() -> None:
        async with LiveWorld(home, root) as world:
            world.want(spec("ta-live11", files=(world.source(source),), block_network=blocked))
            await world.control.state("ta-live11", nodes.READY)
            world.agent.deliver("ta-live11", [attempt(0, packed(1))])
            await world.control.until(lambda: world.control.given)
            assert values.unpack(world.control.given[0][1].data) == interfaces
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_byte_code_for_an_images_python_is_made_in_a_container_of_it(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            agent = world.agent
            before = {path: path.read_bytes() for path in Path(agent.lib).rglob("*") if path.is_file()}
            assert support.wants_bytecode(agent.lib, "9.9", "im-1")
            assert await support.compile_in_image(agent.lib, "im-1", [root], agent.containers_dir, agent._run_step) == 0
            assert not support.wants_bytecode(agent.lib, "9.9", "im-1")
            assert support.wants_bytecode(agent.lib, "9.9", "im-2")
            own = Path(support.for_image(agent.lib, "im-1"))
            assert agent.library("im-1").endswith(own.name) and agent.library("im-2").endswith(Path(agent.lib).name)
            assert list(own.glob("cadenza/runner/__pycache__/session.*.pyc")) and list(own.glob(".code-*"))
            assert {path: path.read_bytes() for path in Path(agent.lib).rglob("*") if path.is_file()} == before
            world.want(spec("ta-live77", files=(world.source(SOURCE),)))
            await world.control.state("ta-live77", nodes.READY, 20)
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_fifty_containers_start_at_once_and_all_are_removed(root: str, home: Path) -> None:
    async def go() -> None:
        async with LiveWorld(home, root) as world:
            files = (world.source(SOURCE),)
            specs = [spec(f"ta-livem{number}", files=files) for number in range(50)]
            world.want(*specs)
            for one in specs:
                await world.control.state(one.container_id, nodes.READY, 60.0)
            for one in specs:
                world.agent.deliver(one.container_id, [attempt(0, packed(1))])
            await world.control.until(lambda: len(world.control.given) == 50)
            assert {values.unpack(output.data) for _, output in world.control.given} == {2}
        assert traces(home) == NOTHING

    uvloop.run(go())


def test_kill_9_of_the_agent_leaves_nothing_after_the_next_start(root: str, home: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, __file__, str(home), root], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        assert traces(home)["mounts"]
        inside = processes()
        assert len(inside) >= 2
        agent.send_signal(signal.SIGKILL)
        agent.wait()

        async def go() -> None:
            async with LiveWorld(home, root) as world:
                there = traces(home)
                assert set(there.pop("networks")) <= set(world.networks._links)  # its own, for containers to come
                assert there.items() <= NOTHING.items()
                assert alive(inside) == []

        uvloop.run(go())
        assert traces(home) == NOTHING
    finally:
        agent.kill()
        agent.wait()


async def serve(home: str, root: str) -> None:
    """An agent with two containers, to be killed."""
    async with LiveWorld(home, root) as world:
        files = (world.source(SOURCE),)
        world.want(spec("ta-live9", files=files, qualname="stubborn"), spec("ta-live10", files=files))
        for one in ("ta-live9", "ta-live10"):
            await world.control.state(one, nodes.READY)
        world.agent.deliver("ta-live9", [attempt(0, packed(1))])
        print("ready", flush=True)
        await asyncio.sleep(1000)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
