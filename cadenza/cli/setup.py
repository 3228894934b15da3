"""``cadenza setup``: a configuration file with every line that one may want, and a look at whether the server runs."""

from __future__ import annotations

import click

from cadenza.base.errors import Error
from cadenza.cli import configfile
from cadenza.cli.connection import ask
from cadenza.protocol.method import Empty

TEMPLATE = """\
# Cadenza's configuration: one table a profile. `cadenza config show` says what is in force.
# The environment goes before it: CADENZA_<SETTING>, and MODAL_<SETTING> for settings that Modal has too.

[default]
active = true

# Which server. Empty: your own, started when it is needed.
# server_url = "unix:/path/to/server.sock"

# Which environment is meant where none is named. Empty: the workspace's default, main.
# environment = ""

# How functions are kept apart: "standard" (namespaces, cgroups, seccomp) or "strong" (a kernel of their own, gVisor).
# isolation = "standard"

# A server that nobody asked to stay ends after so many seconds without work.
# idle_stop_s = 300.0

# What was accepted survives: "process" (any crash of ours), or "power" (a loss of power too; slower).
# durability = "process"

# Whether the server wants a token even of its own user. `cadenza token new` makes one.
# require_token = false
"""


@click.command(help="Write a configuration file, if there is none, and see whether the server runs.")
def setup() -> None:
    file = configfile.path()
    if file.exists():
        click.echo(f"The configuration is in {file}.")
    else:
        configfile.save(TEMPLATE)
        click.echo(f"Wrote {file}: every setting is explained there.")
    try:
        info = ask("server.status", Empty())
    except Error as error:
        raise click.ClickException(
            f"the server does not run: {error}\n`cadenza doctor` says what is missing."
        ) from None
    for level, runtime in sorted(info.runtimes.items()):
        click.echo(f"Isolation {level}: {'none at all (process)' if runtime == 'process' else runtime}")
    for note in info.notes:
        click.echo(f"note: {note}", err=True)
    click.echo("The server runs. Try: cadenza run FILE.py")
