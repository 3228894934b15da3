"""An ordinary user, without root: containers all the same; and where even those cannot be, plain processes, so called.

The user is made for the test, and runs the command from a copy of the package that it may read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from packaging.requirements import Requirement

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes a user of its own: needs root"),
]

ROOT = Path(__file__).resolve().parents[2]


def libraries(name: str = "cadenza") -> dict[str, importlib.metadata.Distribution]:
    """What a distribution needs to run here, and what that needs, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [name]
    while wanted:
        for line in importlib.metadata.requires(wanted.pop()) or ():
            needed = Requirement(line)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and needed.name not in found:
                found[needed.name] = importlib.metadata.distribution(needed.name)
                wanted.append(needed.name)
    return found


HELLO = """
import os, socket, time
import cadenza

app = cadenza.App("hello")

def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__

@app.function()
def look(home):
    os.chown("/tmp", 33, 33)
    return {
        "uid": os.getuid(),
        "processes": [int(one) for one in os.listdir("/proc") if one.isdigit()],
        "debian": os.path.exists("/etc/debian_version"),
        "home": os.path.exists(home),
        "owner": os.stat("/tmp").st_uid,
        "mount": tried(lambda: open("/proc/sys/kernel/hostname", "w")),
        "runtime": os.environ["CADENZA_FUNCTION_RUNTIME"],
    }

@app.function(block_network=True)
def alone():
    out = tried(lambda: socket.create_connection(("192.0.2.1", 53), 1))
    return [out, sorted(os.listdir("/sys/class/net"))]

@app.function()
def long():
    print("long began", flush=True)
    time.sleep(300)

@app.local_entrypoint()
def main(which: str = "look"):
    import json
    if which == "long":
        long.remote()
    print("FOUND", json.dumps(look.remote(os.environ["HOME"]) if which == "look" else alone.remote()))
"""

BUILD = """
import os
import cadenza

image = (
    cadenza.Image.debian_slim()
    .apt_install("openssh-client")
    .pip_install("six")
    .run_commands("useradd -u 4321 them && touch /theirs && chown them: /theirs && su them -c 'id -u >/tmp/them'")
)
app = cadenza.App("build", image=image)

@app.function()
def look():
    import six
    return [os.stat("/theirs").st_uid, open("/tmp/them").read().strip(), os.stat("/usr/bin/ssh-agent").st_gid > 0]

@app.local_entrypoint()
def main():
    import json
    print("FOUND", json.dumps(look.remote()))
"""


CONTRACT = """
import sys
from cadenza.runtime import rootless

rootless.enter(rootless.plan())
import pytest

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", "crun or runsc", "--basetemp", sys.argv[2]]))
"""


class Person:
    """A user of the machine, with a home, a copy of the package, and a Cadenza."""

    def __init__(self, name: str, copy: Path) -> None:
        self.name = name
        self.home = Path(pwd.getpwnam(name).pw_dir)
        self.environ = {
            "HOME": str(self.home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(copy),
            "CADENZA_HOME": str(self.home / "cz"), "CADENZA_IDLE_STOP_S": "120",
            **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
        }  # fmt: skip

    def start(self, *argv: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [os.path.realpath(sys.executable), "-m", "cadenza", *argv],
            user=self.name, group=self.name, extra_groups=[], env={**self.environ, **more}, cwd=self.home,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def cadenza(self, *argv: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
        running = self.start(*argv, **more)
        out, err = running.communicate(timeout=timeout)
        return subprocess.CompletedProcess(argv, running.returncode, out, err)

    def found(self, *argv: str, **more: str) -> Any:
        done = self.cadenza("run", *argv, **more)
        log = self.home / "cz/state/server.log"
        assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])

    def program(self, name: str, source: str) -> str:
        path = self.home / name
        path.write_text(source)
        path.chmod(0o644)
        return str(path)

    def processes(self) -> list[str]:
        uid = pwd.getpwnam(self.name).pw_uid
        found = []
        for one in Path("/proc").iterdir():
            if one.name.isdigit():
                try:
                    dead = (one / "stat").read_text().rpartition(") ")[2].startswith("Z")  # init's to collect
                    if one.stat().st_uid == uid and not dead:
                        found.append(f"{one.name} {(one / 'cmdline').read_bytes()[:100]!r}")
                except OSError:
                    continue
        return found


@pytest.fixture(scope="module")
def make_person() -> Iterator[Callable[..., Person]]:
    copy = Path(tempfile.mkdtemp(prefix="cadenza-copy-"))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cadenza", copy / "cadenza", ignore=ignore)
    for one in libraries().values():
        for path in one.files or ():
            if ".." not in path.parts and "__pycache__" not in path.parts:
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path.locate(), copy / path)
    subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
    made: list[Person] = []

    def make(name: str, subordinate: bool = True) -> Person:
        name = f"cz{name}{os.getpid() % 100000}"
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
        person = Person(name, copy)
        made.append(person)
        if not subordinate:
            for path in ("/etc/subuid", "/etc/subgid"):
                subprocess.run(["sed", "-i", f"/^{name}:/d", path], check=True)
        return person

    yield make
    for one in made:
        one.cadenza("down", "--force")
        subprocess.run(["userdel", "--force", "--remove", one.name], check=False, capture_output=True)
    shutil.rmtree(copy, ignore_errors=True)


