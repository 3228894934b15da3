"""Journey: a server that does nothing, and one that holds 100,000 spawned inputs. Prints memory, not ratios.

python bench/idle.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cadenza

INPUTS = 100_000
LIMIT_MIB = 120
app = cadenza.App("bench-idle")


@app.function(max_containers=1)
def nothing(value: int) -> int:
    return value


def memory_mib() -> float:
    """Resident memory of the server's process that it shares with nobody else's files."""
    from cadenza.base.config import load
    from cadenza.cli.lock import ServerLock

    holder = ServerLock(load().lock_path).holder()
    assert holder is not None
    for line in Path(f"/proc/{holder.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def main() -> None:
    """Print the server's memory at rest, while inputs wait, and after."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import side

    side.own_home()
    with app.run():
        nothing.remote(0)
        time.sleep(1)
        idle = memory_mib()
        print(f"{'idle server':<44} {idle:8.1f} MiB (limit {LIMIT_MIB})")
        began = time.perf_counter()
        call = nothing.experimental_spawn_map(range(INPUTS))
        waiting = memory_mib()
        print(
            f"{'100,000 inputs spawned':<44} {waiting:8.1f} MiB, {INPUTS / (time.perf_counter() - began):,.0f} inputs/s"
        )
        call.get(index=INPUTS - 1)
        after = memory_mib()
        print(f"{'100,000 inputs done':<44} {after:8.1f} MiB, {INPUTS / (time.perf_counter() - began):,.0f} inputs/s")


if __name__ == "__main__":
    main()
