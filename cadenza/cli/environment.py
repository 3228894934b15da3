"""The option ``-e/--env`` that many commands share, and what it means when it is not given."""

from __future__ import annotations

from typing import Any

import click

from cadenza.cli import completion


def environment_option(command: Any) -> Any:
    """``-e/--env NAME``. The server refuses a name that does not exist."""
    return click.option(
        "-e",
        "--env",
        default=None,
        metavar="NAME",
        shell_complete=completion.environments,
        help="Environment; else CADENZA_ENVIRONMENT, the profile's, the workspace's (main).",
    )(command)


def wanted(env: str | None) -> str:
    """The environment that a command means: what was given, else the configured one."""
    from cadenza.base.config import load

    return env or load().environment
