"""``cadenza secret``: how values come in, and that none comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cadenza.cli import secrets as module
from cadenza.cli.secrets import read_json, read_pairs, secret
from cadenza.protocol.methods import Empty
from cadenza.protocol.secrets import SecretInfo, SecretRekeyed, Secrets

MARKER = "hunter2"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is asked, instead of asking it."""
    said: list[Any] = []

    def ask(method: str, request: Any) -> Any:
        said.append((method, request))
        info = SecretInfo("st-1", getattr(request, "name", "db"), "main", ("A", "B"), 1.0)
        replies = {
            "secret.list": Secrets((info,)),
            "secret.delete": Empty(),
            "secret.rekey": SecretRekeyed(2, ("x",), "k"),
        }
        return replies.get(method, info)

    monkeypatch.setattr(module, "ask", ask)
    return said


def run(*argv: str, stdin: str = "") -> Any:
    return CliRunner().invoke(secret, argv, input=stdin)


def test_pairs(asked: list[Any]) -> None:
    done = run("create", "db", f"A={MARKER}", "B=x=y", "C=")
    assert done.exit_code == 0, done.output
    (_, request) = asked[0]
    assert (request.name, request.values, request.overwrite) == ("db", {"A": MARKER, "B": "x=y", "C": ""}, False)
    assert MARKER not in done.output and MARKER not in repr(request)


def test_a_value_from_standard_input_and_one_that_is_typed(asked: list[Any]) -> None:
    done = run("create", "db", "A=-", stdin=f"{MARKER}\nsecond line\n")
    assert asked[0][1].values == {"A": f"{MARKER}\nsecond line"}
    assert MARKER not in done.output
    done = run("create", "db", "A", "B=1", stdin=f"{MARKER}\n")
    assert asked[1][1].values == {"A": MARKER, "B": "1"}
    assert MARKER not in done.output and "Value of A" in done.output


def test_files(asked: list[Any], tmp_path: Path) -> None:
    one, other = tmp_path / "x.json", tmp_path / "y.env"
    one.write_text(json.dumps({"A": MARKER}))
    other.write_text(f"A={MARKER}\n# no\nB='2 3'\n")
    assert run("create", "db", "--from-json", str(one), "--force").exit_code == 0
    assert asked[0][1].values == {"A": MARKER} and asked[0][1].overwrite
    assert run("create", "db", "--from-dotenv", str(other), "-e", "dev").exit_code == 0
    assert asked[1][1].values == {"A": MARKER, "B": "2 3"} and asked[1][1].environment == "dev"
    assert run("create", "db", "--from-json", "-", stdin='{"A": "in"}').exit_code == 0
    assert asked[2][1].values == {"A": "in"}


@pytest.mark.parametrize(
    "argv",
    [
        ("create", "db"),
        ("create", "db", "A=1", "--from-json", "/dev/null"),
        ("create", "db", f"={MARKER}"),
        ("create", "db", f"A={MARKER}", f"A={MARKER}"),
        ("create", "db", "A=-", "B=-"),
        ("create", "db", "--from-json", "/dev/null"),
        ("create", "db", "--from-dotenv", "/not/there"),
        ("create", "db", "--from-dotenv", "/dev/null"),
    ],
)
def test_wrong_usage_asks_nothing_and_shows_nothing(asked: list[Any], argv: tuple[str, ...]) -> None:
    done = run(*argv)
    assert done.exit_code == 2, done.output
    assert not asked and MARKER not in done.output


@pytest.mark.parametrize(
    "text", [f'["{MARKER}"]', f'{{"A": ["{MARKER}"]}}', f"{{{MARKER}", '{"A": null}', "[" * 100_000]
)
def test_json_that_cannot_be(text: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        read_json(text)
    assert MARKER not in str(raised.value)
    assert read_pairs(("A=",)) == {"A": ""}


def test_list_and_delete_and_rekey(asked: list[Any]) -> None:
    assert json.loads(run("list", "--json").output)[0]["variables"] == ["A", "B"]
    assert run("delete", "db", stdin="n\n").exit_code == 1
    assert [one[0] for one in asked] == ["secret.list"]
    assert run("delete", "db", "-y", "--allow-missing").exit_code == 0
    assert asked[-1][1].allow_missing
    assert run("rekey", "--discard", stdin="n\n").exit_code == 1
    done = run("rekey", "--discard", "-y")
    assert "Sealed 2 secrets" in done.output and "x" in done.output
