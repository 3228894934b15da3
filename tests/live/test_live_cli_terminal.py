"""Terminals of containers, with a terminal of our own: ``cadenza shell``, ``run -i`` with interact and breakpoint.

Source: semantics.md section 23.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 90.0


class Person:
    """Somebody at a terminal: reads what is on it, types."""

    def __init__(self, home, *argv: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 111, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cadenza", *argv], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**home.environ, "TERM": "xterm"}, cwd=home.path, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def read_until(self, pattern: str) -> str:
        """What came up to the pattern; it is gone from what is still to be read."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = re.search(pattern, self.seen)
            if found:
                text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
                return text
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.ours], [], [], left)[0], f"no {pattern!r} in: {self.seen!r}"
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                data = b""
            assert data, f"it ended without {pattern!r}: {self.seen!r}"
            self.seen += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def ends(self) -> int:
        """Its exit status, once it has said all."""
        while True:
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode(errors="replace")
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def at(home):
    """Sits somebody down; they are gone at the end."""
    people = []

    def sit(*argv: str) -> Person:
        people.append(Person(home, *argv))
        return people[-1]

    yield sit
    for one in people:
        one.process.kill()
        one.process.wait()
        os.close(one.ours)


PROGRAM = """
import sys
import cadenza
app = cadenza.App("terminals")
image = cadenza.Image.debian_slim().env({"COLOUR": "green"}).add_local_file(NOTE, "/root/note.txt")

print("the program is imported", file=sys.stderr)

@app.function(image=image, env={"SHAPE": "round"}, secrets=[cadenza.Secret.from_dict({"WORD": "sesame"})])
def look():
    name = "nobody"
    breakpoint()
    return "it is " + name

@app.function()
def talk():
    cadenza.interact()
    answer = input("who is there? ")
    print("hello", answer)
    return answer.upper()
"""


@pytest.fixture
def program(home) -> str:
    note = home.path / "note.txt"
    note.write_text("a note\n")
    return home.program("terminals.py", f"NOTE = {str(note)!r}\n{PROGRAM}")


def test_a_shell_types_and_its_exit_code_is_ours(at) -> None:
    person = at("shell")
    person.read_until(r"[#$] ")
    person.type("tput cols 2>/dev/null || stty size; echo $((6 * 7))_; exit 3\n")
    person.read_until(r"42_")
    assert person.ends() == 3


def test_the_terminal_has_our_size(at) -> None:
    person = at("shell", "--cmd", "sh -c 'sleep 0.5; stty size'")  # the size comes just after the start
    person.read_until(r"30 111")
    assert person.ends() == 0


def test_a_functions_container_without_its_code(home, program) -> None:
    """Image, files, variables and secrets are the function's; the program is not imported there."""
    command = "cat note.txt; echo $COLOUR $SHAPE $WORD; ls terminals.py; tr '\\0' ' ' < /proc/1/cmdline; exit 5"
    done = home.cadenza("shell", "--no-pty", "--cmd", f'sh -c "{command}"', f"{program}::look")
    assert done.returncode == 5, done.stderr + home.server_log()
    assert "a note\n" in done.stdout and "green round sesame\n" in done.stdout and "terminals.py" in done.stdout
    assert done.stderr.count("the program is imported") == 1  # here, and not in the container
    assert "sesame" not in done.stderr + home.server_log()


def test_standard_input_of_a_shell_may_be_a_pipe(home) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cadenza", "shell", "--cmd", "cat -n"],
        input="a\nb\n", capture_output=True, text=True, env=home.environ, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.split() == ["1", "a", "2", "b"]


def test_files_from_here_and_limits(home) -> None:
    folder = home.path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "one.txt").write_text("one")
    words = ("--memory", "300", "--cpu", "2", "--add-local", str(folder), "--add-local", str(folder / "one.txt"))
    done = home.cadenza("shell", *words, "--cmd", "sh -c 'cat /mnt/folder/one.txt /mnt/one.txt; nproc >&2'")
    assert done.returncode == 0 and done.stdout == "oneone", done.stderr


