"""Everything the runner says while it works, in one order: log lines, generator items, outputs.

Entries gather until somebody flushes: the executor when it has nothing else to do, a writer when `FULL_BYTES` wait,
or a backstop thread `BACKSTOP_S` after the first entry. So many small entries share a frame, and none waits long.
"""

from __future__ import annotations

import time
from _thread import allocate_lock, start_new_thread

from cadenza.runner.wire import Connection, Mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Sequence, Union

    Payload = Union[bytes, bytearray, memoryview]

BACKSTOP_S = 0.01
FULL_BYTES = 64 << 10
FRAME_ENTRIES = 256
FRAME_BYTES = 4 << 20
"""What one frame gathers at most; a single value of up to 1 MiB always fits in besides."""

_LISTS = {"log": "logs", "gen": "items", "out": "outs"}


class Outbox:
    """The only writer of the connection. Any thread may add; what is added first is sent first."""

    def __init__(self, wire: Connection, mask: Mask) -> None:
        self._wire = wire
        self.mask = mask
        self.lock = wire.lock
        self._pending: list[tuple[str, dict[str, Any], Sequence[Payload]]] = []
        self._bytes = 0
        self._sending = False
        self._armed = False
        self._wake: Any = None
        self._log: Any = None
        self.last_sent = 0.0
        self.broken = False

    def log(self, fd: int, input_id: str, call_id: str, data: Payload) -> None:
        """Printed bytes, tagged. Joined to the entry before where the tags are the same."""
        masked = self.mask.enter()
        try:
            with self.lock:
                last = self._log
                if last is not None and last[0] == fd and last[1] == input_id and len(last[2]) < FULL_BYTES:
                    last[2].extend(data)
                    self._bytes += len(data)
                else:
                    kept = bytearray(data)
                    self._log = (fd, input_id, kept)
                    header = {"fd": fd, "i": input_id or None, "c": call_id or None, "time": time.time(), "n": 0}
                    self._add("log", header, [kept])
                if self._bytes >= FULL_BYTES:
                    self._send()
                elif not self._armed:
                    self._arm()
        finally:
            if masked:
                self.mask.leave()

    def put(self, kind: str, header: dict[str, Any], parts: Sequence[Payload], now: bool) -> None:
        """An output (``out``) or an item (``gen``). With ``now`` it is sent before this returns."""
        masked = self.mask.enter()
        try:
            with self.lock:
                self._log = None
                self._add(kind, header, parts)
                if now or self._bytes >= FULL_BYTES:
                    self._send()
                elif not self._armed:
                    self._arm()
        finally:
            if masked:
                self.mask.leave()

    def frame(self, header: dict[str, Any], payloads: Iterable[Payload] = ()) -> None:
        """Any other frame, after all that waits."""
        masked = self.mask.enter()
        try:
            with self.lock:
                self._send()
                if not self.broken:
                    self._wire.send(header, payloads)
        finally:
            if masked:
                self.mask.leave()

    def flush(self) -> None:
        """Send all that waits."""
        masked = self.mask.enter()
        try:
            with self.lock:
                self._send()
        finally:
            if masked:
                self.mask.leave()

    @property
    def waiting(self) -> bool:
        return bool(self._pending)

    def _add(self, kind: str, header: dict[str, Any], parts: Sequence[Payload]) -> None:
        self._pending.append((kind, header, parts))
        self._bytes += sum(map(len, parts)) + 64

    def _arm(self) -> None:
        self._armed = True
        if self._wake is None:
            self._wake = allocate_lock()
            self._wake.acquire()
            start_new_thread(self._backstop, ())
        self._wake.release()

    def _backstop(self) -> None:
        while True:
            self._wake.acquire()
            time.sleep(BACKSTOP_S)
            with self.lock:
                self._armed = False
                self._send()

    def _send(self) -> None:
        # A destructor that prints may come in here from inside; what it adds is sent by the loop that runs.
        if self._sending or not self._pending:
            return
        self._sending = True
        try:
            while self._pending and not self.broken:
                pending, self._pending = self._pending, []
                self._bytes, self._log = 0, None
                self._frames(pending)
        except OSError:
            # The agent is gone; the reader of the connection sees it too, and ends the process.
            self.broken = True
            self._pending = []
        finally:
            self._sending = False
            self.last_sent = time.monotonic()

    def _frames(self, pending: list[tuple[str, dict[str, Any], Sequence[Payload]]]) -> None:
        start = 0
        while start < len(pending):
            kind = pending[start][0]
            headers: list[dict[str, Any]] = []
            parts: list[Payload] = []
            size = 0
            while start < len(pending) and pending[start][0] == kind:
                _, header, values = pending[start]
                length = sum(map(len, values))
                if headers and (size + length > FRAME_BYTES or len(headers) >= FRAME_ENTRIES):
                    break
                header["n"] = length
                headers.append(header)
                parts += values
                size += length
                start += 1
            self._wire.send({"t": kind, _LISTS[kind]: headers}, parts)

    def after_fork(self) -> None:
        """In a child process: this connection is the parent's, and so is a thread that held the lock."""
        self.lock = self._wire.lock = type(self.lock)()
        self.broken = True
        self._pending = []
        self._wake, self._armed = None, True
