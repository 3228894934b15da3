"""Hard budgets of apps: asked before a container starts and before inputs are given; keeps what was spent.

The rules are `cadenza.scheduling.budget`. What cannot be paid now waits while other containers of the app hold
something that may come back; when none does, what waits fails with a ResourceExhaustedError that says how much of
which cap is spent. A container whose paid time runs out idle is ended; one that works has its work paid to the end.

What is held is kept in the database, so that a crash forgets no spending: a container that is gone when the next
process starts has spent what it held, up to that moment.
"""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timezone
from typing import Any, Iterable, Optional, Protocol, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import ResourceExhaustedError
from cadenza.base.resources import Gpu
from cadenza.control.calls import Calls
from cadenza.observe.log import Log
from cadenza.protocol.calls import FAILURE
from cadenza.protocol.objects import BudgetSpec, FunctionSpec
from cadenza.runner.values import pack_exception
from cadenza.scheduling import events
from cadenza.scheduling.budget import IDLE_SLICE_S, STOP_MARGIN_S, Account, Hold, Prices
from cadenza.scheduling.states import ContainerState, FunctionState
from cadenza.storage.db import Database, Transaction

KILL_S = 2.0
"""Of the margin, what killing may take."""

_log = Log("cadenza.control.budgets")
HoldRow = tuple[str, str, float, float, float]
"""Container id, app id, since, paid until (epoch seconds), money a second."""
SpentRow = tuple[str, str, float, float]
"""App id, period, container-seconds, money."""


class Store(Protocol):
    """Where spending is kept."""

    async def load(self) -> tuple[list[SpentRow], list[HoldRow]]:
        """All that is kept."""

    def save(self, spent: Sequence[SpentRow], holds: Sequence[HoldRow], gone: Sequence[str]) -> None:
        """Keep these rows, and drop the holds of containers that are gone. Nobody waits for it."""

    def drop(self, app_id: str) -> None:
        """An app has ended."""


