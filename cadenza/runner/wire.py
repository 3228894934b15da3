"""Frames over a unix socket, for a process whose main thread is the only reader and any of whose threads may write.

JSON goes through the C scanner and encoder directly: the ``json`` package pulls in ``re``, which is a third of a
runner's boot.
"""

from __future__ import annotations

import _socket
from _thread import RLock, get_ident

from cadenza.protocol.frame import Decoder, FrameError, encode_parts


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Optional, Union

    Payload = Union[bytes, bytearray, memoryview]

MSG_DONTWAIT = 0x40
READ_BYTES = 256 << 10
SEND_PARTS = 512
"""How many pieces one ``sendmsg`` takes at most; the kernel's limit is 1024."""


def _scanner() -> Callable[[str], Any]:
    try:
        import _json

        class Options:
            strict = True
            object_hook = None
            object_pairs_hook = None
            parse_float = float
            parse_int = int
            parse_constant = float
            memo: dict[str, str] = {}

        scan: Any = _json.make_scanner(Options())  # type: ignore[arg-type]

        def loads(text: str) -> Any:
            value, end = scan(text, 0)
            if end != len(text):
                raise ValueError("more than one value")
            return value

        loads('{"a":[1,2.5,null,"b"]}')
        return loads
    except Exception:  # pragma: no cover - another interpreter's json is slower to import and as good
        import json

        return json.loads


def _encoder() -> Callable[[Any], str]:
    try:
        import _json

        def refuse(value: Any) -> Any:
            raise TypeError(f"{type(value).__name__} is not JSON")

        encode = _json.make_encoder(None, refuse, _json.encode_basestring, None, ":", ",", False, False, True)

        def dumps(value: Any) -> str:
            return "".join(encode(value, 0))

        dumps({"a": [1, 2.5, None, "b"]})
        return dumps
    except Exception:  # pragma: no cover
        import json

        return json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


_loads = _scanner()
_dumps = _encoder()


def loads(raw: bytes) -> dict[str, Any]:
    """A header as a dictionary. `FrameError` when it is not a JSON object."""
    try:
        header = _loads(raw.decode())
    except (ValueError, StopIteration, RecursionError) as error:
        raise FrameError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("the header is not a JSON object")
    return header


def dumps(header: dict[str, Any]) -> bytes:
    """A header as compact UTF-8 JSON."""
    return _dumps(header).encode("utf-8", "backslashreplace")


class Mask:
    """Keeps a cancellation out of the runner's own critical sections on the main thread.

    A signal's handler that finds ``depth`` above 0 sets ``poked`` and returns; leaving the section then calls
    ``action``, which may raise. Only the main thread touches it.
    """

    def __init__(self) -> None:
        self.main = get_ident()
        self.depth = 0
        self.poked = False
        self.action: Callable[[], None] = lambda: None

    def enter(self) -> bool:
        """True on the main thread: then `leave` must follow."""
        if get_ident() != self.main:
            return False
        self.depth += 1
        return True

    def leave(self) -> None:
        self.depth -= 1
        if self.poked and not self.depth:
            self.poked = False
            self.action()


class Connection:
    """One framed connection over a connected stream socket."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.lock = RLock()
        self._decoder = Decoder()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self.closed = False

    @classmethod
    def open(cls, path: str) -> Connection:
        """Connect to the unix socket at ``path``; OSError when nobody listens."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def send(self, header: Union[bytes, dict[str, Any]], payloads: Iterable[Payload] = ()) -> None:
        """Send one frame and return when the kernel has it. OSError when the peer is gone."""
        raw = header if isinstance(header, bytes) else dumps(header)
        parts = encode_parts(raw, payloads)
        with self.lock:
            send_parts(self.sock, parts)

    def receive(self, wait: bool = True) -> Optional[list[tuple[dict[str, Any], bytes]]]:
        """The frames that are whole now; with ``wait`` at least one. None when the peer has closed."""
        frames: list[tuple[dict[str, Any], bytes]] = []
        while not self.closed:
            try:
                got = self.sock.recv_into(self._buffer, 0, 0 if wait and not frames else MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                got = 0
            if not got:
                self.closed = True
                break
            frames.extend((loads(head), payload) for head, payload in self._decoder.feed(self._buffer[:got]))
            if got < READ_BYTES and (frames or not wait):
                break
        if not frames and self.closed:
            return None
        return frames


def send_parts(sock: _socket.socket, parts: list[Payload], ancillary: Any = ()) -> None:
    """Write all of ``parts``; ``ancillary`` goes with the first byte. Small ones go as one piece."""
    if not ancillary:
        total = sum(map(len, parts))
        if total <= 1 << 16:
            sock.sendall(b"".join(parts))
            return
    views = [memoryview(one).cast("B") for one in parts if len(one)]
    first = 0
    while first < len(views):
        if ancillary:
            sent = sock.sendmsg(views[first : first + SEND_PARTS], ancillary)
            ancillary = ()
        else:
            sent = sock.sendmsg(views[first : first + SEND_PARTS])
        while sent:
            size = len(views[first])
            if sent < size:
                views[first] = views[first][sent:]
                break
            sent -= size
            first += 1
