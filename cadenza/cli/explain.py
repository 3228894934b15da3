"""``cadenza app explain``: why an input waits and why a container is there, in sentences."""

from __future__ import annotations

import re
import time

import click

from cadenza.cli import completion, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.protocol.functions import Decision, Explain, Explained, Explanation, LiveContainer, WaitingInput
from cadenza.protocol.plain import to_plain

WHATS = {
    "start": "started {count}",
    "stop": "stopped {count}",
    "wait": "let {count} wait",
    "block": "held back",
    "unblock": "went on",
    "refuse": "refused",
}
"""What a decision did, in a person's words."""
ID = re.compile("(in|fc|ta)-[0-9A-Za-z]{22,}")
"""What is no app's name but the id of a thing in it."""


@click.command(
    help="Say why an app's inputs wait, why its containers are there, and what was decided lately.\n\n"
    "APP may also be the id of an input, a call or a container. Without APP: of all apps."
)
@click.argument("app", required=False, default="", shell_complete=completion.apps)
@click.option("--input", "input_id", default="", metavar="ID", help="Only this input (in-...) or call (fc-...).")
@click.option(
    "--container", default="", metavar="ID", shell_complete=completion.containers, help="Only this container (ta-...)."
)
@click.option(
    "-n",
    "--decisions",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many of the last decisions.",
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def explain(app: str, input_id: str, container: str, decisions: int, json_output: bool, env: str | None) -> None:
    if input_id and container:
        raise click.UsageError("give --input or --container, not both")
    thing = input_id or container
    if not thing and ID.fullmatch(app):
        app, thing = "", app
    where = wanted(env) if app or env else ""
    if app or thing:
        names = [app]
    else:
        from cadenza.protocol.methods import AppList

        listed = ask("app.list", AppList(environment=wanted(env))).apps
        names = [one.app_id for one in listed if one.state not in ("stopped", "stopping")]
        if not names:
            if json_output:
                show.as_json([])
            else:
                click.echo("No app runs, so nothing waits. `cadenza app list` shows those that ran.")
            return
    found = [ask("app.explain", Explain(name, where, thing, decisions)) for name in names]
    if json_output:
        show.as_json(show.dated(to_plain(found[0] if app or thing else found)))
        return
    click.echo("\n\n".join(text(one, time.time()) for one in found))


def text(found: Explained, now: float) -> str:
    """An app, its functions, one after the other. ``now`` in epoch seconds."""
    name = f"{found.app_name} ({found.app_id})" if found.app_name else found.app_id
    parts = [f"App {name}"]
    told = [one.sentence for one in found.functions if one.sentence]
    parts += [f"  Note: {_sentence(show.brief(one))}" for one in found.notes if not one.endswith(tuple(told))]
    if not found.functions:
        parts.append("  It has no functions.")
    for one in found.functions:
        parts.append("")
        parts += function_lines(one, now)
    return "\n".join(parts)


def function_lines(one: Explanation, now: float) -> list[str]:
    name = one.name.removesuffix(".*")
    apart = f", {one.variant}" if one.variant else ""
    lines = [f"{name}{apart} ({one.function_id})", f"  {_sentence(one.sentence or 'nothing is to be done')}"]
    if one.inputs:
        more = one.waiting - len(one.inputs)
        lines.append(f"  Waiting inputs{f' (the first {len(one.inputs)} of {one.waiting})' if more > 0 else ''}:")
        lines += [f"    {_input(each, now)}" for each in one.inputs]
    if one.containers:
        lines.append("  Containers:")
        lines += [f"    {_container(each, now)}" for each in one.containers]
    if one.decisions:
        lines.append("  Decided lately, newest first:")
        lines += [f"    {_decision(each)}" for each in one.decisions]
    return lines


def _input(one: WaitingInput, now: float) -> str:
    return f"{one.input_id}  for {show.duration(now - one.since)}: {show.brief(one.why) or 'no reason is known'}"


def _container(one: LiveContainer, now: float) -> str:
    busy = "idle" if one.running == 0 else f"runs {one.running} input{'' if one.running == 1 else 's'}"
    state = f"{one.state}, {busy}" if one.state in ("ready", "running", "idle", "busy") else one.state
    return f"{one.container_id}  {state}, there for {show.duration(now - one.since)}: {one.why or 'no reason is known'}"


def _decision(one: Decision) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(one.time))
    what = WHATS.get(one.what, one.what).format(count=one.count)
    who = f"{' after' if one.what == 'block' else ''} {one.container_id}" if one.container_id else ""
    return f"{when}  {what}{who}: {show.brief(one.why)}"


def _sentence(text: str) -> str:
    """A reason as a sentence. A traceback in it stays as it is, for here it is told whole."""
    text = text.rstrip()
    if "\n" in text:
        return text[:1].upper() + text[1:].replace("\n", "\n  ")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
