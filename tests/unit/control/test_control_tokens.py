"""Tokens and members over the socket: what is let in, what is kept of a secret, who may change what.

Source: semantics.md section 24.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Awaitable, Callable, Optional

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from control_fakes import Client, FakeNode

from cadenza.base.clock import ManualClock
from cadenza.base.config import Config
from cadenza.base.errors import AuthError, PermissionDeniedError
from cadenza.base.ids import IdSource
from cadenza.control import tokens as module
from cadenza.control.access import Access, Standing
from cadenza.control.directory import Directory, Token, User
from cadenza.control.main import ControlPlane
from cadenza.control.tokens import NOBODY, Tokens, digest, narrowed
from cadenza.protocol.frame import PROTOCOL
from cadenza.protocol.nodes import NodeReport


Pair = tuple[str, str]


class World:
    """A started control plane, and clients with tokens."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.config = replace(
            Config(),
            data_dir=str(root / "data"),
            state_dir=str(root / "state"),
            runtime_dir=str(root / "run"),
            **settings,
        )
        self.clock = ManualClock()

    async def start(self) -> None:
        node = FakeNode()
        self.control = ControlPlane(self.config, self.clock, IdSource())
        node.control = self.control
        self.control.report(NodeReport("no-1", (), whole=True))
        await self.control.start(node)

    async def client(self, token: Optional[Pair] = None, environment: str = "") -> Client:
        """Connected, whether welcome or refused: see its ``welcome``."""
        client = Client(*await asyncio.open_unix_connection(self.config.socket_path))
        hello = {"t": "hello", "protocol": PROTOCOL, "version": "0.1.0", "role": "client", "environment": environment}
        if token is not None:
            hello.update(token_id=token[0], token_secret=token[1])
        client.send(hello)
        client.welcome = (await client.next())[0]
        return client


