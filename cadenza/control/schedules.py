"""Schedules: functions that run by themselves while their app is deployed or runs. The only writer of their table.

A run is a spawned call without arguments. Its id is made of the schedule's id and the time at which it is due, so a run
that was begun just before a crash is recognised afterwards and is not begun again. One timer waits for the earliest
time of all schedules; it looks at the clock at least once a minute, for a machine's clock may be set.

`cadenza.scheduling.cron` says when. Source: semantics.md section 15.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol, Sequence

from cadenza.base.clock import Clock
from cadenza.base.errors import Error, InvalidError, NotFoundError
from cadenza.base.ids import IdSource, derived
from cadenza.control.apps import Apps
from cadenza.control.appstate import STOPPED, App
from cadenza.control.attached import Value
from cadenza.control.request import Request
from cadenza.observe.log import Log
from cadenza.protocol.method import READ, WRITE
from cadenza.protocol.methods import CallInfo, Empty
from cadenza.protocol.calls import OutputItem
from cadenza.protocol.schedules import (
    ScheduleInfo,
    ScheduleList,
    SchedulePause,
    ScheduleRef,
    ScheduleRun,
    Schedules as SchedulesReply,
)
from cadenza.protocol.statuses import PENDING, SUCCESS
from cadenza.runner import values
from cadenza.scheduling import cron
from cadenza.storage.db import Database

LOOK_S = 60.0
"""How long the timer waits at most: a clock that was set is noticed within this."""
SET_BACK_S = 600.0
"""A clock that was set back by more than this is followed; by less, schedules wait until it is where it was."""
AGAIN_S = 10.0
"""A run that could not be begun (too many inputs wait) is tried again after this."""
MAX_UPCOMING = 100
WAIT_S = 55.0

_log = Log("cadenza.control.schedules")


class Runs(Protocol):
    """What a schedule needs of `cadenza.control.calls.Calls`."""

    async def submit(
        self, function_id: str, kind: str, values: Sequence[Value], *, call_id: str = ""
    ) -> tuple[str, list[str]]: ...

    async def info(self, call_id: str) -> CallInfo: ...

    async def get(self, call_id: str, index: int, wait_s: float) -> tuple[OutputItem, bytes]: ...


@dataclass
class Entry:
    """One schedule. Times are epoch seconds."""

    schedule_id: str
    app_id: str
    function_id: str
    text: str
    version: int
    """Of the app, when the schedule was last looked at: a deploy since then restarts a period."""
    started_at: float
    """From when a period counts."""
    done_until: float
    """Times up to this one are dealt with."""
    paused: bool = False
    last_at: float = 0.0
    last_call_id: str = ""
    note: str = ""
    schedule: cron.Schedule = field(default_factory=cron.Schedule)
    next_at: float = math.inf
    task: Optional[asyncio.Task[None]] = None
    """Of a run that is being begun, or waits for the one before it."""

    def row(self) -> tuple[Any, ...]:
        """In the order of the table's columns."""
        return (
            self.schedule_id, self.app_id, self.function_id, self.text, self.version, self.started_at, self.done_until,
            int(self.paused), self.last_at, self.last_call_id, self.note,
        )  # fmt: skip

    def aim(self) -> None:
        """Find the next time."""
        moment = None if self.paused else cron.next_run(self.schedule, self.started_at, self.done_until)
        self.next_at = math.inf if moment is None else moment


