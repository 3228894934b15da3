"""The lane (docs/formats/wire.md): large values beside the frames, as file descriptors or as raw bytes.

Small frames and descriptors are handled on the event loop; raw bodies and copies to disk run in worker threads. A memfd
that is put without ``durable`` is kept as it is, and given out as a read-only descriptor.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

import msgspec

from cadenza.base.errors import Error, InvalidError, ResourceExhaustedError, ServiceError, kind_of
from cadenza.base.ids import IdSource
from cadenza.control.blobs import Blob, Blobs
from cadenza.control.body import check_memfd, receive_some, send_some, write
from cadenza.control.listen import accept_each, listen_private, peer_process, same_user
from cadenza.observe.log import Log
from cadenza.protocol.frame import FrameError, encode
from cadenza.storage.blobs import Draft, copy

MAX_LANE_FRAME_BYTES = 64 << 10
MAX_FDS = 16
MAX_VALUE_BYTES = 1 << 40
MAX_LANES = 2_048
MAX_CONTAINER_LANES = 64
STALL_S = 30.0
"""A peer that sends or takes nothing of a body for this long is given up."""
BODY_BYTES = 1 << 20
WORKERS = 16
CONTAINER_WORKERS, HOST_WORKERS = 4, 12
"""How many threads the lanes of one container have at most at a time, and those of the host."""
PERSIST_WORKERS = 4
"""Threads of their own for `LaneServer.persist`: what calls wait for does not queue behind what lanes do."""

_log = Log("cadenza.control.lane")


class Ask(msgspec.Struct):
    """Any request on a lane."""

    t: str
    size: int = 0
    fd: bool = False
    durable: bool = False
    blob: str = ""


_decode = msgspec.json.Decoder(Ask).decode


class LaneServer:
    """Serves lanes over one `Blobs`."""

    def __init__(self, blobs: Blobs, ids: IdSource) -> None:
        self._blobs = blobs
        self._ids = ids
        self._listener: Optional[socket.socket] = None
        self._path = ""
        self._lanes: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(WORKERS, "lane")
        self._copiers = ThreadPoolExecutor(PERSIST_WORKERS, "persist")
        self._persisting: dict[str, asyncio.Task[None]] = {}
        self._lingering: set[int] = set()
        self._by_container: Counter[str] = Counter()
        self._shares: dict[str, asyncio.Semaphore] = {}
        blobs.forget = lambda blob_id: self._later(blobs.store.delete, blob_id)

    def listen(self, path: str) -> None:
        """Accept on ``path``: this user and root only."""
        self._listener, self._path = listen_private(path), path
        accept_each(self._listener, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if same_user(sock):
            self.serve(sock, "")
        else:
            sock.close()

    def serve(self, sock: socket.socket, container_id: str) -> None:
        """Take over an accepted socket of a container, or of the host when ``container_id`` is empty."""
        mine = self._by_container[container_id] if container_id else 0
        if len(self._lanes) >= MAX_LANES or mine >= MAX_CONTAINER_LANES:
            _log.warning("refused a lane: too many", lanes=len(self._lanes), container=container_id, its=mine)
            sock.close()
            return
        sock.setblocking(False)
        share = self._shares.setdefault(
            container_id, asyncio.Semaphore(CONTAINER_WORKERS if container_id else HOST_WORKERS)
        )
        lane = _Lane(
            sock, self._ids.new("connection"), container_id, self._blobs, self._ids, self._threads, share, self._ended
        )
        task = asyncio.get_running_loop().create_task(lane.run())
        self._lanes.add(task)
        self._by_container[container_id] += 1
        task.add_done_callback(lambda task: self._gone(task, container_id))

    def _gone(self, task: asyncio.Task[None], container_id: str) -> None:
        self._lanes.discard(task)
        self._by_container[container_id] -= 1
        if not self._by_container[container_id]:
            del self._by_container[container_id]
            del self._shares[container_id]

    def _ended(self, lane: str, process: int) -> None:
        """A lane's connection is over. Its views are over only with its process: until then no sender may overwrite
        what they show. ``process`` is a pidfd, or -1 when the process is gone."""
        if process < 0 or not self._blobs.looks(lane):
            if process >= 0:
                os.close(process)
            self._blobs.receiver_gone(lane)
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(process)
            self._lingering.discard(process)
            os.close(process)
            self._blobs.receiver_gone(lane)

        self._lingering.add(process)
        loop.add_reader(process, gone)

    def _later(self, fn: Callable[..., Any], *args: Any) -> None:
        try:
            self._threads.submit(fn, *args)
        except RuntimeError:
            pass  # closing; the next start sweeps the store

    async def persist(self, blob_id: str) -> None:
        """Make a value durable if it is not yet. NotFoundError when there is no such value.

        All who ask for one value wait for one copy, which goes on when they do not wait any more.
        """
        blob = self._blobs.find(blob_id)
        if blob is None:
            self._blobs.store.size(blob_id)
            return
        if blob.durable:
            return
        task = self._persisting.get(blob_id)
        if task is None:
            task = self._persisting[blob_id] = asyncio.get_running_loop().create_task(self._make_durable(blob))
            task.add_done_callback(lambda task: self._made_durable(blob_id, task))
        await asyncio.shield(task)

    async def _make_durable(self, blob: Blob) -> None:
        holder = "persist:" + blob.blob_id
        self._blobs.hold(blob.blob_id, holder)
        try:
            if blob.fd >= 0:
                fd = os.dup(blob.fd)  # the copy's own: numbers of descriptors are used again
                try:
                    copied = self._copiers.submit(_store_copy, self._blobs, fd, blob.size, blob.blob_id)
                except RuntimeError:
                    os.close(fd)
                    raise ServiceError("the server stops") from None
                copied.add_done_callback(lambda _: os.close(fd))
                await asyncio.wrap_future(copied)
            blob.durable = True
        finally:
            self._blobs.drop(holder)

    def _made_durable(self, blob_id: str, task: asyncio.Task[None]) -> None:
        del self._persisting[blob_id]
        if not task.cancelled():
            task.exception()  # taken here too, for when nobody waits any more

    async def close(self) -> None:
        """End all lanes."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
        for task in list(self._lanes):
            task.cancel()
        for task in list(self._persisting.values()):
            task.cancel()
        if self._lanes or self._persisting:
            await asyncio.wait([*self._lanes, *self._persisting.values()])
        for process in self._lingering:
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)
        self._lingering.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._copiers.shutdown(wait=False, cancel_futures=True)


