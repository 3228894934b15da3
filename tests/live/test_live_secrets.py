"""Secrets from the command line to a container; and a search for their values everywhere that they must not be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

MARKER = "hunter2-correct-horse-battery-staple"
PROGRAM = f"""
import os, time
import cadenza

image = cadenza.Image.debian_slim().run_commands(
    "test -n \\"$STORED\\" && echo built with ${{#STORED}} letters > /built",
    secrets=[cadenza.Secret.from_name("live-one")],
)
app = cadenza.App("secrets-live", secrets=[cadenza.Secret.from_dict({{"APP": "app", "STORED": "app"}})])

@app.function(
    image=image,
    secrets=[
        cadenza.Secret.from_name("live-one", required_keys=["STORED"]),
        cadenza.Secret.from_dict({{"INLINE": "{MARKER}" + "-inline"}}),
    ],
    env={{"OVER": "env"}},
)
def look():
    return {{name: os.environ.get(name, "") for name in ("APP", "STORED", "INLINE", "OVER")}}

@app.function(secrets=[cadenza.Secret.from_name("live-one")])
def stay(seconds):
    time.sleep(seconds)

@app.local_entrypoint()
def main(seconds: float = 0.0):
    found = look.remote()
    assert found["STORED"].endswith("-stored"), found
    assert found["INLINE"].endswith("-inline"), found
    print("seen", found["APP"], found["OVER"], len(found["STORED"]))
    if seconds:
        stay.remote(seconds)