class Schedules:
    """Every schedule of this control plane, and the handlers of ``schedule.*``. On the event loop's thread."""

    def __init__(self, db: Database, clock: Clock, ids: IdSource, calls: Runs, apps: Apps) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._calls = calls
        self._apps = apps
        self._by_function: dict[str, Entry] = {}
        self._timer: Optional[asyncio.TimerHandle] = None
        self._writes: set[asyncio.Future[Any]] = set()
        self._stopped = False
        self._nothing = values.pack_bytes(((), {}))
        apps.on_change.append(self.app_changed)

    async def start(self) -> None:
        """Load what is kept. Functions are known and calls can be begun."""
        for row in await self._db.fetch("schedule_all"):
            entry = Entry(*row)
            entry.paused = bool(entry.paused)
            try:
                entry.schedule = cron.read(entry.text)
            except InvalidError as error:  # written by another version
                _log.error("a schedule cannot be read", function=entry.function_id, reason=str(error))
                self._write("schedule_drop", (entry.schedule_id,))
                continue
            self._by_function[entry.function_id] = entry
            entry.aim()
        alive = {one.app_id: one for one in self._apps.alive}
        for entry in list(self._by_function.values()):
            if entry.app_id not in alive:
                self._drop(entry)
        for app in alive.values():
            self._follow(app)
        self._arm()

    async def close(self) -> None:
        """Begin no more runs."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [one.task for one in self._by_function.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._writes:
            await asyncio.wait(list(self._writes))

    # --- what apps declare ---

    def app_changed(self, app: App, redeployed: bool) -> None:
        """`Apps.on_change`: functions were put in force, or their app has ended."""
        self._follow(app)
        self._arm()

    def _follow(self, app: App) -> None:
        """Have the schedules that the app declares, and no others of it."""
        declared = self._apps.functions.declared(app.app_id) if app.state != STOPPED else []
        wanted = {one.function_id: text for one in declared if (text := one.spec.options.get("schedule", ""))}
        for entry in [one for one in self._by_function.values() if one.app_id == app.app_id]:
            if entry.function_id not in wanted:
                self._drop(entry)
        now = self._clock.now()
        for function_id, text in wanted.items():
            entry_or_none = self._by_function.get(function_id)
            if entry_or_none is None:
                entry = Entry(self._ids.new("schedule"), app.app_id, function_id, text, app.version, now, now)
                self._by_function[function_id] = entry
                self._begin(entry)
            elif entry_or_none.text != text:
                entry_or_none.text, entry_or_none.version = text, app.version
                entry_or_none.started_at = entry_or_none.done_until = now
                self._begin(entry_or_none)
            elif entry_or_none.version != app.version:
                entry_or_none.version = app.version
                if entry_or_none.schedule.is_period:  # each deploy restarts it
                    entry_or_none.started_at = entry_or_none.done_until = now
                self._begin(entry_or_none)

    def _begin(self, entry: Entry) -> None:
        """A new or changed declaration. That it can be read was seen when it was admitted."""
        entry.schedule = cron.read(entry.text)
        entry.note = ""
        self._moved(entry)

    def _drop(self, entry: Entry) -> None:
        self._by_function.pop(entry.function_id, None)
        if entry.task is not None:
            entry.task.cancel()
        self._write("schedule_drop", (entry.schedule_id,))

    def _moved(self, entry: Entry) -> asyncio.Future[Any]:
        """Keep an entry as it is now."""
        entry.aim()
        return self._write("schedule_put", entry.row())

    def _write(self, query: str, row: tuple[Any, ...]) -> asyncio.Future[Any]:
        """One change, in the order in which they were asked for. What goes wrong is logged: memory goes on."""
        written = self._db.submit(lambda transaction: transaction.execute(query, row))
        self._writes.add(written)
        written.add_done_callback(self._wrote)
        return written

    def _wrote(self, written: asyncio.Future[Any]) -> None:
        self._writes.discard(written)
        error = None if written.cancelled() else written.exception()
        if error is not None:
            _log.error("a schedule could not be kept", reason=str(error))

    # --- the timer ---

    def _arm(self) -> None:
        """Wait for the earliest time, or for `LOOK_S`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [one.next_at for one in self._by_function.values() if one.task is None and not one.paused]
        if self._stopped or not waiting:
            return
        delay_s = min(max(min(waiting) - self._clock.now(), 0.0), LOOK_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.look)

    def look(self) -> None:
        """Begin what is due."""
        now = self._clock.now()
        for entry in list(self._by_function.values()):
            if entry.task is not None or entry.paused:
                continue
            if entry.done_until > now + SET_BACK_S:
                _log.warning("the clock was set back", function=entry.function_id, seconds=entry.done_until - now)
                entry.started_at = min(entry.started_at, now)
                entry.done_until = now
                self._moved(entry)
            if entry.next_at <= now:
                entry.task = asyncio.get_running_loop().create_task(self._run(entry, now))
                entry.task.add_done_callback(lambda task, entry=entry: self._ran(entry, task))  # type: ignore[misc]
        self._arm()

    def _ran(self, entry: Entry, task: asyncio.Task[None]) -> None:
        entry.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a schedule failed", exc=error, function=entry.function_id)
            entry.next_at = self._clock.now() + AGAIN_S
        self._arm()

    def _stands(self, entry: Entry) -> bool:
        """Whether it still is to run: it may have been paused, or its function taken away, meanwhile."""
        return self._by_function.get(entry.function_id) is entry and not entry.paused and not self._stopped

    async def _run(self, entry: Entry, now: float) -> None:
        """Begin the runs that are due at ``now``."""
        times = cron.due(entry.schedule, entry.started_at, entry.done_until, now)
        if not times:
            entry.done_until, entry.note = now, "a run was missed and left out"
            await asyncio.wait([self._moved(entry)])
        for moment in times:
            if entry.schedule.overlap == cron.WAIT:
                await self._end_of(entry.last_call_id)
            if not self._stands(entry):
                return
            if entry.schedule.overlap == cron.SKIP and not await self._is_over(entry.last_call_id):
                entry.note = "a run was left out: the one before it was not over"
            else:
                try:
                    entry.last_call_id = await self._spawn(entry, run_id(entry.schedule_id, moment))
                except Error as error:
                    entry.note = f"a run could not be begun: {error}"[:500]
                    entry.next_at = self._clock.now() + AGAIN_S
                    return
                entry.last_at, entry.note = self._clock.now(), ""
            entry.done_until = max(entry.done_until, moment)
            await asyncio.wait([self._moved(entry)])

    async def _spawn(self, entry: Entry, call_id: str) -> str:
        """Begin a run, unless it was begun before a crash."""
        try:
            await self._calls.info(call_id)
        except NotFoundError:
            await self._calls.submit(entry.function_id, "spawn", [(0, self._nothing, None)], call_id=call_id)
        return call_id

    async def _is_over(self, call_id: str) -> bool:
        if not call_id:
            return True
        try:
            info = await self._calls.info(call_id)
        except NotFoundError:
            return True
        return info.finished >= info.inputs

    async def _end_of(self, call_id: str) -> None:
        """Wait until a call has its output."""
        while not await self._is_over(call_id):
            try:
                await self._calls.get(call_id, 0, WAIT_S)
            except Error:
                return

    # --- methods ---

    async def list(self, request: Request[ScheduleList]) -> SchedulesReply:
        body = request.body
        if not 0 <= body.upcoming <= MAX_UPCOMING:
            raise InvalidError(f"upcoming is between 0 and {MAX_UPCOMING}, not {body.upcoming}")
        only = self._apps.for_caller(request.caller, body.app, body.environment, READ).app_id if body.app else ""
        found = [await self._info(one, body.upcoming) for one in self._by_function.values() if only in ("", one.app_id)]
        return SchedulesReply(tuple(sorted(found, key=lambda one: (one.app_name, one.app_id, one.function_name))))

    async def _info(self, entry: Entry, upcoming: int) -> ScheduleInfo:
        status = ""
        if entry.last_call_id:
            try:
                statuses = (await self._calls.info(entry.last_call_id)).statuses
                status = next((one for one in statuses if one != SUCCESS), SUCCESS) if statuses else PENDING
            except NotFoundError:
                pass  # it is no longer kept
        after = max(entry.done_until, self._clock.now())
        app = self._apps.find(entry.app_id)
        return ScheduleInfo(
            entry.schedule_id,
            entry.app_id,
            app.name,
            entry.function_id,
            next((name for name, one in self._apps.names(entry.app_id).items() if one == entry.function_id), ""),
            entry.schedule.shown,
            entry.paused,
            entry.schedule.missed,
            entry.schedule.overlap,
            () if entry.paused else tuple(cron.next_runs(entry.schedule, entry.started_at, after, upcoming)),
            entry.last_at,
            entry.last_call_id,
            status,
            entry.note,
        )

    async def run(self, request: Request[ScheduleRef]) -> ScheduleRun:
        """Begin a run now, whatever the schedule says; also of a paused one. Its times stay."""
        entry = self._named(request, request.body.schedule)
        call_id, _ = await self._calls.submit(entry.function_id, "spawn", [(0, self._nothing, None)])
        if self._by_function.get(entry.function_id) is entry:
            entry.last_at, entry.last_call_id, entry.note = self._clock.now(), call_id, ""
            await asyncio.wait([self._moved(entry)])
            self._arm()
        return ScheduleRun(call_id)

    async def pause(self, request: Request[SchedulePause]) -> Empty:
        """Pause, or go on: with the first time from now, nothing is made up."""
        entry = self._named(request, request.body.schedule)
        if entry.paused != request.body.paused:
            before = entry.paused, entry.done_until, entry.note
            entry.paused = request.body.paused
            entry.done_until = max(entry.done_until, self._clock.now())
            entry.note = ""
            try:
                await self._moved(entry)
            except Error:
                entry.paused, entry.done_until, entry.note = before
                entry.aim()
                raise
            finally:
                self._arm()
        return Empty()

    def _named(self, request: Request[Any], word: str) -> Entry:
        found = self._by_function.get(word) or next(
            (one for one in self._by_function.values() if one.schedule_id == word), None
        )
        if found is None:
            raise NotFoundError(f"there is no schedule {word[:80]!r}: see `cadenza schedule list`")
        self._apps.for_caller(request.caller, found.app_id, needs=WRITE)
        return found


def run_id(schedule_id: str, moment: float) -> str:
    """The id of the call that a schedule makes for one time: the same again after a crash. Pure."""
    return derived("call", int.from_bytes(hashlib.sha256(f"{schedule_id} {moment!r}".encode()).digest(), "big"))


def handlers(schedules: Schedules) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"schedule.list": schedules.list, "schedule.run": schedules.run, "schedule.pause": schedules.pause}
