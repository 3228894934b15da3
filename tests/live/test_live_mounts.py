"""Trees of the store as root file systems of real containers, with ids of their own and without, however they are
shown; and what is recorded of a start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cadenza.agent.contents import open_contents
from cadenza.agent.rootfs import Paths
from cadenza.base.config import load
from cadenza.base.errors import ServiceError
from cadenza.fs import ingest, kernel, tree
from cadenza.fs.abilities import FORCED, detect
from cadenza.fs.mount import Mounts
from cadenza.fs.store import Store
from cadenza.fs.trace import Recorder
from cadenza.fs.traces import decode
from cadenza.runtime import ids, oci
from cadenza.runtime.cgroup import detect as cgroups
from cadenza.runtime.driver import ContainerConfig, Exit, Stdio
from cadenza.runtime.launcher import Launcher

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes containers: needs root"),
]

RUNTIMES = ("crun", "runc", "runsc")
BIG_BYTES = 20 << 20
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
SERIES = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def libraries(program: str) -> list[str]:
    """The shared libraries that a program of this machine is linked to."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = [word for line in said.splitlines() for word in line.split()]
    return [one for one in words if one.startswith("/")]


class Stage:
    """A store with one image, of this machine's own Python, and what shows it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(str(home / "store"))
        source = home / "source"
        python = os.path.realpath(f"/usr/bin/{SERIES}")
        for path in (python, *libraries(python)):
            target = source / os.path.realpath(path)[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            there = source / path[1:]
            if not os.path.lexists(there):
                there.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(os.path.realpath(path), there)
        heavy = shutil.ignore_patterns("test", "idlelib", "lib2to3", "ensurepip", "dist-packages", "config-*")
        shutil.copytree(f"/usr/lib/{SERIES}", source / "usr/lib" / SERIES, symlinks=True, ignore=heavy)
        for name in ("proc", "dev", "sys", "tmp", "etc", "data/inner", "root"):
            (source / name).mkdir(parents=True, exist_ok=True)
        (source / "data/text").write_text("of the image\n")
        (source / "data/inner/deep").write_text("deep\n")
        (source / "data/gone").write_text("gone\n")
        with open(source / "data/big", "wb") as file:
            for number in range(BIG_BYTES >> 12):
                file.write(number.to_bytes(4, "little") * 1024)
        os.chown(source / "data/text", 33, 44)
        self.tree = ingest.ingest(str(source), self.store, delta=False)
        self.digest = self.store.put_tree(self.tree)
        shutil.rmtree(source)
        self.abilities = detect(str(home), {})


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    home = Path(tempfile.mkdtemp(prefix="stage-", dir="/var/tmp"))
    os.chmod(home, 0o711)  # a container's own root passes through
    try:
        yield Stage(home)
    finally:
        for point in kernel.below(str(home)):
            kernel.umount(point)
        shutil.rmtree(home)


@pytest.fixture(params=["erofs", "sparse", "links"])
def shown(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Mounts]:
    mounts = Mounts(stage.store, replace(stage.abilities, mode=request.param))
    yield mounts
    mounts.close()


class Container:
    """One container's directory, and its overlay."""

    def __init__(self, home: Path, mounts: Mounts, digest: bytes, base: ids.IdRange | None) -> None:
        self.ids = base
        front = home / "front"
        front.mkdir(exist_ok=True)
        os.chmod(front, 0o711)
        name = os.urandom(6).hex()
        self.paths = Paths(str(home / name), str(front / name) if base is not None else "")
        self.paths.make("crun")
        self.paths.mount(mounts.lowers([digest]), base)
        self.id = name

    def run(self, runtime: str, program: str) -> tuple[Exit, str]:
        """Run a Python program in it."""

        async def body() -> Exit:
            launcher = Launcher()
            path = shutil.which(runtime, path="/usr/bin:/usr/sbin:/usr/local/bin")
            assert path is not None
            dialect = oci.runsc(path, "ptrace") if runtime == "runsc" else getattr(oci, runtime)(path)
            driver = oci.OciDriver(dialect, self.paths.home + "/state", launcher, cgroups())
            argv = (f"/usr/bin/{SERIES}", "-c", textwrap.dedent(program))
            base = self.ids.base if self.ids is not None else 0
            config = ContainerConfig(self.id, self.paths.rootfs, argv, ENV, id_base=base)
            try:
                with open(self.paths.home + "/out", "ab") as out:
                    await driver.start(config, self.paths.bundle, Stdio(-1, out.fileno(), out.fileno()))
                    return await asyncio.wait_for(driver.wait(self.id), 60)
            finally:
                await driver.delete(self.id)
                launcher.close()

        end = asyncio.run(body())
        return end, Path(self.paths.home, "out").read_text()

    def remove(self) -> None:
        self.paths.remove()


