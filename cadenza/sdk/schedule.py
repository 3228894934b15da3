"""When a function runs by itself: `Cron` and `Period`, as values. Source: semantics.md section 15.

Whether a cron line can be read is the server's to say; here only the types are checked.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError


MISSED = ("once", "skip", "all")
OVERLAP = ("allow", "skip", "wait")


class Schedule:
    """What ``schedule=`` takes; make a `Cron` or a `Period`.

    ``missed``: what becomes of runs that were due while the server was away: ``"once"``, one run makes up for them;
    ``"skip"``, none does; ``"all"``, each is made up, the newest 1,000 at most.
    ``overlap``: when a run is due and the one before it is not over: ``"allow"``, it is one more input, and containers
    decide; ``"skip"``, it is left out; ``"wait"``, it begins when that one is over.
    """

    _fields: dict[str, object]

    def _take(self, missed: object, overlap: object) -> None:
        """What is not the default is a field: equal declarations are equal texts."""
        name = type(self).__name__
        if missed not in MISSED:
            raise InvalidError(f"{name}: missed is one of {', '.join(MISSED)}, not {missed!r}")
        if overlap not in OVERLAP:
            raise InvalidError(f"{name}: overlap is one of {', '.join(OVERLAP)}, not {overlap!r}")
        if missed != MISSED[0]:
            self._fields["missed"] = missed
        if overlap != OVERLAP[0]:
            self._fields["overlap"] = overlap

    def _text(self) -> str:
        """The schedule as it travels in a function's options: JSON with a key ``kind``."""
        import json

        return json.dumps({"kind": type(self).__name__.lower(), **self._fields}, sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Schedule) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._text())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._fields.items() if value)
        return f"{type(self).__name__}({shown})"


class Cron(Schedule):
    """Runs at the times of a cron line, ``minute hour day-of-month month day-of-week``, in a time zone by IANA name."""

    def __init__(
        self, cron_string: str, timezone: str = "UTC", *, missed: str = "once", overlap: str = "allow"
    ) -> None:
        if not isinstance(cron_string, str):
            raise InvalidError(f'Cron takes a string such as "0 9 * * 1", not {type(cron_string).__name__}')
        if not isinstance(timezone, str):
            raise InvalidError(f'Cron: timezone is a name such as "Europe/Berlin", not {type(timezone).__name__}')
        self._fields = {"cron_string": cron_string, "timezone": timezone}
        self._take(missed, overlap)


class Period(Schedule):
    """Runs again and again after this time; years, months, weeks and days are units of the calendar."""

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
        missed: str = "once",
        overlap: str = "allow",
    ) -> None:
        parts: dict[str, object] = {
            "years": years,
            "months": months,
            "weeks": weeks,
            "days": days,
            "hours": hours,
            "minutes": minutes,
            "seconds": seconds,
        }
        for name, value in parts.items():
            kinds = (int, float) if name == "seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                wanted = "a number" if name == "seconds" else "an integer"
                raise InvalidError(f"Period: {name} must be {wanted}, not {type(value).__name__}")
        self._fields = parts
        self._take(missed, overlap)
