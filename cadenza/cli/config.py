"""``cadenza config``: show the settings in force, set one in the active profile."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import click

from cadenza.base.config import Config, load
from cadenza.cli import show

SECRET = ("token_secret",)
_HEADER = re.compile(r"""\s*\[\s*["']?([^\]"']+?)["']?\s*\]\s*(?:#.*)?""")
"""The line that begins a table."""


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
    literal = value if kinds[key] in ("int", "float", "bool", "Optional[float]") else _quoted(value)
    if kinds[key] == "bool":
        literal = "true" if value.strip().lower() in ("1", "true", "yes", "on") else "false"
    path = Path(load().config_dir) / "config.toml"
    profile = os.environ.get("CADENZA_PROFILE") or os.environ.get("MODAL_PROFILE") or ""
    text = path.read_text() if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(with_setting(text, profile, key, literal))
    temporary.replace(path)
    click.echo(f"Set {key} in {path}.")


def _quoted(value: str) -> str:
    import json

    return json.dumps(value)


def with_setting(text: str, profile: str, key: str, literal: str) -> str:
    """The TOML text with ``key = literal`` in a profile's table; everything else stays as it was written.

    Without ``profile``: the table marked ``active = true``, else ``[default]``.
    """
    lines = text.splitlines()
    tables = [(at, found[1]) for at, line in enumerate(lines) if (found := _HEADER.fullmatch(line))]
    if not profile:
        profile = "default"
        for order, (at, name) in enumerate(tables):
            end = tables[order + 1][0] if order + 1 < len(tables) else len(lines)
            if any(line.partition("#")[0].replace(" ", "") == "active=true" for line in lines[at:end]):
                profile = name
    for order, (at, name) in enumerate(tables):
        if name != profile:
            continue
        end = tables[order + 1][0] if order + 1 < len(tables) else len(lines)
        for index in range(at + 1, end):
            if lines[index].split("=")[0].strip() == key:
                lines[index] = f"{key} = {literal}"
                return "\n".join(lines) + "\n"
        lines.insert(at + 1, f"{key} = {literal}")
        return "\n".join(lines) + "\n"
    return "\n".join([*lines, f"[{profile}]", f"{key} = {literal}"]) + "\n"
