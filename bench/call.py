"""Journey: a warm call, a map, a large array; against Ray on this machine, taking turns.

python bench/call.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import cadenza

ROUNDS = 5
CALLS = 200
MAP_INPUTS = 10_000
ARRAY_MIB = 100
ARRAYS = 4

image = cadenza.Image.debian_slim().pip_install("numpy")
app = cadenza.App("bench-call", image=image)


@app.function(max_containers=1)
def nothing(value: object) -> object:
    return value


@app.function(min_containers=4, max_containers=4)
def item(value: int) -> int:
    return value


@app.function(max_containers=1)
def same(array: object) -> object:
    return array


def calls(count: int) -> float:
    """The median of so many warm round trips, in seconds."""
    seconds = []
    for i in range(count):
        began = time.perf_counter()
        nothing.remote(i)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Print three ratios."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import side

    side.own_home()
    import numpy

    peer = side.Peer()
    with app.run():
        calls(50)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(calls(CALLS))
            theirs.append(statistics.median(peer.ask(do="calls", count=CALLS)))
        side.report("warm call, round trip", ours, theirs, "ray")

        list(item.map(range(1000)))
        ours, theirs = [], []
        for _ in range(3):
            began = time.perf_counter()
            assert list(item.map(range(MAP_INPUTS))) == list(range(MAP_INPUTS))
            ours.append((time.perf_counter() - began) / MAP_INPUTS)
            theirs.append(peer.ask(do="map", count=MAP_INPUTS)[0] / MAP_INPUTS)
        side.report("map of 10,000 over 4 containers, an input", ours, theirs, "ray")

        array = numpy.ones(ARRAY_MIB * 131072)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            round_s = []
            for _ in range(ARRAYS):
                began = time.perf_counter()
                back = same.remote(array)
                round_s.append(time.perf_counter() - began)
                assert back.shape == array.shape and back[-1] == 1.0
                del back
            ours.append(statistics.median(round_s))
            theirs.append(statistics.median(peer.ask(do="array", mib=ARRAY_MIB, count=ARRAYS)))
        side.report("array of 100 MiB there and back", ours, theirs, "ray")
    peer.close()


if __name__ == "__main__":
    main()
