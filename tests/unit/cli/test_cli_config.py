from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from cadenza.cli.config import config, with_setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("", "", {"default": {"loglevel": "INFO"}}),
        ("[a]\nx = 1\n", "", {"a": {"x": 1}, "default": {"loglevel": "INFO"}}),
        ("[a]\nactive = true\n[b]\n", "", {"a": {"active": True, "loglevel": "INFO"}, "b": {}}),
        ("[a]\nactive = true\n[b]\n", "b", {"a": {"active": True}, "b": {"loglevel": "INFO"}}),
        ('[default]\nloglevel = "DEBUG"  # why\n', "", {"default": {"loglevel": "INFO"}}),
        ("[default]  # mine\nx = 1\n", "", {"default": {"x": 1, "loglevel": "INFO"}}),
        ('["a b"]\nactive = true # now\n', "", {"a b": {"active": True, "loglevel": "INFO"}}),
    ],
)
def test_a_setting_lands_in_the_right_table(text: str, profile: str, expected: dict[str, object]) -> None:
    assert tomllib.loads(with_setting(text, profile, "loglevel", '"INFO"')) == expected


def test_set_then_show(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    done = CliRunner().invoke(config, ["set", "idle_stop_s", "7"])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(config, ["show", "--json"])
    assert '"idle_stop_s": 7' in shown.output
    assert (tmp_path / "config/config.toml").stat().st_mode & 0o777 == 0o600


def test_a_wrong_value_is_refused_and_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    done = CliRunner().invoke(config, ["set", "isolation", "none"])
    assert done.exit_code != 0
    assert "standard, strong" in str(done.exception)
    assert not (tmp_path / "config").exists()


def test_an_unknown_setting_lists_the_known(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    done = CliRunner().invoke(config, ["set", "colour", "red"])
    assert done.exit_code == 2
    assert "isolation" in done.output


def test_secrets_are_hidden(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    monkeypatch.setenv("CADENZA_TOKEN_SECRET", "as-hush")
    assert "as-hush" not in CliRunner().invoke(config, ["show"]).output
    assert "as-hush" in CliRunner().invoke(config, ["show", "--no-redact"]).output
