"""``sys.stdout`` and ``sys.stderr`` of user code: streams whose lines go out tagged with the input that printed them.

A line goes out when it ends, by a newline or by a carriage return (progress bars); what is left of a line goes out on
``flush()`` and when its input ends. After ``flush()`` the agent has it, whatever becomes of the process. Source:
docs/formats/wire.md, frame ``log``.
"""

from __future__ import annotations

import io
import os
import sys

from cadenza.runner import context
from cadenza.runner.outbox import Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIECE_BYTES = 64 << 10


class Bytes(io.BufferedIOBase):
    """The ``.buffer`` of a `Stream`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.raw = self

    name = property(lambda self: self._stream.name)
    mode = "wb"

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._stream.write_bytes(bytes(view))
        return len(view)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        self.flush()


class Stream(io.TextIOBase):
    """One of the two. Any thread may write."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, fd: int, outbox: Outbox) -> None:
        self._fd = fd
        self._outbox = outbox
        self._partial: dict[str, bytearray] = {}
        self._raw = False
        self.buffer = Bytes(self)
        self.name = "<stdout>" if fd == 1 else "<stderr>"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.write_bytes(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        if self._raw:
            _write_all(self._fd, data)
            return
        now = context.current_input()
        input_id, call_id = now if now is not None else ("", "")
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        outbox = self._outbox
        masked = outbox.mask.enter()
        try:
            with outbox.lock:
                partial = self._partial
                before = partial.get(input_id)
                if cut:
                    if before is not None:
                        del partial[input_id]
                        before += data[:cut]
                        self._out(input_id, call_id, before)
                    else:
                        self._out(input_id, call_id, data[:cut] if cut < len(data) else data)
                    if cut < len(data):
                        partial[input_id] = bytearray(data[cut:])
                elif before is None:
                    partial[input_id] = bytearray(data)
                else:
                    before += data
                    if len(before) >= PIECE_BYTES:
                        del partial[input_id]
                        self._out(input_id, call_id, before)
        finally:
            if masked:
                outbox.mask.leave()

    def _out(self, input_id: str, call_id: str, data: Any) -> None:
        if len(data) <= PIECE_BYTES:
            self._outbox.log(self._fd, input_id, call_id, data)
            return
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            self._outbox.log(self._fd, input_id, call_id, view[start : start + PIECE_BYTES])

    def finish(self, input_id: str, call_id: str) -> None:
        """The input has ended: what is left of its last line goes out."""
        if input_id in self._partial:
            with self._outbox.lock:
                left = self._partial.pop(input_id, None)
                if left:
                    self._out(input_id, call_id, left)

    def flush(self) -> None:
        """All that was written is with the agent after this, also if the process dies at once."""
        if self._raw:
            return
        self.end_line()
        if self._outbox.waiting:
            self._outbox.flush()

    def end_line(self) -> None:
        """What is left of the running input's last line is in the outbox after this."""
        if not self._raw and self._partial:
            now = context.current_input()
            masked = self._outbox.mask.enter()
            try:
                self.finish(*(now if now is not None else ("", "")))
            finally:
                if masked:
                    self._outbox.mask.leave()

    def finish_all(self) -> None:
        """Everything that is left, at the end of the process."""
        for input_id in list(self._partial):
            self.finish(input_id, "")

    def after_fork(self) -> None:
        """In a child process: write to the file descriptor, which the agent reads from a pipe."""
        self._raw = True
        self._partial = {}

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def reconfigure(self, **options: Any) -> None:
        """Taken for the sake of programs that call it. These streams are UTF-8 and flush by line whatever is asked."""

    def detach(self) -> Any:
        return self.buffer

    def close(self) -> None:
        self.flush()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class Streams:
    """Both streams, installed as ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.out = Stream(1, outbox)
        self.err = Stream(2, outbox)

    def install(self) -> None:
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[assignment,misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[assignment,misc]

    def finish(self, input_id: str, call_id: str) -> None:
        """All that the input printed is in the outbox after this."""
        self.out.finish(input_id, call_id)
        self.err.finish(input_id, call_id)

    def finish_all(self) -> None:
        self.out.finish_all()
        self.err.finish_all()
        self.outbox.flush()

    def after_fork(self) -> None:
        self.out.after_fork()
        self.err.after_fork()
