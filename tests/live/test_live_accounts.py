"""Environments and tokens with real containers: what is in one environment is not seen from another.

Source: semantics.md section 24.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import os
import cadenza
from cadenza import Environment, Function, FunctionCall, Secret

app = cadenza.App("accounts-live")

@app.function(secrets=[Secret.from_name("shared")])
def who():
    return [os.environ["MODAL_ENVIRONMENT"], os.environ["VALUE"]]

def outcome(attempt):
    try:
        return attempt()
    except Exception as error:
        return type(error).__name__

@app.function(secrets=[Secret.from_name("shared")])
def reach(other_function, other_call, other_app):
    def secret_of(name, environment=None):
        return Secret.from_name(name, environment_name=environment).hydrate().name
    tries = {
        "own function": lambda: Function.from_name("accounts-live", "who").remote(),
        "own environment": lambda: Environment.from_context().hydrate().name,
        "own secret": lambda: secret_of("shared"),
        "a new secret of its own": lambda: Secret.objects.create("made-inside", {"A": "1"}),
        "another function by name":
            lambda: Function.from_name("accounts-live", "who", environment_name="main").hydrate(),
        "another function by id": lambda: Function.from_id(other_function).remote(),
        "another call": lambda: FunctionCall.from_id(other_call).get(timeout=0),
        "to cancel another call": lambda: FunctionCall.from_id(other_call).cancel(),
        "another secret": lambda: secret_of("shared", "main"),
        "a new secret elsewhere": lambda: Secret.objects.create("bad", {"A": "1"}, environment_name="main"),
        "another environment": lambda: Environment.from_name("main").hydrate().name,
        "all environments": lambda: [one.name for one in Environment.objects.list()],
        "an environment of its own": lambda: Environment.objects.create("bad"),
    }
    return {name: outcome(attempt) for name, attempt in tries.items()}

@app.function(restrict_modal_access=True, single_use_containers=True)
def locked():
    return outcome(lambda: Function.from_name("accounts-live", "who").hydrate())

@app.function()
def wait(seconds):
    import time
    time.sleep(seconds)
    return seconds
"""

ASK = """
import json, sys
import cadenza
from cadenza import Function

def named(name, environment):
    return Function.from_name("accounts-live", name, environment_name=environment)

found = {one: named("who", one).remote() for one in ("main", "dev")}
found["default"] = Function.from_name("accounts-live", "who").remote()
call = named("wait", "main").spawn(0)
call.get(timeout=60)
who = named("who", "main").hydrate()
found["reach"] = named("reach", "dev").remote(who.object_id, call.object_id, "")
found["locked"] = named("locked", "dev").remote()
print(json.dumps(found))
"""


def ran(done: subprocess.CompletedProcess[str], home) -> str:
    assert done.returncode == 0, done.stderr + home.server_log()
    return done.stdout


@pytest.fixture(scope="module")
def deployed(home):
    """The program in two environments, main and dev, each with a secret of the same name."""
    program = home.program("accounts.py", PROGRAM)
    ran(home.cadenza("environment", "create", "dev"), home)
    for environment in ("main", "dev"):
        ran(home.cadenza("secret", "create", "-e", environment, "shared", f"VALUE=of-{environment}"), home)
        ran(home.cadenza("deploy", "-e", environment, program, timeout=280), home)
    yield program
    for environment in ("main", "dev"):
        home.cadenza("app", "stop", "-e", environment, "-y", "accounts-live")
        home.cadenza("secret", "delete", "-e", environment, "-y", "shared")
    home.cadenza("environment", "delete", "-y", "dev")


def asked(home, **more: str):
    """What a program of the user's own finds."""
    path = home.program("ask.py", ASK)
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=200, env={**home.environ, **more}
    )  # fmt: skip
    return json.loads(ran(done, home).splitlines()[-1])


