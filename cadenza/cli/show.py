"""How things look: tables, times, failures. Rich where there is a terminal, plain text where there is none."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

TIMES = frozenset(("time", "since", "started_at"))
"""Names of fields of replies that are epoch seconds, where a reply is printed whole."""
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t][^\n]*\n)*")


def brief(text: str) -> str:
    """A reason on one line: of each traceback in it the exception alone."""
    return " ".join(_TRACEBACK.sub("", text).split())


def as_json(value: Any) -> None:
    """One JSON document on standard output, for scripts. Keys are snake_case."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@dataclass(frozen=True)
class Cell:
    """One value of a table: its text, and what scripts get. ``short``: its text in a terminal's table, where room is
    scarce."""

    shown: str
    raw: Any
    short: str = ""


def _raw(cell: Any) -> Any:
    return cell.raw if isinstance(cell, Cell) else cell


def _shown(cell: Any) -> str:
    return cell.shown if isinstance(cell, Cell) else str(cell)


def key(name: str) -> str:
    """A column's name as a key of JSON: snake_case."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def rows_as_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """A list of things as scripts get it."""
    keys = [key(name) for name in columns]
    return [{name: _raw(one) for name, one in zip(keys, row)} for row in rows]


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], json_output: bool, no_color: bool = False
) -> None:
    """A list of things. As JSON: a list of objects whose keys are the columns in snake_case.

    A cell may be a `Cell`, which looks one way to people and another to scripts. A terminal is spared columns in which
    nothing stands; pipes and JSON always have all.
    """
    cells = [list(row) for row in rows]
    if json_output:
        as_json(rows_as_json(columns, cells))
        return
    shown = [[_shown(one) for one in row] for row in cells]
    if sys.stdout.isatty():
        shown = [[(isinstance(one, Cell) and one.short) or _shown(one) for one in row] for row in cells]
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        kept = [at for at in range(len(columns)) if not shown or any(line[at] for line in shown)]
        view = Table(title=title if shown else None, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for at in kept:
            whole = columns[at].endswith(("ID", " at"))  # an id in two lines could not be copied
            view.add_column(columns[at], overflow="fold", no_wrap=whole)
        for line in shown:
            view.add_row(*[Text(line[at]) for at in kept])
        Console(no_color=no_color or None).print(view)
        return
    click.echo("\t".join(columns))
    for line in shown:
        click.echo("\t".join(line))


def facts(pairs: Sequence[tuple[str, Any]], no_color: bool = False) -> None:
    """One thing: a line for each fact that is known."""
    known = [(name, _shown(one)) for name, one in pairs if _shown(one)]
    width = max((len(name) for name, _ in known), default=0)
    bold = sys.stdout.isatty() and not no_color and "NO_COLOR" not in os.environ
    for name, value in known:
        click.echo(f"{click.style(name, bold=True) if bold else name}{' ' * (width - len(name))}  {value}")


def facts_as_json(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """One thing as scripts get it: all facts, known or not."""
    return {key(name): _raw(one) for name, one in pairs}


color_option = click.option("--no-color", is_flag=True, help="Without colors.")


def number(count: int) -> Cell:
    """A number of which 0 means that there is none."""
    return Cell(str(count) if count else "", count or None)


def yes(value: bool) -> Cell:
    """A mark for what is true."""
    return Cell("yes" if value else "", value)


def listed(words: Sequence[str]) -> Cell:
    """Several words in one place."""
    return Cell(", ".join(words), list(words))


def tags(values: Mapping[str, str]) -> Cell:
    """Names with values."""
    return Cell(", ".join(f"{name}={value}" for name, value in sorted(values.items())), dict(values))


def limit(value: float | None, unit: str = "") -> Cell:
    """A limit, or that there is none."""
    return Cell("none" if value is None else f"{value:g}{unit}", value)


def duration(seconds: float) -> str:
    """A span of time for people: two units at most."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"


def when(seconds: float | None) -> Cell:
    """An epoch time: for people local, to the second (in a terminal's table the day only when it is not today's), and
    empty for none; for scripts ISO 8601 with its zone."""
    if not seconds:
        return Cell("", None)
    moment = datetime.fromtimestamp(seconds).astimezone()
    today = moment.date() == datetime.now().date()
    short = moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")
    return Cell(moment.strftime("%Y-%m-%d %H:%M:%S"), moment.isoformat(timespec="milliseconds"), short)


def dated(value: Any) -> Any:
    """A reply's plain form for scripts: the epoch times in it (`TIMES`) as ISO 8601, and None where there is none."""
    if isinstance(value, dict):
        return {
            name: when(one).raw if name in TIMES and isinstance(one, (int, float)) else dated(one)
            for name, one in value.items()
        }
    return [dated(one) for one in value] if isinstance(value, (list, tuple)) else value


def size(count: int) -> Cell:
    """Bytes: for people with a unit, for scripts as they are."""
    return Cell(size_text(count), count)


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def milliseconds(seconds: float) -> Cell:
    """A duration for a column of timings."""
    return Cell(f"{seconds * 1000:.1f}", round(seconds * 1000, 3))


def failure(error: BaseException) -> None:
    """An error of ours, as the person at the terminal should read it: its text, no traceback."""
    text = str(error) or type(error).__name__
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), text), highlight=False)
    else:
        print(f"Error: {text}", file=sys.stderr)


def parse_time(text: str, now: float) -> float:
    """``2h``, ``30m``, ``1d`` ago, or an ISO 8601 time, as epoch seconds. click.BadParameter otherwise."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    text = text.strip()
    if text and text[-1] in units and text[:-1].replace(".", "", 1).isdigit():
        return now - float(text[:-1]) * units[text[-1]]
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither an ISO 8601 time nor one like '2h', '30m', '1d'") from None
