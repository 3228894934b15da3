"""Journey: the first import on a machine that has none of an image's content, from a store 2 ms away.

    python bench/lazy_read.py [--package numpy] [--directory SITE] [--rounds 3] [--delay-ms 2]

Four ways in turn, each on a fresh disk store, through a real overlay: all content here and not in memory; all of it
fetched first; fetched when it is opened; the same with the list of what an earlier start opened, fetched ahead.
The store is another process on loopback that waits for the delay before each answer. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import os
import py_compile
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cadenza.fs import kernel
from cadenza.fs.abilities import detect
from cadenza.fs.ingest import ingest
from cadenza.fs.mount import Mounts
from cadenza.fs.store import Store
from cadenza.fs.supervisor import Lazy
from cadenza.fs.tree import files
from cadenza.storage.bucket import open_bucket

T = TypeVar("T")
LOCAL, EAGER, LAZY, LISTED = "all here", "all fetched first", "fetched when opened", "with a list"


def serve(root: str, delay_s: float) -> None:
    """A store to read from, on loopback; prints its port."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        try:
            content = Path(root, request.match_info["key"]).read_bytes()
        except OSError:
            return web.Response(status=404)
        said = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        wanted = request.http_range
        if wanted.start is not None:
            return web.Response(status=206, body=content[wanted], headers=said)
        return web.Response(body=content, headers=said)

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{key:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.sleep(86400)

    asyncio.run(run())


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, made: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(made, self.loop).result()


class Node:
    """A machine's store that has an image's metadata and nothing else, and an overlay of it."""

    def __init__(self, root: Path, url: str, tree: bytes, loop: Loop) -> None:
        self.root = root
        self.loop = loop
        self.store = Store(str(root / "store"), open_bucket(url))
        self.tree = self.store.tree(tree)
        self.lazy = Lazy(str(root / "store"), {"store": url})
        loop.run(self.lazy.open())
        self.mounts = Mounts(self.store, detect(str(root)), self.lazy.mountpoint)
        lowers = self.mounts.lowers([tree])
        self.lazy.show(tree)
        self.merged = root / "merged"
        self.merged.mkdir()
        lower = "::".join([":".join(lowers.layers), *lowers.data])
        options = f"lowerdir={lower},redirect_dir=on,metacopy=on,index=off,xino=auto"
        kernel.mount("overlay", str(self.merged), "overlay", kernel.MS_RDONLY, options)

    def use(self, package: str) -> float:
        """Seconds of a fresh process that imports the package."""
        env = {"PYTHONPATH": str(self.merged), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-S", "-c", f"import {package}"], env=env, check=True)
        return time.perf_counter() - began

    def cool(self) -> None:
        """Take the content out of memory."""
        os.sync()
        for name in self.objects():
            fd = os.open(f"{self.store.objects}/{name}", os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def objects(self) -> set[str]:
        return {f"{folder}/{name}" for folder in os.listdir(self.store.objects)
                for name in os.listdir(f"{self.store.objects}/{folder}")}  # fmt: skip

    def disk_bytes(self) -> int:
        """What came: objects, and parts of large ones."""
        places = [Path(self.store.objects), Path(self.store.home, "big")]
        return sum(one.stat().st_blocks * 512 for place in places for one in place.rglob("*") if one.is_file())

    def close(self) -> None:
        kernel.umount(str(self.merged))
        self.mounts.close()
        self.loop.run(self.lazy.close())
        self.store.close()
        shutil.rmtree(self.root, ignore_errors=True)


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("--package", default="numpy")
    parse.add_argument("--directory", default="")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--delay-ms", type=float, default=2.0)
    parse.add_argument("--serve", default="")
    given = parse.parse_args()
    if given.serve:
        serve(given.serve, given.delay_ms / 1000)
        return
    root = Path(tempfile.mkdtemp(prefix="cadenza-lazy-", dir="/var/tmp"))
    server = None
    try:
        source = root / "source"
        source.mkdir()
        if given.directory:  # with its byte code, as pip leaves it
            shutil.copytree(given.directory, source, symlinks=True, dirs_exist_ok=True)
        else:
            import numpy

            package = Path(numpy.__file__).parent
            for one in (package, package.parent / "numpy.libs"):
                shutil.copytree(one, source / one.name, symlinks=True)
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            compileall.compile_dir(str(source), quiet=2, workers=2, invalidation_mode=mode)
        builder = Store(str(root / "builder"), open_bucket(f"file://{root}/remote"))
        tree = builder.put_tree(ingest(str(source), builder, delta=False))
        builder.push(tree)
        builder.close()
        shutil.rmtree(root / "builder")
        command = [sys.executable, __file__, "--serve", str(root / "remote"), "--delay-ms", str(given.delay_ms)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        measure(root, f"http://127.0.0.1:{server.stdout.readline().strip()}/", tree, given.package, given.rounds)
    finally:
        if server is not None:
            server.kill()
            server.wait()
        shutil.rmtree(root, ignore_errors=True)


def measure(root: Path, url: str, tree: bytes, package: str, rounds: int) -> None:
    """Print seconds and ratios."""
    loop = Loop()
    took: dict[str, list[float]] = {one: [] for one in (LOCAL, EAGER, LAZY, LISTED)}
    share: dict[str, float] = {}
    opened: set[bytes] = set()
    for _ in range(rounds):
        for way in (LAZY, LISTED, EAGER, LOCAL):
            node = Node(root / "node", url, tree, loop)
            everything = {one.data: one.size for one in files(node.tree)}
            total = sum(everything.values())
            if way == LOCAL:
                node.store.fetch_all(files(node.tree))
                node.cool()
            began = time.perf_counter()
            if way == EAGER:
                node.store.fetch_all(files(node.tree))
            elif way == LISTED:
                wanted = [(data, size) for data, size in everything.items() if data[:32] in opened]
                loop.run(node.lazy.prefetch(wanted))
            node.use(package)
            took[way].append(time.perf_counter() - began)
            share[way] = node.disk_bytes() / total
            if way == LAZY:
                opened = {bytes.fromhex(one.replace("/", "")) for one in node.objects()}
                count = len(opened)
            node.close()
    local = statistics.median(took[LOCAL])
    print(f"import {package}: {len(everything)} objects, {total / 1e6:.0f} MB, {count} opened")
    for way, seconds in took.items():
        middle = statistics.median(seconds)
        print(f"{way:22} {middle:7.2f} s  {middle / local:6.2f} x all here  {100 * share[way]:5.1f} % of the bytes")


if __name__ == "__main__":
    main()
