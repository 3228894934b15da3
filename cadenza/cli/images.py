"""``cadenza image``: build, pull, list, inspect, logs, push, rm, gc; names are in `cadenza.cli.image_names`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cadenza.base.errors import Error
from cadenza.cli import show
from cadenza.cli.connection import ask, listen
from cadenza.cli.environment import environment_option
from cadenza.cli.image_names import names
from cadenza.protocol import images
from cadenza.protocol.method import Empty
from cadenza.protocol.objects import SecretRef

ID_CHARS = 25
"""Of a whole image id, ``im-`` among them."""


@click.group(help="Build images, bring them here, name them, look at them, remove them.")
def image() -> None:
    pass


image.add_command(names)


def credentials(command: Any) -> Any:
    """``--registry-secret`` and ``--registry-secret-from-env``."""
    command = click.option(
        "--registry-secret-from-env",
        metavar="NAMES",
        help="Local variables that hold registry credentials, separated by commas; not with --registry-secret.",
    )(command)
    return click.option("--registry-secret", metavar="NAME", help="A secret with registry credentials.")(command)


def secret_of(registry_secret: str | None, from_env: str | None, env: str | None) -> Any:
    """The `cadenza.Secret` that the options of `credentials` name, or None."""
    from cadenza.sdk.secret import Secret

    if registry_secret and from_env:
        raise click.UsageError("--registry-secret and --registry-secret-from-env: give one of the two")
    if registry_secret:
        return Secret.from_name(registry_secret, environment_name=env)
    if from_env:
        return Secret.from_local_environ([one.strip() for one in from_env.split(",") if one.strip()])
    return None


def make(recipe: Any, name: str | None, env: str | None) -> None:
    """Build an image of the SDK, show the build, and give it a name."""
    from cadenza.sdk.output import enable_output

    with enable_output():
        recipe.build()
        if name:
            recipe.publish(name, environment_name=None if "/" in name else env)
    click.echo(f"{recipe.object_id}" + (f" is {name} now" if name else ""))


def check_name(name: str | None) -> None:
    """click.UsageError before anything is built for a name that no image can have."""
    from cadenza.sdk.names import check_image_name

    if name is not None:
        try:
            check_image_name("--name", name)
        except Error as error:
            raise click.UsageError(str(error)) from None


@image.command(help="Build an image from a Dockerfile in CONTEXT_DIR, and give it a name.")
@click.argument("context_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-t", "--name", required=True, help="[environment/]name[:tag]; the tag is latest if none is given.")
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Dockerfile; else CONTEXT_DIR/Dockerfile.",
)
@credentials
@click.option("--force-build", is_flag=True, help="Build all steps again, whatever is cached.")
@environment_option
def build(
    context_dir: Path,
    name: str,
    file: Path | None,
    registry_secret: str | None,
    registry_secret_from_env: str | None,
    force_build: bool,
    env: str | None,
) -> None:
    from cadenza.sdk.image import Image

    check_name(name)
    path = file or context_dir / "Dockerfile"
    if not path.is_file():
        raise click.UsageError(f"there is no {path}: give the Dockerfile with --file")
    secret = secret_of(registry_secret, registry_secret_from_env, env)
    recipe = Image.from_dockerfile(path, context_dir=context_dir, registry_secret=secret, force_build=force_build)
    make(recipe, name, env)


@image.command(help="Bring an image from a registry, such as python:3.12-slim. A tag is fetched once.")
@click.argument("image_ref")
@click.option("--name", help="Give it this name: [environment/]name[:tag].")
@credentials
@click.option("--force-build", is_flag=True, help="Ask the registry again, and replace what is here.")
@environment_option
def pull(
    image_ref: str,
    name: str | None,
    registry_secret: str | None,
    registry_secret_from_env: str | None,
    force_build: bool,
    env: str | None,
) -> None:
    from cadenza.sdk.image import Image

    check_name(name)
    secret = secret_of(registry_secret, registry_secret_from_env, env)
    make(Image.from_registry(image_ref, secret, force_build=force_build), name, env)


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


def asked(word: str, env: str | None) -> images.ImageFind:
    """What IMAGE means: an id or its first characters, else a name."""
    if word.startswith("im-"):
        return images.ImageFind(word)
    before, _, name = word.rpartition("/")
    return images.ImageFind("", name, before or env or "")


@image.command(help="Show what is known of an image. IMAGE is an id, the first characters of one, or a name.")
@click.argument("image_word", metavar="IMAGE")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@environment_option
def inspect(image_word: str, json_output: bool, env: str | None) -> None:
    found = ask("image.inspect", asked(image_word, env))
    info = found.image
    pairs: list[tuple[str, Any]] = [
        ("Image ID", info.image_id),
        ("Names", show.listed(found.names)),
        ("Size", show.size(info.size)),
        ("Here", show.size(found.local_size)),
        ("Shared", show.size(found.shared_size)),
        ("Entries", show.number(info.entries)),
        ("Created at", show.when(info.created_at)),
        ("Used at", show.when(info.used_at)),
        ("Python", info.python),
        ("Workdir", info.workdir),
        ("User", found.user),
        ("Entrypoint", show.listed(found.entrypoint)),
        ("Cmd", show.listed(found.cmd)),
        ("Shell", show.listed(found.shell)),
        ("Source", found.source),
        ("Tree", info.tree),
    ]
    columns = ["Layer", "Size", "Entries", "Seconds", "Digest"]
    rows = [
        (
            one.text,
            show.size(one.size),
            one.entries,
            show.Cell(f"{one.seconds:.1f}", one.seconds),
            show.Cell(one.digest[:12], one.digest),
        )
        for one in found.layers
    ]
    if json_output:
        layers = show.rows_as_json(columns, rows)
        show.as_json({**show.facts_as_json(pairs), "env": info.env, "layers": layers})
        return
    show.facts(pairs)
    if rows:
        click.echo()
        show.table("Layers", columns, rows, False)


@image.command(help="Print what the steps of an image's build wrote. IMAGE is an id, or a name.")
@click.argument("image_word", metavar="IMAGE")
@click.option("--layers", type=click.IntRange(min=1), default=1, help="Of the last N steps that wrote something.")
@click.option("--all", "all_layers", is_flag=True, help="Of all steps.")
@environment_option
def logs(image_word: str, layers: int, all_layers: bool, env: str | None) -> None:
    # A whole id needs no image: a build that failed has a log too.
    whole = image_word.startswith("im-") and len(image_word) == ID_CHARS
    image_id = image_word if whole else ask("image.find", asked(image_word, env)).image_id
    step = ""
    for line in ask("image.log", images.ImageLogQuery(image_id, 0 if all_layers else layers)).lines:
        if line.step != step:
            step = line.step
            click.secho(f"=> {step}", bold=True)
        click.echo(line.text.rstrip("\n"))


@image.command(help="Send an image to a registry. REF is HOST[:PORT]/REPOSITORY[:TAG].")
@click.argument("image_word", metavar="IMAGE")
@click.argument("ref")
@credentials
@environment_option
def push(
    image_word: str, ref: str, registry_secret: str | None, registry_secret_from_env: str | None, env: str | None
) -> None:
    import os

    if registry_secret and registry_secret_from_env:
        raise click.UsageError("--registry-secret and --registry-secret-from-env: give one of the two")
    secrets: tuple[SecretRef, ...] = ()
    if registry_secret:
        secrets = (SecretRef(name=registry_secret),)
    elif registry_secret_from_env:
        keys = [one.strip() for one in registry_secret_from_env.split(",") if one.strip()]
        unset = [one for one in keys if one not in os.environ]
        if unset:
            raise click.UsageError(f"not set here: {', '.join(unset)}")
        secrets = (SecretRef(values={one: os.environ[one] for one in keys}),)
    image_id = ask("image.find", asked(image_word, env)).image_id
    digest = ""
    for item, _ in listen("image.push", images.ImagePush(image_id, ref, secrets, env or "")):
        for line in item.lines:
            click.echo(line, err=True)
        digest = item.digest or digest
    click.echo(f"{ref}@{digest}")


@image.command(help="Forget images that nothing uses, and remove their content.")
@click.argument("image_words", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also where a deployed app or a name has it; never under a container.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@environment_option
def rm(image_words: tuple[str, ...], force: bool, yes: bool, env: str | None) -> None:
    found = [ask("image.find", asked(word, env)).image_id for word in image_words]
    if not yes:
        click.confirm(f"Remove {', '.join(found)}?", abort=True)
    for image_id in dict.fromkeys(found):
        ask("image.remove", images.ImageRemove(image_id, force))
        click.echo(f"Removed {image_id}.")


@image.command(help="Remove content that no image has; with --unused-days, images that nothing used for so long.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--unused-days", type=click.FloatRange(min=0), help="Also images that nothing uses or used for so long.")
@click.option("--remote", is_flag=True, help="Also from the bucket: what no machine's images need.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def gc(dry_run: bool, unused_days: float | None, remote: bool, json_output: bool) -> None:
    begun = time.monotonic()
    done = ask("image.collect", images.ImageCollect(dry_run, -1.0 if unused_days is None else unused_days, remote))
    if json_output:
        show.as_json(
            {
                "images": list(done.images), "objects": done.objects, "size": done.size, "dry_run": done.dry_run,
                "kept_objects": done.kept_objects, "kept_size": done.kept_size, "notes": list(done.notes),
            }
        )  # fmt: skip
        return
    for image_id in done.images:
        click.echo(f"{'Would remove' if dry_run else 'Removed'} {image_id}.")
    for note in done.notes:
        click.echo(note)
    click.echo(
        f"{'Would remove' if dry_run else 'Removed'} {done.objects} objects, {show.size_text(done.size)}; "
        f"{done.kept_objects} objects, {show.size_text(done.kept_size)}, stay ({time.monotonic() - begun:.1f} s)."
    )
