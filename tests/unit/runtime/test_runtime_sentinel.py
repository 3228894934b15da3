"""What ends containers when their agent was killed: by real processes in directories that look like cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest

from cadenza.runtime.sentinel import Sentinel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def layout(tmp_path: Path, pid: int, other: int) -> tuple[Path, Path]:
    """A state directory that knows the container ta-a, and cgroups of it and of another agent's ta-b."""
    state, groups = tmp_path / "state dir", tmp_path / "cgroup"
    (state / "crun/ta-a/root").mkdir(parents=True)
    for name, one in (("ta-a", pid), ("ta-b", other)):
        (groups / "cadenza" / name / "inner").mkdir(parents=True)
        (groups / "cadenza" / name / "cgroup.procs").write_text("")
        (groups / "cadenza" / name / "inner/cgroup.procs").write_text(f"{one}\n")
    return state, groups


def agent(state: Path, *roots: Path) -> subprocess.Popen[bytes]:
    """A process with a sentinel, which tells its pid."""
    program = "import sys, time\nfrom cadenza.runtime.sentinel import Sentinel\n"
    program += "print(Sentinel(sys.argv[1], 'cadenza', sys.argv[2:]).pid, flush=True)\ntime.sleep(300)\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(state), *map(str, roots)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def gone(pid: int, limit_s: float = 10) -> bool:
    """Whether the process ends in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_a_killed_agents_containers_end_and_no_others(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    mine = subprocess.Popen(["sleep", "300"], start_new_session=True)
    state, groups = layout(tmp_path, mine.pid, sleeper.pid)
    killed = agent(state, groups)
    assert killed.stdout is not None
    watcher = int(killed.stdout.readline())
    assert mine.poll() is None
    killed.kill()
    killed.wait()
    assert mine.wait(5) == -9
    assert gone(watcher), "it stays though its work is done"
    assert sleeper.poll() is None, "it ended a container of somebody else"


def test_without_cgroups_the_containers_first_process_is_ended(tmp_path: Path) -> None:
    mine = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (tmp_path / "crun/ta-a").mkdir(parents=True)
    (tmp_path / "crun/ta-a/pid").write_text(str(mine.pid))  # without a line's end, as runtimes write it
    killed = agent(tmp_path)
    assert killed.stdout is not None
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    assert mine.wait(5) == -9


def test_an_agent_that_ends_in_order_has_nothing_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    state, groups = layout(tmp_path, sleeper.pid, sleeper.pid)
    sentinel = Sentinel(str(state), "cadenza", [str(groups)])
    pid = sentinel.pid
    sentinel.close()
    sentinel.close()
    assert gone(pid) and sentinel.pid == 0
    assert sleeper.poll() is None
