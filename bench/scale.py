"""Journey: a burst of 500 inputs of 100 ms meets no container and may have fifty.

    python bench/scale.py [crun|runc|runsc]

The floor: fifty bare containers of the same runtime on the same root, started at once, and then the ideal schedule of
500 inputs on fifty containers, one second. Needs root (so does the floor).
"""

from __future__ import annotations

import os
import sys
import time

import cadenza

RUNTIME = sys.argv[1] if len(sys.argv) > 1 else "crun"
MANY = 50
INPUTS = 500
INPUT_S = 0.1
ROUNDS = 3
app = cadenza.App("bench-scale")


@app.function()
def warm_up() -> None:
    pass


@app.function(max_containers=MANY, scaledown_window=2)
def work(index: int) -> str:
    time.sleep(INPUT_S)
    return os.environ["CADENZA_TASK_ID"]


def burst() -> tuple[float, int]:
    """Seconds from the first input to the last result, and in how many containers they ran."""
    began = time.perf_counter()
    found = set(work.map(range(INPUTS)))
    return time.perf_counter() - began, len(found)


def main() -> None:
    """Print one ratio."""
    import shutil

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import side
    from floor import Bare

    os.environ["CADENZA_RUNTIME"] = RUNTIME
    side.own_home()
    if not shutil.which(RUNTIME):
        raise SystemExit(f"{RUNTIME} is not installed")
    with app.run():
        warm_up.remote()
        bare = Bare(RUNTIME)
        try:
            bare.run(1, False)
            ours, theirs, counts = [], [], []
            for _ in range(ROUNDS):
                theirs.append(bare.run(MANY, True) + INPUTS / MANY * INPUT_S)
                took, count = burst()
                ours.append(took)
                counts.append(count)
                while work.get_current_stats().num_total_runners:  # the next burst meets none again
                    time.sleep(0.2)
                time.sleep(1.0)
            title = f"{RUNTIME}: {INPUTS} inputs of {INPUT_S * 1000:g} ms from 0 to {MANY}"
            side.report(title, ours, theirs, "bare start + ideal", "s")
            print(f"containers that took part: {counts}")
        finally:
            bare.close()


if __name__ == "__main__":
    main()
