"""Methods between a client and the control plane: apps, logs, objects, images, calls, containers, the server.

The whole table, with the nouns that have modules of their own, is `cadenza.protocol.table`. One definition, many faces:
the RPC server and the SDK's client are made from it. ``stream`` says who sends more than one frame: ``""`` nobody,
``down`` the server, ``both``. A request's or reply's values, where it has `ValueRef` s, lie in the frame's payload one
after the other, in the order in which they are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.calls import NewInput, OutputItem, ValueRef
from cadenza.protocol.method import ADMIN, CLIENT, READ, Method
from cadenza.protocol.method import Empty as Empty
from cadenza.protocol.objects import AppInfo, BudgetSpec, FunctionSpec

# --- apps ---


@dataclass(frozen=True)
class AppCreate:
    name: str = ""
    environment: str = "main"
    detach: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    budget: Optional[BudgetSpec] = None


@dataclass(frozen=True)
class AppCreated:
    app_id: str


@dataclass(frozen=True)
class AppPublish:
    """All functions of the app at once. Their images are built and their files uploaded before."""

    app_id: str
    functions: tuple[FunctionSpec, ...]


@dataclass(frozen=True)
class AppPublished:
    functions: dict[str, str]
    """Name to function id."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class AppRef:
    """An app by id, or by name in an environment (empty: the caller's): one that runs before one that is stopped."""

    app: str
    environment: str = ""


@dataclass(frozen=True)
class AppFinish:
    """The client is done with its ephemeral app: stop it, or if it is detached, stop it once nothing is left to do."""

    app_id: str
    reason: str = ""
    error: bool = False


@dataclass(frozen=True)
class AppList:
    limit: int = 0
    environment: str = ""
    """Empty: of all environments that the caller may see."""


@dataclass(frozen=True)
class Apps:
    apps: tuple[AppInfo, ...]


@dataclass(frozen=True)
class LogQuery:
    """Which log lines. Empty means any. ``tail`` 0 with no ``since``: all that is kept. Times are epoch seconds."""

    app: str = ""
    container: str = ""
    function: str = ""
    call: str = ""
    since: float = 0.0
    until: float = 0.0
    tail: int = 0
    search: str = ""
    source: str = ""
    """stdout, stderr, system, or empty."""
    follow: bool = False
    environment: str = ""
    """Where an app is looked up by name. Empty: the caller's."""
    all_variants: bool = False
    """With ``function``: those of its variants too."""


@dataclass(frozen=True)
class LogEntry:
    """``size`` bytes of the frame's payload are the text: whole lines, or a part that ends in ``\\r``."""

    time: float
    fd: int
    size: int
    app_id: str
    container_id: str = ""
    function_id: str = ""
    call_id: str = ""
    input_id: str = ""


@dataclass(frozen=True)
class LogBatch:
    entries: tuple[LogEntry, ...]
    dropped_bytes: int = 0
    """How much was left out because the reader did not keep up."""


# --- objects: files by content ---


@dataclass(frozen=True)
class ObjectsMissing:
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    digests: tuple[str, ...]


@dataclass(frozen=True)
class ObjectPart:
    """One of several objects in a payload: its SHA-256, and how many bytes of the payload are its."""

    digest: str
    size: int


@dataclass(frozen=True)
class ObjectPut:
    """Store an object: the payload, or an earlier blob put over the lane. Its SHA-256 is checked.

    With ``objects`` the payload is those, one after the other, and ``digest`` is empty.
    """

    digest: str = ""
    blob_id: str = ""
    objects: tuple[ObjectPart, ...] = ()


# --- calls ---


@dataclass(frozen=True)
class CallRun:
    """One input, its result as the reply. The caller going away cancels it."""

    function_id: str
    value: ValueRef
    parent_input_id: str = ""
    method: str = ""
    """Of a class."""


@dataclass(frozen=True)
class CallOutput:
    call_id: str
    output: OutputItem


@dataclass(frozen=True)
class CallMap:
    """Open a map. Client's items: `MapPut`; server's items: `MapOutputs`."""

    function_id: str
    parent_input_id: str = ""
    method: str = ""
    """Of a class."""


@dataclass(frozen=True)
class MapOpened:
    call_id: str
    max_outstanding: int


@dataclass(frozen=True)
class MapPut:
    """More inputs; ``total`` is set once, when all have been put: how many there are."""

    inputs: tuple[NewInput, ...] = ()
    total: Optional[int] = None


@dataclass(frozen=True)
class MapOutputs:
    """Outputs as they are committed, in no order; the first item has ``opened`` set. The stream ends after the last."""

    outputs: tuple[OutputItem, ...] = ()
    opened: Optional[MapOpened] = None


@dataclass(frozen=True)
class CallGenerate:
    """One input of a generator. The server's items are `Generated`; the last one has ``output`` set."""

    function_id: str
    value: ValueRef
    parent_input_id: str = ""
    method: str = ""
    """Of a class."""


@dataclass(frozen=True)
class Generated:
    call_id: str
    values: tuple[ValueRef, ...] = ()
    """Items in order, from where the last frame stopped."""
    output: Optional[OutputItem] = None


@dataclass(frozen=True)
class CallSpawn:
    """Inputs that outlive their caller. With ``call_id``, more inputs of an earlier call; the reply means: durable."""

    function_id: str
    inputs: tuple[NewInput, ...]
    kind: str = "spawn"
    call_id: str = ""
    parent_input_id: str = ""
    method: str = ""
    idempotency_key: str = ""
    """The same key for the same function is the same call: a second one is answered with the first."""


@dataclass(frozen=True)
class Spawned:
    call_id: str
    input_ids: tuple[str, ...]


