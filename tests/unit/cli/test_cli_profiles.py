"""Profiles and tokens in the configuration file; comments stay. Source: semantics.md section 24."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from cadenza.cli import configfile, tokens
from cadenza.cli.profiles import profile
from cadenza.cli.setup import TEMPLATE
from cadenza.protocol.accounts import Identity, TokenCreated, TokenInfo, Tokens

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = """\
# head
[default]  # the first
active = true
loglevel = "INFO" # why

[ci]
# between
token_id = "ak-old"
token_secret = "as-old"
# tail
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    for name in ("CADENZA_PROFILE", "MODAL_PROFILE", "CADENZA_TOKEN_ID", "CADENZA_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "config" / "config.toml"


def test_activating_moves_one_mark_and_keeps_every_comment(home) -> None:
    configfile.save(FILE)
    assert CliRunner().invoke(profile, ["current"]).output == "default\n"
    assert CliRunner().invoke(profile, ["activate", "ci"]).exit_code == 0
    assert CliRunner().invoke(profile, ["current"]).output == "ci\n"
    text = home.read_text()
    assert [name for name, table in tomllib.loads(text).items() if table.get("active")] == ["ci"]
    assert [line for line in text.splitlines() if "#" in line] == [line for line in FILE.splitlines() if "#" in line]
    assert home.stat().st_mode & 0o777 == 0o600


def test_an_unknown_profile_is_not_activated(home) -> None:
    configfile.save(FILE)
    done = CliRunner().invoke(profile, ["activate", "no"])
    assert done.exit_code == 2 and "default, ci" in done.output
    assert home.read_text() == FILE


def test_profiles_are_listed(home) -> None:
    assert '"name": "default"' in CliRunner().invoke(profile, ["list", "--json"]).output
    configfile.save(FILE)
    shown = CliRunner().invoke(profile, ["list"]).output
    assert "ci\tak-old" in shown and "as-old" not in shown


def test_a_setting_goes_without_its_neighbours() -> None:
    text = configfile.without_setting(FILE, "ci", "token_id")
    assert tomllib.loads(text)["ci"] == {"token_secret": "as-old"}
    assert configfile.without_setting(FILE, "no", "token_id") == FILE
    assert configfile.without_setting("", "no", "token_id") == ""


def test_a_profile_with_a_name_that_needs_quotes_stays_one_table() -> None:
    assert tomllib.loads(configfile.with_setting("", "a b", "x", "1")) == {"a b": {"x": 1}}


def test_the_template_is_a_configuration() -> None:
    from dataclasses import fields

    from cadenza.base.config import Config

    assert tomllib.loads(TEMPLATE) == {"default": {"active": True}}
    named = {line[2:].split(" = ")[0] for line in TEMPLATE.splitlines() if line.startswith("# ") and " = " in line}
    assert named <= {one.name for one in fields(Config)} and len(named) >= 5
    commented = "\n".join(line[2:] if " = " in line else line for line in TEMPLATE.splitlines())
    assert tomllib.loads(commented.replace("tive = true", ""))  # without their marks the lines are good TOML


class Server:
    """What `tokens.ask_as` talks to."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, str, object]] = []

    def __call__(self, credentials, method, request):
        self.asked.append((credentials, method, request))
        if method == "token.create":
            return TokenCreated("ak-new", "as-new")
        if method == "token.list":
            return Tokens((TokenInfo("ak-old", "ann"),))
        return Identity("ann", "owner", "ak-new")


@pytest.fixture
def server(monkeypatch):
    one = Server()
    monkeypatch.setattr(tokens, "ask_as", one)
    return one


def test_a_new_token_is_made_as_the_servers_own_user_and_kept(home, server) -> None:
    configfile.save(FILE)
    done = CliRunner().invoke(tokens.token, ["new", "--expires-in", "2h"])
    assert done.exit_code == 0, done.output
    (who, method, request), (again, checked, _) = server.asked
    assert (who, method, request.expires_in_s) == (None, "token.create", 7200.0)
    assert (again, checked) == (("ak-new", "as-new"), "account.whoami")
    assert tomllib.loads(home.read_text())["default"] == {
        "active": True, "loglevel": "INFO", "token_id": "ak-new", "token_secret": "as-new",
    }  # fmt: skip
    assert "as-new" not in done.output


def test_a_profile_that_is_not_there_is_made(home, server, monkeypatch) -> None:
    configfile.save(FILE)
    monkeypatch.setenv("CADENZA_PROFILE", "fresh")
    assert CliRunner().invoke(tokens.token, ["new", "--no-activate"]).exit_code == 0
    found = tomllib.loads(home.read_text())
    assert found["fresh"] == {"token_id": "ak-new", "token_secret": "as-new"}
    assert found["default"]["active"] is True


def test_a_token_as_json_is_written_nowhere(home, server) -> None:
    done = CliRunner().invoke(tokens.token, ["new", "--json"])
    assert '"token_secret": "as-new"' in done.output
    assert not home.exists()


def test_rotating_replaces_the_profiles_token(home, server, monkeypatch) -> None:
    configfile.save(FILE)
    monkeypatch.setenv("CADENZA_PROFILE", "ci")
    assert CliRunner().invoke(tokens.token, ["rotate"]).exit_code == 0
    request = server.asked[-1][2]
    assert (request.user, request.replaces) == ("ann", "ak-old")
    assert tomllib.loads(home.read_text())["ci"] == {"token_id": "ak-new", "token_secret": "as-new"}
    assert "# between" in home.read_text()


@pytest.mark.parametrize("wrong", [["--expires-in", "soon"], ["--expires-in", "0"], ["--scope", "all"]])
def test_wrong_options_of_a_new_token(home, server, wrong) -> None:
    done = CliRunner().invoke(tokens.token, ["new", *wrong])
    assert done.exit_code == 2
    assert server.asked == []


def test_a_token_that_is_none_is_not_set(home, server) -> None:
    done = CliRunner().invoke(tokens.token, ["set", "--token-id", "wk-1", "--token-secret", "ws-1"])
    assert done.exit_code == 2 and not home.exists()
