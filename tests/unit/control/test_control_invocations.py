"""What is refused and what is kept of calls over the socket. Semantics: sections 3 and 9."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_control_main import World, in_world


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": 2**63, "value": {}},
        {"index": 2**53 + 1, "value": {}},
        {"index": 0, "value": {"blob": {"blob_id": "bl-1", "size": 2**63}}},
        {"index": 0, "value": {"blob": {"blob_id": "bl-1", "size": -1}}},
    ],
)
def test_numbers_that_no_database_keeps_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo", "never")
        number = client.begin("call.map", {"function_id": functions["never"]})
        await client.next()
        client.send({"t": "item", "id": number, "b": {"inputs": [wrong]}})
        assert (await client.next())[0]["e"]["kind"] == "invalid"
        body = {"function_id": functions["never"], "inputs": [wrong]}
        assert (await client.ask("call.spawn", body))["kind"] == "invalid"
        body = {"function_id": functions["echo"], "inputs": [{"index": 0, "value": {"size": 2}}]}
        call_id = (await client.ask("call.spawn", body, b"ok"))["call_id"]
        assert (await client.ask("call.get", {"call_id": call_id, "index": 2**64}))["kind"] == "invalid"
        assert (await client.ask("call.get", {"call_id": call_id, "wait_s": 5}))["output"]["status"] == "SUCCESS"
        client.close()

    in_world(tmp_path, test)
