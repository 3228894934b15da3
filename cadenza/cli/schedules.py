"""``cadenza schedule``: list, run, pause, resume."""

from __future__ import annotations

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option
from cadenza.protocol.schedules import ScheduleInfo, ScheduleList, SchedulePause, ScheduleRef


@click.group(help="Look at what runs by itself; run it now, pause it, let it go on.")
def schedule() -> None:
    pass


@schedule.command("list", help="List schedules, with their next runs and what became of the last one.")
@click.option("--app", default="", help="Only of this app, by name or id.")
@click.option(
    "--next", "upcoming", type=click.IntRange(0, 100), default=1, show_default=True, help="Show so many next runs."
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def list_schedules(app: str, upcoming: int, json_output: bool, env: str | None) -> None:
    found = ask("schedule.list", ScheduleList(app, env or "", upcoming)).schedules
    show.table(
        "Schedules",
        ["App", "Function", "Schedule", "State", "Next runs", "Last run", "Last status", "Note", "Schedule ID"],
        [
            (
                one.app_name or one.app_id,
                one.function_name,
                one.description,
                "paused" if one.paused else "active",
                _moments(one.next_at),
                show.when(one.last_at),
                show.Cell(one.last_status.lower(), one.last_status or None),
                one.note,
                one.schedule_id,
            )
            for one in found
        ],
        json_output,
    )


def _moments(epochs: tuple[float, ...]) -> show.Cell:
    cells = [show.when(one) for one in epochs]
    return show.Cell(", ".join(one.shown for one in cells), [one.raw for one in cells])


def matching(found: tuple[ScheduleInfo, ...], word: str) -> ScheduleInfo:
    """The one that ``word`` names: an id of it or its function, ``APP/FUNCTION``, or a function's name that is there
    once. click.UsageError otherwise."""
    exact = [
        one
        for one in found
        if word in (one.schedule_id, one.function_id, f"{one.app_name}/{one.function_name}")
        or word == f"{one.app_id}/{one.function_name}"
    ]
    named = exact or [one for one in found if one.function_name == word]
    if len(named) == 1:
        return named[0]
    if not named:
        raise click.UsageError(f"there is no schedule {word!r}: see `cadenza schedule list`")
    places = ", ".join(f"{one.app_name or one.app_id}/{word}" for one in named)
    raise click.UsageError(f"{word!r} is the name of several: say which, as in {places}")


def _find(word: str, env: str | None) -> ScheduleInfo:
    return matching(ask("schedule.list", ScheduleList(environment=env or "", upcoming=0)).schedules, word)


@schedule.command(help="Run a scheduled function now. SCHEDULE is its function's name, APP/FUNCTION, or an id.")
@click.argument("schedule")
@environment_option
def run(schedule: str, env: str | None) -> None:
    one = _find(schedule, env)
    done = ask("schedule.run", ScheduleRef(one.function_id))
    click.echo(f"{one.function_name} runs as {done.call_id}.")


@schedule.command(help="Pause a schedule. It stays paused over deploys and restarts, until `resume`.")
@click.argument("schedule")
@environment_option
def pause(schedule: str, env: str | None) -> None:
    one = _find(schedule, env)
    ask("schedule.pause", SchedulePause(one.function_id, True))
    click.echo(f"Paused {one.app_name or one.app_id}/{one.function_name}.")


@schedule.command(help="Let a paused schedule go on, from its next time; nothing is made up.")
@click.argument("schedule")
@environment_option
def resume(schedule: str, env: str | None) -> None:
    one = _find(schedule, env)
    ask("schedule.pause", SchedulePause(one.function_id, False))
    click.echo(f"{one.app_name or one.app_id}/{one.function_name} goes on.")
