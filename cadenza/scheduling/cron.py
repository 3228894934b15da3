"""When a function runs by itself. Pure: from a schedule's text and times to times; all times are epoch seconds.

A cron line is read as Debian's cron reads it (`cronsim`): five fields, ``*/n``, ranges, lists, names of months and
days, ``L``, ``LW`` and ``day#n``; where one of the two day fields begins with ``*`` both must fit, else either. When
clocks are put forward, a run whose minute does not exist comes in the first minute after the gap (several such are
one); when they are put back, a run whose minute comes twice happens once, at the first. Lines whose minute or hour
begins with ``*`` go by the time that passes instead: they run in both of the doubled hours and not in the missing one.

A period counts from its start. Years and months are the calendar's, from the start's own day: from 31 January by
months it runs on the last days of shorter months. Days and weeks are calendar days in UTC.
Source: semantics.md section 15.
"""

from __future__ import annotations

import json
import math
from calendar import monthrange
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice, takewhile
from typing import Iterator, Optional
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from cadenza.base.errors import InvalidError

SKIP, ONCE, ALL = "skip", "once", "all"
"""What becomes of runs that were due while the server was away: none is made up, one is, every one is."""
ALLOW, WAIT = "allow", "wait"
"""When a run is due and the last one is not over: it runs beside it; `SKIP`, it is left out; it runs after it."""
MISSED, OVERLAP = (SKIP, ONCE, ALL), (ALLOW, SKIP, WAIT)
MAX_LINE_CHARS = 200
MIN_PERIOD_S = 1.0
MAX_UNITS = 1_000_000_000
LATE_S = 60.0
"""A run that begins later than this after its time was missed."""
MAX_MADE_UP = 1_000
"""So many missed runs are made up at most, the newest."""
FIRST_WINDOW_S = 3_600.0
CALENDAR = ("years", "months")
UNITS = {"weeks": 7 * 86_400, "days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
NO_ZONES = ("localtime", "posixrules", "Factory")
"""Files of the time zone database that are no zones: they say what this machine's clock shows, or nothing."""
NO_ZONE_DIRECTORIES = ("posix/", "right/")
"""The same zones once more; by those of ``right/`` every time would be wrong by the leap seconds."""
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")


@dataclass(frozen=True)
class Schedule:
    """A schedule as it was declared. ``line`` is empty for a period."""

    line: str = ""
    zone: str = "UTC"
    months: int = 0
    """Of a period: its years and months together."""
    seconds: float = 0.0
    """Of a period: its other units together."""
    missed: str = ONCE
    overlap: str = ALLOW
    shown: str = ""
    """As people write it."""

    @property
    def is_period(self) -> bool:
        return not self.line


def read(text: str) -> Schedule:
    """From a function's option ``schedule``. InvalidError says what cannot be in it and in which field."""
    try:
        fields = json.loads(text)
        kind = fields.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidError("a schedule is a Cron or a Period") from None
    missed, overlap = fields.pop("missed", ONCE), fields.pop("overlap", ALLOW)
    if missed not in MISSED:
        raise InvalidError(f"missed= is one of {', '.join(MISSED)}, not {str(missed)[:40]!r}")
    if overlap not in OVERLAP:
        raise InvalidError(f"overlap= is one of {', '.join(OVERLAP)}, not {str(overlap)[:40]!r}")
    more = (f", missed={missed!r}" if missed != ONCE else "") + (f", overlap={overlap!r}" if overlap != ALLOW else "")
    if kind == "cron":
        return _read_cron(fields, missed, overlap, more)
    if kind == "period":
        return _read_period(fields, missed, overlap, more)
    raise InvalidError("a schedule is a Cron or a Period")


def fault(text: str, now: float) -> str:
    """Why a function cannot have this schedule; empty when it can, or has none."""
    if not text:
        return ""
    try:
        schedule = read(text)
    except InvalidError as error:
        return str(error)
    if next_run(schedule, now, now) is None:
        return f"{schedule.shown} never comes"
    return ""


def _read_cron(fields: dict[str, object], missed: str, overlap: str, more: str) -> Schedule:
    line, zone = fields.get("cron_string"), fields.get("timezone", "UTC")
    if not isinstance(line, str) or not isinstance(zone, str):
        raise InvalidError('Cron takes a line such as "0 9 * * 1" and the name of a time zone')
    shown = f"Cron({line[:MAX_LINE_CHARS]!r}" + (f", timezone={zone[:80]!r}" if zone != "UTC" else "") + more + ")"
    words = line.split()
    if len(words) != len(FIELDS) or len(line) > MAX_LINE_CHARS:
        raise InvalidError(
            f"{shown}: a cron line has five fields, minute hour day-of-month month day-of-week, and at most "
            f"{MAX_LINE_CHARS} characters; this has {len(words)} fields and {len(line)} characters"
        )
    try:
        if zone in NO_ZONES or zone.startswith(NO_ZONE_DIRECTORIES):
            raise LookupError(zone)
        ZoneInfo(zone)
    except (LookupError, ValueError, OSError):
        raise InvalidError(
            f'{shown}: there is no time zone {zone[:80]!r}; it is a name such as "Europe/Vienna" or "UTC"'
        ) from None
    try:
        CronSim(line, datetime(2000, 1, 1))
    except (CronSimError, AssertionError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        for number, (name, word) in enumerate(zip(FIELDS, words, strict=True)):
            alone = " ".join([*["*"] * number, word, *["*"] * (4 - number)])
            try:
                CronSim(alone, datetime(2000, 1, 1))
            except (CronSimError, AssertionError, ValueError, TypeError, KeyError, IndexError, RecursionError):
                raise InvalidError(f"{shown}: the field {name} cannot be {word!r}") from None
        raise InvalidError(f"{shown} never comes: no month in it has such a day ({error})") from None
    return Schedule(line=line, zone=zone, missed=missed, overlap=overlap, shown=shown)


def _read_period(fields: dict[str, object], missed: str, overlap: str, more: str) -> Schedule:
    found: dict[str, float] = {}
    for name, value in fields.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in (*CALENDAR, *UNITS) or not number or (isinstance(value, float) and name != "seconds"):
            raise InvalidError(f"Period: {name[:40]} cannot be {str(value)[:40]!r}")
        assert isinstance(value, (int, float))
        if not 0 <= value <= MAX_UNITS:  # False for nan too
            raise InvalidError(f"Period: {name} is at least 0 and at most {MAX_UNITS:,}, not {value}")
        found[name] = value
    given = ", ".join(f"{name}={value:g}" for name in (*CALENDAR, *UNITS) if (value := found.get(name, 0)))
    shown = f"Period({given}{more if given else more[2:]})"
    months = int(found.get("years", 0)) * 12 + int(found.get("months", 0))
    seconds = sum(found.get(name, 0) * length for name, length in UNITS.items())
    if not months and seconds < MIN_PERIOD_S:
        raise InvalidError(f"{shown}: a period has at least {MIN_PERIOD_S:g} second")
    return Schedule(months=months, seconds=float(seconds), missed=missed, overlap=overlap, shown=shown)


# --- times ---


def times(schedule: Schedule, start: float, after: float) -> Iterator[float]:
    """The times later than ``after``, one after the other. A period counts from ``start``."""
    try:
        if not schedule.is_period:
            zone = ZoneInfo(schedule.zone) if schedule.zone != "UTC" else timezone.utc
            for moment in CronSim(schedule.line, datetime.fromtimestamp(math.floor(after), zone)):
                # In the second of two equal hours the line begins again with the first one's times: those are over.
                if moment.timestamp() > after:
                    after = moment.timestamp()
                    yield after
            return
        while True:
            after = _after_start(schedule, start, after)
            yield after
    except (OverflowError, ValueError):  # beyond the calendar
        return


def next_run(schedule: Schedule, start: float, after: float) -> Optional[float]:
    """The first time later than ``after``; None when there is none."""
    return next(times(schedule, start, after), None)


def next_runs(schedule: Schedule, start: float, after: float, most: int) -> list[float]:
    """The first ``most`` times later than ``after``."""
    return list(islice(times(schedule, start, after), most))


def due(schedule: Schedule, start: float, after: float, now: float) -> list[float]:
    """The times later than ``after`` and not later than ``now`` at which to run now: what was missed is left out or
    made up as the schedule says."""
    wanted = MAX_MADE_UP if schedule.missed == ALL else 1
    window_s = FIRST_WINDOW_S
    while True:  # a window that grows: after years away not all times of all those years are gone through
        since = max(after, now - window_s)
        found = list(takewhile(lambda moment: moment <= now, times(schedule, start, since)))
        if len(found) >= wanted or since <= after:
            break
        window_s *= 4
    found = found[-wanted:]
    if schedule.missed == SKIP and found and now - found[-1] > LATE_S:
        return []
    return found


def _after_start(schedule: Schedule, start: float, after: float) -> float:
    if not schedule.months:
        return _multiple(schedule, start, max(1, math.floor((after - start) / schedule.seconds)), after)
    longest_s = schedule.months * 31 * 86_400 + schedule.seconds
    return _multiple(schedule, start, max(1, math.floor((after - start) / longest_s)), after)


def _multiple(schedule: Schedule, start: float, count: int, after: float) -> float:
    """The first multiple of the period, from the one numbered ``count`` on, that is later than ``after``."""
    while (moment := _add(schedule, start, count)) <= after:
        count += 1
    return moment


def _add(schedule: Schedule, start: float, count: int) -> float:
    if not schedule.months:
        return start + count * schedule.seconds
    first = datetime.fromtimestamp(start, timezone.utc)
    year, month = divmod(first.year * 12 + first.month - 1 + count * schedule.months, 12)
    day = min(first.day, monthrange(year, month + 1)[1])
    moment = first.replace(year=year, month=month + 1, day=day) + timedelta(seconds=count * schedule.seconds)
    return moment.timestamp()
