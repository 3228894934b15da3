"""``cadenza shell``: a command, or a shell, in a container: one that runs, or a new one as a function would have it."""

from __future__ import annotations

import asyncio
import os
import shlex
from dataclasses import replace
from typing import Any

import click

from cadenza.base.errors import Error, ImageBuildError, InvalidError
from cadenza.cli import completion
from cadenza.cli.environment import environment_option, wanted
from cadenza.cli.images import asked
from cadenza.cli.run import user_code
from cadenza.protocol import methods
from cadenza.protocol.images import ImageFind
from cadenza.protocol.objects import FunctionSpec

LIMIT_S = 3600.0
"""How long a shell may take: semantics.md section 23."""
HOLD = "cadenza.runner.hold"
LOOK_S = 0.05
"""How often it is asked whether the container is ready."""
STARTS = 3
"""After so many containers that did not come up, there is no hope."""
NOT_OPTIONS = (
    "image", "add_python", "volume", "add_local", "secret", "cpu", "memory", "gpu", "cloud", "region",
)  # fmt: skip
"""Options that say what a new container is like: with a REF the function says it."""


@click.command(
    help="Run a command or a shell in a container.\n\n"
    "REF is file.py::function (or with -m a module): a new container with that function's image, files, secrets and "
    "resources, in which the function's own code is not imported; the id of a running container (ta-...); or an image: "
    "its id (im-...), the first characters of it, or its name. Without REF: Debian with Python. A new container ends "
    "with its shell, and after an hour."
)
@click.argument("ref", required=False, default="", shell_complete=completion.containers)
@click.option("-c", "--cmd", default="/bin/bash", show_default=True, help="What to run, split as a shell does.")
@environment_option
@click.option("--image", default=None, metavar="TAG", help="An image of a registry: not built yet.")
@click.option("--add-python", default=None, metavar="VERSION", help="Which Python the image has, such as 3.12.")
@click.option("--volume", multiple=True, metavar="NAME", help="A volume to mount at /mnt/NAME: not built yet.")
@click.option("--add-local", multiple=True, metavar="PATH", help="A file or directory from here, at /mnt/NAME.")
@click.option("--secret", multiple=True, metavar="NAME", help="A stored secret whose variables are set.")
@click.option("--cpu", type=click.IntRange(min=1), default=None, help="Cores.")
@click.option("--memory", type=click.IntRange(min=1), default=None, metavar="MIB", help="Memory in MiB.")
@click.option("--gpu", default=None, metavar="TYPE[:N]", help="GPUs, such as any, or A100:4.")
@click.option("--cloud", default=None, metavar="NAME", help="Only on machines of this cloud.")
@click.option("--region", default=None, metavar="NAMES", help="Only on machines of these regions, with commas between.")
@click.option("--runtime", type=click.Choice(["gvisor", "vm"]), default=None, help="gvisor: isolated more strongly.")
@click.option("--pty/--no-pty", default=None, help="With a terminal; by default when there is one here.")
@click.option("-m", "is_module", is_flag=True, help="REF is a module's name, not a path.")
def shell(
    ref: str,
    cmd: str,
    env: str | None,
    runtime: str | None,
    pty: bool | None,
    is_module: bool,
    **container: Any,
) -> None:
    from cadenza.cli import terminal

    try:
        argv = tuple(shlex.split(cmd))
    except ValueError as error:
        raise click.BadParameter(f"{cmd!r} cannot be split into words: {error}", param_hint="--cmd") from None
    if not argv:
        raise click.BadParameter("a command needs at least its program's name", param_hint="--cmd")
    for name in NOT_OPTIONS:
        if ref and container[name] not in (None, ()):
            raise click.UsageError(f"--{name.replace('_', '-')} is for a shell without REF: {ref} says it already")
    if runtime == "vm":
        raise click.UsageError("--runtime vm is not built: use gvisor, or leave it out")
    if ref.startswith("ta-") and not os.path.exists(ref):
        raise click.exceptions.Exit(terminal.run_in_container(terminal.command(ref, argv, pty)))
    if ref.startswith("sb-") and not os.path.exists(ref):
        raise click.ClickException("sandboxes are not built yet")
    title = ref or "debian_slim"
    image = asked(ref, env) if names_image(ref, is_module) else None
    if image is not None:
        declaration = _declared({})
    elif ref:
        declaration = _from_program(ref, is_module)
    else:
        declaration = _declared(container)
    with user_code():
        code = _session(title, declaration, image, env, argv, pty, "strong" if runtime == "gvisor" else "")
    raise click.exceptions.Exit(code)


def names_image(ref: str, is_module: bool) -> bool:
    """Whether REF is an image's id or name, and no program's: no file is there, and it does not look like one's."""
    if not ref or is_module or "::" in ref or os.path.exists(ref):
        return False
    return not ref.startswith((".", "/", "~")) and not ref.endswith(".py") and not os.path.exists(f"{ref}.py")


def _from_program(ref: str, is_module: bool) -> Any:
    """The declaration of a program's function."""
    from cadenza.cli import program
    from cadenza.sdk import entrypoint

    module, reference = program.load(ref, is_module)
    try:
        return entrypoint.find_declaration(module, reference, "shell")
    except InvalidError as error:
        raise program.WrongName(str(error)) from None


