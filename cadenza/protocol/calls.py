"""What a call is made of: call, input, attempt, output, failure, blob reference.

A *call* is what the user made (one ``.remote``, one ``.map``). It has *inputs*, numbered from 0. Running an input is an
*attempt*; each attempt has a fencing number, and only the attempt that holds the lease may give the input's *output*.
Values are opaque bytes made by ``cadenza.runner.values``; nothing on the way looks inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from cadenza.protocol.statuses import FAILURE as FAILURE
from cadenza.protocol.statuses import INIT_FAILURE as INIT_FAILURE
from cadenza.protocol.statuses import INTERNAL_FAILURE as INTERNAL_FAILURE
from cadenza.protocol.statuses import PENDING as PENDING
from cadenza.protocol.statuses import REVOKED as REVOKED
from cadenza.protocol.statuses import STATUSES as STATUSES
from cadenza.protocol.statuses import SUCCESS as SUCCESS
from cadenza.protocol.statuses import TERMINATED as TERMINATED
from cadenza.protocol.statuses import TIMEOUT as TIMEOUT

SYNC, MAP, GENERATOR, SPAWN, SPAWN_MAP = "sync", "map", "generator", "spawn", "spawn_map"
CALL_KINDS = (SYNC, MAP, GENERATOR, SPAWN, SPAWN_MAP)
DETACHED_KINDS = (SPAWN, SPAWN_MAP)
"""These outlive their caller; the others are dropped when it vanishes."""

MAX_INPUTS_OUTSTANDING = 1000
"""How many inputs of one ``.map`` are with the server at once."""
MAX_SYNC_QUEUED = 2_000
MAX_SYNC_TOTAL = 25_000
MAX_ASYNC_QUEUED = 1_000_000
RESULT_KEPT_S = 7 * 24 * 3600.0
CALLER_GONE_GRACE_S = 10.0
"""How long the inputs of a caller that vanished go on before they are cancelled; a lost connection may come back."""
MAX_INTERNAL_FAILURES = 8
"""How often the platform may lose an input before it gives up with INTERNAL_FAILURE; these cost no retries."""


@dataclass(frozen=True)
class BlobRef:
    """Bytes kept outside of the frame. ``blob_id`` is ``bl-...``; ``size`` in bytes."""

    blob_id: str
    size: int


@dataclass(frozen=True)
class ValueRef:
    """Where one value's bytes are: ``size`` bytes of the frame's payload, in order, unless ``blob`` is set."""

    size: int = 0
    blob: Optional[BlobRef] = None


@dataclass(frozen=True)
class NewInput:
    """One input on its way into a call."""

    index: int
    value: ValueRef


@dataclass(frozen=True)
class OutputItem:
    """One input's output. For a failure the value is the packed exception, or empty, and ``error`` is a text.

    ``items`` is how many items a generator gave before this end. ``attempts`` counts runs, the last included.
    """

    index: int
    input_id: str
    status: str
    value: ValueRef
    error: str = ""
    items: int = 0
    attempts: int = 1
    container_id: str = ""


@dataclass
class Attempt:
    """One run of one input, as it is handed to a container. In memory only."""

    attempt_id: str
    """``<input id>:<fencing number>``."""
    input_id: str
    call_id: str
    function_id: str
    index: int
    data: bytes
    blob: Optional[BlobRef]
    retry_count: int
    timeout_s: float
    durable: bool = False
    """Whether its result outlives its caller: a large one is put durably."""
    method: str = ""
    """Which method of a class; empty for a function."""
    batch: str = ""
    """Attempts with the same name here, handed over together, are one run of a batched function."""


@dataclass
class AttemptOutput:
    """What a container says became of an attempt. In memory only."""

    attempt_id: str
    status: str
    data: bytes = b""
    blob: Optional[BlobRef] = None
    error: str = ""
    items: int = 0
    started_at: float = 0.0
    """Epoch seconds by the runner's clock; 0 when the run never began."""
    finished_at: float = 0.0
    kinds: tuple[str, ...] = ()
    """For a failure by an exception, where the function's retries ask: its class and its bases, ``module.qualname``."""


@dataclass
class GeneratorItem:
    """One value that a generator gave; ``number`` counts from 0. In memory only."""

    attempt_id: str
    number: int
    data: bytes = b""
    blob: Optional[BlobRef] = None


def attempt_id(input_id: str, fence: int) -> str:
    """The name of one run of an input."""
    return f"{input_id}:{fence}"
