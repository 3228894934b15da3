"""The option ``-e/--env`` that many commands share."""

from __future__ import annotations

from typing import Any

import click

ONLY = "main"


def _check(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value not in (None, ONLY):
        raise click.BadParameter(f"there is no environment {value!r}: this version has one, {ONLY!r}")
    return value


def environment_option(command: Any) -> Any:
    """``-e/--env NAME``. A name that does not exist is refused, never ignored."""
    return click.option("-e", "--env", default=None, callback=_check, help="Environment.")(command)
