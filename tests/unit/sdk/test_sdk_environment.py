"""`Environment`, `Workspace`, and what a client says of itself. Source: semantics.md section 24; wire.md, opening."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from cadenza import Environment, Workspace
from cadenza.base.config import Config
from cadenza.base.errors import AuthError, DeprecationError, InvalidError, NotFoundError
from cadenza.sdk.client import Client, greeting
from cadenza.sdk.workspace import lifetime_s
from fake_server import FakeServer


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def client(server):
    one = Client("unix:" + server.path)
    yield one
    one.close()


def answers(server, **replies):
    """Answer methods with bodies, or with an error for a pair of kind and message; a list gives them in turn."""

    def handler(found):
        turns = iter(found) if isinstance(found, list) else None

        def handle(peer, number, body, payload):
            reply = next(turns) if turns is not None else found
            if isinstance(reply, tuple):
                peer.error(number, *reply)
            else:
                peer.send("rep", number, reply)

        return handle

    server.handlers.update({name.replace("__", "."): handler(found) for name, found in replies.items()})


def asked(server, method):
    return [one["b"] for one in server.received if one.get("m") == method]


DEV = {"environment_id": "en-1", "name": "dev", "created_at": 1.0}


# --- hello ---


def test_a_client_shows_the_configured_token_and_environment() -> None:
    config = dataclasses.replace(Config(), token_id="ak-1", token_secret="as-1", environment="dev")
    assert greeting(config, None) == {"token_id": "ak-1", "token_secret": "as-1", "environment": "dev"}
    assert greeting(config, ("ak-2", "as-2"))["token_id"] == "ak-2"
    assert greeting(config, ("", "")) == {"environment": "dev"}
    assert greeting(Config(), None) == {}


@pytest.mark.parametrize("half", [{"token_id": "ak-1"}, {"token_secret": "as-1"}])
def test_half_a_token_is_an_auth_error(half) -> None:
    with pytest.raises(AuthError, match="Token missing") as caught:
        greeting(dataclasses.replace(Config(), **half), None)
    assert "as-1" not in str(caught.value)


def test_credentials_are_in_the_hello_and_another_services_are_not(server, monkeypatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-theirs")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-theirs")
    monkeypatch.setenv("CADENZA_SERVER_URL", "unix:" + server.path)
    with Client():
        pass
    assert "token_id" not in server.received[0]
    made = Client.from_credentials("ak-1", "as-1")
    made.close()
    hello = server.received[-1]
    assert (hello["token_id"], hello["token_secret"]) == ("ak-1", "as-1")


@pytest.mark.parametrize("wrong", [("ak-1",), ("ak-1", None)])
def test_credentials_are_two_strings(wrong) -> None:
    with pytest.raises(InvalidError):
        Client("", None, wrong)


# --- environments ---


def test_an_environment_by_name_asks_when_it_is_used(server, client) -> None:
    answers(server, environment__get=DEV)
    one = Environment.from_name("dev", client=client)
    assert one.name == "dev" and not one.is_hydrated
    assert one.hydrate() is one
    assert one.object_id == "en-1"
    assert asked(server, "environment.get")[0]["name"] == "dev"


def test_the_environment_of_the_context(server, client) -> None:
    answers(server, environment__get=DEV)
    one = Environment.from_context(client=client)
    assert one.name is None
    assert one.hydrate().name == "dev"


def test_create_if_missing(server, client) -> None:
    answers(server, environment__get=("not_found", "no"), environment__create=DEV)
    with pytest.raises(NotFoundError):
        Environment.from_name("dev", client=client).hydrate()
    assert Environment.from_name("dev", create_if_missing=True, client=client).hydrate().object_id == "en-1"
    answers(server, environment__get=[("not_found", "no"), DEV], environment__create=("already_exists", "quicker"))
    assert Environment.from_name("dev", create_if_missing=True, client=client).hydrate().object_id == "en-1"


def test_all_environments(server, client) -> None:
    answers(server, environment__list={"environments": [DEV]}, environment__create=DEV, environment__delete={})
    assert [one.name for one in Environment.objects.list(client=client)] == ["dev"]
    Environment.objects.create("dev", restricted=True, default_role="viewer", client=client)
    made = asked(server, "environment.create")[0]
    assert (made["restricted"], made["default_role"]) == (True, "viewer")
    Environment.objects.delete("dev", client=client)
    for wrong in (None, "", 3):
        with pytest.raises(InvalidError):
            Environment.objects.create(wrong, client=client)
    with pytest.raises(InvalidError):
        Environment()


def test_roles(server, client) -> None:
    rows = [
        {"principal": "ann", "role": "viewer", "direct": True, "service_user": False},
        {"principal": "max", "role": "contributor", "direct": False, "service_user": False},
        {"principal": "bot", "role": "viewer", "direct": True, "service_user": True},
    ]
    answers(server, environment__get=DEV, role__list={"roles": rows}, role__set={})
    roles = Environment.from_name("dev", client=client).roles
    assert roles.list().users == {"ann": "viewer", "max": "contributor"}
    found = roles.list(exclude_default=True)
    assert (found.users, found.service_users) == ({"ann": "viewer"}, {"bot": "viewer"})
    roles.update(users={"ann": "contributor"}, service_users={"bot": "no-access"})
    assert [(one["principal"], one["role"], one["service_user"]) for one in asked(server, "role.set")] == [
        ("ann", "contributor", False), ("bot", "no-access", True),
    ]  # fmt: skip
    with pytest.warns(DeprecationError, match="Environment.roles"):
        Environment.from_name("dev", client=client).members.remove(users=["ann"])
    assert asked(server, "role.set")[-1]["role"] == ""


# --- the workspace ---

BOT = {"user_id": "us-2", "name": "bot", "role": "member", "service_user": True, "created_at": 5.0, "tokens": 1,
       "created_by": "ann", "roles": {"dev": "viewer"}}  # fmt: skip
TOKENS = [
    {"token_id": "ak-1", "user": "ann", "created_at": 1.0, "used_at": 9.0},
    {"token_id": "ak-2", "user": "bot", "created_at": 2.0, "service_user": True, "expires_at": 50.0},
]


def test_members_service_users_tokens_and_settings(server, client) -> None:
    ann = {"user_id": "us-1", "name": "ann", "role": "owner", "created_at": 3.0}
    users = {False: {"users": [ann]}, True: {"users": [BOT]}}
    settings = {"default_environment": "main", "image_builder_version": "", "name": "home"}
    answers(
        server, workspace__get=settings, workspace__set=settings, token__list={"tokens": TOKENS}, token__disable={},
        token__delete={}, user__create={"token_id": "ak-3", "token_secret": "as-3"}, user__delete={}, role__set={},
    )  # fmt: skip
    server.handlers["user.list"] = lambda peer, number, body, payload: peer.send(
        "rep", number, users[body["service_users"]]
    )
    one = Workspace.from_context(client=client)
    assert one.hydrate().name == "home"
    (member,) = one.members.list()
    assert (member.name, member.role, member.joined_at.timestamp()) == ("ann", "owner", 3.0)
    assert member.last_active_at is not None and member.last_active_at.timestamp() == 9.0
    bot = one.service_users.info("bot")
    assert (bot.token_id, bot.created_by, bot.environment_roles, bot.last_used_at) == (
        "ak-2", "ann", {"dev": "viewer"}, None,
    )  # fmt: skip
    with pytest.raises(NotFoundError):
        one.service_users.info("eve")
    made = one.service_users.create("new", expires_in="7d")
    assert made.token_secret == "as-3" and "as-3" not in repr(made)
    assert asked(server, "user.create")[0]["expires_in_s"] == 7 * 86400
    one.service_users.set_role("bot", "dev", role="contributor")
    one.service_users.delete("bot", allow_missing=True)
    assert [(t.token_id, t.user_id) for t in one.member_tokens.list()] == [("ak-1", "us-1")]
    one.member_tokens.disable("ak-1")
    one.member_tokens.enable("ak-1")
    one.member_tokens.enable()  # none: nothing is asked
    assert [t["disabled"] for t in asked(server, "token.disable")] == [True, False]
    one.member_tokens.delete("ak-1")
    assert one.settings.list().default_environment == "main"
    one.settings.set("default_environment", "dev")
    with pytest.raises(InvalidError):
        Workspace()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, 0), (60, 60), ("60", 60), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600),
     (timedelta(hours=1), 3600), (1.5, 1.5)],
)  # fmt: skip
def test_lifetimes(given, seconds) -> None:
    assert lifetime_s(given, "here") == seconds


@pytest.mark.parametrize("wrong", ["", "soon", "7 y", "-1d", 0, -1, True, float("inf"), float("nan"), [], "1.5h"])
def test_wrong_lifetimes(wrong) -> None:
    with pytest.raises(InvalidError, match="here"):
        lifetime_s(wrong, "here")


def test_profiles_by_the_library(tmp_path, monkeypatch) -> None:
    from cadenza.sdk import settings

    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    monkeypatch.delenv("CADENZA_PROFILE", raising=False)
    assert settings.config_profiles() == []
    (tmp_path / "config").mkdir()
    file = tmp_path / "config/config.toml"
    file.write_text("# head\n[a]\nactive = true\n[b]\nloglevel = 'INFO' # why\n")
    assert settings.config_profiles() == ["a", "b"]
    settings.config_set_active_profile("b")
    assert settings.config["loglevel"] == "INFO"
    assert "# head" in file.read_text() and "# why" in file.read_text()
    with pytest.raises(NotFoundError, match="a, b"):
        settings.config_set_active_profile("c")
