"""``cadenza run``: import a program, type its arguments, run what it names in containers on this machine."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import click

from cadenza.base.errors import Error, InvalidError
from cadenza.cli.environment import environment_option

PACKAGE = str(Path(__file__).resolve().parents[1])


class Program(click.Command):
    """A command whose arguments are those of the program it runs: ``cadenza run [OPTIONS] FILE [ARGUMENTS]``."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE.py[::NAME] [ARGUMENTS OF THE FUNCTION]...")


@click.command(
    cls=Program,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Run a function or a local entrypoint in containers on this machine.\n\n"
    "FILE.py::NAME names what to run, FILE.py::Class.method a method; NAME may be left out when there is only one "
    "choice. What follows are the arguments of that function, typed by its annotations, and the parameters of its "
    "class: add --help to see them.",
)
@click.option("-m", "is_module", is_flag=True, help="FILE is a module's name, not a path.")
@click.option("-n", "--name", default=None, help="Name for this run of the app.")
@click.option("-q", "--quiet", is_flag=True, help="Show neither progress nor logs.")
@click.option("-d", "--detach", is_flag=True, help="Let the app finish its work if this process ends.")
@click.option("-i", "--interactive", is_flag=True, help="Functions may have this terminal: interact(), breakpoint().")
@click.option("-w", "--write-result", metavar="PATH", help="Write the result, which must be str or bytes, to PATH.")
@environment_option
@click.option("--timestamps", is_flag=True, help="Begin each log line with its time.")
@click.argument("ref")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    is_module: bool,
    name: str | None,
    quiet: bool,
    detach: bool,
    interactive: bool,
    write_result: str | None,
    env: str | None,
    timestamps: bool,
    ref: str,
    arguments: tuple[str, ...],
) -> None:
    from cadenza.cli import program
    from cadenza.sdk import entrypoint

    if interactive and quiet:
        raise click.UsageError("-i shows what the container says: leave -q out")
    if write_result is not None and not os.path.isdir(os.path.dirname(os.path.abspath(write_result))):
        raise click.UsageError(f"--write-result: there is no directory for {write_result}")
    module, reference = program.load(ref, is_module)
    try:
        found = entrypoint.choose(module, reference)
        signature = found.signature()
    except InvalidError as error:
        raise program.WrongName(str(error)) from None
    kwargs, rest = parse_arguments(ref, found, signature, list(arguments))
    if found.is_generator:
        raise click.ClickException(
            f"{found.name} is a generator, which `cadenza run` cannot run by itself: call it with .remote_gen() from a "
            "@app.local_entrypoint()"
        )
    with ended_by_sigterm():
        of_class = {one.name for one in signature.arguments if one.of_class}
        result = execute(found, rest, kwargs, of_class, name, quiet, detach, interactive, env, timestamps)
    if write_result is not None:
        save(write_result, result)
    elif not found.is_local and result is not None and not quiet:
        click.echo(repr(result))