@pytest.fixture(scope="module")
def person(make_person: Callable[..., Person]) -> Person:
    return make_person("rootless")


def test_doctor_says_which_runtime_it_is_and_what_is_missing(person: Person):
    done = person.cadenza("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["isolation"]["standard"] == "crun-rootless"
    checks = {one["name"]: one for one in told["checks"]}
    assert "share the machine's network" in checks["network"]["sentence"]
    assert not checks["network"]["works"] and not checks["cgroups"]["works"]
    shown = checks["file system"]["sentence"]
    assert "mode sparse" in shown and "needs the machine's root" in shown
    assert checks["lazy fetching"]["works"] == bool(os.stat("/dev/fuse").st_mode & 0o002)


def test_a_function_is_isolated(person: Person):
    seen = person.found(person.program("hello.py", HELLO))
    assert seen["runtime"] == "crun-rootless"
    assert seen["uid"] == 0, "root in the container"
    assert len(seen["processes"]) <= 3 and 1 in seen["processes"], "it sees its own processes only"
    assert seen["debian"], "the root file system is the image's"
    assert not seen["home"], "the user's files are out of sight"
    assert seen["owner"] == 33, "ids beside root work"
    assert seen["mount"] in ("OSError", "PermissionError")


def test_outside_the_containers_root_is_the_user(person: Person):
    running = person.start("run", person.program("hello.py", HELLO), "--which", "long")
    try:
        deadline = time.monotonic() + 60
        rows: list[Any] = []
        while time.monotonic() < deadline and not rows:
            time.sleep(0.1)
            listed = person.cadenza("container", "list", "--json")
            rows = json.loads(listed.stdout) if listed.returncode == 0 else []
            rows = [one for one in rows if one["runtime"]]
        assert rows and rows[0]["runtime"] == "crun-rootless", rows
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)


def test_without_network_there_is_loopback_only(person: Person):
    assert person.found(person.program("hello.py", HELLO), "--which", "alone") == ["OSError", ["lo"]]


def test_packages_that_have_users_of_their_own_are_installed(person: Person):
    assert person.found(person.program("build.py", BUILD)) == [4321, "4321", True]


def test_what_a_killed_server_left_is_ended_by_the_next(person: Person):
    running = person.start("run", person.program("hello.py", HELLO), "--which", "long")
    assert running.stdout is not None and running.stderr is not None
    lines = iter(running.stdout.readline, "")
    assert any("long began" in line for line in lines)
    holder = json.loads(person.cadenza("doctor", "--json").stdout)["server"]
    os.kill(holder["pid"], signal.SIGKILL)
    running.communicate(timeout=60)
    seen = person.found(person.program("hello.py", HELLO))
    assert seen["uid"] == 0
    person.cadenza("down", "--force")
    assert person.processes() == []
    assert os.listdir(person.home / "cz/data/containers") == []


def test_drivers_keep_their_contract_without_root(person: Person):
    tests = person.home / "contract"
    tests.mkdir()
    shutil.copy(ROOT / "tests/contract/test_contract_driver.py", tests)
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin
        shutil.copytree(os.path.dirname(spec.origin), tests / name)
    py = importlib.util.find_spec("py")
    if py is not None and py.origin:
        shutil.copy(py.origin, tests)
    subprocess.run(["chown", "-R", person.name, str(tests)], check=True)
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-c", CONTRACT, str(tests / "test_contract_driver.py"), str(tests / "tmp")],
        user=person.name, group=person.name, extra_groups=[], cwd=tests, capture_output=True, text=True, timeout=240,
        env={**person.environ, "PYTHONPATH": f"{person.environ['PYTHONPATH']}:{tests}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_strong_isolation_is_to_be_had_too(person: Person):
    seen = person.found(person.program("hello.py", HELLO), CADENZA_ISOLATION="strong")
    assert seen["debian"] and not seen["home"]
    assert seen["runtime"] == "runsc-rootless"
    person.cadenza("down", "--force")
    assert person.processes() == []


def test_without_ids_functions_run_as_processes_and_that_is_said(make_person: Callable[..., Person]):
    poor = make_person("poor", subordinate=False)
    told = poor.cadenza("doctor")
    assert told.returncode == 1
    assert "WITHOUT isolation" in told.stdout
    assert "/etc/subuid gives no 65535 ids" in told.stdout
    assert "usermod --add-subuids" in told.stdout
    seen = poor.found(poor.program("hello.py", HELLO.replace('os.chown("/tmp", 33, 33)', "")))
    assert seen["runtime"] == "process"
    assert seen["uid"] == pwd.getpwnam(poor.name).pw_uid
    assert len(seen["processes"]) > 3
    poor.cadenza("down", "--force")
    assert poor.processes() == []
