"""``cadenza doctor``: what this machine can do, what it cannot, and the one command that mends each."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import click

from cadenza import __version__
from cadenza.base.config import load
from cadenza.base.errors import InvalidError
from cadenza.cli import show
from cadenza.cli.lock import ServerLock

MIN_KERNEL = (5, 15)
MIN_DISK_MIB = 2048


@click.command(help="Say what this machine can do, what it cannot, and what mends it.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def doctor(json_output: bool) -> None:
    """Exit status 0 when functions run isolated, 1 when they would run without isolation or not at all."""
    config = load()
    rows = [*_machine(config.data_dir), *_images(config.data_dir), *asyncio.run(_runtimes(config.state_dir))]
    levels = asyncio.run(_levels(config.runtime, config.state_dir))
    holder = ServerLock(config.lock_path).holder()
    if json_output:
        show.as_json(
            {
                "version": __version__,
                "isolation": levels,
                "server": None if holder is None else show.dated(asdict(holder)),
                "checks": [
                    {"name": name, "works": works, "sentence": sentence, "remedy": remedy}
                    for name, works, sentence, remedy in rows
                ],
            }
        )
    else:
        _print(rows, levels, holder)
    isolated = levels.get("standard", "process") != "process"
    raise click.exceptions.Exit(0 if isolated and all(works for name, works, _, _ in rows if name in NEEDED) else 1)


_TRIAL = """
import dataclasses, json, sys
from cadenza.runtime import rootless
rootless.enter(rootless.plan())
from cadenza.fs.abilities import detect
found = dataclasses.asdict(detect(sys.argv[1]))
print(json.dumps({**found, "prefix": found["prefix"].decode()}))
"""

NEEDED = ("system", "disk")
"""Checks without which nothing runs at all."""


def _machine(data_dir: str) -> list[tuple[str, bool, str, str]]:
    kernel = platform.release()
    numbers = tuple(int(part) for part in kernel.split("-")[0].split(".")[:2] if part.isdigit())
    supported = sys.platform == "linux" and numbers >= MIN_KERNEL
    where = data_dir
    while not os.path.exists(where):
        where = os.path.dirname(where)
    free_mib = shutil.disk_usage(where).free >> 20
    return [
        (
            "system",
            supported,
            f"Linux {kernel} on {platform.machine()}, Python {platform.python_version()}."
            if supported
            else f"{platform.system()} {kernel}: Linux {MIN_KERNEL[0]}.{MIN_KERNEL[1]} or newer is needed.",
            "",
        ),
        (
            "disk",
            free_mib >= MIN_DISK_MIB,
            f"{free_mib / 1024:.1f} GiB free for {data_dir}."
            if free_mib >= MIN_DISK_MIB
            else f"Only {free_mib} MiB free for {data_dir}; an image needs about {MIN_DISK_MIB} MiB while it is made.",
            "" if free_mib >= MIN_DISK_MIB else "set CADENZA_DATA_DIR to a directory on a larger disk",
        ),
        _disk_limits(),
        _apt(),
    ]


def _disk_limits() -> tuple[str, bool, str, str]:
    from cadenza.runtime import quota

    why = quota.unable()
    sentence = f"ephemeral_disk= is taken, but not enforced: {why}." if why else "ephemeral_disk= is enforced."
    return ("disk limits", not why, sentence, "")


def _apt() -> tuple[str, bool, str, str]:
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        return ("base images", True, "Base images are made from Debian's packages, by this machine's apt.", "")
    return ("base images", False, "debian_slim() needs apt and dpkg on this machine.", "use Debian or Ubuntu")


def _images(data_dir: str) -> list[tuple[str, bool, str, str]]:
    """How images are shown to containers, by a trial where they will be."""
    from cadenza.fs.abilities import describe

    where = data_dir
    while not os.access(where, os.W_OK) and where != os.path.dirname(where):
        where = os.path.dirname(where)
    try:
        found = _as_root(where)
    except InvalidError as error:
        return [("file system", False, f"{error}.", "")]
    except (OSError, subprocess.TimeoutExpired) as error:
        return [("file system", False, f"It cannot be told how images can be shown: {error}.", "")]
    return describe(found)


def _as_root(where: str) -> Any:
    """What works for the server, which is root of a namespace of its own where its user is not."""
    from cadenza.fs.abilities import Abilities, detect

    if os.geteuid() == 0:
        return detect(where)
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL, where], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0 or not done.stdout:
        raise OSError(done.stderr.strip().rpartition("\n")[2])
    told = json.loads(done.stdout)
    return Abilities(**{**told, "prefix": told["prefix"].encode()})


async def _found(state_dir: str) -> Any:
    from cadenza.runtime.launcher import Launcher
    from cadenza.runtime.probe import kept_probe

    launcher = Launcher()
    try:
        return await kept_probe(state_dir, launcher)
    finally:
        launcher.close()


async def _runtimes(state_dir: str) -> list[tuple[str, bool, str, str]]:
    machine = await _found(state_dir)
    return [(name, one.works, one.sentence, one.remedy) for name, one in machine.abilities.items()]


async def _levels(runtime: str, state_dir: str) -> dict[str, str]:
    from cadenza.runtime.choice import choose

    return choose(await _found(state_dir), runtime)


def _print(rows: list[tuple[str, bool, str, str]], levels: dict[str, str], holder: Any) -> None:
    color = sys.stdout.isatty()
    for name, works, sentence, remedy in rows:
        mark = click.style("ok", fg="green") if works else click.style("no", fg="yellow")
        click.echo(f"{mark}  {name:<16} {sentence}", color=color)
        if remedy and not works:
            click.echo(f"    {'':<16} mend it: {remedy}")
    click.echo()
    standard = levels.get("standard", "process")
    if standard == "process":
        click.echo("Functions run WITHOUT isolation, as processes of this user: no container runtime works here.")
    else:
        click.echo(f"Functions run in containers of {standard} (standard isolation).")
    if "strong" in levels:
        click.echo(f"Strong isolation is given by {levels['strong']}.")
    else:
        click.echo("Strong isolation is not to be had here.")
    click.echo("The server is not running." if holder is None else f"The server runs as process {holder.pid}.")
