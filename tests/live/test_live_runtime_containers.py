"""Real containers of each runtime: what they may not do, what they may not use, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from cadenza.runtime import oci
from cadenza.runtime.cgroup import Hierarchy, detect
from cadenza.runtime.driver import ContainerConfig, Driver, Exit, Limits, Stdio
from cadenza.runtime.launcher import Dead, Launcher, dead_children
from cadenza.runtime.probe import probe
from cadenza.runtime.process import ProcessDriver, members

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="makes containers: needs root")
OCI = [pytest.param(name, marks=ROOT_ONLY) for name in ("crun", "runc", "runsc")]
KERNEL_SHARED = [pytest.param(name, marks=ROOT_ONLY) for name in ("crun", "runc")]
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def make_driver(name: str, state: str, launcher: Launcher) -> Driver:
    if name == "process":
        return ProcessDriver(state, launcher, detect())
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin")
    if path is None:
        pytest.skip(f"needs {name}")
    dialect = oci.runsc(path, "ptrace") if name == "runsc" else {"crun": oci.crun, "runc": oci.runc}[name](path)
    return oci.OciDriver(dialect, state, launcher, detect())


@pytest.fixture
def rootfs(tmp_path: Path):
    root = tmp_path / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    subprocess.run(["mount", "--bind", "-o", "ro", "/usr", str(root / "usr")], check=True)
    try:
        yield str(root)
    finally:
        subprocess.run(["umount", str(root / "usr")], check=True)


def run_one(
    name: str, tmp_path: Path, rootfs: str, program: str, limits: Limits = Limits(), **more: object
) -> tuple[Exit, str]:
    """Run a Python program in a container: how it ended, and what it wrote."""

    async def body() -> Exit:
        launcher = Launcher()
        driver = make_driver(name, str(tmp_path / "state"), launcher)
        (tmp_path / "bundle").mkdir()
        argv = ("/usr/bin/python3", "-c", textwrap.dedent(program))
        config = ContainerConfig("one", rootfs, argv, ENV, limits=limits, read_only_root=True)
        try:
            with open(tmp_path / "out", "ab") as out:
                stdio = Stdio(-1, out.fileno(), out.fileno())
                await driver.start(replace(config, **more), str(tmp_path / "bundle"), stdio)
                return await asyncio.wait_for(driver.wait("one"), 60)
        finally:
            await driver.delete("one")
            launcher.close()

    end = asyncio.run(body())
    return end, (tmp_path / "out").read_text()


@pytest.mark.parametrize("name", KERNEL_SHARED)
def test_standard_isolation_leaves_few_rights(name: str, tmp_path: Path, rootfs: str):
    program = """
        import ctypes, errno, json, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        def tried(call, *args):
            result = getattr(libc, call)(*args)
            return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        def can_open(path, mode="r"):
            try:
                return bool(open(path, mode).read(1)) if mode == "r" else bool(open(path, mode))
            except OSError:
                return False
        def family(number):
            try:
                socket.socket(number, socket.SOCK_SEQPACKET if number == 38 else socket.SOCK_STREAM).close()
                return "done"
            except OSError as error:
                return errno.errorcode[error.errno]
        print(json.dumps({
            "pid": os.getpid(), "caps": status["CapEff"], "bounding": status["CapBnd"], "ambient": status["CapAmb"],
            "no_new": status["NoNewPrivs"], "filter": status["Seccomp"],
            "user": tried("unshare", 0x10000000), "mounts": tried("unshare", 0x00020000),
            "mount": tried("mount", b"x", b"/tmp", b"tmpfs", 0, None), "keys": tried("syscall", 250, 0, 0, 0, 0, 0),
            "bpf": tried("syscall", 321, 0, 0, 0), "unknown": tried("syscall", 9999),
            "clone3": tried("syscall", 435, 0, 0),
            "kcore": can_open("/proc/kcore"), "sysctl": can_open("/proc/sys/kernel/hostname", "w"),
            "sysrq": can_open("/proc/sysrq-trigger", "w"), "cgroups": os.path.exists("/sys/fs/cgroup/pids"),
            "interfaces": [name for _, name in socket.if_nameindex()], "alg": family(38), "vsock": family(40),
            # The kernel reads the lower half of these.
            "vsock with bit 32": tried("syscall", 41, ctypes.c_ulong(40 | 1 << 32), 1, 0),
            "alg with bit 32": tried("syscall", 41, ctypes.c_ulong(38 | 1 << 32), 5, 0),
            "other ioctls": [
                tried("syscall", 16, -1, ctypes.c_ulong(number))
                for number in (0, 0x5401, 0x5411, 0x5413, 0x5414, 0x541B, 0x5421, 0x8912, 0xFFFF, 0x80045430,
                               0x40045431, 0xC0045432, 0xFFFFFFFF80045430)
            ],
            "TIOCSTI with bit 32": tried("syscall", 16, os.openpty()[1], ctypes.c_ulong(0x5412 | 1 << 32), b"x"),
            "devices": sorted(os.listdir("/dev")), "root_fs": can_open("/nothing", "w"),
        }))
        """
    end, out = run_one(name, tmp_path, rootfs, program)
    assert end == Exit(0), out
    facts = json.loads(out)
    assert facts["pid"] == 1
    # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE
    assert int(facts["caps"], 16) == int(facts["bounding"], 16) == 0b100_1111_1011
    assert int(facts["ambient"], 16) == 0
    assert (facts["no_new"], facts["filter"]) == ("1", "2")
    for refused in ("mount", "keys", "bpf"):
        assert facts[refused] == "EPERM", refused
    high = ("vsock with bit 32", "alg with bit 32", "TIOCSTI with bit 32")
    assert set(facts["other ioctls"]) == {"EBADF"}
    for absent in ("unknown", "clone3", "user", "mounts", "alg", "vsock", *high):
        assert facts[absent] == "ENOSYS", absent
    assert not any(facts[path] for path in ("kcore", "sysctl", "sysrq", "cgroups", "root_fs"))
    assert facts["interfaces"] == ["lo"]
    known = {"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"}
    assert set(facts["devices"]) - {"core"} == known | {"urandom", "zero"}


@pytest.mark.parametrize("name", [pytest.param("runsc", marks=ROOT_ONLY)])
def test_strong_isolation_has_a_kernel_of_its_own(name: str, tmp_path: Path, rootfs: str):
    end, out = run_one(name, tmp_path, rootfs, "import os; print(os.getpid(), os.uname().release)")
    assert end == Exit(0), out
    assert out.split() == ["1", "4.4.0"]
    assert os.uname().release not in out


@pytest.mark.parametrize("name", OCI)
def test_more_memory_than_allowed_is_told_as_such(name: str, tmp_path: Path, rootfs: str):
    program = "data = bytearray(300 << 20); print(len(data))"
    end, out = run_one(name, tmp_path, rootfs, program, Limits(memory_limit_mib=96))
    assert (end.code, end.oom, end.fault) == (137, True, ""), out


@pytest.mark.parametrize("name", KERNEL_SHARED)
def test_a_fork_bomb_stays_small_and_dies_whole(name: str, tmp_path: Path, rootfs: str):
    async def body() -> None:
        launcher = Launcher()
        driver = make_driver(name, str(tmp_path / "state"), launcher)
        (tmp_path / "bundle").mkdir()
        source = "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.05)"
        bomb = ("/usr/bin/python3", "-c", source)
        config = ContainerConfig("bomb", rootfs, bomb, ENV, limits=Limits(1000, 500, 256, 40), read_only_root=True)
        try:
            await driver.start(config, str(tmp_path / "bundle"), Stdio())
            while (await driver.stats("bomb")).pids < 30:
                await asyncio.sleep(0.01)
            assert (await driver.stats("bomb")).pids <= 40
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(driver.signal("bomb", signal.SIGKILL), 20)
            # Issue 2: dead and its slot free within 5 s.
            assert asyncio.get_running_loop().time() - began < 5
            assert (await driver.wait("bomb")).signal == signal.SIGKILL
        finally:
            await driver.delete("bomb")
            launcher.close()

    asyncio.run(body())


@pytest.mark.parametrize("name", OCI)
def test_twenty_at_once_leave_nothing(name: str, tmp_path: Path, rootfs: str):
    async def body() -> None:
        launcher = Launcher()
        others = {dead.pid for dead in dead_children()}  # of tests before this one
        driver = make_driver(name, str(tmp_path / "state"), launcher)

        def mine() -> list[Dead]:
            # No runtime is Python: that would be a server of an earlier test, which ends by itself about now.
            return [dead for dead in dead_children() if dead.pid not in others and not dead.name.startswith("python")]

        async def one(number: int) -> int:
            bundle = tmp_path / f"bundle{number}"
            bundle.mkdir()
            argv = ("/bin/sh", "-c", f"exit {number}")
            config = ContainerConfig(f"many{number}", rootfs, argv, ENV, read_only_root=True)
            await driver.start(config, str(bundle), Stdio())
            code = (await driver.wait(f"many{number}")).code
            await driver.delete(f"many{number}")
            return code

        assert await asyncio.gather(*(one(number) for number in range(20))) == list(range(20))
        assert await driver.list() == {}
        # The programs' middle processes are collected a moment later.
        for _ in range(100):
            if not mine():
                break
            await asyncio.sleep(0.05)
        assert mine() == []
        launcher.close()

    asyncio.run(body())
    assert os.listdir(tmp_path / "state" / name) == []
    listed = subprocess.run("find /sys/fs/cgroup -name 'many[0-9]*'", shell=True, capture_output=True, text=True)
    assert listed.stdout == ""


AGENT = """
import asyncio, os, signal, sys
sys.path.insert(0, {repo!r}); sys.path.insert(0, {here!r})
from test_live_runtime_containers import make_driver
from cadenza.runtime.driver import ContainerConfig, Stdio
from cadenza.runtime.launcher import Launcher
async def main():
    driver = make_driver({name!r}, {state!r}, Launcher())
    script = "trap 'exit 11' TERM; sleep 300 & wait"
    config = ContainerConfig("left", {rootfs!r}, ("/bin/sh", "-c", script), {{"PATH": "/usr/bin:/bin"}})
    await driver.start(config, {bundle!r}, Stdio())
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["process", *OCI])
def test_containers_outlive_a_killed_agent_and_are_adopted(name: str, tmp_path: Path, request):
    rootfs = request.getfixturevalue("rootfs") if name != "process" else "/"
    state, bundle = str(tmp_path / "state"), str(tmp_path / "bundle")
    os.mkdir(bundle)
    repo, here = str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)
    code = AGENT.format(repo=repo, here=here, name=name, state=state, rootfs=rootfs, bundle=bundle)
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    async def body() -> None:
        launcher = Launcher()
        driver = make_driver(name, state, launcher)
        try:
            found = await driver.list()
            assert list(found) == ["left"] and found["left"] is not None
            # Since Linux 6.15 the end of a process that is not our child can be known.
            expected = 11 if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15) else -1
            while (await driver.list())["left"] is not None:
                # Again and again, since the shell may not have set its trap yet.
                await driver.signal("left", signal.SIGTERM)
                await asyncio.sleep(0.1)
            # On the machine itself the signal may come before the trap.
            codes = (expected, 143) if name == "process" else (expected,)
            assert (await driver.wait("left")).code in codes
        finally:
            await driver.delete("left")
            launcher.close()
        assert await driver.list() == {}

    asyncio.run(body())