class SpentTable:
    """The tables ``budget_spent`` and ``budget_hold``."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._unwritten: dict[tuple[str, str], tuple[Any, ...]] = {}
        """Query and key to the row: what the disk refused is written with what comes next."""

    async def load(self) -> tuple[list[SpentRow], list[HoldRow]]:
        spent, holds = await self._db.fetch("budget_spent_all"), await self._db.fetch("budget_hold_all")
        return [(one[0], one[1], one[2], one[3]) for one in spent], [
            (one[0], one[1], one[2], one[3], one[4]) for one in holds
        ]

    def save(self, spent: Sequence[SpentRow], holds: Sequence[HoldRow], gone: Sequence[str]) -> None:
        for name in gone:
            self._unwritten.pop(("budget_hold_put", name), None)
            self._unwritten["budget_hold_drop", name] = (name,)
        self._unwritten.update({("budget_hold_put", hold[0]): hold for hold in holds})
        self._unwritten.update({("budget_spent_put", row[0]): row for row in spent})
        self._write()

    def drop(self, app_id: str) -> None:
        self._unwritten.pop(("budget_spent_put", app_id), None)
        self._unwritten["budget_drop", app_id] = (app_id,)
        self._write()

    def _write(self) -> None:
        rows, self._unwritten = self._unwritten, {}

        def write(transaction: Transaction) -> None:
            for (query, _), row in rows.items():
                transaction.execute(query, row)

        def written(done: asyncio.Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                _log.error("what apps spent could not be kept", reason=str(error))
                self._unwritten = {**rows, **self._unwritten}  # what is newer wins

        self._db.submit(write).add_done_callback(written)


class Budgets:
    """Every app's account. Implements `cadenza.control.admission.Admission`; all methods on the loop's thread."""

    def __init__(self, calls: Calls, clock: Clock, store: Store, prices: Prices) -> None:
        self._loop = calls.loop
        self._clock = clock
        self._store = store
        self._prices = prices
        self._accounts: dict[str, Account] = {}
        self._periods: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        """By container: its app, while it holds something."""
        self._kept: dict[str, tuple[str, float, float]] = {}
        """What apps without an account spent, in earlier processes or before their budget was taken away: period,
        container-seconds, money."""
        self._left: dict[str, dict[str, Hold]] = {}
        """What their containers hold, by app, until the app is put."""
        self._dirty: set[str] = set()
        self._gone: set[str] = set()
        self._saving = False
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_at = math.inf

    async def load(self) -> None:
        """Load what was spent, and what containers of an earlier process hold. Before any app is put."""
        spent, holds = await self._store.load()
        for app_id, period, seconds, money in spent:
            self._kept[app_id] = (period, seconds, money)
        shift = self._clock.monotonic() - self._clock.now()
        for name, app_id, since, paid_until, rate in holds:
            self._left.setdefault(app_id, {})[name] = Hold(since + shift, rate, paid_until + shift)

    def settle(self) -> None:
        """After the calls' start: which of those containers may still be there is decided in the next round."""
        self._loop.post(self._settled)

    def _settled(self) -> None:
        for name in list(self._owners):
            if name not in self._loop.cluster.containers:
                self.gone(name, self._clock.monotonic())
        orphans = [name for holds in self._left.values() for name in holds]
        self._left.clear()
        if orphans:
            self._store.save((), (), orphans)
        self._arm()

    # --- apps ---

    def put(self, app_id: str, budget: Optional[BudgetSpec]) -> None:
        """An app has this budget from now on; None: none. What it has spent stays spent, and counts again with the next
        budget."""
        account = self._accounts.get(app_id)
        if budget is None:
            if account is not None:
                self._settle_up(app_id, account)
        elif account is not None:
            account.budget = budget
        else:
            period, seconds, money = self._kept.get(app_id, ("", 0.0, 0.0))
            account = self._accounts[app_id] = Account(budget, seconds, money)
            self._periods[app_id] = period
            account.holds.update(self._left.pop(app_id, {}))
            self._owners.update(dict.fromkeys(account.holds, app_id))
        self._loop.admission = self if self._accounts else None

    def _settle_up(self, app_id: str, account: Account) -> None:
        """An app has no budget any more: what its containers used so far is spent, what they use from now on is not
        counted."""
        now = self._clock.monotonic()
        self._turn(app_id, account, now)
        for name in list(account.holds):
            account.end(name, now)
            self._owners.pop(name, None)
            self._changed(app_id, name)
        self._changed(app_id, "")
        self._kept[app_id] = (self._periods.pop(app_id, ""), account.spent_s, account.spent_money)
        del self._accounts[app_id]

    def end(self, app_id: str) -> None:
        """An app is stopped for good: nothing of it is kept. Its containers that still end cost nobody anything."""
        self.put(app_id, None)
        if self._kept.pop(app_id, None) is not None:
            self._store.drop(app_id)

    def refusal(self, budget: Optional[BudgetSpec], specs: Iterable[FunctionSpec]) -> str:
        """Why an app with this budget could never run one of its functions, in a sentence; empty when it could."""
        if budget is None:
            return ""
        account = Account(budget)
        for spec in specs:
            gpus = spec.resources.gpus
            rate = max((self._prices.rate(spec.resources, (one,)) for one in gpus), default=0.0)
            rate = max(rate, self._prices.rate(spec.resources, ()))
            if budget.money and not rate:
                return (
                    "a budget in money needs a price table, and this server has none: set `prices` in its "
                    "configuration (cadenza config set prices cpu=...,memory=...), or cap container_seconds"
                )
            why = account.refusal(spec.startup_timeout_s + spec.timeout_s + STOP_MARGIN_S, rate)
            if why:
                return f"{spec.name}: {why}"
        return ""

    def text(self, app_id: str) -> str:
        """How much of its budget an app has spent, for people; empty for an app without one."""
        account = self._accounts.get(app_id)
        if account is None:
            return ""
        self._turn(app_id, account, self._clock.monotonic())
        return account.spent_text(self._clock.monotonic())

    # --- `cadenza.control.admission.Admission` ---

    def covers(self, function: FunctionState) -> bool:
        """Whether the function's app has a budget."""
        return function.app_id in self._accounts

    def start(self, container_id: str, function: FunctionState, gpus: Sequence[Gpu], now: float) -> str:
        """Hold what the start and one input may take at worst."""
        account = self._accounts.get(function.app_id)
        if account is None:
            return ""
        self._turn(function.app_id, account, now)
        spec = function.spec
        needs_s = spec.startup_timeout_s + spec.timeout_s
        rate = self._prices.rate(spec.resources, gpus)
        never = account.refusal(needs_s + STOP_MARGIN_S, rate)
        if never:
            return self._refused(function, account, never, now)
        if account.start(container_id, now, needs_s, rate):
            self._owners[container_id] = function.app_id
            self._changed(function.app_id, container_id)
            return ""
        return self._short(function, account, f"a start and one input may take {needs_s + STOP_MARGIN_S:g} s", now)

    def give(self, container: ContainerState, now: float) -> str:
        """Hold what an input that begins now may take at worst."""
        function = container.function
        account = self._accounts.get(function.app_id)
        if account is None:
            return ""
        self._turn(function.app_id, account, now)
        name, timeout_s = container.container_id, container.spec.timeout_s
        if name not in account.holds:  # it was there before the budget was
            if not account.start(name, now, timeout_s, self._prices.rate(container.requests, container.gpus)):
                return self._short(function, account, self._one(timeout_s), now)
            self._owners[name] = function.app_id
        before = account.holds[name].paid_until
        if not account.extend(name, now + timeout_s):
            return self._short(function, account, self._one(timeout_s), now, container)
        if account.holds[name].paid_until != before:
            self._changed(function.app_id, name)
        return ""

    def idle(self, container: ContainerState, now: float) -> None:
        """It keeps a short time's worth, and gives the rest back."""
        account = self._accounts.get(container.function.app_id)
        if account is not None and container.container_id in account.holds:
            account.shrink(container.container_id, now + IDLE_SLICE_S, now)
            self._changed(container.function.app_id, container.container_id)
            for function_id in self._waiting(container.function.app_id):
                self._loop.post(self._loop.touch, function_id)

    def gone(self, container_id: str, now: float) -> None:
        """What it used is spent, what it held is free."""
        app_id = self._owners.pop(container_id, None)
        if app_id is None:
            return
        account = self._accounts[app_id]
        self._turn(app_id, account, now)
        account.end(container_id, now)
        self._changed(app_id, container_id)
        for function_id in self._waiting(app_id):
            self._loop.post(self._loop.touch, function_id)

    # --- what does not fit ---

    @staticmethod
    def _one(timeout_s: float) -> str:
        return f"the next input, to its timeout and its container's end, may take {timeout_s + STOP_MARGIN_S:g} s"

    def _waiting(self, app_id: str) -> list[str]:
        """The app's functions that may do no more now."""
        functions = self._loop.cluster.functions
        return [one for one in self._loop.paused if one in functions and functions[one].app_id == app_id]

    def _short(
        self,
        function: FunctionState,
        account: Account,
        what: str,
        now: float,
        container: Optional[ContainerState] = None,
    ) -> str:
        """Something does not fit: it waits while others of the app hold what may come back, and else is refused."""
        others = set(account.holds)
        if container is not None and not container.attempts:
            others.discard(container.container_id)
        spent = account.spent_text(now)
        if not others:
            return self._refused(function, account, f"{what}, and {spent}", now)
        for name in others:
            other = self._loop.cluster.containers.get(name)
            if other is not None and other.usable and not other.attempts and not other.function.waiting:
                self._end(other, account, now, "idle, and others of its app wait for what it costs")
        return f"the app's budget: {what}; {spent}, and {len(others)} containers hold the rest"

    def _refused(self, function: FunctionState, account: Account, why: str, now: float) -> str:
        """Nothing can come back: what waits fails."""
        text = f"the app's budget does not reach: {why}"
        if account.budget.per:
            text += f". It begins anew with the next {account.budget.per} (UTC)"
        if function.ready:
            self._loop.post(self._fail, function.function_id, text)
        return text

    def _fail(self, function_id: str, text: str) -> None:
        function = self._loop.cluster.functions.get(function_id)
        if function is not None:
            data = pack_exception(ResourceExhaustedError(text))
            self._loop.refuse_waiting(function, events.FailedStart(FAILURE, text, data))

    # --- time ---

    def _turn(self, app_id: str, account: Account, now: float) -> None:
        """A new day or month begins."""
        period = period_of(account.budget.per, self._clock.now())
        if period != self._periods.get(app_id, ""):
            if another(self._periods.get(app_id, ""), period):
                account.reset(now)
            self._periods[app_id] = period
            for name in account.holds:
                self._changed(app_id, name)
            self._changed(app_id, "")

    def _due(self) -> None:
        """Containers whose paid time is over, but for the margin."""
        now = self._clock.monotonic()
        for app_id, account in list(self._accounts.items()):
            for name in list(account.holds):
                if account.stop_at(name) <= now + 1e-6:
                    self._over(app_id, account, name, now)
        self._arm()

    def _over(self, app_id: str, account: Account, name: str, now: float) -> None:
        container = self._loop.cluster.containers.get(name)
        if container is None:
            return
        idle = container.usable and not container.attempts
        if idle and not self._waiting(app_id) and account.extend(name, now + IDLE_SLICE_S):
            self._changed(app_id, name)
            return
        self._end(
            container, account, now, "idle, and its app's budget has no more for it" if idle else "its time is over"
        )

    def _end(self, container: ContainerState, account: Account, now: float, why: str) -> None:
        """Order a container to end within what is paid for it."""
        hold = account.holds[container.container_id]
        grace_s = max(0.0, hold.paid_until - now - KILL_S)
        if container.stop is None or container.stop_at > now + grace_s + 1e-6:
            self._loop.end_container(container, grace_s, why)

    def _arm(self) -> None:
        at = min(
            (account.stop_at(name) for account in self._accounts.values() for name in account.holds), default=math.inf
        )
        now = self._clock.monotonic()
        at = max(at, now + 0.05)  # one that ends already is looked at again, and not all the time
        if at >= self._timer_at and self._timer is not None and self._timer_at > now:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
        if at < math.inf:
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(at - now, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._loop.post(self._due)

    # --- keeping ---

    def _changed(self, app_id: str, container_id: str) -> None:
        self._dirty.add(app_id)
        if container_id:
            self._gone.add(container_id)
        if not self._saving:
            self._saving = True
            asyncio.get_running_loop().call_soon(self._save)

    def _save(self) -> None:
        """Keep what has changed in this turn, and plan the next look at what is held."""
        self._saving = False
        shift = self._clock.now() - self._clock.monotonic()
        spent: list[SpentRow] = []
        holds: list[HoldRow] = []
        touched, self._gone = self._gone, set()
        for app_id in self._dirty:
            account = self._accounts.get(app_id)
            if account is None:
                if app_id in self._kept:
                    spent.append((app_id, *self._kept[app_id]))
                continue
            spent.append((app_id, self._periods.get(app_id, ""), account.spent_s, account.spent_money))
            for name in touched & account.holds.keys():
                hold = account.holds[name]
                holds.append((name, app_id, hold.since + shift, hold.paid_until + shift, hold.rate))
        self._dirty.clear()
        gone = touched - {one[0] for one in holds}
        self._store.save(spent, holds, sorted(gone))
        self._arm()

    def close(self) -> None:
        """Look at nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf


def another(old: str, new: str) -> bool:
    """Whether a day or month (names by `period_of`) is another one, and not a part of the other or its whole: a budget
    that was per day and is per month now begins with what was spent that day. Pure."""
    return bool(old and new) and not (old.startswith(new) or new.startswith(old))


def period_of(per: str, epoch_s: float) -> str:
    """The name of the day or month (UTC) of a moment; empty for a budget without periods. Pure."""
    if not per:
        return ""
    moment = datetime.fromtimestamp(epoch_s, timezone.utc)
    return moment.strftime("%Y-%m-%d" if per == "day" else "%Y-%m")
