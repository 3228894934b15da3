"""``cadenza app``: list, info, logs, stop, and what `deployments` and `explain` add."""

from __future__ import annotations

from typing import Any

import click

from cadenza.cli import completion, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.cli.lazy import Guessing
from cadenza.cli.logs import log_options, print_logs
from cadenza.protocol import methods

app_argument = click.argument("app_identifier", shell_complete=completion.apps)
"""An app's id or name."""


@click.group(
    cls=Guessing,
    elsewhere={
        "history": "cadenza.cli.deployments:history",
        "promote": "cadenza.cli.deployments:promote",
        "rollback": "cadenza.cli.deployments:rollback",
        "rollover": "cadenza.cli.deployments:rollover",
        "explain": "cadenza.cli.explain:explain",
        "stats": "cadenza.cli.stats:app_stats",
    },
    help="Look at apps, read their logs, change which version runs, stop them.",
)
def app() -> None:
    pass


@app.command("list", help="List apps that run, are deployed, or ran.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@click.option("--limit", type=click.IntRange(min=0), default=0, show_default=True, help="At most so many; 0 for all.")
@environment_option
def list_apps(json_output: bool, limit: int, env: str | None) -> None:
    found = ask("app.list", methods.AppList(limit=limit, environment=wanted(env))).apps
    show.table(
        "Apps",
        ["App ID", "Name", "State", "Version", "Containers", "Created at", "Stopped at", "Stop reason", "Note"],
        [
            (one.app_id, one.name, one.state, show.number(one.version), one.containers, show.when(one.created_at),
             show.when(one.stopped_at), one.stop_reason, show.Cell(show.brief(one.note), one.note))
            for one in found
        ],
        json_output,
    )  # fmt: skip


@app.command(help="Show how an app stands: its state, its version, its functions.")
@app_argument
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@show.color_option
@environment_option
def info(app_identifier: str, json_output: bool, no_color: bool, env: str | None) -> None:
    from cadenza.protocol.functions import FunctionList

    found = ask("app.get", methods.AppRef(app_identifier, wanted(env)))
    stopped = found.state in ("stopped", "stopping")
    functions = () if stopped else ask("function.list", FunctionList(found.app_id)).functions
    facts = [
        ("App ID", found.app_id),
        ("Name", found.name),
        ("Environment", found.environment),
        ("State", found.state),
        ("Version", show.number(found.version)),
        ("Containers", found.containers),
        ("Created at", show.when(found.created_at)),
        ("Created by", found.created_by),
        ("Deployed at", show.when(found.deployed_at)),
        ("Deployed by", found.deployed_by),
        ("Stopped at", show.when(found.stopped_at)),
        ("Stop reason", found.stop_reason),
        ("Tags", show.tags(found.tags)),
        ("Budget", found.budget),
        ("Note", found.note),
    ]
    columns = ["Function ID", "Name", "Kind", "Containers", "Waiting", "Running", "Schedule", "Web URL"]
    rows = [
        (one.function_id, one.name.removesuffix(".*"), "class" if one.is_class else "function", one.containers,
         one.backlog, one.running, one.schedule, one.web_url)
        for one in functions
    ]  # fmt: skip
    if json_output:
        show.as_json({**show.facts_as_json(facts), "functions": show.rows_as_json(columns, rows)})
        return
    show.facts(facts, no_color)
    if rows:
        click.echo()
        show.table("Functions", columns, rows, False, no_color)


@app.command(help="Print an app's logs, or follow them.")
@app_argument
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
    found = ask("app.get", methods.AppRef(app_identifier, wanted(env)))
    print_logs(app=found.app_id, function=function, call=function_call, container=container, **rest)


@app.command(help="Stop an app for good and end its containers. Its name may be deployed anew.")
@app_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@environment_option
def stop(app_identifier: str, yes: bool, env: str | None) -> None:
    found = ask("app.get", methods.AppRef(app_identifier, wanted(env)))
    name = f"{found.name} ({found.app_id})" if found.name else found.app_id
    if found.state == "stopped":
        click.echo(f"The app {name} is stopped already.")
        return
    if not yes:
        many = f"its {found.containers} containers" if found.containers != 1 else "its container"
        click.confirm(f"Stop app {name}{' and ' + many if found.containers else ''}?", abort=True)
    ask("app.stop", methods.AppRef(found.app_id))
    click.echo(f"Stopped {name}.")


@app.command(help="Open an app's web page. There is none yet: this says where else to look.")
@app_argument
@environment_option
def dashboard(app_identifier: str, env: str | None) -> None:
    found = ask("app.get", methods.AppRef(app_identifier, wanted(env)))
    name = found.name or found.app_id
    raise click.ClickException(
        f"there is no web page yet. `cadenza app info {name}` and `cadenza app explain {name}` show how it stands"
    )
