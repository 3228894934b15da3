"""Groups whose commands are imported when they are called, and that guess what a misspelt one was."""

from __future__ import annotations

import importlib
import importlib.util

import click


def load(place: str) -> click.Command:
    """``module:object``, imported now."""
    module, _, name = place.partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, click.Command)
    return found


class Guessing(click.Group):
    """A group that says which command a misspelt one may have been.

    ``elsewhere``: name to ``module:object`` of commands that live in other modules, imported when they are used.
    """

    def __init__(self, *args: object, elsewhere: dict[str, str] | None = None, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._elsewhere = {
            name: place
            for name, place in (elsewhere or {}).items()
            if importlib.util.find_spec(place.partition(":")[0]) is not None
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self._elsewhere:
            return load(self._elsewhere[cmd_name])
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=1) if args else []
            if near:
                raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None
            raise