def in_world(tmp_path: Path, test: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        world = World(tmp_path, **settings)
        await world.start()
        try:
            await test(world)
        finally:
            await world.control.close()

    uvloop.run(main())


async def made(client: Client, method: str = "token.create", **body: Any) -> Pair:
    reply = await client.ask(method, body)
    assert "token_id" in reply, reply
    return reply["token_id"], reply["token_secret"]


def test_a_token_says_who_one_is(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        me = await host.ask("account.whoami")
        assert (me["role"], me["token_id"]) == ("owner", "")
        pair = await made(host, scopes=["write"], name="ci", expires_in_s=60)
        assert pair[0].startswith("ak-") and pair[1].startswith("as-") and len(pair[1]) == 25
        client = await world.client(pair)
        me = await client.ask("account.whoami")
        assert (me["token_id"], me["scopes"], me["expires_at"]) == (pair[0], ["write"], world.clock.now() + 60)
        assert (await client.ask("environment.create", {"name": "dev"}))["kind"] == "permission_denied"
        listed = (await host.ask("token.list"))["tokens"]
        assert [(one["token_id"], one["name"], one["used_at"]) for one in listed] == [
            (pair[0], "ci", world.clock.now())
        ]

    in_world(tmp_path, test)


def test_a_wrong_token_is_refused_as_one_that_is_unknown(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        pair = await made(host)
        said = set()
        for wrong in (
            (pair[0], "as-" + "0" * 22),
            ("ak-" + "0" * 22, pair[1]),
            (pair[0], ""),
            (pair[0], "\u0000\u20ac"),
        ):
            refused = await world.client(wrong)
            assert (refused.welcome["t"], refused.welcome["kind"]) == ("refuse", "unauthenticated")
            said.add(refused.welcome["message"])
            with pytest.raises(EOFError):
                await refused.next()
        assert len(said) == 1
        assert (await world.client(pair)).welcome["t"] == "welcome"

    in_world(tmp_path, test)


def test_unknown_tokens_cost_the_same_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant time: one hash and one `hmac.compare_digest` over digests of one length, whoever asks."""
    compared = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    hashed = []
    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    monkeypatch.setattr(module, "digest", lambda salt, secret: hashed.append(len(salt)) or digest(salt, secret))
    directory = Directory()
    directory.tokens["ak-1"] = Token("ak-1", "us-server", b"s" * 16, digest(b"s" * 16, "as-right"))
    tokens = Tokens(None, ManualClock(), IdSource(), Access(directory=directory))  # type: ignore[arg-type]
    for token_id, secret in (("ak-1", "as-wrong"), ("ak-2", "as-wrong"), ("", "")):
        with pytest.raises(AuthError):
            tokens.identify(token_id, secret)
    assert compared == [(32, 32)] * 3
    assert hashed == [16] * 3


def test_nobody_is_let_in_as_the_stand_in_for_unknown_tokens() -> None:
    tokens = Tokens(None, ManualClock(), IdSource(), Access())  # type: ignore[arg-type]
    for secret in ("", "\0" * 32):
        with pytest.raises(AuthError):
            tokens.identify(NOBODY.token_id, secret)


def test_secrets_of_tokens_are_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs: list[Pair] = []

    async def test(world: World) -> None:
        host = await world.client()
        pairs.append(await made(host))
        pairs.append(await made(host, "user.create", name="bot", service_user=True))
        for one in pairs:
            await (await world.client(one)).ask("account.whoami")
            await world.client((one[0], one[1] + "x"))
        assert pairs[0][1] not in str(await host.ask("token.list"))

    in_world(tmp_path, test)
    kept = b"".join(one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    said = capfd.readouterr()
    for token_id, secret in pairs:
        assert token_id.encode() in kept  # the test looks at the right files
        assert secret[3:].encode() not in kept
        assert secret[3:] not in said.out + said.err


def test_expired_disabled_deleted_and_rotated_tokens(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        short = await made(host, expires_in_s=60)
        client = await world.client(short)
        world.clock.advance(60)
        assert (await client.ask("app.list"))["kind"] == "unauthenticated"
        assert "expired" in (await world.client(short)).welcome["message"]

        pair = await made(host)
        client = await world.client(pair)
        assert "kind" not in await host.ask("token.disable", {"token_ids": [pair[0]]})
        assert (await client.ask("app.list"))["kind"] == "unauthenticated"
        assert (await client.next())[0]["id"] == 0  # and then the connection ends
        with pytest.raises(EOFError):
            await client.next()
        assert "disabled" in (await world.client(pair)).welcome["message"]
        await host.ask("token.disable", {"token_ids": [pair[0]], "disabled": False})
        assert (await world.client(pair)).welcome["t"] == "welcome"

        new = await made(host, replaces=pair[0])
        assert (await world.client(pair)).welcome["t"] == "refuse"
        assert (await world.client(new)).welcome["t"] == "welcome"
        await host.ask("token.delete", {"token_id": new[0]})
        assert (await world.client(new)).welcome["t"] == "refuse"
        assert (await host.ask("token.delete", {"token_id": new[0]}))["kind"] == "not_found"
        assert "kind" not in await host.ask("token.delete", {"token_id": new[0], "allow_missing": True})

    in_world(tmp_path, test)


def test_a_rotated_token_may_no_more_and_lives_as_long_again(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "dev"})
        old = await made(host, scopes=["read"], environments=["dev"], name="ci", expires_in_s=100)
        world.clock.advance(50)
        new = await made(host, replaces=old[0])
        me = await (await world.client(new)).ask("account.whoami")
        assert (me["scopes"], me["environments"]) == (["read"], ["dev"])
        assert me["expires_at"] == world.clock.now() + 100

    in_world(tmp_path, test)


def test_a_token_makes_none_that_reaches_further(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "dev"})
        limited = await world.client(await made(host, environments=["dev"], expires_in_s=100))
        assert (await limited.ask("token.create", {"environments": ["main"]}))["kind"] == "permission_denied"
        child = await (await world.client(await made(limited, expires_in_s=10_000))).ask("account.whoami")
        assert child["environments"] == ["dev"]
        assert child["expires_at"] == world.clock.now() + 100
        all_of_mine = (await limited.ask("token.list"))["tokens"]
        assert len(all_of_mine) == 2
        wide = await made(host)
        assert (await limited.ask("token.delete", {"token_id": wide[0]}))["kind"] == "not_found"
        reader = await world.client(await made(host, scopes=["read"]))
        assert (await reader.ask("token.create"))["kind"] == "permission_denied"

    in_world(tmp_path, test)


def test_narrowing() -> None:
    ann = User("us-1", "ann")
    assert narrowed(Standing(ann), ()) == ()
    assert narrowed(Standing(ann), ("en-1",)) == ("en-1",)
    assert narrowed(Standing(ann, environment_ids=("en-1", "en-2")), ()) == ("en-1", "en-2")
    with pytest.raises(PermissionDeniedError):
        narrowed(Standing(ann, environment_ids=("en-1",)), ("en-1", "en-2"))


def test_members_do_not_raise_themselves(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        member = await world.client(await made(host, "user.create", name="ann"))
        manager = await world.client(await made(host, "user.create", name="max", role="manager"))
        owner = (await host.ask("account.whoami"))["user"]
        for method, body in (
            ("user.create", {"name": "eve"}),
            ("user.set_role", {"name": "ann", "role": "owner"}),
            ("environment.create", {"name": "dev"}),
            ("token.create", {"user": owner}),
            ("workspace.set", {"name": "default_environment", "value": "main"}),
            ("user.delete", {"name": "max"}),
        ):
            assert (await member.ask(method, body))["kind"] == "permission_denied", method
        for method, body in (
            ("user.create", {"name": "eve", "role": "owner"}),
            ("user.set_role", {"name": "max", "role": "owner"}),
            ("user.set_role", {"name": owner, "role": "member"}),
            ("token.create", {"user": owner}),
            ("user.delete", {"name": owner}),
        ):
            assert (await manager.ask(method, body))["kind"] == "permission_denied", method
        theirs = await made(host)
        assert (await manager.ask("token.delete", {"token_id": theirs[0]}))["kind"] == "not_found"
        assert (await host.ask("user.set_role", {"name": owner, "role": "member"}))["kind"] == "conflict"
        assert (await host.ask("user.delete", {"name": owner}))["kind"] == "conflict"
        assert "kind" not in await manager.ask("user.create", {"name": "eve"})
        await host.ask("user.delete", {"name": "ann"})
        assert (await member.ask("app.list"))["kind"] == "unauthenticated"

    in_world(tmp_path, test)


def test_roles_in_a_restricted_environment(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        ann = await world.client(await made(host, "user.create", name="ann"))
        bot = await world.client(await made(host, "user.create", name="bot", service_user=True))
        assert (await host.ask("environment.create", {"name": "prod", "restricted": True}))[
            "default_role"
        ] == "no-access"
        assert [one["name"] for one in (await ann.ask("environment.list"))["environments"]] == ["main"]
        create = {"name": "x", "environment": "prod"}
        assert (await ann.ask("app.create", create))["kind"] == "permission_denied"
        await host.ask("role.set", {"environment": "prod", "principal": "ann", "role": "contributor"})
        await host.ask("role.set", {"environment": "prod", "principal": "bot", "role": "viewer", "service_user": True})
        assert "app_id" in await ann.ask("app.create", create)
        assert (await bot.ask("app.create", create))["kind"] == "permission_denied"
        rows = (await bot.ask("role.list", {"environment": "prod"}))["roles"]
        assert {(one["principal"], one["role"], one["direct"]) for one in rows[1:]} == {
            ("ann", "contributor", True), ("bot", "viewer", True),
        }  # fmt: skip
        assert (await host.ask("role.set", {"environment": "main", "principal": "ann", "role": "viewer"}))[
            "kind"
        ] == "invalid"

    in_world(tmp_path, test)


def test_environments_over_their_life(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        assert (await host.ask("environment.create", {"name": "Dev_1"}))["web_suffix"] == "dev-1"
        assert (await host.ask("environment.create", {"name": "Dev_1"}))["kind"] == "already_exists"
        assert (await host.ask("environment.create", {"name": "en-x"}))["kind"] == "invalid"
        assert (await host.ask("environment.create", {"name": "x", "default_role": "viewer"}))["kind"] == "invalid"
        update = {"name": "Dev_1", "web_suffix": ""}
        assert (await host.ask("environment.update", update))["kind"] == "already_exists"  # one may be empty: main's
        app = await host.ask("app.create", {"name": "x", "environment": "Dev_1"})
        assert (await host.ask("environment.delete", {"name": "Dev_1"}))["kind"] == "conflict"
        assert (await host.ask("environment.update", {"name": "Dev_1", "new_name": "dev"}))["kind"] == "conflict"
        await host.ask("app.stop", {"app": app["app_id"]})
        limited = await world.client(await made(host, environments=["Dev_1"]))
        await host.ask("environment.update", {"name": "Dev_1", "new_name": "dev", "web_suffix": "d"})
        assert (await host.ask("app.get", {"app": app["app_id"]}))["environment"] == "dev"
        assert [one["name"] for one in (await limited.ask("environment.list"))["environments"]] == ["dev"]
        await host.ask("workspace.set", {"name": "default_environment", "value": "dev"})
        assert (await host.ask("environment.get"))["name"] == "dev"
        assert (await host.ask("environment.delete", {"name": "dev"}))["kind"] == "conflict"
        await host.ask("workspace.set", {"name": "default_environment", "value": "main"})
        assert "kind" not in await host.ask("environment.delete", {"name": "dev"})
        assert (await limited.ask("environment.list"))["environments"] == []
        assert (await host.ask("environment.delete", {"name": "main"}))["kind"] == "conflict"

    in_world(tmp_path, test)


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    pairs: list[Pair] = []

    async def before(world: World) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "prod", "restricted": True, "default_role": "viewer"})
        pairs.append(await made(host, "user.create", name="ann"))
        pairs.append(await made(host, scopes=["read"], environments=["prod"]))
        await host.ask("role.set", {"environment": "prod", "principal": "ann", "role": "contributor"})

    async def after(world: World) -> None:
        ann, reader = [await world.client(one) for one in pairs]
        assert "app_id" in await ann.ask("app.create", {"name": "x", "environment": "prod"})
        me = await reader.ask("account.whoami")
        assert (me["scopes"], me["environments"]) == (["read"], ["prod"])
        found = (await ann.ask("environment.list"))["environments"]
        assert [(one["name"], one["restricted"], one["default_role"]) for one in found] == [
            ("main", False, "contributor"), ("prod", True, "viewer"),
        ]  # fmt: skip

    in_world(tmp_path, before)
    in_world(tmp_path, after)


def test_a_server_that_requires_tokens(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        assert (await host.ask("app.list"))["kind"] == "unauthenticated"
        client = await world.client(await made(host))
        assert "apps" in await client.ask("app.list")

    in_world(tmp_path, test, require_token=True)


def test_a_client_means_the_environment_of_its_hello(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        host = await world.client()
        await host.ask("environment.create", {"name": "dev"})
        client = await world.client(environment="dev")
        app = await client.ask("app.create", {"name": "x", "environment": ""})
        assert (await host.ask("app.get", {"app": app["app_id"]}))["environment"] == "dev"
        assert (await (await world.client(environment="gone")).ask("environment.get"))["kind"] == "not_found"

    in_world(tmp_path, test)