@pytest.fixture(scope="module")
def id_range() -> Iterator[ids.IdRange]:
    found = ids.make_range(ids.FIRST_ID + (ids.BLOCKS * ids.BLOCK_RANGES + 7) * ids.ID_COUNT)
    yield found
    os.close(found.userns)


CHANGES = """
import hashlib, json, os
found = {}
found["text"] = open("/data/text").read()
found["owner"] = [os.stat("/data/text").st_uid, os.stat("/data/text").st_gid, os.stat("/").st_uid]
digest = hashlib.sha256(open("/data/big", "rb").read()).hexdigest()
found["big"] = digest
os.chmod("/data/big", 0o640)
found["mode"] = oct(os.stat("/data/big").st_mode)
found["again"] = hashlib.sha256(open("/data/big", "rb").read()).hexdigest() == digest
os.rename("/data/inner", "/data/moved")
found["moved"] = open("/data/moved/deep").read()
os.unlink("/data/gone")
open("/data/new", "w").write("new\\n")
with open("/data/text", "a") as file:
    file.write("more\\n")
found["names"] = sorted(os.listdir("/data"))
print(json.dumps(found))
"""


WAYS = [("crun", False), ("crun", True), ("runc", False), ("runc", True), ("runsc", False)]
"""The runtime, and whether containers have ids of their own; gVisor has its own inside."""


@pytest.mark.parametrize(("runtime", "mapped"), WAYS)
def test_containers_use_and_change_a_tree(
    stage: Stage, shown: Mounts, runtime: str, mapped: bool, id_range: ids.IdRange
) -> None:
    container = Container(stage.home, shown, stage.digest, id_range if mapped else None)
    try:
        end, said = container.run(runtime, CHANGES)
        assert end.code == 0, said
        found = json.loads(said)
        big = tree.find(stage.tree, b"/data/big")
        assert big is not None
        assert found["text"] == "of the image\n" and found["owner"] == [33, 44, 0]
        assert found["mode"] == "0o100640" and found["again"]
        assert found["moved"] == "deep\n"
        assert found["names"] == ["big", "moved", "new", "text"]
        if runtime == "runsc":
            return  # it writes to an upper of its own, in memory
        upper = Path(container.paths.upper, "data")
        base = id_range.base if mapped else 0
        assert (upper / "new").stat().st_uid == base
        assert (upper / "text").read_text() == "of the image\nmore\n"
        assert (upper / "text").stat().st_uid == base + 33
        assert stat.S_ISCHR((upper / "gone").lstat().st_mode)
        if shown.abilities.mode != "links":
            assert (upper / "big").stat().st_blocks < 100
            assert os.getxattr(upper / "big", "trusted.overlay.metacopy") is not None
    finally:
        container.remove()


def test_what_a_container_changed_is_a_delta_on_the_tree(stage: Stage) -> None:
    """Files of which only the attributes changed have no content in the upper; it is found in the tree below."""
    mounts = Mounts(stage.store, stage.abilities)
    container = Container(stage.home, mounts, stage.digest, None)
    try:
        end, said = container.run("crun", CHANGES)
        assert end.code == 0, said
        upper = container.paths.upper
        kernel.umount(container.paths.rootfs)
        delta = ingest.ingest(upper, stage.store, below=stage.tree)
        old, new = tree.find(stage.tree, b"/data/big"), tree.find(delta, b"/data/big")
        assert old is not None and new is not None
        assert (new.data, new.size, new.mode) == (old.data, old.size, stat.S_IFREG | 0o640)
        deep = tree.find(delta, b"/data/moved/deep")
        assert deep is not None and deep.size == 5
        flat = stage.store.put_tree(tree.merge(stage.tree, delta))
        other = Container(stage.home, mounts, flat, None)
        program = "import os; print(sorted(os.listdir('/data')), open('/data/moved/deep').read(), end='')"
        assert other.run("crun", program)[1] == "['big', 'moved', 'new', 'text'] deep\n"
        other.remove()
    finally:
        container.remove()
        mounts.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_start_opens_is_recorded_in_order(stage: Stage, runtime: str) -> None:
    mounts = Mounts(stage.store, stage.abilities)
    container = Container(stage.home, mounts, stage.digest, None)
    recorder = Recorder(container.paths.rootfs)
    try:
        recorder.start()
        assert not recorder.why
        end, said = container.run(runtime, "import json.decoder; open('/data/inner/deep'); open('/mine', 'w')")
        assert end.code == 0, said
        found = recorder.stop()
    finally:
        container.remove()
        mounts.close()
    wanted = [f"/usr/bin/{SERIES}", f"/usr/lib/{SERIES}/json/decoder.py", "/data/inner/deep"]
    of_json = [one for one in found if f"/{SERIES}/json/" in one and "decoder" in one]
    assert found[0].startswith("/usr/") and of_json, found
    assert found.index(wanted[0]) < found.index(of_json[0]) < found.index(wanted[2])
    assert "/data/text" not in found
    assert len(found) == len(set(found))
    in_image = [one for one in found if tree.find(stage.tree, os.fsencode(one)) is not None]
    assert len(in_image) >= len(found) - 2, set(found) - set(in_image)


