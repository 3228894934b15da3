"""Secrets and the order of variables. Source: semantics.md sections 14 and 34."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cadenza import Secret
from cadenza.exception import InvalidError, NotFoundError
from cadenza.runner import context
from cadenza.sdk import handle
from cadenza.sdk.recipe import StepOptions
from cadenza.sdk import client as client_module
from cadenza.sdk.client import Client
from cadenza.sdk.secret import check_secrets, merge, references
from fake_server import FakeServer, Peer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    one = FakeServer(str(tmp_path / "s.sock"))
    client = Client("unix:" + one.path)
    monkeypatch.setattr(client_module, "_default", client)
    yield one
    client.close()
    one.close()


@pytest.fixture
def in_container() -> Any:
    context.become(context.Container("ta-x"))
    yield
    context.become(None)


def test_from_dict_leaves_out_none() -> None:
    assert Secret.from_dict({"A": "1", "B": None})._variables() == {"A": "1"}


@pytest.mark.parametrize(
    "variables",
    [{"a": 1}, {1: "a"}, ["A"], {"1A": "x"}, {"A-B": "x"}, {"": "x"}, {"Ä": "x"}, {"A": "\0"}, {"A\n": "x"}],
)
def test_from_dict_wrong(variables: Any) -> None:
    with pytest.raises(InvalidError):
        Secret.from_dict(variables)


def test_limits_of_length() -> None:
    assert Secret.from_dict({"A" * 16_384: "x" * 32_768})
    with pytest.raises(InvalidError, match="16,384"):
        Secret.from_dict({"A" * 16_385: "x"})
    with pytest.raises(InvalidError, match="32,768"):
        Secret.from_dict({"A": "x" * 32_769})
    many: dict[str, Any] = {f"A{number}": "x" * 32_768 for number in range(19)}
    assert Secret.from_dict(many)
    with pytest.raises(InvalidError, match="640 KiB together"):
        Secret.from_dict({**many, "B": "x" * 32_768})
    with pytest.raises(InvalidError, match="640 KiB"):  # each of these takes two bytes on the wire
        Secret.from_dict({f"A{number}": "\n" * 32_768 for number in range(11)})


def test_a_value_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the shell may have any bytes in it."""
    monkeypatch.setenv("CADENZA_TEST_A", "a\udc80b")
    with pytest.raises(InvalidError, match="not valid Unicode"):
        Secret.from_local_environ(["CADENZA_TEST_A"])


def test_the_limit_is_that_of_the_server() -> None:
    from cadenza.control import sealed
    from cadenza.sdk import secret

    assert secret.MAX_VARIABLES_BYTES == sealed.MAX_VARIABLES_BYTES


def test_from_local_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CADENZA_TEST_A", "1")
    monkeypatch.delenv("CADENZA_TEST_B", raising=False)
    assert Secret.from_local_environ(["CADENZA_TEST_A"])._variables() == {"CADENZA_TEST_A": "1"}
    with pytest.raises(InvalidError, match="CADENZA_TEST_B"):
        Secret.from_local_environ(["CADENZA_TEST_A", "CADENZA_TEST_B"])
    with pytest.raises(InvalidError, match="list"):
        Secret.from_local_environ("CADENZA_TEST_A")  # type: ignore[arg-type]


def test_in_a_container_what_is_local_is_empty(in_container: None) -> None:
    assert Secret.from_local_environ(["CADENZA_NOT_SET"])._variables() == {}
    assert Secret.from_dotenv("/not/there")._variables() == {}


def test_from_dotenv_searches_upward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("A=1\nB='two words'\nEMPTY\n")
    deep = tmp_path / "x" / "y"
    deep.mkdir(parents=True)
    (deep / "file.py").write_text("")
    assert Secret.from_dotenv(deep)._variables() == {"A": "1", "B": "two words"}
    assert Secret.from_dotenv(str(deep / "file.py"))._variables()["A"] == "1"
    (tmp_path / "x" / "other.env").write_text("A=2")
    monkeypatch.chdir(deep)
    assert Secret.from_dotenv(filename="other.env")._variables() == {"A": "2"}
    with pytest.raises(InvalidError, match="nowhere"):
        Secret.from_dotenv(tmp_path / "nowhere")


def test_from_dotenv_without_a_file_or_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match=r"no-such\.env"):
        assert Secret.from_dotenv(tmp_path, filename="no-such.env")._variables() == {}
    monkeypatch.setitem(sys.modules, "dotenv", None)
    with pytest.raises(ImportError, match="pip install python-dotenv"):
        Secret.from_dotenv(tmp_path)


def test_the_later_wins() -> None:
    app = Secret.from_dict({"A": "app", "B": "app", "C": "app"})
    one = Secret.from_dict({"B": "one", "C": "one", "D": "one"})
    two = Secret.from_dict({"C": "two"})
    assert merge([app], [one, two]) == {"A": "app", "B": "one", "C": "two", "D": "one"}
    named = references([app], [one, two, Secret.from_dict({})])
    assert [one.keys for one in named] == [("A", "B", "C"), ("B", "C", "D"), ("C",)]
    assert "two" not in repr(named)


def test_values_are_never_shown() -> None:
    secret = Secret.from_dict({"TOKEN": "hunter2"})
    assert "hunter2" not in repr(secret)
    assert "TOKEN" in repr(secret)
    with pytest.raises(InvalidError):
        import pickle

        pickle.dumps(secret)


