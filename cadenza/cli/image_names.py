"""``cadenza image names``: list, delete, history."""

from __future__ import annotations

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.cli.environment import environment_option
from cadenza.protocol import images


@click.group(help="Look at the names of images, and delete them.")
def names() -> None:
    pass


def place(word: str, env: str | None) -> images.ImageNameRef:
    """``[environment/]name[:tag]`` as a request."""
    before, _, name = word.rpartition("/")
    return images.ImageNameRef(name, before or env or "")


def _table(title: str, rows: tuple[images.ImageName, ...], json_output: bool) -> None:
    show.table(
        title,
        ["Name", "Tag", "Image ID", "Published at", "Published by"],
        [(one.name, one.tag, one.image_id, show.when(one.published_at), one.published_by) for one in rows],
        json_output,
    )


@names.command("list", help="List the names of images in an environment.")
@environment_option
@click.option("--prefix", default="", help="Only names (with their tag) that begin so.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_names(env: str | None, prefix: str, json_output: bool) -> None:
    _table("Names", ask("image.names", images.ImageNameList(env or "", prefix)).names, json_output)


@names.command(help="Delete a name. Its image stays, and goes when nothing uses it any more.")
@click.argument("name", metavar="NAME:TAG")
@environment_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(name: str, env: str | None, yes: bool) -> None:
    if not yes:
        click.confirm(f"Delete the name {name}? Programs that use it will not find it.", abort=True)
    ask("image.unpublish", place(name, env))
    click.echo(f"Deleted {name}.")


@names.command(help="List which images a name has had, newest first; with :TAG of this tag alone.")
@click.argument("name")
@environment_option
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def history(name: str, env: str | None, json_output: bool) -> None:
    _table("Publications", ask("image.history", place(name, env)).names, json_output)
