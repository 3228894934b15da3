"""What is refused and what is kept of calls over the socket. Semantics: sections 3 and 9."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_control_main import World, in_world, until

from cadenza.control import invocations
from cadenza.protocol.calls import GeneratorItem


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


def test_a_generator_is_not_endlessly_ahead_of_its_reader(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(invocations, "MAX_HELD_ITEMS_BYTES", 1 << 20)

    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("never")
        body = {"function_id": functions["never"], "value": {"size": 2}}
        client.begin("call.generate", body, b"go")
        await until(lambda: bool(world.node.running))
        ((container_id, (attempt,)),) = world.node.running.items()
        for number in range(9):
            world.control.items(container_id, [GeneratorItem(attempt.attempt_id, number, b"x" * 200_000)])
        while (head := (await client.next())[0])["t"] == "item":
            pass
        assert head["e"]["kind"] == "resource_exhausted"
        client.close()

    in_world(tmp_path, test)


def test_values_for_a_client_that_is_gone_are_not_held(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        client = await world.client()
        _, functions = await client.app("never")
        client.begin("call.generate", {"function_id": functions["never"], "value": {"size": 2}}, b"go")
        await until(lambda: bool(world.node.running))
        ((container_id, (attempt,)),) = world.node.running.items()
        client.close()
        await until(lambda: parts.rpc.clients == 0)
        delivered: list[str] = []
        parts.blobs.deliver = lambda blob_id, connection_id: delivered.append(blob_id)  # type: ignore[method-assign]
        value = world._put_blob(b"value")
        world.control.items(container_id, [GeneratorItem(attempt.attempt_id, 0, blob=value)])
        await until(
            lambda: parts.calls.loop.cluster.containers[container_id].attempts[attempt.attempt_id].next_item == 1
        )
        assert delivered == []

    in_world(tmp_path, test)
