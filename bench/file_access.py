"""Journey: reading an image's files from our mount, ext4, an overlay of directories, and FUSE in Python.

python bench/file_access.py DIRECTORY [ROUNDS]

DIRECTORY has packages as ``pip install --target`` leaves them (numpy, pandas; torch if it is there). Needs root, a disk
with three times its size below /var/tmp, and libfuse 3 with mfusepy for the strawman, which is left out without them.
Each measure runs in a fresh process, the four side by side in each round; cold: after the page cache was dropped, with
the interpreter's own files read back.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import side

from cadenza.agent import mounts
from cadenza.fs import ingest, kernel
from cadenza.fs.abilities import detect
from cadenza.fs.mount import Lowers, Mounts
from cadenza.fs.store import Store
from cadenza.fs.trace import Recorder

BIG_BYTES = 256 << 20
CONTAINERS = 100
IMPORT = """
import sys, time
sys.path.insert(0, {root!r})
t, c = time.perf_counter(), time.process_time()
import {name}
print(time.perf_counter() - t, time.process_time() - c)
"""
READ = """
import os, random, time
fd = os.open({path!r}, os.O_RDONLY)
chance = random.Random(7)
places = [chance.randrange({size} - 4096) for _ in range({count})]
t, c = time.perf_counter(), time.process_time()
if places:
    for one in places:
        os.pread(fd, 4096, one)
else:
    while os.read(fd, 1 << 20):
        pass
print(time.perf_counter() - t, time.process_time() - c)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds: of the clock, and of a processor's time, which says more on a machine that others use too."""

    wall: float
    processor: float


