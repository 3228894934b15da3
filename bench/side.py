"""What benchmarks share: a server of their own in a temporary home, the peer's process, and how ratios are printed."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER_PYTHON = ROOT / ".cache/bench/bin/python"


def own_home() -> None:
    """A server of this run alone. The image cache is kept between runs, below .cache."""
    home = os.environ.get("CADENZA_HOME") or tempfile.mkdtemp(prefix="cadenza-bench-")
    if "CADENZA_HOME" not in os.environ:
        os.environ["CADENZA_HOME"] = home
        atexit.register(shutil.rmtree, home, True)
    os.environ["CADENZA_IDLE_STOP_S"] = "60"
    atexit.register(_down)


def _down() -> None:
    subprocess.run(
        [sys.executable, "-m", "cadenza", "down", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


class Peer:
    """Ray in its own environment, one request a line."""

    def __init__(self) -> None:
        if not PEER_PYTHON.exists():
            raise SystemExit("the peer is not installed: run `make bench`")
        self._process = subprocess.Popen(
            [str(PEER_PYTHON), str(ROOT / "bench/ray_peer.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, **request: Any) -> list[float]:
        """Seconds, one for each repetition."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: list[float] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue
        raise SystemExit("the peer ended")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def report(title: str, ours: list[float], theirs: list[float], against: str, unit: str = "ms") -> None:
    """Medians and the ratio pair by pair: below 1 means ours is quicker."""
    scale = 1000 if unit == "ms" else 1
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    print(
        f"{title:<44} ours {statistics.median(ours) * scale:9.3f} {unit}   {against} "
        f"{statistics.median(theirs) * scale:9.3f} {unit}   ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )
