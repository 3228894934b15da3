"""A container's directory: what its root directory is like; and what a step of a build gives back however it ends."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cadenza.agent import rootfs, steps
from cadenza.base.errors import ServiceError
from cadenza.base.resources import Gpu, Resources
from cadenza.fs.mount import Lowers
from cadenza.fs.step import StepRun
from cadenza.runtime.ids import IdRange


@pytest.mark.parametrize("mode", [0o700, 0o1777, 0o555, 0o2755])
def test_the_root_directory_is_the_image_s(tmp_path: Path, mode: int) -> None:
    for name in ("upper", "function", "image"):
        (tmp_path / name).mkdir()
    (tmp_path / "image").chmod(mode)
    ids = IdRange.__new__(IdRange)
    object.__setattr__(ids, "base", os.geteuid())
    rootfs._dress(str(tmp_path / "upper"), str(tmp_path / "image"), ids if os.geteuid() else None)
    info = os.stat(tmp_path / "upper")
    assert stat.S_IMODE(info.st_mode) == mode and info.st_uid == os.stat(tmp_path / "image").st_uid


class Fake:
    """Cards, ids and a driver; notes what was taken and given back."""

    name = "crun"

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.has: set[str] = set()
        self.ranges = self

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise ServiceError(f"{what} fails")

    def front(self, cell_id: str) -> str:
        return ""

    async def take_ids(self) -> Any:
        self._do("ids")
        return None

    def take(self, *given: Any) -> Any:
        if not given:
            return self.take_ids()
        self._do("cards")
        self.has.add("cards")
        return []

    def give_back(self, what: Any) -> None:
        self.has.discard("cards")

    async def delete(self, cell_id: str) -> None:
        self._do("delete")


@pytest.mark.parametrize("fails", ["ids", "cards", "delete"])
def test_a_step_gives_back_its_cards_and_its_directory_whatever_fails(tmp_path: Path, fails: str) -> None:
    fake: Any = Fake(fails)
    run = StepRun(
        "im-1", Lowers(("/nowhere",)), str(tmp_path / "upper"), str(tmp_path / "work"), ("true",), {}, "/", print,
        resources=Resources(gpus=(Gpu("any"),)),
    )  # fmt: skip
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((ServiceError, OSError)):
        asyncio.run(steps.run_step(run, "co-1", steps.Means(fake, str(tmp_path), fake, fake)))
    assert not fake.has and os.listdir(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == open_before
