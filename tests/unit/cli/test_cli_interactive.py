"""Logs wait while a container has the terminal. Source: semantics.md section 23."""

from __future__ import annotations

import threading
from typing import Any

from cadenza.cli import interactive, terminal
from cadenza.protocol.methods import LogEntry
from cadenza.runner.terminal import WAITS


class Shown:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.seven = threading.Event()

    def log(self, entry: LogEntry, text: str) -> None:
        self.said.append(text)
        if text == "7":
            self.seven.set()

    def finished(self, text: str) -> None:
        self.said.append(text)

    def dropped(self, size_bytes: int) -> None:
        self.said.append(f"dropped {size_bytes}")

    def close(self) -> None:
        self.said.append("closed")


def entry(fd: int, container_id: str = "ta-1") -> LogEntry:
    return LogEntry(0.0, fd, 1, "ap-1", container_id)


def test_one_container_at_a_time(monkeypatch) -> None:
    asked: list[Any] = []
    doors = [threading.Event(), threading.Event()]
    inside = [threading.Event(), threading.Event()]

    def relay(request: Any) -> int:
        number = len(asked)
        asked.append(request)
        inside[number].set()
        assert doors[number].wait(10)
        return 0

    monkeypatch.setattr(terminal, "run_in_container", relay)
    monkeypatch.setattr(terminal, "watch_size", lambda: None)
    shown = Shown()
    sink = interactive.Interactive(shown)
    sink.log(entry(1), "1")
    sink.log(entry(0), "another line of the system")
    sink.log(entry(0, "ta-1"), f"{WAITS}: ...\n")
    sink.log(entry(0, "ta-2"), f"{WAITS}: ...\n")
    assert inside[0].wait(10)
    sink.log(entry(1), "2")
    doors[0].set()
    assert inside[1].wait(10)
    assert [one.container_id for one in asked] == ["ta-1", "ta-2"] and asked[0].pty
    sink.log(entry(2), "7")
    assert "2" not in shown.said
    doors[1].set()
    assert shown.seven.wait(10)
    assert [one for one in shown.said if not one.startswith("Connected")] == [
        "1",
        "another line of the system",
        "2",
        "7",
    ]
    sink.close()
    assert shown.said[-1] == "closed"
