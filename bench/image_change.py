"""Journey: one file of a large image changes: the whole build of the new image, and a start of it, by the real road.

    python bench/image_change.py [FILES]

FILES (100,000) are made by a step of the image below, which is not measured. Needs root.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import cadenza

FILES = 100_000
ROUNDS = 5
LIMIT_S = 2.0
FILL = """
import os
for number in range({files}):
    if number % 100 == 0:
        folder = f"/data/part{{number // 100}}"
        os.makedirs(folder)
    with open(f"{{folder}}/{{number}}.txt", "w") as file:
        file.write(f"content of {{number}}\\\\n")
"""


def first_line() -> float:
    return time.time()


def start(image: cadenza.Image, name: str) -> float:
    """Seconds from the call to the first line of user code, in the first container of an image that is built."""
    app = cadenza.App(name)
    function = app.function(image=image, serialized=True, single_use_containers=True)(first_line)
    took = 0.0
    with app.run():
        began = time.time()
        took = function.remote() - began
    return took


def main() -> None:
    """Print seconds of builds, and of starts beside starts of the small image below."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import side

    side.own_home()
    files = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    small = cadenza.Image.debian_slim()
    base = small.run_commands(f"python3 -c '{FILL.format(files=files)}'")
    base.build()
    builds, starts, others = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, "changed.txt")
        for number in range(ROUNDS):
            changed.write_text(f"round {number} of {time.time()}")
            image = base.add_local_file(changed, "/data/part0/0.txt", copy=True)
            began = time.perf_counter()
            image.build()
            builds.append(time.perf_counter() - began)
            starts.append(start(image, f"bench-change-{number}"))
            other = small.add_local_file(changed, "/data/part0/0.txt", copy=True)
            other.build()
            others.append(start(other, f"bench-small-{number}"))
    print(
        f"one file of {files:,} changed: build {statistics.median(builds):.2f} s "
        f"({min(builds):.2f} to {max(builds):.2f}; limit {LIMIT_S:g})"
    )
    side.report("the first start of the new image", starts, others, "of one without these files")


if __name__ == "__main__":
    main()
