"""Standard containers with ids of their own, as root: who their root is outside, and that work goes on as before.

Semantics: none of this shows in a program, but that /proc/self/uid_map is not the machine's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cadenza.runtime.launcher import Launcher
from cadenza.runtime.probe import Ability, probe

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes containers with ids of their own: needs root"),
]

PROGRAM = """
import json, os, socket, subprocess, sys, time
import cadenza

image = cadenza.Image.debian_slim()
app = cadenza.App("ids")

def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__

def low_port_as_other():
    if os.fork() == 0:
        os.setgid(1000)
        os.setuid(1000)
        socket.socket().bind(("0.0.0.0", 80))
        os._exit(0)
    if os.wait()[1]:
        raise OSError("not bound")

@app.function(image=image)
def look(name):
    open("/root/mine", "w").write("x")
    os.chown("/root/mine", 1000, 2000)
    os.chmod("/usr/bin/env", 0o755)  # a file of a layer is copied up, and stays root's
    found = {
        "name": name,
        "uid": os.getuid(),
        "base": int(open("/proc/self/uid_map").read().split()[1]),
        "count": int(open("/proc/self/uid_map").read().split()[2]),
        "owners": [os.stat(path).st_uid for path in ("/", "/root", "/usr/bin/python3", "/usr/bin/env", "/etc/passwd")],
        "mine": os.stat("/root/mine").st_uid,
        "net": os.listdir("/sys/class/net"),
        "cgroup": os.listdir("/sys/fs/cgroup"),
        "sysctl": tried(lambda: open("/proc/sys/kernel/hostname", "w")),
        "port": tried(low_port_as_other),
        "ping": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)),
        "run": subprocess.run(["/usr/bin/env", "true"]).returncode,
    }
    time.sleep(1.5)
    return found

@app.function(image=image, block_network=True)
def alone():
    return [sorted(os.listdir("/sys/class/net")), os.stat("/sys").st_uid]

@app.local_entrypoint()
def main():
    print("FOUND", json.dumps([list(look.map(["a", "b"])), alone.remote()]))
"""

BUILD = """
import subprocess
import cadenza

image = (
    cadenza.Image.debian_slim()
    .apt_install("mailcap")
    .run_commands("groupadd -g 4321 them && useradd -u 4321 -g them them && touch /theirs && chown them:them /theirs")
    .run_commands("su them -c 'id -u >/tmp/theirs'", "cut -c 1-24 /proc/self/uid_map >/map")
)
app = cadenza.App("ids-build")

@app.function(image=image)
def look():
    import os
    owners = [os.stat(path).st_uid for path in ("/theirs", "/etc/mailcap")]
    return [owners, open("/tmp/theirs").read(), int(open("/map").read().split()[1]) >= 0x70000000]

@app.local_entrypoint()
def main():
    print("FOUND", look.remote())
"""


def found(text: str) -> Any:
    return json.loads(next(line for line in text.splitlines() if line.startswith("FOUND "))[len("FOUND ") :])


@pytest.fixture(scope="module")
def looked(home: Any) -> Any:
    done = home.cadenza("run", home.program("ids.py", PROGRAM), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr + home.server_log()
    return found(done.stdout)


def test_each_container_is_root_of_ids_that_nobody_else_has(looked: Any):
    first, second = looked[0]
    assert first["uid"] == second["uid"] == 0
    assert first["count"] == second["count"] == 65536
    assert min(first["base"], second["base"]) >= 0x70000000
    assert first["base"] != second["base"], "two containers at once have the same ids"


def test_the_image_is_roots_and_files_can_be_given_away(looked: Any):
    for one in looked[0]:
        assert one["owners"] == [0, 0, 0, 0, 0]
        assert one["mine"] == 1000
        assert one["run"] == 0


def test_ordinary_programs_may_ping_and_serve_low_ports_but_not_change_the_kernel(looked: Any):
    for one in looked[0]:
        assert (one["port"], one["ping"], one["sysctl"]) == ("done", "done", "OSError")


def test_the_machines_interfaces_and_cgroups_are_not_shown(looked: Any):
    for one in looked[0]:
        assert one["net"] == []
        assert one["cgroup"] == []
    assert looked[1] == [["lo"], 65534]


def test_on_the_machine_its_processes_and_files_are_nobodys(home: Any, looked: Any):
    # Warm containers of the pool wait for work now, as the machine sees them.
    server = home.server_pid()
    assert server is not None
    owners = set()
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                command = (one / "cmdline").read_bytes()
                if (
                    b"/.cadenza/lib" in command
                    and str(server) == (one / "status").read_text().split("PPid:\t")[1].split()[0]
                ):
                    owners.add((one / "status").read_text().split("Uid:\t")[1].split()[0])
            except (OSError, IndexError):
                continue
    assert owners and all(int(owner) >= 0x70000000 for owner in owners), owners


def test_builds_are_mapped_and_leave_files_that_are_not(home: Any):
    done = home.cadenza("run", home.program("idsbuild.py", BUILD), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert r"FOUND [[4321, 0], '4321\n', True]" in done.stdout


def test_doctor_says_that_ids_are_mapped(home: Any):
    done = home.cadenza("doctor", "--json")
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["container ids"]["works"], checks["container ids"]
    assert "nobody" in checks["container ids"]["sentence"]


def test_nothing_stays_when_the_server_ends(home: Any, looked: Any):
    home.cadenza("down", "--force")
    places = [str(one) for one in Path("/run").glob("cadenza-cz*") if str(home.path) in mounts_of(one)]
    assert places == []
    assert str(home.path) not in Path("/proc/self/mountinfo").read_text()


def mounts_of(place: Path) -> str:
    done = subprocess.run(
        ["findmnt", "-rn", "-o", "TARGET,SOURCE,OPTIONS"], capture_output=True, text=True, check=False
    )
    return "\n".join(line for line in done.stdout.splitlines() if str(place) in line)


def test_where_layers_cannot_be_mapped_that_is_said(tmp_path: Path):
    """ramfs has no idmapped mounts."""
    subprocess.run(["mount", "-t", "ramfs", "none", str(tmp_path)], check=True)
    try:

        async def body() -> Ability:
            launcher = Launcher()
            try:
                return (await probe(launcher, place=str(tmp_path))).abilities["container ids"]
            finally:
                launcher.close()

        found = asyncio.run(body())
        assert not found.works
        assert found.sentence.startswith("Root in a standard container is the machine's root")
        assert found.remedy
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
