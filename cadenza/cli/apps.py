"""``cadenza app``: list, logs, stop."""

from __future__ import annotations

from typing import Any

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option
from cadenza.cli.logs import log_options, print_logs
from cadenza.protocol import methods


@click.group(help="Look at apps, read their logs, stop them.")
def app() -> None:
    pass


@app.command("list", help="List apps that run or ran.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many; 0 for all.")
@environment_option
def list_apps(json_output: bool, limit: int, env: str | None) -> None:
    found = ask("app.list", methods.AppList(limit=limit)).apps
    show.table(
        "Apps",
        ["App ID", "Name", "State", "Containers", "Created at", "Stopped at", "Stop reason"],
        [
            (one.app_id, one.name, one.state, one.containers, show.when(one.created_at),
             show.when(one.stopped_at), one.stop_reason)
            for one in found
        ],
        json_output,
    )  # fmt: skip


@app.command(help="Print an app's logs, or follow them.")
@click.argument("app_identifier")
@click.option("-f", "--follow", is_flag=True, help="Go on until the app stops.")
@click.option("--function", default="", help="Only this function (fu-...).")
@click.option("--function-call", default="", help="Only this call (fc-...).")
@click.option("--container", default="", help="Only this container (ta-...).")
@click.option("--show-function-id", is_flag=True, help="Begin each line with its function's id.")
@click.option("--show-function-call-id", is_flag=True, help="Begin each line with its call's id.")
@click.option("--show-container-id", is_flag=True, help="Begin each line with its container's id.")
@environment_option
@log_options
def logs(app_identifier: str, function: str, function_call: str, container: str, env: str | None, **rest: Any) -> None:
    ask("app.get", methods.AppRef(app_identifier))
    print_logs(app=app_identifier, function=function, call=function_call, container=container, **rest)


@app.command(help="Stop an app for good and end its containers.")
@click.argument("app_identifier")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@environment_option
def stop(app_identifier: str, yes: bool, env: str | None) -> None:
    info = ask("app.get", methods.AppRef(app_identifier))
    if not yes:
        click.confirm(f"Stop app {info.name or info.app_id} and its {info.containers} containers?", abort=True)
    ask("app.stop", methods.AppRef(info.app_id))
    click.echo(f"Stopped {info.app_id}.")
