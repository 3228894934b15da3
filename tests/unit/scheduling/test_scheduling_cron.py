"""When schedules are due: lines, zones, clocks put forward and back, periods by the calendar, what was missed.

Semantics section 15 and section 33 (17).
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from cadenza.base.errors import InvalidError
from cadenza.scheduling.cron import MAX_MADE_UP, Schedule, due, fault, next_run, next_runs, read

VIENNA, NEW_YORK = "Europe/Vienna", "America/New_York"


def cron(line: str, zone: str = "UTC", **more: str) -> Schedule:
    return read(json.dumps({"kind": "cron", "cron_string": line, "timezone": zone, **more}))


def period(missed: str = "once", **units: float) -> Schedule:
    return read(json.dumps({"kind": "period", "missed": missed, **units}))


def at(text: str, zone: str = "UTC") -> float:
    """Epoch seconds of a local time; a final ``+`` means the second of two."""
    moment = datetime.fromisoformat(text.rstrip("+")).replace(tzinfo=ZoneInfo(zone), fold=int(text.endswith("+")))
    return moment.timestamp()


def shown(moments: list[float], zone: str = "UTC") -> list[str]:
    return [datetime.fromtimestamp(one, ZoneInfo(zone)).isoformat(timespec="minutes") for one in moments]


def runs(schedule: Schedule, after: str, most: int, zone: str = "UTC") -> list[str]:
    return shown(next_runs(schedule, 0.0, at(after, zone), most), zone)


# --- lines ---


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        ("0 9 * * 1", "2026-08-22T00:00", ["2026-08-24T09:00", "2026-08-31T09:00"]),
        ("*/20 * * * *", "2026-01-01T00:00", ["2026-01-01T00:20", "2026-01-01T00:40"]),
        ("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 0 31 * *", "2026-01-31T00:00", ["2026-03-31T00:00", "2026-05-31T00:00"]),
        ("0 0 L * *", "2028-01-31T00:00", ["2028-02-29T00:00", "2028-03-31T00:00"]),
        ("0 0 1 jan,JUL *", "2026-01-01T00:00", ["2026-07-01T00:00", "2027-01-01T00:00"]),
        ("0 0 13 * FRI", "2026-02-01T00:00", ["2026-02-06T00:00", "2026-02-13T00:00", "2026-02-20T00:00"]),
        ("0 0 * * 7", "2026-08-22T00:00", ["2026-08-23T00:00"]),
        ("0 0 * * mon#2", "2026-08-01T00:00", ["2026-08-10T00:00", "2026-09-14T00:00"]),
        ("59 23 31 12 *", "2026-12-31T23:59", ["2027-12-31T23:59"]),
    ],
)
def test_lines(line: str, after: str, expected: list[str]) -> None:
    assert [one[:16] for one in runs(cron(line), after, len(expected))] == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("x * * * *", "minute"),
        ("60 * * * *", "minute"),
        ("-1 * * * *", "minute"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("1, * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 32 * *", "day-of-month"),
        ("0 0 0 * *", "day-of-month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * foo *", "month"),
        ("0 0 * * 8", "day-of-week"),
        ("0 0 * * 5#6", "day-of-week"),
        ("0 0 * * \u0661", "day-of-week"),
    ],
)
def test_a_wrong_line_shows_the_field(line: str, field: str) -> None:
    with pytest.raises(InvalidError, match=f"the field {field} cannot be"):
        cron(line)


@pytest.mark.parametrize("line", ["", "x", "* * * *", "* * * * * *", "@daily", "1," * 100 + "1 * * * *"])
def test_a_line_has_five_fields(line: str) -> None:
    """Semantics 34: `Cron("x")` is accepted by the client; so the server says it."""
    with pytest.raises(InvalidError, match="five fields"):
        cron(line)
    cron("1," * 95 + "1 * * * *")


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 2,4 *", "0 0 31 11 *"])
def test_a_line_that_never_comes(line: str) -> None:
    text = json.dumps({"kind": "cron", "cron_string": line})
    assert "never comes" in fault(text, at("2026-01-01T00:00"))
    assert fault(json.dumps({"kind": "cron", "cron_string": "0 0 29 2 *"}), 0.0) == "" == fault("", 0.0)


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Vienna",
        "Europe/Nowhere",
        "../../etc/passwd",
        "/etc/localtime",
        "a\0b",
        "x" * 300,
        "localtime",
        "posixrules",
        "Factory",
        "right/Europe/Vienna",
        "posix/UTC",
    ],
)
def test_time_zones_that_are_none(zone: str) -> None:
    with pytest.raises(InvalidError, match="time zone"):
        cron("0 0 * * *", zone)


@pytest.mark.parametrize(
    "text",
    [
        "x", "[]", "{}", '{"kind": "moon"}', '{"kind": "cron"}', '{"kind": "cron", "cron_string": 5}',
        '{"kind": "cron", "cron_string": "* * * * *", "missed": "some"}',
        '{"kind": "cron", "cron_string": "* * * * *", "overlap": "all"}',
        '{"kind": "period", "days": "1"}', '{"kind": "period", "days": 1.5}', '{"kind": "period", "moons": 1}',
        '{"kind": "period", "days": true}', '{"kind": "period", "seconds": NaN}', '{"kind": "period", "days": -1}',
        '{"kind": "period", "hours": 1, "minutes": -1}', '{"kind": "period"}', '{"kind": "period", "seconds": 0.5}',
        '{"kind": "period", "years": 1e400}',
        '{"kind": "period", "seconds": Infinity}', '{"kind": "period", "days": 1e10}',
    ],
)  # fmt: skip
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(InvalidError):
        read(text)


# --- clocks put forward and back ---


@pytest.mark.parametrize(
    ("zone", "before", "gap_end", "missing"),
    [
        (VIENNA, "2026-03-28T12:00", "2026-03-29T03:00", "30 2 * * *"),
        (NEW_YORK, "2026-03-07T12:00", "2026-03-08T03:00", "30 2 * * *"),
        ("Africa/Cairo", "2026-04-23T12:00", "2026-04-24T01:00", "30 0 * * *"),
    ],
)
def test_a_time_that_does_not_exist_comes_right_after_the_gap(
    zone: str, before: str, gap_end: str, missing: str
) -> None:
    found = runs(cron(missing, zone), before, 2, zone)
    assert found[0][:16] == gap_end
    day_after = datetime.fromisoformat(gap_end) + timedelta(days=1)
    assert found[1][:10] == day_after.isoformat()[:10]
    assert found[1][11:16] == f"{int(missing.split()[1]):02}:30"


@pytest.mark.parametrize(
    ("zone", "before", "hour"), [(VIENNA, "2026-10-24T12:00", 2), (NEW_YORK, "2026-10-31T12:00", 1)]
)
def test_a_time_that_comes_twice_is_one_run(zone: str, before: str, hour: int) -> None:
    found = next_runs(cron(f"30 {hour} * * *", zone), 0.0, at(before, zone), 3)
    assert found[0] == at((datetime.fromisoformat(before) + timedelta(days=1)).strftime(f"%Y-%m-%dT0{hour}:30"), zone)
    assert found[1] - found[0] == 25 * 3600
    assert found[2] - found[1] == 24 * 3600


@pytest.mark.parametrize("minutes", range(0, 240, 7))
def test_asking_again_from_anywhere_in_the_night_gives_the_same_runs(minutes: int) -> None:
    """A restart in between changes nothing: the next run depends on the time alone, also within the doubled hour."""
    for line in ("30 2 * * *", "0,30 1-3 * * *", "*/15 * * * *", "10 */1 * * *"):
        schedule = cron(line, VIENNA)
        for night in ("2026-03-29T00:00", "2026-10-25T00:00"):
            begin = at(night, VIENNA)
            every = next_runs(schedule, 0.0, begin, 40)
            assert every == sorted(set(every))
            now = begin + minutes * 60
            assert next_run(schedule, 0.0, now) == next(one for one in every if one > now)


def test_lines_with_a_star_go_by_the_time_that_passes() -> None:
    spring = next_runs(cron("0 * * * *", VIENNA), 0.0, at("2026-03-29T00:30", VIENNA), 4)
    autumn = next_runs(cron("0 * * * *", VIENNA), 0.0, at("2026-10-25T00:30", VIENNA), 4)
    assert shown(spring, VIENNA) == [
        "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00", "2026-03-29T05:00+02:00",
    ]  # fmt: skip
    assert shown(autumn, VIENNA) == [
        "2026-10-25T01:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00",
    ]  # fmt: skip


def test_a_line_of_a_zone_moves_with_it() -> None:
    """06:00 in Vienna is 05:00 UTC in winter and 04:00 in summer."""
    found = next_runs(cron("0 6 * * *", VIENNA), 0.0, at("2026-03-28T00:00"), 2)
    assert shown(found) == ["2026-03-28T05:00+00:00", "2026-03-29T04:00+00:00"]


# --- periods ---


def test_a_period_counts_from_its_start() -> None:
    start = at("2026-01-01T12:34:56")
    assert next_runs(period(hours=1, minutes=30), start, start, 2) == [start + 5400, start + 10800]
    assert next_runs(period(seconds=1.5), start, start + 1e6, 2) == [start + 1e6 + 0.5, start + 1e6 + 2]
    assert next_run(period(days=1), start, start - 100) == start + 86400  # never before its first


@pytest.mark.parametrize(
    ("units", "start", "expected"),
    [
        ({"months": 1}, "2026-01-31T10:00", ["2026-02-28T10:00", "2026-03-31T10:00", "2026-04-30T10:00"]),
        ({"months": 1}, "2028-01-30T10:00", ["2028-02-29T10:00", "2028-03-30T10:00"]),
        (
            {"years": 1},
            "2028-02-29T00:00",
            ["2029-02-28T00:00", "2030-02-28T00:00", "2031-02-28T00:00", "2032-02-29T00:00"],
        ),
        ({"years": 1, "months": 6}, "2026-08-31T00:00", ["2028-02-29T00:00", "2029-08-31T00:00"]),
        ({"months": 1, "days": 1, "hours": 2}, "2026-01-31T00:00", ["2026-03-01T02:00", "2026-04-02T04:00"]),
        ({"weeks": 2}, "2026-12-25T08:00", ["2027-01-08T08:00", "2027-01-22T08:00"]),
    ],
)
def test_months_and_years_are_the_calendars(units: dict[str, int], start: str, expected: list[str]) -> None:
    begin = at(start)
    found = next_runs(period(**units), begin, begin, len(expected))
    assert [one[:16] for one in shown(found)] == expected
    for number, moment in enumerate(found[:-1]):  # asked again later, it is the same calendar
        assert next_run(period(**units), begin, moment) == found[number + 1]


def test_long_ago_and_far_away() -> None:
    assert next_run(period(months=1), 0.0, at("2026-08-22T00:00")) == at("2026-09-01T00:00")
    began = time.monotonic()
    assert next_run(period(years=9000), 0.0, at("2026-08-22T00:00")) is None
    assert next_run(period(years=1_000_000_000), 0.0, 0.0) is None
    assert next_run(period(seconds=1), 0.0, 4e9) == 4e9 + 1
    assert time.monotonic() - began < 5


# --- missed ---


@pytest.mark.parametrize(
    ("missed", "away_s", "expected"),
    [
        ("once", 10, [0]),
        ("skip", 10, [0]),
        ("all", 10, [0]),
        ("once", 3 * 60 + 10, [180]),
        ("skip", 3 * 60 + 10, [180]),  # the last one is late by ten seconds only
        ("all", 3 * 60 + 10, [0, 60, 120, 180]),
    ],
)
def test_every_minute(missed: str, away_s: int, expected: list[int]) -> None:
    first = at("2026-01-01T00:01")
    assert due(cron("* * * * *", missed=missed), 0.0, first - 60, first + away_s) == [first + one for one in expected]


def test_a_day_that_was_missed() -> None:
    first = at("2026-01-01T06:00")
    now = at("2026-01-03T09:00")
    assert due(cron("0 6 * * *", missed="skip"), 0.0, first - 60, now) == []
    assert due(cron("0 6 * * *"), 0.0, first - 60, now) == [at("2026-01-03T06:00")]
    assert len(due(cron("0 6 * * *", missed="all"), 0.0, first - 60, now)) == 3
    assert due(cron("0 6 * * *"), 0.0, now, now) == []
    assert due(period("all", days=1), first, first, now) == [first + 86_400, first + 2 * 86_400]


@pytest.mark.parametrize("schedule", [cron("* * * * *", VIENNA, missed="all"), period("all", seconds=1)])
def test_years_away_are_made_up_within_a_limit_and_soon(schedule: Schedule) -> None:
    begin, now = at("2006-01-01T00:00"), at("2026-01-01T00:00:30")
    began = time.monotonic()
    found = due(schedule, begin, begin, now)
    assert time.monotonic() - began < 5
    assert len(found) == MAX_MADE_UP
    assert found[-1] <= now < next(iter(next_runs(schedule, begin, found[-1], 1)))
    assert due(cron("0 0 29 2 *"), 0.0, begin, now) == [at("2024-02-29T00:00")]


def test_how_it_is_shown() -> None:
    def text(**fields: Any) -> str:
        return read(json.dumps(fields)).shown

    assert text(kind="cron", cron_string="0 6 * * *", timezone=VIENNA) == "Cron('0 6 * * *', timezone='Europe/Vienna')"
    assert text(kind="cron", cron_string="0 6 * * *", missed="all") == "Cron('0 6 * * *', missed='all')"
    assert text(kind="period", days=1, seconds=0.5, overlap="skip") == "Period(days=1, seconds=0.5, overlap='skip')"
    assert datetime.fromtimestamp(at("2026-10-25T02:30+", VIENNA), timezone.utc).hour == 1
