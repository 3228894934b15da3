"""Secrets and the order of variables. Source: semantics.md sections 14 and 34."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cadenza import Secret
from cadenza.exception import InvalidError, UnimplementedError
from cadenza.runner import context
from cadenza.sdk.secret import check_secrets, merge, references


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


def test_a_stored_secret_fails_at_first_use_only() -> None:
    secret = Secret.from_name("mine", required_keys=["A"])
    assert secret.name == "mine"
    with pytest.raises(UnimplementedError, match="from_dict"):
        merge([secret])


def test_stored_secrets_are_for_later() -> None:
    objects = Secret.objects
    with pytest.raises(UnimplementedError, match=r"Secret\.objects\.list"):
        objects.list()
    assert not hasattr(objects, "__len__")


def test_a_secret_is_not_made_by_its_class() -> None:
    with pytest.raises(RuntimeError):
        Secret()
    with pytest.raises(InvalidError, match="list of Secrets"):
        check_secrets(Secret.from_dict({}), "x")
    with pytest.raises(InvalidError, match="str"):
        check_secrets(["A"], "x")
