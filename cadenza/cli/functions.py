"""``cadenza function``: info, logs, variants, autoscaler, and what `cadenza.cli.stats` adds."""

from __future__ import annotations

from typing import Any

import click

from cadenza.base.errors import NotFoundError
from cadenza.cli import completion, show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option, wanted
from cadenza.cli.lazy import Guessing
from cadenza.cli.logs import log_options, print_logs
from cadenza.protocol.functions import (
    FunctionFind,
    FunctionInfo,
    FunctionRef,
    FunctionScale,
    FunctionVariants,
)
from cadenza.protocol.objects import AutoscalerPatch

HOW = "FUNCTION is app/name, app/Class for a class, or an id (fu-...)."
function_argument = click.argument("function", shell_complete=completion.functions)


@click.group(
    cls=Guessing,
    elsewhere={
        "calls": "cadenza.cli.stats:function_calls",
        "metrics": "cadenza.cli.stats:function_metrics",
        "stats": "cadenza.cli.stats:function_stats",
    },
    help=f"Look at functions, read their logs, change how they scale. {HOW}",
)
def function() -> None:
    pass


def candidates(word: str) -> list[tuple[str, str]]:
    """The apps and names that a reference may mean, likeliest first: ``app/name``, ``app::name``, ``app.name``.

    A name may be a class (published as ``Name.*``) or a method of one.
    """
    pairs: list[tuple[str, str]] = []
    for separator in ("/", "::"):
        app, found, name = word.partition(separator)
        if found:
            pairs = [(app, name)]
            break
    else:
        parts = word.split(".")
        pairs = [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]
    spelt = []
    for app, name in pairs:
        if not app or not name:
            continue
        spelt.append((app, name))
        if not name.endswith(".*"):
            spelt.append((app, name + ".*"))
            if "." in name:
                spelt.append((app, name.rpartition(".")[0] + ".*"))
    return spelt


def resolve(word: str, env: str | None) -> FunctionInfo:
    """The function that ``word`` names. NotFoundError with what there is; click.BadParameter for what is no name."""
    if word.startswith("fu-"):
        return ask("function.get", FunctionRef(word))  # type: ignore[no-any-return]
    spelt = candidates(word)
    if not spelt:
        raise click.BadParameter(
            f"{word!r} names no function: write app/name, or an id (fu-...)", param_hint="FUNCTION"
        )
    first: NotFoundError | None = None
    for app, name in spelt:
        try:
            return ask("function.find", FunctionFind(app, name, wanted(env)))  # type: ignore[no-any-return]
        except NotFoundError as error:
            first = first or error
    assert first is not None
    raise first


@function.command(help=f"Show what a function is. {HOW}")
@function_argument
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def info(function: str, json_output: bool, env: str | None) -> None:
    found = resolve(function, env)
    counts = ask("function.stats", FunctionRef(found.function_id))
    limits = ask("function.settings", FunctionRef(found.function_id))
    kind = "class" if found.methods or found.name.endswith(".*") else "generator" if found.is_generator else "function"
    facts = [
        ("Function ID", found.function_id),
        ("Name", found.name.removesuffix(".*")),
        ("Kind", kind),
        ("App", show.Cell(f"{found.app_name} ({found.app_id})" if found.app_name else found.app_id, found.app_id)),
        ("Version", show.number(found.version)),
        ("Methods", show.listed([one.name for one in found.methods])),
        ("Class parameters", show.listed([f"{one.name}: {one.type}" for one in found.class_parameters])),
        ("Bound to", found.parameters),
        ("Variant of", found.base_id),
        ("Created at", show.when(found.created_at)),
        ("Created by", found.created_by),
        ("Web URL", found.web_url),
        ("Waiting inputs", counts.backlog),
        ("Running inputs", counts.num_running_inputs),
        ("Containers", counts.num_total_runners),
        *_limits(limits),
    ]
    if json_output:
        show.as_json(show.facts_as_json(facts))
    else:
        show.facts(facts)


