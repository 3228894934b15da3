"""``cadenza container``: list, logs, stop, exec."""

from __future__ import annotations

from typing import Any

import click

from cadenza.cli import completion, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.cli.lazy import Guessing
from cadenza.cli.logs import log_options, print_logs
from cadenza.protocol import methods
from cadenza.protocol.nodes import PHASES


container_argument = click.argument("container_id", shell_complete=completion.containers)


@click.group(cls=Guessing, help="Look at containers, enter them, stop them.")
def container() -> None:
    pass


@container.command("list", help="List running containers.")
@click.option("--app-id", default="", shell_complete=completion.apps, help="Only this app's.")
@click.option("--timings", is_flag=True, help="Show how long each phase of the start took, in milliseconds.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def list_containers(app_id: str, timings: bool, json_output: bool, env: str | None) -> None:
    found = ask("container.list", methods.ContainerList(app=app_id, environment=wanted(env))).containers
    if timings:
        columns = ["Container ID", "Function", "Start", *[f"{one} ms" for one in PHASES], "Total ms"]
        rows = [
            (one.container_id, one.function_name, "warm" if one.warm else "cold",
             *[show.milliseconds(one.phases.get(phase, 0.0)) for phase in PHASES],
             show.milliseconds(sum(one.phases.values())))
            for one in found
        ]  # fmt: skip
    else:
        columns = ["Container ID", "App", "Function", "State", "Runtime", "Isolation", "Inputs", "Started at", "Why"]
        rows = [
            (one.container_id, one.app_name or one.app_id, one.function_name, one.state, one.runtime,
             "none" if one.runtime == "process" else one.isolation, one.running_inputs, show.when(one.started_at),
             one.why)
            for one in found
        ]  # fmt: skip
    show.table("Containers", columns, rows, json_output)
    if not json_output:
        _troubles(app_id, env)


def _troubles(app_id: str, env: str | None) -> None:
    """Say which apps have no containers because theirs do not start: a list cannot show what is not there."""
    for one in ask("app.list", methods.AppList(environment=wanted(env))).apps:
        if one.note and (not app_id or app_id in (one.app_id, one.name)):
            click.echo(f"note: {one.name or one.app_id}: {show.brief(one.note)}", err=True)


@container.command(help="Print a container's logs, or follow them.")
@container_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("--all", "everything", is_flag=True, help="All that is kept.")
@log_options
def logs(container_id: str, **rest: Any) -> None:
    print_logs(container=container_id, **rest)


@container.command(help="End a running container. Its inputs run again elsewhere.")
@container_argument
@click.option("--graceful", is_flag=True, help="Let it finish the inputs that it runs.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def stop(container_id: str, graceful: bool, yes: bool) -> None:
    if not yes:
        click.confirm(f"Stop container {container_id}?", abort=True)
    ask("container.stop", methods.ContainerStop(container_id, graceful))
    click.echo(f"Stopping {container_id}.")


@container.command(
    "exec",
    # What follows the container's id is the command's, its options too.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Run a command in a container.",
)
@click.option("--pty/--no-pty", default=None, help="With a terminal; by default when there is one here.")
@container_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(pty: bool | None, container_id: str, command: tuple[str, ...]) -> None:
    from cadenza.cli import terminal

    raise click.exceptions.Exit(terminal.run_in_container(terminal.command(container_id, command, pty)))