class _Lane:
    """One connection: one request at a time."""

    def __init__(
        self,
        sock: socket.socket,
        lane_id: str,
        container_id: str,
        blobs: Blobs,
        ids: IdSource,
        threads: ThreadPoolExecutor,
        share: asyncio.Semaphore,
        ended: Callable[[str, int], None],
    ) -> None:
        self._sock = sock
        self._id = lane_id
        self._container_id = container_id
        self._blobs = blobs
        self._ids = ids
        self._threads = threads
        self._share = share
        self._ended = ended
        self._process = peer_process(sock)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._fds: list[int] = []

    async def run(self) -> None:
        self._blobs.lane_opened(self._id, self._container_id)
        try:
            while True:
                raw = await self._frame()
                if raw is None or not await self._one(raw):
                    return
        except FrameError as error:
            await self._say({"t": "err", "e": {"kind": "invalid", "message": str(error)}})
        except (OSError, EOFError) as error:
            _log.debug("a lane ended", lane=self._id, error=str(error))
        finally:
            self._drop_fds()
            self._sock.close()
            self._blobs.lane_closed(self._id)
            self._ended(self._id, self._process)

    async def _one(self, raw: bytes) -> bool:
        """Serve one request; False when the connection cannot go on."""
        try:
            ask = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"not a request of a lane: {error}") from None
        body_left = ask.t == "put" and not ask.fd
        try:
            if ask.t == "put":
                blob_id = await (self._put_fd(ask) if ask.fd else self._put_raw(ask))
                body_left = False
                await self._say({"t": "ok", "blob": blob_id, "free": self._blobs.freed(self._id, blob_id)})
            elif ask.t == "get":
                await self._get(ask)
            elif ask.t == "release":
                self._blobs.release(self._id, ask.blob)
            else:
                raise FrameError(f"a lane has no request {ask.t[:40]!r}")
        except Error as error:
            if isinstance(error, FrameError):
                raise
            await self._say({"t": "err", "e": {"kind": kind_of(error), "message": str(error)}})
            return not body_left  # after a body that was not read the two ends no longer agree where a frame begins
        finally:
            self._drop_fds()
        return True

    # --- requests ---

    async def _put_fd(self, ask: Ask) -> str:
        if not self._fds:
            raise InvalidError("a put with fd=true needs a descriptor beside its frame")
        fd = self._fds.pop(0)
        try:
            check_memfd(fd, ask.size)
            blob_id = self._ids.new("blob")
            if not ask.durable and self._blobs.reserve(self._id, ask.size):
                self._keep(fd, blob_id, ask.size)
                return blob_id
            await self._thread(_store_copy, self._blobs, fd, ask.size, blob_id)
            self._blobs.stored(self._id, blob_id, ask.size, ask.durable, recycle=True)
            return blob_id
        finally:
            os.close(fd)

    async def _put_raw(self, ask: Ask) -> str:
        if not 0 <= ask.size <= MAX_VALUE_BYTES:
            raise InvalidError(f"a value of {ask.size} bytes: at most {MAX_VALUE_BYTES}")
        blob_id = self._ids.new("blob")
        if not ask.durable and self._blobs.reserve(self._id, ask.size):
            fd = -1
            try:
                fd = os.memfd_create("cadenza-value", os.MFD_CLOEXEC)
                await self._take_body(fd, ask.size)
            except BaseException:
                self._blobs.unreserve(self._id, ask.size)
                if fd >= 0:
                    os.close(fd)
                raise
            try:
                self._keep(fd, blob_id, ask.size)
            finally:
                os.close(fd)
            return blob_id
        draft: list[Draft] = []
        try:
            await self._thread(lambda: draft.append(self._blobs.store.draft()))
            await self._take_body(draft[0].fd, ask.size)
            await self._thread(draft[0].commit, blob_id)
        except OSError as error:
            raise _full(error) from None
        finally:
            if draft:
                await self._thread(draft[0].discard)  # of one that was committed nothing is left to discard
        self._blobs.stored(self._id, blob_id, ask.size, ask.durable, recycle=False)
        return blob_id

    def _keep(self, fd: int, blob_id: str, size: int) -> None:
        """A reserved value that is in memory is there from here on. ``fd`` stays the caller's."""
        try:
            os.fchmod(fd, 0o400)  # receivers of another user cannot open it for writing again
        except OSError:
            pass
        try:
            keep = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._blobs.unreserve(self._id, size)
            raise
        self._blobs.keep(self._id, blob_id, size, keep, reserved=True)

    async def _get(self, ask: Ask) -> None:
        fd = self._blobs.open(self._id, ask.blob)
        opened: list[int] = []
        try:
            if fd is None:
                await self._thread(lambda: opened.append(self._blobs.store.open(ask.blob)))
                fd = opened[0]
                blob = self._blobs.find(ask.blob)
                size = blob.size if blob is not None else os.fstat(fd).st_size
            else:
                blob = self._blobs.find(ask.blob)
                assert blob is not None
                size = blob.size
            if ask.fd:
                await self._say({"t": "ok", "size": size, "fd": True}, fd)
            else:
                await self._say({"t": "ok", "size": size, "fd": False})
                await self._give_body(fd, size)
        finally:
            for one in opened or ([] if fd is None else [fd]):
                os.close(one)

    async def _take_body(self, fd: int, size: int) -> None:
        """``size`` bytes of the connection into a file. EOFError when they end early, or do not come."""
        ahead = bytes(self._buffer[:size])
        del self._buffer[: len(ahead)]
        await self._thread(write, fd, memoryview(ahead))
        left = size - len(ahead)
        buffer = bytearray(min(BODY_BYTES, left))
        while left:
            await self._peer(self._loop.add_reader, self._loop.remove_reader)
            left -= await self._thread(receive_some, self._sock, fd, left, buffer)

    async def _give_body(self, fd: int, size: int) -> None:
        """The first ``size`` bytes of a file into the connection. EOFError when they are not there, or not taken."""
        done = 0
        while done < size:
            await self._peer(self._loop.add_writer, self._loop.remove_writer)
            done += await self._thread(send_some, self._sock, fd, done, size)

    # --- the socket ---

    async def _thread(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run in a worker thread; a cancelled lane still waits for it, because it uses our descriptors."""
        async with self._share:
            future = self._loop.run_in_executor(self._threads, fn, *args)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                await asyncio.wait([future])
                raise

    async def _peer(self, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        try:
            await asyncio.wait_for(self._ready(add, remove), STALL_S)
        except asyncio.TimeoutError:
            raise EOFError(f"nothing of a body came or went for {STALL_S:g} seconds") from None

    async def _frame(self) -> Optional[bytes]:
        """The next header, or None at the end."""
        buffer = self._buffer
        while True:
            if len(buffer) >= 8:
                total = int.from_bytes(buffer[:4], "big")
                head = int.from_bytes(buffer[4:8], "big")
                if total > MAX_LANE_FRAME_BYTES or head + 4 != total:
                    raise FrameError(
                        f"not a lane's frame: total {total} (at most {MAX_LANE_FRAME_BYTES}), header {head}"
                    )
                if len(buffer) >= 4 + total:
                    raw = bytes(buffer[8 : 4 + total])
                    del buffer[: 4 + total]
                    return raw
            try:
                data = self._receive()
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            if not data:
                return None
            buffer += data

    def _receive(self) -> bytes:
        data, ancillary, flags, _ = self._sock.recvmsg(
            MAX_LANE_FRAME_BYTES, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise FrameError("too many descriptors at once")
        return data

    async def _ready(self, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        add(self._sock, _resolve, future)
        try:
            await future
        finally:
            remove(self._sock)

    async def _say(self, header: dict[str, Any], fd: int = -1) -> None:
        data = encode(header)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        while data:
            try:
                sent = self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            ancillary = []
            data = data[sent:]

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _full(error: OSError) -> Error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceExhaustedError("the server's disk is full: free some space and try again")
    raise error


def _store_copy(blobs: Blobs, fd: int, size: int, blob_id: str) -> None:
    draft = blobs.store.draft()
    try:
        copy(fd, draft.fd, size)
        draft.commit(blob_id)
    except OSError as error:
        draft.discard()
        raise _full(error) from None
    except BaseException:
        draft.discard()
        raise
