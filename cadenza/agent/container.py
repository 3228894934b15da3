"""A container's life as a table of states, with the rules on top. Pure: takes events and `now`, returns commands.

A container is either *wanted* (it has a function from the beginning) or *generic* (a warm one of the pool, which gets
its function later). Only `apply` changes a `Life`. A move that is not in `MOVES` is a `Bug`. No state that ends a
container is without a deadline: `DRAINING` ends in SIGKILL, `STOPPING` ends in `GONE` after `KILL_LIMIT_S` whatever
happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Union

from cadenza.base.errors import Bug
from cadenza.protocol import nodes

WANTED = "wanted"
"""Waits for its turn: as many start at once as there are cores."""
PREPARING = "preparing"
"""Network and root file system are made."""
CREATING = "creating"
"""The runtime program makes and starts it."""
BOOTING = "booting"
"""Its process runs; the runner has not said hello."""
IDLE = "idle"
"""A generic container of the pool: said hello, has no function yet."""
ATTACHING = "attaching"
"""The runner imports the function and runs its enter hooks."""
READY = "ready"
DRAINING = "draining"
"""Told to finish; killed at the deadline."""
STOPPING = "stopping"
"""SIGKILL was sent to all its processes."""
GONE = "gone"

MOVES: dict[str, frozenset[str]] = {
    WANTED: frozenset({PREPARING, ATTACHING, GONE}),
    PREPARING: frozenset({CREATING, GONE}),
    CREATING: frozenset({BOOTING, STOPPING, GONE}),
    BOOTING: frozenset({ATTACHING, IDLE, STOPPING, GONE}),
    IDLE: frozenset({ATTACHING, STOPPING, GONE}),
    ATTACHING: frozenset({READY, STOPPING, GONE}),
    READY: frozenset({DRAINING, STOPPING, GONE}),
    DRAINING: frozenset({STOPPING, GONE}),
    STOPPING: frozenset({GONE}),
    GONE: frozenset(),
}

REPORTED = {
    WANTED: nodes.PREPARING,
    PREPARING: nodes.PREPARING,
    CREATING: nodes.STARTING,
    BOOTING: nodes.STARTING,
    IDLE: nodes.STARTING,
    ATTACHING: nodes.STARTING,
    READY: nodes.READY,
    DRAINING: nodes.STOPPING,
    STOPPING: nodes.STOPPING,
    GONE: nodes.GONE,
}
"""What the control plane is told for each state."""

KILL_LIMIT_S = 5.0
"""How long after SIGKILL of all its processes a container may be seen; then it is given up as gone."""
BYE_LIMIT_S = 2.0
"""How long after its good-bye, or after its connection broke, a runner's process may live."""
GENERIC_BOOT_LIMIT_S = 60.0
"""How long a generic container may take to its hello."""

_UNBORN = (WANTED, PREPARING)
STARTING = (WANTED, PREPARING, CREATING, BOOTING, ATTACHING)


# --- events ---


@dataclass(frozen=True)
class Begin:
    """Its turn has come: prepare it."""


@dataclass(frozen=True)
class Adopt:
    """A warm container of the pool takes its place: attach at once."""


@dataclass(frozen=True)
class Prepared:
    """Network and root file system are there."""


@dataclass(frozen=True)
class Created:
    """The runtime program has started its process."""


@dataclass(frozen=True)
class Hello:
    """The runner has connected."""


@dataclass(frozen=True)
class Ready:
    """The runner has imported and entered."""


@dataclass(frozen=True)
class Failed:
    """Import or enter raised. ``error`` is the packed exception."""

    where: str
    text: str
    error: bytes = b""


@dataclass(frozen=True)
class Broken:
    """The platform could not make or keep it. ``message`` is for people."""

    message: str


@dataclass(frozen=True)
class Stop:
    """End it. The fields are those of `cadenza.protocol.nodes.StopOrder`."""

    grace_s: float = 0.0
    drain: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Bye:
    """The runner ends in order."""


@dataclass(frozen=True)
class Disconnected:
    """The runner's connection is closed."""


@dataclass(frozen=True)
class Exited:
    """Its first process has ended. ``code`` is 128 + n for signal n. ``detail`` adds a sentence for people."""

    code: int
    oom: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Tick:
    """Time has passed; the deadline may be over."""


Event = Union[Begin, Adopt, Prepared, Created, Hello, Ready, Failed, Broken, Stop, Bye, Disconnected, Exited, Tick]


# --- commands ---


@dataclass(frozen=True)
class Prepare:
    """Make network and root file system; answer with `Prepared` or `Broken`."""


