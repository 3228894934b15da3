"""Machines that share images by a store and by each other: what is sent, fetched, and said when it cannot be.

docs/operate/store.md; semantics.md section 13.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3 import Bucket

from conftest import Home

MANY = "import pathlib; [pathlib.Path(f'/data/{n}').write_bytes(b'%03d' % n * 2000) for n in range(200)]"
PROGRAM = f"""
import cadenza
app = cadenza.App("fleet")
image = cadenza.Image.debian_slim().run_commands("mkdir /data", {f'python -c "{MANY}"'!r})
@app.function(image=image, timeout=100)
def look(numbers):
    import time
    found = []
    for n in numbers:
        try:
            found.append(len(open(f"/data/{{n}}").read()))
        except OSError as error:
            found.append(error.errno)
        time.sleep(0.02)
    return found
@app.local_entrypoint()
def main(first: int = 0, last: int = 3):
    print("found", look.remote(range(first, last)))
"""
ON_TOP = PROGRAM.replace("@app.function", 'image = image.run_commands("echo more > /data/more")\n@app.function')


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    found = Bucket(tmp_path_factory.mktemp("bucket"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def whole(bucket: Bucket) -> Iterator[None]:
    yield
    bucket.fault = ""


@pytest.fixture(scope="module")
def builder(make_home: Callable[..., Home], bucket: Bucket) -> Home:
    """A machine that has built the image and sent it."""
    home = make_home(**bucket.settings)
    bucket.fault = "dead"
    assert_found(home, [6000, 6000, 6000])
    assert "cannot be reached" in home.server_log(), "what cannot be sent is said"
    assert "to be sent to the store" in home.cadenza("status").stderr
    bucket.fault = ""
    until(lambda: any((bucket.root / "fleet/images").glob("im-*")), 90)
    until(lambda: "to be sent" not in home.cadenza("status").stderr, 90)
    return home


@pytest.fixture
def taker(make_home: Callable[..., Home], builder: Home, bucket: Bucket) -> Home:
    """A machine with nothing."""
    home = make_home(**bucket.settings)
    shutil.rmtree(home.path / "data", ignore_errors=True)
    return home


def until(true: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def go(home: Home, first: int = 0, last: int = 3, source: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    path = home.program("fleet.py", source)
    return home.cadenza("run", path, "--first", str(first), "--last", str(last), timeout=100)


def assert_found(home: Home, found: list[int], first: int = 0, last: int = 3) -> subprocess.CompletedProcess[str]:
    done = go(home, first, last)
    assert f"found {found}" in done.stdout, done.stdout + done.stderr
    return done


def image_id(home: Home) -> str:
    rows = json.loads(home.cadenza("image", "list", "--json").stdout)
    return next(str(one["image_id"]) for one in rows if "/data" in one["description"])


def here(home: Home) -> tuple[int, int]:
    """Bytes of the image that are on a machine, and all its bytes."""
    found = json.loads(home.cadenza("image", "inspect", image_id(home), "--json").stdout)
    return found["here"], found["size"]


def worker(home: Home) -> int:
    """The process behind a machine's lazy mount."""
    mark = f"CADENZA_HOME={home.path}".encode()
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                if b"cadenza.fs.lazy" in (one / "cmdline").read_bytes() and mark in (one / "environ").read_bytes():
                    return int(one.name)
            except OSError:
                continue
    raise AssertionError("there is no such process")


def test_another_machine_builds_nothing_and_fetches_what_it_reads(taker: Home) -> None:
    done = assert_found(taker, [6000, 6000, 6000])
    assert "step" not in done.stderr
    local, size = here(taker)
    assert 0 < local < size / 2
    on_top = go(taker, source=ON_TOP)
    assert "found [6000, 6000, 6000]" in on_top.stdout
    steps = [line for line in on_top.stderr.splitlines() if "step " in line]
    assert len(steps) == 1 and "echo more" in steps[0], "what is below was not made again"


