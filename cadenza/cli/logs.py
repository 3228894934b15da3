"""Options and printing of log lines, shared by ``app logs`` and ``container logs``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from cadenza.base.errors import LogsFetchError
from cadenza.cli import show
from cadenza.cli.connection import listen
from cadenza.protocol import methods

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_TAIL_ENTRIES = 100
MAX_RANGE_DAYS = 35
SOURCES = {0: "system", 1: "stdout", 2: "stderr"}


def log_options(command: F) -> F:
    """The options that every command which prints logs has. Names: cli_surface.md."""
    for option in (
        click.option("--timestamps", is_flag=True, help="Begin each line with its time."),
        click.option("-s", "--source", type=click.Choice(["stdout", "stderr", "system"]), help="Only this source."),
        click.option("--search", default="", help="Only lines with this text."),
        click.option(
            "-n",
            "--tail",
            type=click.IntRange(min=1),
            help=f"Only the last so many entries; {DEFAULT_TAIL_ENTRIES} where no time is given.",
        ),
        click.option("--until", default=None, help="End: ISO 8601, or like '2h' (ago). Else now."),
        click.option("--since", default=None, help="Start: ISO 8601, or like '2h' (ago)."),
        click.option("--json", "json_output", is_flag=True, help="One JSON object a line."),
    ):
        command = option(command)
    return command


def print_logs(
    *,
    app: str = "",
    container: str = "",
    function: str = "",
    call: str = "",
    follow: bool = False,
    timestamps: bool = False,
    source: str | None = None,
    search: str = "",
    tail: int | None = None,
    since: str | None = None,
    until: str | None = None,
    json_output: bool = False,
    show_function_id: bool = False,
    show_function_call_id: bool = False,
    show_container_id: bool = False,
    everything: bool = False,
    all_variants: bool = False,
) -> None:
    """Print what matches, oldest first; with ``follow``, go on until the app or container ends.

    ``all_variants``: with ``function``, those of its variants too. LogsFetchError for more than `MAX_RANGE_DAYS`.
    """
    now = time.time()
    ranged = since is not None or until is not None
    begin = show.parse_time(since, now) if since else 0.0
    end = show.parse_time(until, now) if until else 0.0
    if begin and (end or now) - begin > MAX_RANGE_DAYS * 86400.0:
        raise LogsFetchError(f"at most {MAX_RANGE_DAYS} days at a time: ask for a shorter range, or --tail")
    if begin and end and end < begin:
        raise click.UsageError("--since must be before --until")
    query = methods.LogQuery(
        app=app,
        container=container,
        function=function,
        call=call,
        since=begin,
        until=end,
        tail=tail or (0 if ranged or everything else DEFAULT_TAIL_ENTRIES),
        search=search,
        source=source or "",
        follow=follow,
        all_variants=all_variants,
    )
    for entry, text in _entries(query):
        if json_output:
            show_json_line(entry, text)
            continue
        prefix = ""
        if timestamps:
            prefix += time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.time)) + " "
        if show_function_id:
            prefix += entry.function_id + " "
        if show_function_call_id:
            prefix += entry.call_id + " "
        if show_container_id:
            prefix += entry.container_id + " "
        stream = sys.stderr if entry.fd == 2 else sys.stdout
        stream.write(prefix + text if not prefix else "".join(prefix + one for one in lines_of(text)))
        stream.flush()


def _entries(query: methods.LogQuery) -> Iterator[tuple[methods.LogEntry, str]]:
    """What matches, as it comes."""
    for batch, payload in listen("log.read", query):
        if batch.dropped_bytes:
            print(f"... {show.size_text(batch.dropped_bytes)} left out: this reader was too slow", file=sys.stderr)
        at = 0
        for entry in batch.entries:
            yield entry, bytes(payload[at : at + entry.size]).decode("utf-8", "replace")
            at += entry.size


def lines_of(text: str) -> list[str]:
    """Lines with their ends, cut at line feeds only: a carriage return is progress within a line."""
    parts = text.split("\n")
    return [one + "\n" for one in parts[:-1]] + parts[-1:] * bool(parts[-1])


def show_json_line(entry: methods.LogEntry, text: str) -> None:
    """One entry as one line of JSON."""
    import json
    from datetime import datetime

    row = {
        "timestamp": datetime.fromtimestamp(entry.time).astimezone().isoformat(timespec="microseconds"),
        "source": SOURCES.get(entry.fd, str(entry.fd)),
        "container_id": entry.container_id,
        "function_id": entry.function_id,
        "function_call_id": entry.call_id,
        "input_id": entry.input_id,
        "data": text,
    }
    print(json.dumps(row, ensure_ascii=False), flush=True)