@dataclass(frozen=True)
class Create:
    """Create and start it; answer with `Created` or `Broken`."""


@dataclass(frozen=True)
class Attach:
    """Send the attach frame; the runner answers with `Ready` or `Failed`."""


@dataclass(frozen=True)
class CancelAll:
    """Cancel every attempt that it has."""


@dataclass(frozen=True)
class Drain:
    """Send the drain frame."""

    grace_s: float


@dataclass(frozen=True)
class Kill:
    """SIGKILL all its processes."""


@dataclass(frozen=True)
class Remove:
    """Take away all that was made for it. The last command of every life."""


@dataclass(frozen=True)
class Say:
    """A sentence of the platform for the container's log."""

    text: str


@dataclass(frozen=True)
class Report:
    """Tell the control plane how it is."""


Command = Union[Prepare, Create, Attach, CancelAll, Drain, Kill, Remove, Say, Report]


@dataclass
class Life:
    """All that the rules know of one container. ``deadline`` is by the clock that gives `now`; None: none."""

    generic: bool = False
    startup_s: float = 300.0
    """From the beginning of the preparations to readiness."""
    state: str = WANTED
    deadline: Optional[float] = None
    reason: str = ""
    """One of `cadenza.protocol.nodes.END_REASONS`, as soon as it is known."""
    message: str = ""
    error: bytes = b""
    exit_code: Optional[int] = None
    told: bool = False
    """Whether somebody asked for its end."""
    bye: bool = False
    hint: str = ""
    """What may be the cause where its runner never comes; for people."""
    changes: list[tuple[str, float]] = field(default_factory=list)
    """The states entered, each with its `now`."""

    @property
    def reported(self) -> str:
        """The state in the words of `cadenza.protocol.nodes`."""
        return REPORTED[self.state]


def apply(life: Life, event: Event, now: float) -> list[Command]:
    """What follows from ``event``. Events that come too late, after the end or after an order to end, do nothing."""
    if life.state == GONE:
        return []
    if isinstance(event, Exited):
        return _exited(life, event, now)
    if isinstance(event, Tick):
        return _tick(life, now)
    if life.state == STOPPING:
        return []
    if isinstance(event, Stop):
        return _stop(life, event, now)
    if isinstance(event, Broken):
        hint = life.hint if life.state == CREATING else ""
        return _end(life, nodes.RUNTIME_FAILED, _join(event.message, hint), now)
    if isinstance(event, Disconnected):
        return _disconnected(life, now)
    if isinstance(event, Bye):
        life.bye = True
        return _disconnected(life, now)
    if isinstance(event, Failed):
        life.error = event.error
        return _end(life, nodes.INIT_FAILED, event.text or f"{event.where} failed", now)
    return _forward(life, event, now)


def _forward(life: Life, event: Event, now: float) -> list[Command]:
    """The moves of a start that goes well."""
    if isinstance(event, Begin):
        _move(life, PREPARING, now)
        life.deadline = now + (GENERIC_BOOT_LIMIT_S if life.generic else life.startup_s)
        return [Report(), Prepare()]
    if isinstance(event, Adopt):
        if life.state == WANTED or life.state == IDLE:
            life.generic = False
            _move(life, ATTACHING, now)
            life.deadline = now + life.startup_s
            return [Attach(), Report()]
        raise Bug(f"a container that is {life.state} cannot take a function")
    if isinstance(event, Prepared):
        _move(life, CREATING, now)
        return [Create()]
    if isinstance(event, Created):
        if life.state == CREATING:
            _move(life, BOOTING, now)
            return [Report()]
        return []  # the hello overtook the runtime program's own end
    if isinstance(event, Hello):
        if life.state == CREATING:
            _move(life, BOOTING, now)
        if life.generic:
            _move(life, IDLE, now)
            life.deadline = None
            return []
        _move(life, ATTACHING, now)
        return [Attach(), Report()]
    if isinstance(event, Ready):
        _move(life, READY, now)
        life.deadline = None
        return [Report()]
    raise Bug(f"no rule for {event!r} in {life.state}")


def _move(life: Life, state: str, now: float) -> None:
    if state not in MOVES[life.state]:
        raise Bug(f"a container cannot go from {life.state} to {state}")
    life.state = state
    life.changes.append((state, now))


def _gone(life: Life, now: float) -> list[Command]:
    _move(life, GONE, now)
    life.deadline = None
    return [Report(), Remove()]


