"""`cadenza.runtime.cgroup` on trees of plain files that look like each of the three ways to mount cgroups."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cadenza.runtime import cgroup
from cadenza.runtime.cgroup import V1_CONTROLLERS, Cgroup, detect, v1_files, v2_files
from cadenza.runtime.driver import Limits, RuntimeFault, Stats

LIMITS = Limits(cpu_milli=250, cpu_limit_milli=1250, memory_limit_mib=64, pids_limit=99)


def v1(root: Path, unified: bool) -> None:
    for name in V1_CONTROLLERS:
        (root / name).mkdir()
        (root / name / "cgroup.procs").touch()
    if unified:
        (root / "unified").mkdir()
        (root / "unified/cgroup.procs").touch()


def v2(root: Path, controllers: str = "cpuset cpu io memory pids") -> None:
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").touch()
    (root / "cgroup.procs").touch()


def test_each_way_of_mounting_is_told_apart(tmp_path: Path) -> None:
    kinds = {}
    for name, make in {
        "v1": lambda root: v1(root, False),
        "hybrid": lambda root: v1(root, True),
        "v2": v2,
        "nothing": lambda root: None,
        "no pids": lambda root: v2(root, "cpu memory"),
    }.items():
        root = tmp_path / name
        root.mkdir()
        make(root)
        kinds[name] = detect(str(root))
    assert {name: found.kind for name, found in kinds.items()} == {
        "v1": "v1",
        "hybrid": "hybrid",
        "v2": "v2",
        "nothing": "none",
        "no pids": "none",
    }
    assert "no cgroups" in kinds["nothing"].reason
    assert "pids" in kinds["no pids"].reason


def test_limits_in_the_words_of_v1() -> None:
    assert v1_files(LIMITS) == [
        ("cpu", "cpu.shares", "256"),
        ("cpu", "cpu.cfs_quota_us", "125000"),
        ("memory", "memory.memsw.limit_in_bytes", "-1"),
        ("memory", "memory.limit_in_bytes", str(64 << 20)),
        ("memory", "memory.memsw.limit_in_bytes", str(64 << 20)),
        ("pids", "pids.max", "99"),
    ]
    assert [value for _, _, value in v1_files(Limits())] == ["1024", "-1", "-1", "-1", "-1", "max"]
    # The kernel refuses less than 2 shares and 1 ms.
    assert [value for _, _, value in v1_files(Limits(1, 1))][:2] == ["2", "1000"]


def test_limits_in_the_words_of_v2() -> None:
    assert v2_files(LIMITS) == [
        ("cpu.weight", "25"),
        ("cpu.max", "125000 100000"),
        ("memory.max", str(64 << 20)),
        ("memory.swap.max", "0"),
        ("pids.max", "99"),
    ]
    assert [value for _, value in v2_files(Limits())] == ["100", "max 100000", "max", "max", "max"]
    assert v2_files(Limits(cpu_milli=1))[0] == ("cpu.weight", "1")


def fill(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_v2_delegates_limits_counts_and_tells_of_oom(tmp_path: Path) -> None:
    v2(tmp_path)
    names = {"cpu__weight": "", "cpu__max": "", "memory__max": "", "pids__max": ""}
    fill(tmp_path / "cadenza", cgroup__subtree_control="cpu")
    fill(tmp_path / "cadenza/c1", **names)
    cgroup = Cgroup(detect(str(tmp_path)), "cadenza/c1")
    cgroup.create(LIMITS)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    # Over "cpu": the fake file is not truncated, as the kernel's would not be.
    assert (tmp_path / "cadenza/cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "cadenza/c1/memory.max").read_text() == str(64 << 20)
    fill(
        tmp_path / "cadenza/c1",
        memory__current="4096\n",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
        pids__current="3\n",
        memory__events="low 0\noom 1\noom_kill 0\n",
        cgroup__procs="17\n18\n",
    )
    assert cgroup.stats() == Stats(4096, 2.5, 3)
    assert cgroup.oom() is False
    fill(tmp_path / "cadenza/c1", memory__events="oom 1\noom_kill 2\n")
    assert cgroup.oom() is True
    assert cgroup.pids() == [17, 18]
    assert cgroup.procs_files() == (str(tmp_path / "cadenza/c1/cgroup.procs"),)


def test_a_cgroup_that_the_kernel_refuses_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    v2(tmp_path)
    (tmp_path / "cadenza").write_text("in the way")
    with pytest.raises(RuntimeFault, match="cgroup"):
        Cgroup(detect(str(tmp_path)), "cadenza/c1").create(LIMITS)


def test_without_cgroups_there_is_nothing_to_limit_or_count(tmp_path: Path) -> None:
    cgroup = Cgroup(detect(str(tmp_path)), "cadenza/c1")
    cgroup.create(LIMITS)
    assert (cgroup.stats(), cgroup.pids(), cgroup.procs_files(), cgroup.oom()) == (None, [], (), False)


def test_a_cgroup_that_stays_busy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "REMOVE_LIMIT_S", 0.02)
    v2(tmp_path)
    one = Cgroup(detect(str(tmp_path)), "cadenza/c1")
    (tmp_path / "cadenza/c1").mkdir(parents=True)
    (tmp_path / "cadenza/c1/busy").touch()
    with pytest.raises(RuntimeFault, match="cadenza/c1"):
        asyncio.run(one.erase())
    (tmp_path / "cadenza/c1/busy").unlink()
    asyncio.run(one.erase())
    assert not (tmp_path / "cadenza/c1").exists()
