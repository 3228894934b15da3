"""Who meets whom: two users of one machine, two versions of the package, signals, programs that fail as they load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_live_rootless import Person, make_person

import cadenza

__all__ = ["make_person"]

pytestmark = pytest.mark.timeout(200)
ROOT = Path(__file__).resolve().parents[2]

INC = (
    "import cadenza\napp = cadenza.App('inc')\n"
    "@app.function()\ndef inc(x):\n    return x + 1\n"
    "@app.local_entrypoint()\ndef main():\n    print('got', inc.remote(1))\n"
)
LONG = (
    "import cadenza, time\napp = cadenza.App('long')\n"
    "@app.function()\ndef long():\n    print('began', flush=True)\n    time.sleep(1000)\n"
    "@app.local_entrypoint()\ndef main():\n"
    "    try:\n        long.remote()\n    finally:\n        print('cleaned', flush=True)\n"
)
ASK = (
    "import cadenza\ntry:\n    cadenza.Client('unix:' + {path!r}).hello()\n    print('LET IN')\n"
    "except Exception as error:\n    print(type(error).__name__, error)\n"
)


# --- users ---


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a user of its own: needs root")
def test_two_users_work_side_by_side_and_keep_out_of_each_other(home: Any, make_person: Callable[..., Person]) -> None:
    person = make_person("second")
    path = person.program("inc.py", INC)
    theirs = person.start("run", path)
    mine = home.start("run", home.program("inc.py", INC))
    out, err = mine.communicate(timeout=120)
    assert out.strip() == "got 2", err
    out, err = theirs.communicate(timeout=120)
    assert out.strip() == "got 2", err
    listed = [json.loads(one.cadenza("app", "list", "--json").stdout) for one in (home, person)]
    assert not {one["app_id"] for one in listed[0]} & {one["app_id"] for one in listed[1]}
    socket = next((home.path / "run").glob("*.sock"))
    assert socket.stat().st_mode & 0o777 == 0o600
    kept = [(one, one.stat().st_mode & 0o777) for one in (home.path, socket.parent, socket)]
    try:
        for mode in (0o600, 0o666):  # the file's own permission stops them, and where it does not, the server does
            for one in (home.path, socket.parent):
                one.chmod(0o755)
            socket.chmod(mode)
            asked = subprocess.run(
                [os.path.realpath(sys.executable), "-c", ASK.format(path=str(socket))], user=person.name,
                group=person.name, extra_groups=[], env=person.environ, cwd=person.home, capture_output=True, text=True,
            )  # fmt: skip
            assert "LET IN" not in asked.stdout and asked.stdout.startswith("ConnectionError"), (mode, asked)
    finally:
        for one, mode in kept:
            one.chmod(mode)


# --- versions ---


def copy_of_another_version(folder: Path, version: str, protocol: int | None = None) -> dict[str, str]:
    """A copy of the package that says another version, and the variables to run it by."""
    subprocess.run(["cp", "-r", str(ROOT / "cadenza"), str(folder)], check=True)
    init = folder / "cadenza/__init__.py"
    init.write_text(re.sub(r'__version__ = "[^"]*"', f'__version__ = "{version}"', init.read_text()))
    if protocol is not None:
        for path in ("protocol/frame.py", "runner/session.py"):
            file = folder / "cadenza" / path
            file.write_text(re.sub(r"^PROTOCOL = \d+", f"PROTOCOL = {protocol}", file.read_text(), flags=re.M))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("protocol", [0, 9])
def test_a_client_that_speaks_another_protocol_is_told_what_to_do(home: Any, tmp_path: Path, protocol: int) -> None:
    assert home.cadenza("run", home.program("inc.py", INC)).returncode == 0
    other = copy_of_another_version(tmp_path, "7.7.7", protocol)
    program = "import cadenza\ntry:\n    cadenza.Function.from_name('a', 'b').remote()\n"
    program += "except Exception as error:\n    print(type(error).__name__, error)\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**home.environ, **other}, cwd=tmp_path, capture_output=True, text=True
    )
    said = done.stdout

    assert said.startswith("VersionError "), said + done.stderr
    assert "7.7.7" in said and f"cadenza {cadenza.__version__}" in said and "upgrade" in said, said


def test_two_servers_over_one_data_directory(make_home: Callable[..., Any], home: Any, tmp_path: Path) -> None:
    """The second finds the lock of the first, whatever its version: it says so and leaves the data alone."""
    assert home.cadenza("run", home.program("inc.py", INC)).returncode == 0
    pid = home.server_pid()
    other = copy_of_another_version(tmp_path, "7.7.7")
    done = subprocess.run(
        [sys.executable, "-m", "cadenza.cli.server"], env={**home.environ, **other}, cwd=tmp_path,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 3 and "another server of this user is running" in done.stderr, done.stderr
    second = make_home(CADENZA_DATA_DIR=str(home.path / "data"))
    done = second.cadenza("run", second.program("inc.py", INC), **other)
    said = done.stderr + second.server_log()
    assert done.returncode == 1 and "data" in said and "Traceback" not in said, said
    assert str(home.path / "data") in said and "server" in said, said
    assert home.server_pid() == pid
    assert home.cadenza("run", home.program("inc.py", INC)).stdout.strip() == "got 2"


# --- signals ---


def began(home: Any) -> subprocess.Popen[str]:
    child: subprocess.Popen[str] = home.start("run", home.program("long.py", LONG))
    assert child.stdout is not None
    assert any(line.startswith("began") for line in child.stdout), child.communicate()
    return child


def containers_of(home: Any, app: str) -> list[Any]:
    return [one for one in json.loads(home.cadenza("container", "list", "--json").stdout) if one["app"] == app]


def nothing_runs_soon(home: Any) -> None:
    deadline = time.time() + 15
    while containers_of(home, "long") and time.time() < deadline:
        time.sleep(0.1)
    assert containers_of(home, "long") == []


def test_sigterm_ends_a_run_as_ctrl_c_does(home: Any) -> None:
    child = began(home)
    child.send_signal(signal.SIGTERM)
    out, said = child.communicate(timeout=30)
    assert child.returncode == 143
    assert out == "cleaned\n" and said.endswith("Terminated.\n") and "Traceback" not in said
    nothing_runs_soon(home)


def test_a_second_ctrl_c_does_not_wait_for_a_server_that_says_nothing(home: Any) -> None:
    child = began(home)
    pid = home.server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        child.send_signal(signal.SIGINT)
        assert child.stdout is not None and child.stdout.readline() == "cleaned\n"
        time.sleep(0.2)
        assert child.poll() is None, "it waits for the server to take note"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=5)
        assert child.returncode == 130 and "Traceback" not in said
    finally:
        os.kill(pid, signal.SIGCONT)
    assert home.cadenza("run", home.program("inc.py", INC)).stdout.strip() == "got 2"


# --- programs that fail as they load ---


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\nif not cadenza.is_local(): sys.exit('not today')\n", ["SystemExit", "not today"]),
        ("if not cadenza.is_local(): raise ValueError('bad weather')\n", ["ValueError: bad weather", "failing.py"]),
        ("if not cadenza.is_local(): import no_such_module\n", ["No module named 'no_such_module'"]),
        ("if not cadenza.is_local(): import broken_module\n", ["SyntaxError", "broken_module.py"]),
    ],
)
def test_what_fails_at_import_in_the_container_reaches_the_caller(home: Any, body: str, words: list[str]) -> None:
    home.program("broken_module.py", "def broken(:\n")
    image = "cadenza.Image.debian_slim()"
    if "broken_module" in body:
        image += f".add_local_file({str(home.path / 'programs/broken_module.py')!r}, '/root/broken_module.py')"
    path = home.program(
        "failing.py",
        f"import cadenza\napp = cadenza.App('failing', image={image})\n{body}"
        "@app.function()\ndef f():\n    return 1\n@app.local_entrypoint()\ndef main():\n    f.remote()\n",
    )
    done = home.cadenza("run", path, timeout=60)
    assert done.returncode not in (0, 143), done.stdout
    for word in words:
        assert word in done.stderr, done.stderr
    assert "cadenza/runner" not in done.stderr and "importlib" not in done.stderr, done.stderr
