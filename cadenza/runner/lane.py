"""The client of the lane: large values by descriptor, or as bytes where descriptors cannot pass.

docs/formats/wire.md, section 'The lane'. What is put lies in a memfd of this process; the server says when its memory
may be used again, and it is, because a fresh page costs about 10 us here and a used one a tenth of that. What is got
is mapped privately: the user may write to it, and the kernel copies only the pages written.
"""

from __future__ import annotations

import _socket
import mmap
import os
import sys
from _thread import RLock
from _weakref import ref

from cadenza.base.errors import ServiceError, from_kind
from cadenza.protocol.frame import FrameError, encode_parts
from cadenza.runner.wire import dumps, loads, send_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    Part = Union[bytes, bytearray, memoryview]

MAX_POOL_BYTES = 512 << 20
"""Memory that is kept for later puts, at most. What is in use does not count: the server holds it anyway."""
MAX_HEADER_BYTES = 1 << 20
PAGE_BYTES = 4096
SHARED_COPY_BYTES = 8 << 20
"""From this size on two threads copy a piece."""
MADV_POPULATE_READ = 22
"""Linux 5.14: map the pages that are there, copy none. MAP_POPULATE would copy every page of a private mapping."""
MADV_POPULATE_WRITE = 23
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 2, 4
_DESCRIPTOR_BYTES = 4
SOL_SOCKET, SCM_RIGHTS = _socket.SOL_SOCKET, getattr(_socket, "SCM_RIGHTS", 1)
_SPACE = _socket.CMSG_SPACE(_DESCRIPTOR_BYTES)
_ORDER = sys.byteorder
MSG_CMSG_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0x40000000)


class Memory:
    """One memfd. Sealed against shrinking, so that a reader's mapping cannot be pulled from under it."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE_BYTES) * PAGE_BYTES
        self.map: Optional[mmap.mmap] = None
        self.used = False
        self.fd = os.memfd_create("cadenza-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            import fcntl

            fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        except BaseException:
            os.close(self.fd)
            raise

    def fill(self, parts: Sequence[Part]) -> None:
        """Write the pieces from the start. Fresh memory by a system call, used memory through a mapping: each is the
        quicker way for its kind (100 MB: 97 ms fresh; used 11 ms mapped, 21 ms by system call)."""
        if not self.used:
            self.used = True
            at = 0
            for one in parts:
                view = memoryview(one).cast("B")
                while len(view):
                    done = os.pwrite(self.fd, view, at)
                    at += done
                    view = view[done:]
            return
        if self.map is None:
            self.map = mmap.mmap(self.fd, self.size)
            _advise(self.map, MADV_POPULATE_WRITE)
        at = 0
        for one in parts:
            size = len(one)
            if size < SHARED_COPY_BYTES or not _copy_by_two(self.map, at, one, size):
                self.map[at : at + size] = one
            at += size

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        os.close(self.fd)


def _copy_by_two(mapping: mmap.mmap, at: int, part: Part, size: int) -> bool:
    """Copy with a second thread, if numpy is there already, which copies without the interpreter's lock: 100 MB took
    12 ms instead of 17 on two cores."""
    numpy: Any = sys.modules.get("numpy")
    if not hasattr(numpy, "copyto") or (os.cpu_count() or 1) < 2:  # not there, or its import is under way
        return False
    import threading

    into = numpy.frombuffer(mapping, numpy.uint8, size, at)
    source = numpy.frombuffer(part, numpy.uint8, size)
    half = size // 2
    other = threading.Thread(target=numpy.copyto, args=(into[half:], source[half:]))
    other.start()
    numpy.copyto(into[:half], source[:half])
    other.join()
    return True


def _advise(mapping: mmap.mmap, advice: int) -> None:
    try:
        mapping.madvise(advice)
    except (OSError, ValueError, AttributeError):
        pass  # an older kernel: pages come at their first use


class Pool:
    """Memory that this process owns: lent to the server under a blob's id, or free."""

    def __init__(self, max_bytes: int = MAX_POOL_BYTES) -> None:
        self._max = max_bytes
        self.free: list[Memory] = []
        self.lent: dict[str, Memory] = {}

    def take(self, size: int) -> Memory:
        """Memory of at least ``size`` bytes: the smallest free one that is not more than four times too large."""
        best = None
        for one in self.free:
            if size <= one.size <= 4 * size and (best is None or one.size < best.size):
                best = one
        if best is None:
            return Memory(size)
        self.free.remove(best)
        return best

    def lend(self, blob_id: str, memory: Memory) -> None:
        self.lent[blob_id] = memory

    def give_back(self, blob_ids: Sequence[str]) -> None:
        """The server needs these no more."""
        for blob_id in blob_ids:
            memory = self.lent.pop(blob_id, None)
            if memory is not None:
                self.keep(memory)

    def keep(self, memory: Memory) -> None:
        """Keep it for later; the oldest go when there is too much."""
        self.free.append(memory)
        while self.free and sum(one.size for one in self.free) > self._max:
            self.free.pop(0).close()

    def close(self) -> None:
        for memory in [*self.free, *self.lent.values()]:
            memory.close()
        self.free, self.lent = [], {}


