"""``cadenza up``, ``down`` and ``status``: this user's server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import click

from cadenza import __version__
from cadenza.base.config import load
from cadenza.base.errors import Error
from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.lock import ServerLock
from cadenza.protocol import methods

STOP_WAIT_S = 40.0


@click.command(help="Start this user's server and keep it running until `cadenza down`.")
@click.option("--foreground", is_flag=True, help="Run in this terminal, for a process supervisor.")
def up(foreground: bool) -> None:
    if foreground:
        from cadenza.cli import server

        raise click.exceptions.Exit(server.main(["--keep"]))
    ask("server.keep", methods.ServerKeep(keep=True))
    info = ask("server.status", methods.Empty())
    click.echo(f"The server runs: process {info.pid}, data in {info.data_dir}. `cadenza down` stops it.")


@click.command(help="Stop this user's server. Detached calls stay queued and go on with the next one.")
@click.option("--force", is_flag=True, help="Do not wait for containers; kill what does not end.")
def down(force: bool) -> None:
    lock = ServerLock(load().lock_path)
    holder = lock.holder()
    if holder is None:
        click.echo("No server is running.")
        return
    try:
        ask("server.stop", methods.ServerStop(force=force), start=False)
    except Error as error:
        click.echo(f"The server does not answer ({error}); ending process {holder.pid}.", err=True)
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(holder.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_WAIT_S
    while lock.holder() is not None:
        if time.monotonic() > deadline:
            if not force:
                raise click.ClickException(
                    f"process {holder.pid} did not end within {STOP_WAIT_S:.0f} s; `cadenza down --force` kills it"
                )
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
    click.echo("Stopped.")


@click.command(help="Show what the server is doing.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def status(json_output: bool) -> None:
    config = load()
    holder = ServerLock(config.lock_path).holder()
    if holder is None:
        if json_output:
            show.as_json({"running": False})
        else:
            click.echo("No server is running. `cadenza run` starts one when it needs it, `cadenza up` keeps one.")
        raise click.exceptions.Exit(1)
    info = ask("server.status", methods.Empty(), start=False)
    if json_output:
        from cadenza.protocol.plain import to_plain

        show.as_json({"running": True, **show.dated(to_plain(info))})
        return
    if info.version != __version__:
        click.echo(f"The server is version {info.version}, this program {__version__}.", err=True)
    rows = [
        ("Process", str(info.pid)),
        ("Running since", show.when(info.started_at).shown),
        ("Kept", "yes, until `cadenza down`" if info.kept else f"no: stops after {config.idle_stop_s:.0f} s idle"),
        ("Apps", str(info.apps)),
        ("Containers", str(info.containers)),
        ("Queued inputs", str(info.queued_inputs)),
        ("Clients", str(info.clients)),
        ("Data", info.data_dir),
        *[
            (f"Isolation {level}", "process: no isolation at all" if runtime == "process" else runtime)
            for level, runtime in sorted(info.runtimes.items())
        ],
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
    for note in info.notes:
        click.echo(f"note: {note}", file=sys.stderr)
