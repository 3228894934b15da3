"""``cadenza secret``: create, list, delete, rekey. A value is never printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option
from cadenza.protocol import secrets


@click.group(help="Store sets of variables that functions see and nobody is shown.")
def secret() -> None:
    pass


@secret.command(
    help="Store variables under a name.\n\nKEYVALUES are KEY=VALUE, KEY=- (the value is read from standard input), or "
    "KEY alone (it is asked for, and not shown). A value on the command line is seen by others on this machine while "
    "the command runs, and stays in your shell's history."
)
@click.argument("secret_name")
@click.argument("keyvalues", nargs=-1)
@click.option("--from-dotenv", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read a .env file.")
@click.option(
    "--from-json",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Read a JSON file (- for standard input): an object of strings.",
)
@click.option("--force", is_flag=True, help="Replace all variables of a secret that is there.")
@environment_option
def create(
    secret_name: str,
    keyvalues: tuple[str, ...],
    from_dotenv: Path | None,
    from_json: Path | None,
    force: bool,
    env: str | None,
) -> None:
    given = [bool(keyvalues), from_dotenv is not None, from_json is not None]
    if sum(given) != 1:
        raise click.UsageError("give KEY=VALUE pairs, or --from-dotenv, or --from-json: one of the three")
    if from_dotenv is not None:
        values = read_dotenv(from_dotenv)
    elif from_json is not None:
        values = read_json(sys.stdin.read() if str(from_json) == "-" else from_json.read_text())
    else:
        values = read_pairs(keyvalues)
    if not values:
        raise click.UsageError("there is no variable in it: a secret needs one at least")
    made = ask("secret.create", secrets.SecretCreate(secret_name, values, env or "", overwrite=force))
    click.echo(f"Stored the secret {made.name} with {', '.join(made.keys)} in the environment {made.environment}.")
    click.echo(f"Functions use it by secrets=[cadenza.Secret.from_name({made.name!r})].")


def read_pairs(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, KEY=- and KEY as variables. click.UsageError names the key and shows no value."""
    values: dict[str, str] = {}
    from_input = [word for word in words if word.endswith("=-") and word.count("=") == 1]
    if len(from_input) > 1:
        raise click.UsageError("KEY=- can be given once: standard input has one value")
    for word in words:
        key, equals, value = word.partition("=")
        if not key:
            raise click.UsageError("a pair begins with its key, as in KEY=VALUE")
        if key in values:
            raise click.UsageError(f"{key} is given twice")
        if not equals:
            values[key] = click.prompt(f"Value of {key}", hide_input=True, err=True, default="", show_default=False)
        elif word in from_input:
            values[key] = sys.stdin.read().removesuffix("\n")
        else:
            values[key] = value
    return values


def read_json(text: str) -> dict[str, str]:
    """An object of strings. click.UsageError otherwise, without a value in it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise click.UsageError("--from-json: that is no JSON") from None
    if not isinstance(found, dict):
        raise click.UsageError('--from-json takes an object such as {"KEY": "value"}')
    for key, value in found.items():
        if not isinstance(value, str):
            raise click.UsageError(f"--from-json: the value of {key!r} must be a string, not {type(value).__name__}")
    return found


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables of a .env file."""
    from cadenza.sdk.secret import Secret

    try:
        return Secret.from_dotenv(path.parent, filename=path.name)._variables()
    except ImportError as error:
        raise click.UsageError(str(error)) from None


@secret.command("list", help="List secrets, newest first: their names and variables, no values.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def list_secrets(json_output: bool, env: str | None) -> None:
    found = ask("secret.list", secrets.SecretList(env or "")).secrets
    show.table(
        "Secrets",
        ["Name", "Variables", "Created at", "Created by", "Last used at", "Secret ID"],
        [
            (
                one.name,
                show.Cell(", ".join(one.keys), list(one.keys)),
                show.when(one.created_at),
                one.created_by,
                show.when(one.used_at),
                one.secret_id,
            )
            for one in found
        ],
        json_output,
    )


@secret.command(help="Remove a secret. Containers that run keep its variables; no new one starts with it.")
@click.argument("name")
@click.option("--allow-missing", is_flag=True, help="No error if there is none.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@environment_option
def delete(name: str, allow_missing: bool, yes: bool, env: str | None) -> None:
    if not yes:
        click.confirm(f"Remove the secret {name}? Functions that use it cannot start any more.", abort=True)
    ask("secret.delete", secrets.SecretDelete(name, env or "", allow_missing))
    click.echo(f"Removed {name}.")


@secret.command(
    help="Seal all secrets anew under a new key: a new key file, or what secrets_key_command prints now. Do it when "
    "the key may have been seen, or was lost (--discard). See docs/operate/secrets.md."
)
@click.option("--discard", is_flag=True, help="Let go of secrets that no key here opens.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rekey(discard: bool, yes: bool) -> None:
    if discard and not yes:
        click.confirm("Secrets that cannot be opened are removed for good. Go on?", abort=True)
    done: Any = ask("secret.rekey", secrets.SecretRekey(discard))
    click.echo(f"Sealed {done.sealed} secrets under the key {done.key_id}.")
    if done.discarded:
        click.echo("Removed, for nothing opens them: " + ", ".join(done.discarded))
