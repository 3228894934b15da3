"""What is said of functions: variants, run-time limits, what was called, and why things are as they are.

Source: semantics.md sections 11.1, 12.2, 12.3 and 31.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.method import CLIENT, READ, Empty, Method
from cadenza.protocol.objects import AutoscalerPatch, MethodSpec, OptionsPatch, ParameterSpec


@dataclass(frozen=True)
class FunctionRef:
    function_id: str


@dataclass(frozen=True)
class FunctionFind:
    """A function of an app by name, a class as ``Name.*``. ``version``: pinned to it, in a pool of its own."""

    app: str
    name: str
    environment: str = ""
    """Empty: the caller's."""
    version: int = 0


@dataclass(frozen=True)
class FunctionInfo:
    function_id: str
    app_id: str
    name: str
    is_generator: bool
    app_name: str = ""
    methods: tuple[MethodSpec, ...] = ()
    """For a class."""
    class_parameters: tuple[ParameterSpec, ...] = ()
    parameters: str = ""
    """For a bound class: the values."""
    base_id: str = ""
    """For a variant: the function that it is a variant of."""
    version: int = 0
    created_at: float = 0.0
    created_by: str = ""
    web_url: str = ""


@dataclass(frozen=True)
class FunctionBind:
    """A variant: a class with these parameters, a function with these options, or both. Equal wishes give one id.

    ``parameters`` is what `cadenza.protocol.parameters.bind` wrote. Of a variant: a variant of its base, with what is
    already changed there changed too. With nothing to change, the function itself.
    """

    function_id: str
    parameters: str = ""
    patch: Optional[OptionsPatch] = None


@dataclass(frozen=True)
class FunctionStats:
    backlog: int
    num_total_runners: int
    num_running_inputs: int = 0
    input_headroom: int = 0
    """How many more inputs the containers that are there could take at once."""


@dataclass(frozen=True)
class FunctionScale:
    """Change limits at run time, until the next deploy. ``unset`` names fields of the patch that go back to none."""

    function_id: str
    patch: AutoscalerPatch
    unset: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoscalerSettings:
    """The limits in force; None: none."""

    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None


@dataclass(frozen=True)
class FunctionVariants:
    function_id: str
    limit: int = 200


@dataclass(frozen=True)
class Variant:
    function_id: str
    parameters: str = ""
    options: str = ""
    """What it changes, for people."""
    version: int = 0
    containers: int = 0
    backlog: int = 0
    created_at: float = 0.0


@dataclass(frozen=True)
class Variants:
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class FunctionList:
    app: str
    environment: str = ""


@dataclass(frozen=True)
class FunctionRow:
    function_id: str
    name: str
    is_class: bool = False
    containers: int = 0
    backlog: int = 0
    running: int = 0
    schedule: str = ""
    """As its program has it, for people."""
    web_url: str = ""


@dataclass(frozen=True)
class FunctionRows:
    functions: tuple[FunctionRow, ...]


@dataclass(frozen=True)
class FunctionInputs:
    """Inputs of a function that are there or ended not long ago, newest first. ``tail`` 0: as many as are kept."""

    function_id: str
    tail: int = 10
    since: float = 0.0
    until: float = 0.0
    all_variants: bool = False


@dataclass(frozen=True)
class InputRow:
    input_id: str
    call_id: str
    function_id: str
    status: str
    enqueued_at: float
    started_at: float = 0.0
    finished_at: float = 0.0
    container_id: str = ""
    method: str = ""
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True)
class InputRows:
    inputs: tuple[InputRow, ...]


@dataclass(frozen=True)
class CallGraph:
    call_id: str


@dataclass(frozen=True)
class GraphInput:
    """One input of a call graph; ``status`` is one of `cadenza.protocol.statuses`."""

    input_id: str
    call_id: str
    function_id: str
    function_name: str
    module: str
    status: str
    container_id: str = ""
    parent_input_id: str = ""


@dataclass(frozen=True)
class GraphInputs:
    inputs: tuple[GraphInput, ...]


@dataclass(frozen=True)
class Explain:
    """Why an app's inputs wait and its containers are there. With ``thing`` (an input, call, container or function id):
    only what concerns that."""

    app: str = ""
    environment: str = ""
    thing: str = ""
    decisions: int = 20
    """How many of the last decisions of each function."""


@dataclass(frozen=True)
class Decision:
    """One decision of the autoscaler, dispatcher or placement."""

    time: float
    """Epoch seconds."""
    what: str
    """start, stop, wait, block, unblock, refuse."""
    count: int
    why: str
    container_id: str = ""


@dataclass(frozen=True)
class WaitingInput:
    input_id: str
    call_id: str
    since: float
    why: str


@dataclass(frozen=True)
class LiveContainer:
    container_id: str
    state: str
    since: float
    running: int
    why: str


@dataclass(frozen=True)
class Explanation:
    """One function."""

    function_id: str
    name: str
    sentence: str
    """How it stands now."""
    waiting: int = 0
    running: int = 0
    inputs: tuple[WaitingInput, ...] = ()
    """The first that wait."""
    containers: tuple[LiveContainer, ...] = ()
    decisions: tuple[Decision, ...] = ()
    """Newest first."""
    variant: str = ""
    """What sets a variant or a pinned version apart, for people; empty of the function itself."""


@dataclass(frozen=True)
class Explained:
    app_id: str
    app_name: str
    functions: tuple[Explanation, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


ROWS = (
    Method("function.get", FunctionRef, FunctionInfo, needs=READ),
    Method("function.find", FunctionFind, FunctionInfo, needs=READ),
    Method("function.bind", FunctionBind, FunctionInfo),
    Method("function.stats", FunctionRef, FunctionStats, needs=READ),
    Method("function.scale", FunctionScale, Empty),
    Method("function.settings", FunctionRef, AutoscalerSettings, needs=READ),
    Method("function.variants", FunctionVariants, Variants, callers=(CLIENT,), needs=READ),
    Method("function.list", FunctionList, FunctionRows, callers=(CLIENT,), needs=READ),
    Method("function.inputs", FunctionInputs, InputRows, callers=(CLIENT,), needs=READ),
    Method("call.graph", CallGraph, GraphInputs, needs=READ),
    Method("app.explain", Explain, Explained, callers=(CLIENT,), needs=READ),
)
