"""Counters and gauges of this process, by name: plain numbers in a dictionary."""

from __future__ import annotations

from collections import Counter
from typing import Callable

MAX_NAMES = 1_000
"""More names than this is a mistake: names never carry ids."""


class Metrics:
    """What has been counted since the process began. For one thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._gauges: dict[str, Callable[[], float]] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` more of ``name``."""
        if name not in self._counts and len(self._counts) >= MAX_NAMES:
            raise ValueError(f"more than {MAX_NAMES} metric names; does {name!r} carry an id?")
        self._counts[name] += amount

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """A number that is read when somebody asks."""
        self._gauges[name] = read

    def read(self) -> dict[str, float]:
        """Everything, by name."""
        return {**self._counts, **{name: one() for name, one in self._gauges.items()}}
