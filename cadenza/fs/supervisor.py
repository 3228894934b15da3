"""The lazy mount's other half, in the server: mounts it, holds the kernel's end, sees that a worker answers it.

The worker (`cadenza.fs.lazy`) may die at any time: /dev/fuse stays open here, so the mount stays, another worker is
started at once, and the kernel gives it whatever was asked and not answered. docs/formats/lazy.md has the frames.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import shutil
import socket
import sys
import tempfile
from typing import Any, Mapping, Optional, Sequence

from cadenza.base.config import Config
from cadenza.base.errors import Error, ServiceError
from cadenza.fs import fuse, kernel
from cadenza.fs.fuse import Terms
from cadenza.fs.link import KNOWN_TREES, MODES, RETRY, pack_wanted
from cadenza.observe.log import Log
from cadenza.protocol import frame

FOLDER = "lazy"
START_S = 20.0
"""A worker that does not say that it is ready in this time is given up."""
TRIAL_S = 10.0
WAIT_S = 30.0
"""How long a reader waits for content before it is told EIO."""
QUICK_S = 2.0
"""A worker that dies younger than this is followed by the next after a pause."""
PAUSE_S = 0.25
MAX_PAUSE_S = 4.0
HOPELESS = 6
"""After so many quick deaths in a row the mount is made anew: a message that kills workers must not kill them all."""
END_S = 2.0
PING_S = 5.0
"""How often a worker is asked whether it goes on."""
PONG_S = 5.0
MISSES = 3
"""A worker that did not answer so many times in a row, each for `PONG_S`, is replaced."""
WANTED_A_FRAME = 50_000

_log = Log("cadenza.fs.lazy")


NO_TIERS = {"store": "", "store_options": "", "peers": "", "peer_key": "", "limit_bytes": 0}


def settings_of(config: Config) -> dict[str, Any]:
    """What a worker needs to know of the configuration: `Lazy`'s settings."""
    return {
        "store": config.store,
        "store_options": config.store_options,
        "peers": config.peers,
        "peer_key": config.peer_key,
        "limit_bytes": int(config.store_limit_gib * 2**30),
    }


def pause_s(deaths: int) -> float:
    """How long to wait before the next worker, after so many quick deaths in a row. Pure."""
    return 0.0 if deaths <= 1 else min(PAUSE_S * 2 ** (deaths - 2), MAX_PAUSE_S)