"""


def stored(home) -> None:
    path = home.path / "values.json"
    path.write_text(json.dumps({"STORED": MARKER + "-stored", "OVER": "secret"}))
    made = home.cadenza("secret", "create", "live-one", "--from-json", str(path), "--force")
    path.unlink()
    assert made.returncode == 0, made.stderr + home.server_log()
    assert MARKER not in made.stdout + made.stderr


def holding(root: Path) -> list[str]:
    """Files below ``root`` with the marker in them, as it is or in base64. Container root file systems included."""
    done = subprocess.run(
        ["grep", "-r", "-l", "-a", "-F", "--exclude-dir=proc", "-e", MARKER, "-e", "aHVudGVyMi1jb3JyZWN0", str(root)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return [one for one in done.stdout.splitlines() if "/programs/" not in one]


def all_commands() -> list[bytes]:
    found = []
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found.append((one / "cmdline").read_bytes())
    return found


def command_lines() -> list[str]:
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit() and int(one.name) != os.getpid():
            try:
                command = (one / "cmdline").read_bytes()
            except OSError:
                continue
            if MARKER.encode() in command and not command.startswith(b"grep"):
                found.append(command.decode(errors="replace"))
    return found


def test_values_are_seen_in_containers_and_nowhere_else(home) -> None:
    """Semantics 14 and 33 (28); the issue: never in logs, `ps`, crash reports or configuration files of containers."""
    stored(home)
    path = home.program("secrets_live.py", PROGRAM.replace(f'"{MARKER}" + "-inline"', 'os.environ.get("LIVE", "")'))
    running = home.start("run", path, "--seconds", "60", LIVE=MARKER + "-inline")
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.strip() == f"seen app env {len(MARKER) + 7}", line + home.server_log()
        deadline = time.monotonic() + 60
        container = ""
        while not container and time.monotonic() < deadline:
            listed = json.loads(home.cadenza("container", "list", "--json").stdout)
            ids = [one["container_id"] for one in listed if one.get("function") == "stay" or one.get("running_inputs")]
            container = ids[0] if ids else ""
        assert container, home.cadenza("container", "list", "--json").stdout
        inside = home.cadenza("container", "exec", container, "sh", "-c", "echo ${#STORED}; sleep 0.2")
        assert inside.stdout.split() == [str(len(MARKER) + 7)], inside.stderr
        holder = home.start("container", "exec", container, "sleep", "30")
        deadline = time.monotonic() + 20  # a start of a command is a file for a moment, and takes one on a busy machine
        while b"sleep\x0030\0" not in all_commands() and time.monotonic() < deadline:
            time.sleep(0.1)
        while list((home.path / "data/runtime").rglob("exec-*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not command_lines()
        configurations = list((home.path / "data").rglob("config.json"))
        assert configurations
        assert not [one for one in configurations if MARKER in one.read_text(errors="replace")]
        canary = home.path / "data/canary"
        canary.write_text(MARKER)
        assert holding(home.path / "data") == [str(canary)]  # the search finds what is there
        canary.unlink()
        found = [one for name in ("state", "config", "run") for one in holding(home.path / name)]
        assert not found, found
        assert not holding(Path("/run/crun")) if Path("/run/crun").is_dir() else True
        holder.kill()
        holder.wait()
    finally:
        running.kill()
        running.wait()
    assert MARKER not in home.server_log()
    database = home.path / "data/cadenza.db"
    raw = b"".join(one.read_bytes() for one in database.parent.glob("cadenza.db*"))
    assert MARKER.encode() not in raw
    key = home.path / "config/secrets.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_crash_shows_no_values(home) -> None:
    stored(home)
    path = home.program(
        "secrets_crash.py",
        "import os\nimport cadenza\napp = cadenza.App()\n"
        '@app.function(secrets=[cadenza.Secret.from_name("live-one")])\n'
        "def crash(hard):\n"
        "    token = os.environ['STORED']\n"
        "    if hard:\n        os.abort()\n"
        "    raise ValueError('no luck')\n"
        "@app.local_entrypoint()\ndef main(hard: bool = False):\n    crash.remote(hard)\n",
    )
    for more in ((), ("--hard",)):
        done = home.cadenza("run", path, *more)
        assert done.returncode == 1
        assert MARKER not in done.stdout + done.stderr + home.server_log()


def test_a_secret_removed_while_in_use(home) -> None:
    """The issue, bad input: running containers keep theirs; the next start fails with a sentence that helps."""
    stored(home)
    path = home.program(
        "secrets_gone.py",
        "import os, subprocess, sys\nimport cadenza\napp = cadenza.App()\n"
        '@app.function(secrets=[cadenza.Secret.from_name("live-one")], single_use_containers=False)\n'
        "def first():\n    return len(os.environ['STORED'])\n"
        '@app.function(secrets=[cadenza.Secret.from_name("live-one")])\n'
        "def second():\n    return len(os.environ['STORED'])\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    print(first.remote())\n"
        "    cadenza.Secret.objects.delete('live-one')\n"
        "    print(first.remote())\n"
        "    second.remote()\n",
    )
    done = home.cadenza("run", path)
    assert done.returncode == 1
    assert done.stdout.split() == [str(len(MARKER) + 7)] * 2, done.stderr
    assert "the secret 'live-one'" in done.stderr and "was removed" in done.stderr, done.stderr


def test_a_secret_that_is_not_there(home) -> None:
    """Semantics 33 (26): from_name does not fail; running the app does, and says how to make it."""
    path = home.program(
        "secrets_none.py",
        "import cadenza\napp = cadenza.App()\n"
        '@app.function(secrets=[cadenza.Secret.from_name("nobody-made-it")])\ndef f():\n    pass\n',
    )
    done = home.cadenza("run", path)
    assert done.returncode == 1
    assert "cadenza secret create nobody-made-it" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line(home) -> None:
    """Values from pairs, from standard input, from files; lists and deletes; nothing is ever echoed."""
    made = home.cadenza("secret", "create", "live-two", f"A={MARKER}", "B=x=y")
    assert made.returncode == 0 and "A, B" in made.stdout
    again = home.cadenza("secret", "create", "live-two", "A=1")
    assert again.returncode == 1 and "--force" in again.stderr
    assert home.cadenza("secret", "create", "live-two", "A=1", "--force").returncode == 0
    dotenv = home.path / "live.env"
    dotenv.write_text(f"C='{MARKER}'\nD=2\n")
    assert home.cadenza("secret", "create", "live-three", "--from-dotenv", str(dotenv)).returncode == 0
    dotenv.unlink()
    listed = home.cadenza("secret", "list", "--json")
    rows = {one["name"]: one for one in json.loads(listed.stdout)}
    assert rows["live-two"]["variables"] == ["A"] and rows["live-three"]["variables"] == ["C", "D"]
    for done in (made, again, listed, home.cadenza("secret", "list")):
        assert MARKER not in done.stdout + done.stderr
    rekeyed = home.cadenza("secret", "rekey")
    assert re.search(r"Sealed \d+ secrets", rekeyed.stdout), rekeyed.stderr
    for name in ("live-two", "live-three"):
        assert home.cadenza("secret", "delete", name, "-y").returncode == 0
    assert home.cadenza("secret", "delete", "live-two", "-y").returncode == 1
    assert home.cadenza("secret", "delete", "live-two", "-y", "--allow-missing").returncode == 0
