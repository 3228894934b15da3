"""Large results of detached calls: durable before they count, and before their container's end counts."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_control_main import World, in_world, until

from cadenza.control import lane
from cadenza.protocol.calls import SUCCESS, AttemptOutput
from cadenza.protocol.nodes import CRASHED, GONE, ContainerReport, NodeReport


@pytest.mark.parametrize("whole", [False, True])
def test_a_large_result_outlives_the_end_of_its_container(tmp_path: Path, monkeypatch: Any, whole: bool) -> None:
    """semantics.md section 3.2: a result that was given is kept."""
    store = lane._store_copy

    def slowly(*args: Any) -> None:
        time.sleep(0.1)
        store(*args)

    monkeypatch.setattr(lane, "_store_copy", slowly)

    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("never")
        body = {"function_id": functions["never"], "inputs": [{"index": 0, "value": {"size": 2}}]}
        call_id = (await client.ask("call.spawn", body, b"ok"))["call_id"]
        await until(lambda: bool(world.node.running))
        ((container_id, (attempt,)),) = world.node.running.items()
        assert attempt.durable
        value = world._put_blob(b"x" * 100_000)
        world.control.outputs(container_id, [AttemptOutput(attempt.attempt_id, SUCCESS, blob=value)])
        await asyncio.sleep(0)
        del world.node.functions[container_id]
        end = ContainerReport(container_id, GONE, CRASHED, "killed", exit_code=1)
        world.control.report(NodeReport("no-1", () if whole else (end,), whole=whole, revision=99))
        output = (await client.ask("call.get", {"call_id": call_id, "wait_s": 5}))["output"]
        assert (output["status"], output["attempts"]) == (SUCCESS, 1)
        parts = world.control._parts
        assert parts is not None and len(parts.blobs.store.get(value.blob_id)) == 100_000
        await until(lambda: container_id not in parts.calls.loop.cluster.containers)
        client.close()

    in_world(tmp_path, test)
