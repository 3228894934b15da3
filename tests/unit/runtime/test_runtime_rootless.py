"""`cadenza.runtime.rootless` and `ids`: whose ids are taken, and how a process that is not the container's is told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.runtime import choice, ids, rootless
from cadenza.runtime.driver import RuntimeFault
from cadenza.runtime.probe import Ability, Machine, main


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["other:100000:65536", "me:165536:65536"], (165536, 65536)),
        (["1001:165536:65535"], (165536, 65535)),
        (["me:100000:1000", "me:300000:70000"], (300000, 70000)),
        (["me:100000:65534"], None),
        (["mean:100000:65536", "", "me", "me:x:y"], None),
    ],
)
def test_the_first_range_that_suffices_is_taken(lines: list[str], found: tuple[int, int] | None) -> None:
    assert rootless.subordinate(lines, ("me", "1001")) == found


def test_a_user_without_ids_is_told_the_command_that_gives_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootless, "_lines", lambda path: [])
    monkeypatch.setattr(rootless.shutil, "which", lambda name, path="": "/usr/bin/" + name)
    with pytest.raises(rootless.Unable, match="/etc/subuid gives no 65535 ids") as told:
        rootless.plan()
    assert told.value.remedy.startswith("usermod --add-subuids ")
    monkeypatch.setattr(rootless.shutil, "which", lambda name, path="": None)
    with pytest.raises(rootless.Unable, match="newuidmap and newgidmap are not installed") as told:
        rootless.plan()
    assert told.value.remedy == "apt-get install uidmap"


def test_a_number_written_before_the_process_began_is_another_process_s(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(str(os.getpid()))
    assert rootless.older(os.getpid(), str(path))
    os.utime(path, (1.0, 1.0))
    assert not rootless.older(os.getpid(), str(path))
    assert not rootless.older(os.getpid(), str(tmp_path / "none"))


def works(*names: str, rootless: bool) -> Machine:
    return Machine(
        False, {name: Ability(name in names, f"{name}.") for name in ("crun", "runc", "runsc")}, rootless=rootless
    )


def test_a_runtime_without_root_says_so_in_its_name() -> None:
    machine = works("crun", "runsc", rootless=True)
    assert choice.choose(machine, "auto") == {"standard": "crun-rootless", "strong": "runsc-rootless"}
    assert choice.choose(works("runsc", rootless=True), "auto") == {
        "standard": "runsc-rootless",
        "strong": "runsc-rootless",
    }
    assert choice.choose(works(rootless=False), "auto") == {"standard": "process"}
    assert choice.choose(machine, "process")["standard"] == "process"
    with pytest.raises(InvalidError, match="asks for the runtime runc"):
        choice.choose(machine, "runc")


def test_runtimes_with_mapped_ids_are_those_that_were_tried() -> None:
    machine = Machine(True, {"container ids": Ability(True, "", variant="crun runc")})
    assert machine.mapped == ("crun", "runc")
    assert Machine(True, {"container ids": Ability(False, "", variant="crun")}).mapped == ()
    assert Machine(True).mapped == ()


def test_two_agents_take_ranges_of_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "LOCKS", str(tmp_path))
    monkeypatch.setattr(ids, "make_range", lambda base: ids.IdRange(base, os.open(os.devnull, os.O_RDONLY)))
    monkeypatch.setattr(ids, "BLOCK_RANGES", 6)

    async def body() -> None:
        first, second = ids.IdRanges(), ids.IdRanges()
        try:
            await first.open()
            taken = [(await first.take()).base for _ in range(6)]
            assert sorted(taken) == [ids.FIRST_ID + number * ids.ID_COUNT for number in range(6)]
            with pytest.raises(RuntimeFault, match="all 6 ranges"):
                await first.take()
            assert (await second.take()).base == ids.FIRST_ID + 6 * ids.ID_COUNT
        finally:
            await first.close()
            await second.close()

    asyncio.run(body())


def test_a_range_is_used_again_after_it_was_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "LOCKS", str(tmp_path))
    monkeypatch.setattr(ids, "make_range", lambda base: ids.IdRange(base, os.open(os.devnull, os.O_RDONLY)))
    monkeypatch.setattr(ids, "BLOCK_RANGES", 1)

    async def body() -> None:
        ranges = ids.IdRanges()
        await ranges.open()
        used = await ranges.take()
        ranges.give_back(used)
        assert await ranges.take() == used
        await ranges.close()

    asyncio.run(body())


def test_the_last_block_ends_below_the_ids_that_are_taken() -> None:
    end = ids.FIRST_ID + ids.BLOCKS * ids.BLOCK_RANGES * ids.ID_COUNT
    assert end <= 0x7FFE0000, "systemd's foreign ids begin there"


def test_a_probe_that_cannot_enter_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unable() -> None:
        raise rootless.Unable("no luck", "mend me")

    monkeypatch.setattr(rootless, "plan", unable)
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "No containers without root: no luck." in told
    assert "mend me" in told


def test_inside_a_namespace_it_is_known_who_one_is_outside() -> None:
    script = "from cadenza.runtime import rootless; print(rootless.entered(), rootless.outside_uid())"
    inside = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert inside.stdout.split() == ["True", str(rootless.outside_uid())]
