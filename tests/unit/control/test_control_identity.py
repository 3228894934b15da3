"""Every row of the table of methods, asked by each kind of caller that may not: nothing is left open by mistake.

Source: semantics.md section 24.
"""

from __future__ import annotations

import asyncio
import socket
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from control_fakes import Client, FullDisk, Head
from test_control_main import World as WithSecrets
from test_control_main import in_world as with_secrets
from test_control_tokens import World, in_world, made

from cadenza.protocol.method import ADMIN, CLIENT, CONTAINER, WRITE
from cadenza.protocol.table import METHODS

PLAIN: dict[Any, Any] = {str: "x", int: 1, float: 1.0, bool: False, bytes: ""}


def least(kind: Any) -> Any:
    """The smallest value that a field of this type takes, as JSON."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        needed = [one for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
        return {one.name: least(hints[one.name]) for one in needed}
    origin = get_origin(kind)
    if origin is tuple:
        return []
    if origin is dict:
        return {}
    if origin is typing.Union:
        return least(get_args(kind)[0])
    return PLAIN[kind]


def body(name: str) -> Head:
    found: Head = least(METHODS[name].request)
    return found


async def refused(client: Client, name: str, kind: str, words: str) -> None:
    reply = await client.ask(name, body(name))
    assert reply.get("kind") == kind and words in reply["message"], (name, reply)


def test_a_scope_is_enough_for_its_rows_and_no_others(tmp_path: Path) -> None:
    """Also an owner's token is held to its scope."""

    async def test(world: World) -> None:
        host = await world.client()
        for scope, beyond in (("read", (WRITE, ADMIN)), ("write", (ADMIN,))):
            client = await world.client(await made(host, scopes=[scope]))
            asked = [one for one in METHODS.values() if CLIENT in one.callers and one.needs in beyond]
            assert len(asked) > 10
            for one in asked:
                await refused(client, one.name, "permission_denied", "scope")

    in_world(tmp_path, test)


def test_a_container_calls_the_rows_that_are_for_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        ours, theirs = socket.socketpair()
        world.control.accept_client(theirs, "ta-nowhere")
        client = await Client.connect(sock=ours)
        for one in METHODS.values():
            inside = CONTAINER in one.callers
            await refused(client, one.name, "permission_denied", "no running app" if inside else "inside a container")
        client.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize("end", ["expired", "disabled"])
def test_a_token_that_is_over_does_nothing_at_all(tmp_path: Path, end: str) -> None:
    """Before its connection is ended, too."""

    async def test(world: World) -> None:
        host = await world.client()
        pair = await made(host, expires_in_s=60)
        client = await world.client(pair)
        if end == "expired":
            world.clock.advance(60)
        else:
            next(iter(world.control._parts.access.directory.tokens.values())).disabled = True  # type: ignore[union-attr]
        for one in METHODS.values():
            if CLIENT in one.callers:
                await refused(client, one.name, "unauthenticated", end)

    in_world(tmp_path, test)


def test_where_a_token_is_required_nothing_goes_without_one(tmp_path: Path) -> None:
    from cadenza.control.guard import WITHOUT_TOKEN

    async def test(world: World) -> None:
        host = await world.client()
        for one in METHODS.values():
            if CLIENT in one.callers and one.name not in WITHOUT_TOKEN:
                await refused(host, one.name, "unauthenticated", "require_token")

    in_world(tmp_path, test, require_token=True)


