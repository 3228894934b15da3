"""``cadenza profile``: sets of settings side by side in the configuration file, one of them in force."""

from __future__ import annotations

import os

import click

from cadenza.base.config import load
from cadenza.cli import configfile, show


@click.group(help="Switch between the profiles of the configuration file.")
def profile() -> None:
    pass


@profile.command("activate", help="Make PROFILE the active one.")
@click.argument("profile_name", metavar="PROFILE")
def activate(profile_name: str) -> None:
    text = configfile.read()
    known = configfile.names(text)
    if profile_name not in known:
        raise click.UsageError(f"there is no profile {profile_name!r}; there are {', '.join(known) or 'none'}")
    configfile.save(configfile.activated(text, profile_name))
    click.echo(f"The profile {profile_name} is active.")


@profile.command("current", help="Print the active profile.")
def current() -> None:
    click.echo(configfile.in_use(configfile.read()))


@profile.command("list", help="Show all profiles and which of them is active.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_profiles(json_output: bool) -> None:
    text = configfile.read()
    chosen = configfile.in_use(text)
    rows = []
    for name in configfile.names(text) or [configfile.DEFAULT]:
        known = name in configfile.names(text)
        found = load({**os.environ, "CADENZA_PROFILE": name} if known else configfile.environment_without_profile())
        mark = show.Cell("•" if name == chosen else "", name == chosen)
        rows.append((mark, name, found.token_id, found.environment, found.server_url))
    show.table("Profiles", ["Active", "Name", "Token ID", "Environment", "Server URL"], rows, json_output)
