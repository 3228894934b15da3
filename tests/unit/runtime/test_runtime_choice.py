"""Which runtime gives which level, and how a runtime program's complaints are read."""

from __future__ import annotations

import pytest

from cadenza.base.errors import InvalidError
from cadenza.runtime.choice import choose
from cadenza.runtime.oci import crun, is_users_fault, last_error, runc, runsc
from cadenza.runtime.probe import Ability, Machine


def machine(*works: str) -> Machine:
    names = ("crun", "runc", "runsc")
    return Machine(True, {name: Ability(name in works, f"{name}.", f"install {name}") for name in names})


@pytest.mark.parametrize(
    ("works", "runtime", "levels"),
    [
        (("crun", "runc", "runsc"), "auto", {"standard": "crun", "strong": "runsc"}),
        (("runc",), "auto", {"standard": "runc"}),
        (("runsc",), "auto", {"standard": "runsc", "strong": "runsc"}),
        ((), "auto", {"standard": "process"}),
        (("crun", "runsc"), "process", {"standard": "process", "strong": "runsc"}),
        (("crun", "runc"), "runc", {"standard": "runc"}),
    ],
)
def test_levels(works: tuple[str, ...], runtime: str, levels: dict[str, str]) -> None:
    assert choose(machine(*works), runtime) == levels


def test_a_runtime_that_must_be_and_is_not_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidError, match=r"asks for the runtime runc\. .*install runc"):
        choose(machine("crun"), "runc")


@pytest.mark.parametrize(
    ("message", "users"),
    [
        ("executable file `nope` not found in $PATH: No such file or directory", True),
        ('runc run failed: unable to start container process: exec: "nope": executable file not found in $PATH', True),
        ("starting sandbox: creating process: failed to load /no/such: no such file or directory", True),
        ("chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory", True),
        ("open executable: Permission denied", True),
        ("cgroups in hybrid mode not supported, drop all controllers from cgroupv2", False),
        ("mount `proc` to `/proc`: Operation not permitted", False),
        ("mount `/x` to `/y`: No such file or directory", False),
    ],
)  # fmt: skip
def test_whose_fault_a_failed_start_is(message: str, users: bool) -> None:
    assert is_users_fault(message) is users


def test_the_last_complaint_of_a_log_is_the_one_that_counts() -> None:
    log = '{"level":"warning","msg":"first"}\n{"level":"error","msg":"second"}\n{"level":"info","msg":"bye"}\n'
    assert last_error(log) == "second"
    assert last_error("not json\n") == "not json"
    assert last_error("") == ""


def test_each_program_is_called_in_its_own_words() -> None:
    for one, log in ((crun("/usr/bin/crun"), "file:/a:b/log.json"), (runc("/usr/sbin/runc"), "/a:b/log.json")):
        argv = one.base("/a:b")
        assert argv[argv.index("--log") + 1] == log, "crun takes what is before a colon for the kind of log"
    assert "--cgroup-manager=disabled" in crun("/usr/bin/crun").base("/s/c1")
    assert "--cgroup-manager=disabled" not in runc("/usr/sbin/runc").base("/s/c1")
    strong = runsc("/usr/bin/runsc", "systrap")
    assert {"--platform=systrap", "--network=sandbox", "--ignore-cgroups"} <= set(
        strong.base("/s/c1", strong.network("/run/netns/x"))
    )
    assert (strong.network(""), strong.network("host")) == ("none", "host")
    for dialect in (crun("/usr/bin/crun"), runc("/usr/sbin/runc"), strong):
        argv = dialect.base("/s/c1")
        assert argv[argv.index("--root") + 1] == "/s/c1/root"
