"""A budget with real containers: what they cost is measured from outside, while the server is killed repeatedly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(200)

CAP_S = 40.0
SOURCE = (
    "import cadenza, time\napp = cadenza.App('capped', budget=cadenza.Budget(container_seconds=40))\n"
    "@app.function(timeout=5, startup_timeout=5, retries=0)\n"
    "def work(seconds):\n    end = time.monotonic() + seconds\n    while time.monotonic() < end:\n        pass\n"
)
SPAWN = (
    "import cadenza\nwork = cadenza.Function.from_name('capped', 'work')\n"
    "print(*[work.spawn(2.0).object_id for _ in range(40)])\n"
)
STUCK = (
    "import cadenza, time, signal\napp = cadenza.App('stuck')\n"
    "@app.function(timeout=3600)\ndef stay():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    print('it runs', flush=True)\n    while True:\n        pass\n"
)


class Meter:
    """Container-seconds of one home, as seen by which cgroups of its containers have processes."""

    def __init__(self, home) -> None:
        self._folder = home.path / "data/containers"
        self._known: set[str] = set()
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def running(self) -> set[str]:
        """Its containers that have processes now."""
        self._known |= set(os.listdir(self._folder)) if self._folder.exists() else set()
        found: set[str] = set()
        for path in Path("/proc").glob("[0-9]*/cgroup"):
            try:
                found |= set(re.findall(r"ta-\w{22}", path.read_text())) & self._known
            except OSError:
                continue
        return found

    def _run(self) -> None:
        while not self._over.wait(0.05):
            now = time.monotonic()
            for name in self.running():
                self._first.setdefault(name, now)
                self._last[name] = now

    def close(self) -> float:
        """What was seen."""
        self._over.set()
        self._thread.join()
        return sum(self._last[name] - self._first[name] for name in self._first)


def spent_s(home) -> float:
    """What the server says."""
    found = re.search(r"([\d.]+) of 40 container-seconds are spent", home.cadenza("app", "info", "capped").stdout)
    assert found is not None
    return float(found[1])


def test_a_server_that_is_killed_again_and_again_spends_no_more_than_the_cap(home) -> None:
    """The issue: spend never exceeds the cap, also when nobody could keep count for a while."""
    assert home.cadenza("up").returncode == 0
    done = home.cadenza("deploy", home.program("capped.py", SOURCE))
    assert done.returncode == 0, done.stderr
    meter = Meter(home)
    try:
        spawned = subprocess.run([sys.executable, "-c", SPAWN], env=home.environ, capture_output=True, text=True)
        assert spawned.returncode == 0, spawned.stderr
        for pause_s in (1.0, 2.5, 1.7, 0.6):
            time.sleep(pause_s)
            pid = home.server_pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            time.sleep(1.0)
            assert meter.running() == set(), "containers run on, and nobody counts"
            assert home.cadenza("up").returncode == 0
        deadline = time.monotonic() + 60
        while "Nothing waits or runs" not in home.cadenza("app", "explain", "capped").stdout:
            assert time.monotonic() < deadline
            time.sleep(1.0)
        told_s = spent_s(home)
    finally:
        seen_s = meter.close()
        home.cadenza("app", "stop", "-y", "capped")
    assert 5 < seen_s <= CAP_S, seen_s
    assert seen_s - 2.0 <= told_s <= CAP_S, f"{seen_s} s were seen, {told_s} s are told"


def test_what_nobody_holds_to_its_timeout_any_more_ends(home) -> None:
    """A container whose server was killed ends at once, without a next server, whatever the user's code does."""
    done = home.cadenza("deploy", home.program("stuck.py", STUCK))
    assert done.returncode == 0, done.stderr
    code = "import cadenza; cadenza.Function.from_name('stuck', 'stay').spawn()"
    assert subprocess.run([sys.executable, "-c", code], env=home.environ).returncode == 0
    while "it runs" not in home.cadenza("app", "logs", "stuck").stdout:  # ended by this module's time limit
        time.sleep(0.5)
    meter = Meter(home)
    try:
        assert meter.running()
        os.kill(home.server_pid(), signal.SIGKILL)
        deadline = time.monotonic() + 5
        while meter.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert meter.running() == set()
    finally:
        meter.close()
        home.cadenza("app", "stop", "-y", "stuck")