def _kill(life: Life, now: float) -> list[Command]:
    """End it now; what has no process yet is gone at once."""
    if life.state in _UNBORN:
        return _gone(life, now)
    _move(life, STOPPING, now)
    life.deadline = now + KILL_LIMIT_S
    return [Kill(), Report()]


def _end(life: Life, reason: str, message: str, now: float) -> list[Command]:
    """It failed: the first reason stays, and it is killed."""
    if not life.reason:
        life.reason, life.message = reason, message
    said: list[Command] = [Say(message)] if message and reason != nodes.INIT_FAILED and not life.generic else []
    return said + _kill(life, now)


def _stop(life: Life, order: Stop, now: float) -> list[Command]:
    life.told = True
    if life.state == DRAINING:
        limit = now + order.grace_s
        if order.grace_s <= 0:
            return _end(life, nodes.STOPPED, order.reason, now)
        commands: list[Command] = [] if order.drain else [CancelAll()]
        if life.deadline is None or limit < life.deadline:
            life.deadline = limit
        return commands
    if life.state == READY and order.grace_s > 0:
        life.message = order.reason
        _move(life, DRAINING, now)
        life.deadline = now + order.grace_s
        first: list[Command] = [] if order.drain else [CancelAll()]
        return [*first, Drain(order.grace_s), Report()]
    if not life.reason:
        life.reason, life.message = nodes.STOPPED, order.reason
    return _kill(life, now)


def _disconnected(life: Life, now: float) -> list[Command]:
    """The process has little time left to end by itself; its exit says why."""
    limit = now + BYE_LIMIT_S
    if life.deadline is None or limit < life.deadline:
        life.deadline = limit
    return []


def _tick(life: Life, now: float) -> list[Command]:
    if life.deadline is None or now < life.deadline:
        return []
    if life.state == STOPPING:
        life.message = _join(life.message, f"its processes were still there {KILL_LIMIT_S:g} s after SIGKILL")
        return _gone(life, now)
    if life.state == DRAINING:
        if life.bye:
            return _end(life, nodes.EXITED, "", now)
        text = _join(life.message, "it did not end within its grace period and was killed")
        return _end(life, nodes.STOPPED, text, now)
    if life.state in STARTING and now >= _started(life, now) + life.startup_s and not life.generic:
        what = "its module or an enter hook still ran" if life.state == ATTACHING else life.state
        text = f"it was not ready within its startup timeout of {life.startup_s:g} s ({what})"
        text = _join(text, life.hint if life.state in (CREATING, BOOTING) else "")
        return _end(life, nodes.START_TIMEOUT, text, now)
    if life.generic:
        return _end(life, nodes.RUNTIME_FAILED, f"a warm container did not come up ({life.state})", now)
    if life.bye:
        return _end(life, nodes.EXITED, "", now)
    return _end(life, nodes.CRASHED, "its runner closed the connection and was killed", now)


def _started(life: Life, now: float) -> float:
    for state, at in life.changes:
        if state in (PREPARING, ATTACHING):
            return at
    return now


def _exited(life: Life, event: Exited, now: float) -> list[Command]:
    life.exit_code = event.code
    said: list[Command] = []
    if not life.reason:
        life.reason, text = _verdict(life, event)
        if text:
            life.message = text
            if not life.generic:
                said = [Say(text)]
    elif event.oom and life.reason == nodes.CRASHED:
        life.reason, life.message = nodes.OOM, event.detail
    return said + _gone(life, now)


def _verdict(life: Life, event: Exited) -> tuple[str, str]:
    """Why it ended by itself, and the sentence for people; empty when there is nothing to explain."""
    if life.bye:
        return nodes.EXITED, ""  # even if a child of the user's code died for want of memory before
    if event.oom:
        return nodes.OOM, event.detail or "it used more memory than its limit and was killed"
    if life.told:
        return nodes.STOPPED, ""
    text = _join(exit_text(event.code), event.detail)
    if life.state in (CREATING, BOOTING):
        return nodes.RUNTIME_FAILED, _join(f"its runner ended before it was up: {text}", life.hint)
    if life.state == ATTACHING:
        return nodes.CRASHED, f"it ended while its function was imported or entered: {text}"
    return nodes.CRASHED, f"it ended unexpectedly: {text}"


SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    24: "SIGXCPU", 31: "SIGSYS",
}  # fmt: skip


def exit_text(code: int) -> str:
    """An exit code in words: ``exit code 3`` or ``killed by SIGSEGV``."""
    if code > 128:
        return f"killed by {SIGNALS.get(code - 128, f'signal {code - 128}')}"
    return f"exit code {code}"


def _join(*parts: str) -> str:
    return "; ".join(one for one in parts if one)