def _declared(options: dict[str, Any]) -> Any:
    """A declaration made from this command's own options."""
    from cadenza.runner.hold import hold
    from cadenza.sdk.app import App
    from cadenza.sdk.image import Image
    from cadenza.sdk.secret import Secret

    if options.get("image"):
        raise click.ClickException("images of registries are not built yet: leave --image out, or name an im-... id")
    if options.get("volume"):
        raise click.ClickException("volumes are not built yet: leave --volume out")
    image = Image.debian_slim(options.get("add_python"))
    for path in options.get("add_local", ()):
        whole = os.path.abspath(path)
        if not os.path.exists(whole):
            raise click.UsageError(f"--add-local: there is no {path}")
        target = f"/mnt/{os.path.basename(whole) or 'root'}"
        image = image.add_local_dir(whole, target) if os.path.isdir(whole) else image.add_local_file(whole, target)
    region = options.get("region")
    try:
        app = App()
        app.function(
            image=image,
            secrets=[Secret.from_name(name) for name in options.get("secret", ())],
            cpu=options.get("cpu"),
            memory=options.get("memory"),
            gpu=options.get("gpu"),
            cloud=options.get("cloud"),
            region=region.split(",") if region else None,
            include_source=False,
        )(hold)
    except InvalidError as error:
        raise click.ClickException(str(error)) from None
    return next(iter(app._declarations.values()))


def holding(spec: FunctionSpec, isolation: str) -> FunctionSpec:
    """A function's container with nothing of the function in it: one, always up. Pure."""
    return replace(
        spec,
        name="shell",
        module=HOLD,
        qualname="hold",
        serialized="",
        is_generator=False,
        is_async=False,
        methods=(),
        class_parameters=(),
        parameters="",
        retries=None,
        timeout_s=LIMIT_S,
        min_containers=1,
        max_containers=1,
        buffer_containers=0,
        single_use=False,
        max_concurrent=1,
        target_concurrent=1,
        batch_max=0,
        batch_wait_ms=0,
        isolation=isolation or spec.isolation,
        options={name: value for name, value in spec.options.items() if name != "schedule"},
    )


def _session(
    title: str,
    declaration: Any,
    image: ImageFind | None,
    env: str | None,
    argv: tuple[str, ...],
    pty: bool | None,
    isolation: str,
) -> int:
    """Publish an app of one container, run the command in it, stop the app; the command's exit code."""
    from cadenza.base.config import load
    from cadenza.cli import terminal
    from cadenza.cli.connection import ask, client
    from cadenza.cli.run import ended_by_sigterm, sink
    from cadenza.sdk import _dual, running

    shown = sink(False)
    try:
        created = ask("app.create", methods.AppCreate(f"shell {title}"[:64], wanted(env)))
        app_id = created.app_id

        async def beating() -> Any:
            return asyncio.ensure_future(
                running._heartbeat(await client(start=False), app_id, load().heartbeat_interval)
            )

        heart = _dual.run(beating())
        try:
            with ended_by_sigterm():
                container_id = _dual.run(_start(app_id, declaration, image, wanted(env), isolation, shown))
                shown.close()
                code = terminal.run_in_container(terminal.command(container_id, argv, pty), LIMIT_S)
                if code == terminal.TIMED_OUT and pty is not False:
                    click.echo(f"The shell has ended: it may take {LIMIT_S / 3600:g} h.", err=True)
                return code
        finally:
            _dual.background_loop().call_soon_threadsafe(heart.cancel)
            ask("app.finish", methods.AppFinish(app_id, "the shell ended"), start=False)
    finally:
        shown.close()


async def _start(
    app_id: str, declaration: Any, image: ImageFind | None, environment: str, isolation: str, progress: Any
) -> str:
    """Publish, and wait for the container; its id. Error when it does not come up."""
    from cadenza.base.config import load
    from cadenza.cli.connection import client
    from cadenza.sdk import publish, source

    used = await client(start=False)
    loop = asyncio.get_running_loop()
    ids = {} if image else await publish.find_wanted(used, [declaration.image()], environment)
    prepared = await loop.run_in_executor(None, publish.prepare, declaration, publish.Images(ids))
    spec = holding(prepared.spec, isolation)
    if image:
        found = await used._request("image.find", image)
        spec = replace(spec, image=replace(spec.image, steps=(), built=found.image_id), python="")
    else:
        await source.upload(used, prepared.uploads, progress.uploading)
        await publish.build_all(used, [spec.image], progress, load().force_build, environment)
    progress.phase("Starting the container")
    await used._request("app.publish", methods.AppPublish(app_id, (spec,)))
    return await _ready(used, app_id, spec)


async def _ready(used: Any, app_id: str, spec: FunctionSpec) -> str:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + spec.startup_timeout_s
    seen: set[str] = set()
    while loop.time() < deadline:
        found = await used._request("container.list", methods.ContainerList(app_id))
        for one in found.containers:
            if one.state == "ready":
                return str(one.container_id)
            seen.add(one.container_id)
        info = await used._request("app.get", methods.AppRef(app_id))
        if info.state in ("stopped", "stopping"):
            raise Error(f"the shell's app was stopped: {info.stop_reason}")
        if info.note or len(seen) > STARTS:
            why = info.note or f"`cadenza app logs {app_id}` shows what it said"
            raise ImageBuildError(f"the container does not start: {why}")
        await asyncio.sleep(LOOK_S)
    raise Error(f"the container was not ready within {spec.startup_timeout_s:g} s: see `cadenza app explain {app_id}`")
