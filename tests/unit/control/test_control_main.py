"""The whole control plane over its socket, with a node in memory: calls, apps, restart, idleness."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Awaitable, Callable

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import Client, FakeNode

from cadenza.base.clock import ManualClock
from cadenza.base.config import Config
from cadenza.base.ids import IdSource
from cadenza.control import main
from cadenza.control.main import ControlPlane
from cadenza.protocol.calls import BlobRef
from cadenza.protocol.frame import encode
from cadenza.protocol.nodes import NodeReport
from cadenza.protocol.objects import FileEntry, ImageSpec, ImageStep


class World:
    """A started control plane below a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.config = replace(
            Config(),
            data_dir=str(root / "data"),
            state_dir=str(root / "state"),
            runtime_dir=str(root / "run"),
            config_dir=str(root / "config"),
        )
        self.clock = ManualClock()
        self.labels: dict[str, str] = {}

    async def start(self) -> None:
        self.node = FakeNode()
        self.node.labels = self.labels
        self.control = ControlPlane(self.config, self.clock, IdSource())
        self.node.control = self.control
        self.node.put_blob = self._put_blob
        self.control.report(NodeReport("no-1", (), whole=True))
        await self.control.start(self.node)

    def _put_blob(self, data: bytes) -> BlobRef:
        """As a runner would, over its lane."""
        parts = self.control._parts
        assert parts is not None
        fd = os.memfd_create("value")
        os.write(fd, data)
        blob_id = IdSource().new("blob")
        parts.blobs.keep("runner", blob_id, len(data), fd)
        return BlobRef(blob_id, len(data))

    async def client(self) -> Client:
        return await Client.connect(self.config.socket_path)


