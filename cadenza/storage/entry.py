"""What the queue keeps: a call's record, an input that is not finished, an output. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.calls import BlobRef


@dataclass
class CallRecord:
    """A call as it is kept. Times are epoch seconds."""

    call_id: str
    function_id: str
    app_id: str
    kind: str
    attached: bool
    """Whether it ends with its caller."""
    caller: str = ""
    parent_input_id: str = ""
    created_at: float = 0.0
    inputs: int = 0
    """How many inputs it has had so far."""
    total: Optional[int] = None
    cancelled: bool = False
    method: str = ""
    """Which method of a class."""


@dataclass(eq=False)
class Entry:
    """One input that is not finished. The control plane's copy; the queue keeps what it is told of it.

    ``fence`` is the number of the newest attempt: it grows with each lease, and only its holder may give the output.
    """

    seq: int
    """Order of arrival; the queue's own key."""
    input_id: str
    call_id: str
    index: int
    function_id: str
    attached: bool
    data: bytes = b""
    blob: Optional[BlobRef] = None
    fence: int = 0
    ready_at: float = 0.0
    """Epoch seconds from which it may run."""
    retries: int = 0
    """Failures that were charged to it and tried again."""
    losses: int = 0
    """Attempts that the platform lost; they cost no retries."""
    container_id: str = ""
    attempts: int = 0
    """Runs since it was last taken from the table."""
    fresh: bool = False
    """Put and leased in one write: the first attempt uses the fence that is there."""
    returned: bool = False
    """It was given out, came back without a run, and waits at the front."""
    done: bool = False
    """Its output is decided: nothing may lease it again."""
    since: float = 0.0
    """Monotonic seconds at which it began to wait; the engine's."""
    method: str = ""
    """Which method of a class; empty for a function."""
    begun_at: float = -1.0
    """Monotonic seconds at which its last attempt began; negative before the first. The engine's."""
    took_s: float = -1.0
    """How long its last attempt ran by its container's clock; negative when that is not known."""


@dataclass(frozen=True)
class Output:
    """One input's output as it is kept."""

    call_id: str
    index: int
    input_id: str
    status: str
    data: bytes = b""
    blob: Optional[BlobRef] = None
    error: str = ""
    items: int = 0
    attempts: int = 1
    container_id: str = ""
    expires_at: float = 0.0


@dataclass(frozen=True)
class Taken:
    """What a lease of waiting inputs gave. ``next_ready_at``: when the next one that is not due yet will be."""

    entries: list[Entry]
    more: bool = False
    """Whether others are due as well."""
    next_ready_at: Optional[float] = None


@dataclass(frozen=True)
class Unfinished:
    """What an earlier process left: what `Queue.load` gives."""

    epoch: int
    """How often the queue was loaded before."""
    held: list[Entry] = field(default_factory=list)
    """Inputs that were in the hands of the control plane or of a container."""
    waiting: dict[str, int] = field(default_factory=dict)
    """How many others wait, by function."""
    next_seq: int = 1
    containers: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Containers that were wanted: id, node id, function id, description in JSON."""