class Lazy:
    """The mount at ``mountpoint``. Made and used in one event loop. ``settings``: as `settings_of` makes them."""

    def __init__(
        self,
        home: str,
        settings: Optional[Mapping[str, Any]] = None,
        *,
        modes: Sequence[str] = MODES,
        wait_s: float = WAIT_S,
        python: str = sys.executable,
    ) -> None:
        self.mountpoint = os.path.join(home, FOLDER)
        self.mode = ""
        """Which of `MODES` is in force; empty while it is not open."""
        self.terms: Optional[Terms] = None
        self.worker_pid = 0
        self._home = home
        self._settings = {**NO_TIERS, **(settings or {})}
        self._modes = modes
        self._wait_s = wait_s
        self._python = python
        self._device = -1
        self._trial: Optional[dict[str, str]] = None
        self._trial_fd = -1
        self._process: Optional[asyncio.subprocess.Process] = None
        self._writer: Optional[asyncio.StreamWriter] = None
        self._ready: asyncio.Event = asyncio.Event()
        self._pong: asyncio.Event = asyncio.Event()
        self._counts: dict[str, int] = {}
        self._earlier: dict[str, int] = {}
        self._restarts = 0
        self._numbers = itertools.count(1)
        self._failed: tuple[float, str] = (-1.0, "")
        """When a reader was last told EIO, on the loop's clock, and why."""
        self._prefetches: dict[int, tuple[bytes, asyncio.Future[int]]] = {}
        self._trees: dict[bytes, None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    @property
    def served(self) -> dict[str, int]:
        """What was done since `open`: see docs/formats/lazy.md, "Counters"."""
        keys = {**self._earlier, **self._counts}
        found = {key: self._earlier.get(key, 0) + self._counts.get(key, 0) for key in keys}
        return {**found, "restarts": self._restarts}

    def failed_since(self, at: float) -> str:
        """Why a reader did not get content after ``at`` (the loop's clock); empty: none was told so."""
        return self._failed[1] if self._failed[0] >= at else ""

    async def open(self) -> None:
        """Mount, start the worker, try what works. ServiceError: nothing does, and why."""
        await asyncio.to_thread(self._clear)
        why = []
        for mode in self._modes:
            try:
                await self._begin(mode)
                await self._try(mode)
            except (Error, OSError, asyncio.TimeoutError) as error:
                why.append(f"{mode}: {str(error) or 'no answer in time'}")
                await self._end()
                continue
            except BaseException:
                await self._end()
                raise
            self.mode = mode
            self._tasks.append(asyncio.create_task(self._attend(mode)))
            self._tasks.append(asyncio.create_task(self._watch()))
            _log.info("lazy.mounted", at=self.mountpoint, mode=mode, resend=bool(self.terms and self.terms.resend))
            return
        raise ServiceError(f"content cannot be fetched when it is first opened: {'; '.join(why)}")

    async def close(self) -> None:
        """Unmount and end the worker. Whoever needs content that is not here gets errors from now on."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._end()
        for _, done in self._prefetches.values():
            done.cancel()
        self._prefetches.clear()

    async def prefetch(self, wanted: Sequence[tuple[bytes, int]], wait: bool = False) -> int:
        """Fetch these, ``(Node.data, size)``, in this order when nobody waits for anything else.

        Of objects above 64 MiB only what is needed to read them by range.

        With ``wait`` returns when all is here or has failed: how many failed. Else at once: 0.
        """
        waiting = []
        for at in range(0, len(wanted), WANTED_A_FRAME):
            number = next(self._numbers)
            whole = frame.encode({"t": "prefetch", "number": number}, pack_wanted(wanted[at : at + WANTED_A_FRAME]))
            done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._prefetches[number] = (whole, done)
            waiting.append(done)
            self._send(whole)
        return sum([await one for one in waiting]) if wait else 0

    def show(self, tree: bytes) -> None:
        """A container is about to read this tree: the worker then knows what lies beside what is asked for."""
        self._trees.pop(tree, None)
        self._trees[tree] = None
        while len(self._trees) > KNOWN_TREES:
            del self._trees[next(iter(self._trees))]
        self._send(frame.encode({"t": "tree", "digest": tree.hex()}))

    # The mount.

    def _clear(self) -> None:
        """Take away what an earlier server left."""
        kernel.umount(self.mountpoint)
        os.makedirs(self.mountpoint, mode=0o755, exist_ok=True)
        os.makedirs(os.path.join(self._home, "tmp"), mode=0o755, exist_ok=True)

    async def _begin(self, mode: str) -> None:
        self.terms = None
        self._device = os.open(fuse.DEVICE, os.O_RDWR | os.O_CLOEXEC)
        await asyncio.to_thread(fuse.mount, self.mountpoint, self._device)
        self._trial = None
        folder = tempfile.mkdtemp(prefix="lazy-trial-", dir=os.path.join(self._home, "tmp"))
        digest = os.urandom(32).hex()
        place = "objects" if mode == RETRY else "aside"
        path = f"{folder}/{place}/{digest[:2]}/{digest[2:]}"
        self._trial_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._trial_fd, fcntl.LOCK_EX)  # else a store that is opened takes it for a dead one's
        self._trial = {"folder": folder, "digest": digest, "path": path, "content": f"content of {digest}\n"}
        await self._start(mode)

    async def _try(self, mode: str) -> None:
        """Read a file through an overlay whose content only the worker has. An error when that does not work."""
        assert self._trial is not None
        reader = asyncio.to_thread(read_through, self._trial["folder"], self._trial["digest"], self.mountpoint)
        content = await asyncio.wait_for(reader, TRIAL_S)
        if content != self._trial["content"].encode():
            raise ServiceError("an overlay shows other content than what was given to it")
        self._forget_trial()

    def _forget_trial(self) -> None:
        if self._trial is not None:
            shutil.rmtree(self._trial["folder"], ignore_errors=True)
            os.close(self._trial_fd)
            self._trial = None

    async def _end(self) -> None:
        """No mount and no worker."""
        self.mode = ""
        try:
            await asyncio.to_thread(kernel.umount, self.mountpoint)
        finally:
            await self._stop()
            if self._device >= 0:
                os.close(self._device)  # with the worker's gone the kernel ends whatever still waits
                self._device = -1
            await asyncio.to_thread(self._forget_trial)

    # The worker.

    async def _start(self, mode: str) -> None:
        """A worker on `_device`; it is ready when this returns. ServiceError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    self._python, "-m", "cadenza.fs.lazy", str(self._device), str(theirs.fileno()),
                    pass_fds=(self._device, theirs.fileno()), start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL, env=environment(),
                )  # fmt: skip
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        self.worker_pid = self._process.pid
        self._ready.clear()
        self._tasks = [one for one in self._tasks if not one.done()]
        self._tasks.append(asyncio.create_task(self._listen(reader)))
        terms = vars(self.terms) if self.terms is not None else None
        trial = {key: self._trial[key] for key in ("digest", "path", "content")} if self._trial else None
        first = {"t": "start", "mode": mode, "terms": terms, "trial": trial, "wait_s": self._wait_s, "home": self._home}
        self._send(frame.encode({**self._settings, **first}))
        for tree in self._trees:
            self._send(frame.encode({"t": "tree", "digest": tree.hex()}))
        for whole, _ in self._prefetches.values():
            self._send(whole)
        dead = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((dead, ready), timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        ready.cancel()
        if not self._ready.is_set():
            raise ServiceError(
                f"its process did not start (exit code {self._process.returncode}): see the server's log"
            )

    async def _stop(self) -> None:
        if self._writer is not None:
            self._writer.close()  # which it ends at
            self._writer = None
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except asyncio.TimeoutError:
                self._process.kill()
                try:
                    await asyncio.wait_for(self._process.wait(), END_S)
                except asyncio.TimeoutError:  # its disk hangs: it goes when that does
                    _log.error("lazy.worker_stays", pid=self._process.pid)
            self._process = None
        for key, value in self._counts.items():
            self._earlier[key] = self._earlier.get(key, 0) + value
        self._counts = {}
        self.worker_pid = 0

    async def _watch(self) -> None:
        """Kill a worker that is there and does not go on: it is stopped, or has come to a stop by itself."""
        misses = 0
        while not self._closing:
            await asyncio.sleep(PING_S)
            process = self._process
            if not self.mode or process is None or not self._ready.is_set():
                misses = 0
                continue
            self._pong.clear()
            self._send(frame.encode({"t": "ping"}))
            try:
                await asyncio.wait_for(self._pong.wait(), PONG_S)
            except asyncio.TimeoutError:
                misses = misses + 1 if process is self._process else 0
            else:
                misses = 0
            if misses >= MISSES and process.returncode is None:
                _log.error("lazy.worker_silent", pid=process.pid, seconds=MISSES * PONG_S)
                process.kill()
                misses = 0

    async def _attend(self, mode: str) -> None:
        """Start a worker whenever there is none."""
        loop = asyncio.get_running_loop()
        deaths = 0
        since = loop.time()
        while not self._closing:
            code = await self._process.wait() if self._process is not None else -1
            deaths = deaths + 1 if loop.time() - since < QUICK_S else 1
            _log.error("lazy.worker_died", code=code, deaths=deaths)
            await self._stop()
            await asyncio.sleep(pause_s(deaths))
            since = loop.time()
            self._restarts += 1
            try:
                if self.terms is None or not self.terms.resend or deaths >= HOPELESS:
                    await self._anew(mode)
                    deaths = 0
                else:
                    await self._start(mode)
            except Exception as error:  # whatever it is: without this task there is no worker ever after
                _log.error("lazy.worker_failed", error=f"{type(error).__name__}: {error}")
                await self._stop()  # then as if it had died

    async def _anew(self, mode: str) -> None:
        """Another mount in place of one that cannot be saved: what hangs there ends with an error."""
        _log.error("lazy.mounted_anew", at=self.mountpoint)
        await self._end()
        await self._begin(mode)
        await asyncio.to_thread(self._forget_trial)
        self.mode = mode

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        decoder = frame.Decoder()
        while data := await reader.read(256 << 10):
            for raw, _ in decoder.feed(data):
                self._heard(frame.loads(raw))

    def _heard(self, said: dict[str, Any]) -> None:
        kind = said.pop("t")
        if kind == "ready":
            self._ready.set()
        elif kind == "pong":
            self._pong.set()
        elif kind == "terms":
            self.terms = Terms(**said)
        elif kind == "served":
            self._counts = said
        elif kind == "failed":
            self._failed = (asyncio.get_running_loop().time(), said["why"])
        elif kind == "log":
            logging.getLogger(said["logger"]).log(said["level"], "%s", said["line"])
        elif kind == "done":
            _, done = self._prefetches.pop(said["number"], (b"", None))
            if done is not None and not done.done():
                done.set_result(said["failed"])

    def _send(self, whole: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(whole)


def environment() -> dict[str, str]:
    """The worker's: this package is found as it was found here, and what clouds' own tools read is kept."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def read_through(folder: str, digest: str, lazy: str) -> bytes:
    """The content of an object as an overlay shows it over ``folder/objects`` and the mount. Blocking. OSError."""
    from cadenza.fs.abilities import metacopy

    for name in ("layer", "objects"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    os.makedirs(f"{folder}/objects/{digest[:2]}", exist_ok=True)
    with open(f"{folder}/layer/file", "xb") as file:
        file.truncate(len(f"content of {digest}\n"))
    metacopy(f"{folder}/layer/file", b"trusted", f"/{digest[:2]}/{digest[2:]}".encode())
    opened = [os.open(one, os.O_PATH | os.O_CLOEXEC) for one in (f"{folder}/layer", f"{folder}/objects", lazy)]
    try:
        # Paths by descriptors: a value has 255 bytes.
        lowers = "{}::{}::{}".format(*(f"/proc/self/fd/{one}" for one in opened))
        options = [("lowerdir", lowers), ("metacopy", "on"), ("redirect_dir", "on")]
        with kernel.detached("overlay", options, folder, kernel.MOUNT_ATTR_RDONLY) as tree:
            with open(os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree), "rb") as file:
                return file.read()
    finally:
        for one in opened:
            os.close(one)
