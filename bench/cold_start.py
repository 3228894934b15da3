"""Journey: a cold start, from ``.remote()`` to the first line of user code, against the bare runtime on the same root.

    python bench/cold_start.py [crun|runc|runsc]

Needs root (so does the floor). The image is there before the clock starts.
"""

from __future__ import annotations

import os
import sys
import time

import cadenza

# What only the measurement needs is imported by it: this file is the user's code, imported at each start.

RUNTIME = sys.argv[1] if len(sys.argv) > 1 else "crun"
ROUNDS = 5
MANY = 50
app = cadenza.App("bench-cold")


@app.function(single_use_containers=True)
def first_line() -> float:
    return time.time()


@app.function(max_containers=MANY, single_use_containers=True)
def wait_for_all(index: int) -> float:
    return time.time()


def cold() -> float:
    """Seconds from the call to the first line of user code, in a container made for it."""
    began = time.time()
    return first_line.remote() - began


def main() -> None:
    """Print ratios: one cold start with and without the pool, and fifty at once."""
    import shutil
    import statistics

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import side
    from floor import Bare

    os.environ["CADENZA_RUNTIME"] = RUNTIME
    side.own_home()
    if not shutil.which(RUNTIME):
        raise SystemExit(f"{RUNTIME} is not installed")
    with app.run():
        cold()
        bare = Bare(RUNTIME)
        try:
            bare.run(1, False)
            ours, theirs, warm = [], [], []
            for _ in range(ROUNDS):
                theirs.append(bare.run(3, False) / 3)
                time.sleep(1.0)
                warm.append(cold())  # the pool has had a second to get ready
                ours.append(statistics.median([cold() for _ in range(3)]))  # it has not
            side.report(f"{RUNTIME}: start out of the pool", warm, theirs, f"bare {RUNTIME}")
            side.report(f"{RUNTIME}: start right after another", ours, theirs, f"bare {RUNTIME}")
            many, bare_many = [], []
            for _ in range(3):
                bare_many.append(bare.run(MANY, True))
                began = time.time()
                many.append(max(wait_for_all.map(range(MANY))) - began)
            side.report(f"{RUNTIME}: {MANY} at once", many, bare_many, f"bare {RUNTIME}")
        finally:
            bare.close()


if __name__ == "__main__":
    main()