def test_an_image_by_its_id(home, program) -> None:
    import json

    assert home.cadenza("shell", "--cmd", "true", f"{program}::look").returncode == 0
    listed = json.loads(home.cadenza("image", "list", "--json").stdout)
    seen = set()
    for one in listed:
        done = home.cadenza("shell", "--cmd", "sh -c 'echo colour=$COLOUR'", one["image_id"])
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout.strip())
    assert "colour=green" in seen
    none = home.cadenza("shell", "im-0000000000000000000000")
    assert none.returncode == 1 and "no image 'im-0" in none.stderr


def test_the_app_of_a_shell_is_gone_with_it(home) -> None:
    import json

    home.cadenza("shell", "--cmd", "true")
    apps = json.loads(home.cadenza("app", "list", "--json").stdout)
    shells = [one for one in apps if one["name"].startswith("shell")]
    assert shells and all(one["state"] in ("stopped", "stopping") for one in shells)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cpu", "2", "x.py"], "--cpu is for a shell without REF"),
        (["nowhere.py::f"], "no such file: nowhere.py"),
        (["--cmd", "'open"], "cannot be split"),
        (["--runtime", "vm"], "not built"),
    ],
)
def test_wrong_usage_of_shell(home, words: list[str], sentence: str) -> None:
    done = home.cadenza("shell", *words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_a_program_that_is_not_there(home) -> None:
    done = home.cadenza("shell", "--cmd", "no-such-program")
    assert done.returncode == 127 or (done.returncode == 1 and "no-such-program" in done.stderr), done


def test_breakpoint_reads_what_is_typed(at, program) -> None:
    """What is typed in the debugger changes what the function gives."""
    person = at("run", "-i", f"{program}::look")
    person.read_until(r"\(Pdb\) ")
    person.type("name\n")
    person.read_until(r"'nobody'[\s\S]*\(Pdb\) ")
    person.type("name = 'somebody'\n")
    person.read_until(r"\(Pdb\) ")
    person.type("c\n")
    person.read_until(r"'it is somebody'")
    assert person.ends() == 0


def test_interact_reads_a_line(at, program) -> None:
    person = at("run", "-i", f"{program}::talk")
    person.read_until(r"who is there\? ")
    person.type("ann\n")
    person.read_until(r"hello ann")
    person.read_until(r"'ANN'")
    assert person.ends() == 0


def test_without_i_it_says_so(home, program) -> None:
    done = home.cadenza("run", f"{program}::talk")
    assert done.returncode == 1 and "cadenza run -i" in done.stderr


def test_the_terminal_is_as_it_was(at, program) -> None:
    """Raw mode ends with the relay: the shell that comes after echoes again."""
    person = at("run", "-i", f"{program}::talk")
    before = termios.tcgetattr(person.ours)
    person.read_until(r"who is there\? ")
    person.type("bob\n")
    assert person.ends() == 0
    assert termios.tcgetattr(person.ours)[:4] == before[:4]


def test_exec_in_a_running_container(home, program) -> None:
    held = home.program(
        "held.py",
        "import cadenza, time\napp = cadenza.App('held')\n@app.function()\ndef hold(s: float):\n    time.sleep(s)\n",
    )
    running = home.start("run", f"{held}::hold", "--s", "60")
    try:
        import json

        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = json.loads(home.cadenza("container", "list", "--json").stdout or "[]")
            ids = [one["container_id"] for one in rows if one["function"] == "hold" and one["state"] == "ready"]
            if ids:
                break
            assert time.monotonic() < deadline, home.server_log()
            time.sleep(0.2)
        done = home.cadenza("shell", "--cmd", "sh -c 'ls held.py; exit 7'", ids[0])
        assert done.returncode == 7 and done.stdout == "held.py\n", done.stderr
    finally:
        running.terminate()
        running.communicate(timeout=30)


def test_help_of_the_shell_names_all_that_ref_may_be(home) -> None:
    text = home.cadenza("shell", "--help").stdout
    assert all(word in text for word in ("file.py::function", "ta-...", "im-..."))