def test_environments_keep_apps_secrets_and_containers_apart(home, deployed) -> None:
    found = asked(home, MODAL_ENVIRONMENT="dev", MODAL_TOKEN_ID="ak-of-another", MODAL_TOKEN_SECRET="as-of-another")
    assert found["main"] == ["main", "of-main"]
    assert found["dev"] == ["dev", "of-dev"]
    assert found["default"] == ["dev", "of-dev"]  # MODAL_ENVIRONMENT; and another service's token is not sent
    reach = found["reach"]
    assert reach.pop("own function") == ["dev", "of-dev"]
    assert reach.pop("own environment") == "dev"
    assert reach.pop("own secret") == "shared"
    assert reach.pop("a new secret of its own") is None
    assert set(reach.values()) == {"PermissionDeniedError"}, reach
    assert found["locked"] == "AuthError"
    listed = json.loads(ran(home.cadenza("secret", "list", "-e", "dev", "--json"), home))
    assert {one["name"] for one in listed} == {"shared", "made-inside"}
    assert [one["name"] for one in json.loads(ran(home.cadenza("secret", "list", "-e", "main", "--json"), home))] == [
        "shared"
    ]


def test_an_environment_with_apps_stays(home, deployed) -> None:
    refused = home.cadenza("environment", "delete", "-y", "dev")
    assert refused.returncode == 1
    assert "first (cadenza app list -e dev)" in refused.stderr


def token(home, *options: str) -> dict[str, str]:
    made = json.loads(ran(home.cadenza("token", "new", "--json", *options), home))
    return {"CADENZA_TOKEN_ID": made["token_id"], "CADENZA_TOKEN_SECRET": made["token_secret"]}


def test_a_token_that_reads_does_not_deploy(home, deployed) -> None:
    reader = token(home, "--scope", "read")
    listed = json.loads(ran(home.cadenza("app", "list", "--json", **reader), home))
    assert any("accounts-live" in one.values() for one in listed)
    refused = home.cadenza("deploy", deployed, **reader)
    assert refused.returncode == 1
    assert "scope read" in refused.stderr and "Traceback" not in refused.stderr


def test_a_token_for_one_environment_sees_that_one(home, deployed) -> None:
    only = token(home, "--only", "dev")
    listed = json.loads(ran(home.cadenza("app", "list", "--json", **only), home))
    assert len(listed) == 1
    refused = home.cadenza("deploy", "-e", "main", deployed, **only)
    assert refused.returncode == 1 and "not for the environment 'main'" in refused.stderr
    ran(home.cadenza("deploy", deployed, timeout=200, **only), home)  # its own environment is meant


def test_tokens_that_are_no_longer_good(home, deployed) -> None:
    gone = token(home, "--expires-in", "1s")
    expired_at = time.monotonic() + 1.0
    disabled = token(home)
    ran(home.cadenza("workspace", "member-tokens", "disable", "-y", disabled["CADENZA_TOKEN_ID"]), home)
    time.sleep(max(0.0, expired_at - time.monotonic()))
    for one, word in ((disabled, "disabled"), (gone, "expired"), ({**gone, "CADENZA_TOKEN_SECRET": "as-x"}, "wrong")):
        refused = home.cadenza("app", "list", **one)
        assert refused.returncode == 1 and word in refused.stderr, refused.stderr
    secrets = [one["CADENZA_TOKEN_SECRET"] for one in (gone, disabled)]
    assert not any(one in home.server_log() for one in secrets)
    for path in (home.path / "data").glob("cadenza.db*"):
        assert not any(one[3:].encode() in path.read_bytes() for one in secrets)


def test_a_profile_holds_a_token_and_rotates_it(home, deployed) -> None:
    made = ran(home.cadenza("--profile", "ci", "token", "new", "--scope", "write", "--no-activate"), home)
    assert "profile ci" in made
    config = home.path / "config" / "config.toml"
    assert config.stat().st_mode & 0o077 == 0
    config.write_text("# mine\n" + config.read_text())
    before = json.loads(ran(home.cadenza("--profile", "ci", "token", "info", "--json"), home))
    assert before["scopes"] == ["write"]
    ran(home.cadenza("--profile", "ci", "token", "rotate"), home)
    after = json.loads(ran(home.cadenza("--profile", "ci", "token", "info", "--json"), home))
    assert after["token_id"] != before["token_id"] and after["scopes"] == ["write"]
    assert config.read_text().startswith("# mine\n")
    assert json.loads(ran(home.cadenza("token", "info", "--json"), home))["token_id"] is None  # default has none
    config.unlink()