def test_a_recorder_does_nothing_where_it_may_not(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.setresuid(65534, 65534, 65534)\n"
        "from cadenza.fs.trace import Recorder\n"
        "one = Recorder('/tmp'); one.start(); open('/etc/passwd').close()\n"
        "assert one.why, 'it may'\n"
        "assert one.stop() == []\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_that_cannot_start_leaves_no_mount(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environ = {"CADENZA_HOME": str(tmp_path), "CADENZA_PEER_ADDRESS": f"127.0.0.1:{taken.getsockname()[1]}"}
        with pytest.raises(ServiceError, match="peer_address"):
            asyncio.run(open_contents(load(environ)))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_hundred_containers_of_a_tree_share_what_was_read(stage: Stage) -> None:
    """One has read a file; the others find it in memory: no more of it is cached, however many read it."""
    mounts = Mounts(stage.store, stage.abilities)
    containers = [Container(stage.home, mounts, stage.digest, None) for _ in range(100)]

    def read(one: Container) -> None:
        assert len(Path(one.paths.rootfs, "data/big").read_bytes()) == BIG_BYTES

    def cached_bytes() -> int:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["Cached"].split()[0]) << 10

    try:
        read(containers[0])
        before = cached_bytes()
        for one in containers[1:]:
            read(one)
        assert cached_bytes() - before < 20 * BIG_BYTES
    finally:
        for one in containers:
            one.remove()
        mounts.close()


INSIDE = """
import ctypes, os, sys
assert ctypes.CDLL(None).unshare(0x10020000) == 0
print("entered", flush=True)
sys.stdin.read(1)
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "--basetemp", sys.argv[2]]))
"""


def test_without_the_machines_root_all_works_with_attributes_of_users() -> None:
    """The same suite in a user namespace, whose root is nobody: sparse files over data layers, and hard links."""
    base = ids.FIRST_ID + (ids.BLOCKS * ids.BLOCK_RANGES + 9) * ids.ID_COUNT
    top = Path(tempfile.mkdtemp(prefix="rootless-", dir="/var/tmp"))
    os.chown(top, base, base)
    suite = Path(__file__).parents[1] / "contract/test_contract_mounts.py"
    inside = subprocess.Popen(
        [sys.executable, "-c", INSIDE, str(suite), str(top / "tests")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert inside.stdout is not None
    try:
        assert inside.stdout.readline() == "entered\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{inside.pid}/{name}").write_text(f"0 {base} {ids.ID_COUNT}\n")
        said, _ = inside.communicate(".", timeout=120)
    finally:
        inside.kill()
        inside.wait()
        shutil.rmtree(top)
    assert inside.returncode == 0, said
    assert said.startswith("........"), said


PROGRAM = """
import cadenza

app = cadenza.App("reads")

@app.function()
def look():
    import json.tool
    return sorted(one.split()[0] for one in open("/proc/self/mountinfo").read().splitlines())

@app.local_entrypoint()
def main():
    print("FOUND", len(look.remote()))
"""


@pytest.mark.parametrize("mode", ["", "sparse", "links"])
def test_functions_run_in_every_mode_and_their_starts_are_recorded(make_home: Any, mode: str) -> None:
    home = make_home(**({FORCED: mode} if mode else {}))
    program = home.program("reads.py", PROGRAM)
    for _ in range(2):
        done = home.cadenza("run", program, timeout=240)
        assert done.returncode == 0 and "FOUND" in done.stdout, done.stdout + done.stderr + home.server_log()
    records = list((home.path / "data/store/traces").iterdir())
    assert len(records) == 1
    starts, paths = decode(records[0].read_bytes())
    assert starts >= 1 and any(one.endswith("/encodings/__init__.py") or "encodings" in one for one in paths), paths
    done = home.cadenza("down", "--force")
    assert kernel.below(str(home.path)) == []


def test_a_store_in_memory_is_shown_by_what_works_there() -> None:
    """EROFS images on tmpfs cannot be mounted from the file: the trial is made where the store is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, contextlib.closing(Store(folder + "/store")) as store:
        with store.draft() as draft:
            draft.write(b"content")
            data, size = draft.commit()
        root = tree.put(tree.directory(), b"/f", tree.Node(0o100644, size=size, data=data))
        mounts = Mounts(store, detect(store.home))
        try:
            assert os.stat(mounts.show(store.put_tree(root)) + "/f").st_size == size
        finally:
            mounts.close()
