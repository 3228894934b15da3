"""What the server counts of a function."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FunctionCurrentStats:
    """What is under way now. ``input_headroom``: how many more inputs the present containers could run at once."""

    backlog: int
    num_total_runners: int
    num_running_inputs: int = 0
    input_headroom: int = 0
