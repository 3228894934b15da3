"""The user's program as a command is given it: ``file.py``, ``file.py::name``, or with ``-m`` a module."""

from __future__ import annotations

import os
import warnings
from types import ModuleType
from typing import Any

import click

from cadenza.base.errors import InvalidError

module_option = click.option("-m", "is_module", is_flag=True, help="Name a module, not a path.")


class WrongName(click.ClickException):
    """What was named is not there, or is not clear: wrong usage, and one sentence says it."""

    exit_code = 2


def read(ref: str, is_module: bool) -> Any:
    """The reference in its parts; the file is there."""
    from cadenza.sdk import entrypoint

    try:
        reference = entrypoint.parse_reference(ref, is_module)
    except InvalidError as error:
        raise WrongName(str(error)) from None
    if not is_module and not os.path.exists(reference.source):
        near = f"{reference.source}.py"
        hint = f": did you mean {near}?" if os.path.exists(near) else ""
        raise WrongName(f"no such file: {reference.source}{hint}")
    return reference


def load(ref: str, is_module: bool) -> tuple[ModuleType, Any]:
    """Import the program; the module and the reference. What the program raises is shown as its author wants it."""
    from cadenza import compat
    from cadenza.cli.run import user_code
    from cadenza.sdk import entrypoint

    reference = read(ref, is_module)
    plain_warnings()
    compat.install()
    try:
        with user_code():
            return entrypoint.import_program(reference), reference
    except InvalidError as error:
        raise click.ClickException(str(error)) from None


def plain_warnings() -> None:
    """What the server wants the user to know is a line, without the place in our code that passes it on."""
    from cadenza.base.errors import ServerWarning

    before = warnings.showwarning

    def shown(message: Any, category: Any, *rest: Any, **more: Any) -> None:
        if isinstance(category, type) and issubclass(category, ServerWarning):
            click.echo(f"Warning: {message}", err=True)
        else:
            before(message, category, *rest, **more)

    warnings.showwarning = shown
    warnings.simplefilter("always", ServerWarning)
