"""``cadenza function stats | metrics | calls`` and ``cadenza app stats``: what happened to functions.

The commands are added to their groups by `cadenza.cli.functions` and `cadenza.cli.apps`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from cadenza.cli import completion, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.protocol import methods
from cadenza.protocol.functions import FunctionInputs
from cadenza.protocol.stats import GROUPS, Distribution, MetricQuery, Metrics, Stats, StatsQuery

BUCKETS = (
    "1m", "2m", "3m", "4m", "5m", "6m", "10m", "12m", "15m", "20m", "30m", "1h", "2h", "3h", "4h", "8h", "12h", "1d",
)  # fmt: skip
UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}
BARS = " ▁▂▃▄▅▆▇█"
PREVIEW_POINTS = 50
DEFAULT_CALLS = 10
function_argument = click.argument("function", shell_complete=completion.functions)


def range_options(command: Any) -> Any:
    """``--since`` and ``--until``."""
    for name, text in (
        ("--until", "End, not included: ISO 8601 (local without a zone) or like '2h' (ago). By default now."),
        ("--since", "Start: ISO 8601 (local without a zone) or like '2h' (ago)."),
    ):
        command = click.option(name, default=None, help=text)(command)
    return command


no_color_option = click.option("--no-color", is_flag=True, help="No colours.")


def _range(since: str | None, until: str | None) -> tuple[float, float]:
    now = time.time()
    begin = show.parse_time(since, now) if since else 0.0
    end = show.parse_time(until, now) if until else 0.0
    if begin and begin >= (end or now):
        raise click.UsageError("--since must be before --until, and not in the future")
    return begin, end


def _function(word: str, env: str | None) -> str:
    """The id that is meant. An id is not looked up: of a function that is gone, what is kept can still be read."""
    if word.startswith("fu-"):
        return word
    from cadenza.cli.functions import resolve

    return resolve(word, env).function_id


def _plain(no_color: bool) -> None:
    if no_color:
        import os

        os.environ["NO_COLOR"] = "1"  # rich looks there


# --- stats ---


@click.command("stats", help="Show what happened to a function: inputs, containers, durations.")
@function_argument
@range_options
@click.option("--all-variants", is_flag=True, help="The function and its variants together.")
@click.option(
    "--container", default="", help="Only this container (ta-...), of the last inputs. Wins over --all-variants."
)
@no_color_option
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def function_stats(
    function: str, since: str | None, until: str | None, all_variants: bool, container: str, no_color: bool,
    json_output: bool, env: str | None,
) -> None:  # fmt: skip
    _plain(no_color)
    begin, end = _range(since, until)
    function_id = _function(function, env)
    query = StatsQuery(function_id=function_id, since=begin, until=end, container=container, all_variants=all_variants)
    stats = ask("stats.read", query)
    more = {"variant_count": stats.variants, "all_variants": all_variants and not container}
    _print_stats({"function_id": function_id}, stats, more, json_output)


@click.command("stats", help="Show what happened to all functions of an app.")
@click.argument("app", shell_complete=completion.apps)
@range_options
@no_color_option
@click.option("--json", "json_output", is_flag=True, help="Print JSON, with how the app stands.")
@environment_option
def app_stats(
    app: str, since: str | None, until: str | None, no_color: bool, json_output: bool, env: str | None
) -> None:
    _plain(no_color)
    begin, end = _range(since, until)
    info = ask("app.get", methods.AppRef(app, wanted(env)))
    stats = ask("stats.read", StatsQuery(app=info.app_id, since=begin, until=end))
    about = {"app_id": info.app_id, "name": info.name, "state": info.state}
    if json_output:
        about["version"] = info.version or None
        about["created_at"] = show.when(info.created_at).raw
        about["deployed_at"] = show.when(info.deployed_at).raw
        about["stopped_at"] = show.when(info.stopped_at).raw
    _print_stats(about, stats, {"deployment_count": stats.deployments or None}, json_output)


def _print_stats(about: dict[str, Any], found: Stats, more: dict[str, Any], json_output: bool) -> None:
    counts = {
        "input_success_count": found.success,
        "input_failure_count": found.failure,
        "input_timeout_count": found.timeout,
        "input_running_at_end_count": found.running_at_end,
        "container_started_count": found.started,
        "container_error_count": found.errors,
        "container_creating_at_end_count": found.creating_at_end,
        "container_total_count": found.total,
        **more,
    }
    if json_output:
        show.as_json(
            {
                **about,
                "since": show.when(found.since).raw,
                "until": show.when(found.until).raw,
                **counts,
                "input_percentile_stats": _raw(found.inputs),
                "container_percentile_stats": _raw(found.containers),
            }
        )
        return
    facts: list[tuple[str, Any]] = [(name.replace("_", " ").capitalize(), value) for name, value in about.items()]
    facts += [("Since", show.when(found.since)), ("Until", show.when(found.until))]
    names = [(name.replace("_", " ").removesuffix(" count").capitalize(), value) for name, value in counts.items()]
    facts += [(name, value) for name, value in names if value is not None]
    show.facts([(name.replace(" id", " ID"), value) for name, value in facts])
    rows = [
        (name.replace("_", " "), *(_seconds(one.percentiles.get(percent)) for percent in ("50", "90", "95", "99")))
        for name, one in [*found.inputs.items(), *found.containers.items()]
    ]
    if rows:
        click.echo()
        show.table("Durations", ["Duration", "p50", "p90", "p95", "p99"], rows, False)


def _raw(found: dict[str, Distribution]) -> dict[str, Any]:
    return {name: {"unit": one.unit, "percentiles": one.percentiles} for name, one in found.items()}


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 1.0:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


# --- metrics ---


@click.command("metrics", help="Show a function's metrics over time, or export them (--json, --csv).")
@function_argument
@range_options
@click.option("--group", "groups", multiple=True, type=click.Choice(GROUPS), help="Only this group; may be repeated.")
@click.option("--bucket-size", type=click.Choice(BUCKETS), default=None, help="By default about 100 buckets.")
@click.option("--json", "json_output", is_flag=True, help="Print all values as JSON.")
@click.option("--csv", "csv_output", is_flag=True, help="Print all values as CSV.")
@click.option("--all-variants", is_flag=True, help="The function and its variants together.")
@environment_option
def function_metrics(
    function: str, since: str | None, until: str | None, groups: tuple[str, ...], bucket_size: str | None,
    json_output: bool, csv_output: bool, all_variants: bool, env: str | None,
) -> None:  # fmt: skip
    if json_output and csv_output:
        raise click.UsageError("give --json or --csv, not both")
    begin, end = _range(since, until)
    function_id = _function(function, env)
    width_s = float(bucket_size[:-1]) * UNITS_S[bucket_size[-1]] if bucket_size else 0.0
    query = MetricQuery(
        function_id=function_id, since=begin, until=end, bucket_s=width_s, groups=groups,
        all_variants=all_variants,
    )  # fmt: skip
    metrics: Metrics = ask("metric.read", query)
    if json_output:
        show.as_json(metrics_json(function_id, metrics))
    elif csv_output:
        print_csv(metrics)
    else:
        preview(metrics)


def metrics_json(object_id: str, metrics: Metrics) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "object_id": object_id,
        "since": show.when(metrics.since).raw,
        "until": show.when(metrics.until).raw,
        "bucket_size_seconds": metrics.bucket_s,
        "series": {
            one.name: {
                "unit": one.unit,
                "aggregation": one.aggregation,
                "description": one.description,
                "points": [{"time": show.when(at).raw, "value": value} for at, value in zip(one.times, one.values)],
            }
            for one in metrics.series
        },
    }


def print_csv(metrics: Metrics) -> None:
    """One line for each value."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["time", "metric", "aggregation", "unit", "value"])
    for one in metrics.series:
        for at, value in zip(one.times, one.values):
            writer.writerow([show.when(at).raw, one.name, one.aggregation, one.unit, f"{value:g}"])


