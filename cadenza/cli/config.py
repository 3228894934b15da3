"""``cadenza config``: show the settings in force, set one in the active profile."""

from __future__ import annotations

import dataclasses
import os

import click

from cadenza.base.config import Config, load
from cadenza.cli import configfile, show
from cadenza.cli.configfile import with_setting as with_setting

SECRET = ("token_secret",)


@click.group(help="Show and set the configuration.")
def config() -> None:
    pass


@config.command("show", help="Show every setting in force.")
@click.option("--redact/--no-redact", default=True, help="Hide credentials.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def show_config(redact: bool, json_output: bool) -> None:
    values = dataclasses.asdict(load())
    for name in SECRET:
        if redact and values[name]:
            values[name] = "***"
    if json_output:
        show.as_json(values)
        return
    show.table("Configuration", ["Setting", "Value"], [(name, str(one)) for name, one in values.items()], False)


@config.command("set", help="Set KEY in the active profile of the configuration file.")
@click.argument("key")
@click.argument("value")
def set_config(key: str, value: str) -> None:
    kinds = {one.name: str(one.type) for one in dataclasses.fields(Config)}
    if key not in kinds:
        raise click.UsageError(f"unknown setting {key!r}; there are: {', '.join(sorted(kinds))}")
    load({**os.environ, "CADENZA_" + key.upper(): value})  # says what is wrong with the value, if anything is
    literal = value if kinds[key] in ("int", "float", "bool", "Optional[float]") else configfile.quoted(value)
    if kinds[key] == "bool":
        literal = "true" if value.strip().lower() in ("1", "true", "yes", "on") else "false"
    text = configfile.read()
    path = configfile.save(with_setting(text, configfile.in_use(text), key, literal))
    click.echo(f"Set {key} in {path}.")


@config.command("set-environment", help="Set the environment that the active profile means where none is named.")
@click.argument("environment_name")
def set_environment(environment_name: str) -> None:
    from cadenza.cli.connection import ask
    from cadenza.protocol.accounts import EnvironmentRef

    ask("environment.get", EnvironmentRef(environment_name))  # NotFoundError, before anything is written
    text = configfile.read()
    profile = configfile.in_use(text)
    configfile.save(with_setting(text, profile, "environment", configfile.quoted(environment_name)))
    click.echo(f"The profile {profile} means the environment {environment_name} now.")