@dataclass(frozen=True)
class CallGet:
    """One output; waits up to ``wait_s`` (at most 55) and answers status PENDING if it is not there by then."""

    call_id: str
    index: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True)
class CallOutputs:
    """Outputs of indices ``start`` to ``end`` (not included), in order, as far as they are there without a gap."""

    call_id: str
    start: int = 0
    end: Optional[int] = None
    wait_s: float = 0.0


@dataclass(frozen=True)
class Outputs:
    outputs: tuple[OutputItem, ...]
    total: int
    """Inputs of the call so far."""


@dataclass(frozen=True)
class CallRef:
    call_id: str


@dataclass(frozen=True)
class CallInfo:
    call_id: str
    function_id: str
    function_name: str
    app_id: str
    kind: str
    created_at: float
    inputs: int
    finished: int
    statuses: dict[str, int] = field(default_factory=dict)
    """How many inputs are how."""
    start: dict[str, float] = field(default_factory=dict)
    """For one input: the phases of the container start it waited for, in seconds; empty when it met a warm one."""
    method: str = ""


@dataclass(frozen=True)
class CallCancel:
    call_id: str
    terminate_containers: bool = False


# --- containers ---


@dataclass(frozen=True)
class ContainerList:
    app: str = ""
    environment: str = ""


@dataclass(frozen=True)
class ContainerInfo:
    container_id: str
    app_id: str
    app_name: str
    function_id: str
    function_name: str
    state: str
    started_at: float
    runtime: str
    isolation: str
    warm: bool
    running_inputs: int
    phases: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Containers:
    containers: tuple[ContainerInfo, ...]


@dataclass(frozen=True)
class ContainerStop:
    container_id: str
    graceful: bool = False


@dataclass(frozen=True)
class ContainerExec:
    """Run a command. Client's items: `ExecInput`; server's items: `ExecOutput`, the last one with ``exit_code``."""

    container_id: str
    argv: tuple[str, ...]
    pty: bool = False
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True)
class ExecInput:
    """The payload is standard input."""

    eof: bool = False
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class ExecOutput:
    """The payload is output of ``fd``."""

    fd: int = 1
    exit_code: Optional[int] = None


# --- the server ---


@dataclass(frozen=True)
class ServerStatus:
    version: str
    pid: int
    started_at: float
    kept: bool
    apps: int
    containers: int
    queued_inputs: int
    clients: int
    data_dir: str
    runtimes: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What works with less than all on this machine, one sentence each."""


@dataclass(frozen=True)
class ServerKeep:
    """Whether the server goes on when it is idle."""

    keep: bool


@dataclass(frozen=True)
class ServerStop:
    """End the server. Detached calls stay queued and go on with the next one."""

    force: bool = False


ROWS = (
    Method("app.create", AppCreate, AppCreated, callers=(CLIENT,)),
    Method("app.publish", AppPublish, AppPublished, callers=(CLIENT,)),
    Method("app.heartbeat", AppRef, Empty, callers=(CLIENT,), needs=READ),
    Method("app.finish", AppFinish, Empty, callers=(CLIENT,)),
    Method("app.stop", AppRef, Empty, callers=(CLIENT,)),
    Method("app.get", AppRef, AppInfo, needs=READ),
    Method("app.list", AppList, Apps, callers=(CLIENT,), needs=READ),
    Method("log.read", LogQuery, LogBatch, stream="down", callers=(CLIENT,), needs=READ),
    Method("object.missing", ObjectsMissing, Missing, callers=(CLIENT,), needs=READ),
    Method("object.put", ObjectPut, Empty, callers=(CLIENT,)),
    Method("call.run", CallRun, CallOutput),
    Method("call.map", CallMap, MapOutputs, stream="both", item=MapPut),
    Method("call.generate", CallGenerate, Generated, stream="down"),
    Method("call.spawn", CallSpawn, Spawned),
    Method("call.get", CallGet, CallOutput, needs=READ),
    Method("call.outputs", CallOutputs, Outputs, needs=READ),
    Method("call.info", CallRef, CallInfo, needs=READ),
    Method("call.cancel", CallCancel, Empty),
    Method("container.list", ContainerList, Containers, callers=(CLIENT,), needs=READ),
    Method("container.stop", ContainerStop, Empty, callers=(CLIENT,)),
    Method("container.exec", ContainerExec, ExecOutput, stream="both", item=ExecInput, callers=(CLIENT,)),
    Method("server.status", Empty, ServerStatus, callers=(CLIENT,), needs=READ),
    Method("server.keep", ServerKeep, Empty, callers=(CLIENT,), needs=ADMIN),
    Method("server.stop", ServerStop, Empty, callers=(CLIENT,), needs=ADMIN),
)

_HOMES = {
    "app.deploy": "deployments", "app.lookup": "deployments", "app.history": "deployments",
    "app.rollback": "deployments", "app.rollover": "deployments", "app.promote": "deployments",
    "app.set_tags": "deployments", "app.explain": "functions", "call.graph": "functions", "function": "functions",
    "image": "images", "schedule": "schedules", "secret": "secrets", "account": "accounts", "environment": "accounts",
    "role": "accounts", "user": "accounts", "token": "accounts",
    "workspace": "accounts", "stats": "stats", "metric": "stats",
}  # fmt: skip
"""Which module of this package has the rows of a noun, or of a single method, where it is not this one."""


def row(name: str) -> Method:
    """One row of the whole table, with no more loaded than its noun needs. KeyError when there is none."""
    home = _HOMES.get(name) or _HOMES.get(name.partition(".")[0])
    rows = ROWS if home is None else __import__(f"cadenza.protocol.{home}", fromlist=["ROWS"]).ROWS
    for one in rows:
        if one.name == name:
            return one
    raise KeyError(name)