def stored(server: FakeServer) -> dict[str, Any]:
    """A server with one secret, and what was asked of it."""
    info = {
        "secret_id": "st-1", "name": "mine", "environment": "main", "keys": ["A"], "created_at": 1.0, "updated_at": 2.0,
        "used_at": 3.0, "created_by": "ann",
    }  # fmt: skip

    def find(peer: Peer, number: int, body: Any, payload: bytes) -> None:
        if body["name"] == "other":
            peer.error(number, "not_found", "there is no secret 'other'")
        else:
            peer.send("rep", number, info)

    server.handlers["secret.find"] = find
    for method in ("secret.create", "secret.update"):
        server.handlers[method] = lambda peer, number, body, payload: peer.send("rep", number, info)
    server.handlers["secret.delete"] = lambda peer, number, body, payload: peer.send("rep", number, {})
    server.handlers["secret.list"] = lambda peer, number, body, payload: peer.send("rep", number, {"secrets": [info]})
    return info


def test_from_name_asks_nothing_until_it_is_used(server: FakeServer) -> None:
    """Semantics 33 (26): it never fails; the error comes at the first use."""
    stored(server)
    mine, other = Secret.from_name("mine", required_keys=["A"]), Secret.from_name("other")
    assert mine.name == "mine" and not mine.is_hydrated and not server.hellos
    mine.hydrate()
    assert mine.object_id == "st-1"
    assert server.requests("secret.find")[0]["required_keys"] == ["A"]
    with pytest.raises(NotFoundError, match="other"):
        other.hydrate()


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ap-" + "a" * 22, 5])
def test_names_are_checked_at_once(name: Any) -> None:
    """Semantics section 4: object names are checked at from_name."""
    with pytest.raises(InvalidError):
        Secret.from_name(name)
    Secret.from_name("x" * 64)


def test_required_keys_are_a_list() -> None:
    with pytest.raises(InvalidError, match="required_keys"):
        Secret.from_name("mine", required_keys="A")  # type: ignore[arg-type]


def test_a_declaration_names_stored_secrets_and_has_no_values_of_them() -> None:
    app = Secret.from_name("db", environment_name="dev", required_keys=["A"])
    found = references([app], [Secret.from_dict({"B": "1"})])
    assert [(one.name, one.environment, one.required, one.values) for one in found] == [
        ("db", "dev", ("A",), {}),
        ("", "", (), {"B": "1"}),
    ]
    with pytest.raises(InvalidError, match="containers only"):
        app._variables()


def test_a_build_step_names_stored_secrets() -> None:
    """Semantics 13: what a layer is depends on which secrets its step sees, and not on their values."""
    step = StepOptions.read(
        "run_commands", False, {"E": "1"}, [Secret.from_name("db"), Secret.from_dict({"B": "2"})], None
    )
    made = step.step("run", ("true",))
    assert [one.name for one in made.secret_refs] == ["db", ""]
    assert made.secrets == {"E": "1"}
    assert made.secret_keys == ("B", "E", "secret /db")
    plain = StepOptions.read("run_commands", False, None, [Secret.from_dict({"B": "2"})], None).step("run", ("true",))
    assert (plain.secret_refs, plain.secrets) == ((), {"B": "2"})


def test_objects(server: FakeServer) -> None:
    stored(server)
    Secret.objects.create("mine", {"A": "hunter2"}, allow_existing=True, environment_name="dev")
    assert server.requests("secret.create")[0] == {
        "name": "mine", "values": {"A": "hunter2"}, "environment": "dev", "overwrite": False, "allow_existing": True,
    }  # fmt: skip
    found = Secret.objects.list(max_objects=5, created_before="2026-01-01T00:00:00Z")
    assert server.requests("secret.list")[0] == {"environment": "", "limit": 5, "created_before": 1767225600.0}
    assert [(one.name, one.object_id) for one in found] == [("mine", "st-1")]
    assert Secret.objects.list(max_objects=0) == []
    Secret.objects.delete("mine", allow_missing=True)
    assert server.requests("secret.delete")[0] == {"name": "mine", "environment": "", "allow_missing": True}
    with pytest.raises(InvalidError, match="ISO 8601"):
        Secret.objects.list(created_before="yesterday")


def test_update_and_info(server: FakeServer) -> None:
    stored(server)
    secret = Secret.from_name("mine")
    secret.update({"A": "new", "B": None})
    assert server.requests("secret.update")[0] == {"secret_id": "st-1", "values": {"A": "new", "B": None}}
    info = secret.info()
    assert (info.name, info.environment_name, info.created_by) == ("mine", "main", "ann")
    assert (info.created_at.timestamp(), info.last_used and info.last_used.timestamp()) == (1.0, 3.0)
    with pytest.raises(InvalidError, match="not stored"):
        Secret.from_dict({"A": "1"}).update({"A": "2"})
    with pytest.raises(InvalidError):
        secret.update({"1A": "x"})


def test_a_hydrated_one_travels_without_values(server: FakeServer) -> None:
    """Semantics 33 (27): handles travel as ids; one that is not hydrated is an InvalidError."""
    stored(server)
    secret = Secret.from_name("mine", environment_name="dev")
    with pytest.raises(InvalidError, match="hydrate"):
        handle.persistent_id(secret)
    secret.hydrate()
    written = handle.persistent_id(secret)
    assert written == ("st-1", "Secret", {"name": "mine", "environment": "dev"})
    copy = handle.persistent_load(written)
    assert isinstance(copy, Secret) and copy.name == "mine" and copy.is_hydrated


def test_a_secret_is_not_made_by_its_class() -> None:
    with pytest.raises(RuntimeError):
        Secret()
    with pytest.raises(InvalidError, match="list of Secrets"):
        check_secrets(Secret.from_dict({}), "x")
    with pytest.raises(InvalidError, match="str"):
        check_secrets(["A"], "x")