def test_an_environment_stays_while_an_app_is_made_in_it(tmp_path: Path) -> None:
    """Deploying waits for uploads to be looked at and for the disk; the environment does not go meanwhile."""

    async def test(world: World) -> None:
        host, other = await world.client(), await world.client()
        await host.ask("environment.create", {"name": "dev"})
        assert world.control._parts is not None
        functions = world.control._parts.functions
        begun, go_on = asyncio.Event(), asyncio.Event()
        keep = functions._keep_secrets

        async def slow(*args: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await keep(*args)

        functions._keep_secrets = slow
        number = other.begin("app.deploy", {"name": "demo", "functions": [], "environment": "dev"})
        await begun.wait()
        for method, body in (
            ("environment.delete", {"name": "dev"}),
            ("environment.update", {"name": "dev", "new_name": "new"}),
        ):
            reply = await host.ask(method, body)
            assert reply.get("kind") == "conflict" and "an app lives in the environment 'dev'" in reply["message"]
        go_on.set()
        head, _ = await other.next()
        assert (head["t"], head["id"]) == ("rep", number)
        app = await host.ask("app.lookup", {"name": "demo", "environment": "dev"})
        assert app["environment"] == "dev"
        await host.ask("app.stop", {"app": app["app_id"]})
        assert await host.ask("environment.delete", {"name": "dev"}) == {}
        assert (await host.ask("app.lookup", {"name": "x", "environment": "dev", "create_if_missing": True}))[
            "kind"
        ] == "not_found"

    in_world(tmp_path, test)


def test_a_container_puts_no_calls_under_inputs_of_another(tmp_path: Path) -> None:
    """An input that waits for a call of its own lends its container's cores: only its own container says so."""

    async def test(world: World) -> None:
        host = await world.client()
        _, functions = await host.app("echo", "never")
        await host.ask("call.run", {"function_id": functions["echo"], "value": {}})
        spawned = await host.ask(
            "call.spawn", {"function_id": functions["never"], "inputs": [{"index": 0, "value": {}}]}
        )
        assert world.control._parts is not None
        cluster = world.control._parts.calls.loop.cluster
        (victim,) = spawned["input_ids"]
        while cluster.holder(victim) is None:
            await asyncio.sleep(0.001)
        holder = cluster.holder(victim)
        assert holder is not None
        (attempt,) = holder.attempts.values()
        found = (await host.ask("container.list"))["containers"]
        other = next(one["container_id"] for one in found if one["container_id"] != holder.container_id)
        for container_id, nested in ((other, 0), (holder.container_id, 1)):
            ours, theirs = socket.socketpair()
            world.control.accept_client(theirs, container_id)
            client = await Client.connect(sock=ours)
            client.begin("call.run", {"function_id": functions["never"], "value": {}, "parent_input_id": victim})
            await client.ask("account.whoami")
            await asyncio.sleep(0)
            assert attempt.nested == nested
            client.writer.close()

    in_world(tmp_path, test)


@pytest.mark.parametrize("change", ["deleted", "renamed"])
def test_a_new_environment_has_nothing_of_an_old_one_of_its_name(tmp_path: Path, change: str) -> None:
    """A token for the new one reads neither results nor logs nor the history of what ran in the old one."""

    async def test(world: World) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "dev"})
        first = await world.client(await made(host, environments=["dev"]), "dev")
        created = await first.ask("app.create", {"name": "demo", "detach": True, "environment": ""})
        app_id, spec = created["app_id"], {"name": "echo", "module": "m", "qualname": "echo"}
        functions = (await first.ask("app.publish", {"app_id": app_id, "functions": [spec]}))["functions"]
        inputs = {"function_id": functions["echo"], "inputs": [{"index": 0, "value": {}}]}
        call = {"call_id": (await first.ask("call.spawn", inputs))["call_id"]}
        assert (await first.ask("call.get", {**call, "wait_s": 5}))["output"]["status"] == "SUCCESS"
        await host.ask("app.stop", {"app": app_id})
        if change == "deleted":
            assert await host.ask("environment.delete", {"name": "dev"}) == {}
        else:
            assert (await host.ask("environment.update", {"name": "dev", "new_name": "old"}))["name"] == "old"
            assert (await first.ask("call.info", call))["finished"] == 1
        await host.ask("environment.create", {"name": "dev"})
        second = await world.client(await made(host, environments=["dev"]), "dev")
        assert (await second.ask("app.list"))["apps"] == []
        for method, body in (("call.get", call), ("call.info", call), ("app.get", {"app": app_id})):
            assert (await second.ask(method, body))["kind"] in ("permission_denied", "not_found"), method
        assert ("finished" in await first.ask("call.info", call)) == (change == "renamed")

    async def after(world: World) -> None:
        host = await world.client()
        client = await world.client(await made(host, environments=["dev"]), "dev")
        assert (await client.ask("app.list"))["apps"] == []

    in_world(tmp_path, test)
    in_world(tmp_path, after)


def test_an_environment_and_its_secrets_go_and_move_as_one(tmp_path: Path) -> None:
    """Whatever the disk refuses."""

    async def test(world: WithSecrets) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "dev"})
        await host.ask("secret.create", {"name": "db", "values": {"A": "1"}, "environment": "dev"})
        parts = world.control._parts
        assert parts is not None
        disk = parts.environments._db = FullDisk(parts.db)  # type: ignore[assignment]
        assert (await host.ask("environment.delete", {"name": "dev"}))["kind"] == "resource_exhausted"
        assert (await host.ask("secret.find", {"name": "db", "environment": "dev"}))["keys"] == ["A"]
        disk.full = False
        parts.secrets._db = FullDisk(parts.db)  # type: ignore[assignment]
        await host.ask("environment.update", {"name": "dev", "new_name": "test"})
        assert (await host.ask("secret.find", {"name": "db", "environment": "test"}))["keys"] == ["A"]

    async def after(world: WithSecrets) -> None:
        host = await world.client()
        assert (await host.ask("secret.find", {"name": "db", "environment": "test"}))["keys"] == ["A"]
        assert await host.ask("environment.delete", {"name": "test"}) == {}
        await host.ask("environment.create", {"name": "test"})
        assert (await host.ask("secret.find", {"name": "db", "environment": "test"}))["kind"] == "not_found"

    with_secrets(tmp_path, test)
    with_secrets(tmp_path, after)
