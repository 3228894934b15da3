"""What every `Driver` does, real ones and the twin in memory. See `cadenza.runtime.driver`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Awaitable, Callable

import pytest

from cadenza.base.errors import AlreadyExistsError, InvalidError, NotFoundError
from cadenza.runtime import oci
from cadenza.runtime.cgroup import detect
from cadenza.runtime.driver import Command, ContainerConfig, Driver, Exit, Limits, Stdio
from cadenza.runtime.fake import FakeDriver, FakeMachine
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.process import ProcessDriver

NAMES = ("fake", "process", "crun", "runc", "runsc")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@dataclass
class Bench:
    """One driver, with a folder to work in."""

    driver: Driver
    again: Callable[[], Driver]
    """A second driver over the same state, as after an agent's restart."""
    rootfs: str
    folder: Path
    made: int = 0

    def bundle(self) -> str:
        self.made += 1
        path = self.folder / f"bundle-{self.made}"
        path.mkdir()
        return str(path)

    def config(self, container_id: str, script: str) -> ContainerConfig:
        return ContainerConfig(container_id, self.rootfs, ("/bin/sh", "-c", script), ENV, read_only_root=True)

    async def start(self, container_id: str, script: str) -> int:
        return await self.driver.start(self.config(container_id, script), self.bundle(), Stdio())


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory):
    """A root file system that shows the host's programs."""
    root = tmp_path_factory.mktemp("rootfs")
    if os.geteuid() != 0:
        yield str(root)
        return
    for name in ("usr", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    subprocess.run(["mount", "--bind", "-o", "ro", "/usr", str(root / "usr")], check=True)
    try:
        yield str(root)
    finally:
        subprocess.run(["umount", str(root / "usr")], check=True)


@pytest.fixture(params=NAMES)
def on(request: pytest.FixtureRequest, tmp_path: Path, rootfs: str):
    """Runs ``test(bench)`` with one driver after the other, and looks for what is left."""
    name = request.param
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin") if name in ("crun", "runc", "runsc") else None
    if name in ("crun", "runc", "runsc") and (path is None or os.geteuid() != 0):
        pytest.skip(f"needs root and {name}")

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def main() -> None:
            launcher = Launcher()
            machine = FakeMachine()
            state = str(tmp_path / "state")

            def make() -> Driver:
                if name == "fake":
                    return FakeDriver(machine)
                if name == "process":
                    return ProcessDriver(state, launcher, detect())
                dialects = {"crun": oci.crun, "runc": oci.runc, "runsc": lambda path: oci.runsc(path, "ptrace")}
                return oci.OciDriver(dialects[name](str(path)), state, launcher, detect())

            bench = Bench(make(), make, rootfs, tmp_path)
            try:
                await test(bench)
            finally:
                for container_id in await bench.driver.list():
                    await bench.driver.delete(container_id)
                launcher.close()
            assert os.listdir(tmp_path / "state" / name) == [] if name != "fake" else True

        asyncio.run(main())

    return run


def test_exit_code_and_output_reach_the_caller(on, tmp_path):
    async def body(bench: Bench) -> None:
        with open(tmp_path / "out", "ab") as out, open(tmp_path / "err", "ab") as err:
            config = bench.config("c1", "echo to stdout; echo to stderr >&2; exit 7")
            pid = await bench.driver.start(config, bench.bundle(), Stdio(-1, out.fileno(), err.fileno()))
            assert pid > 0
            assert await bench.driver.wait("c1") == Exit(7)
        assert (tmp_path / "out").read_text() == "to stdout\n"
        assert (tmp_path / "err").read_text() == "to stderr\n"

    on(body)


def test_wait_by_many_and_again_until_delete(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "exit 3")
        waits = await asyncio.gather(*(bench.driver.wait("c1") for _ in range(3)))
        assert [end.code for end in [*waits, await bench.driver.wait("c1")]] == [3, 3, 3, 3]
        assert (await bench.driver.list()) == {"c1": None}
        await bench.driver.delete("c1")
        with pytest.raises(NotFoundError):
            await bench.driver.wait("c1")

    on(body)


def test_a_cancelled_wait_does_not_disturb_the_others(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "trap 'exit 4' TERM; sleep 300 & wait")
        first = asyncio.ensure_future(bench.driver.wait("c1"))
        await asyncio.sleep(0)
        first.cancel()
        second = asyncio.ensure_future(bench.driver.wait("c1"))
        await bench.driver.signal("c1", signal.SIGKILL)
        assert (await second).code == 137

    on(body)


def test_signal_reaches_the_first_process(on, tmp_path):
    async def body(bench: Bench) -> None:
        with open(tmp_path / "out", "ab") as out:
            config = bench.config("c1", "trap 'exit 9' TERM; echo ready; sleep 300 & wait")
            await bench.driver.start(config, bench.bundle(), Stdio(-1, out.fileno(), -1))
        await eventually(lambda: (tmp_path / "out").read_text() == "ready\n")
        await bench.driver.signal("c1", signal.SIGTERM)
        assert await bench.driver.wait("c1") == Exit(9)
        await bench.driver.signal("c1", signal.SIGTERM)
        await bench.driver.signal("c1", signal.SIGKILL)
        await bench.driver.signal("nobody", signal.SIGKILL)

    on(body)


def test_sigkill_takes_every_process(on):
    async def body(bench: Bench) -> None:
        mark = f"3{os.getpid()}"
        await bench.start("c1", f"sleep {mark} & sleep {mark} & wait")
        if bench.driver.name not in ("fake", "runsc"):
            await eventually(lambda: len(sleepers(mark)) == 2)
        await bench.driver.signal("c1", signal.SIGKILL)
        assert sleepers(mark) == []
        end = await bench.driver.wait("c1")
        assert (end.code, end.signal, end.fault) == (137, signal.SIGKILL, "")

    on(body)


def test_delete_ends_what_runs_and_answers_who_waits(on):
    async def body(bench: Bench) -> None:
        mark = f"4{os.getpid()}"
        await bench.start("c1", f"sleep {mark} & wait")
        waiting = asyncio.ensure_future(bench.driver.wait("c1"))
        await asyncio.sleep(0)
        await bench.driver.delete("c1")
        assert (await waiting).code == 137
        assert sleepers(mark) == []
        assert await bench.driver.list() == {}
        await bench.driver.delete("c1")
        await bench.start("c1", "exit 0")
        assert (await bench.driver.wait("c1")).code == 0

    on(body)


def test_no_such_program_is_the_users_fault_and_leaves_nothing(on):
    async def body(bench: Bench) -> None:
        bad = replace(bench.config("c1", ""), argv=("/no/such/program",))
        with pytest.raises(InvalidError, match="/no/such/program"):
            await bench.driver.start(bad, bench.bundle(), Stdio())
        assert await bench.driver.list() == {}
        await bench.start("c1", "exit 0")
        assert (await bench.driver.wait("c1")).code == 0

    on(body)


@pytest.mark.parametrize(
    "change",
    [
        {"container_id": "../up"},
        {"container_id": "x" * 65},
        {"argv": ()},
        {"argv": ("/bin/sh", "-c", "a\0b")},
        {"env": {"A=B": "c"}},
        {"cwd": "relative"},
        {"limits": Limits(memory_limit_mib=-1)},
    ],
)
def test_what_can_never_work_is_refused(on, change):
    async def body(bench: Bench) -> None:
        with pytest.raises(InvalidError):
            await bench.driver.start(replace(bench.config("c1", "exit 0"), **change), bench.bundle(), Stdio())
        assert await bench.driver.list() == {}

    on(body)


def test_an_id_is_used_once_at_a_time(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        with pytest.raises(AlreadyExistsError):
            await bench.start("c1", "sleep 300")
        assert list(await bench.driver.list()) == ["c1"]
        assert (await bench.driver.list())["c1"] is not None

    on(body)


def test_a_start_that_is_called_off_leaves_nothing(on):
    async def body(bench: Bench) -> None:
        mark = f"5{os.getpid()}"
        for number, delay_s in enumerate((0, 0.001, 0.004, 0.012, 0.05)):
            start = asyncio.ensure_future(bench.start(f"c{number}", f"sleep {mark} & wait"))
            await asyncio.sleep(delay_s)
            start.cancel()
            try:
                await start
            except asyncio.CancelledError:
                assert await bench.driver.list() == {}
                assert sleepers(mark) == []
            else:
                await bench.driver.delete(f"c{number}")
        assert sleepers(mark) == []

    on(body)


def test_exec_runs_beside_the_first_process(on, tmp_path):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        with open(tmp_path / "out", "ab") as out:
            command = Command(("/bin/sh", "-c", "pwd; echo $COLOUR; exit 5"), {**ENV, "COLOUR": "teal"}, "/usr")
            execution = await bench.driver.exec("c1", command, Stdio(-1, out.fileno(), -1))
            assert execution.pty_fd == -1
            assert await execution.wait() == Exit(5)
            assert await execution.wait() == Exit(5)
        assert (tmp_path / "out").read_text() == "/usr\nteal\n"
        assert (await bench.driver.list())["c1"] is not None
        with pytest.raises(InvalidError):
            await bench.driver.exec("c1", Command(("/no/such/program",), ENV), Stdio())

    on(body)


def test_exec_can_be_killed_alone(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        execution = await bench.driver.exec("c1", Command(("/bin/sleep", "300"), ENV), Stdio())
        await execution.signal(signal.SIGKILL)
        assert (await execution.wait()).code == 137
        await execution.signal(signal.SIGKILL)
        assert (await bench.driver.list())["c1"] is not None

    on(body)


def test_exec_on_a_terminal(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        command = Command(("/bin/sh", "-c", "test -t 0 && echo terminal; exit 2"), ENV, pty=True)
        execution = await bench.driver.exec("c1", command, Stdio())
        try:
            seen = b""
            while b"\n" not in seen:
                seen += await asyncio.to_thread(os.read, execution.pty_fd, 4096)
            assert (await execution.wait()).code == 2
        finally:
            os.close(execution.pty_fd)
        assert seen.strip() == b"terminal"

    on(body)


def test_a_terminal_has_its_size_from_the_start(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        command = Command(("/bin/sh", "-c", "stty size"), ENV, pty=True, rows=31, columns=117)
        execution = await bench.driver.exec("c1", command, Stdio())
        try:
            seen = b""
            while b"\n" not in seen:
                seen += await asyncio.to_thread(os.read, execution.pty_fd, 4096)
            await execution.wait()
        finally:
            os.close(execution.pty_fd)
        assert seen.split() == [b"31", b"117"]

    on(body)


def test_exec_needs_a_running_container(on):
    async def body(bench: Bench) -> None:
        command = Command(("/bin/echo", "hello"), ENV)
        with pytest.raises(NotFoundError):
            await bench.driver.exec("nobody", command, Stdio())
        await bench.start("c1", "exit 0")
        await bench.driver.wait("c1")
        with pytest.raises(NotFoundError):
            await bench.driver.exec("c1", command, Stdio())

    on(body)


def test_stats_and_update(on):
    async def body(bench: Bench) -> None:
        await bench.start("c1", "sleep 300")
        for _ in range(200):
            stats = await bench.driver.stats("c1")
            if stats.memory_bytes > 0 and stats.pids >= 1:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail(f"nothing is counted: {stats}")
        await bench.driver.update("c1", Limits(500, 1000, 512, 100))
        for call in (bench.driver.stats("nobody"), bench.driver.update("nobody", Limits())):
            with pytest.raises(NotFoundError):
                await call

    on(body)


def test_the_next_agent_finds_what_this_one_left(on):
    async def body(bench: Bench) -> None:
        pid = await bench.start("c1", "sleep 300")
        await bench.start("c2", "exit 0")
        await bench.driver.wait("c2")
        second = bench.again()
        assert await second.list() == {"c1": pid, "c2": None}
        execution = await second.exec("c1", Command(("/bin/sh", "-c", "exit 6"), ENV), Stdio())
        assert (await execution.wait()).code == 6
        await second.signal("c1", signal.SIGKILL)
        assert (await second.wait("c1")).code in (137, -1)
        await second.delete("c1")
        await second.delete("c2")
        assert await second.list() == {}

    on(body)


async def eventually(holds: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + limit_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def sleepers(seconds: str) -> list[int]:
    """Processes anywhere on this machine that sleep for that unusual time."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                found.append(int(pid))
        except OSError:
            pass
    return found
