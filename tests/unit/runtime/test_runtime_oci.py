"""`cadenza.runtime.oci` where the kernel or the runtime program does not do as told."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cadenza.runtime import oci
from cadenza.runtime.cgroup import Hierarchy
from cadenza.runtime.driver import Command, Exit, RuntimeFault, Stdio


class Stuck:
    """A process in uninterruptible sleep."""

    pid = 4242
    ended = False
    at_end = None

    def signal(self, signum: int) -> None:
        pass

    async def ends_within(self, limit_s: float) -> bool:
        await asyncio.sleep(min(limit_s, 0.01))
        return False


class Failing:
    """A launcher whose programs all fail. Keeps what it saw in the file that it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.modes: list[int] = []

    async def run(self, program: Any, limit_s: float) -> Exit:
        path = program.argv[program.argv.index("--process") + 1]
        self.seen.append(Path(path).read_text())
        self.modes.append(os.stat(path).st_mode & 0o777)
        return Exit(1)


def make(tmp_path: Path, launcher: Any) -> tuple[oci.OciDriver, Any]:
    driver = oci.OciDriver(oci.crun("/bin/crun"), str(tmp_path / "state"), launcher, Hierarchy("none"))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    first = {"capabilities": {}, "noNewPrivileges": True, "rlimits": [{"hard": 1024}]}
    (bundle / "config.json").write_text(json.dumps({"process": first}))
    container = driver._add("one", str(bundle))
    container.child = Stuck()  # type: ignore[assignment]
    return driver, container


def test_a_process_that_the_kernel_holds_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "KILL_LIMIT_S", 0.05)

    async def go() -> None:
        driver, _ = make(tmp_path, None)
        with pytest.raises(RuntimeFault, match="4242"):
            await asyncio.wait_for(driver.delete("one"), 5)
        assert "one" in await driver.list()  # to be tried again

    asyncio.run(go())


def test_the_environment_of_a_command_that_failed_is_not_kept(tmp_path: Path) -> None:
    async def go() -> None:
        launcher = Failing()
        driver, container = make(tmp_path, launcher)
        with pytest.raises(RuntimeFault):
            await driver.exec("one", Command(("/bin/ls",), {"TOKEN": "secret"}), Stdio())
        assert "TOKEN=secret" in launcher.seen[0] and launcher.modes == [0o600]
        assert sorted(os.listdir(container.folder)) == ["record.json", "root"]

    asyncio.run(go())
