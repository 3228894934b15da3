"""The seam for what may forbid work that could be done: a budget. Asked before a start and before inputs are given."""

from __future__ import annotations

from typing import Protocol, Sequence

from cadenza.base.resources import Gpu
from cadenza.scheduling.states import ContainerState, FunctionState


class Admission(Protocol):
    """Each answer that allows something commits to it; a reason, in words for people, forbids it for now.

    What is forbidden is asked for again when a container of the app is gone, and after `ASKED_AGAIN_S`. ``now``:
    monotonic seconds. No method blocks or raises.
    """

    def covers(self, function: FunctionState) -> bool:
        """Whether a function's work is paid for: then nothing is handed to its containers before it can begin."""

    def start(self, container_id: str, function: FunctionState, gpus: Sequence[Gpu], now: float) -> str:
        """Whether a container may start: empty, or why not."""

    def give(self, container: ContainerState, now: float) -> str:
        """Whether a container may be given inputs that run from now on to their timeout: empty, or why not."""

    def idle(self, container: ContainerState, now: float) -> None:
        """Nothing runs in a container any more."""

    def gone(self, container_id: str, now: float) -> None:
        """A container is gone."""


ASKED_AGAIN_S = 1.0
