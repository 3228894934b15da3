"""The autoscaler under traffic of several shapes, beside a scaler that knows the future. In virtual time.

    python bench/traffic.py [shape ...]

Each row is one trace. `wait` is from arrival to beginning; `ctr-s` are container-seconds, starts and idle time included
(the scaledown window is 60 s); the ratio is to the clairvoyant scaler of `tests/sim/traffic.py`, for whom nobody waits.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sim"))
from traffic import SHAPES, TIMES, clairvoyant, engine, trace

STARTS_S = (0.05, 1.0, 20.0)
RATE, FOR_S, MEAN_S = 10.0, 120.0, 0.5


def main() -> None:
    """Print the table."""
    began = time.perf_counter()
    columns = (
        "shape",
        "run",
        "start s",
        "inputs",
        "mean",
        "p50",
        "p99",
        "max",
        "containers",
        "ideal",
        "ctr-s",
        "ratio",
    )
    print(("{:>8} {:>6} {:>8} {:>7}" + " {:>8}" * 4 + " {:>11} {:>6} {:>9} {:>6}").format(*columns))
    for shape in sys.argv[1:] or SHAPES:
        for times in TIMES:
            what = trace(shape, times, RATE, FOR_S, MEAN_S)
            for start_s in STARTS_S:
                ours, ideal = engine(what, start_s), clairvoyant(what, start_s)
                print(
                    f"{shape:>8} {times:>6} {start_s:8.2f} {len(what.arrivals):7d} {ours.mean:8.3f} "
                    f"{ours.quantile(0.5):8.3f} {ours.quantile(0.99):8.3f} {max(ours.waits):8.3f} "
                    f"{ours.containers:11d} {ideal.containers:6d} {ours.container_s:9.0f} "
                    f"{ours.container_s / ideal.container_s:6.2f}"
                )
    print(f"{time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