def _limits(limits: Any) -> list[tuple[str, Any]]:
    return [
        ("Min containers", show.limit(limits.min_containers)),
        ("Max containers", show.limit(limits.max_containers)),
        ("Buffer containers", show.limit(limits.buffer_containers)),
        ("Scaledown window", show.limit(limits.scaledown_window_s, " s")),
    ]


@function.command(help=f"Print a function's logs, or follow them. {HOW}")
@click.argument("function_ref", shell_complete=completion.functions)
@click.option("-f", "--follow", is_flag=True, help="Go on until the app stops.")
@click.option("--function-call", default="", help="Only this call (fc-...).")
@click.option("--container", default="", help="Only this container (ta-...).")
@click.option("--show-function-id", is_flag=True, help="Begin each line with its function's id.")
@click.option("--show-function-call-id", is_flag=True, help="Begin each line with its call's id.")
@click.option("--show-container-id", is_flag=True, help="Begin each line with its container's id.")
@click.option("--all-variants", is_flag=True, help="Those of its variants too: other options, other class parameters.")
@environment_option
@log_options
def logs(
    function_ref: str, function_call: str, container: str, all_variants: bool, env: str | None, **rest: Any
) -> None:
    found = resolve(function_ref, env)
    print_logs(
        app=found.app_id,
        function=found.function_id,
        all_variants=all_variants,
        call=function_call,
        container=container,
        **rest,
    )


@function.command(help=f"List a function's variants, newest first. {HOW}")
@function_argument
@click.option(
    "-n", "--limit", type=click.IntRange(min=0), default=200, show_default=True, help="At most so many; 0 for all."
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def variants(function: str, limit: int, json_output: bool, env: str | None) -> None:
    found = ask("function.variants", FunctionVariants(resolve(function, env).function_id, limit)).variants
    show.table(
        "Variants",
        ["Function ID", "Class parameters", "Options", "Version", "Containers", "Waiting", "Created at"],
        [
            (one.function_id, one.parameters, one.options, show.number(one.version), one.containers, one.backlog,
             show.when(one.created_at))
            for one in found
        ],
        json_output,
    )  # fmt: skip


@function.group(help="See and change how many containers a function may have, until the next deploy.")
def autoscaler() -> None:
    pass


@autoscaler.command(help=f"Show the limits in force. {HOW}")
@function_argument
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def settings(function: str, json_output: bool, env: str | None) -> None:
    facts = _limits(ask("function.settings", FunctionRef(resolve(function, env).function_id)))
    if json_output:
        show.as_json(show.facts_as_json(facts))
    else:
        show.facts(facts)


UNSET = "none"


def _number(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """A count, or ``none``: as if it had never been set."""
    if value is None or value.lower() == UNSET:
        return value and UNSET
    if not value.isascii() or not value.isdigit():
        raise click.BadParameter(f"{value!r} is neither a whole number nor 'none'")
    return int(value)


@autoscaler.command(help=f"Change limits until the next deploy; 'none' takes one away. {HOW}")
@function_argument
@click.option("--min-containers", callback=_number, metavar="N", help="Kept up always.")
@click.option("--max-containers", callback=_number, metavar="N", help="Never more.")
@click.option("--buffer-containers", callback=_number, metavar="N", help="Idle ones beside those that work.")
@click.option("--scaledown-window", callback=_number, metavar="SECONDS", help="How long an idle one stays.")
@environment_option
def update(
    function: str,
    min_containers: Any,
    max_containers: Any,
    buffer_containers: Any,
    scaledown_window: Any,
    env: str | None,
) -> None:
    given = {
        "min_containers": min_containers,
        "max_containers": max_containers,
        "buffer_containers": buffer_containers,
        "scaledown_window_s": scaledown_window,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise click.UsageError(
            "nothing to change: give --min-containers, --max-containers, --buffer-containers or --scaledown-window"
        )
    unset = tuple(name for name, value in given.items() if value == UNSET)
    patch = AutoscalerPatch(**{name: value for name, value in given.items() if value != UNSET})
    found = resolve(function, env)
    ask("function.scale", FunctionScale(found.function_id, patch, unset))
    show.facts(_limits(ask("function.settings", FunctionRef(found.function_id))))
