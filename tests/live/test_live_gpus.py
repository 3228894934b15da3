"""Cards for containers, with a driver's program and a CDI file that stand in for a card. semantics.md 11.3."""

# ruff: noqa: F811 (fixtures that come from another module)

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from test_live_agent_containers import home, packed, root  # noqa: F401
from test_live_classes_runner import AnyWorld

from cadenza.agent.identities import Identities
from cadenza.base.resources import Gpu
from cadenza.protocol import nodes
from cadenza.protocol.calls import Attempt
from cadenza.protocol.nodes import ContainerSpec
from cadenza.protocol.objects import FunctionSpec
from cadenza.runner import values
from cadenza.runtime import cdi

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices in containers: needs root"),
]

SOURCE = """
import os
def f():
    found = {one: os.environ.get(one) for one in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        path = "/dev/" + name
        found[name] = os.path.exists(path)
    if found["nvidia1"]:
        with open("/dev/nvidia1", "rb") as file:
            found["read"] = file.read(4)
    if os.path.exists("/usr/lib/libcuda.so.1"):
        found["library"] = open("/usr/lib/libcuda.so.1").read()
    return found
"""
PRINTED = "0, GPU-aa, NVIDIA T4, 15360\\n1, GPU-bb, NVIDIA H100 80GB HBM3, 81559\\n"


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards: /dev/zero is the second one's device."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{PRINTED}'\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (folder / "libcuda").write_text("a library")
    (folder / "libcuda").chmod(0o644)
    (folder / "nvidia.json").write_text(
        json.dumps(
            {
                "kind": "nvidia.com/gpu",
                "devices": [
                    {
                        "name": "0",
                        "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/null"}]},
                    },
                    {
                        "name": "1",
                        "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/zero"}]},
                    },
                ],
                "containerEdits": {
                    "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                    "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/full"}],
                    "mounts": [{"hostPath": str(folder / "libcuda"), "containerPath": "/usr/lib/libcuda.so.1"}],
                },
            }
        )
    )
    find = cdi.find
    monkeypatch.setattr(cdi, "find", lambda names, folders=(): find(names, (str(folder),)))


async def look(world: AnyWorld, container_id: str, gpus: tuple[Gpu, ...]) -> Any:
    now = time.time()
    function = FunctionSpec("f", "m", "f", files=(world.source(SOURCE),))
    one = ContainerSpec(
        container_id, "ap-1", "app", "fu-1", function, "im-1", "standard", gpus=gpus, wanted_at=now, placed_at=now
    )
    world.want(one)
    await world.control.state(container_id, nodes.READY, 60.0)
    world.agent.deliver(container_id, [Attempt("in-0:1", "in-0", "fc-1", "fu-1", 0, packed(), None, 0, 300.0)])
    await world.control.until(lambda: world.control.given, 60.0)
    return values.unpack(world.control.given.pop()[1].data)


@pytest.mark.parametrize("own_ids", [False, True])
def test_a_container_sees_its_own_card_and_no_other(
    root: str, home: Path, monkeypatch: pytest.MonkeyPatch, own_ids: bool
) -> None:
    pretend(home, monkeypatch)

    async def go() -> None:
        world = AnyWorld(home, root, "crun")
        if own_ids:
            around = world.agent._given
            assert around is not None
            around.identities = Identities(os.path.join(str(home), "runtime"))
            await around.identities.open()
        async with world:
            assert world.agent.info().gpus == {"T4": 1, "H100": 1}
            found = await look(world, "ta-live1", (Gpu("H100", 1),))
            assert found == {
                "NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": None, "nvidia0": False, "nvidia1": True,
                "nvidiactl": True, "read": b"\0\0\0\0", "library": "a library",
            }  # fmt: skip
            world.want()
            while world.agent._cells:
                await asyncio.sleep(0.01)
            assert (await look(world, "ta-live2", (Gpu("H100", 1),)))["nvidia1"]  # it was given back

    uvloop.run(go())


def test_a_container_without_cards_sees_none(root: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(home, monkeypatch)

    async def go() -> None:
        async with AnyWorld(home, root, "crun") as world:
            found = await look(world, "ta-live1", ())
            assert not any(found[one] for one in ("nvidia0", "nvidia1", "nvidiactl"))

    uvloop.run(go())


def test_a_plain_process_is_told_its_card(root: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(home, monkeypatch)

    async def go() -> None:
        async with AnyWorld(home, root, "process") as world:
            found = await look(world, "ta-live1", (Gpu("H100", 1),))
            assert (found["NVIDIA_VISIBLE_DEVICES"], found["CUDA_VISIBLE_DEVICES"]) == ("1", "1")

    uvloop.run(go())


def test_a_machine_without_a_device_file_says_how_to_write_one(
    root: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(home, monkeypatch)
    (home / "nvidia.json").unlink()

    async def go() -> None:
        async with AnyWorld(home, root, "crun") as world:
            now = time.time()
            function = FunctionSpec("f", "m", "f", files=(world.source(SOURCE),))
            one = ContainerSpec(
                "ta-live1", "ap-1", "app", "fu-1", function, "im-1", "standard", gpus=(Gpu("T4", 1),),
                wanted_at=now, placed_at=now,
            )  # fmt: skip
            world.want(one)
            gone = await world.control.state("ta-live1", nodes.GONE)
            assert gone.reason == nodes.RUNTIME_FAILED
            assert "nvidia-ctk cdi generate --format=json" in gone.message

    uvloop.run(go())
