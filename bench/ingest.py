"""Ingest of a build's files against ``cp -a`` of the same files on the same disk, and the price of a one-file change.

    python bench/ingest.py [directory]

``directory`` is on the disk to measure; without it a temporary one below .cache. Needs about 3 GiB there for a while.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = 50_000
ENTRIES = 100_000
ROUNDS = 3


def size_of(chance: random.Random) -> int:
    """Like a file of site-packages: half below 4 KiB, some empty, few large."""
    if chance.random() < 0.05:
        return 0
    return min(int(chance.lognormvariate(8.3, 1.5)), 20 << 20)


def fill(top: Path, files: int) -> None:
    """A synthetic tree of packages, 20 files a directory, no two files alike."""
    chance = random.Random(1)
    noise = chance.randbytes(32 << 20)
    for number in range(files):
        folder = top / f"package{number // 400:03}" / f"part{number // 20 % 20:02}"
        if number % 20 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        size = size_of(chance)
        at = chance.randrange(len(noise) - size)
        with open(folder / f"module_{number % 20}.py", "wb") as file:
            file.write(noise[at : at + size])


def timed(*command: str) -> float:
    """Seconds that a command took."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def many_files(directory: Path) -> None:
    """Pairs of ``cp -a`` and ingest of what it copied."""
    from side import report

    from cadenza.fs.ingest import ingest
    from cadenza.fs.store import Store

    source = directory / "source"
    fill(source, FILES)
    ours, theirs = [], []
    for number in range(ROUNDS + 1):
        copy = directory / "copy"
        os.sync()
        copied = timed("cp", "-a", str(source), str(copy))
        store = Store(str(directory / "store"))
        os.sync()
        began = time.perf_counter()
        root = ingest(str(copy), store)
        store.put_tree(root)
        took = time.perf_counter() - began
        if number:  # the first round warms the cache
            theirs.append(copied)
            ours.append(took)
        store.close()
        shutil.rmtree(copy)
        shutil.rmtree(directory / "store")
    report(f"{FILES:,} files become a tree", ours, theirs, "cp -a", unit="s")
    shutil.rmtree(source)


def one_change(directory: Path) -> None:
    """A step that changes one file of a large image: from its upper to the EROFS image of the new whole."""
    from cadenza.fs import erofs, tree
    from cadenza.fs.ingest import ingest
    from cadenza.fs.store import Store

    image = tree.directory()
    assert image.children is not None
    left = ENTRIES
    while left > 0:
        package = tree.directory()
        assert package.children is not None
        for number in range(min(left, 100)):
            data = tree.digest(b"%d" % left)
            package.children[b"module_%d.py" % number] = tree.Node(0o100644, mtime=left, size=4000 + number, data=data)
            left -= 1
        image.children[b"package%d" % left] = package
    took = []
    with closing(Store(str(directory / "store"))) as store:
        for number in range(ROUNDS):
            upper = directory / f"upper{number}"
            (upper / "package0").mkdir(parents=True)
            (upper / "package0" / "module_1.py").write_text(f"changed = {number}\n")
            began = time.perf_counter()
            whole = tree.merge(image, ingest(str(upper), store, below=image))
            store.put_tree(whole)
            erofs.write(whole, str(directory / "image.erofs"))
            took.append(time.perf_counter() - began)
    print(f"one file of {ENTRIES:,} changed: {statistics.median(took):.3f} s ({min(took):.3f} to {max(took):.3f})")


def main() -> None:
    """Print the ratio and the time."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, str(ROOT))
    parent = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".cache"
    parent.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=parent))
    try:
        many_files(directory)
        one_change(directory)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
