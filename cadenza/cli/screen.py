"""What a person at a terminal sees of a run: a spinner while something is prepared, then the app's own output.

An `OutputSink` of the SDK. The spinner is on standard error and is taken away before any line is printed, so that
standard output holds the program's and the app's output only.
"""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.status import Status
from rich.text import Text

from cadenza.protocol.methods import LogEntry
from cadenza.protocol.nodes import BuildLine


BAR_COLUMNS = 30


def bar(name: str, done: int, total: int | None, width: int) -> str:
    """A map's progress in one line of at most ``width`` columns."""
    if total is None:
        return f"{name}: {done:,} done"[:width]
    filled = BAR_COLUMNS * done // max(1, total)
    return f"{name} [{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] {done:,} of {total:,}"[:width]


class Screen:
    """Phases and builds as they move, logs as they come. Used from the background loop's thread."""

    def __init__(self, timestamps: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._timestamps = timestamps
        self._status: Status | None = None
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._half_line = False
        self._has_bar = False

    def _spin(self, text: str) -> None:
        shown = text if len(text) <= 100 else text[:97] + "..."
        if self._status is None:
            self._status = self._console.status(Text(shown), spinner="dots")
            self._status.start()
        else:
            self._status.update(Text(shown))

    def _still(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def phase(self, text: str) -> None:
        """A new part of the work begins."""
        with self._lock:
            self._spin(text)

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        """Source files on their way."""
        with self._lock:
            self._spin(f"Sending source files: {done_bytes / 2**20:.1f} of {total_bytes / 2**20:.1f} MiB")

    def build_line(self, image_id: str, line: BuildLine) -> None:
        """A build's progress: its steps stay, its log lines pass by."""
        with self._lock:
            if line.kind == "log":
                text = line.text.strip()
                if text:
                    self._spin(f"  {text}")
            elif line.kind == "step":
                self._console.print(Text(f"[{line.step}/{line.steps}] {line.text}", style="bold"))
                self._spin(f"Building image, step {line.step} of {line.steps}")

    def finished(self, text: str) -> None:
        """Everything is prepared."""
        with self._lock:
            self._still()
            took_s = time.monotonic() - self._began
            self._console.print(Text.assemble(("✓ ", "green"), text, (f"  {took_s:.1f} s", "dim")))

    def function_status(self, name: str, waiting: int, running: int, containers: int) -> None:
        """How a function does, while nothing else is said."""

    def map_progress(self, name: str, done: int, total: int | None, over: bool) -> None:
        """A bar on the terminal's last line. Written by hand: rich would redirect the program's own output while it
        shows one. The cursor stays at the line's begin, so that what is printed next takes the bar's place."""
        with self._lock:
            if not self._console.is_terminal or self._status is not None:
                return
            width = max(20, self._console.width - 1)
            text = "" if over else bar(name, done, total, width)
            sys.stderr.write(f"\r\x1b[K{text}\r" if text else "\r\x1b[K")
            sys.stderr.flush()
            self._has_bar = not over

    def _no_bar(self) -> None:
        if self._has_bar:
            self._has_bar = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def log(self, entry: LogEntry, text: str) -> None:
        """The app's own words: stdout to stdout; stderr to stderr; the platform's dimmed."""
        with self._lock:
            self._still()
            self._no_bar()
            if self._timestamps and not self._half_line:
                stamp = time.strftime("%H:%M:%S ", time.localtime(entry.time))
                text = "".join(stamp + one for one in text.splitlines(True))
            self._half_line = not text.endswith("\n")
            stream = sys.stdout if entry.fd == 1 else sys.stderr
            if entry.fd == 0:
                self._console.print(Text(text.rstrip("\n"), style="dim"))
                return
            stream.write(text)
            stream.flush()

    def dropped(self, size_bytes: int) -> None:
        """Logs came faster than they could be shown."""
        with self._lock:
            self._console.print(Text(f"[{size_bytes} bytes of logs were left out: they came too fast]", style="yellow"))

    def close(self) -> None:
        """Leave the terminal as it was."""
        with self._lock:
            self._still()
            self._no_bar()
