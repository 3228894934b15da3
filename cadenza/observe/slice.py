"""What happened to one function in one slice of time: counts, sums and histograms that can be merged. No I/O.

Names within a slice:

=============  ==========================================================================================
``counts``     how inputs ended, by status; ``started`` and ``failed``: containers; ``warm``: starts from the pool
``times``      histograms in seconds: ``queue``, ``run``, ``cold`` (of inputs), ``start`` (of containers)
``sums``       (how many, total, largest, last): samples ``pending``, ``running``, ``containers``, ``creating``;
               usage of one container ``cpu`` (cores), ``memory`` (bytes); seconds ``queue``, ``run``, ``cold``,
               ``start`` and ``phase.<name>``
=============  ==========================================================================================
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Iterable, Mapping

from cadenza.observe import histogram
from cadenza.observe.log import Log

FORMAT = 1
"""Of what `pack` makes, the bounds of `histogram` included."""

_log = Log("cadenza.observe.slice")


@dataclass
class Slice:
    """See the module. Mutable; for one thread."""

    counts: dict[str, int] = field(default_factory=dict)
    times: dict[str, dict[int, int]] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)

    def count(self, name: str, amount: int = 1) -> None:
        """``amount`` more of ``name``."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def sample(self, name: str, value: float) -> None:
        """One sample of a quantity."""
        self._sum(name, 1, value, value, value)

    def durations(self, name: str, seconds: list[float], weight: int = 1) -> None:
        """Durations, each standing for ``weight``."""
        if seconds:
            self._time(name, histogram.counted(seconds, weight))
            self._sum(name, len(seconds) * weight, sum(seconds) * weight, max(seconds), seconds[-1])

    def merge(self, other: Slice) -> None:
        """Add what a later slice of the same function holds."""
        for name, amount in other.counts.items():
            self.count(name, amount)
        for name, counts in other.times.items():
            self._time(name, counts)
        for name, (number, total, most, last) in other.sums.items():
            self._sum(name, number, total, most, last)

    def _time(self, name: str, counts: Mapping[int, int]) -> None:
        mine = self.times.setdefault(name, {})
        for number, count in counts.items():
            mine[number] = mine.get(number, 0) + count

    def _sum(self, name: str, number: float, total: float, most: float, last: float) -> None:
        mine = self.sums.get(name)
        if mine is None:
            self.sums[name] = [number, total, most, last]
        else:
            mine[0] += number
            mine[1] += total
            mine[2] = max(mine[2], most)
            mine[3] = last

    def mean(self, name: str) -> float:
        """The mean of what was sampled; 0 where there was nothing."""
        number, total = self.sums.get(name, (0.0, 0.0))[:2]
        return total / number if number else 0.0

    def most(self, name: str) -> float:
        """The largest sample; 0 where there was none."""
        return self.sums[name][2] if name in self.sums else 0.0

    def last(self, name: str) -> float:
        """The last sample; 0 where there was none."""
        return self.sums[name][3] if name in self.sums else 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing is in it that is worth a row: samples that are all 0 are not."""
        return not self.counts and not self.times and not any(one[2] for one in self.sums.values())


def merged(slices: Iterable[Slice]) -> Slice:
    """All of them as one, in order of time."""
    found = Slice()
    for one in slices:
        found.merge(one)
    return found


def pack(one: Slice) -> bytes:
    """As it is kept."""
    sums = {name: [round(value, 6) for value in values] for name, values in one.sums.items()}
    return zlib.compress(json.dumps([FORMAT, one.counts, one.times, sums], separators=(",", ":")).encode(), 1)


def unpack(body: bytes) -> Slice:
    """What `pack` made. Damaged bytes are an empty slice and a line in the log: a lost minute is no reason to fail."""
    try:
        form, counts, times, sums = json.loads(zlib.decompress(body))
        if form != FORMAT:
            raise ValueError(f"its format is {form!r}, not {FORMAT}")
        return Slice(
            counts, {name: {int(number): count for number, count in one.items()} for name, one in times.items()}, sums
        )
    except (ValueError, TypeError, AttributeError, zlib.error) as error:
        _log.warning("a slice of statistics cannot be read", error=str(error))
        return Slice()
