"""What the steps of builds printed, kept by step: ``logs/<key>``, JSON lines of a time and a text. Blocking."""

from __future__ import annotations

import json
import os
from typing import Iterable

MAX_LINES = 10_000
LINE_CHARS = 2_000


class StepLogs:
    """The logs of one store's steps."""

    def __init__(self, home: str) -> None:
        self._home = os.path.join(home, "logs")
        os.makedirs(self._home, mode=0o700, exist_ok=True)

    def write(self, key: str, lines: Iterable[tuple[float, str]]) -> None:
        """Keep a step's output, in place of an older one. Times in epoch seconds."""
        path = os.path.join(self._home, key)
        with open(path + ".new", "w", encoding="utf-8", errors="replace") as file:
            for at, text in lines:
                file.write(json.dumps([round(at, 3), text[:LINE_CHARS]]) + "\n")
        os.replace(path + ".new", path)

    def read(self, key: str) -> list[tuple[float, str]]:
        """A step's output; nothing is known of a step that another machine made."""
        try:
            with open(os.path.join(self._home, key), encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        except (OSError, ValueError):
            return []
        return [(float(at), str(text)) for at, text in rows]

    def remove(self, key: str) -> None:
        """Forget a step's output."""
        try:
            os.unlink(os.path.join(self._home, key))
        except FileNotFoundError:
            return

    def kept(self) -> list[str]:
        """The steps of which something is kept."""
        return [one for one in os.listdir(self._home) if not one.endswith(".new")]
