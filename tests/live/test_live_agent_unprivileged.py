"""The agent as an ordinary user, with the process driver: it works, and says that there is no isolation."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "agent"))

from agent_fakes import Recorder, attempt, spec

from cadenza.agent.main import Agent
from cadenza.base.clock import SystemClock
from cadenza.base.config import Config
from cadenza.base.ids import IdSource
from cadenza.protocol import nodes
from cadenza.protocol.nodes import BuildOrder, Desired, StopOrder
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep
from cadenza.runner import values

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

SOURCE = b"""
import os, pathlib
def f(x):
    print("uid", os.getuid(), os.getcwd())
    return [os.getuid(), os.environ["FROM_IMAGE"], pathlib.Path("/proc/self/cgroup").exists(), x]
"""


async def live(home: str) -> dict[str, Any]:
    """One function's life under an agent of this user; what was seen."""
    control = Recorder()
    config = Config(data_dir=home + "/data", runtime_dir=home + "/run", pool_containers=0, runtime="process")
    os.makedirs(config.data_dir)
    os.makedirs(config.runtime_dir)
    agent = Agent(
        config, SystemClock(), IdSource(), control, lambda sock, one: sock.close(), lambda sock, one: sock.close()
    )
    await agent.start()
    try:
        image = ImageSpec((ImageStep("base"), ImageStep("env", env={"FROM_IMAGE": "yes"})))
        info = await agent.build(BuildOrder(image.image_id(), image), lambda line: None)
        digest = hashlib.sha256(SOURCE).hexdigest()
        control.objects[digest] = home + "/source"
        Path(home, "source").write_bytes(SOURCE)
        one = spec("ta-user1", files=(FileEntry("/root/m.py", digest, len(SOURCE)),))
        one = nodes.ContainerSpec(**{**one.__dict__, "image_id": info.image_id})
        agent.want(Desired(1, (one,)))
        ready = await control.state("ta-user1", nodes.READY)
        agent.deliver("ta-user1", [attempt(0, values.pack_bytes(((5,), {})))])
        await control.until(lambda: control.given)
        output = control.given[0][1]
        agent.want(Desired(2, (one,), (StopOrder("ta-user1", 5.0, True),)))
        gone = await control.state("ta-user1", nodes.GONE)
        return {
            "runtime": ready.runtime,
            "runtimes": agent.info().runtimes,
            "value": values.unpack(output.data),
            "reason": gone.reason,
            "log": control.text("ta-user1", 1),
        }
    finally:
        await agent.close()


@pytest.fixture
def home() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="cadenza-live-user-")
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def test_an_ordinary_user_runs_functions_in_labelled_processes(home: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, home], cwd="/", user=NOBODY, group=NOBODY, extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": home, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["runtime"] == "process"
    assert seen["runtimes"]["standard"] == "process"
    assert seen["value"] == [NOBODY, "yes", True, 5]
    assert seen["reason"] == nodes.EXITED
    assert f"uid {NOBODY}" in seen["log"]
    assert os.listdir(home + "/data/containers") == []


if __name__ == "__main__":
    print(json.dumps(asyncio.run(live(sys.argv[1]))))
