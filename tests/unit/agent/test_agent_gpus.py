"""Cards of the machine, by a driver's program that is a twin. semantics.md 11.3."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cadenza.agent import attachment, gpus, rootfs
from cadenza.agent.gpus import Card, Cards
from cadenza.base.errors import InvalidError, ServiceError
from cadenza.base.resources import Gpu
from cadenza.runtime import cdi
from cadenza.runtime.driver import Limits

PRINTED = """\
0, GPU-aa, NVIDIA A100-SXM4-80GB, 81920
1, GPU-bb, NVIDIA A100-PCIE, 40960
2, GPU-cc, NVIDIA H100 80GB HBM3, 81559
3, GPU-dd, NVIDIA GeForce GT 710, 2048
"""


def program(folder: Path, body: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_cards_are_asked_for_once_and_named_as_users_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, f"cat <<'END'\n{PRINTED}END")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cards, trouble = gpus.detect()
    assert trouble == ""
    assert cards == [Card(0, "GPU-aa", "A100-80GB"), Card(1, "GPU-bb", "A100-40GB"), Card(2, "GPU-cc", "H100")]
    assert Cards(cards).types == {"A100-80GB": 1, "A100-40GB": 1, "H100": 1}


def test_a_driver_that_does_not_answer_is_said_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.detect() == ([], "")
    program(tmp_path, "echo 'Failed to initialize NVML' >&2; exit 9")
    cards, trouble = gpus.detect()
    assert cards == [] and "Failed to initialize NVML" in trouble
    program(tmp_path, "exec sleep 60")
    monkeypatch.setattr(gpus, "QUERY_LIMIT_S", 0.05)
    cards, trouble = gpus.detect()
    assert cards == [] and "timed out" in trouble


def test_a_card_is_one_containers() -> None:
    cards = Cards([Card(0, "a", "H100"), Card(1, "b", "H100"), Card(2, "c", "T4")])
    assert [one.index for one in cards.take("ta-1", [Gpu("H100", 1)])] == [0]
    assert [one.index for one in cards.take("ta-2", [Gpu("H100!", 1)])] == [1]
    with pytest.raises(ServiceError, match="1 GPUs of type H100 were wanted, and 0 are free"):
        cards.take("ta-3", [Gpu("H100", 1)])
    refused = "L4:1 was wanted, and of GPUs this machine has 2 of type H100, 1 of type T4"
    with pytest.raises(InvalidError, match=refused):
        cards.take("ta-3", [Gpu("L4", 1)])
    with pytest.raises(InvalidError, match="has none"):
        Cards().take("ta-3", [Gpu("ANY", 1)])
    assert [one.index for one in cards.take("ta-3", [Gpu("ANY", 1)])] == [2]
    cards.give_back("ta-1")
    assert [one.index for one in cards.take("ta-4", [Gpu("H100", 1)])] == [0]


def test_containers_get_devices_and_processes_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [Card(0, "GPU-aa", "H100"), Card(2, "GPU-cc", "H100")]
    file = {"kind": "nvidia.com/gpu", "devices": [{"name": "0"}, {"name": "GPU-cc"}]}
    (tmp_path / "nvidia.json").write_text(json.dumps(file))
    find = cdi.find
    monkeypatch.setattr(cdi, "find", lambda names, folders=(): find(names, (str(tmp_path),)))
    names = gpus.devices(mine)
    assert names == ("nvidia.com/gpu=0", "nvidia.com/gpu=GPU-cc")
    paths = rootfs.Paths(str(tmp_path))
    config = attachment.isolated_config("ta-1", paths, "/lib", {}, Limits(), "", (), 0, names)
    assert config.gpus == names
    assert config.argv[0] == "python3" and config.cwd == "/"
    assert gpus.variables(mine) == {"NVIDIA_VISIBLE_DEVICES": "0,2", "CUDA_VISIBLE_DEVICES": "0,2"}
    hidden = {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
    assert gpus.variables([]) == hidden, "a process without gpu= sees none"
