"""Devices by CDI files: what they add to an OCI configuration. semantics.md 11.3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cadenza.base.errors import InvalidError
from cadenza.runtime import cdi
from cadenza.runtime.driver import ContainerConfig
from cadenza.runtime.spec import oci_spec

FILE = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/null"}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/zero"}]}},
        {"name": "GPU-abc", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/zero"}]}},
    ],
    "containerEdits": {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/full"}],
        "mounts": [
            {
                "hostPath": "/usr/lib/libcuda.so.1",
                "containerPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib/x86_64-linux-gnu"],
            }
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "nvidia.json").write_text(json.dumps(FILE))
    return str(tmp_path)


def made(folder: str, *names: str) -> dict[str, Any]:
    config = ContainerConfig("ta-1", "/rootfs", ("python3",), {"NVIDIA_VISIBLE_DEVICES": "all", "A": "1"})
    spec = oci_spec(config)
    edits = cdi.find(names, (folder,))
    cdi.apply(spec, edits, {path: cdi.numbers(path) for path in cdi.paths(edits)})
    return spec


def test_devices_libraries_hooks_and_variables(folder: str) -> None:
    spec = made(folder, "nvidia.com/gpu=0")
    assert spec["linux"]["devices"] == [
        {"path": "/dev/nvidiactl", "type": "c", "major": 1, "minor": 7, "fileMode": 0o666},
        {"path": "/dev/nvidia0", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
    ]
    assert spec["mounts"][-1] == {
        "destination": "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "type": "bind", "source": "/usr/lib/libcuda.so.1",
        "options": ["ro", "nosuid", "nodev", "bind"],
    }  # fmt: skip
    assert spec["hooks"]["createContainer"][0]["args"][1] == "update-ldcache"
    env = spec["process"]["env"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in env and "NVIDIA_VISIBLE_DEVICES=all" not in env and "A=1" in env


def test_two_devices_of_one_file_share_what_the_file_adds(folder: str) -> None:
    spec = made(folder, "nvidia.com/gpu=0", "nvidia.com/gpu=GPU-abc")
    assert [one["path"] for one in spec["linux"]["devices"]] == ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"]
    assert len(spec["hooks"]["createContainer"]) == 1


def test_what_is_lacking_is_said_with_the_command_that_makes_it(folder: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"device nvidia.com/gpu=7; write one by: nvidia-ctk cdi generate"):
        cdi.find(["nvidia.com/gpu=7"], (folder,))
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    with pytest.raises(InvalidError, match=r"nvidia.yaml is YAML, which is not read"):
        cdi.find(["nvidia.com/gpu=7"], (folder,))
    (tmp_path / "zz.json").write_text("{")
    with pytest.raises(InvalidError, match=r"zz.json cannot be read"):
        cdi.find(["nvidia.com/gpu=0"], (folder,))


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="is not there"):
        cdi.numbers(str(tmp_path / "nothing"))
    with pytest.raises(InvalidError, match="is no device"):
        cdi.numbers(str(tmp_path))