def preview(metrics: Metrics) -> None:
    """A line for each metric: its course as small bars, its last and its largest value."""
    if not metrics.series:
        click.echo("Nothing was measured in this range.")
        return
    minutes = metrics.bucket_s / 60
    click.echo(f"{show.when(metrics.since).shown} to {show.when(metrics.until).shown}, by {minutes:g} min")
    width = max(len(one.name) for one in metrics.series)
    for one in metrics.series:
        values = dict(zip(one.times, one.values))
        first = metrics.since // metrics.bucket_s * metrics.bucket_s
        count = min(PREVIEW_POINTS, int((metrics.until - first) // metrics.bucket_s) + 1)
        last = first + int((metrics.until - first) // metrics.bucket_s) * metrics.bucket_s
        starts = [last - (count - 1 - number) * metrics.bucket_s for number in range(count)]
        course = bars([values.get(start) for start in starts])
        click.echo(f"{one.name:{width}}  {course}  last {one.values[-1]:g}, most {max(one.values):g} {one.unit}")


def bars(values: list[float | None]) -> str:
    """A course as one character for each value; a blank where there is none."""
    top = max((one for one in values if one is not None), default=0.0)
    found = []
    for one in values:
        if one is None:
            found.append(" ")
        else:
            found.append(BARS[max(1, round(one / top * (len(BARS) - 1)))] if top > 0 else BARS[1])
    return "".join(found)


# --- calls ---


@click.command("calls", help="List a function's inputs, newest first: those that wait, run, or ended not long ago.")
@function_argument
@click.option(
    "-n", "--tail", type=click.IntRange(min=1), default=None, help=f"At most so many; by default {DEFAULT_CALLS}."
)
@click.option("--since", default=None, help="Only those enqueued at this time or later ('2h' or ISO 8601).")
@click.option("--until", default=None, help="Only those enqueued before this time.")
@click.option("--all-variants", is_flag=True, help="Those of the function and of its variants.")
@click.option("--show-function-call-id", is_flag=True, help="Show each input's call.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@no_color_option
@environment_option
def function_calls(
    function: str, tail: int | None, since: str | None, until: str | None, all_variants: bool,
    show_function_call_id: bool, json_output: bool, no_color: bool, env: str | None,
) -> None:  # fmt: skip
    _plain(no_color)
    if tail is not None and (since or until):
        raise click.UsageError("--tail cannot be combined with --since or --until")
    begin, end = _range(since, until)
    count = 0 if since or until else tail or DEFAULT_CALLS
    function_id = _function(function, env)
    rows = ask("function.inputs", FunctionInputs(function_id, count, begin, end, all_variants)).inputs
    if json_output:
        show.as_json(
            [
                {
                    "input_id": one.input_id,
                    "function_call_id": one.call_id,
                    "function_id": one.function_id,
                    "method": one.method or None,
                    "status": one.status,
                    "enqueued_at": show.when(one.enqueued_at).raw,
                    "started_at": show.when(one.started_at).raw,
                    "finished_at": show.when(one.finished_at).raw,
                    "container_id": one.container_id or None,
                    "attempts": one.attempts,
                    "error": one.error or None,
                }
                for one in rows
            ]
        )
        return
    columns = ["Input ID", "Status", "Enqueued at", "Waited", "Ran", "Container ID", "Attempts", "Error"]
    cells: list[list[Any]] = []
    for one in rows:
        waited = _seconds(max(0.0, one.started_at - one.enqueued_at)) if one.started_at else ""
        ran = _seconds(max(0.0, one.finished_at - one.started_at)) if one.started_at and one.finished_at else ""
        cells.append(
            [one.input_id, one.status, show.when(one.enqueued_at), waited, ran, one.container_id, one.attempts,
             one.error.strip().rpartition("\n")[2][:80]]
        )  # fmt: skip
    if show_function_call_id:
        columns.insert(1, "Function Call ID")
        for cell, one in zip(cells, rows):
            cell.insert(1, one.call_id)
    show.table("Inputs", columns, cells, False)
