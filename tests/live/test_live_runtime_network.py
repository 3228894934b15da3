"""Containers on real networks: the way out works, the machine and the neighbours are out of reach. Needs root."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cadenza.runtime import oci
from cadenza.runtime.cgroup import detect
from cadenza.runtime.driver import ContainerConfig, Stdio
from cadenza.runtime.launcher import Launcher
from cadenza.runtime.network import Network

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

OUTSIDE, OUTSIDE_HOST, PORT = "198.18.77.2", "198.18.77.1", 8077
SERVER = (
    "import socket\ns = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('0.0.0.0', {port})); s.listen(16)\n"
    "print('ready', flush=True)\n"
    "while True:\n    c, a = s.accept(); c.sendall(a[0].encode()); c.close()\n"
)
PROBE = (
    "import socket, sys\n"
    "for target in sys.argv[1:]:\n"
    "    try:\n"
    f"        c = socket.create_connection((target, {PORT}), 1.0); print(target, c.recv(99).decode())\n"
    "    except OSError as error:\n        print(target, 'no')\n"
)


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def serve(prefix: list[str]) -> subprocess.Popen[str]:
    argv = [*prefix, "python3", "-c", SERVER.format(port=PORT)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def outside():
    """A namespace that plays the world: it knows no way back to private addresses. And a server on the machine."""
    space = f"out{os.getpid()}"
    sh(f"ip netns add {space} && ip link add {space} type veth peer name eth0 netns {space}")
    try:
        sh(f"ip addr add {OUTSIDE_HOST}/30 dev {space} && ip link set {space} up")
        sh(f"ip -n {space} addr add {OUTSIDE}/30 dev eth0 && ip -n {space} link set eth0 up")
        servers = [serve(["ip", "netns", "exec", space]), serve([])]
        try:
            yield
        finally:
            for server in servers:
                server.kill()
                server.communicate()
    finally:
        sh(f"ip link del {space}; ip netns del {space}")


@pytest.fixture
def rootfs(tmp_path: Path):
    root = tmp_path / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    sh(f"mount --bind -o ro /usr {root}/usr")
    try:
        yield str(root)
    finally:
        sh(f"umount {root}/usr")


@pytest.mark.parametrize("name", ["crun", "runc", "runsc"])
def test_the_world_is_reached_and_the_machine_is_not(name: str, tmp_path: Path, rootfs: str, outside: None):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")

    async def body() -> str:
        network = Network(str(tmp_path / "state"), pool_size=2)
        launcher = Launcher()
        dialect = oci.runsc(path, "ptrace") if name == "runsc" else {"crun": oci.crun, "runc": oci.runc}[name](path)
        driver = oci.OciDriver(dialect, str(tmp_path / "state"), launcher, detect())
        await network.open()
        try:
            first, second = await network.take(), await network.take()
            gateway = first.address.rsplit(".", 1)[0] + "." + str(int(first.address.rsplit(".", 1)[1]) - 1)
            neighbour = serve(["ip", "netns", "exec", second.name])
            targets = (OUTSIDE, OUTSIDE_HOST, gateway, second.address)
            config = ContainerConfig(
                "net1",
                rootfs,
                ("/usr/bin/python3", "-c", PROBE, *targets),
                {"PATH": "/usr/bin"},
                netns=first.path,
                read_only_root=True,
            )
            bundle = tmp_path / "bundle"
            bundle.mkdir()
            try:
                with open(tmp_path / "out", "ab") as out:
                    await driver.start(config, str(bundle), Stdio(-1, out.fileno(), out.fileno()))
                    assert (await asyncio.wait_for(driver.wait("net1"), 60)).code == 0
            finally:
                await driver.delete("net1")
                neighbour.kill()
                neighbour.communicate()
        finally:
            await network.close()
            launcher.close()
        return network.tag + ":" + (tmp_path / "out").read_text()

    tag, _, seen = asyncio.run(body()).partition(":")
    lines = dict(line.split() for line in seen.splitlines())
    assert lines[OUTSIDE] == OUTSIDE_HOST, "the world sees the machine's address, not the container's"
    assert [lines[target] for target in lines if target != OUTSIDE] == ["no", "no", "no"]
    left = subprocess.run("ip netns; ip link; ip route; nft list tables", shell=True, capture_output=True, text=True)
    assert tag not in left.stdout


def test_the_next_agent_keeps_what_runs_and_destroys_the_rest(tmp_path: Path):
    async def body() -> None:
        state = str(tmp_path / "state")
        first = Network(state, pool_size=3)
        await first.open()
        kept = await first.take()
        await first._refill
        # The first agent is gone without a word; the second one has the same state directory.
        second = Network(state, pool_size=1)
        try:
            await second.open(keep=[kept.name])
            await second._refill
            names = [name for name in os.listdir("/run/netns") if name.startswith(second.tag)]
            assert len(names) == 2 and kept.name in names
            fresh = await second.take()
            assert fresh.address != kept.address
            await second.give_back(kept.name)
            await second.give_back(kept.name)
        finally:
            await second.close()
        assert not [name for name in os.listdir("/run/netns") if name.startswith(second.tag)]

    asyncio.run(body())
