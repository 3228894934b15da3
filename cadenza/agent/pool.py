"""Which warm generic containers to make and which to end. Pure.

A warm container has booted its runner and has no function; the next start that matches its image, its isolation and its
network takes it, so that only import and enter are left of the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

MAX_IMAGES = 2
"""For how many images warm containers are kept: those used last."""
UNUSED_LIMIT_S = 300.0
"""After so long without a start of its image, warm containers of it end."""


@dataclass(frozen=True)
class Kind:
    """What must match for a start to take a warm container."""

    image_id: str
    isolation: str


@dataclass(frozen=True)
class Plan:
    """What to do now: kinds to make one container of each, and ids of cells to end."""

    make: tuple[Kind, ...] = ()
    end: tuple[str, ...] = ()


def kept(used: Mapping[Kind, float], images: Sequence[str], now: float) -> list[Kind]:
    """The kinds worth a warm container: used within `UNUSED_LIMIT_S`, of an image in use; last used first."""
    fresh = [kind for kind, at in used.items() if now - at < UNUSED_LIMIT_S and kind.image_id in images]
    fresh.sort(key=lambda kind: -used[kind])
    found: list[Kind] = []
    for kind in fresh:
        chosen = {one.image_id for one in found}
        if kind.image_id in chosen or len(chosen) < MAX_IMAGES:
            found.append(kind)
    return found


def plan(
    used: Mapping[Kind, float], images: Sequence[str], warm: Mapping[str, Kind], per_kind: int, busy: bool, now: float
) -> Plan:
    """What the pool lacks and what it has too much of.

    ``used``: when a kind was last asked for; ``warm``: the generic cells, booting ones too, oldest first; ``busy``:
    starts that somebody waits for are under way, so nothing is made now.
    """
    wanted = kept(used, images, now) if per_kind > 0 else []
    counts: dict[Kind, int] = dict.fromkeys(wanted, 0)
    end = []
    for cell_id, kind in warm.items():
        if counts.get(kind, per_kind) >= per_kind:
            end.append(cell_id)
        else:
            counts[kind] += 1
    make = [] if busy else [kind for kind in wanted if counts[kind] < per_kind]
    return Plan(tuple(make[:1]), tuple(end))
