"""``cadenza deploy``, and of ``cadenza app``: history, rollback, rollover, promote."""

from __future__ import annotations

import re

import click

from cadenza.base.errors import InvalidError
from cadenza.cli import completion, program, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.protocol.deployments import (
    STRATEGIES,
    AppDeployed,
    AppPromote,
    AppRollback,
    AppRollover,
    Deployment,
    NamedApp,
)

app_argument = click.argument("app_identifier", shell_complete=completion.apps)
_STRATEGY = "rolling: what runs ends in its container. recreate: containers stop at once, what ran in them runs again."
strategy_option = click.option(
    "--strategy", type=click.Choice(STRATEGIES), default=STRATEGIES[0], show_default=True, help=_STRATEGY
)


@click.command(
    help="Put an app in force that stays: any program can call its functions by name, until it is stopped.\n\n"
    "APP_REF is file.py, or file.py::app where it has several. Deployed again, it gets a new version; when nothing has "
    "changed, nothing is done."
)
@click.argument("app_ref")
@click.option("--name", default="", help="Name to deploy under, instead of the app's own.")
@environment_option
@click.option("--stream-logs", is_flag=True, help="Then follow the app's logs, until Ctrl-C.")
@click.option("--tag", default="", help="A word for this version, shown in the history.")
@program.module_option
@click.option("--timestamps", is_flag=True, help="Begin each log line with its time.")
@strategy_option
@click.option("--staged", is_flag=True, hidden=True, help="Keep the version; `cadenza app promote` puts it in force.")
def deploy(
    app_ref: str,
    name: str,
    env: str | None,
    stream_logs: bool,
    tag: str,
    is_module: bool,
    timestamps: bool,
    strategy: str,
    staged: bool,
) -> None:
    from cadenza.cli.run import ended_by_sigterm, sink, user_code
    from cadenza.sdk import _dual, deploying, entrypoint, output

    module, reference = program.load(app_ref, is_module)
    try:
        app = entrypoint.find_app(module, reference, "deploy")
        title = deploying.check(app, name or None, tag, strategy)
    except InvalidError as error:
        raise program.WrongName(str(error)) from None
    shown = sink(timestamps)
    output.install(shown)
    try:
        with ended_by_sigterm(), user_code():
            done = _dual.run(deploying.deploy(app, title, wanted(env), tag, None, strategy, staged))
    finally:
        output.remove(shown)
        shown.close()
    click.echo(summary(title, done, env, staged))
    if stream_logs and not staged:
        from cadenza.cli.logs import print_logs

        print_logs(app=done.app_id, follow=True, timestamps=timestamps, since="0s")


def summary(name: str, done: AppDeployed, env: str | None, staged: bool) -> str:
    """What is there now and what to do with it. Pure."""
    option = f" -e {env}" if env else ""
    if staged:
        return f"{name}: v{done.version} is kept. `cadenza app promote {name} {done.version}{option}` puts it in force."
    lines = [f"{name} v{done.version} ({done.app_id})"]
    width = max((len(one.removesuffix(".*")) for one in done.functions), default=0)
    for each, function_id in sorted(done.functions.items()):
        lines.append(
            f"  {each.removesuffix('.*'):<{width}}  {'class   ' if each.endswith('.*') else 'function'}  {function_id}"
        )
    if not done.changed:
        return "\n".join(lines)
    first = min(done.functions, default="")
    where = f', environment_name="{env}"' if env else ""
    if first.endswith(".*"):
        lines.append(f'Call it:  cadenza.Cls.from_name("{name}", "{first[:-2]}"{where})().a_method.remote()')
    elif first:
        lines.append(f'Call it:  cadenza.Function.from_name("{name}", "{first}"{where}).remote()')
    lines.append(f"See it:   cadenza app info {name}{option}, cadenza app logs {name}{option}")
    lines.append(f"End it:   cadenza app stop {name}{option}")
    return "\n".join(lines)


@click.command(help="List an app's versions, newest first.")
@app_argument
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def history(app_identifier: str, json_output: bool, env: str | None) -> None:
    found = ask("app.history", NamedApp(app_identifier, wanted(env))).deployments
    show.table(
        "Versions",
        ["Version", "In force", "Deployed at", "By", "Kind", "Tag", "Commit", "Functions", "Client"],
        [
            (show.Cell(f"v{one.version}", one.version), show.yes(one.active), show.when(one.deployed_at),
             one.deployed_by, _kind(one), one.tag, _commit(one),
             show.Cell(str(len(one.functions)), list(one.functions)), one.client_version)
            for one in found
        ],
        json_output,
    )  # fmt: skip


def _kind(one: Deployment) -> show.Cell:
    return show.Cell(f"{one.kind} of v{one.of}" if one.of else one.kind, one.kind)


def _commit(one: Deployment) -> show.Cell:
    shown = one.git.commit[:8] + ("*" if one.git.dirty else "")
    if one.git.branch:
        shown += f" ({one.git.branch})"
    return show.Cell(shown, one.git.commit + ("*" if one.git.dirty else ""))


@click.command(help="Put an earlier version in force again: VERSION (3 or v3), else the one before.")
@app_argument
@click.argument("version", required=False, default="")
@strategy_option
@environment_option
def rollback(app_identifier: str, version: str, strategy: str, env: str | None) -> None:
    number = parse_version(version) if version else 0
    done = ask("app.rollback", AppRollback(app_identifier, wanted(env), number, strategy))
    say(done, app_identifier, f"rolled back to v{number}" if number else "rolled back")


@click.command(help="Give an app new containers, with nothing else changed.")
@app_argument
@strategy_option
@environment_option
def rollover(app_identifier: str, strategy: str, env: str | None) -> None:
    say(ask("app.rollover", AppRollover(app_identifier, wanted(env), strategy)), app_identifier, "gets new containers")


@click.command(help="Put a version in force that was deployed with --staged: VERSION is 3 or v3.", hidden=True)
@app_argument
@click.argument("version")
@environment_option
def promote(app_identifier: str, version: str, env: str | None) -> None:
    number = parse_version(version)
    say(ask("app.promote", AppPromote(app_identifier, number, wanted(env))), app_identifier, f"promoted v{number}")


def parse_version(text: str) -> int:
    """``3`` or ``v3``. click.BadParameter otherwise."""
    found = re.fullmatch(r"v?([1-9][0-9]*)", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no version: write a number such as 3 or v3", param_hint="VERSION")
    return int(found[1])


def say(done: AppDeployed, name: str, what: str) -> None:
    """What was achieved, and what the server has to say about it."""
    for one in done.warnings:
        click.echo(f"Warning: {one}", err=True)
    if not done.changed:
        click.echo(f"{name}: nothing changed, v{done.version} stays in force.")
        return
    click.echo(f"{name}: {what}. v{done.version} is in force.")
