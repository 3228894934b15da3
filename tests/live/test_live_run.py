"""The whole journey by the command line: programs as a newcomer writes them, in real containers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)


def test_hello(home) -> None:
    """`make hello`: .local, .remote and .map, logs streamed, results printed."""
    done = home.cadenza("run", str(ROOT / "examples/01_hello/hello.py"), timeout=280)
    assert done.returncode == 0, done.stderr + home.server_log()
    assert "local:  9" in done.stdout
    assert "remote: 16" in done.stdout
    assert "map:    [0, 1, 4, 9, 16]" in done.stdout
    assert "computing 4 squared" in done.stdout  # the container's own words


def test_entrypoint_arguments(home) -> None:
    """Semantics 23: options from annotations."""
    done = home.cadenza("run", str(ROOT / "examples/01_hello/hello.py"), "--count", "2")
    assert "map:    [0, 1]" in done.stdout
    wrong = home.cadenza("run", str(ROOT / "examples/01_hello/hello.py"), "--count", "many")
    assert wrong.returncode == 2
    assert "many" in wrong.stderr and "Traceback" not in wrong.stderr


def test_failures(home) -> None:
    done = home.cadenza("run", str(ROOT / "examples/02_failures/failures.py"))
    assert done.returncode == 0, done.stderr
    assert "retried: second time lucky" in done.stdout
    assert "timeout:" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "some failed: [6.0, ZeroDivisionError('division by zero'), 2.0]" in done.stdout
    assert "is still running" in done.stdout
    assert "and done: 0.2" in done.stdout


def test_packages(home) -> None:
    """An image with a package from the registry, a variable, a secret that is never printed."""
    done = home.cadenza("run", str(ROOT / "examples/03_packages/packages.py"), timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"hello from six 1\.\d+\.\d+; the secret has 13 letters", done.stdout)
    assert "correct horse" not in done.stdout + done.stderr + home.server_log()


def test_a_program_for_modal(home) -> None:
    """The alias holds in the user's process and in the container; a function calls another."""
    done = home.cadenza("run", str(ROOT / "examples/04_modal/modal_program.py"), "--words", "to be or not to be")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("13")


def test_a_plain_script_with_the_alias(home) -> None:
    import subprocess

    path = home.program(
        "plain.py",
        "import modal, sys\n"
        "app = modal.App()\n"
        "@app.function()\ndef double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with app.run():\n        print(double.remote(int(sys.argv[1])))\n",
    )
    done = subprocess.run(
        [sys.executable, "-m", "cadenza.compat", path, "21"], capture_output=True, text=True, env=home.environ,
        timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "42", done.stderr


def test_remote_traceback(home) -> None:
    """Semantics 5: remote frames are grafted on, and the exit status says that it failed."""
    path = home.program(
        "fails.py",
        "import cadenza\napp = cadenza.App()\n"
        "def inner(x):\n    return 1 / x\n"
        "@app.function()\ndef outer(x):\n    return inner(x)\n"
        "@app.local_entrypoint()\ndef main():\n    outer.remote(0)\n",
    )
    done = home.cadenza("run", path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "return inner(x)" in done.stderr and "return 1 / x" in done.stderr
    assert re.search(r"<ta-\w+>:/root/fails\.py", done.stderr)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os\n    os._exit(3)", ["exit", "3"]),
        ("import ctypes\n    ctypes.string_at(0)", ["SIGSEGV"]),
        ("return bytearray(2 << 30) and [bytearray(64 << 20) for _ in range(40)]", ["memory"]),
    ],
    ids=["exit", "segfault", "oom"],
)
def test_a_dead_container_is_named_as_such(home, body: str, words: list[str]) -> None:
    """The issue: crash, segfault and OOM reported as such."""
    path = home.program(
        "dies.py",
        "import cadenza\napp = cadenza.App()\n"
        f"@app.function(memory=(128, 300))\ndef die():\n    {body}\n"
        "@app.local_entrypoint()\ndef main():\n    die.remote()\n",
    )
    done = home.cadenza("run", path)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr


def test_system_exit_is_a_result(home) -> None:
    """Semantics 33.4."""
    path = home.program(
        "leaves.py",
        "import cadenza\napp = cadenza.App()\n"
        "@app.function()\ndef leave():\n    raise SystemExit(5)\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    try:\n        leave.remote()\n    except SystemExit as error:\n        print('left with', error.code)\n",
    )
    assert "left with 5" in home.cadenza("run", path).stdout


