"""What the lazy mount's supervisor and its worker say to each other: frames (docs/formats/lazy.md) on a socket."""

from __future__ import annotations

import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Optional, Sequence

from cadenza.protocol import frame

RETRY, PASSTHROUGH, CACHED = "retry", "passthrough", "cached"
MODES = (RETRY, PASSTHROUGH, CACHED)
"""How content that has come reaches the reader, the best first: docs/formats/lazy.md, "Ways"."""

KNOWN_TREES = 4
"""Of so many trees, the latest that containers were given, a worker knows which files lie beside each other."""


@dataclass(frozen=True)
class Trial:
    """An object of no store, to see how the kernel takes answers: it appears at ``path`` when it is asked for."""

    digest: bytes
    path: str
    content: bytes


class Link:
    """The socket to the supervisor: frames of docs/formats/wire.md. Sending is thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = frame.Decoder()
        self._frames: deque[tuple[bytes, bytes]] = deque()
        self._lock = threading.Lock()

    def send(self, header: dict[str, Any]) -> None:
        """Say something. Nothing happens when nobody listens: the reader will see it."""
        with self._lock:
            try:
                self._sock.sendall(frame.encode(header))
            except OSError:
                return

    def receive(self) -> Optional[tuple[dict[str, Any], bytes]]:
        """The next frame, header and payload; None: the supervisor is gone. Blocking."""
        while not self._frames:
            try:
                data = self._sock.recv(256 << 10)
            except OSError:
                return None
            if not data:
                return None
            self._frames.extend(self._decoder.feed(data))
        header, payload = self._frames.popleft()
        return frame.loads(header), payload


def pack_wanted(wanted: Sequence[tuple[bytes, int]]) -> bytes:
    """``(data, size)`` of each object as bytes: u8 length, data, i64 size."""
    return b"".join(bytes((len(data),)) + data + size.to_bytes(8, "big", signed=True) for data, size in wanted)


def unpack_wanted(payload: bytes) -> list[tuple[bytes, int]]:
    """What `pack_wanted` made bytes of."""
    found = []
    at = 0
    while at < len(payload):
        end = at + 1 + payload[at]
        found.append((payload[at + 1 : end], int.from_bytes(payload[end : end + 8], "big", signed=True)))
        at = end + 8
    return found
