"""``cadenza run -i``: when a container asks for a terminal, it gets this one, and logs wait meanwhile.

A container asks by a line of the system's log that begins with `cadenza.runner.terminal.WAITS`; it is connected by
running `cadenza.runner.terminal.relay_argv` in it. One container at a time has the terminal; others wait their turn.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any

from cadenza.protocol.methods import LogEntry

MAX_HELD_BYTES = 8 << 20
"""Of logs that came while a container had the terminal; of more, the oldest are left out."""


class Interactive:
    """A sink around another one. Its ``log`` is called on the background loop, so relays have a thread of their own."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._asking: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy = 0
        """Containers that have the terminal or wait for it."""
        self._held: deque[tuple[LogEntry, str]] = deque()
        self._held_bytes = 0
        self._dropped_bytes = 0
        from cadenza.cli import terminal

        if threading.current_thread() is threading.main_thread():
            terminal.watch_size()
        threading.Thread(target=self._relays, name="terminal", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def log(self, entry: LogEntry, text: str) -> None:
        """Shown now, or kept until the terminal is free."""
        from cadenza.runner.terminal import WAITS

        with self._lock:
            if entry.fd == 0 and text.startswith(WAITS):
                self._busy += 1
                self._asking.put(entry.container_id)
                return
            if self._busy:
                self._hold(entry, text)
                return
        self._inner.log(entry, text)

    def _hold(self, entry: LogEntry, text: str) -> None:
        self._held.append((entry, text))
        self._held_bytes += len(text)
        while self._held_bytes > MAX_HELD_BYTES:
            gone = len(self._held.popleft()[1])
            self._held_bytes -= gone
            self._dropped_bytes += gone

    def _relays(self) -> None:
        while True:
            container_id = self._asking.get()
            if container_id is None:
                return
            self._relay(container_id)
            with self._lock:
                self._busy -= 1
                held, dropped = self._held, self._dropped_bytes
                if self._busy:
                    continue
                self._held, self._held_bytes, self._dropped_bytes = deque(), 0, 0
                if dropped:
                    self._inner.dropped(dropped)
                for one in held:
                    self._inner.log(*one)

    def _relay(self, container_id: str) -> None:
        from cadenza.base.errors import Error
        from cadenza.cli import show, terminal
        from cadenza.runner.terminal import relay_argv

        self._inner.finished(f"Connected with {container_id}")
        try:
            terminal.run_in_container(terminal.command(container_id, tuple(relay_argv()), True))
        except Error as error:
            show.failure(error)

    def close(self) -> None:
        """No more relays; what is held is shown."""
        self._asking.put(None)
        self._inner.close()
