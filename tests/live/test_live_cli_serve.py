"""``cadenza serve``: versions follow the files. Source: semantics.md section 23."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 60.0

PROGRAM = """
import cadenza
from words import WORD
app = cadenza.App("served")
image = cadenza.Image.debian_slim().add_local_python_source("words").add_local_dir({data!r}, "/data")

@app.function(image=image)
def say():
    import os
    return [WORD, sorted(os.listdir("/data")), open("/data/one.txt").read()]
"""
CALL = """
import cadenza
say = cadenza.Function.from_name("served", "say")
print(say.remote(), say.object_id)
"""


class Served:
    """A ``cadenza serve`` and what it says."""

    def __init__(self, home, *argv: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cadenza", "serve", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=home.environ, cwd=home.path / "programs",
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def until(self, words: str) -> str:
        """All that was said up to a line with these words."""
        said = ""
        deadline = time.monotonic() + PATIENCE_S
        while words not in said:
            try:
                said += self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {words!r} in: {said}{self.home.server_log()}") from None
        return said

    def call(self) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", CALL], capture_output=True, text=True, env=self.home.environ, timeout=60
        )
        assert done.returncode == 0, done.stderr
        result, _, function_id = done.stdout.strip().rpartition(" ")
        return result, function_id

    def end(self, signum: int = signal.SIGINT) -> int:
        self.process.send_signal(signum)
        return self.process.wait(30)


@pytest.fixture
def files(home):
    data = home.path / "served-data"
    data.mkdir(exist_ok=True)
    for one in data.iterdir():
        one.unlink()
    (data / "one.txt").write_text("1")
    home.program("words.py", "WORD = 'first'\n")
    home.program("served.py", PROGRAM.format(data=str(data)))
    return data


@pytest.fixture
def served(home, files):
    one = Served(home, "served.py")
    yield one
    one.process.kill()
    one.process.wait()


def test_versions_follow_the_files(home, files, served) -> None:
    """Modules, mounted files, new files in mounted directories; the function keeps its id; a broken program harms
    nobody; Ctrl-C ends it and its app."""
    served.until("served runs: 1 function")
    first, function_id = served.call()
    assert first == "['first', ['one.txt'], '1']"

    home.program("words.py", "WORD = 'second'\n")
    said = served.until("runs anew")
    assert "Changed: words.py" in said
    assert served.call() == ("['second', ['one.txt'], '1']", function_id)

    (files / "one.txt").write_text("2")
    served.until("runs anew")
    (files / "two.txt").write_text("")
    served.until("runs anew")
    assert served.call() == ("['second', ['one.txt', 'two.txt'], '2']", function_id)

    home.program("words.py", "WORD = 'third\n")
    said = served.until("the one before goes on")
    assert "words.py, line 1" in said and "WORD = 'third" in said
    assert served.call()[0].startswith("['second'")

    home.program("words.py", "raise RuntimeError('not today')\n")
    said = served.until("the one before goes on")
    assert "RuntimeError: not today" in said and "words.py" in said and "serving.py" not in said

    home.program("words.py", "WORD = 'third'\n")
    served.until("runs anew")
    assert served.call()[0].startswith("['third'")

    assert served.end() == 130
    apps = home.cadenza("app", "list").stdout
    row = next(line for line in apps.splitlines() if "\tserved\t" in line)
    assert "\tstopp" in row and "interrupted" in row


def test_what_does_not_matter_is_not_watched(home, files, served) -> None:
    served.until("runs: 1 function")
    home.program("unrelated.py", "x = 1\n")
    (files / ".hidden").write_text("")
    (files / "note.txt~").write_text("")
    (files / "one.txt").write_text("3")
    said = served.until("runs anew")
    assert "unrelated" not in said and "hidden" not in said and "note" not in said and "one.txt" in said


def test_many_changes_at_once_are_one(home, files, served) -> None:
    served.until("runs: 1 function")
    for number in range(20):
        (files / f"more-{number}.txt").write_text(str(number))
    said = served.until("runs anew")
    assert said.count("Changed:") <= 2
    assert "and 17 more" in said or said.count("Changed:") == 2


def test_it_ends_after_its_time(home, files) -> None:
    one = Served(home, "served.py", "--timeout", "2", "-n", "for a moment")
    said = one.until("its time is over")
    assert "for a moment runs: 1 function" in said
    assert one.process.wait(30) == 0


def test_an_app_that_is_stopped_elsewhere_is_not_served(home, files, served) -> None:
    """The client's next heartbeat notices."""
    served.end()
    home.environ["CADENZA_HEARTBEAT_INTERVAL"] = "0.5"
    try:
        one = Served(home, "served.py")
        one.until("runs: 1 function")
        assert home.cadenza("app", "stop", "-y", "served").returncode == 0
        one.until("stopped at the server")
        assert one.process.wait(30) == 0
    finally:
        del home.environ["CADENZA_HEARTBEAT_INTERVAL"]


def test_a_first_version_that_is_broken_ends_it(home) -> None:
    home.program("broken.py", "import cadenza\napp = cadenza.App('b')\n1 / 0\n")
    done = home.cadenza("serve", str(home.path / "programs/broken.py"))
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "cadenza/cli" not in done.stderr
    missing = home.cadenza("serve", "nowhere.py")
    assert missing.returncode == 2 and missing.stderr == "Error: no such file: nowhere.py\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_build_ends_with_the_serve_that_wanted_it(home, signum: int) -> None:
    """However it ends: the process that publishes ends too, and what it built for nobody."""
    mark = f"7{int(time.time()) % 100_000}.{int(signum)}"
    path = home.program(
        "building.py",
        f"import cadenza\napp = cadenza.App('building')\n"
        f"slow = cadenza.Image.debian_slim().run_commands('sleep {mark}')\n"
        "@app.function(image=slow)\ndef f():\n    pass\n",
    )
    one = Served(home, path)
    one.until(f"RUN sleep {mark}")
    one.end(signum)
    deadline = time.monotonic() + 10
    while (left := processes(f"sleep {mark}", "building.py")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def processes(*words: str) -> list[str]:
    """Command lines in which one of these words is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if any(one in line for one in words) and "pytest" not in line:
            found.append(line)
    return found