def test_generator(home) -> None:
    """Semantics 6: items stream, then the exception."""
    path = home.program(
        "streams.py",
        "import cadenza\napp = cadenza.App()\n"
        "@app.function()\ndef count(n):\n    for i in range(n):\n        yield i\n    raise ValueError('enough')\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    try:\n        for i in count.remote_gen(3):\n            print('item', i)\n"
        "    except ValueError as error:\n        print('then', error)\n",
    )
    done = home.cadenza("run", path)
    assert done.stdout.split() == ["item", "0", "item", "1", "item", "2", "then", "enough"], done.stderr


def test_large_values(home) -> None:
    """Values over 1 MiB travel by the lane, both ways, and arrive writable."""
    path = home.program(
        "large.py",
        "import cadenza, hashlib\napp = cadenza.App()\n"
        "@app.function()\ndef flip(data):\n    data[0] ^= 255\n    return data + data\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    data = bytearray(b'x' * (9 << 20))\n    back = flip.remote(data)\n"
        "    print(len(back) >> 20, back[0], back[1], type(back).__name__)\n",
    )
    done = home.cadenza("run", path)
    assert done.stdout.split() == ["18", "135", "120", "bytearray"], done.stderr


def test_stuck_code_is_killed(home) -> None:
    """The issue: a function that ignores SIGTERM is dead and its slot free within 5 s of its deadline."""
    path = home.program(
        "stuck.py",
        "import cadenza, signal, time\napp = cadenza.App()\n"
        "@app.function(timeout=1, max_containers=1)\ndef stuck(really):\n"
        "    if really:\n        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "        while True:\n            try:\n                time.sleep(100)\n"
        "            except BaseException:\n                pass\n"
        "    return 'free'\n"
        "@app.local_entrypoint()\ndef main():\n    began = time.time()\n"
        "    try:\n        stuck.remote(True)\n    except cadenza.exception.FunctionTimeoutError:\n"
        "        print('timed out after', round(time.time() - began, 1))\n"
        "    print(stuck.remote(False), round(time.time() - began, 1))\n",
    )
    done = home.cadenza("run", path)
    assert done.returncode == 0, done.stderr
    took = float(done.stdout.split()[-1])
    assert "free" in done.stdout and took < 1 + 5 + 4  # the deadline, the kill, a start


def test_ctrl_c_stops_everything(home) -> None:
    path = home.program(
        "forever.py",
        "import cadenza, time\napp = cadenza.App('forever')\n"
        "@app.function()\ndef forever():\n    print('begun', flush=True)\n    time.sleep(1000)\n"
        "@app.local_entrypoint()\ndef main():\n    forever.remote()\n",
    )
    child = home.start("run", path)
    deadline = time.time() + 60
    assert child.stdout is not None
    for line in child.stdout:
        if "begun" in line or time.time() > deadline:
            break
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    deadline = time.time() + 15
    while time.time() < deadline:
        listed = json.loads(home.cadenza("container", "list", "--json").stdout)
        if not [one for one in listed if one["app"] == "forever"]:
            break
        time.sleep(0.2)
    assert not [one for one in listed if one["app"] == "forever"]


def test_lists_and_logs(home) -> None:
    path = home.program(
        "talks.py",
        "import cadenza, sys, os\napp = cadenza.App('talks')\n"
        "@app.function()\ndef talk(word):\n    print('out', word)\n    print('err', word, file=sys.stderr)\n"
        "    os.system('echo from a child')\n"
        "@app.local_entrypoint()\ndef main():\n    talk.remote('one')\n",
    )
    assert home.cadenza("run", path).returncode == 0
    apps = json.loads(home.cadenza("app", "list", "--json").stdout)
    mine = [one for one in apps if one["name"] == "talks"]
    assert mine and mine[0]["state"] == "stopped"
    logs = home.cadenza("app", "logs", mine[0]["app_id"]).stdout
    assert "out one" in logs and "from a child" in logs
    only = home.cadenza("app", "logs", mine[0]["app_id"], "--source", "stderr")
    assert "err one" in only.stderr + only.stdout and "out one" not in only.stdout
    assert home.cadenza("app", "logs", "no-such-app").returncode == 1
    images = json.loads(home.cadenza("image", "list", "--json").stdout)
    assert images and images[0]["image_id"].startswith("im-")


