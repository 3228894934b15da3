"""How long the parts of a start took: `cadenza.protocol.nodes.PHASES`, together the time from demand to readiness."""

from __future__ import annotations

from typing import Optional

from cadenza.base.clock import Clock
from cadenza.protocol.nodes import ContainerSpec


class Phases:
    """One container's. What passed since the last mark belongs to the phase that is marked, so that nothing is lost."""

    def __init__(self, clock: Clock, spec: Optional[ContainerSpec]) -> None:
        self.found: dict[str, float] = {}
        """Phase to seconds, as far as it got."""
        self._clock = clock
        self._boundary = clock.now()
        if spec is not None:
            self.begin(spec)

    def begin(self, spec: ContainerSpec) -> None:
        """It is this container from here on: what it was before is nobody's time."""
        now = self._clock.now()
        placed = spec.placed_at or now
        self.found = {"queued": max(0.0, placed - spec.wanted_at) if spec.wanted_at else 0.0}
        self._boundary = placed

    def adopt(self, spec: ContainerSpec) -> None:
        """The same for one that was made before anybody wanted it."""
        self.begin(spec)
        self.mark("placed")
        self.found.update(network=0.0, rootfs=0.0, create=0.0, boot=0.0)

    def mark(self, phase: str) -> None:
        """End a phase here."""
        now = self._clock.now()
        self.found[phase] = self.found.get(phase, 0.0) + max(0.0, now - self._boundary)
        self._boundary = now

    def ready(self, enter_s: float) -> None:
        """End the last two: ``enter_s`` of what passed were enter hooks, by the runner's word, the rest the import."""
        now = self._clock.now()
        self.found["enter"] = min(max(0.0, enter_s), max(0.0, now - self._boundary))
        self._boundary += self.found["enter"]
        self.mark("import")
