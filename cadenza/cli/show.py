"""How things look: tables, times, failures. Rich where there is a terminal, plain text where there is none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def as_json(value: Any) -> None:
    """One JSON document on standard output, for scripts. Keys are snake_case."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], json_output: bool) -> None:
    """A list of things. As JSON: a list of objects whose keys are the columns in snake_case."""
    rows = [list(row) for row in rows]
    if json_output:
        keys = ["".join(c if c.isalnum() else "_" for c in name.lower()) for name in columns]
        as_json([dict(zip(keys, row)) for row in rows])
        return
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        view = Table(title=title if rows else None, box=box.SIMPLE_HEAD, title_justify="left")
        for name in columns:
            view.add_column(name, overflow="fold")
        for row in rows:
            view.add_row(*[str(one) for one in row])
        Console().print(view)
        return
    click.echo("\t".join(columns))
    for row in rows:
        click.echo("\t".join(str(one) for one in row))


def when(seconds: float | None) -> str:
    """An epoch time for people: local, to the second; empty for none."""
    if not seconds:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def milliseconds(seconds: float) -> str:
    """A duration for a column of timings."""
    return f"{seconds * 1000:.1f}"


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
    from datetime import datetime

    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither an ISO 8601 time nor one like '2h', '30m', '1d'") from None
