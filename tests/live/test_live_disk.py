"""A disk that is full: who cannot go on is told so, the server lives, and all works again once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import has_images, share_images

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root"),
]

COMMAND = [sys.executable, "-m", "cadenza"]
ROOM_BYTES = 60 << 20
"""What the disk holds beside the base image."""

INC = (
    "import cadenza\napp = cadenza.App('inc')\n"
    "@app.function()\ndef inc(x):\n    return x + 1\n"
    "@app.local_entrypoint()\ndef main():\n    print('got', inc.remote(1))\n"
)
FILE = INC.replace(
    "@app.function()", "@app.function(image=cadenza.Image.debian_slim().add_local_file({path!r}, '/data/large'))"
)
BUILD = INC.replace(
    "@app.function()",
    "@app.function(image=cadenza.Image.debian_slim().run_commands('head -c 80000000 /dev/urandom >/large'))",
)
CALLS = (
    "import os, sys\nimport cadenza\napp = cadenza.App('calls')\n"
    "@app.function()\ndef size(data):\n    return len(data)\n"
    "@app.local_entrypoint()\ndef main(room: bool = False):\n"
    "    print('there', size.remote(b''), flush=True)\n"
    "    sys.stdin.readline()\n"
    "    for name, call in (('spawn', size.spawn), ('large', size.remote)):\n"
    "        try:\n            call(os.urandom(30 << 20))\n            print(name, 'worked', flush=True)\n"
    "        except cadenza.Error as error:\n            print(name, type(error).__name__, error, flush=True)\n"
)


class Disk:
    """A small file system, and a file that takes up what is free on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ballast = path / "ballast"

    def fill(self) -> None:
        with open(self.ballast, "ab", buffering=0) as file:
            piece = bytes(1 << 16)
            for size in (1 << 16, 4096, 1):
                try:
                    while True:
                        file.write(piece[:size])
                except OSError:
                    continue

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk_home(make_home: Any, home: Any) -> Iterator[tuple[Any, Disk]]:
    """A home whose data is on a small disk with the base image on it."""
    if not has_images(home.path / "data"):
        assert home.cadenza("run", home.program("inc.py", INC)).returncode == 0
    source = home.path / "data"
    used = int(subprocess.check_output(["du", "-skx", str(source / "store")]).split()[0]) << 10
    small = make_home(CADENZA_DATA_DIR="")
    disk = Disk(small.path / "disk")
    disk.path.mkdir()
    size = used + ROOM_BYTES
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk.path)], check=True)
    try:
        small.environ["CADENZA_DATA_DIR"] = str(disk.path / "data")
        share_images(source, disk.path / "data")
        done = small.cadenza("run", small.program("inc.py", INC))
        assert done.returncode == 0, done.stderr + small.server_log()
        yield small, disk
    finally:
        disk.free()
        small.cadenza("down", "--force")
        subprocess.run(["umount", str(disk.path)], check=True)


def works_again(small: Any, pid: int | None) -> None:
    done = small.cadenza("run", small.program("inc.py", INC))
    assert done.stdout.strip() == "got 2", done.stderr + small.server_log()[-3000:]
    assert small.server_pid() == pid, "the server lived through it: " + small.server_log()[-3000:]


@pytest.mark.parametrize("what", ["file", "build"])
def test_a_program_that_finds_no_room_says_so(disk_home: tuple[Any, Disk], what: str, tmp_path: Path) -> None:
    small, disk = disk_home
    pid = small.server_pid()
    large = tmp_path / "large"
    large.write_bytes(os.urandom(20 << 20))
    program = small.program(f"{what}.py", FILE.format(path=str(large)) if what == "file" else BUILD)
    if what == "file":
        disk.fill()
        with open(disk.ballast, "r+b") as file:  # room for a program, not for its file
            file.truncate(disk.ballast.stat().st_size - (8 << 20))
    done = small.cadenza("run", program)
    assert done.returncode == 1 and "disk" in done.stderr and "full" in done.stderr, done.stderr + small.server_log()
    assert "Traceback" not in done.stderr, done.stderr
    disk.free()
    works_again(small, pid)


def test_no_room_at_all(disk_home: tuple[Any, Disk]) -> None:
    small, disk = disk_home
    pid = small.server_pid()
    disk.fill()
    done = small.cadenza("run", small.program("inc.py", INC))
    if done.returncode:
        assert "disk" in done.stderr and "full" in done.stderr, done.stderr
    else:
        assert done.stdout.strip() == "got 2"
    assert small.cadenza("status").returncode == 0
    disk.free()
    works_again(small, pid)


def test_calls_of_a_running_program(disk_home: tuple[Any, Disk]) -> None:
    small, disk = disk_home
    pid = small.server_pid()
    child = subprocess.Popen(
        [*COMMAND, "run", small.program("calls.py", CALLS)], env=small.environ, cwd=small.path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline().startswith("there 0"), child.communicate()
    disk.fill()
    out, said = child.communicate("\n", timeout=60)
    lines = out.splitlines()
    assert lines[0].startswith("spawn ResourceExhaustedError") and "full" in lines[0], out + said
    assert lines[1].startswith("large ") and ("worked" in lines[1] or "full" in lines[1]), out + said
    disk.free()
    works_again(small, pid)


def test_a_server_that_starts_without_room_says_why(disk_home: tuple[Any, Disk]) -> None:
    small, disk = disk_home
    assert small.cadenza("down", "--force").returncode == 0
    disk.fill()
    done = small.cadenza("run", small.program("inc.py", INC))
    if done.returncode:
        assert "full" in done.stderr or "No space left" in done.stderr, done.stderr
    disk.free()
    assert small.cadenza("run", small.program("inc.py", INC)).stdout.strip() == "got 2"
