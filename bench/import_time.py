"""Journey: ``import cadenza``, against the interpreter alone.

python bench/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import side

ROUNDS = 15


def run(code: str) -> float:
    """Seconds for a fresh interpreter to run ``code``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=side.ROOT)
    return time.perf_counter() - began


def main() -> None:
    """Print ratios: the import, and a program that declares one function."""
    declare = "import cadenza; app = cadenza.App('x')\ndef f(): pass\napp.function(serialized=True)(f)"
    for title, code in (("import cadenza", "import cadenza"), ("declare an app and a function", declare)):
        run(code)
        ours, floor = [], []
        for _ in range(ROUNDS):
            ours.append(run(code))
            floor.append(run("pass"))
        side.report(title, ours, floor, "python -c pass")


if __name__ == "__main__":
    main()
