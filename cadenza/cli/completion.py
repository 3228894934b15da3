"""Shell completion: ``cadenza completion bash`` prints the script; names are asked of the server, if it runs.

The scripts are click's own. They call ``cadenza`` with ``_CADENZA_COMPLETE`` set, at each press of the key: so nothing
is loaded that is not needed, a server is never started for it, and one that is slow is not waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

VARIABLE = "_CADENZA_COMPLETE"
PATIENCE_S = 0.3
SHELLS = ("bash", "zsh", "fish")
PLACES = {
    "bash": 'eval "$(cadenza completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(cadenza completion zsh)"   # in ~/.zshrc, after compinit',
    "fish": "cadenza completion fish > ~/.config/fish/completions/cadenza.fish",
}


@click.command(
    help="Print the script that makes a shell complete commands, options and names.\n\n\b\n"
    + "\n".join(PLACES.values())
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    from cadenza.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "cadenza", VARIABLE).source())


def _ask(method: str, request: Any) -> Any:
    """One question to a server that runs; None when there is none, or no answer in `PATIENCE_S`."""
    import asyncio

    from cadenza.base.config import load

    if not os.path.exists(load().socket_path):
        return None
    from cadenza.cli.connection import client
    from cadenza.sdk import _dual

    async def asking() -> Any:
        return await asyncio.wait_for((await client(start=False))._request(method, request), PATIENCE_S)

    try:
        return _dual.run(asking())
    except Exception as error:  # whatever it is, a half-typed command line is no place to say it
        del error
        return None


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _starting(words: Any, begin: str) -> list[CompletionItem]:
    """Pairs of a word and its help, those that go on from what is typed."""
    return [CompletionItem(word, help=text) for word, text in sorted(words) if word.startswith(begin)]


def environments(ctx: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    from cadenza.protocol.accounts import EnvironmentList

    found = _ask("environment.list", EnvironmentList())
    return _starting({(one.name, "") for one in found.environments} if found else set(), begin)


def apps(ctx: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    """Names of apps; ids once ``ap-`` is typed, and of those without a name."""
    from cadenza.protocol.methods import AppList

    found = _ask("app.list", AppList(environment=ctx.params.get("env") or ""))
    if not found:
        return []
    live = [one for one in found.apps if one.state not in ("stopped", "stopping")] or found.apps
    if begin.startswith("ap-"):
        return _starting({(one.app_id, one.name) for one in live}, begin)
    return _starting({(one.name or one.app_id, one.state) for one in live}, begin)


def containers(ctx: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    from cadenza.protocol.methods import ContainerList

    found = _ask("container.list", ContainerList())
    return _starting({(one.container_id, one.function_name) for one in found.containers} if found else set(), begin)


def functions(ctx: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    """``app/``, and after it the app's functions."""
    app, slash, _ = begin.partition("/")
    if not slash:
        return [CompletionItem(one.value + "/", help=one.help) for one in apps(ctx, parameter, begin)]
    from cadenza.protocol.functions import FunctionList

    found = _ask("function.list", FunctionList(app, ctx.params.get("env") or ""))
    names = {(f"{app}/{one.name.removesuffix('.*')}", "") for one in found.functions} if found else set()
    return _starting(names, begin)