class Lane:
    """One lane. Thread-safe; connects at first use, again after a fault and in a forked child."""

    def __init__(self, path: str, max_pool_bytes: int = MAX_POOL_BYTES) -> None:
        self._path = path
        self._lock = RLock()
        self._sock: Optional[_socket.socket] = None
        self._pid = 0
        self._max_pool_bytes = max_pool_bytes
        self.pool = Pool(max_pool_bytes)
        self._dropped: list[str] = []
        self._watched: dict[str, Any] = {}
        self._busy = False
        self._pass_descriptors = hasattr(os, "memfd_create")

    def put(self, parts: Sequence[Part], durable: bool) -> tuple[str, int]:
        """Store the pieces as one value; ``(blob id, size in bytes)``. With ``durable`` it is on disk afterwards.

        ServiceError when the lane is gone; the server's own errors as `cadenza.base.errors` names them.
        """
        size = sum(map(len, parts))
        with self._lock:
            if self._pass_descriptors:
                done = self._put_descriptor(parts, size, durable)
                if done is not None:
                    return done, size
            raw = dumps({"t": "put", "size": size, "fd": False, "durable": durable})
            reply = self._ask([*encode_parts(raw, ()), *parts])
            return str(reply["blob"]), size

    def get(self, blob_id: str) -> memoryview:
        """The value's bytes, for the caller to read and to write. Released by itself when the last view is gone."""
        with self._lock:
            reply = self._ask(encode_parts(dumps({"t": "get", "blob": blob_id, "fd": self._pass_descriptors}), ()))
            size, fd = int(reply["size"]), reply.get("descriptor")
            if fd is None:
                if reply.get("fd"):
                    self._pass_descriptors = False
                    self._drop()
                    return self.get(blob_id)
                return memoryview(self._rest(size))
            try:
                if size == 0:
                    self._dropped.append(blob_id)
                    return memoryview(bytearray())
                mapping = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            finally:
                os.close(fd)
            _advise(mapping, MADV_POPULATE_READ)
            self._watch(blob_id, mapping)
            return memoryview(mapping)

    def close(self) -> None:
        """Close the connection and give the memory back. Views that are out stay valid."""
        with self._lock:
            self._drop()

    # The connection.

    def _connected(self) -> _socket.socket:
        if self._sock is not None and self._pid != os.getpid():
            self._drop()
        if self._sock is None:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            try:
                sock.connect(self._path)
            except OSError as error:
                sock.close()
                raise ServiceError(
                    f"Cannot reach the server's lane for large values at {self._path}: {error}"
                ) from None
            self._sock, self._pid = sock, os.getpid()
        return self._sock

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._dropped.clear()
        self._watched.clear()
        self.pool.close()
        self.pool = Pool(self._max_pool_bytes)

    def _put_descriptor(self, parts: Sequence[Part], size: int, durable: bool) -> Optional[str]:
        """The blob's id, or None where descriptors cannot pass: then this lane tries no more."""
        self._connected()
        try:
            memory = self.pool.take(max(1, size))
        except OSError:
            self._pass_descriptors = False
            return None
        try:
            memory.fill(parts)
            frame = encode_parts(dumps({"t": "put", "size": size, "fd": True, "durable": durable}), ())
            rights = [(SOL_SOCKET, SCM_RIGHTS, memory.fd.to_bytes(_DESCRIPTOR_BYTES, _ORDER))]
            reply = self._ask(frame, rights, refusable=True)
        except BaseException:
            memory.close()
            raise
        if reply.get("t") != "ok":
            memory.close()
            self._pass_descriptors = False
            return None
        blob_id = str(reply["blob"])
        self.pool.lend(blob_id, memory)
        return blob_id

    def _ask(self, parts: list[Any], ancillary: Any = (), refusable: bool = False) -> dict[str, Any]:
        """One request and its reply. With ``refusable``, a fault of passing descriptors comes back as a reply."""
        sock = self._connected()
        self._release(sock)
        self._busy = True
        try:
            try:
                send_parts(sock, parts, ancillary)
            except OSError:
                if refusable:
                    self._drop()
                    return {"t": "err"}
                raise
            reply = self._reply(sock)
        except (OSError, FrameError) as error:
            self._drop()
            raise _broken(error) from None
        except BaseException:
            self._drop()  # cancelled half way: what comes next on this connection would be of the old request
            raise
        finally:
            self._busy = False
        self.pool.give_back(reply.get("free") or ())
        if reply.get("t") == "ok":
            return reply
        error_body = reply.get("e") or {}
        if refusable and error_body.get("kind") in ("invalid", "unimplemented"):
            return {"t": "err"}
        # The lane has no limit on waiting calls: what it has no room for is told, and not waited for.
        raise from_kind(str(error_body.get("kind")), str(error_body.get("message")), {"throttle": False})

    def _reply(self, sock: _socket.socket) -> dict[str, Any]:
        data, ancillary, _, _ = sock.recvmsg(8, _SPACE, MSG_CMSG_CLOEXEC)
        fds = [
            int.from_bytes(raw[at : at + _DESCRIPTOR_BYTES], _ORDER)
            for level, kind, raw in ancillary
            if level == SOL_SOCKET and kind == SCM_RIGHTS
            for at in range(0, len(raw) - len(raw) % _DESCRIPTOR_BYTES, _DESCRIPTOR_BYTES)
        ]
        try:
            if len(data) < 8:
                data += bytes(self._read(8 - len(data)))
            total, length = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
            if length > MAX_HEADER_BYTES or total != length + 4:
                raise FrameError(f"not a reply: total {total}, header {length}")
            reply = loads(bytes(self._read(length)))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        if fds:
            reply["descriptor"] = fds[0]
            for fd in fds[1:]:
                os.close(fd)
        return reply

    def _rest(self, size: int) -> bytearray:
        """The bytes that follow a reply."""
        try:
            return self._read(size)
        except OSError as error:
            self._drop()
            raise _broken(error) from None
        except BaseException:
            self._drop()  # the rest would be taken for the next reply
            raise

    def _read(self, size: int) -> bytearray:
        assert self._sock is not None
        buffer = bytearray(size)
        view, at = memoryview(buffer), 0
        while at < size:
            got = self._sock.recv_into(view[at:])
            if not got:
                raise ConnectionResetError("the connection ended")
            at += got
        return buffer

    # Views that are out.

    def _watch(self, blob_id: str, mapping: mmap.mmap) -> None:
        dropped = self._dropped

        def gone(_: Any) -> None:
            # Runs wherever the last view dies, perhaps in the middle of a request of ours: only note it, unless idle.
            watched.pop(key, None)
            dropped.append(blob_id)
            self._release_if_idle()

        watched = self._watched
        key = f"{blob_id}/{id(mapping)}"
        watched[key] = ref(mapping, gone)

    def _release_if_idle(self) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._sock is not None and self._pid == os.getpid() and not self._busy:
                self._release(self._sock)
        finally:
            self._lock.release()

    def _release(self, sock: _socket.socket) -> None:
        while self._dropped:
            blob_id = self._dropped.pop()
            self._busy = True
            try:
                send_parts(sock, encode_parts(dumps({"t": "release", "blob": blob_id}), ()))
            except OSError:
                return
            finally:
                self._busy = False


def _broken(error: Exception) -> ServiceError:
    return ServiceError(f"The server's lane for large values broke off: {error}. Call again.")
