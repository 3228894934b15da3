"""Who may do what where, as a table; names of environments; what every request is checked by.

Source: semantics.md section 24.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, make_dataclass
from types import SimpleNamespace
from typing import Any, Optional

import pytest

from cadenza.base.errors import AuthError, Bug, InvalidError, NotFoundError, PermissionDeniedError
from cadenza.control import guard
from cadenza.control.access import Access, refusal, Standing, within_scopes
from cadenza.control.directory import MAIN, Directory, Environment, Token, User
from cadenza.control.environments import MAX_SUFFIX_CHARS, check_name, check_suffix, free_suffix
from cadenza.control.guard import Guard, Home, subjects
from cadenza.control.request import Caller
from cadenza.protocol.method import ADMIN, READ, WRITE, Empty, Method
from cadenza.protocol.table import METHODS

OPEN = Environment("en-1", "open")
SHUT = Environment("en-2", "shut", restricted=True, default_role="no-access")
SEEN = Environment("en-3", "seen", restricted=True, default_role="viewer")

ROLES = [
    # workspace role, environment, direct role; what may be done
    ("owner", OPEN, None, "read write admin"),
    ("manager", SHUT, None, "read write admin"),
    ("manager", SHUT, "no-access", "read write admin"),
    ("member", OPEN, None, "read write"),
    ("member", OPEN, "no-access", "read write"),  # direct roles count in restricted environments
    ("member", SHUT, None, ""),
    ("member", SHUT, "viewer", "read"),
    ("member", SHUT, "contributor", "read write"),
    ("member", SEEN, None, "read"),
    ("member", SEEN, "contributor", "read write"),
    ("member", SEEN, "no-access", ""),
]
SCOPES = [((), "read write admin"), (("read",), "read"), (("write",), "read write"), (("admin",), "read write admin"),
          (("read", "admin"), "read write admin")]  # fmt: skip


@pytest.mark.parametrize("needs", [READ, WRITE, ADMIN])
@pytest.mark.parametrize(("scopes", "scoped"), SCOPES)
@pytest.mark.parametrize(("role", "environment", "direct", "may"), ROLES)
def test_a_caller_may_the_least_of_scope_and_role(
    role: str, environment: Environment, direct: Optional[str], may: str, scopes: Any, scoped: str, needs: str
) -> None:
    standing = Standing(User("us-1", "ann", role), "ak-1", scopes)
    allowed = needs in may.split() and needs in scoped.split()
    assert (refusal(standing, environment, direct, needs) == "") == allowed
    assert within_scopes(scopes, needs) == (needs in scoped.split())
    elsewhere = Standing(User("us-1", "ann", role), "ak-1", scopes, ("en-9",))
    assert refusal(elsewhere, environment, direct, needs) != ""
    here = Standing(User("us-1", "ann", role), "ak-1", scopes, ("en-9", environment.environment_id))
    assert (refusal(here, environment, direct, needs) == "") == allowed


def test_a_refusal_says_what_is_missing() -> None:
    ann = User("us-1", "ann")
    assert "'write'" in refusal(Standing(ann, "ak-1", ("read",)), OPEN, None, WRITE)
    assert "'contributor'" in refusal(Standing(ann), SEEN, None, WRITE)
    assert "'viewer'" in refusal(Standing(ann), SHUT, None, READ)
    assert "not for the environment 'open'" in refusal(Standing(ann, "ak-1", (), ("en-2",)), OPEN, None, READ)


def access(*tokens: Token, now: float = 0.0) -> Access:
    directory = Directory()
    for one in (OPEN, SHUT, SEEN):
        directory.environments[one.name] = one
    directory.users["us-1"] = User("us-1", "ann")
    directory.tokens.update({one.token_id: one for one in tokens})
    return Access(lambda container_id: "open", directory, lambda: now)


def token(**more: Any) -> Token:
    return Token("ak-1", "us-1", b"", b"", **more)


def test_an_environment_that_is_not_named_is_the_callers_own() -> None:
    found = access(token())
    assert found.environment(Caller("co-1"), "") == MAIN
    assert found.environment(Caller("co-1", environment="open"), "") == "open"
    assert found.environment(Caller("co-1", "ta-1", environment="seen"), "") == "open"  # a container's is its app's
    found.directory.default_environment = "open"
    assert found.environment(Caller("co-1"), "") == "open"
    assert access(token(environment_ids=("en-1",))).environment(Caller("co-1", token_id="ak-1"), "") == "open"


def test_a_container_is_in_its_environment_alone() -> None:
    caller = Caller("co-1", "ta-1")
    access().check(caller, "open", WRITE)
    for name in (MAIN, "shut", "nowhere"):
        with pytest.raises(PermissionDeniedError):
            access().check(caller, name, READ)
    with pytest.raises(PermissionDeniedError):
        access().check(caller, "open", ADMIN)
    with pytest.raises(PermissionDeniedError):
        access().manage(caller, "do this")
    assert access().visible(caller) == ("open",)


def test_an_unknown_environment_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        access().environment(Caller("co-1"), "nowhere")


def test_a_token_that_ends_while_its_connection_lasts_is_no_longer_good() -> None:
    caller = Caller("co-1", token_id="ak-1")
    access(token(expires_at=10.0), now=9.9).check(caller, "open", READ)
    with pytest.raises(AuthError, match="expired"):
        access(token(expires_at=10.0), now=10.0).check(caller, "open", READ)
    with pytest.raises(AuthError, match="disabled"):
        access(token(disabled=True)).check(caller, "open", READ)
    with pytest.raises(AuthError, match="no longer"):
        access().check(caller, "open", READ)


def test_only_owners_and_managers_with_all_scopes_and_environments_manage() -> None:
    found = access(token())
    assert found.manage(Caller("co-1"), "x").user.role == "owner"
    caller = Caller("co-1", token_id="ak-1")
    with pytest.raises(PermissionDeniedError, match="'member'"):
        found.manage(caller, "x")
    found.directory.users["us-1"].role = "manager"
    found.manage(caller, "x")
    found.directory.tokens["ak-1"].scopes = ("write",)
    with pytest.raises(PermissionDeniedError, match="scope"):
        found.manage(caller, "x")
    found.directory.tokens["ak-1"].scopes, found.directory.tokens["ak-1"].environment_ids = (), ("en-1",)
    with pytest.raises(PermissionDeniedError, match="single environments"):
        found.manage(caller, "x")


def test_what_is_visible() -> None:
    caller = Caller("co-1", token_id="ak-1")
    assert access(token()).visible(caller) == (MAIN, "open", "seen")
    assert access(token()).visible(caller, WRITE) == (MAIN, "open")
    assert access(token(environment_ids=("en-3",))).visible(caller) == ("seen",)
    assert access(token(environment_ids=("en-gone",))).visible(caller) == ()  # a deleted one never becomes all


# --- names ---


@pytest.mark.parametrize("name", ["a", "0", "Dev-1_x", "a" * 64])
def test_names_that_environments_may_have(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "-a", "_a", "a" * 65, "a.b", "a b", "a/b", "en-1", "ä", "a\n"])
def test_names_that_environments_may_not_have(name: str) -> None:
    with pytest.raises(InvalidError):
        check_name(name)


@pytest.mark.parametrize("suffix", ["A", "-a", "a-", "a_b", "a" * 64, "a.b"])
def test_web_suffixes_are_parts_of_host_names(suffix: str) -> None:
    with pytest.raises(InvalidError):
        check_suffix(suffix)


def test_new_environments_get_a_free_suffix() -> None:
    assert free_suffix("Dev_1", set()) == "dev-1"
    assert free_suffix("dev", {"dev", "dev-2"}) == "dev-3"
    assert len(free_suffix("a" * 64, {"a" * 63})) == MAX_SUFFIX_CHARS
    for name in ("a" * 64, "A__", "0"):
        check_suffix(free_suffix(name, {"a" * 63, "a", "0"}))


# --- the guard ---


def test_every_row_of_the_table_says_where_it_belongs() -> None:
    assert [name for name, method in METHODS.items() if not subjects(method)] == []


def test_a_row_that_names_nothing_does_not_start() -> None:
    method = Method("new.thing", make_dataclass("Request", [("what", str)]), Empty)
    with pytest.raises(Bug, match="names nothing"):
        Guard(Access(), Places())._guarded(method, lambda request: None)
    by_name = Method("new.thing", make_dataclass("Request", [("app", str)]), Empty)
    with pytest.raises(Bug, match="names nothing"):  # of which environment
        Guard(Access(), Places())._guarded(by_name, lambda request: None)


class Places:
    """A `Lookup` with an app, a function, a call and two containers in the environment open, and as much in main."""

    def app(self, app_id: str) -> Optional[str]:
        return {"ap-open": "open", "ap-main": MAIN}.get(app_id)

    def function(self, function_id: str) -> Optional[str]:
        return {"fu-open": "open", "fu-main": MAIN, "fu-shut": "shut"}.get(function_id)

    def container(self, container_id: str) -> Optional[Home]:
        return {"ta-1": Home("open"), "ta-2": Home(MAIN), "ta-r": Home("open", True)}.get(container_id)

    async def call(self, call_id: str) -> Optional[str]:
        return {"fc-open": "open", "fc-main": MAIN, "fc-forgotten": "", "fc-shut": "shut"}.get(call_id)


@dataclass
class Asked:
    """What a handler got."""

    body: Any


def ask(
    method_name: str, caller: Caller, *tokens: Token, require_token: bool = False, reply: Any = None, **fields: Any
) -> Any:
    """Give a request to a guarded handler; what the handler saw, or the reply where one is given."""
    method = METHODS[method_name]

    async def handler(request: Any) -> Any:
        return reply if reply is not None else Asked(request.body)

    found = access(*tokens)
    found._home = lambda container_id: (Places().container(container_id) or Home("")).environment
    guarded = Guard(found, Places(), require_token).table({method_name: handler})[method_name]
    return asyncio.run(guarded(SimpleNamespace(caller=caller, body=method.request(**fields))))  # type: ignore[arg-type]


INSIDE = Caller("co-1", "ta-1")
HOST = Caller("co-1")
LIMITED = Caller("co-1", token_id="ak-1")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("function.get", {"function_id": "fu-main"}),
        ("function.bind", {"function_id": "fu-main"}),
        ("function.scale", {"function_id": "fu-main", "patch": None}),
        ("call.spawn", {"function_id": "fu-main", "inputs": ()}),
        ("call.spawn", {"function_id": "fu-open", "inputs": (), "call_id": "fc-main"}),
        ("call.get", {"call_id": "fc-main"}),
        ("call.get", {"call_id": "fc-forgotten"}),
        ("call.cancel", {"call_id": "fc-main"}),
        ("call.graph", {"call_id": "fc-main"}),
        ("app.get", {"app": "ap-main"}),
        ("app.lookup", {"name": "demo", "environment": MAIN}),
        ("function.find", {"app": "demo", "name": "f", "environment": MAIN}),
        ("container.stop", {"container_id": "ta-2"}),
        ("container.exec", {"container_id": "ta-2", "argv": ("sh",)}),
        ("log.read", {"app": "demo", "container": "ta-2"}),
        ("app.stop", {"app": "ap-main"}),
        ("app.publish", {"app_id": "ap-main", "functions": ()}),
        ("app.deploy", {"name": "x", "functions": (), "environment": MAIN}),
        ("app.explain", {"thing": "ta-2"}),
        ("app.explain", {"thing": "in-of-anybody"}),
        ("log.read", {"container": "ta-ended"}),
        ("call.graph", {"call_id": "fc-unknown"}),
        ("stats.read", {"function_id": "fu-main"}),
        ("schedule.run", {"schedule": "fu-main"}),
    ],
)
@pytest.mark.parametrize("caller", [INSIDE, LIMITED], ids=["container", "token"])
def test_nobody_reaches_things_of_another_environment(name: str, fields: Any, caller: Caller) -> None:
    with pytest.raises((PermissionDeniedError, NotFoundError)):
        ask(name, caller, token(environment_ids=("en-1",)), **fields)
    assert ask(name, HOST, **fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("function.get", {"function_id": "fu-open"}),
        ("function.get", {"function_id": "fu-gone"}),
        ("call.spawn", {"function_id": "fu-open", "inputs": (), "call_id": "fc-open"}),
        ("call.get", {"call_id": "fc-open"}),
        ("app.get", {"app": "ap-open"}),
    ],
)
def test_things_of_ones_own_environment_are_open(name: str, fields: Any) -> None:
    assert ask(name, INSIDE, **fields)
    assert ask(name, LIMITED, token(environment_ids=("en-1",)), **fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("function.get", {"function_id": "fu-shut"}),
        ("call.get", {"call_id": "fc-shut"}),
        ("app.get", {"app": "demo", "environment": "shut"}),
    ],
)
def test_a_member_reaches_nothing_where_it_has_no_role(name: str, fields: Any) -> None:
    """Though its token has all scopes and is for all environments."""
    with pytest.raises(PermissionDeniedError):
        ask(name, LIMITED, token(), **fields)
    assert ask(name, HOST, **fields)


def test_a_token_without_its_user_is_none() -> None:
    found = access(token())
    del found.directory.users["us-1"]
    with pytest.raises(AuthError, match="no longer there"):
        found.standing(LIMITED)


def test_what_is_known_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "KNOWN_CALLS", 2)
    asked = []

    class Calls(Places):
        async def call(self, call_id: str) -> Optional[str]:
            asked.append(call_id)
            return "open"

    async def check(*call_ids: str) -> None:
        one = Guard(access(token()), Calls())
        for call_id in call_ids:
            await one._check_call(METHODS["call.get"], LIMITED, call_id)

    asyncio.run(check("fc-1", "fc-2", "fc-1", "fc-3", "fc-1", "fc-3"))
    assert asked == ["fc-1", "fc-2", "fc-3", "fc-1"]  # the first to come is the first to go


def test_an_environment_left_open_is_filled_in() -> None:
    assert ask("function.find", INSIDE, app="demo", name="f").body.environment == "open"
    assert ask("function.find", HOST, app="demo", name="f").body.environment == MAIN
    assert ask("app.deploy", Caller("co-1", environment="open"), name="x", functions=()).body.environment == "open"
    assert ask("log.read", HOST, app="demo").body.environment == MAIN
    assert ask("log.read", Caller("co-1", environment="open"), app="demo").body.environment == "open"
    assert ask("app.list", HOST).body.environment == ""


def test_lists_are_cut_down_to_what_the_caller_may_see() -> None:
    from cadenza.protocol.methods import Containers

    rows: Any = tuple(SimpleNamespace(app_id=one) for one in ("ap-open", "ap-main", "ap-gone"))
    found = ask("container.list", LIMITED, token(environment_ids=("en-1",)), reply=Containers(rows))
    assert [one.app_id for one in found.containers] == ["ap-open"]
    found = ask("container.list", HOST, reply=Containers(rows), environment="open")
    assert [one.app_id for one in found.containers] == ["ap-open"]
    assert len(ask("container.list", HOST, reply=Containers(rows)).containers) == 3


def test_a_read_token_changes_nothing() -> None:
    reader = token(scopes=("read",))
    assert ask("app.get", LIMITED, reader, app="ap-open")
    for name, fields in (
        ("app.deploy", {"name": "x", "functions": ()}),
        ("call.spawn", {"function_id": "fu-open", "inputs": ()}),
        ("object.put", {}),
        ("secret.create", {"name": "s"}),
        ("token.create", {}),
        ("server.stop", {}),
    ):
        with pytest.raises(PermissionDeniedError, match="scope"):
            ask(name, LIMITED, reader, **fields)


def test_a_restricted_container_is_told_that_it_has_no_identity() -> None:
    """``restrict_modal_access=True``: any use is an AuthError."""
    for name, fields in (("function.get", {"function_id": "fu-open"}), ("account.whoami", {}), ("secret.find", {})):
        with pytest.raises(AuthError, match="restrict_modal_access"):
            ask(name, Caller("co-1", "ta-r"), **fields)


def test_a_container_of_no_app_may_ask_nothing() -> None:
    with pytest.raises(PermissionDeniedError):
        ask("function.get", Caller("co-1", "ta-gone"), function_id="fu-open")


def test_where_a_token_is_required_its_makers_tools_are_open() -> None:
    with pytest.raises(AuthError, match="cadenza token new"):
        ask("app.list", HOST, require_token=True)
    assert ask("token.create", HOST, require_token=True)
    assert ask("server.stop", HOST, require_token=True)
    assert ask("app.get", LIMITED, token(), require_token=True, app="ap-open")
    assert ask("app.get", INSIDE, require_token=True, app="ap-open")


def test_the_server_is_ended_by_those_who_manage_it() -> None:
    with pytest.raises(PermissionDeniedError, match="'member'"):
        ask("server.stop", LIMITED, token())
    assert ask("server.stop", HOST)


def test_who_may_change_nothing_anywhere_uploads_nothing() -> None:
    nowhere = token(environment_ids=("en-3",))  # a viewer there
    assert ask("image.list", LIMITED, nowhere)
    with pytest.raises(PermissionDeniedError):
        ask("object.put", LIMITED, nowhere)
