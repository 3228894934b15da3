"""app.explain, call.graph and function.scale over the socket, with a node in memory. Semantics: 11.1 and 31."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import FullDisk
from test_control_main import World, in_world, until


def test_why_inputs_wait_and_containers_are_there(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id, functions = await client.app("never", "echo")
        name = functions["never"]
        await client.ask("function.scale", {"function_id": name, "patch": {"max_containers": 1}})
        inputs = [{"index": index, "value": {"size": 1}} for index in range(3)]
        call = await client.ask("call.spawn", {"function_id": name, "inputs": inputs, "kind": "spawn_map"}, b"abc")
        await until(lambda: bool(world.node.running))
        whole = await client.ask("app.explain", {"app": "demo"})
        assert whole["app_id"] == app_id
        echo, never = whole["functions"]
        assert (echo["name"], echo["sentence"]) == ("echo", "nothing waits or runs")
        assert (never["waiting"], never["running"]) == (2, 1)
        assert {one["why"] for one in never["inputs"]} == {
            "the one container that it may have is busy (max_containers is 1)"
        }
        (container,) = never["containers"]
        assert container["running"] == 1 and container["why"]
        assert {one["what"] for one in never["decisions"]} == {"start", "wait"}
        running, waiting = call["input_ids"][0], call["input_ids"][2]
        (one,) = (await client.ask("app.explain", {"thing": running}))["functions"]
        assert [each["why"] for each in one["inputs"]] == [f"it runs in {container['container_id']}"]
        (one,) = (await client.ask("app.explain", {"thing": waiting}))["functions"]
        assert [each["input_id"] for each in one["inputs"]] == [waiting]
        parts = world.control._parts
        assert parts is not None
        queued = parts.calls.loop.cluster.functions[name].ready
        kept = list(queued)
        queued.clear()  # as if it waited in the table
        (one,) = (await client.ask("app.explain", {"thing": waiting}))["functions"]
        assert one["function_id"] == name
        queued.extend(kept)
        for thing in (call["call_id"], container["container_id"], name):
            (one,) = (await client.ask("app.explain", {"app": "demo", "thing": thing}))["functions"]
            assert one["function_id"] == name
        assert (await client.ask("app.explain", {"thing": "in-nothing"}))["kind"] == "not_found"
        assert (await client.ask("app.explain", {"app": "none"}))["kind"] == "not_found"

    in_world(tmp_path, test)


def test_limits_at_run_time_outlive_a_restart_and_not_a_change(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id, functions = await client.app("echo", detach=True)
        name = functions["echo"]
        patch = {"max_containers": 3, "scaledown_window_s": 20.0}
        await client.ask("function.scale", {"function_id": name, "patch": patch, "unset": ["buffer_containers"]})
        refused = await client.ask("function.scale", {"function_id": name, "patch": {"min_containers": 4}})
        assert refused["kind"] == "invalid" and "min_containers 4 is more than max_containers 3" in refused["message"]
        client.close()
        await world.control.close()
        await world.start()
        client = await world.client()
        found = await client.ask("function.settings", {"function_id": name})
        assert (found["max_containers"], found["scaledown_window_s"]) == (3, 20.0)
        spec = {"name": "echo", "module": "m", "qualname": "echo", "max_containers": 5}
        await client.ask("app.publish", {"app_id": app_id, "functions": [spec]})
        found = await client.ask("function.settings", {"function_id": name})
        assert (found["max_containers"], found["scaledown_window_s"]) == (5, 60.0)
        parts = world.control._parts
        assert parts is not None
        for _ in range(100):
            if not await parts.db.fetch("limits_all"):
                break
            await asyncio.sleep(0.01)
        assert await parts.db.fetch("limits_all") == []
        assert (await client.ask("function.settings", {"function_id": "fu-none"}))["kind"] == "not_found"

    in_world(tmp_path, test)


def test_limits_that_cannot_be_kept_are_not_in_force(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id, functions = await client.app("echo")
        name = functions["echo"]
        await client.ask("function.scale", {"function_id": name, "patch": {"max_containers": 3}})
        parts = world.control._parts
        assert parts is not None
        parts.scaling._db = FullDisk(parts.db)  # type: ignore[assignment]
        refused = await client.ask("function.scale", {"function_id": name, "patch": {"max_containers": 7}})
        assert refused["kind"] == "resource_exhausted"
        assert (await client.ask("function.settings", {"function_id": name}))["max_containers"] == 3
        parts.scaling._db = parts.db
        await client.ask("app.stop", {"app": app_id})
        await until(lambda: name not in parts.calls.loop.cluster.functions)
        await asyncio.sleep(0)
        await parts.db.transaction(lambda transaction: None)
        assert await parts.db.fetch("limits_all") == []  # nobody looks for it again

    in_world(tmp_path, test)


def test_a_call_s_graph(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo", "never", "fail")
        spawned = await client.ask(
            "call.spawn",
            {"function_id": functions["echo"], "inputs": [{"index": 0, "value": {}}, {"index": 1, "value": {}}]},
        )
        root, (first, second) = spawned["call_id"], spawned["input_ids"]
        await client.ask("call.get", {"call_id": root, "index": 1, "wait_s": 5})
        await client.ask(
            "call.run", {"function_id": functions["fail"], "value": {}, "parent_input_id": first, "method": "m"}
        )
        child = await client.ask(
            "call.spawn",
            {"function_id": functions["never"], "inputs": [{"index": 0, "value": {}}], "parent_input_id": second},
        )
        found = (await client.ask("call.graph", {"call_id": root}))["inputs"]
        told = [(one["function_name"], one["status"], one.get("parent_input_id", "")) for one in found]
        assert told == [
            ("echo", "SUCCESS", ""), ("echo", "SUCCESS", ""), ("fail", "FAILURE", first), ("never", "PENDING", second),
        ]  # fmt: skip
        assert found[0]["input_id"] == first and all(one["container_id"] for one in found[:3])
        (one,) = (await client.ask("call.graph", {"call_id": child["call_id"]}))["inputs"]
        assert one["input_id"] == child["input_ids"][0]
        assert (await client.ask("call.graph", {"call_id": "fc-none"}))["kind"] == "not_found"

    in_world(tmp_path, test)
