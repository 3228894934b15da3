"""What the steps of builds printed, kept by step: ``logs/<key>``, a JSON line with the step's words and a line of
``[time, text]`` for each line. Of an image whose build failed, ``logs/<image id>`` names its steps. Blocking.
"""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Sequence

MAX_LINES = 10_000
MAX_CHARS = 4_000_000
"""Of a step's output the last so many lines, and characters, are kept."""
LINE_CHARS = 2_000


class StepLogs:
    """The logs of one store's steps. A disk that is full keeps none: the error of the step says it."""

    def __init__(self, home: str) -> None:
        self._home = os.path.join(home, "logs")
        os.makedirs(self._home, mode=0o700, exist_ok=True)

    def write(self, key: str, step: str, lines: Iterable[tuple[float, str]]) -> None:
        """Keep a step's output, in place of an older one. Times in epoch seconds."""
        self._write(key, [step, *([round(at, 3), text[:LINE_CHARS]] for at, text in lines)])

    def _write(self, name: str, rows: Iterable[Any]) -> None:
        path = os.path.join(self._home, name)
        try:
            with open(path + ".new", "w", encoding="utf-8", errors="replace") as file:
                for row in rows:
                    file.write(json.dumps(row) + "\n")
            os.replace(path + ".new", path)
        except OSError:
            return

    def _read(self, name: str) -> list[Any]:
        try:
            with open(os.path.join(self._home, name), encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except (OSError, ValueError):
            return []

    def read(self, key: str) -> tuple[str, list[tuple[float, str]]]:
        """A step's words and its output; nothing is known of a step that another machine made."""
        rows = self._read(key)
        return (str(rows[0]), [(float(at), str(text)) for at, text in rows[1:]]) if rows else ("", [])

    def note_failed(self, image_id: str, keys: Sequence[str]) -> None:
        """Remember the steps of an image whose build failed."""
        self._write(image_id, keys)

    def failed(self, image_id: str) -> list[str]:
        """The steps of an image whose build failed; none: nothing is known of it."""
        return [str(one) for one in self._read(image_id)]

    def remove(self, name: str) -> None:
        """Forget a step's output, or an image's steps."""
        try:
            os.unlink(os.path.join(self._home, name))
        except FileNotFoundError:
            return

    def kept(self, before: float) -> list[str]:
        """What was last written before that time (epoch seconds): names for `remove`."""
        with os.scandir(self._home) as entries:
            return [one.name for one in entries if one.stat().st_mtime < before]
