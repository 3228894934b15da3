"""The user's configuration file, for commands that read and change it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from cadenza.base import profiles
from cadenza.base.config import load
from cadenza.base.profiles import DEFAULT as DEFAULT
from cadenza.base.profiles import activated as activated
from cadenza.base.profiles import active as active
from cadenza.base.profiles import names as names
from cadenza.base.profiles import quoted as quoted
from cadenza.base.profiles import with_setting as with_setting
from cadenza.base.profiles import without_setting as without_setting

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
    profiles.replace(file, text)
    return file


def check_profile(name: str) -> str:
    """The name. click.UsageError when no profile can have it."""
    if not profiles.PLAIN.match(name):
        raise click.UsageError(f"the profile name {name!r}: 1 to 64 letters, digits, '-' and '_'")
    return name


def wanted() -> str:
    """The profile that the environment or ``--profile`` names; empty: none."""
    return next((os.environ[one] for one in PROFILE_VARIABLES if os.environ.get(one)), "")


def in_use(text: str) -> str:
    """The profile of this command: the one that is named, else the active one."""
    return wanted() or active(text)