def parse_arguments(
    ref: str, found: Any, signature: Any, arguments: list[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The function's keyword arguments, or for ``*args`` the words as they are. click.UsageError says what is wrong."""
    if signature.rest:
        return {}, tuple(arguments)
    parameters: list[click.Parameter] = []
    types: dict[str, Any] = {"str": click.STRING, "int": click.INT, "float": click.FLOAT}
    for one in signature.arguments:
        # To click a default of None is one too: an option that must be given has none at all.
        default = {"required": True} if one.required else {"default": one.default}
        if one.kind == "bool":
            decls = [one.name, f"{one.option}/--no-{one.option[2:]}"]
            parameters.append(click.Option(decls, **default))
            continue
        if one.kind == "choice":
            kind: Any = click.Choice([str(choice) for choice in one.choices])
        elif one.kind == "datetime":
            kind = click.DateTime()
        else:
            kind = types[one.kind]
        parameters.append(
            click.Option(
                [one.name, one.option, *([f"--{one.name}"] if "_" in one.name else [])],
                type=kind,
                show_default=not one.required and one.default is not None,
                **default,
            )
        )
    text = inspect.getdoc(found.raw) or ""
    command = click.Command(found.name, params=parameters, help=text, callback=lambda **given: given)
    context = command.make_context(f"cadenza run {ref}", arguments)
    given = command.invoke(context)
    kwargs = {}
    for one in signature.arguments:
        # What was not given is the program's own object, not what click makes of it: the text "False", say.
        if context.get_parameter_source(one.name) is click.core.ParameterSource.DEFAULT:
            kwargs[one.name] = one.default
        else:
            kwargs[one.name] = one.convert(given[one.name])
    return kwargs, ()


def sink(timestamps: bool) -> Any:
    """What shows progress and logs here: a moving picture at a terminal, else lines."""
    from cadenza.sdk import output

    if sys.stderr.isatty():
        from cadenza.cli.screen import Screen

        return Screen(timestamps)
    return output.PlainSink(timestamps=timestamps)


def execute(
    found: Any,
    rest: tuple[str, ...],
    kwargs: dict[str, Any],
    of_class: set[str],
    name: str | None,
    quiet: bool,
    detach: bool,
    interactive: bool,
    env: str | None,
    timestamps: bool,
) -> Any:
    """Run the app around the entrypoint, the function or the method; the result. ``of_class``: which of ``kwargs`` are
    parameters of the method's class."""
    from cadenza.sdk import output

    if found.app.name is None:
        found.app.set_description(os.path.basename(str(getattr(found.module, "__file__", found.module.__name__))))
    shown: Any = None
    if not quiet:
        shown = sink(timestamps)
        if interactive:
            from cadenza.cli.interactive import Interactive

            shown = Interactive(shown)
        output.install(shown)
    try:
        with user_code():
            with found.app.run(name=name, detach=detach, interactive=interactive, environment_name=env):
                if found.is_local:
                    result = found.target(*rest, **kwargs)
                    if inspect.iscoroutine(result):
                        import asyncio

                        result = asyncio.run(result)
                else:
                    target: Any = found.target
                    if found.owner is not None:
                        instance = found.owner(**{key: kwargs.pop(key) for key in of_class})
                        target = getattr(instance, found.method)
                    if detach:
                        result = target.spawn(*rest, **kwargs).get()
                    else:
                        result = target.remote(*rest, **kwargs)
        return result
    finally:
        if shown is not None:
            output.remove(shown)
            shown.close()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs here as Ctrl-C does, so that the app stops; the exit status is a shell's for it, 143."""
    came = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        if not came:
            raise
        click.echo("Terminated.", err=True)
        raise click.exceptions.Exit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def save(path: str, result: Any) -> None:
    """Write a result to a file, whole or not at all."""
    if not isinstance(result, (str, bytes)):
        raise click.ClickException(f"--write-result takes str or bytes; the function returned {type(result).__name__}")
    temporary = f"{path}.{os.getpid()}.new"
    with open(temporary, "wb") as file:
        file.write(result.encode() if isinstance(result, str) else result)
    os.replace(temporary, path)


@contextmanager
def user_code() -> Iterator[None]:
    """What the user's program raises is shown as its author wants to read it: without frames of ours; exit status 1."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, KeyboardInterrupt, BrokenPipeError):
        raise
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            raise click.exceptions.Exit(error.code or 0) from None
        click.echo(error.code, err=True)
        raise click.exceptions.Exit(1) from None
    except BaseException as error:
        show(error)
        raise click.exceptions.Exit(1) from None


def show(error: BaseException) -> None:
    """Print an exception of the user's program. Errors of ours with no frame of the user's are one sentence."""
    from cadenza.base.config import load

    try:
        whole = load().traceback
    except Error:
        whole = False
    if not whole:
        strip(error)
    if isinstance(error, Error) and error.__traceback__ is None:
        from cadenza.cli.show import failure

        failure(error)
        return
    sys.stderr.write("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def strip(error: BaseException, seen: set[int] | None = None) -> None:
    """Take our own frames out of a traceback, its causes and contexts included. ``traceback = true`` keeps them."""
    seen = set() if seen is None else seen
    if id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = without(error.__traceback__, is_ours)
    for other in (error.__cause__, error.__context__):
        if other is not None:
            strip(other, seen)


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is of this package, or of the import machinery that it used."""
    name = frame.f_code.co_filename
    return name.startswith((PACKAGE, "<frozen importlib")) or "/concurrent/futures/" in name


def without(tb: TracebackType | None, unwanted: Callable[[FrameType], bool]) -> TracebackType | None:
    """A traceback without some of its frames."""
    kept = []
    while tb is not None:
        if not unwanted(tb.tb_frame):
            kept.append(tb)
        tb = tb.tb_next
    result: TracebackType | None = None
    for one in reversed(kept):
        result = TracebackType(result, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return result
