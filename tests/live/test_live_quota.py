"""``ephemeral_disk``: a container's writable layer has a size of its own. semantics.md 11.2."""

# ruff: noqa: F811 (fixtures that come from another module)

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from test_live_agent_containers import NOTHING, home, packed, root, traces  # noqa: F401
from test_live_classes_runner import AnyWorld

from cadenza.base.resources import Resources
from cadenza.protocol import nodes
from cadenza.protocol.calls import Attempt
from cadenza.protocol.nodes import ContainerSpec, StopOrder
from cadenza.protocol.objects import FunctionSpec
from cadenza.runner import values
from cadenza.runtime import quota

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root"),
]

SOURCE = """
import errno, os
def f(mib):
    piece, done = bytes(1 << 20), 0
    try:
        with open("/root/large", "wb", buffering=0) as file:
            for _ in range(mib):
                done += file.write(piece)
    except OSError as error:
        return done >> 20, errno.errorcode[error.errno]
    return done >> 20, ""
"""


def spec(container_id: str, files: Any, disk_mib: int) -> ContainerSpec:
    now = time.time()
    function = FunctionSpec("f", "m", "f", files=files, resources=Resources(disk_mib=disk_mib))
    return ContainerSpec(
        container_id, "ap-1", "app", "fu-1", function, "im-1", "standard", wanted_at=now, placed_at=now
    )


async def fill(world: AnyWorld, one: ContainerSpec, mib: int) -> Any:
    world.want(one)
    await world.control.state(one.container_id, nodes.READY, 60.0)
    world.agent.deliver(one.container_id, [Attempt("in-0:1", "in-0", "fc-1", "fu-1", 0, packed(mib), None, 0, 300.0)])
    await world.control.until(lambda: world.control.given, 60.0)
    return values.unpack(world.control.given[0][1].data)


@pytest.mark.parametrize("kind", ["crun", "runsc"])
def test_writing_more_than_the_limit_fails_inside_and_leaves_the_machine_alone(
    root: str,
    home: Path,
    kind: str,
) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, kind) as world:
            one = spec("ta-live1", (world.source(SOURCE),), 64)
            before = shutil.disk_usage(home).free
            done, error = await fill(world, one, 500)
            assert error == "ENOSPC" and 60 <= done <= 72
            assert before - shutil.disk_usage(home).free < 400 << 20
            phases = world.control.containers["ta-live1"].phases
            print(f"{kind}: rootfs with a limit: {phases['rootfs'] * 1e3:.1f} ms")
            world.want(one, stops=(StopOrder("ta-live1", 5.0, True),))
            await world.control.state("ta-live1", nodes.GONE)
        assert traces(home) == NOTHING
        loops = [Path(one, "loop/backing_file") for one in Path("/sys/block").glob("loop*")]
        assert not [one for one in loops if one.exists() and str(home) in one.read_text()]

    uvloop.run(go())


def test_without_a_limit_nothing_is_made(root: str, home: Path) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, "crun") as world:
            assert await fill(world, spec("ta-live1", (world.source(SOURCE),), 0), 100) == (100, "")
            assert not (home / "containers/ta-live1/disk.img").exists()
            phases = world.control.containers["ta-live1"].phases
            print(f"rootfs without a limit: {phases['rootfs'] * 1e3:.1f} ms")

    uvloop.run(go())


def test_where_it_cannot_be_done_the_containers_log_says_so(
    root: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, "crun") as world:
            monkeypatch.setattr(quota, "unable", lambda: "there are no loop devices")
            assert await fill(world, spec("ta-live1", (world.source(SOURCE),), 64), 100) == (100, "")
            assert "ephemeral_disk=64 is not enforced on this machine: there are no loop devices" in (
                world.control.text("ta-live1", 0)
            )

    uvloop.run(go())


def test_a_plain_process_says_so(root: str, home: Path) -> None:
    async def go() -> None:
        async with AnyWorld(home, root, "process") as world:
            one = spec("ta-live1", (world.source(SOURCE.replace("/root/large", "large")),), 64)
            assert await fill(world, one, 1) == (1, "")
            assert "is not enforced" in world.control.text("ta-live1", 0)

    uvloop.run(go())


@pytest.mark.parametrize("mib", [1, 100, 20_000, 3_145_728])
def test_a_file_system_of_every_size_can_be_made(tmp_path: Path, mib: int) -> None:
    began = time.monotonic()
    path = str(tmp_path / "image")
    try:
        quota.make(path, mib)
    except OSError:
        assert mib == 3_145_728  # the machine's own file system takes no file of 3 TiB
        return
    took = time.monotonic() - began
    used = os.stat(path).st_blocks * 512
    print(f"{mib} MiB: {took * 1e3:.0f} ms, {used >> 10} KiB")
    assert used < max(4 << 20, (mib << 20) // 500)
