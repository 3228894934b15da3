"""`cadenza.runtime.spec` and `seccomp`: what is written for the OCI program, as goldens that a person can read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.runtime import seccomp
from cadenza.runtime.driver import Command, ContainerConfig, Limits, Mount
from cadenza.runtime.spec import check, exec_process, oci_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "runtime"
CONFIG = ContainerConfig(
    container_id="ta-1",
    rootfs="/data/rootfs",
    argv=("/usr/bin/python3", "-I", "/.cadenza/lib/cadenza/runner/__main__.py"),
    env={"LANG": "C.UTF-8"},
    cwd="/root",
    mounts=(
        Mount("/data/support", "/.cadenza/run"),
        Mount("/opt/lib", "/.cadenza/lib", read_only=True),
        Mount("", "/tmp", "tmpfs", ("size=64m", "mode=1777")),
    ),
    limits=Limits(125, 1125, 512, 1000),
    netns="/run/netns/cz0000n1",
)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("standard", oci_spec(CONFIG)),
        ("standard-user-namespace", oci_spec(replace(CONFIG, id_base=1_000_000, netns="", read_only_root=True))),
        ("standard-user-namespace-network", oci_spec(replace(CONFIG, id_base=1_000_000))),
        ("strong", oci_spec(CONFIG, strong=True)),
        ("build-runc", oci_spec(replace(CONFIG, privileged_build=True, netns="host"), cgroup="/cadenza/ta-1")),
        ("aarch64", oci_spec(CONFIG, machine="aarch64")),
    ],
)
def test_golden(name: str, spec: dict[str, object]) -> None:
    text = json.dumps(spec, indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("CADENZA_REWRITE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "run with CADENZA_REWRITE=1 and review the difference"


def test_a_machine_without_a_profile_gets_no_filter() -> None:
    assert seccomp.profile("riscv64") is None
    assert "seccomp" not in oci_spec(CONFIG, machine="riscv64")["linux"]


def test_no_call_is_both_allowed_and_refused() -> None:
    assert set(seccomp.ALLOWED) & set(seccomp.REFUSED) == set()
    for names in (seccomp.ALLOWED, seccomp.REFUSED):
        assert len(names) == len(set(names))
    assert set(seccomp.ALLOWED) | set(seccomp.REFUSED) >= seccomp.X86_64_ONLY
    guarded = {"clone", "clone3", "unshare", "ioctl", "socket", "personality"}
    assert guarded & set(seccomp.ALLOWED) == set()


def allowed_by(rules: list[dict[str, object]], name: str, value: int) -> bool:
    """What libseccomp says of a call whose guarded argument is ``value``, as 64 bits."""
    compare = {
        "SCMP_CMP_NE": lambda one: value != one["value"],
        "SCMP_CMP_EQ": lambda one: value == one["value"],
        "SCMP_CMP_LT": lambda one: value < one["value"],
        "SCMP_CMP_GT": lambda one: value > one["value"],
        "SCMP_CMP_MASKED_EQ": lambda one: value & one["value"] == one["valueTwo"],
    }
    return any(
        rule["action"] == "SCMP_ACT_ALLOW" and all(compare[one["op"]](one) for one in rule.get("args", []))
        for rule in rules
        if name in rule["names"]
    )


def test_what_is_guarded_does_not_pass_with_a_bit_that_the_kernel_ignores() -> None:
    """An int is the lower half of a register (CVE-2019-10063)."""
    rules = seccomp.profile("x86_64")["syscalls"]
    for high in (0, 1 << 32, 1 << 63, 0xFFFFFFFF << 32):
        assert not allowed_by(rules, "ioctl", high | seccomp.TIOCSTI)
        for number in (seccomp.AF_ALG, seccomp.AF_VSOCK):
            assert not allowed_by(rules, "socket", high | number)
        for name in ("clone", "unshare"):
            assert not allowed_by(rules, name, high | 0x10000000)
            assert allowed_by(rules, name, high)


def test_all_but_what_is_guarded_passes() -> None:
    rules = seccomp.profile("x86_64")["syscalls"]
    refused = [number for number in range(1 << 16) if not allowed_by(rules[2:], "ioctl", number)]
    assert refused == [seccomp.TIOCSTI]
    for number in (0x80045430, 0x40045431, 0xC0045432, 0x80005412, 0x40005412):
        assert allowed_by(rules, "ioctl", number), hex(number)
    assert allowed_by(rules, "ioctl", 0xFFFFFFFF80045430)  # as musl extends an int
    assert [number for number in range(64) if allowed_by(rules, "socket", number)] == list(range(38))


def test_an_added_program_has_no_more_rights_than_the_first() -> None:
    first = oci_spec(CONFIG)["process"]
    added = exec_process(first, Command(("/bin/sh",), {"TERM": "xterm"}, "/", pty=True))
    for key in ("capabilities", "noNewPrivileges", "rlimits", "user"):
        assert added[key] == first[key]
    assert added["terminal"] is True
    assert "TERM=xterm" in added["env"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"container_id": ""}, "container id"),
        ({"container_id": "a/b"}, "container id"),
        ({"argv": ("",)}, "no program"),
        ({"env": {"": "x"}}, "environment variable"),
        ({"env": {"A": "\0"}}, "environment variable"),
        ({"cwd": ""}, "working directory"),
        ({"hostname": "x" * 65}, "hostname"),
        ({"mounts": (Mount("/a", "b"),)}, "mount target"),
        ({"mounts": (Mount("/a", "/b/../../c"),)}, "mount target"),
        ({"mounts": (Mount("a", "/b"),)}, "mount source"),
        ({"limits": Limits(pids_limit=-2)}, "pids_limit"),
    ],
)
def test_impossible_configs_are_refused_with_what_to_change(change: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        check(replace(CONFIG, **change))
