"""The configuration file as text: its profiles, one setting more or less, and all comments where they were."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import click

from cadenza.base.config import load

DEFAULT = "default"
_HEADER = re.compile(r"""\s*\[\s*["']?([^\]"']+?)["']?\s*\]\s*(?:#.*)?""")
"""The line that begins a table."""
_PROFILE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
PROFILE_VARIABLES = ("CADENZA_PROFILE", "MODAL_PROFILE")


def environment_without_profile(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without the choice of a profile, for a profile that is yet to be written."""
    return {name: value for name, value in (environ or os.environ).items() if name not in PROFILE_VARIABLES}


def path() -> Path:
    """Where the file is, or would be."""
    return Path(load({**environment_without_profile(), "CADENZA_PROFILE": ""}).config_dir) / "config.toml"


def read() -> str:
    """The file's text; empty when there is none."""
    file = path()
    return file.read_text() if file.exists() else ""


def save(text: str) -> Path:
    """Put the text in place of the file, for its owner's eyes only: whole or not at all."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(file)
    return file


def check_profile(name: str) -> str:
    """The name. click.UsageError when no profile can have it."""
    if not _PROFILE.match(name):
        raise click.UsageError(f"the profile name {name!r}: 1 to 64 letters, digits, '-' and '_'")
    return name


def wanted() -> str:
    """The profile that the environment or ``--profile`` names; empty: none."""
    return next((os.environ[one] for one in PROFILE_VARIABLES if os.environ.get(one)), "")


def names(text: str) -> list[str]:
    """The file's profiles, in order."""
    return [name for _, _, name in _tables(text.splitlines())]


def active(text: str) -> str:
    """The profile in force where nobody names one: marked ``active = true``, else ``default``."""
    lines = text.splitlines()
    for start, end, name in _tables(lines):
        if any(line.partition("#")[0].replace(" ", "") == "active=true" for line in lines[start:end]):
            return name
    return DEFAULT


def in_use(text: str) -> str:
    """The profile of this command: the one that is named, else the active one."""
    return wanted() or active(text)


def quoted(value: str) -> str:
    """A string as TOML."""
    return json.dumps(value)


def with_setting(text: str, profile: str, key: str, literal: str) -> str:
    """The text with ``key = literal`` in a profile's table; everything else stays as it was written.

    Without ``profile``: the active one.
    """
    lines = text.splitlines()
    profile = profile or active(text)
    for start, end, name in _tables(lines):
        if name != profile:
            continue
        for index in range(start + 1, end):
            if lines[index].split("=")[0].strip() == key:
                lines[index] = f"{key} = {literal}"
                return "\n".join(lines) + "\n"
        lines.insert(start + 1, f"{key} = {literal}")
        return "\n".join(lines) + "\n"
    header = f"[{profile}]" if _PROFILE.match(profile) else f"[{quoted(profile)}]"
    return "\n".join([*lines, header, f"{key} = {literal}"]) + "\n"


def without_setting(text: str, profile: str, key: str) -> str:
    """The text without a setting of a profile's table."""
    lines = text.splitlines()
    for start, end, name in _tables(lines):
        if name == profile:
            kept = [one for one in lines[start + 1 : end] if one.split("=")[0].strip() != key]
            lines[start + 1 : end] = kept
            break
    return "\n".join(lines) + "\n" if lines else ""


def activated(text: str, profile: str) -> str:
    """The text with this profile as the active one, and no other."""
    for name in names(text):
        if name != profile:
            text = without_setting(text, name, "active")
    return with_setting(text, profile, "active", "true")


def _tables(lines: list[str]) -> list[tuple[int, int, str]]:
    """``(first line, line after the last, name)`` of each table."""
    found = [(at, match[1]) for at, line in enumerate(lines) if (match := _HEADER.fullmatch(line))]
    ends = [at for at, _ in found[1:]] + [len(lines)]
    return [(at, end, name) for (at, name), end in zip(found, ends)]
