"""Builds by a real server that go wrong: strange files, endless output, kills, clients that leave, odd places.

semantics.md 13; the base is built once, in the home that the module has.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import residue

from cadenza.fs.store import Store

pytestmark = pytest.mark.timeout(240)
SEED = 11
KILLS = 2

PROGRAM = """
import os
import cadenza

def many():
    for number in range(400):
        open(f"/m{{number}}", "wb").write(os.urandom(9_000))

image = cadenza.Image.debian_slim(){steps}
app = cadenza.App("faults", image=image)

@app.function()
def look():
    {body}

@app.local_entrypoint()
def main():
    print("GOT", look.remote())
"""
DEEP = "import os\\nfor _ in range(3000):\\n    os.mkdir('d'); os.chdir('d')\\n"


def program(home: Any, steps: str, body: str = "return 1", name: str = "faults.py") -> str:
    return str(home.program(name, PROGRAM.format(steps=steps, body=body)))


def run(home: Any, steps: str, body: str = "return 1") -> Any:
    return home.cadenza("run", program(home, steps, body), timeout=200)


def work(home: Any) -> list[str]:
    return os.listdir(home.path / "data/store/work")


def test_strange_files_go_from_step_to_step_and_leave_nothing(home: Any) -> None:
    make = (
        "import os, socket\\nos.mkdir('/n')\\nos.chdir('/n')\\nopen(b'a\\\\nb\\\\xff', 'w').write('1')\\n"
        "os.link(b'a\\\\nb\\\\xff', 'hard')\\nos.mkfifo('fifo')\\nsocket.socket(socket.AF_UNIX).bind('sock')\\n"
        "open('big', 'w').truncate(1 << 30)\\nos.chmod('hard', 0o6755)\\nos.setxattr('hard', 'user.x', b'v')\\n"
        "os.setxattr('hard', 'security.capability', bytes.fromhex('0100000200200000000000000000000000000000'))\\n"
    )
    steps = (
        f'.run_commands("""python3 -c "{make}" """)'
        '.run_commands("cd /n && ls -la >/dev/null && mv /n /n2 && rm /n2/big")'
    )
    body = (
        "s = os.stat('/n2/hard'); return [sorted(os.listdir(b'/n2')), oct(s.st_mode), s.st_nlink, "
        "os.getxattr('/n2/hard', 'user.x'), len(os.getxattr('/n2/hard', 'security.capability'))]"
    )
    done = run(home, steps, body)
    assert done.returncode == 0, done.stderr + home.server_log()[-2000:]
    assert done.stdout.strip() == r"GOT [[b'a\nb\xff', b'fifo', b'hard'], '0o106755', 2, b'v', 20]"
    assert work(home) == []


def test_three_thousand_levels_do_not_stop_the_server(home: Any) -> None:
    done = run(home, f'.run_commands("""python3 -c "{DEEP}" """).run_commands("mv /d /e && rm -rf /e")')
    assert done.returncode == 0, done.stderr + home.server_log()[-2000:]
    assert work(home) == []


def test_output_without_an_end_and_for_terminals_is_shown_as_text(home: Any) -> None:
    done = run(
        home, r""".run_commands("head -c 20000000 /dev/zero | tr '\\0' x; printf '\\n\\033[2Jend\\007\\n'; exit 3")"""
    )
    assert done.returncode == 1 and "exit code 3" in done.stderr, done.stderr[-2000:]
    assert "\nend\n" in done.stderr and not set(done.stderr) & set("\x1b\x07\x00")


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_server_leaves_a_store_that_works(home: Any, number: int) -> None:
    """At random moments of commands and of a function; the next server cleans up, and the same build completes."""
    choice = random.Random(SEED + number)
    steps = (
        f".run_commands('echo {number}; head -c 30000000 /dev/urandom > /big; cp -a /usr/share /share; mv /share /s2')"
        f".env({{'N': '{number}'}}).run_function(many)"
    )
    path = program(home, steps, "return len(os.listdir('/'))")
    assert home.cadenza("up").returncode == 0
    client = home.start("run", path)
    time.sleep(choice.uniform(0.5, 2.5))
    pid = home.server_pid()
    os.kill(pid, signal.SIGKILL)
    client.communicate(timeout=60)
    done = home.cadenza("image", "gc", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert work(home) == []
    deadline = time.monotonic() + 10
    while residue(home.path)["directories"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert residue(home.path)["directories"] == []
    with_ended = Store(str(home.path / "data/store"))
    try:
        scrubbed = with_ended.scrub(1 << 40)
    finally:
        with_ended.close()
    assert scrubbed.objects and not scrubbed.lost, scrubbed
    done = home.cadenza("run", path, timeout=200)
    assert done.returncode == 0 and "GOT 4" in done.stdout, done.stdout + done.stderr


def test_a_build_goes_on_as_long_as_one_waits(home: Any) -> None:
    path = program(home, ".run_commands('sleep 4; date +%N > /when')", "return open('/when').read().strip()")
    first = home.start("run", path)
    time.sleep(2)
    second = home.start("run", path)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0 and "GOT " in out, err
    # With the last one it ends.
    path = program(home, ".run_commands('sleep 500 # alone')")
    only = home.start("run", path)
    deadline = time.monotonic() + 20
    while not work(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert work(home)
    only.send_signal(signal.SIGINT)
    only.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while work(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert work(home) == []


def test_a_home_whose_path_has_what_mount_options_mean(make_home: Any, home: Any, tmp_path: Path) -> None:
    """Spaces, commas, colons, backslashes, letters of others."""
    place = tmp_path / "sp ace,co:mma\\é"
    place.mkdir()
    odd = make_home(CADENZA_HOME=str(place))
    try:
        done = run(odd, ".run_commands('mv /usr/share/perl5 /p && echo hi > /p/x')", "return open('/p/x').read()")
        assert done.returncode == 0 and done.stdout.strip() == r"GOT hi", done.stderr[-2000:]
    finally:
        odd.cadenza("down", "--force")
    assert residue(place)["mounts"] == []