def test_a_machine_without_a_store_has_it_from_another(
    make_home: Callable[..., Home], builder: Home, bucket: Bucket
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    giver = make_home(**bucket.settings, CADENZA_PEER_ADDRESS=address, CADENZA_PEER_KEY="a key")
    shutil.rmtree(giver.path / "data", ignore_errors=True)
    assert_found(giver, [6000, 6000, 6000])
    taker = make_home(**bucket.settings, CADENZA_PEERS=f"http://{address}", CADENZA_PEER_KEY="a key")
    shutil.rmtree(taker.path / "data", ignore_errors=True)
    before = bucket.settled_bytes()  # the giver reads ahead for itself
    assert_found(taker, [6000, 6000, 6000])
    from_bucket = bucket.given_bytes - before
    assert from_bucket < here(taker)[0] / 2, "files came from the other machine"
    giver.cadenza("down", "--force")
    assert_found(taker, [6000] * 10, first=150, last=160)


@pytest.mark.parametrize(
    ("fault", "words"), [("dead", "cannot be reached"), ("wrong", "is corrupt in s3://content/fleet")]
)
def test_a_start_that_cannot_be_says_which_image_and_which_store(
    taker: Home, bucket: Bucket, fault: str, words: str
) -> None:
    assert_found(taker, [6000, 6000, 6000])
    taker.cadenza("down", "--force")
    for one in (taker.path / "data/store/objects").iterdir():
        shutil.rmtree(one)
    bucket.fault = fault
    done = go(taker)
    said = f"files of the image {image_id(taker)} cannot be fetched from s3://content/fleet"
    assert done.returncode != 0 and said in done.stderr and words in done.stderr
    bucket.fault = ""
    end = time.monotonic() + 30
    while "found [6000, 6000, 6000]" not in go(taker).stdout:  # and nothing has to be restarted
        assert time.monotonic() < end


def test_running_containers_go_on_through_faults(taker: Home, bucket: Bucket) -> None:
    """The store dies for a moment, is slow, and what fetches is killed twice: nobody notices but by time."""
    assert_found(taker, [6000, 6000, 6000])
    running = taker.start("run", taker.program("fleet.py", PROGRAM), "--first", "0", "--last", "200")
    time.sleep(2)
    os.kill(worker(taker), signal.SIGKILL)
    bucket.fault = "dead"
    time.sleep(2)
    bucket.fault = "slow"
    time.sleep(1)
    os.kill(worker(taker), signal.SIGKILL)
    time.sleep(1)
    bucket.fault = ""
    out, err = running.communicate(timeout=100)
    assert f"found {[6000] * 200}" in out, out + err


def test_a_server_that_is_killed_while_it_fetches_starts_again(taker: Home, bucket: Bucket) -> None:
    assert taker.cadenza("up").returncode == 0
    bucket.fault = "slow"
    running = taker.start("run", taker.program("fleet.py", PROGRAM))
    time.sleep(3)
    pid = taker.server_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    running.communicate(timeout=60)
    bucket.fault = ""
    assert_found(taker, [6000, 6000, 6000])


def test_credentials_are_nowhere(builder: Home, taker: Home, bucket: Bucket) -> None:
    program = 'import cadenza, os\napp = cadenza.App("env")\n@app.function(image=cadenza.Image.debian_slim())\n'
    program += "def env(): return dict(os.environ)\n@app.local_entrypoint()\ndef main(): print('env', env.remote())\n"
    done = taker.cadenza("run", taker.program("env.py", program))
    assert "env {" in done.stdout and bucket.secret not in done.stdout
    for place in (builder.path, taker.path, bucket.root):
        found = subprocess.run(["grep", "-rlaF", bucket.secret, str(place)], capture_output=True, text=True)
        assert found.stdout == ""
    commands = [one.read_bytes() for one in Path("/proc").glob("[0-9]*/cmdline") if one.exists()]
    assert not any(bucket.secret.encode() in one for one in commands)
