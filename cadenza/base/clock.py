"""The clock as an argument: the machine's own, and one that tests turn by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the present comes from. Both readings are seconds as floats."""

    def now(self) -> float:
        """Seconds since the Unix epoch. May jump; use it for what people read and for what survives a restart."""

    def monotonic(self) -> float:
        """Seconds that never go back. Use it for durations within one process."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward and return the new reading. Going back is a ValueError."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._now += seconds
        return self._now