def python(code: str) -> Cost:
    """What a fresh interpreter prints."""
    said = subprocess.run(
        ["/usr/bin/python3", "-S", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Cost(*map(float, said.stdout.split()))


def find(root: str) -> Cost:
    """To list all files with their sizes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(["find", root, "-type", "f", "-printf", "%s\\n"], stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(kind: str, root: str, cold: bool) -> Cost:
    """One measure of ``kind`` below ``root``."""
    if kind == "find with stat":
        return find(root)
    if kind.startswith("import "):
        return python(IMPORT.format(root=root, name=kind.removeprefix("import ")))
    count = 0 if kind == "sequential read" else 2000 if cold else 20000
    return python(READ.format(path=root + "/big.bin", size=BIG_BYTES, count=count))


def forget() -> None:
    """Empty the page cache, dentries and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Stage:
    """The same files in four ways, and a copy in memory by which the interpreter is warmed."""

    def __init__(self, source: str, home: Path) -> None:
        self.home = home
        self.plain = str(home / "plain")
        subprocess.run(["cp", "-a", source, self.plain], check=True)
        with open(self.plain + "/big.bin", "wb") as file:
            for _ in range(BIG_BYTES >> 20):
                file.write(os.urandom(1 << 20))
        copy = str(home / "copy")
        subprocess.run(["cp", "-a", self.plain, copy], check=True)
        self.store = Store(str(home / "store"))
        begun = time.perf_counter()
        root = ingest.ingest(copy, self.store, delta=False)
        print(f"ingest: {time.perf_counter() - begun:.1f} s")
        self.digest = self.store.put_tree(root)
        self.store.settle()
        self.mounts = Mounts(self.store, detect(str(home)))
        self.memory = tempfile.mkdtemp(dir="/dev/shm", prefix="file-access-")
        subprocess.run(["cp", "-a", source, self.memory + "/packages"], check=True)
        self.count = 0
        self.ours = self.overlay(self.mounts.lowers([self.digest]))[0]
        self.layers = self.overlay(Lowers((self.plain,)))[0]
        self.fuse = ""
        self.server = self.strawman()

    def overlay(self, lowers: Lowers) -> tuple[str, float]:
        """A container's root, and seconds that mounting took."""
        self.count += 1
        top = self.home / f"container{self.count}"
        for name in ("u", "w", "m"):
            (top / name).mkdir(parents=True)
        begun = time.perf_counter()
        mounts.overlay(lowers, str(top / "u"), str(top / "w"), str(top / "m"))
        return str(top / "m"), time.perf_counter() - begun

    def strawman(self) -> subprocess.Popen[bytes] | None:
        if importlib.util.find_spec("mfusepy") is None and not os.environ.get("MFUSEPY"):
            print("no strawman: mfusepy is not installed (pip install --target DIR mfusepy; MFUSEPY=DIR)")
            return None
        self.fuse = str(self.home / "fuse")
        os.mkdir(self.fuse)
        program = str(Path(__file__).with_name("fuse_python.py"))
        environ = {**os.environ, "PYTHONPATH": os.environ.get("MFUSEPY", "")}
        server = subprocess.Popen([sys.executable, program, self.plain, self.fuse], env=environ)
        deadline = time.monotonic() + 10
        while not os.path.ismount(self.fuse):
            if time.monotonic() > deadline or server.poll() is not None:
                raise SystemExit("the strawman does not start")
            time.sleep(0.05)
        return server

    def close(self) -> None:
        for point in kernel.below(str(self.home)):
            kernel.umount(point)
        if self.server is not None:
            self.server.wait(10)
        self.store.close()
        shutil.rmtree(self.home)
        shutil.rmtree(self.memory)


def compare(stage: Stage, kind: str, cold: bool, rounds: int) -> None:
    """Print our ratios against the three others."""
    ways = {"ext4": stage.plain, "ours": stage.ours, "overlay of directories": stage.layers}
    if stage.fuse:
        ways["FUSE in Python"] = stage.fuse
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    if not cold:
        for root in ways.values():
            measure(kind, root, cold)
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if cold:
                forget()
                if kind.startswith("import "):
                    measure(kind, stage.memory + "/packages", cold)
                else:
                    find(stage.memory)
                    python("print(0, 0)")
            found[name].append(measure(kind, ways[name], cold))
    title = f"{kind}, {'cold' if cold else 'warm'}"
    wall = {name: [one.wall for one in costs] for name, costs in found.items()}
    for name in ways:
        if name not in ("ours", "ext4"):
            side.report(f"{title}: {name}", wall[name], wall["ext4"], "ext4")
    side.report(title, wall["ours"], wall["ext4"], "ext4")
    # On a machine that does other things too, the best of each says most, and of what waits for no disk processor time.
    print(f"  best of each, relative to ext4: {_best(wall)}")
    if not cold:
        processor = {name: [one.processor for one in costs] for name, costs in found.items()}
        print(f"  processor time of the reader:   {_best(processor)}", flush=True)


def _best(found: dict[str, list[float]]) -> str:
    own = found["ext4"]
    return ", ".join(
        f"{name} {min(times) / min(own):.2f} (medians {statistics.median(times) / statistics.median(own):.2f})"
        for name, times in found.items()
        if name != "ext4"
    )


def cached_mib() -> float:
    """What the page cache holds, in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Cached")


def containers(stage: Stage) -> None:
    """Print what mounting costs, and that what one container read the next finds in memory."""
    lowers = stage.mounts.lowers([stage.digest])
    ours, plain = [], []
    begun = time.perf_counter()
    stage.mounts.show(stage.digest)
    again_s = time.perf_counter() - begun
    roots = []
    for _ in range(CONTAINERS):
        root, took = stage.overlay(lowers)
        roots.append(root)
        ours.append(took)
        plain.append(stage.overlay(Lowers((stage.plain,)))[1])
    side.report(f"mount, {CONTAINERS} containers of one image", ours, plain, "overlay of a directory")
    print(f"  at most {max(ours) * 1000:.2f} ms; asking for a tree that is shown {again_s * 1e6:.0f} us")
    forget()
    python("print(0, 0)")
    before = cached_mib()
    first = measure("sequential read", roots[0], False).wall
    once = cached_mib() - before
    others = [measure("sequential read", one, False).wall for one in roots[1:8]]
    side.report("a file that another container read", others, [first] * len(others), "the first to read it")
    print(f"  page cache: {once:.0f} MiB more after one read {BIG_BYTES >> 20} MiB, "
          f"{cached_mib() - before:.0f} MiB after eight did")  # fmt: skip


def recording(stage: Stage) -> None:
    """Print what recording a start costs."""
    name = "numpy"
    with_it, without, stops, counts = [], [], [], []
    for _ in range(15):
        without.append(measure(f"import {name}", stage.ours, False).wall)
        recorder = Recorder(stage.ours)
        recorder.start()
        with_it.append(measure(f"import {name}", stage.ours, False).wall)
        begun = time.perf_counter()
        counts.append(len(recorder.stop()))
        stops.append(time.perf_counter() - begun)
    side.report(f"import {name}, recorded", with_it, without, "not recorded")
    print(f"  {counts[0]} files; reading the record {statistics.median(stops) * 1000:.1f} ms, after the start")


def main() -> None:
    """Print ratios; below 1 ours is quicker."""
    source = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    home = Path(tempfile.mkdtemp(prefix="file-access-", dir="/var/tmp"))
    stage = None
    try:
        stage = Stage(source, home)
        kinds = [f"import {one}" for one in ("numpy", "pandas", "torch") if os.path.isdir(f"{source}/{one}")]
        for kind in [*kinds, "find with stat", "sequential read", "random reads"]:
            compare(stage, kind, False, rounds)
            compare(stage, kind, True, max(3, rounds // 2))
        containers(stage)
        recording(stage)
    finally:
        if stage is not None:
            stage.close()
        else:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
