"""The peer: Ray on this machine, measured from a driver process. Runs in an environment of its own that has ray.

Reads one JSON request a line from standard input and answers each with one line of JSON: so that a benchmark can take
turns with it. Requests: ``{"do": "calls", "count": n}``, ``{"do": "map", "count": n}``,
``{"do": "array", "mib": n, "count": n}``.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def main() -> None:
    """Start Ray with four CPUs' worth of workers and answer until the input ends."""
    import numpy
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)

    @ray.remote(num_cpus=1)
    def nothing(value: object) -> object:
        return value

    @ray.remote(num_cpus=1)
    def same(array: object) -> object:
        return array

    ray.get([nothing.remote(i) for i in range(200)])
    out = os.fdopen(os.dup(1), "w")
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        count = request["count"]
        seconds = []
        if request["do"] == "calls":
            for i in range(count):
                began = time.perf_counter()
                ray.get(nothing.remote(i))
                seconds.append(time.perf_counter() - began)
        elif request["do"] == "map":
            began = time.perf_counter()
            result = ray.get([nothing.remote(i) for i in range(count)])
            seconds.append(time.perf_counter() - began)
            assert result == list(range(count))
        elif request["do"] == "array":
            array = numpy.ones(request["mib"] * 131072)
            for _ in range(count):
                began = time.perf_counter()
                back = ray.get(same.remote(array))
                seconds.append(time.perf_counter() - began)
                assert back.shape == array.shape and back[-1] == 1.0
                del back
        print(json.dumps(seconds), file=out, flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
