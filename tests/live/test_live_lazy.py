"""The lazy mount through real overlays, from a store served over loopback that can be slow, dead, wrong or hanging."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cadenza.fs import kernel, supervisor
from cadenza.fs.abilities import Abilities, detect
from cadenza.fs.ingest import ingest
from cadenza.fs.mount import Mounts
from cadenza.fs.store import Store
from cadenza.fs.supervisor import Lazy
from cadenza.fs.tree import Node, files
from cadenza.storage.bucket import open_bucket

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root"),
]

T = TypeVar("T")
MIB = 1 << 20
RANDOM = random.Random(7)


class Shop:
    """Serves a directory over HTTP as a store that is read from: each request takes ``delay_s``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.delay_s = 0.0
        self.asked: Counter[str] = Counter()
        self.sent_bytes = 0
        self.hold = threading.Event()
        """While it is not set no answer is given."""
        self.hold.set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def open(self) -> None:
        shop = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                shop.serve(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler, bind_and_activate=False)
        self._server.allow_reuse_address = True
        self._server.daemon_threads = True
        self._server.server_bind()
        self._server.server_activate()
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, one: BaseHTTPRequestHandler) -> None:
        key = one.path.lstrip("/")
        self.asked[key] += 1
        if self._server is None:
            one.close_connection = True
            return
        self.hold.wait(60)
        time.sleep(self.delay_s)
        try:
            content = (self.root / key).read_bytes()
        except OSError:
            one.send_error(404)
            return
        status, said = 200, one.headers.get("Range", "")
        if said.startswith("bytes="):
            start, _, end = said[6:].partition("-")
            status, content = 206, content[int(start) : int(end) + 1 if end else None]
        self.sent_bytes += len(content)
        one.send_response(status)
        one.send_header("Content-Length", str(len(content)))
        one.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        one.end_headers()
        one.wfile.write(content)

    def close(self) -> None:
        """Nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class Turning:
    """An event loop in a thread of its own, so that tests can block in files."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, made: Coroutine[Any, Any, T], limit_s: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(made, self.loop).result(limit_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


