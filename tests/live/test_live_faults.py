"""What breaks from outside: servers and runners killed, Ctrl-C, many programs at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(200)

INC = (
    "import cadenza\napp = cadenza.App('inc')\n"
    "@app.function()\ndef inc(x):\n    return x + 1\n"
    "@app.local_entrypoint()\ndef main():\n    print('got', inc.remote(1))\n"
)


def kill_server(home) -> None:
    pid = home.server_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def lines_until(child, word: str) -> list[str]:
    """What it prints up to the line that begins with ``word``."""
    found = []
    assert child.stdout is not None
    for line in child.stdout:
        found.append(line.rstrip("\n"))
        if line.startswith(word):
            return found
    raise AssertionError(f"{word!r} never came: {found[-5:]} {child.stderr.read()[-2000:]}")


def test_an_attached_map_says_that_its_server_is_gone(home) -> None:
    """The issue: a clear error reaches an attached client that cannot go on, and the next run works."""
    path = home.program(
        "attached.py",
        "import cadenza, time\napp = cadenza.App('attached')\n"
        "@app.function(max_containers=2)\ndef sq(x):\n    time.sleep(0.005)\n    return x * x\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    for n, _ in enumerate(sq.map(range(2000))):\n"
        "        if n == 50:\n            print('fifty', flush=True)\n",
    )
    child = home.start("run", path)
    lines_until(child, "fifty")
    kill_server(home)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "ServiceError" in said and "was lost" in said and "call again" in said
    assert "cadenza/sdk" not in said and "cadenza/cli" not in said  # none of our own frames
    assert home.cadenza("run", home.program("inc.py", INC)).stdout.strip() == "got 2"


def test_detached_calls_survive_repeated_kills(home) -> None:
    """The issue: complete and exact after restarts, also when the kill hits containers that start. Each once."""
    path = home.program(
        "detached.py",
        "import cadenza, time\napp = cadenza.App('detached')\ntime.sleep(0.2)\n"
        "@app.function(max_containers=12)\ndef sq(x):\n    time.sleep(0.005)\n    return x * x\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    print(sq.experimental_spawn_map(range(600)).object_id, flush=True)\n    time.sleep(100)\n",
    )
    child = home.start("run", "--detach", path)
    call_id = lines_until(child, "fc-")[-1]
    choose = random.Random(7)
    for _ in range(5):
        time.sleep(choose.choice([0.0, 0.1, 0.3, 0.6]))
        kill_server(home)
        assert home.cadenza("up").returncode == 0
    child.kill()
    child.communicate()
    collect = home.program(
        "collect.py",
        f"import cadenza\ncall = cadenza.FunctionCall.from_id({call_id!r})\n"
        "print(call.num_inputs(), list(call.iter()) == [x * x for x in range(600)])\n",
    )
    done = subprocess.run([sys.executable, collect], capture_output=True, text=True, env=home.environ, timeout=100)
    assert done.stdout.strip() == "600 True", done.stderr + home.server_log()[-2000:]


def test_a_killed_runner_costs_only_its_own_inputs(home) -> None:
    """The issue: kill -9 of one runner of four: only what it ran is run again; the result is exact."""
    path = home.program(
        "runners.py",
        "import cadenza, time\napp = cadenza.App('runners')\n"
        "@app.function(max_containers=4)\ndef sq(x):\n"
        f"    open('/proc/self/comm', 'w').write('sq-{home.path.name[-8:]}')\n"
        "    print('run', x, flush=True)\n    time.sleep(0.25)\n"
        "    return x * x\n"
        "@app.local_entrypoint()\ndef main():\n"
        "    print('exact', list(sq.map(range(60))) == [x * x for x in range(60)], flush=True)\n",
    )
    child = home.start("run", path)
    begun = lines_until(child, "run 9")
    victims = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm") as file:
                if file.read() == f"sq-{home.path.name[-8:]}\n":
                    victims.append(int(name))
        except OSError:
            continue
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    out, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    runs = [line for line in begun + out.splitlines() if line.startswith("run ")]
    assert "exact True" in out
    assert 60 <= len(runs) <= 62  # what it ran, and at most what it had just begun


@pytest.mark.parametrize("phase", ["image", "start", "map"])
def test_ctrl_c_at_each_phase(home, phase: str) -> None:
    """The issue: exit status 130 at once, nothing of the app left, and the server lives on."""
    image = f".run_commands('echo {random.random()}; sleep 30')" if phase == "image" else ""
    slow = "if not cadenza.is_local():\n    time.sleep(30)\n" if phase == "start" else ""
    path = home.program(
        "interrupted.py",
        f"import cadenza, time\napp = cadenza.App('interrupted', image=cadenza.Image.debian_slim(){image})\n{slow}"
        "@app.function(max_containers=3)\ndef f(x):\n    print('in', x, flush=True)\n    time.sleep(30)\n"
        "@app.local_entrypoint()\ndef main():\n    print('begun', flush=True)\n    list(f.map(range(10)))\n",
    )
    child = home.start("run", path)
    if phase == "image":
        time.sleep(2)
    else:
        lines_until(child, "in " if phase == "map" else "begun")
        time.sleep(0.5)
    server = home.server_pid()
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert home.server_pid() == server
    deadline = time.time() + 10
    left = ["?"]
    while left and time.time() < deadline:
        rows = json.loads(home.cadenza("container", "list", "--json").stdout)
        left = [one for one in rows if one["app"] == "interrupted"]
        time.sleep(0.1)
    assert not left


def test_twelve_programs_in_one_instant_share_one_server(home) -> None:
    """The issue: two at once, with no server: one serves, all work."""
    assert home.cadenza("down", "--force").returncode == 0
    path = home.program("inc.py", INC)
    children = [home.start("run", path) for _ in range(12)]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 12, [err for _, err in said if err][-1]
    assert all(out.strip() == "got 2" for out, _ in said)
    servers = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                is_server = b"cadenza.cli.server" in file.read()
            with open(f"/proc/{name}/environ", "rb") as file:
                servers += is_server and f"CADENZA_HOME={home.path}\0".encode() in file.read()
        except OSError:
            continue
    assert servers == 1