def test_timings_add_up(home) -> None:
    """Each phase of a start is shown, and exec reaches the container. The sum of phases: tests/unit/agent."""
    path = home.program(
        "waits.py",
        "import cadenza, time\napp = cadenza.App('waits')\n"
        "@app.function()\ndef wait():\n    print('here', flush=True)\n    time.sleep(60)\n"
        "@app.local_entrypoint()\ndef main():\n    wait.remote()\n",
    )
    child = home.start("run", path)
    try:
        assert child.stdout is not None
        assert any("here" in line for line in child.stdout)
        rows = json.loads(home.cadenza("container", "list", "--timings", "--json").stdout)
        row = next(one for one in rows if one["function"] == "wait")
        phases = [float(value) for key, value in row.items() if key.endswith("_ms") and key != "total_ms"]
        assert len(phases) == 8
        assert min(phases) >= 0 and float(row["import_ms"]) > 0
        done = home.cadenza("container", "exec", "--no-pty", row["container_id"], "sh", "-c", "echo $((6*7)); exit 9")
        assert done.stdout.strip() == "42", done.stderr
        assert done.returncode == 9
        assert home.cadenza("container", "stop", "--yes", row["container_id"]).returncode == 0
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(30)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def broken(:\n", ["invalid syntax", "line 1"]),
        ("x = 1\n", ["App"]),
        ("import cadenza\napp = cadenza.App()\n@app.local_entrypoint()\ndef main(x: set):\n    pass\n", ["x", "set"]),
        ("import no_such_module_at_all\n", ["no_such_module_at_all"]),
    ],
    ids=["syntax", "no app", "argument type", "import"],
)
def test_programs_that_cannot_run(home, source: str, words: list[str]) -> None:
    done = home.cadenza("run", home.program("bad.py", source))
    assert done.returncode in (1, 2)
    for word in words:
        assert word in done.stderr
    assert "cadenza/cli" not in done.stderr  # none of our own frames


def test_a_file_that_is_not_there(home) -> None:
    done = home.cadenza("run", "nowhere.py")
    assert done.returncode == 2 and "nowhere.py" in done.stderr and "Traceback" not in done.stderr


def test_detached_spawn_survives_a_killed_server(make_home) -> None:
    """The issue: kill -9 of the server in the middle of a map; after a restart the detached results are complete."""
    home = make_home()
    path = home.program(
        "many.py",
        "import cadenza, time\napp = cadenza.App('many')\n"
        "@app.function(max_containers=2)\ndef square(x):\n    time.sleep(0.002)\n    return x * x\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    call = square.experimental_spawn_map(range(2000))\n    print(call.object_id, flush=True)\n"
        "    call.get(index=100)\n    print('some', flush=True)\n    time.sleep(100)\n",
    )
    child = home.start("run", "--detach", path)
    assert child.stdout is not None
    call_id = ""
    for line in child.stdout:
        if line.startswith("fc-"):
            call_id = line.strip()
        if line.startswith("some"):
            break
    pid = home.server_pid()
    assert pid and call_id
    os.kill(pid, signal.SIGKILL)
    child.kill()
    child.wait()
    collect = home.program(
        "collect.py",
        "import cadenza, sys\n"
        f"call = cadenza.FunctionCall.from_id({call_id!r})\n"
        "print(list(call.iter()) == [x * x for x in range(2000)])\n",
    )
    import subprocess

    done = subprocess.run([sys.executable, collect], capture_output=True, text=True, env=home.environ, timeout=120)
    assert done.stdout.strip() == "True", done.stderr + home.server_log()[-3000:]


def test_nothing_is_left(make_home) -> None:
    """Processes, mounts, directories: nothing after `down`, and nothing of a killed server after the next one."""
    from conftest import residue

    home = make_home()
    path = str(ROOT / "examples/01_hello/hello.py")
    assert home.cadenza("run", path, timeout=280).returncode == 0
    pid = home.server_pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert home.cadenza("run", path).returncode == 0
    assert home.cadenza("down").returncode == 0
    left = residue(home.path)
    assert not any(left.values()), left