@pytest.mark.parametrize("limits", ["cgroups", "none"])
def test_descendants_that_run_away_are_found(limits: str, tmp_path: Path):
    """The process driver: new sessions, two forks, a changed parent."""
    runaway = "setsid sh -c 'setsid sleep 4321 & sleep 4321' & sleep 4321 & exit 0"

    async def body() -> None:
        launcher = Launcher()
        others = {dead.pid for dead in dead_children()}
        hierarchy = detect() if limits == "cgroups" else Hierarchy("none", reason="a test")
        driver = ProcessDriver(str(tmp_path / "state"), launcher, hierarchy)
        config = ContainerConfig("away", "/", ("/bin/sh", "-c", runaway), ENV)
        pid = await driver.start(config, str(tmp_path), Stdio())
        assert await driver.wait("away") == Exit(0)
        while len(members(pid, "away")) < 4:
            await asyncio.sleep(0.01)
        await driver.delete("away")
        assert members(pid, "away") == []
        left = [dead for dead in dead_children() if dead.pid not in others]
        assert [dead for dead in left if dead.name in ("sh", "sleep", "setsid")] == []
        launcher.close()

    asyncio.run(body())


@ROOT_ONLY
def test_the_probe_finds_what_is_installed():
    async def body() -> None:
        launcher = Launcher()
        machine = await probe(launcher)
        for name in ("crun", "runc", "runsc"):
            ability = machine.abilities[name]
            assert ability.works == (shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin") is not None), ability
            assert ability.sentence.endswith(".")
        launcher.close()

    asyncio.run(body())
