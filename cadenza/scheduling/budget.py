"""Hard budgets: what an app may spend, checked before work starts, so that no interleaving spends more.

A container costs from the moment it is placed until it is gone: one container-second a second, and money by its
requests and a price table. Before it may start, and before an input is given to it, the time for which it could run
at worst is *held*; what was not used is given back when the container is gone. So ``spent + held <= cap`` at every
moment, and work that began is never cut short for money. What does not fit waits while others hold something that may
come back, and is refused when nobody does.

Times are seconds of one monotonic clock. `Account` is changed by its methods alone; nothing here looks at a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from cadenza.base.errors import InvalidError
from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.objects import BudgetSpec

STOP_MARGIN_S = 6.0
"""How long before its paid time is over a container is told to end: what remains is for exit hooks and for killing.
Nothing runs 5 s past its deadline (`cadenza.scheduling.dispatch`)."""
SLACK_S = 30.0
"""Where there is plenty, a container is paid for so much longer than it needs: fewer changes to keep."""
IDLE_SLICE_S = 10.0
"""An idle container is kept in pieces of this length, as long as nobody waits for what it costs."""
EPSILON = 1e-9


@dataclass(frozen=True)
class Prices:
    """Money for a second of each thing, in one currency."""

    cpu_core: float = 0.0
    memory_gib: float = 0.0
    gpus: Mapping[str, float] = field(default_factory=dict)
    """By GPU type; one that is not named costs nothing."""

    def rate(self, requests: Resources, gpus: Sequence[Gpu]) -> float:
        """Money for one second of a container."""
        return (
            self.cpu_core * requests.cpu_milli / 1000
            + self.memory_gib * requests.memory_mib / 1024
            + sum(self.gpus.get(one.type, 0.0) * one.count for one in gpus)
        )


def read_prices(text: str) -> Prices:
    """``cpu=0.00001,memory=0.000002,gpu.H100=0.001``: money for a second of a core, of a GiB, of a GPU.

    InvalidError names what is wrong.
    """
    cpu = memory = 0.0
    gpus: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, raw = part.partition("=")
        try:
            price = float(raw)
        except ValueError:
            price = -1.0
        if not 0 <= price < math.inf:
            raise InvalidError(f"prices: {part!r} must be a name, =, and a number that is not negative")
        if name == "cpu":
            cpu = price
        elif name == "memory":
            memory = price
        elif name.startswith("gpu."):
            gpus[name[4:].upper()] = price
        else:
            raise InvalidError(f"prices: {name!r} is none of cpu, memory, gpu.TYPE")
    return Prices(cpu, memory, gpus)


@dataclass(eq=False)
class Hold:
    """What one container holds of the budget."""

    since: float
    rate: float
    """Money a second."""
    paid_until: float

    @property
    def held_s(self) -> float:
        """Container-seconds held, the part that is used up included."""
        return max(0.0, self.paid_until - self.since)


class Account:
    """What one app may spend, has spent, and holds."""

    def __init__(self, budget: BudgetSpec, spent_s: float = 0.0, spent_money: float = 0.0) -> None:
        self.budget = budget
        self.spent_s = spent_s
        self.spent_money = spent_money
        self.holds: dict[str, Hold] = {}

    # --- what is left ---

    @property
    def cap_s(self) -> float:
        """Container-seconds that may be spent; infinity without a cap."""
        return self.budget.container_s or math.inf

    @property
    def cap_money(self) -> float:
        """Money that may be spent; infinity without a cap."""
        return self.budget.money or math.inf

    @property
    def left_s(self) -> float:
        """Container-seconds that nobody has spent or holds."""
        return self.cap_s - self.spent_s - sum(one.held_s for one in self.holds.values())

    @property
    def left_money(self) -> float:
        """Money that nobody has spent or holds."""
        return self.cap_money - self.spent_money - sum(one.held_s * one.rate for one in self.holds.values())

    def affords(self, more_s: float, rate: float) -> bool:
        """Whether ``more_s`` seconds at ``rate`` fit into what is left."""
        return more_s <= self.left_s + EPSILON and more_s * rate <= self.left_money + EPSILON

    def refusal(self, least_s: float, rate: float) -> str:
        """Why ``least_s`` seconds at ``rate`` can never be spent here, in a sentence; empty when they could be."""
        if least_s > self.cap_s + EPSILON:
            return (
                f"it may take {least_s:g} container-seconds, and the app's whole budget is {self.cap_s:g}: "
                "lower its timeout or raise the budget"
            )
        if least_s * rate > self.cap_money + EPSILON:
            return (
                f"it may cost {least_s * rate:g}, and the app's whole budget is {self.cap_money:g}: "
                "lower its timeout or its resources, or raise the budget"
            )
        return ""

    def spent_text(self, now: float) -> str:
        """How much of which cap is spent until now, what runs included, for people."""
        running = [(max(0.0, min(now, one.paid_until) - one.since), one.rate) for one in self.holds.values()]
        parts = []
        if self.budget.container_s:
            used_s = self.spent_s + sum(one for one, _ in running)
            parts.append(f"{used_s:.1f} of {self.budget.container_s:g} container-seconds")
        if self.budget.money:
            money = self.spent_money + sum(one * rate for one, rate in running)
            parts.append(f"{money:.4g} of {self.budget.money:g} in money")
        per = f" this {self.budget.per}" if self.budget.per else ""
        return " and ".join(parts) + f" are spent{per}"

    # --- changes ---

    def start(self, container_id: str, now: float, needs_s: float, rate: float) -> bool:
        """Hold ``needs_s`` for a container that is to start now; False, and nothing changes, when it does not fit."""
        needs_s += STOP_MARGIN_S
        if not self.affords(needs_s, rate):
            return False
        self.holds[container_id] = Hold(now, rate, now + needs_s)
        return True

    def extend(self, container_id: str, until: float) -> bool:
        """Let a container run until ``until`` and its margin; False, and nothing changes, when that does not fit."""
        hold = self.holds[container_id]
        needed = until + STOP_MARGIN_S
        if needed <= hold.paid_until:
            return True
        for slack_s in (SLACK_S, 0.0):
            more_s = needed + slack_s - hold.paid_until
            if slack_s and not (more_s * 10 <= self.left_s and more_s * hold.rate * 10 <= self.left_money):
                continue
            if self.affords(more_s, hold.rate):
                hold.paid_until = needed + slack_s
                return True
        return False

    def shrink(self, container_id: str, until: float, now: float) -> None:
        """Give back what a container does not need after ``until`` and its margin: it never falls below ``now``."""
        hold = self.holds[container_id]
        hold.paid_until = min(hold.paid_until, max(now, until) + STOP_MARGIN_S)

    def end(self, container_id: str, now: float) -> None:
        """A container is gone: what it used is spent, what it held is free. One that held nothing is ignored.

        Time beyond what was paid for is not charged: that it was not ended in time is not the app's doing.
        """
        hold = self.holds.pop(container_id, None)
        if hold is not None:
            used_s = max(0.0, min(now, hold.paid_until) - hold.since)
            self.spent_s += used_s
            self.spent_money += used_s * hold.rate

    def stop_at(self, container_id: str) -> float:
        """When a container has to be told to end, unless it is extended before."""
        return self.holds[container_id].paid_until - STOP_MARGIN_S

    def reset(self, now: float) -> None:
        """A new period begins: what was spent is forgotten, what is held from now on counts for it."""
        self.spent_s = self.spent_money = 0.0
        for one in self.holds.values():
            one.since = now
            one.paid_until = max(one.paid_until, now)
