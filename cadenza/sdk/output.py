"""What a user sees of a run: `enable_output`, and the interface behind it. Source: semantics.md sections 23 and 26.

An `OutputSink` takes what happens: phases of publishing, lines of image builds, logs. `PlainSink` is the
one for files, pipes and programs; ``cadenza run`` installs its own for terminals. Nothing is shown where none is
installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Iterator, Optional, Protocol, TextIO

from cadenza.base.errors import Error

if TYPE_CHECKING:
    from cadenza.protocol.methods import LogEntry
    from cadenza.protocol.nodes import BuildLine
    from cadenza.sdk.client import Client

SYSTEM, STDOUT, STDERR = 0, 1, 2
"""Where a log entry comes from: `LogEntry.fd`."""
MAP_PROGRESS_S = 0.2
"""The shortest time between two words about a map's progress."""
FOLLOW_AGAIN_S = 0.5
"""How long to wait before the logs are asked for again when the connection broke."""


class OutputSink(Protocol):
    """Takes what happens. Called on the background loop's thread; must not block for long and must not raise."""

    def phase(self, text: str) -> None:
        """A new part of the work begins."""

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        """How much of the source files has been sent."""

    def build_line(self, image_id: str, line: BuildLine) -> None:
        """Something happened in an image's build."""

    def finished(self, text: str) -> None:
        """The phases are over; ``text`` says what was achieved."""

    def function_status(self, name: str, waiting: int, running: int, containers: int) -> None:
        """How a function does: its inputs that wait and run, and its containers."""

    def map_progress(self, name: str, done: int, total: Optional[int], over: bool) -> None:
        """How many inputs of a map of a function are done, of how many if that is known; ``over``: it has ended."""

    def log(self, entry: LogEntry, text: str) -> None:
        """Output of the app: whole lines, or a part that ends in ``\\r``."""

    def dropped(self, size_bytes: int) -> None:
        """So much of the logs was left out because it came faster than it could be shown."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainSink:
    """Lines as they come: the app's own output to stdout and stderr, everything else to stderr."""

    def __init__(
        self,
        show_progress: bool = True,
        stdout: Optional[TextIO] = None,
        stderr: Optional[TextIO] = None,
        timestamps: bool = False,
    ) -> None:
        self._timestamps = timestamps
        self._half_line = False
        self._building = ""
        """The image whose step was begun last: its lines need no mark."""
        self._show_progress = show_progress
        self._stdout = stdout
        self._stderr = stderr
        self._lock = threading.Lock()

    def _write(self, stream: Optional[TextIO], text: str) -> None:
        if stream is None:
            return
        with self._lock:
            try:
                try:
                    stream.write(text)
                except UnicodeEncodeError:
                    encoding = stream.encoding or "ascii"
                    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
                stream.flush()
            except (OSError, ValueError):
                pass  # closed, or nobody reads: the program itself finds out

    def _say(self, text: str) -> None:
        if self._show_progress:
            self._write(self._stderr or sys.stderr, text + "\n")

    def phase(self, text: str) -> None:
        self._say(text)

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        if done_bytes >= total_bytes > 0:
            size = f"{total_bytes / 2**20:.1f} MiB" if total_bytes >= 1 << 20 else f"{max(1, total_bytes >> 10)} KiB"
            self._say(f"Sent {size} of source files")

    def build_line(self, image_id: str, line: BuildLine) -> None:
        if line.kind == "log":
            mark = "" if image_id == self._building else f"[{image_id[:9]}] "
            self._say(mark + line.text.rstrip("\n"))
        elif line.kind == "step":
            self._building = image_id
            self._say(f"[{image_id[:9]}] step {line.step} of {line.steps}: {line.text}")

    def finished(self, text: str) -> None:
        self._say(text)

    def function_status(self, name: str, waiting: int, running: int, containers: int) -> None:
        pass  # a moving picture: only for terminals

    def map_progress(self, name: str, done: int, total: Optional[int], over: bool) -> None:
        pass

    def log(self, entry: LogEntry, text: str) -> None:
        if self._timestamps:
            text = self._stamped(entry.time, text)
        if entry.fd == STDOUT:
            self._write(self._stdout or sys.stdout, text)
        else:
            self._write(self._stderr or sys.stderr, text)

    def _stamped(self, when: float, text: str) -> str:
        """Each line with its local time; what goes on an unfinished line has it already."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S ", time.localtime(when))
        begun, self._half_line = self._half_line, not text.endswith(("\n", "\r"))
        lines = text.splitlines(True)
        return "".join(one if begun and not number else stamp + one for number, one in enumerate(lines))

    def dropped(self, size_bytes: int) -> None:
        self._write(self._stderr or sys.stderr, f"[{size_bytes} bytes of logs were left out: they came too fast]\n")

    def close(self) -> None:
        pass


_installed: list[OutputSink] = []


def current() -> Optional[OutputSink]:
    """The sink in force; None where output is not enabled."""
    return _installed[-1] if _installed else None


def install(sink: OutputSink) -> None:
    """From now on ``sink`` takes what happens, until `remove`."""
    _installed.append(sink)


def remove(sink: OutputSink) -> None:
    """The sink that was in force before is so again. No error if ``sink`` is not installed."""
    if sink in _installed:
        _installed.remove(sink)


@contextlib.contextmanager
def enable_output(show_progress: bool = True) -> Iterator[None]:
    """Show image builds, progress and logs of the apps that run inside the ``with`` block. Off by default in scripts.

    ``show_progress=False`` shows the app's own output only. Where output is shown already, nothing changes.
    """
    if _installed:
        yield
        return
    sink = PlainSink(show_progress)
    install(sink)
    try:
        yield
    finally:
        remove(sink)
        sink.close()


class MapProgress:
    """Tells a sink how far a map is, at most five times a second. Lives on the background loop."""

    def __init__(self, sink: OutputSink, name: str) -> None:
        self._sink = sink
        self._name = name
        self._next_s = 0.0

    def at(self, done: int, total: Optional[int]) -> None:
        """So many inputs are done."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._next_s:
            self._next_s = now_s + MAP_PROGRESS_S
            self._sink.map_progress(self._name, done, total, False)

    def over(self, done: int, total: Optional[int]) -> None:
        """The map has ended."""
        if self._next_s:
            self._sink.map_progress(self._name, done, total, True)


