"""Files of a function, the support library, and directories of containers."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cadenza.agent import capacity, files, gpus, rootfs, support, surroundings, variables
from cadenza.base.config import Config
from cadenza.base.errors import NotFoundError
from cadenza.fs.images import StepRun
from cadenza.protocol.nodes import ContainerSpec
from cadenza.protocol.objects import FileEntry, FunctionSpec
from cadenza.runtime.choice import STANDARD
from cadenza.runtime.network import HostNetwork


def entry(tmp_path: Path, path: str, content: bytes, mode: int = 0o644) -> FileEntry:
    (tmp_path / "objects").mkdir(exist_ok=True)
    digest = f"{abs(hash((path, content))):x}"
    (tmp_path / "objects" / digest).write_bytes(content)
    return FileEntry(path, digest, len(content), mode)


def test_a_layer_is_made_once_per_set_and_the_unused_go(tmp_path: Path) -> None:
    def where(digest: str) -> str:
        return str(tmp_path / "objects" / digest)

    layers = files.Layers(str(tmp_path / "layers"), where)
    one = entry(tmp_path, "/root/pkg/a.py", b"A")
    two = entry(tmp_path, "/root/run.sh", b"B", 0o755)
    path = layers.ensure([one, two])
    assert (Path(path) / "root/pkg/a.py").read_bytes() == b"A"
    assert os.stat(Path(path) / "root/run.sh").st_mode & 0o777 == 0o755
    assert layers.ensure([two, one]) == path
    other = layers.ensure([one])
    assert other != path
    (tmp_path / "layers" / "half.1-2").mkdir()
    layers.trim([other], kept=0)
    assert os.listdir(tmp_path / "layers") == [os.path.basename(other)]


def test_a_path_cannot_leave_its_layer(tmp_path: Path) -> None:
    layers = files.Layers(str(tmp_path / "layers"), lambda digest: str(tmp_path / "objects" / digest))
    path = layers.ensure([entry(tmp_path, "/../../evil", b"x")])
    assert os.listdir(path) == ["evil"]
    assert not (tmp_path.parent / "evil").exists()


def test_a_missing_content_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    layers = files.Layers(str(tmp_path / "layers"), lambda digest: None)
    with pytest.raises(NotFoundError, match=r"/root/a\.py"):
        layers.ensure([FileEntry("/root/a.py", "d" * 64, 1)])
    assert os.listdir(tmp_path / "layers") == []


def test_the_support_library_has_what_containers_need_and_no_more(tmp_path: Path) -> None:
    stale = tmp_path / "lib" / "old"
    stale.mkdir(parents=True)
    path = support.prepare(str(tmp_path))
    assert support.prepare(str(tmp_path)) == path
    assert not stale.exists()
    assert set(os.listdir(Path(path) / "cadenza")) >= {"base", "protocol", "runner", "sdk", "__init__.py"}
    assert not {"agent", "control", "storage", "cli"} & set(os.listdir(Path(path) / "cadenza"))
    code = "import cadenza.runner.values, cloudpickle; print(cadenza.runner.values.__cached__)"
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert os.path.exists(shown.stdout.strip())


def test_a_container_directory_comes_and_goes(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    paths = rootfs.Paths(str(home / "ta-abcdefghijkl0123456789"))
    paths.make("crun")
    assert rootfs.read_made(paths.home)["runtime"] == "crun"
    assert len(paths.support) < 90
    assert os.path.realpath(paths.support) == os.path.realpath(paths.run)
    short = paths.support
    paths.remove()
    assert not os.path.lexists(paths.home)
    assert not os.path.lexists(short)
    paths.remove()


def test_capacity_leaves_a_share_to_the_system(tmp_path: Path) -> None:
    found = capacity.measure(str(tmp_path))
    assert 128 <= found.memory_mib < capacity.memory_mib()
    assert found.cpu_milli == capacity.cores() * 1000 * capacity.CPU_OVERCOMMIT
    assert found.disk_mib > 0


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10"),
        ("GeForce GT 710", ""),
    ],
)
def test_gpu_models_in_the_words_of_users(model: str, kind: str) -> None:
    assert gpus.gpu_type(model) == kind


def test_image_variables_are_lowest_but_above_defaults() -> None:
    """semantics.md section 14."""
    found = variables.base({"PATH": "/opt/bin", "CADENZA_SUPPORT": "/forged"})
    assert (found["PATH"], found["HOME"], found["CADENZA_SUPPORT"]) == ("/opt/bin", "/root", variables.SUPPORT)


def test_secrets_change_nothing_that_a_container_finds_its_server_by() -> None:
    """semantics.md section 14: names that begin with MODAL_ are reserved."""
    names = ("CADENZA_SUPPORT", "CADENZA_TASK_ID", "MODAL_TASK_ID", "MODAL_ENVIRONMENT", "MODAL_IS_REMOTE", "MINE")
    spec = ContainerSpec(
        "ta-1", "ap-1", "app", "fu-1", FunctionSpec("f"), "im-1", "standard", env=dict.fromkeys(names, "forged")
    )
    found = variables.of_function(spec, "main", "no-1", "crun", 2, {})
    assert [name for name in names if found.get(name) == "forged"] == ["MINE"]
    assert "CADENZA_SUPPORT" not in found  # what the runner was started with stays


def test_an_image_cannot_change_the_library_of_others(tmp_path: Path) -> None:
    """Its Python compiles a copy. Of that only byte code is taken, for this image alone."""
    lib = support.prepare(str(tmp_path))
    before = {path: path.read_bytes() for path in Path(lib).rglob("*") if path.is_file()}
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "errors.cpython-39.pyc").write_bytes(b"secret")

    async def evil(step: StepRun) -> int:
        (bind,) = step.binds
        assert not os.path.samefile(bind.source, lib)
        inside = Path(bind.source)
        (inside / "cadenza/runner/session.py").write_text("evil")
        caches = inside / "cadenza/runner/__pycache__"
        caches.mkdir()
        (caches / "session.cpython-39.pyc").write_bytes(b"code")
        (caches / "more.cpython-39.pyc").write_bytes(b"of no source of ours")
        (caches / "session.so").write_bytes(b"evil")
        (inside / "cadenza/base/__pycache__").symlink_to(secret)
        (inside / "evil.py").write_text("evil")
        (inside / ".code-cpython-39").write_bytes(b"bundle")
        os.chmod(inside / ".code-cpython-39", 0o4755)
        return 0

    assert asyncio.run(support.compile_in_image(lib, "im-1", [], str(tmp_path), evil)) == 0
    assert {path: path.read_bytes() for path in Path(lib).rglob("*") if path.is_file()} == before
    assert support.for_image(lib, "im-2") == lib
    own = Path(support.for_image(lib, "im-1"))
    sources = {path.relative_to(lib): content for path, content in before.items() if path.suffix in (".py", ".typed")}
    found = {path.relative_to(own): path.read_bytes() for path in own.rglob("*") if path.is_file()}
    extra = {str(path): content for path, content in found.items() if path not in sources}
    assert extra == {"cadenza/runner/__pycache__/session.cpython-39.pyc": b"code", ".code-cpython-39": b"bundle"}
    assert sources.items() <= found.items()
    assert os.stat(own / ".code-cpython-39").st_mode & 0o7777 == 0o644
    assert support.prepare(str(tmp_path)) == lib and own.exists()
    support.trim(lib, ["im-2"])
    assert not own.exists() and os.path.isdir(lib)


def test_byte_code_that_is_a_link_is_not_taken(tmp_path: Path) -> None:
    lib = support.prepare(str(tmp_path))

    async def evil(step: StepRun) -> int:
        os.symlink("/etc/shadow", os.path.join(step.binds[0].source, ".code-cpython-39"))
        return 0

    with pytest.raises(OSError):
        asyncio.run(support.compile_in_image(lib, "im-1", [], str(tmp_path), evil))
    assert support.for_image(lib, "im-1") == lib


def test_a_library_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: each try to start the server would else take more of it. Nor does one that was killed meanwhile."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cadenza.agent.support.bundle.compile_all", full)
        with pytest.raises(OSError, match="space"):
            support.prepare(str(tmp_path))
    assert list((tmp_path / "lib").iterdir()) == []
    (tmp_path / "lib/0123456789abcdef.77").mkdir()
    path = support.prepare(str(tmp_path))
    assert [str(one) for one in (tmp_path / "lib").iterdir()] == [path]


@pytest.mark.parametrize(("code", "starts"), [(errno.ENOSPC, False), (errno.EACCES, True)])
def test_a_full_disk_does_not_put_containers_on_the_machines_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, starts: bool
) -> None:
    """It passes; a network that is shared would stay so until the server ends."""

    class Network:
        def __init__(self, state_dir: str) -> None:
            pass

        async def open(self) -> None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(surroundings, "Network", Network)
    monkeypatch.setattr(surroundings, "_names", lambda home, shared: {})
    machine: Any = SimpleNamespace(can=lambda name: True, mapped=(), abilities=())
    drivers: Any = {STANDARD: SimpleNamespace(name="crun")}
    around = surroundings.Surroundings(drivers, None, HostNetwork())  # type: ignore[arg-type]
    filling = surroundings._fill(around, Config(), machine, str(tmp_path))
    if starts:
        asyncio.run(filling)
        assert "share the machine's network" in around.warnings[0]
    else:
        with pytest.raises(OSError, match="space"):
            asyncio.run(filling)


def test_containers_have_every_module_that_programs_import_by_statement() -> None:
    """What lies beside the package's ``__init__.py`` is for programs; ``__main__.py`` is the command's."""
    beside = {path.name for path in Path(support.__file__).resolve().parents[1].glob("*.py")}
    assert beside - {"__main__.py"} <= set(support.PARTS)
