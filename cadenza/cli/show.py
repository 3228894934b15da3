"""How things look: tables, times, failures. Rich where there is a terminal, plain text where there is none."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import click


def as_json(value: Any) -> None:
    """One JSON document on standard output, for scripts. Keys are snake_case."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@dataclass(frozen=True)
class Cell:
    """One value of a table: its text, and what scripts get."""

    shown: str
    raw: Any


def _raw(cell: Any) -> Any:
    return cell.raw if isinstance(cell, Cell) else cell


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], json_output: bool) -> None:
    """A list of things. As JSON: a list of objects whose keys are the columns in snake_case.

    A cell may be a `Cell`, which looks one way to people and another to scripts.
    """
    cells = [list(row) for row in rows]
    if json_output:
        keys = ["".join(c if c.isalnum() else "_" for c in name.lower()) for name in columns]
        as_json([{key: _raw(one) for key, one in zip(keys, row)} for row in cells])
        return
    shown = [[one.shown if isinstance(one, Cell) else str(one) for one in row] for row in cells]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        view = Table(title=title if shown else None, box=box.SIMPLE_HEAD, title_justify="left")
        for name in columns:
            view.add_column(name, overflow="fold")
        for line in shown:
            view.add_row(*line)
        Console().print(view)
        return
    click.echo("\t".join(columns))
    for line in shown:
        click.echo("\t".join(line))


def when(seconds: float | None) -> Cell:
    """An epoch time: for people local, to the second, and empty for none; for scripts ISO 8601 with its zone."""
    if not seconds:
        return Cell("", None)
    moment = datetime.fromtimestamp(seconds).astimezone()
    return Cell(moment.strftime("%Y-%m-%d %H:%M:%S"), moment.isoformat(timespec="milliseconds"))


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