class Follower:
    """Hands an app's logs to a sink while it runs. Lives on the background loop."""

    def __init__(self, client: Client, app_id: str, sink: OutputSink) -> None:
        self._client = client
        self._app_id = app_id
        self._sink = sink
        self._last_time = 0.0
        self._last: list[tuple[str, int, str]] = []
        """What was shown of that very time: `LogQuery.since` includes it, so these come again after a reconnect."""
        self._again: list[tuple[str, int, str]] = []
        self._task: Optional[asyncio.Task[None]] = None

    def start(self) -> None:
        """Begin. Logs from the app's start on are shown."""
        self._task = asyncio.ensure_future(self._follow())

    async def end(self, patience_s: float) -> None:
        """The app was told to stop: show what is left, for at most ``patience_s``."""
        task, self._task = self._task, None
        if task is None:
            return
        await asyncio.wait([task], timeout=patience_s)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)

    async def _follow(self) -> None:
        from cadenza.base.errors import ClientClosed, NotFoundError, ServiceError
        from cadenza.protocol.methods import LogQuery

        while True:
            self._again = list(self._last)
            query = LogQuery(app=self._app_id, since=self._last_time, follow=True)
            try:
                stream = await self._client._stream("log.read", query)
                try:
                    while True:
                        item = await stream.receive()
                        if item is None:
                            return
                        self._show(item[0], item[1])
                finally:
                    stream.cancel()
            except (NotFoundError, ClientClosed):
                return
            except ServiceError:
                await asyncio.sleep(FOLLOW_AGAIN_S)
            except Error as error:
                print(f"cadenza: the app's logs cannot be shown: {error}", file=sys.stderr)
                return

    def _show(self, body: dict[str, Any], payload: bytes) -> None:
        from cadenza.protocol.methods import LogBatch
        from cadenza.protocol.plain import from_plain

        batch = from_plain(LogBatch, body)
        if batch.dropped_bytes:
            self._sink.dropped(batch.dropped_bytes)
        offset = 0
        for entry in batch.entries:
            text = payload[offset : offset + entry.size].decode("utf-8", "replace")
            offset += entry.size
            key = (entry.container_id, entry.fd, text)
            if entry.time == self._last_time and key in self._again:
                self._again.remove(key)
                continue
            if entry.time > self._last_time:
                self._last_time, self._last = entry.time, []
            if entry.time == self._last_time:
                self._last.append(key)
            self._sink.log(entry, text)