def in_world(tmp_path: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.start()
        try:
            await test(world)
        finally:
            await world.control.close()

    uvloop.run(main())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_a_call_and_its_failure(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo", "fail")
        body = await client.ask("call.run", {"function_id": functions["echo"], "value": {"size": 5}}, b"hello")
        assert body["output"]["status"] == "SUCCESS"
        assert client.payload == b"hello"
        body = await client.ask("call.run", {"function_id": functions["fail"], "value": {}})
        assert body["output"]["status"] == "FAILURE"
        assert body["output"]["error"] == "ValueError: no"
        assert client.payload == b"packed"
        assert (await client.ask("call.run", {"function_id": "fu-none", "value": {}}))["kind"] == "not_found"
        assert (await client.ask("call.run", {"function_id": functions["echo"], "value": {"size": 9}}, b"x"))[
            "kind"
        ] == "invalid"
        client.close()

    in_world(tmp_path, test)


def test_a_map_of_many_inputs(tmp_path: Path) -> None:
    """semantics.md section 3.3: inputs stream in chunks, outputs come as they finish."""

    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo")
        number = client.begin("call.map", {"function_id": functions["echo"]})
        head, _ = await client.next()
        assert head["b"]["opened"]["max_outstanding"] == 1000
        total = 2000
        for start in range(0, total, 50):
            values = [b"%d" % one for one in range(start, start + 50)]
            inputs = [{"index": start + k, "value": {"size": len(one)}} for k, one in enumerate(values)]
            client.send({"t": "item", "id": number, "b": {"inputs": inputs}}, b"".join(values))
        client.send({"t": "item", "id": number, "b": {"total": total}})
        client.send({"t": "end", "id": number})
        found: dict[int, bytes] = {}
        while True:
            head, payload = await client.next()
            if head["t"] == "end":
                break
            if head["t"] == "credit":
                continue
            client.send({"t": "credit", "id": number, "n": len(payload) + 256})
            at = 0
            for one in head["b"]["outputs"]:
                size = one["value"]["size"]
                found[one["index"]] = payload[at : at + size]
                at += size
        assert found == {one: b"%d" % one for one in range(total)}
        client.close()

    in_world(tmp_path, test)


def test_an_empty_map_and_bad_maps(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo", "never")

        async def run(function: str, *items: dict[str, Any]) -> dict[str, Any]:
            number = client.begin("call.map", {"function_id": functions[function]})
            await client.next()
            for one in items:
                client.send({"t": "item", "id": number, "b": one})
            client.send({"t": "end", "id": number})
            while (head := (await client.next())[0])["t"] == "item":
                pass
            return head

        assert (await run("echo", {"total": 0}))["t"] == "end"
        assert (await run("echo"))["e"]["kind"] == "invalid"
        one = {"index": 0, "value": {}}
        assert (await run("never", {"inputs": [one]}, {"total": 5}))["e"]["kind"] == "invalid"
        assert (await run("never", {"inputs": [one, one]}))["e"]["kind"] == "invalid"
        assert (await run("never", {"inputs": [{"index": -1, "value": {}}]}))["e"]["kind"] == "invalid"
        client.close()

    in_world(tmp_path, test)


def test_a_map_waits_where_its_function_is_full(tmp_path: Path) -> None:
    """semantics.md section 3.4: 2,000 inputs may wait; a map is held back, and goes on when there is room."""

    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("never")
        parts = world.control._parts
        assert parts is not None

        async def begin() -> tuple[int, str]:
            number = client.begin("call.map", {"function_id": functions["never"]})
            head, _ = await client.next()
            for start in range(0, 1000, 50):
                inputs = [{"index": start + one, "value": {}} for one in range(50)]
                client.send({"t": "item", "id": number, "b": {"inputs": inputs}})
            client.send({"t": "item", "id": number, "b": {"total": 1000}})
            return number, head["b"]["opened"]["call_id"]

        maps = [await begin() for _ in range(3)]
        states = [parts.calls._attached[call_id].record for _, call_id in maps]
        await until(lambda: states[1].inputs == 1000 and 0 < states[2].inputs < 1000)
        client.send({"t": "cancel", "id": maps[0][0]})
        assert (await client.next())[0]["e"]["kind"] == "cancelled"
        await until(lambda: states[2].inputs == 1000)
        client.close()

    in_world(tmp_path, test)


def test_a_generator_gives_items_and_then_its_end(tmp_path: Path) -> None:
    """semantics.md section 6: items in order, and the end says how many there were."""

    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("count")
        body = {"function_id": functions["count"], "value": {"size": 3}}
        items, end = await client.stream("call.generate", body, b"700")
        assert end["t"] == "end"
        data = b""
        sizes = []
        for head, payload in items:
            data += payload
            sizes += [one["size"] for one in head["values"]]
        assert len(sizes) == 700
        assert data == b"".join(b"%d" % one for one in range(700))
        assert items[-1][0]["output"]["items"] == 700
        client.close()

    in_world(tmp_path, test)


def test_a_spawned_call_survives_a_restart(tmp_path: Path) -> None:
    """semantics.md section 3.2: the work is detached from the caller, its result is kept."""

    async def main() -> None:
        world = World(tmp_path)
        await world.start()
        client = await world.client()
        _, functions = await client.app("echo", "large", detach=True)
        value = {"index": 0, "value": {"size": 4}}
        small = (await client.ask("call.spawn", {"function_id": functions["echo"], "inputs": [value]}, b"kept"))[
            "call_id"
        ]
        large = (await client.ask("call.spawn", {"function_id": functions["large"], "inputs": [value]}, b"size"))[
            "call_id"
        ]
        output = (await client.ask("call.get", {"call_id": large, "wait_s": 10}))["output"]
        assert output["status"] == "SUCCESS"
        parts = world.control._parts
        assert parts is not None
        assert parts.blobs.store.get(output["value"]["blob"]["blob_id"]) == b"size" * 1000
        client.close()
        await world.control.close()

        await world.start()
        client = await world.client()
        assert (await client.ask("call.get", {"call_id": small, "wait_s": 10}))["output"]["status"] == "SUCCESS"
        assert client.payload == b"kept"
        assert (await client.ask("call.outputs", {"call_id": large}))["total"] == 1
        assert (await client.ask("call.info", {"call_id": large}))["kind"] == "spawn"
        found = await client.ask("function.find", {"app": "demo", "name": "echo"})
        assert found["function_id"] == functions["echo"]
        body = {"function_id": functions["echo"], "value": {"size": 2}}
        assert (await client.ask("call.run", body, b"go"))["output"]["status"] == "SUCCESS"
        client.close()
        await world.control.close()

    uvloop.run(main())


def test_an_ephemeral_app_ends_with_its_client(tmp_path: Path) -> None:
    """semantics.md section 23."""

    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        first, other = await world.client(), await world.client()
        app_id, _ = await first.app("echo")
        first.close()
        await until(lambda: parts.rpc.clients == 1)
        world.clock.advance(29)
        await parts.apps.tick()
        assert (await other.ask("app.get", {"app": app_id}))["state"] == "ephemeral"
        world.clock.advance(2)
        await parts.apps.tick()
        found = await other.ask("app.get", {"app": "demo"})
        assert (found["state"], found["stop_reason"]) == ("stopped", "its client is gone")
        other.close()

    in_world(tmp_path, test)


def test_a_client_that_comes_back_keeps_its_app(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        first = await world.client()
        app_id, _ = await first.app("echo")
        first.close()
        await until(lambda: parts.rpc.clients == 0)
        world.clock.advance(20)
        second = await world.client()
        await second.ask("app.heartbeat", {"app": app_id})
        world.clock.advance(200)
        await parts.apps.tick()
        assert (await second.ask("app.get", {"app": app_id}))["state"] == "ephemeral"
        world.clock.advance(101)
        await parts.apps.tick()
        assert "heartbeat" in (await second.ask("app.get", {"app": app_id}))["stop_reason"]
        assert (await second.ask("app.heartbeat", {"app": app_id}))["kind"] == "conflict"
        second.close()

    in_world(tmp_path, test)


def test_a_detached_app_ends_when_its_work_is_done(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        client = await world.client()
        app_id, functions = await client.app("never", detach=True)
        value = {"index": 0, "value": {}}
        call = (await client.ask("call.spawn", {"function_id": functions["never"], "inputs": [value]}))["call_id"]
        await client.ask("app.finish", {"app_id": app_id})
        for _ in range(3):
            await parts.apps.tick()
        assert (await client.ask("app.get", {"app": app_id}))["state"] == "detached"
        await client.ask("call.cancel", {"call_id": call})
        await until(lambda: not parts.calls.app_busy(app_id))
        await parts.apps.tick()
        await parts.apps.tick()
        assert (await client.ask("app.get", {"app": app_id}))["stop_reason"] == "all work is done"
        client.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timeout_s": 0}, "timeout"),
        ({"timeout_s": 2e9}, "31 years"),
        ({"name": ""}, "name"),
        ({"module": ""}, "module"),
        ({"min_containers": 3, "max_containers": 2}, "max_containers"),
        ({"isolation": "none"}, "isolation"),
        ({"is_generator": True, "retries": {"max_retries": 1}}, "generator"),
        ({"resources": {"cpu_milli": 64_000}}, "64 cores"),
    ],
)
def test_what_can_never_run_is_refused_at_once(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """semantics.md sections 7, 8 and 34."""

    async def test(world: World) -> None:
        client = await world.client()
        app_id = (await client.ask("app.create", {}))["app_id"]
        spec = {"name": "f", "module": "m", "qualname": "f", **change}
        found = await client.ask("app.publish", {"app_id": app_id, "functions": [spec]})
        assert found["kind"] == "invalid"
        assert words in found["message"].lower()
        client.close()

    in_world(tmp_path, test)


def test_a_timeout_may_be_longer_than_a_day(tmp_path: Path) -> None:
    """Modal's upper cap of section 8 is not ours."""

    async def test(world: World) -> None:
        client = await world.client()
        app_id = (await client.ask("app.create", {}))["app_id"]
        spec = {"name": "f", "module": "m", "qualname": "f", "timeout_s": 30 * 86_400.0}
        found = await client.ask("app.publish", {"app_id": app_id, "functions": [spec]})
        assert found.get("kind") is None, found
        client.close()

    in_world(tmp_path, test)


def test_a_refused_function_leaves_none_callable(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id = (await client.ask("app.create", {}))["app_id"]
        good = {"name": "echo", "module": "m", "qualname": "echo"}
        bad = {**good, "name": "large", "resources": {"cpu_milli": 64_000}}
        found = await client.ask("app.publish", {"app_id": app_id, "functions": [good, bad]})
        assert found["kind"] == "invalid"
        parts = world.control._parts
        assert parts is not None
        assert parts.apps.function_ids == []
        assert not [one for one in parts.calls.loop.cluster.functions.values() if not one.removed]
        assert await parts.db.fetch("function_all") == []
        client.close()

    in_world(tmp_path, test)


def test_two_who_publish_at_once_get_the_same_functions(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        parts = world.control._parts
        assert parts is not None
        loops_thread = threading.get_ident()
        looked: list[bool] = []

        def missing(digests: Any) -> list[str]:
            looked.append(threading.get_ident() != loops_thread)
            return []

        parts.functions._missing = missing
        app_id = (await client.ask("app.create", {}))["app_id"]
        body = {"app_id": app_id, "functions": [{"name": "echo", "module": "m", "qualname": "echo"}]}
        for _ in range(2):
            client.begin("app.publish", body)
        first, second = [(await client.next())[0]["b"]["functions"] for _ in range(2)]
        assert first == second == parts.apps.names(app_id)
        assert len(await parts.db.fetch("function_all")) == 1
        assert looked == [True, True], "many files are looked for beside the event loop"
        client.close()

    in_world(tmp_path, test)


def test_secrets_of_an_ended_app_are_not_on_disk(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        app_id = (await client.ask("app.create", {}))["app_id"]
        spec = {
            "name": "f",
            "module": "m",
            "qualname": "echo",
            "secrets": [{"values": {"KEY": "S3CRET-VALUE"}, "keys": ["KEY"]}],
        }
        await client.ask("app.publish", {"app_id": app_id, "functions": [spec]})
        await client.ask("app.finish", {"app_id": app_id})
        client.close()
        await world.control.close()
        await world.start()
        assert (await (await world.client()).ask("app.get", {"app": app_id}))["state"] == "stopped"

    in_world(tmp_path, test)
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert any(one.name == "cadenza.db" for one in files)
    assert [one for one in files if b"S3CRET-VALUE" in one.read_bytes()] == []


def test_a_function_that_cannot_be_read_ends_its_app_and_not_the_server(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        bad, _ = await client.app("echo", "never", detach=True, name="bad")
        good, functions = await client.app("echo", detach=True, name="good")
        parts = world.control._parts
        assert parts is not None
        spoil = "UPDATE server_function SET spec = '{\"timeout_s\": []' WHERE app_id = ? AND name = 'never'"
        await parts.db.transaction(lambda transaction: transaction.change(spoil, (bad,)))
        client.close()
        await world.control.close()
        await world.start()
        client = await world.client()
        found = await client.ask("app.get", {"app": bad})
        assert found["state"] == "stopped"
        assert "cannot be read" in found["stop_reason"]
        assert (await client.ask("app.get", {"app": good}))["state"] == "detached"
        assert (await client.ask("function.get", {"function_id": functions["echo"]}))["name"] == "echo"
        client.close()

    in_world(tmp_path, test)


def test_housekeeping_outlives_its_faults(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(main, "TICK_S", 0.01)

    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        ticks, expiries = [], []
        stuck = asyncio.Event()

        async def tick() -> None:
            ticks.append(1)
            raise ValueError("a fault of ours")

        async def sweep(parts: Any) -> None:
            await stuck.wait()

        monkeypatch.setattr(parts.apps, "tick", tick)
        monkeypatch.setattr(parts.blobs, "expire", lambda: expiries.append(1))
        monkeypatch.setattr(world.control, "_sweep", sweep)
        ticker = world.control._ticker
        assert ticker is not None
        ticker.cancel()
        await asyncio.wait([ticker])
        world.control._ticker = asyncio.create_task(world.control._tick())
        await until(lambda: len(ticks) >= 3)
        assert len(expiries) >= 2

    in_world(tmp_path, test)


def test_uploads_that_nothing_names_go_after_a_day(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        digests = []
        for word in (b"source", b"pickled", b"image's", b"unused", b"recent"):
            digests.append(hashlib.sha256(word).hexdigest())
            assert await client.ask("object.put", {"digest": digests[-1]}, word) == {}
        step = {"kind": "copy", "files": [{"path": "/c", "digest": digests[2], "size": 7}]}
        spec = {
            "name": "f", "serialized": digests[1], "files": [{"path": "/a", "digest": digests[0], "size": 6}],
            "image": {"steps": [step]},
        }  # fmt: skip
        world.node.there.append(ImageSpec((ImageStep("copy", files=(FileEntry("/c", digests[2], 7),)),)).image_id())
        app_id = (await client.ask("app.create", {}))["app_id"]
        reply = await client.ask("app.publish", {"app_id": app_id, "functions": [spec]})
        assert "functions" in reply, reply
        control, parts = world.control, world.control._parts
        assert parts is not None
        paths = [control._objects.path_of(one) for one in digests]
        old = world.clock.now() - 2 * 86_400
        for path in paths[:4]:
            os.utime(path, (old, old))
        os.utime(paths[4], (world.clock.now(), world.clock.now()))
        await control._sweep(parts)
        assert [os.path.exists(path) for path in paths] == [True, True, True, False, True]
        await client.ask("app.finish", {"app_id": app_id})
        await control._sweep(parts)
        assert [os.path.exists(path) for path in paths] == [False] * 4 + [True]
        client.close()

    in_world(tmp_path, test)


def test_a_cancelled_upload_leaves_no_descriptor(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        go = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, go.wait, 10)
        client = await world.client()
        blob = world._put_blob(b"value")
        parts = world.control._parts
        assert parts is not None
        parts.blobs.hold(blob.blob_id, "test")
        before = _memfds()
        number = client.begin("object.put", {"digest": hashlib.sha256(b"value").hexdigest(), "blob_id": blob.blob_id})
        await until(lambda: _memfds() > before)
        client.send({"t": "cancel", "id": number})
        assert (await client.next())[0]["e"]["kind"] == "cancelled"
        go.set()
        await blocked
        await until(lambda: _memfds() == before)
        assert _memfds() == before
        client.close()

    in_world(tmp_path, test)


def _memfds() -> int:
    found = 0
    for one in os.listdir("/proc/self/fd"):
        try:
            found += "memfd" in os.readlink(f"/proc/self/fd/{one}")
        except OSError:
            pass
    return found


def test_images_must_be_built_before(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.node.there.clear()
        client = await world.client()
        app_id = (await client.ask("app.create", {}))["app_id"]
        publish = {"app_id": app_id, "functions": [{"name": "f", "module": "m", "qualname": "f"}]}
        refused = await client.ask("app.publish", publish)
        assert refused["kind"] == "conflict" and "the image of function f is not built" in refused["message"]
        client.close()

    in_world(tmp_path, test)


def test_files_must_be_uploaded_before(tmp_path: Path) -> None:
    import hashlib

    async def test(world: World) -> None:
        client = await world.client()
        data = b"print()"
        digest = hashlib.sha256(data).hexdigest()
        app_id = (await client.ask("app.create", {}))["app_id"]
        entry = {"path": "/root/m.py", "digest": digest, "size": len(data)}
        publish = {"app_id": app_id, "functions": [{"name": "f", "module": "m", "qualname": "f", "files": [entry]}]}
        assert (await client.ask("app.publish", publish))["kind"] == "conflict"
        assert (await client.ask("object.missing", {"digests": [digest]}))["digests"] == [digest]
        assert (await client.ask("object.put", {"digest": digest}, b"else"))["kind"] == "invalid"
        assert await client.ask("object.put", {"digest": digest}, data) == {}
        assert "functions" in await client.ask("app.publish", publish)
        path = world.control.object_path(digest)
        assert path is not None
        assert Path(path).read_bytes() == data

        small = [b"one", b"", b"three"]
        parts = [{"digest": hashlib.sha256(one).hexdigest(), "size": len(one)} for one in small]
        wrong = [*parts[:2], {"digest": parts[2]["digest"], "size": 4}]
        assert (await client.ask("object.put", {"objects": wrong}, b"onethree"))["kind"] == "invalid"
        assert await client.ask("object.put", {"objects": parts}, b"onethree") == {}
        for one in parts:
            assert world.control.object_path(one["digest"]) is not None

        big = b"y" * 3_000_000
        blob = world._put_blob(big).blob_id
        digest = hashlib.sha256(big).hexdigest()
        assert await client.ask("object.put", {"digest": digest, "blob_id": blob}) == {}
        assert world.control.object_path(digest) is not None
        control = world.control._parts
        assert control is not None
        assert control.blobs.find(blob) is None  # the memory is the sender's again
        client.close()

    in_world(tmp_path, test)


def test_a_container_may_call_and_not_more(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo")
        body = {"function_id": functions["echo"], "value": {"size": 1}, "parent_input_id": "in-1"}
        assert (await client.ask("call.run", body, b"x"))["output"]["status"] == "SUCCESS"
        container_id = (await client.ask("container.list", {}))["containers"][0]["container_id"]
        ours, theirs = socket.socketpair()
        world.control.accept_client(ours, container_id)
        inside = await Client.connect(sock=theirs)
        assert (await inside.ask("call.run", body, b"x"))["output"]["status"] == "SUCCESS"
        assert (await inside.ask("app.list"))["kind"] == "permission_denied"
        assert (await inside.ask("server.stop"))["kind"] == "permission_denied"
        inside.close()
        client.close()

    in_world(tmp_path, test)


def test_a_command_in_a_container(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        _, functions = await client.app("echo")
        await client.ask("call.run", {"function_id": functions["echo"], "value": {}})
        container = (await client.ask("container.list", {"app": "demo"}))["containers"][0]["container_id"]
        number = client.begin("container.exec", {"container_id": container, "argv": ["cat"], "pty": True})
        client.send({"t": "item", "id": number, "b": {}}, b"typed")
        head, payload = await client.next()
        assert (head["b"]["fd"], payload) == (1, b"typed")
        assert world.node.command.drains == 1
        # Nobody takes what it prints: it waits, and goes on when somebody does.
        client.send({"t": "item", "id": number, "b": {}}, b"much")
        await until(lambda: world.node.command.paused)
        taken = 0
        while taken < 20 << 20:
            _, payload = await client.next()
            taken += len(payload)
            client.send({"t": "credit", "id": number, "n": len(payload) + 1000})
        await until(lambda: not world.node.command.paused)
        client.send({"t": "item", "id": number, "b": {"eof": True}})
        head, _ = await client.next()
        assert head["b"]["exit_code"] == 3
        assert (await client.next())[0]["t"] == "end"
        _, end = await client.stream("container.exec", {"container_id": "ta-none", "argv": ["ls"]})
        assert end["e"]["kind"] == "not_found"
        assert await client.ask("container.stop", {"container_id": container}) == {}
        await until(lambda: container not in world.node.functions)
        client.close()

    in_world(tmp_path, test)


def test_status_keep_stop_and_idleness(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        stopped = asyncio.Event()
        world.control.on_stop(stopped.set)
        assert world.control.idle_since() is not None
        client = await world.client()
        await until(lambda: world.control.idle_since() is None)
        app_id, _ = await client.app("echo")
        status = await client.ask("server.status")
        assert (status["apps"], status["clients"], status["pid"]) == (1, 1, os.getpid())
        assert status["runtimes"] == {"standard": "fake"}
        await client.ask("server.keep", {"keep": True})
        assert world.control.kept
        assert (await client.ask("server.stop"))["kind"] == "conflict"
        await client.ask("app.stop", {"app": app_id})
        assert await client.ask("server.stop") == {}
        await asyncio.wait_for(stopped.wait(), 5)
        client.close()
        await until(lambda: world.control.idle_since() is not None)
        assert world.control.idle_s() == 0.0
        world.clock.advance(400)
        assert world.control.idle_s() == 400.0

    in_world(tmp_path, test)


def test_large_values_of_calls_end_with_them(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        parts = world.control._parts
        assert parts is not None
        client = await world.client()
        _, functions = await client.app("echo", "large", "never")
        blob = world._put_blob(b"argument")
        value = {"blob": {"blob_id": blob.blob_id, "size": 8}}
        body = await client.ask("call.run", {"function_id": functions["echo"], "value": value})
        assert body["output"]["value"]["blob"] == {"blob_id": blob.blob_id, "size": 8}
        assert parts.blobs.find(blob.blob_id) is not None  # told to the client, which has not fetched it
        body = await client.ask("call.run", {"function_id": functions["large"], "value": {"size": 1}}, b"x")
        result = body["output"]["value"]["blob"]["blob_id"]
        assert list(parts.blobs.store.list()) == []  # nobody but this client wants it: memory is enough
        running = world._put_blob(b"running")
        value = {"blob": {"blob_id": running.blob_id, "size": 7}}
        client.begin("call.run", {"function_id": functions["never"], "value": value})
        await until(lambda: bool(world.node.running))
        assert (
            await client.ask(
                "call.run", {"function_id": functions["echo"], "value": {"blob": {"blob_id": "bl-00", "size": 1}}}
            )
        )["kind"] == "not_found"
        client.close()
        await until(lambda: len(parts.blobs) == 0)
        assert parts.blobs.find(result) is None

    in_world(tmp_path, test)


def test_the_server_lives_through_noise(tmp_path: Path) -> None:
    """Whatever one connection sends, another one is served."""
    import random

    rng = random.Random(7)

    async def test(world: World) -> None:
        good = await world.client()
        methods = ["call.map", "call.run", "log.read", "app.publish", "container.exec", "image.build", "call.outputs"]
        for _ in range(150):
            bad = await world.client()
            for number in range(1, 4):
                body = rng.choice(
                    [{}, [], {"function_id": None}, {"app_id": "x", "functions": [{}]}, {"call_id": "\u0000"}]
                )
                bad.send(
                    {"t": "req", "id": number, "m": rng.choice(methods), "b": body}, rng.randbytes(rng.randrange(50))
                )
                kind = rng.choice(["item", "end", "credit", "cancel", "ping"])
                bad.send({"t": kind, "id": number, "b": rng.choice([{}, {"total": -1}, 5]), "n": rng.randrange(9)})
            frame = bytearray(encode_noise(rng))
            bad.writer.write(bytes(frame))
            bad.close()
        assert (await good.ask("server.status"))["clients"] >= 1
        good.close()

    def encode_noise(rng: random.Random) -> bytes:
        raw = bytearray(json.dumps({"t": "req", "id": 9, "m": "app.get", "b": {"app": "x"}}).encode())
        for _ in range(3):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return (len(raw) + 4).to_bytes(4, "big") + len(raw).to_bytes(4, "big") + bytes(raw)

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "more"), [("call.get", {}), ("call.outputs", {"start": 0, "end": 1})], ids=["get", "outputs"]
)
def test_an_input_that_waits_for_outputs_lends_its_cores(tmp_path: Path, method: str, more: Any) -> None:
    """Of a call that it spawned: `FunctionCall.get`, `get_gen` and `iter` alike. Else a full machine would stand."""

    async def test(world: World) -> None:
        host = await world.client()
        _, functions = await host.app("never")
        inputs = [{"index": 0, "value": {}}]
        body = {"function_id": functions["never"], "inputs": inputs}
        caller = (await host.ask("call.spawn", body))["input_ids"][0]
        assert world.control._parts is not None
        cluster = world.control._parts.calls.loop.cluster
        await until(lambda: cluster.holder(caller) is not None)
        holder = cluster.holder(caller)
        assert holder is not None and not holder.lends
        ours, theirs = socket.socketpair()
        world.control.accept_client(theirs, holder.container_id)
        client = await Client.connect(sock=ours)
        call = (await client.ask("call.spawn", body))["call_id"]
        number = client.begin(method, {"call_id": call, "wait_s": 50, **more})
        await until(lambda: holder.lends)
        client.writer.write(encode({"t": "cancel", "id": number}))
        await until(lambda: not holder.lends)
        client.writer.close()
        host.close()

    in_world(tmp_path, test)
