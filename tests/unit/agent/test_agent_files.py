"""Files of a function, the support library, and directories of containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cadenza.agent import capacity, files, rootfs, support, variables
from cadenza.base.errors import NotFoundError
from cadenza.protocol.objects import FileEntry


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
    assert capacity.gpu_type(model) == kind


def test_image_variables_are_lowest_but_above_defaults() -> None:
    """semantics.md section 14."""
    found = variables.base({"PATH": "/opt/bin", "CADENZA_SUPPORT": "/forged"})
    assert (found["PATH"], found["HOME"], found["CADENZA_SUPPORT"]) == ("/opt/bin", "/root", variables.SUPPORT)
