"""Journey: ``cadenza deploy`` as a whole process: an app that did not change, and one of 50 functions against one of 1.

    python bench/deploy.py

The floor of the first is ``python -c "import cadenza, click, rich"``: what the command loads anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
HEAD = "import cadenza\n\napp = cadenza.App({name!r})\n"
FUNCTION = "\n\n@app.function()\ndef work_{number}(value: int) -> int:\n    return value + {number} + {salt}\n"


def write(path: Path, name: str, functions: int, salt: int = 0) -> Path:
    """A program with so many functions; another ``salt`` makes each of them another one."""
    parts = [HEAD.format(name=name), *(FUNCTION.format(number=i, salt=salt) for i in range(functions))]
    path.write_text("".join(parts))
    return path


def timed(*command: str) -> float:
    """Seconds for a whole process. Its failure ends the benchmark."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return took


def deploy(path: Path) -> float:
    """Seconds for ``cadenza deploy``."""
    return timed(sys.executable, "-m", "cadenza", "deploy", str(path))


def main() -> None:
    """Print two ratios."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import side

    side.own_home()
    with tempfile.TemporaryDirectory(prefix="cadenza-bench-") as directory:
        folder = Path(directory)
        timed(sys.executable, "-m", "cadenza", "up")
        same = write(folder / "same.py", "bench-same", 1)
        deploy(same)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(deploy(same))
            theirs.append(timed(sys.executable, "-c", "import cadenza, click, rich"))
        side.report("deploy of an unchanged app, whole process", ours, theirs, "imports alone", "s")
        fifty, one = [], []
        for number in range(ROUNDS):
            one.append(deploy(write(folder / "one.py", "bench-one", 1, salt=number)))
            fifty.append(deploy(write(folder / "fifty.py", "bench-fifty", 50, salt=number)))
        side.report("deploy of 50 changed functions", fifty, one, "1 function", "s")


if __name__ == "__main__":
    os.environ.setdefault("CADENZA_LOGLEVEL", "ERROR")
    main()
