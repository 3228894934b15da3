"""Journey: the first start of a 10 GB image beside one of 100 MB, on a machine that has nothing of either.

python bench/large_image.py

Both have numpy, and beside it files of 500 kB that nothing opens: 200 and 20,000. Timed is all that depends on the
image: its tree comes from a store 2 ms away, is shown and mounted, and a process imports numpy through it. Needs root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lazy_read
import side

from cadenza.fs import tree as trees
from cadenza.fs.ingest import ingest
from cadenza.fs.store import Store
from cadenza.storage.bucket import open_bucket

FILE_BYTES = 500_000
COUNTS = (200, 20_000)
ROUNDS = 7


def filled(root: trees.Node, count: int) -> trees.Node:
    """The tree with so many files that are in no store: whoever opened one would get an error."""
    made = trees.copy(root)
    assert made.children is not None
    for number in range(count):
        if number % 100 == 0:
            folder = trees.directory()
            made.children[b"data%d" % number] = folder
        assert folder.children is not None
        content = trees.digest(b"%d" % number)
        folder.children[b"%d.bin" % number] = trees.Node(0o100644, size=FILE_BYTES, data=content)
    return made


def main() -> None:
    """Print seconds and their ratio."""
    import numpy

    root = Path(tempfile.mkdtemp(prefix="cadenza-large-", dir="/var/tmp"))
    server = None
    try:
        package = Path(numpy.__file__).parent
        for one in (package, package.parent / "numpy.libs"):
            shutil.copytree(one, root / "source" / one.name, symlinks=True)
        builder = Store(str(root / "builder"), open_bucket(f"file://{root}/remote"))
        numpy_tree = ingest(str(root / "source"), builder, delta=False)
        builder.push(builder.put_tree(numpy_tree))
        digests = [builder.put_tree(filled(numpy_tree, count)) for count in COUNTS]
        for digest in digests:
            (root / "remote" / "trees" / digest.hex()[:2]).mkdir(parents=True, exist_ok=True)
            name = f"{digest.hex()[:2]}/{digest.hex()[2:]}"
            shutil.copy(root / "builder" / "trees" / digest.hex(), root / "remote" / "trees" / name)
        builder.close()
        command = [sys.executable, lazy_read.__file__, "--serve", str(root / "remote")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/"
        loop = lazy_read.Loop()
        took: dict[bytes, list[float]] = {one: [] for one in digests}
        for number in range(ROUNDS + 1):
            for digest in digests if number % 2 else reversed(digests):
                began = time.perf_counter()
                node = lazy_read.Node(root / "node", url, digest, loop)
                node.use("numpy")
                if number:
                    took[digest].append(time.perf_counter() - began)
                node.close()
        small, large = (took[one] for one in digests)
        side.report("first start of 10 GB", large, small, "of 100 MB")
    finally:
        if server is not None:
            server.kill()
            server.wait()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
