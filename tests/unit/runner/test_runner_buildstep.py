"""A function that runs while an image is built, as its process. Source: semantics.md section 13.3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from cadenza import runner
from cadenza.runner import values

LIB = Path(__file__).resolve().parents[3]

PROGRAM = """
import asyncio, os, pathlib, sys
import modal

OUT = pathlib.Path(os.environ["OUT"])

def write(text, more=""):
    OUT.write_text(text + more)
    print("written", end="")

async def later(text):
    await asyncio.sleep(0)
    OUT.write_text(text)

def remote():
    OUT.write_text(str(modal.is_local()))

def fails():
    print("before")
    raise ValueError("no such model")

def leaves(code):
    sys.exit(code)

def gives():
    yield 1

def child():
    import subprocess
    subprocess.run([sys.executable, "-c", "import other"], check=True, cwd=os.path.dirname(__file__))

def at_the_end():
    import atexit
    atexit.register(OUT.write_text, "at the end")

class Holder:
    def method(self): ...
"""


class Build:
    """One build container's directories."""

    def __init__(self, path: Path) -> None:
        self.root, self.directory, self.out = path / "root", path / "function", path / "out"
        self.root.mkdir()
        self.directory.mkdir()
        (self.root / "program.py").write_text(PROGRAM)
        (self.root / "other.py").write_text("")

    def run(self, qualname: str, *args: Any, **more: Any) -> subprocess.CompletedProcess[str]:
        call = {
            "module": "program",
            "qualname": qualname,
            "python": "",
            "is_async": False,
            "is_generator": False,
            **more,
        }
        (self.directory / "call.json").write_text(json.dumps(call))
        if args:
            (self.directory / "arguments.pkl").write_bytes(values.pack_bytes((args, {})))
        environ = {
            "PATH": os.environ["PATH"],
            "OUT": str(self.out),
            "CADENZA_ROOT": str(self.root),
            "CADENZA_BUILD_FUNCTION": str(self.directory),
        }
        command = runner.build_command(sys.executable, str(LIB))
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, cwd="/")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_a_function_runs_with_its_arguments_and_its_output_is_seen(build: Build) -> None:
    ended = build.run("write", "a", "b")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "written", "")
    assert build.out.read_text() == "ab"


def test_an_async_function_is_awaited(build: Build) -> None:
    assert build.run("later", "x", is_async=True).returncode == 0
    assert build.out.read_text() == "x"


def test_it_is_a_container_by_whichever_name_the_library_has(build: Build) -> None:
    assert build.run("remote").returncode == 0
    assert build.out.read_text() == "False"


def test_a_failure_shows_the_users_frames_alone(build: Build) -> None:
    ended = build.run("fails")
    assert ended.returncode == 1
    assert ended.stdout == "before\n"
    assert "ValueError: no such model" in ended.stderr
    assert "program.py" in ended.stderr
    assert "buildstep" not in ended.stderr


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (None, 0), (3, 3), ("why", 1)])
def test_an_exit_of_the_program_is_its_own(build: Build, code: Any, expected: int) -> None:
    ended = build.run("leaves", code)
    assert ended.returncode == expected
    assert ended.stderr == ("why\n" if code == "why" else "")


@pytest.mark.parametrize(
    ("qualname", "says"), [("gives", "generator"), ("none", "has no function 'none'"), ("Holder.method", "self")]
)
def test_what_cannot_run_says_why(build: Build, qualname: str, says: str) -> None:
    ended = build.run(qualname)
    assert ended.returncode == 1
    assert says in ended.stderr


def test_a_module_that_is_not_there_says_what_to_do(build: Build) -> None:
    ended = build.run("write", module="absent")
    assert ended.returncode == 1
    assert "include_source" in ended.stderr


def test_no_byte_code_of_the_programs_files_is_left(build: Build) -> None:
    assert build.run("child").returncode == 0
    assert sorted(one.name for one in build.root.iterdir()) == ["other.py", "program.py"]


def test_exit_functions_run(build: Build) -> None:
    assert build.run("at_the_end").returncode == 0
    assert build.out.read_text() == "at the end"


def test_a_pickled_function_runs_on_its_own_version_alone(build: Build) -> None:
    out = str(build.out)

    def typed() -> None:
        with open(out, "w") as file:
            file.write("typed")

    (build.directory / "function.pkl").write_bytes(cloudpickle.dumps(typed))
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    ended = build.run("typed", module="", python=own)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert build.out.read_text() == "typed"
    other = build.run("typed", module="", python="3.1")
    assert other.returncode == 1
    assert "Python 3.1" in other.stderr
