"""Configuration: semantics.md section 24; our own rules in the module."""

from __future__ import annotations

import os

import pytest

from cadenza.base.config import Config, load, node_labels
from cadenza.base.errors import InvalidError


def write(tmp_path, text: str) -> dict[str, str]:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config/config.toml").write_text(text)
    return {"CADENZA_HOME": str(tmp_path)}


def test_xdg_directories(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    found = load({"HOME": "/home/a", "XDG_RUNTIME_DIR": str(run), "XDG_DATA_HOME": "/data"})
    assert found.data_dir == "/data/cadenza"
    assert found.state_dir == "/home/a/.local/state/cadenza"
    assert found.socket_path == str(run / "cadenza/server.sock")
    assert found.lock_path == "/home/a/.local/state/cadenza/server.lock"


def test_a_socket_path_that_is_too_long_moves(tmp_path) -> None:
    found = load({"CADENZA_HOME": "/" + "long" * 40})
    assert found.socket_path == f"/tmp/cadenza-{os.getuid()}/server.sock"


def test_precedence(tmp_path) -> None:
    environ = write(tmp_path, '[default]\nloglevel = "INFO"\nidle_stop_s = 5\n[other]\nloglevel = "ERROR"\n')
    assert load(environ).loglevel == "INFO"
    assert load({**environ, "MODAL_PROFILE": "other"}).loglevel == "ERROR"
    assert load({**environ, "MODAL_LOGLEVEL": "DEBUG"}).loglevel == "DEBUG"
    assert load({**environ, "MODAL_LOGLEVEL": "DEBUG", "CADENZA_LOGLEVEL": "CRITICAL"}).loglevel == "CRITICAL"
    assert load(environ).idle_stop_s == 5


def test_the_active_profile(tmp_path) -> None:
    environ = write(tmp_path, "[a]\n[b]\nactive = true\ntraceback = true\n")
    assert load(environ).traceback is True


def test_all_faults_at_once(tmp_path) -> None:
    environ = write(tmp_path, '[default]\ncolour = "red"\npool_containers = "two"\n')
    with pytest.raises(InvalidError) as raised:
        load({**environ, "CADENZA_IDLE_STOP_S": "soon", "CADENZA_RUNTIME": "docker", "CADENZA_TRACEBACK": "perhaps"})
    text = str(raised.value)
    for word in ("colour", "pool_containers", "IDLE_STOP_S", "RUNTIME", "TRACEBACK"):
        assert word in text


def test_a_file_that_does_not_parse(tmp_path) -> None:
    with pytest.raises(InvalidError, match=r"config\.toml"):
        load(write(tmp_path, "[default\n"))


def test_settings_above_all_profiles_are_not_passed_over(tmp_path) -> None:
    with pytest.raises(InvalidError, match=r"peers, store: settings belong to a profile; put a line \[default\]"):
        load(write(tmp_path, 'store = "file:///bucket"\npeers = ""\n[default]\nloglevel = "INFO"\n'))


def test_a_profile_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InvalidError, match="no profile 'mine'; there are default"):
        load({**write(tmp_path, "[default]\n"), "CADENZA_PROFILE": "mine"})


def test_addresses_of_modals_own_servers_are_not_ours(tmp_path) -> None:
    environ = {"CADENZA_HOME": str(tmp_path)}
    assert load({**environ, "MODAL_SERVER_URL": "https://elsewhere"}).server_url == ""
    assert load({**environ, "CADENZA_SERVER_URL": "unix:/s.sock"}).socket_path == "/s.sock"


def test_throttling_may_be_without_end(tmp_path) -> None:
    environ = {"CADENZA_HOME": str(tmp_path)}
    assert load(environ).max_throttle_wait is None
    assert load({**environ, "MODAL_MAX_THROTTLE_WAIT": "0"}).max_throttle_wait == 0.0
    assert load({**environ, "MODAL_MAX_THROTTLE_WAIT": "none"}).max_throttle_wait is None


def test_defaults_are_those_of_the_specification() -> None:
    defaults = Config()
    assert (defaults.logs_timeout, defaults.heartbeat_interval, defaults.loglevel) == (10, 15, "WARNING")


def test_labels_of_this_machine_are_read_once_and_faults_are_named() -> None:
    assert node_labels("") == {"cloud": "local", "region": "local", "zone": "local"}
    assert node_labels("region=home, rack = 3") == {
        "cloud": "local", "region": "home", "zone": "local", "rack": "3",
    }  # fmt: skip
    with pytest.raises(InvalidError, match=r"CADENZA_NODE_LABELS='home': 'home' is no label: write name=value"):
        load({"CADENZA_HOME": "/tmp/x", "CADENZA_NODE_LABELS": "home"})


def test_another_services_token_is_not_ours() -> None:
    """MODAL_TOKEN_ID and MODAL_TOKEN_SECRET belong to Modal's own service: they are neither read nor sent."""
    found = load({"HOME": "/home/a", "MODAL_TOKEN_ID": "ak-theirs", "MODAL_TOKEN_SECRET": "as-theirs"})
    assert (found.token_id, found.token_secret) == ("", "")
    found = load({"HOME": "/home/a", "CADENZA_TOKEN_ID": "ak-ours", "MODAL_TOKEN_ID": "ak-theirs"})
    assert found.token_id == "ak-ours"
    assert "as-ours" not in repr(load({"HOME": "/home/a", "CADENZA_TOKEN_SECRET": "as-ours"}))


def test_no_environment_is_meant_unless_one_is_configured(tmp_path) -> None:
    """The workspace's default is the server's to know."""
    assert load({"HOME": "/home/a"}).environment == ""
    assert load({"HOME": "/home/a", "MODAL_ENVIRONMENT": "dev"}).environment == "dev"
    assert load(write(tmp_path, '[default]\nenvironment = "dev"\n')).environment == "dev"
