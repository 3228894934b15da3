"""Deployed apps: versions whole or not at all, history, rollback, variants, restarts. semantics.md sections 12, 23."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import Client, FullDisk
from test_control_main import World, in_world, until

from cadenza.base.errors import DataLossError
from cadenza.control.declared import unpack
from cadenza.control.deployments import VERSIONS_KEPT, before, fingerprint, too_old
from cadenza.protocol.objects import BudgetSpec, FileEntry, FunctionSpec
from cadenza.protocol.packed import pack, sendable

Head = dict[str, Any]


def spec(name: str = "echo", **more: Any) -> Head:
    return {"name": name, "module": "m", "qualname": name.split("-")[0], **more}


async def deploy(client: Client, *functions: Head, name: str = "demo", **more: Any) -> Head:
    return await client.ask("app.deploy", {"name": name, "functions": list(functions), **more})


async def versions(client: Client, app: str = "demo") -> list[tuple[int, str, bool]]:
    found = (await client.ask("app.history", {"app": app}))["deployments"]
    return [(one["version"], one["kind"], one["active"]) for one in found]


async def run(client: Client, function_id: str, value: bytes = b"hi") -> Head:
    return await client.ask("call.run", {"function_id": function_id, "value": {"size": len(value)}}, value)


def parts_of(world: World) -> Any:
    assert world.control._parts is not None
    return world.control._parts


# --- pure ---

F = FunctionSpec("f", "m", "f", files=(FileEntry("/root/m.py", "0" * 64, 3),))


def test_what_two_deploys_have_in_common() -> None:
    """The functions, in whichever order, and the budget."""
    g = replace(F, name="g")
    assert fingerprint([F, g], None) == fingerprint([g, F], None)
    for other in (
        replace(F, timeout_s=5.0),
        replace(F, files=(FileEntry("/root/m.py", "1" * 64, 3),)),
        replace(F, files=(FileEntry("/root/m.py", "0" * 64, 3, 0o755),)),
        replace(F, env={"A": "1"}),
    ):
        assert fingerprint([other, g], None) != fingerprint([F, g], None)
    assert fingerprint([F], BudgetSpec(1.0)) != fingerprint([F], None)
    assert fingerprint([F], None) != fingerprint([F, g], None)


def test_a_version_is_kept_small_and_whole() -> None:
    files = tuple(FileEntry(f"/root/{n}.py", hashlib.sha256(b"%d" % n).hexdigest(), n) for n in range(1000))
    specs = [replace(F, name=f"f{n}", files=files) for n in range(50)]
    data = pack(specs)
    assert unpack(data) == tuple(specs)
    assert len(data) < 100_000  # the files once, not fifty times
    for bad in (b"", b"x", data[:-9], pack([])[:-1] + b"x"):
        with pytest.raises(DataLossError):
            unpack(bad)


def test_the_version_before() -> None:
    known = [(1, "deploy"), (2, "staged"), (3, "deploy"), (4, "rollback")]
    assert [before(known, one) for one in (1, 3, 4)] == [0, 1, 3]


def test_old_versions_are_let_go_but_not_the_one_in_force() -> None:
    known = [(number, "deploy") for number in range(1, VERSIONS_KEPT + 3)]
    assert too_old(known, VERSIONS_KEPT + 2) == [2, 1]
    assert too_old(known, 1) == [3, 2]
    assert too_old(known[:VERSIONS_KEPT], VERSIONS_KEPT) == []


def test_many_files_travel_packed_and_few_do_not() -> None:
    files = tuple(FileEntry(f"/root/{n}.py", "0" * 64, n) for n in range(500))
    few, many = [F], [replace(F, name=f"f{n}", files=files) for n in range(50)]
    assert sendable(few) == ((F,), [])
    functions, payload = sendable(many)
    assert functions == () and unpack(payload[0]) == tuple(many)
    secret = replace(F, env={"A": "x" * 300_000})
    assert sendable([secret])[0] == ()


# --- the whole control plane ---


def test_functions_may_come_packed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        specs = [FunctionSpec("echo", "m", "echo"), FunctionSpec("never", "m", "never")]
        first = await client.ask("app.deploy", {"name": "demo", "functions": []}, pack(specs))
        assert sorted(first["functions"]) == ["echo", "never"]
        assert (await deploy(client, spec(), spec("never")))["changed"] is False
        for functions, payload in (([spec()], pack(specs)), ([], pack(specs)[:-4]), ([], b"x" * 100)):
            error = await client.ask("app.deploy", {"name": "demo", "functions": functions}, payload)
            assert error["kind"] == "invalid"
        client.close()

    in_world(tmp_path, test)


def test_a_deploy_stays_when_its_client_goes(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        git = {"commit": "c" * 40, "branch": "main", "dirty": True}
        done = await deploy(client, spec(), spec("never"), git=git, tag="first", tags={"team": "a"})
        assert (done["version"], done["changed"]) == (1, True)
        client.close()
        await until(lambda: parts_of(world).rpc.clients == 0)
        world.clock.advance(10_000)
        await parts_of(world).apps.tick()
        client = await world.client()
        found = await client.ask("function.find", {"app": "demo", "name": "echo"})
        assert found["function_id"] == done["functions"]["echo"]
        assert (found["app_name"], found["version"]) == ("demo", 1)
        assert (await run(client, found["function_id"]))["output"]["status"] == "SUCCESS"
        info = await client.ask("app.get", {"app": "demo"})
        assert (info["state"], info["version"], info["tags"]) == ("deployed", 1, {"team": "a"})
        assert info["created_by"] and info["deployed_by"]
        one = (await client.ask("app.history", {"app": "demo"}))["deployments"][0]
        assert (one["git"]["commit"], one["git"]["dirty"], one["tag"]) == ("c" * 40, True, "first")
        assert one["functions"] == ["echo", "never"] and one["active"]
        client.close()

    in_world(tmp_path, test)


def test_nothing_changed_is_no_new_version(tmp_path: Path) -> None:
    """semantics.md section 33, 17."""

    async def test(world: World) -> None:
        client = await world.client()
        first = await deploy(client, spec(), spec("never"))
        again = await deploy(client, spec("never"), spec(), tag="x", strategy="recreate", git={"commit": "d"})
        assert (again["version"], again["changed"], again["functions"]) == (1, False, first["functions"])
        assert "'x'" in again["warnings"][0]
        tagged = await deploy(client, spec(), spec("never"), tags={"a": "b"})
        assert not tagged["changed"]
        assert (await client.ask("app.get", {"app": "demo"}))["tags"] == {"a": "b"}
        assert await versions(client) == [(1, "deploy", True)]
        changed = await deploy(client, spec(timeout_s=20), spec("never"))
        assert (changed["version"], changed["changed"], changed["functions"]) == (2, True, first["functions"])
        assert (await deploy(client, spec(timeout_s=20), spec("never"), budget={"container_s": 5000}))["version"] == 3
        client.close()

    in_world(tmp_path, test)


def test_an_app_without_functions_can_be_deployed_and_grow(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        assert (await deploy(client))["version"] == 1
        assert (await deploy(client))["changed"] is False
        assert list((await deploy(client, spec()))["functions"]) == ["echo"]
        client.close()

    in_world(tmp_path, test)


def test_what_is_not_in_the_new_version_is_gone_and_its_inputs_end(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        first = (await deploy(client, spec(), spec("never")))["functions"]
        inputs = [{"index": 0, "value": {}}]
        call = (await client.ask("call.spawn", {"function_id": first["never"], "inputs": inputs}))["call_id"]
        assert list((await deploy(client, spec()))["functions"]) == ["echo"]
        output = (await client.ask("call.get", {"call_id": call, "wait_s": 5}))["output"]
        assert output["status"] == "TERMINATED" and "version" in output["error"]
        assert (await client.ask("function.find", {"app": "demo", "name": "never"}))["kind"] == "not_found"
        assert (await run(client, first["never"]))["kind"] == "not_found"
        client.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "letters"),
        ({"name": "x" * 65}, "64"),
        ({"name": "ap-" + "a" * 22}, "id"),
        ({"tag": "x" * 51}, "50"),
        ({"strategy": "blue"}, "strategy"),
        ({"tags": {"a b": "c"}}, "tag"),
        ({"tags": {f"t{n}": "v" for n in range(101)}}, "100 tags"),
        ({"functions": [spec(), spec()]}, "twice"),
        ({"functions": [spec(), spec("g", timeout_s=0)]}, "timeout"),
        ({"functions": [spec(), spec("g", serialized="0" * 64)]}, "upload"),
        ({"functions": [spec(), spec("g", image={"steps": [{"kind": "run"}]})]}, "not built"),
        ({"functions": [spec(resources={"cpu_milli": 10**6})]}, "cores"),
        ({"functions": [spec(resources={"disk_mib": 10**9})]}, "disk"),
        ({"functions": [spec(resources={"gpus": [{"type": "H100"}]})]}, "no such GPU here: H100 is asked for"),
        ({"functions": [spec(options={"region": "us-east,eu"})]}, "region us-east or eu: there is region home"),
        ({"functions": [spec(options={"cloud": "aws"})]}, "cloud gcp"),
        ({"functions": [spec(options={"nonpreemptible": "1"})]}, "preemptible"),
        ({"environment": "none"}, "environment"),
        ({"budget": {"container_s": -1}}, "budget"),
        ({"budget": {}}, "budget"),
        ({"budget": {"money": 1, "per": "week"}}, "week"),
    ],
)
def test_a_deploy_that_cannot_be_changes_nothing(tmp_path: Path, body: Head, words: str) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        world.labels.update(region="home", cloud="gcp", preemptible="true")
        await deploy(client, spec())
        error = await client.ask("app.deploy", {"name": "demo", "functions": [spec("other")], **body})
        assert error["kind"] in ("invalid", "conflict", "not_found") and words in error["message"], error
        assert await versions(client) == [(1, "deploy", True)]
        assert len((await client.ask("app.list"))["apps"]) == 1
        assert (await client.ask("function.find", {"app": "demo", "name": "echo"}))["version"] == 1
        client.close()

    in_world(tmp_path, test)


def test_names_at_their_limits_may_be(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        assert (await deploy(client, name="x" * 64, tag="y" * 50))["version"] == 1
        assert (await deploy(client, name="a.b-c_D9", tags={"t" * 63: "v" * 63}))["version"] == 1
        client.close()

    in_world(tmp_path, test)


def test_two_deploys_at_once_follow_each_other(tmp_path: Path) -> None:
    """Each is whole: one app, two versions, and the functions of the last one."""

    async def test(world: World) -> None:
        first, second = await world.client(), await world.client()
        answers = await asyncio.gather(
            deploy(first, spec(timeout_s=10), spec("never", timeout_s=10)),
            deploy(second, spec(timeout_s=20), spec("fail", timeout_s=20)),
        )
        assert {one["app_id"] for one in answers} == {answers[0]["app_id"]}
        assert sorted(one["version"] for one in answers) == [1, 2]
        last = max(answers, key=lambda one: one["version"])
        names = {one["name"]: one["function_id"] for one in await rows(first)}
        assert names == last["functions"]
        functions = parts_of(world).functions
        assert len({functions.get(one).spec.timeout_s for one in names.values()}) == 1
        first.close(), second.close()

    in_world(tmp_path, test)


async def rows(client: Client, app: str = "demo") -> list[Head]:
    return (await client.ask("function.list", {"app": app}))["functions"]  # type: ignore[no-any-return]


def test_rollback_rollover_staged_and_promote(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        timeout = lambda: parts_of(world).functions.get(ids["echo"]).spec.timeout_s  # noqa: E731
        ids = (await deploy(client, spec(timeout_s=10), git={"commit": "c1"}))["functions"]
        await deploy(client, spec(timeout_s=20), git={"commit": "c2"})
        back = await client.ask("app.rollback", {"app": "demo"})
        assert (back["version"], back["changed"], back["functions"], timeout()) == (3, True, ids, 10)
        assert (await client.ask("app.rollback", {"app": "demo", "version": 2}))["version"] == 4 and timeout() == 20
        over = await client.ask("app.rollover", {"app": "demo"})
        assert (over["version"], timeout()) == (5, 20)
        staged = await deploy(client, spec(timeout_s=30), staged=True, git={"commit": "c6"})
        assert staged["version"] == 6 and timeout() == 20
        assert (await client.ask("app.get", {"app": "demo"}))["version"] == 5
        assert "promote" in (await client.ask("app.rollback", {"app": "demo", "version": 6}))["message"]
        assert "not staged" in (await client.ask("app.promote", {"app": "demo", "version": 2}))["message"]
        assert (await client.ask("app.promote", {"app": "demo", "version": 6}))["version"] == 6 and timeout() == 30
        assert await versions(client) == [
            (6, "deploy", True), (5, "rollover", False), (4, "rollback", False), (3, "rollback", False),
            (2, "deploy", False), (1, "deploy", False),
        ]  # fmt: skip
        history = (await client.ask("app.history", {"app": "demo"}))["deployments"]
        assert [one["of"] for one in history] == [0, 4, 2, 1, 0, 0]
        commits = [one["git"]["commit"] for one in history]
        assert commits == ["c6", "c2", "c2", "c1", "c2", "c1"], "each that of the code it runs"
        for body, kind in (
            ({"app": "demo", "version": 99}, "not_found"),
            ({"app": "demo", "version": 6}, "conflict"),
            ({"app": "none"}, "not_found"),
            ({"app": "demo", "strategy": "x"}, "invalid"),
        ):
            assert (await client.ask("app.rollback", body))["kind"] == kind
        client.close()

    in_world(tmp_path, test)


def test_the_first_version_has_none_before_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        await deploy(client, spec())
        assert (await client.ask("app.rollback", {"app": "demo"}))["kind"] == "not_found"
        await client.ask("app.lookup", {"name": "bare", "create_if_missing": True})
        assert (await client.ask("app.rollover", {"app": "bare"}))["kind"] == "conflict"
        client.close()

    in_world(tmp_path, test)


def test_rollback_to_what_is_gone_says_what_to_do(tmp_path: Path) -> None:
    """An image that was removed, files that are lost, a secret that was deleted."""

    async def test(world: World) -> None:
        client = await world.client()
        data = b"print(1)"
        digest = hashlib.sha256(data).hexdigest()
        await client.ask("object.put", {"digest": digest}, data)
        files = [{"path": "/root/m.py", "digest": digest, "size": len(data)}]
        await deploy(client, spec(files=files))
        image = {"steps": [{"kind": "base", "options": {"python": "3.12"}}]}
        await client.stream("image.build", {"spec": image})
        await deploy(client, spec(image=image))
        await deploy(client, spec(timeout_s=20))
        world.node.built.clear()
        error = await client.ask("app.rollback", {"app": "demo", "version": 2})
        assert error["kind"] == "conflict" and "image" in error["message"] and "Deploy it" in error["message"]
        path = world.control.object_path(digest)
        assert path is not None
        Path(path).unlink()
        error = await client.ask("app.rollback", {"app": "demo", "version": 1})
        assert error["kind"] == "conflict" and "upload" in error["message"]
        assert (await versions(client))[0] == (3, "deploy", True)
        client.close()

    in_world(tmp_path, test)


def test_files_of_kept_versions_are_kept(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        data = b"print(1)"
        digest = hashlib.sha256(data).hexdigest()
        await client.ask("object.put", {"digest": digest}, data)
        await deploy(client, spec(files=[{"path": "/root/m.py", "digest": digest, "size": len(data)}]))
        await deploy(client, spec())
        world.clock.advance(10**9)
        await world.control._sweep_named(parts_of(world))
        assert world.control.object_path(digest) is not None
        await client.ask("app.stop", {"app": "demo"})
        await world.control._sweep_named(parts_of(world))
        assert world.control.object_path(digest) is None
        client.close()

    in_world(tmp_path, test)


def test_stop_is_final_and_the_name_is_free(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        first = await deploy(client, spec())
        await client.ask("app.stop", {"app": "demo"})
        assert (await client.ask("app.rollback", {"app": first["app_id"]}))["kind"] == "conflict"
        assert (await client.ask("function.find", {"app": "demo", "name": "echo"}))["kind"] == "not_found"
        assert (await client.ask("app.lookup", {"name": "demo"}))["kind"] == "not_found"
        second = await deploy(client, spec())
        assert second["app_id"] != first["app_id"] and second["version"] == 1
        assert await versions(client, first["app_id"]) == [(1, "deploy", False)]
        assert await parts_of(world).db.fetch("deployment_kept") == [(second["app_id"], 1)]
        client.close()

    in_world(tmp_path, test)


def test_an_app_that_ends_on_a_full_disk_is_stopped_and_stays_so(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        await deploy(client, spec(options={"schedule": '{"kind":"period","hours":2}'}), budget={"container_s": 1e6})
        parts = parts_of(world)
        disk = parts.apps._db = FullDisk(parts.db)
        refused = await client.ask("app.stop", {"app": "demo"})
        assert (
            refused["kind"] == "resource_exhausted"
            and "is stopped, but that could not be written" in refused["message"]
        )
        assert (await client.ask("app.get", {"app": "demo"}))["state"] == "stopped"
        assert not parts.schedules._by_function and not parts.budgets._accounts  # whoever follows it knows
        assert (await client.ask("app.stop", {"app": "demo"}))["kind"] == "resource_exhausted"  # as long as it is full
        disk.full = False
        await parts.apps.tick()
        client.close()
        await world.control.close()
        await world.start()
        client = await world.client()
        assert (await client.ask("app.get", {"app": "demo"}))["state"] == "stopped"

    in_world(tmp_path, test)


def test_lookup_and_tags(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        assert (await client.ask("app.lookup", {"name": "bare"}))["kind"] == "not_found"
        made = await client.ask("app.lookup", {"name": "bare", "create_if_missing": True})
        assert (made["state"], made["version"]) == ("deployed", 0)
        assert (await client.ask("app.lookup", {"name": "bare"}))["app_id"] == made["app_id"]
        assert (await client.ask("app.lookup", {"name": "a b", "create_if_missing": True}))["kind"] == "invalid"
        assert (await deploy(client, spec(), name="bare"))["app_id"] == made["app_id"]
        assert (await client.ask("app.set_tags", {"app": "bare", "tags": {"a": "b"}}))["tags"] == {"a": "b"}
        assert (await client.ask("app.set_tags", {"app": "bare", "tags": {"a": "b c"}}))["kind"] == "invalid"
        client.close()

    in_world(tmp_path, test)


def test_an_ephemeral_app_of_the_same_name_does_not_hide_the_deployed_one(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        deployed = await deploy(client, spec())
        app_id, _ = await client.app("echo", name="demo")
        found = await client.ask("function.find", {"app": "demo", "name": "echo"})
        assert found["app_id"] == deployed["app_id"] != app_id
        assert (await client.ask("app.publish", {"app_id": found["app_id"], "functions": []}))["kind"] == "conflict"
        assert (await client.ask("app.finish", {"app_id": found["app_id"]}))["kind"] == "conflict"
        client.close()

    in_world(tmp_path, test)


def test_deployed_apps_go_on_after_a_restart(tmp_path: Path) -> None:
    """Their functions, variants, pinned versions and the inputs that wait."""

    async def main() -> None:
        world = World(tmp_path)
        await world.start()
        client = await world.client()
        ids = (await deploy(client, spec(), spec("never")))["functions"]
        body = {"function_id": ids["echo"], "patch": {"max_containers": 2}}
        variant = (await client.ask("function.bind", body))["function_id"]
        await deploy(client, spec(timeout_s=20), spec("never"))
        pinned = await client.ask("function.find", {"app": "demo", "name": "echo", "version": 1})
        inputs = [{"index": 0, "value": {"size": 4}}]
        call = (await client.ask("call.spawn", {"function_id": ids["never"], "inputs": inputs}, b"kept"))["call_id"]
        client.close()
        await world.control.close()

        await world.start()
        client = await world.client()
        assert {one["name"]: one["function_id"] for one in await rows(client)} == ids
        assert (await client.ask("function.bind", body))["function_id"] == variant
        again = await client.ask("function.find", {"app": "demo", "name": "echo", "version": 1})
        assert again["function_id"] == pinned["function_id"]
        functions = parts_of(world).functions
        assert (
            functions.get(variant).spec.timeout_s == 20 and functions.get(pinned["function_id"]).spec.timeout_s == 300
        )
        for one in (ids["echo"], variant, pinned["function_id"]):
            assert (await run(client, one))["output"]["status"] == "SUCCESS"
        assert (await client.ask("call.info", {"call_id": call}))["finished"] == 0
        stats = await client.ask("function.stats", {"function_id": ids["never"]})
        assert stats["backlog"] + stats["num_running_inputs"] == 1
        assert (await deploy(client, spec(timeout_s=20), spec("never")))["changed"] is False
        client.close()
        await world.control.close()

    uvloop.run(main())


def test_a_deployed_app_whose_functions_cannot_be_read_can_be_put_right(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.start()
        client = await world.client()
        await deploy(client, spec(timeout_s=10))
        await deploy(client, spec())
        write = lambda transaction: transaction.change("UPDATE server_function SET spec = '{'")  # noqa: E731
        await parts_of(world).db.transaction(write)
        client.close()
        await world.control.close()

        for put_right in ("app.deploy", "app.rollback"):
            await world.start()
            client = await world.client()
            info = await client.ask("app.get", {"app": "demo"})
            assert info["state"] == "deployed" and "cannot be read" in info["note"]
            assert (await client.ask("function.find", {"app": "demo", "name": "echo"}))["kind"] == "not_found"
            body = {"name": "demo", "functions": [spec()]} if put_right == "app.deploy" else {"app": "demo"}
            done = await client.ask(put_right, body)
            assert done["changed"] and (await run(client, done["functions"]["echo"]))["output"]["status"] == "SUCCESS"
            assert (await client.ask("app.get", {"app": "demo"}))["note"] == ""
            await parts_of(world).db.transaction(write)
            client.close()
            await world.control.close()

    uvloop.run(main())


def test_equal_wishes_give_one_function_to_everybody(tmp_path: Path) -> None:
    """semantics.md sections 12.2, 12.3 and 33, 11-12."""

    async def test(world: World) -> None:
        one, other = await world.client(), await world.client()
        ids = (await deploy(one, spec()))["functions"]

        async def bind(client: Client, function_id: str, **patch: Any) -> Head:
            return await client.ask("function.bind", {"function_id": function_id, "patch": patch})

        both = await asyncio.gather(bind(one, ids["echo"], timeout_s=5), bind(other, ids["echo"], timeout_s=5))
        assert both[0]["function_id"] == both[1]["function_id"] != ids["echo"]
        assert both[0]["base_id"] == ids["echo"]
        assert (await bind(one, ids["echo"]))["function_id"] == ids["echo"]
        more = await bind(one, both[0]["function_id"], max_containers=2)
        assert more["base_id"] == ids["echo"]
        assert (await bind(other, ids["echo"], max_containers=2, timeout_s=5))["function_id"] == more["function_id"]
        assert (await bind(one, ids["echo"], timeout_s=0.5))["kind"] == "invalid"
        assert (await bind(one, ids["echo"], cpu_milli=10**7))["kind"] == "invalid"
        found = (await one.ask("function.variants", {"function_id": ids["echo"]}))["variants"]
        assert {each["options"] for each in found} == {"timeout_s=5", "max_containers=2, timeout_s=5"} or {
            each["options"] for each in found
        } == {"timeout_s=5", "timeout_s=5, max_containers=2"}
        assert (await run(one, more["function_id"]))["output"]["status"] == "SUCCESS"
        await deploy(one, spec("never"))
        assert (await run(one, more["function_id"]))["kind"] == "not_found"
        one.close(), other.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"cpu_milli": 10**6}, "1000 cores"),
        ({"gpus": [{"type": "T4"}]}, "GPU"),
        ({"options": {"region": "eu"}}, "home"),
    ],
)
def test_a_variant_that_no_machine_can_hold_is_refused(tmp_path: Path, patch: Head, words: str) -> None:
    """Sections 11 and 12.3: at the bind, before any input waits for it."""

    async def test(world: World) -> None:
        client = await world.client()
        world.labels["region"] = "home"
        base = (await deploy(client, spec(options={"region": "us,home"})))["functions"]["echo"]
        error = await client.ask("function.bind", {"function_id": base, "patch": patch})
        assert error["kind"] == "invalid" and words in error["message"], error
        assert (await run(client, base))["output"]["status"] == "SUCCESS"
        client.close()

    in_world(tmp_path, test)


def test_a_deployed_function_that_fits_no_more_waits_and_says_why(tmp_path: Path) -> None:
    """After a restart with other labels, or on another machine."""

    async def main() -> None:
        world = World(tmp_path)
        world.labels["region"] = "us-east"
        await world.start()
        client = await world.client()
        first = (await deploy(client, spec(options={"region": "us"})))["functions"]["echo"]
        client.close()
        await world.control.close()
        world.labels["region"] = "eu"
        await world.start()
        client = await world.client()
        inputs = [{"index": 0, "value": {"size": 4}}]
        call = (await client.ask("call.spawn", {"function_id": first, "inputs": inputs}, b"kept"))["call_id"]
        await until(lambda: parts_of(world).calls.loop.cluster.functions[first].wanted_since > 0)
        told = (await client.ask("app.explain", {"app": "demo"}))["functions"][0]
        assert "region us: there is region eu" in told["sentence"], told
        await deploy(client, spec())
        output = (await client.ask("call.get", {"call_id": call, "wait_s": 5}))["output"]
        assert output["status"] == "SUCCESS"
        client.close()
        await world.control.close()

    uvloop.run(main())


def test_a_class_is_bound_by_its_parameters(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        cls = spec("C.*", methods=[{"name": "go"}], class_parameters=[{"name": "x", "type": "int"}], min_containers=2)
        done = await deploy(client, {**cls, "qualname": "echo"})
        ids = done["functions"]
        await asyncio.sleep(0.05)
        assert parts_of(world).calls.containers() == []  # nobody can say which x to keep warm
        bind = {"function_id": ids["C.*"], "parameters": '{"x": 5}'}
        found = await client.ask("function.bind", bind)
        assert (found["parameters"], found["name"]) == ('{"x":5}', "C.*")
        assert found["methods"][0]["name"] == "go"
        assert (await client.ask("function.bind", {**bind, "parameters": ""}))["kind"] == "invalid"
        assert (await client.ask("function.bind", {**bind, "parameters": '{"x":"5"}'}))["kind"] == "invalid"
        wrong = await client.ask("function.find", {"app": "demo", "name": "C"})
        assert "Cls.from_name('demo', 'C')" in wrong["message"]
        client.close()

    in_world(tmp_path, test)


def test_too_many_new_variants_are_refused_for_a_while(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        ids = (await deploy(client, spec()))["functions"]
        bucket = parts_of(world).functions._buckets
        body = {"function_id": ids["echo"], "patch": {"timeout_s": 5}}
        await client.ask("function.bind", body)
        bucket[ids["echo"]].tokens = 0.5
        error = await client.ask("function.bind", {**body, "patch": {"timeout_s": 6}})
        assert error["kind"] == "resource_exhausted" and error["detail"]["throttle"] is True
        assert "function_id" in await client.ask("function.bind", body)  # it is there: nothing is made
        world.clock.advance(1)
        assert "function_id" in await client.ask("function.bind", {**body, "patch": {"timeout_s": 6}})
        client.close()

    in_world(tmp_path, test)


def test_the_oldest_unused_variant_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza.control.functions.MAX_VARIANTS", 2)

    async def test(world: World) -> None:
        client = await world.client()
        ids = (await deploy(client, spec()))["functions"]
        made = []
        for number in (5, 6, 7):
            world.clock.advance(1)
            body = {"function_id": ids["echo"], "patch": {"timeout_s": number}}
            made.append((await client.ask("function.bind", body))["function_id"])
        found = (await client.ask("function.variants", {"function_id": ids["echo"]}))["variants"]
        assert [one["function_id"] for one in found] == [made[2], made[1]]
        client.close()

    in_world(tmp_path, test)


def test_a_pinned_version_stays_with_its_functions(tmp_path: Path) -> None:
    """semantics.md section 12.3: its own pool, no min_containers, calls inside it stay on that version."""

    async def test(world: World) -> None:
        client = await world.client()
        ids = (await deploy(client, spec(min_containers=1), spec("never")))["functions"]
        await deploy(client, spec(timeout_s=9))
        find = {"app": "demo", "name": "echo", "version": 1}
        pinned = await client.ask("function.find", find)
        assert (pinned["version"], pinned["base_id"]) == (1, ids["echo"])
        assert (await client.ask("function.find", find))["function_id"] == pinned["function_id"]
        function = parts_of(world).functions.get(pinned["function_id"])
        assert (function.spec.min_containers, function.spec.timeout_s) == (0, 300)
        state = parts_of(world).calls.loop.cluster.functions[pinned["function_id"]]
        assert state.layout["echo"] == pinned["function_id"] and "never" in state.layout
        assert state.layout["never"] not in ids.values()
        bound = await client.ask("function.bind", {"function_id": pinned["function_id"], "patch": {"timeout_s": 7}})
        assert parts_of(world).calls.loop.cluster.functions[bound["function_id"]].layout == state.layout
        assert bound["version"] == 1
        listed = (await client.ask("function.variants", {"function_id": ids["echo"]}))["variants"]
        assert {one["function_id"]: (one["options"], one["version"]) for one in listed} == {
            pinned["function_id"]: ("", 1), bound["function_id"]: ("timeout_s=7", 1),
        }, "every pool, those of pinned versions with options too"  # fmt: skip
        assert (await run(client, bound["function_id"]))["output"]["status"] == "SUCCESS"
        assert [one["containers"] for one in await rows(client) if one["name"] == "echo"] == [1]
        await deploy(client, spec("fail"))
        assert (await run(client, pinned["function_id"]))["output"]["status"] == "SUCCESS"
        assert (await client.ask("function.find", {**find, "version": 9}))["kind"] == "not_found"
        assert (await client.ask("function.find", {**find, "name": "no"}))["kind"] == "not_found"
        await client.ask("app.stop", {"app": "demo"})
        assert (await run(client, pinned["function_id"]))["kind"] == "not_found"
        client.close()

    in_world(tmp_path, test)


def test_a_deployed_app_keeps_the_server_only_while_it_has_something_to_do(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        functions = (await deploy(client, spec(), spec("never")))["functions"]
        needed = parts_of(world).apps.needed
        assert not needed()
        inputs = [{"index": 0, "value": {}}]
        call = (await client.ask("call.spawn", {"function_id": functions["never"], "inputs": inputs}))["call_id"]
        assert needed()
        await client.ask("call.cancel", {"call_id": call})
        await until(lambda: not needed())
        await deploy(client, spec(min_containers=1))
        assert needed()
        await deploy(client, spec(options={"schedule": '{"kind":"period","hours":2}'}))
        assert needed() and [one["schedule"] for one in await rows(client)] == ["Period(hours=2)"]
        await client.ask("app.stop", {"app": "demo"})
        assert not needed()
        await client.app("echo")
        assert needed()
        client.close()

    in_world(tmp_path, test)


def test_followers_are_told_of_changes(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        seen: list[tuple[str, bool, list[str]]] = []
        parts = parts_of(world)

        def follow(app: Any, redeployed: bool) -> None:
            seen.append((app.name, redeployed, sorted(one.name for one in parts.functions.declared(app.app_id))))
            raise ValueError("a follower's fault is its own")

        parts.apps.on_change.append(follow)
        client = await world.client()
        await deploy(client, spec())
        await deploy(client, spec())
        await deploy(client, spec("fail"))
        await client.ask("app.rollback", {"app": "demo"})
        await client.ask("app.stop", {"app": "demo"})
        assert seen == [
            ("demo", True, ["echo"]), ("demo", True, ["fail"]), ("demo", True, ["echo"]), ("demo", False, []),
        ]  # fmt: skip
        client.close()

    in_world(tmp_path, test)


def test_secrets_are_sealed_before_anything_is_kept_or_compared(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        client = await world.client()
        given = spec(secrets=[{"values": {"KEY": "S3CRET-VALUE"}, "keys": ["KEY"]}])
        assert (await deploy(client, given))["version"] == 1
        assert (await deploy(client, given))["changed"] is False
        other = spec(secrets=[{"values": {"KEY": "OTHER-VALUE"}, "keys": ["KEY"]}])
        assert (await deploy(client, other))["version"] == 2
        client.close()

    in_world(tmp_path, test)


def test_a_deploy_that_changes_nothing_tries_again_what_did_not_start(tmp_path: Path) -> None:
    """Its image was gone, say, and the deploy has built it anew: nobody waits for the next try's time."""

    async def test(world: World) -> None:
        client = await world.client()
        first = await deploy(client, spec())
        function = parts_of(world).calls.loop.cluster.functions[first["functions"]["echo"]]
        function.start_failures, function.internal_failures, function.fault = 3, 9, "there is no image"
        function.blocked_until = world.clock.monotonic() + 60
        again = await deploy(client, spec())
        assert (again["changed"], again["version"]) == (False, 1)
        assert (function.start_failures, function.internal_failures, function.fault) == (0, 0, "")
        assert (await run(client, again["functions"]["echo"]))["output"]["status"] == "SUCCESS"
        client.close()

    in_world(tmp_path, test)
