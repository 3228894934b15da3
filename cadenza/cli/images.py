"""``cadenza image``: list."""

from __future__ import annotations

import click

from cadenza.cli import show
from cadenza.cli.connection import ask
from cadenza.protocol.method import Empty


@click.group(help="Look at the images kept on this machine.")
def image() -> None:
    pass


@image.command("list", help="List images, most recently used first.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_images(json_output: bool) -> None:
    found = sorted(ask("image.list", Empty()).images, key=lambda one: -one.used_at)
    show.table(
        "Images",
        ["Image ID", "Size", "Created at", "Used at", "Description"],
        [
            (one.image_id, show.size(one.size), show.when(one.created_at),
             show.when(one.used_at), one.description)
            for one in found
        ],
        json_output,
    )  # fmt: skip