class Stage:
    """A remote store with one tree, and a node that has its metadata alone."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.remote = root / "remote"
        self.remote.mkdir()
        self.source = root / "source"
        self.home = root / "node/store"
        self.turning = Turning()
        self._settings = settings
        self._closing: list[Callable[[], None]] = [self.turning.close]

    def fill(self, make: Callable[[Path], None]) -> None:
        """Make an image of what ``make`` puts into a directory; the store gets its content, the node its metadata."""
        self.source.mkdir()
        make(self.source)
        builder = Store(str(self.root / "builder"), open_bucket(f"file://{self.remote}"))
        self.digest = builder.put_tree(ingest(str(self.source), builder, delta=False, take=False))
        builder.push(self.digest)
        builder.close()
        self.shop = Shop(self.remote)
        self._closing.append(self.shop.close)

    def start(self, modes: tuple[str, ...] = ("retry",)) -> None:
        node = Store(str(self.home), open_bucket(self.shop.url))
        self.tree: Node = node.tree(self.digest)
        self._closing.append(node.close)
        self.lazy = Lazy(str(self.home), {"store": self.shop.url}, modes=modes, **self._settings)
        self.turning.run(self.lazy.open())
        self._closing.append(lambda: self.turning.run(self.lazy.close()))
        self.node = node
        self.mounts = Mounts(node, able(str(self.root)), self.lazy.mountpoint)
        self._closing.append(self.mounts.close)
        self.shop.asked.clear()
        self.shop.sent_bytes = 0

    def show(self, name: str = "merged") -> Path:
        """One more overlay of the tree, read-only."""
        target = self.root / name
        target.mkdir()
        lowers = self.mounts.lowers([self.digest])
        lower = "::".join([":".join(lowers.layers), *lowers.data])
        options = f"lowerdir={lower},redirect_dir=on,metacopy=on,index=off,xino=auto"
        kernel.mount("overlay", str(target), "overlay", kernel.MS_RDONLY, options)
        self._closing.append(lambda: kernel.umount(str(target)))
        return target

    def object(self, content: bytes) -> Path:
        """Where the store has the object with this content."""
        from blake3 import blake3

        name = blake3(content).hexdigest()
        return self.remote / "objects" / name[:2] / name[2:]

    def served(self, key: str) -> int:
        """A counter, when it has stood still."""
        before = -1
        while before != (now := self.lazy.served[key]):
            before = now
            time.sleep(0.6)
        return now

    def close(self) -> None:
        if hasattr(self, "shop"):
            self.shop.hold.set()
        for one in reversed(self._closing):
            one()


_able: list[Abilities] = []


def able(directory: str) -> Abilities:
    if not _able:
        _able.append(detect(directory))
    return _able[0]


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(content: dict[str, bytes] | Callable[[Path], None], start: bool = True, **settings: Any) -> Stage:
        stage = Stage(tmp_path, **settings)
        made.append(stage)

        def write(root: Path) -> None:
            assert isinstance(content, dict)
            for name, value in content.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(value)

        stage.fill(content if callable(content) else write)
        if start:
            stage.start()
        return stage

    yield make
    for one in made:
        one.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


def small(count: int = 20) -> dict[str, bytes]:
    return {f"d/file{number}": f"content {number}\n".encode() * (number + 1) for number in range(count)}


@pytest.mark.parametrize("mode", ["retry", "passthrough", "cached"])
def test_what_is_missing_comes_when_it_is_opened(make_stage: Callable[..., Stage], mode: str) -> None:
    content = small()
    stage = make_stage(content, start=False)
    stage.start((mode,))
    assert stage.lazy.mode == mode
    merged = stage.show()
    assert {str(one.relative_to(merged)) for one in merged.rglob("file*")} == set(content)
    assert (merged / "d/file3").stat().st_size == len(content["d/file3"])
    assert not stage.shop.asked, "names and sizes need no content"
    assert (merged / "d/file3").read_bytes() == content["d/file3"]
    assert sum(stage.shop.asked.values()) == 1
    for name, value in content.items():
        assert (merged / name).read_bytes() == value
    assert max(stage.shop.asked.values()) == 1
    assert stage.served("fetched") == len(content)
    # Another container finds all of it on the disk.
    again = stage.show("again")
    before = stage.lazy.served
    for name, value in content.items():
        assert (again / name).read_bytes() == value
    time.sleep(0.6)
    assert stage.lazy.served == before
    assert stage.lazy.served["errors"] == 0


def test_every_way_to_a_file_finds_what_is_missing(make_stage: Callable[..., Stage]) -> None:
    true = Path("/bin/true").read_bytes()
    names = ("read", "append", "cut", "cut by name", "copied up by mode", "mapped", "linked", "moved", "by descriptor")
    content = {name: f"{name} {{}}\n".encode() * 9 for name in names}
    stage = make_stage({**content, "script": b"#!/bin/sh\necho $((6*7))\n", "program": true})
    lower = stage.show()
    upper, work, merged = (stage.root / name for name in ("upper", "work", "writable"))
    for one in (upper, work, merged):
        one.mkdir()
    lowers = stage.mounts.lowers([stage.digest])
    layers = "::".join([":".join(lowers.layers), *lowers.data])
    options = f"lowerdir={layers},upperdir={upper},workdir={work},redirect_dir=on,metacopy=on,index=off,xino=auto"
    kernel.mount("overlay", str(merged), "overlay", 0, options)
    stage._closing.append(lambda: kernel.umount(str(merged)))
    for name in ("script", "program"):
        (merged / name).chmod(0o755)
    assert subprocess.run([merged / "script"], capture_output=True, check=True).stdout == b"42\n"
    subprocess.run([merged / "program"], check=True)
    with open(merged / "append", "ab") as file:
        file.write(b"more")
    assert (merged / "append").read_bytes() == content["append"] + b"more"
    with open(merged / "cut", "wb") as file:
        file.write(b"new")
    assert (merged / "cut").read_bytes() == b"new"
    os.truncate(merged / "cut by name", 5)
    assert (merged / "cut by name").read_bytes() == content["cut by name"][:5]
    (merged / "copied up by mode").chmod(0o600)
    assert (merged / "copied up by mode").read_bytes() == content["copied up by mode"]
    with open(merged / "mapped", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content["mapped"]
    os.link(merged / "linked", merged / "link")
    assert (merged / "link").read_bytes() == content["linked"]
    (merged / "moved").rename(merged / "elsewhere")
    assert (merged / "elsewhere").read_bytes() == content["moved"]
    fd = os.open(merged / "by descriptor", os.O_PATH)
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == content["by descriptor"]
    os.close(fd)
    for name, value in content.items():
        assert (lower / name).read_bytes() == value
    assert stage.served("errors") == 0


def test_a_package_is_imported(make_stage: Callable[..., Stage]) -> None:
    import email as package

    def copy(root: Path) -> None:
        heavy = shutil.ignore_patterns("__pycache__")
        shutil.copytree(os.path.dirname(package.__file__), root / "lib/email", ignore=heavy)

    stage = make_stage(copy)
    merged = stage.show()
    script = "import email.message as m; e = m.EmailMessage(); e['a'] = 'b'; print(m.__file__, str(e).strip())"
    env = {"PYTHONPATH": str(merged / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run([sys.executable, "-S", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(merged / "lib/email/message.py"), "a:", "b"]
    total = len(list(files(stage.tree)))
    assert 5 <= sum(stage.shop.asked.values()) < total, "only what was opened came"


def test_many_readers_of_one_object_fetch_it_once(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"one" * 1000, "copy/of/a": b"one" * 1000})
    stage.shop.delay_s = 0.3
    roots = [stage.show(f"m{number}") for number in range(8)]
    with ThreadPoolExecutor(32) as pool:
        paths = [root / name for root in roots for name in ("a", "copy/of/a")] * 2
        began = time.monotonic()
        assert set(pool.map(Path.read_bytes, paths)) == {b"one" * 1000}
        took = time.monotonic() - began
    assert sum(stage.shop.asked.values()) == 1
    assert took < 1.5
    assert stage.served("fetched") == 1


def test_readers_do_not_wait_for_each_other(make_stage: Callable[..., Stage]) -> None:
    content = small(32)
    stage = make_stage(content)
    stage.shop.delay_s = 0.25
    merged = stage.show()
    with ThreadPoolExecutor(32) as pool:
        began = time.monotonic()
        list(pool.map(lambda name: (merged / name).read_bytes(), content))
        took = time.monotonic() - began
    assert took < 32 * 0.25 / 4, "one after the other it would be 8 s"


def test_wrong_bytes_are_an_error_and_never_content(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"right content", "b": b"also"})
    where = stage.object(b"right content")
    where.chmod(0o644)
    where.write_bytes(b"wrong content")
    merged = stage.show()
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            (merged / "a").read_bytes()
        assert caught.value.errno == errno.EIO
    assert (merged / "b").read_bytes() == b"also"
    where.write_bytes(b"right content")  # repaired: nothing has to be restarted
    assert (merged / "a").read_bytes() == b"right content"


def test_what_the_store_lost_is_an_error_that_passes(
    make_stage: Callable[..., Stage], caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage({"a": b"lost", "b": b"there"})
    where = stage.object(b"lost")
    away = where.rename(stage.root / "away")
    merged = stage.show()
    with pytest.raises(OSError) as caught:
        (merged / "a").read_bytes()
    assert caught.value.errno == errno.EIO, "a file that exists is never said not to"
    time.sleep(0.3)
    assert "is not in " in caplog.text
    assert (merged / "b").read_bytes() == b"there"
    away.rename(where)
    assert (merged / "a").read_bytes() == b"lost"


def test_a_dead_store_is_an_error_in_time_and_comes_back(
    make_stage: Callable[..., Stage], caplog: pytest.LogCaptureFixture
) -> None:
    content = small(3)
    stage = make_stage(content)
    merged = stage.show()
    assert (merged / "d/file0").read_bytes() == content["d/file0"]
    stage.shop.close()
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        (merged / "d/file1").read_bytes()
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - began < 30
    began = time.monotonic()
    with pytest.raises(OSError):
        (merged / "d/file1").read_bytes()
    assert time.monotonic() - began < 5, "an outage that is known is told sooner"
    assert (merged / "d/file0").read_bytes() == content["d/file0"], "what is here stays"
    time.sleep(0.3)
    assert "cannot be had now" in caplog.text
    stage.shop.open()
    until = time.monotonic() + 15
    while True:
        try:
            assert (merged / "d/file1").read_bytes() == content["d/file1"]
            break
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)
    assert (merged / "d/file2").read_bytes() == content["d/file2"]


def test_a_short_outage_is_a_delay(make_stage: Callable[..., Stage]) -> None:
    content = small(3)
    stage = make_stage(content)
    merged = stage.show()
    stage.shop.close()
    threading.Timer(1.0, stage.shop.open).start()
    assert (merged / "d/file1").read_bytes() == content["d/file1"]
    assert stage.served("errors") == 0


def test_a_store_that_hangs_is_an_error_in_time(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"slow", "b": b"quick"}, wait_s=1.0)
    merged = stage.show()
    assert (merged / "b").read_bytes() == b"quick"
    stage.shop.hold.clear()
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        (merged / "a").read_bytes()
    assert caught.value.errno == errno.EIO
    assert 0.9 < time.monotonic() - began < 3
    stage.shop.hold.set()
    time.sleep(0.3)
    assert (merged / "a").read_bytes() == b"slow"


def test_a_killed_reader_goes_at_once(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"slow"})
    merged = stage.show()
    stage.shop.hold.clear()
    with subprocess.Popen(["cat", str(merged / "a")], stdout=subprocess.PIPE) as reader:
        wait_for(lambda: sum(stage.shop.asked.values()) > 0)
        time.sleep(0.1)
        assert reader.poll() is None
        began = time.monotonic()
        reader.kill()
        reader.wait(5)
        took = time.monotonic() - began
    assert took < 0.1
    stage.shop.hold.set()
    assert (merged / "a").read_bytes() == b"slow"
    assert sum(stage.shop.asked.values()) == 1, "the fetch went on for whoever comes next"


def test_a_signal_with_a_handler_does_not_break_an_open(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"slow"})
    merged = stage.show()
    stage.shop.hold.clear()
    script = (
        "import os, signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: print('signal', flush=True))\n"
        # Not Python's own open, which tries again at EINTR by itself.
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "fd = libc.open(sys.argv[1].encode(), 0)\nprint(fd > 0, ctypes.get_errno() if fd < 0 else 0, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(merged / "a")], stdout=subprocess.PIPE, text=True
    ) as reader:
        wait_for(lambda: sum(stage.shop.asked.values()) > 0)
        time.sleep(0.1)
        reader.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        assert reader.poll() is None
        stage.shop.hold.set()
        said = reader.communicate(timeout=10)[0]
    assert sorted(said.split("\n")) == ["", "True 0", "signal"]
    # And one that is killed after such a signal goes too.
    stage.shop.hold.clear()


def test_a_worker_killed_while_it_fetches_is_replaced(make_stage: Callable[..., Stage]) -> None:
    content = small(40)
    stage = make_stage(content)
    stage.shop.delay_s = 0.2
    merged = stage.show()
    assert (merged / "d/file0").read_bytes() == content["d/file0"]
    first = stage.lazy.worker_pid
    with ThreadPoolExecutor(40) as pool:
        reads = {name: pool.submit((merged / name).read_bytes) for name in content}
        time.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        time.sleep(0.35)
        os.kill(stage.lazy.worker_pid, signal.SIGKILL)
        for name, read in reads.items():
            assert read.result(20) == content[name]
    assert stage.lazy.worker_pid not in (0, first)
    assert stage.served("restarts") == 2


def test_a_worker_that_is_stopped_is_replaced(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PING_S", 0.2)
    monkeypatch.setattr(supervisor, "PONG_S", 0.5)
    content = small(4)
    stage = make_stage(content)
    merged = stage.show()
    time.sleep(1.5)
    assert stage.served("restarts") == 0, "one that goes on is left alone"
    first = stage.lazy.worker_pid
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        reads = {name: pool.submit((merged / name).read_bytes) for name in content}
        for name, read in reads.items():
            assert read.result(20) == content[name]
    assert stage.lazy.worker_pid not in (0, first)
    assert stage.served("restarts") == 1


def test_without_resend_the_mount_is_made_anew(make_stage: Callable[..., Stage]) -> None:
    from dataclasses import replace

    stage = make_stage({"a": b"before", "b": b"after", "c": b"later"})
    merged = stage.show()
    assert (merged / "a").read_bytes() == b"before"
    assert stage.lazy.terms is not None
    stage.lazy.terms = replace(stage.lazy.terms, resend=False)
    os.kill(stage.lazy.worker_pid, signal.SIGKILL)
    wait_for(lambda: stage.lazy.served["restarts"] == 1 and stage.lazy.mode == "retry")
    assert (merged / "a").read_bytes() == b"before", "what is here stays"
    with pytest.raises(OSError):
        (merged / "b").read_bytes()  # this container's mount is gone
    stage.mounts.forget(stage.digest)
    assert (stage.show("again") / "b").read_bytes() == b"after"


def test_a_server_killed_leaves_nothing_that_hinders_the_next(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"content"}, start=False)
    script = (
        "import asyncio, sys\nfrom cadenza.fs.supervisor import Lazy\n"
        "async def main():\n lazy = Lazy(sys.argv[1], {'store': sys.argv[2]})\n await lazy.open()\n"
        " print(lazy.worker_pid, flush=True)\n await asyncio.sleep(60)\nasyncio.run(main())\n"
    )
    Store(str(stage.home)).close()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(stage.home), stage.shop.url], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        server.kill()
    wait_for(lambda: not os.path.exists(f"/proc/{worker}") or zombie(worker))
    with pytest.raises(OSError) as caught:
        os.listdir(stage.home / "lazy")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)  # the latter while its threads are ending
    stage.start()
    assert (stage.show() / "a").read_bytes() == b"content"


def test_a_full_disk_is_said_and_passes(make_stage: Callable[..., Stage]) -> None:
    content = {"big": RANDOM.randbytes(6 * MIB), "small": b"fits"}
    stage = make_stage(content, start=False)
    stage.home.mkdir(parents=True)
    disk = stage.root / "disk"
    with open(disk, "wb") as file:
        file.truncate(48 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m0", "-Onone,extent", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(stage.home)], check=True)
    stage._closing.insert(1, lambda: subprocess.run(["umount", "-l", str(stage.home)], check=True))
    stage.start()
    merged = stage.show()
    free = os.statvfs(stage.home)
    filler = stage.home / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 3 * MIB))
    with pytest.raises(OSError) as caught:
        (merged / "big").read_bytes()
    assert caught.value.errno == errno.ENOSPC
    assert (merged / "small").read_bytes() == b"fits"
    filler.unlink()
    assert (merged / "big").read_bytes() == content["big"], "not one byte else"


def large(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_a_large_file_is_read_by_range(make_stage: Callable[..., Stage]) -> None:
    size = 200 * MIB
    content = large(size)
    stage = make_stage({"weights": content})
    merged = stage.show()
    began = time.monotonic()
    with open(merged / "weights", "rb", buffering=0) as file:
        for _ in range(12):
            at = RANDOM.randrange(size - 9000)
            assert os.pread(file.fileno(), 9000, at) == content[at : at + 9000]
    assert time.monotonic() - began < 10
    assert stage.shop.sent_bytes < 70 * MIB, "only the chunks that were touched"
    assert stage.served("chunks") >= 8
    assert not os.path.exists(stage.node.path(next(files(stage.tree)).data))
    # Its worker dies: what came stays.
    os.kill(stage.lazy.worker_pid, signal.SIGKILL)
    before = Counter(stage.shop.asked)
    with open(merged / "weights", "rb", buffering=0) as file:
        digest = hashlib.blake2b()
        while part := file.read(MIB):
            digest.update(part)
    assert digest.digest() == hashlib.blake2b(content).digest()
    assert all(count == 1 for key, count in stage.shop.asked.items() if key.startswith("chunks/")), before
    # Now it is whole: in another container it is a file like others.
    whole = stage.node.path(next(files(stage.tree)).data)
    wait_for(lambda: os.path.exists(whole))
    reads = stage.served("reads")
    with open(stage.show("again") / "weights", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, size // 2) == content[size // 2 : size // 2 + 100]
    assert stage.served("reads") == reads
    with open(merged / "weights", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, 5) == content[5:105]


def test_a_wrong_chunk_is_an_error_for_its_bytes_alone(make_stage: Callable[..., Stage]) -> None:
    content = large(70 * MIB)
    stage = make_stage({"weights": content})
    node = next(files(stage.tree))
    chunks = stage.node.chunks(node.list_digest)
    bad = chunks[len(chunks) // 2]
    where = stage.remote / "chunks" / bad.digest.hex()[:2] / bad.digest.hex()[2:]
    where.chmod(0o644)
    where.write_bytes(bytes(bad.length))
    with open(stage.show() / "weights", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 0) == content[:4096]
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 4096, bad.start + 8192)
        assert caught.value.errno == errno.EIO


def test_what_is_wanted_comes_ahead_of_need(make_stage: Callable[..., Stage]) -> None:
    content = small(60)
    stage = make_stage({**content, "large": large(9 * MIB)})
    wanted = [(one.data, one.size) for one in files(stage.tree)]
    stage.shop.delay_s = 0.01
    assert stage.turning.run(stage.lazy.prefetch(wanted, wait=True)) == 0
    stage.shop.close()
    merged = stage.show()
    for name, value in content.items():
        assert (merged / name).read_bytes() == value
    assert (merged / "large").read_bytes() == large(9 * MIB)
    lost = [(bytes(31) + b"\1", 5)]
    stage.shop.open()
    assert stage.turning.run(stage.lazy.prefetch([*wanted, *lost], wait=True)) == 1


def test_who_waits_goes_before_what_is_fetched_ahead(make_stage: Callable[..., Stage]) -> None:
    content = small(400)
    stage = make_stage(content)
    stage.shop.delay_s = 0.1
    wanted = [(one.data, one.size) for one in files(stage.tree)]
    last = f"d/file{len(content) - 1}"
    node = next(one for one in files(stage.tree) if one.size == len(content[last]))
    wanted.remove((node.data, node.size))
    merged = stage.show()
    stage.turning.run(stage.lazy.prefetch([*wanted, (node.data, node.size)]))
    time.sleep(0.3)
    began = time.monotonic()
    assert (merged / last).read_bytes() == content[last]
    assert time.monotonic() - began < 1.0, "all that was wanted ahead takes 2.5 s"
    assert sum(stage.shop.asked.values()) < 300


def test_idle_it_costs_nothing(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(small(30))
    merged = stage.show()
    for one in merged.rglob("file*"):
        one.read_bytes()
    time.sleep(7)  # its threads end
    pid = stage.lazy.worker_pid
    before = cpu_ticks(pid)
    time.sleep(3)
    assert cpu_ticks(pid) == before
    status = Path(f"/proc/{pid}/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    assert int(memory.split()[1]) < 40 << 10
    threads = next(line for line in status.splitlines() if line.startswith("Threads:"))
    assert int(threads.split()[1]) < 12


def test_only_root_reaches_the_mount(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"a": b"content"})
    merged = stage.show()
    os.chmod(stage.root, 0o755)
    for path in list(stage.root.parents)[:-1]:
        if path.name.startswith("pytest-"):
            os.chmod(path, 0o755)
    name = f"/{next(files(stage.tree)).digest.hex()}"
    lazy = f"{stage.lazy.mountpoint}/{name[1:3]}{name[3:]}"

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command], capture_output=True, text=True
        )

    assert as_nobody("cat", lazy).returncode != 0
    assert as_nobody("cat", str(merged / "a")).stdout == "content", "readers of the overlay need no rights there"


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(true: Callable[[], bool], limit_s: float = 15) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)
