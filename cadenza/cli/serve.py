"""``cadenza serve``: run an app and publish it again whenever its files change.

``python -m cadenza.cli.serve REFERENCE M NAME ENVIRONMENT READ WRITE`` is the process that imports and publishes one
version.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import click

from cadenza.cli import program
from cadenza.cli.environment import environment_option, wanted

DEBOUNCE_MS = 1500
QUIET_MS = 100
"""A change is acted on when nothing more has changed for so long; at the latest after `DEBOUNCE_MS`."""


@click.command(
    help="Run an app and publish it again whenever its files change: its program, the modules of its own that it "
    "imports, and the local files of its images.\n\n"
    "APP_REF is file.py, or file.py::app where it has several. A version that cannot be imported or published shows "
    "why, and the one before goes on. Ctrl-C stops."
)
@click.argument("app_ref")
@click.option("-n", "--name", default=None, help="Name for this run of the app.")
@click.option("--timeout", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="Stop after so long.")
@environment_option
@program.module_option
@click.option("--timestamps", is_flag=True, help="Begin each log line with its time.")
def serve(
    app_ref: str, name: str | None, timeout: float | None, env: str | None, is_module: bool, timestamps: bool
) -> None:
    from cadenza.base.config import load
    from cadenza.cli.run import ended_by_sigterm, sink
    from cadenza.sdk import _dual, serving
    from cadenza.sdk.client import Client

    program.read(app_ref, is_module)
    environment = wanted(env)
    command = [sys.executable, "-m", "cadenza.cli.serve", app_ref, "1" if is_module else "", name or "", environment]
    shown = sink(timestamps)

    def say(text: str) -> None:
        click.echo(text, err=True)

    async def serving_it() -> bool:
        client = await Client.from_env.aio()
        loop = serving.Serving(
            client,
            environment,
            load().heartbeat_interval,
            lambda: serving.Child.start(command, os.environ),
            changes,
            say,
            shown,
        )
        return await loop.run(timeout)

    try:
        with ended_by_sigterm():
            published = _dual.run(serving_it())
    finally:
        shown.close()
    if not published:
        raise click.exceptions.Exit(1)


async def changes(watched: Any) -> AsyncIterator[set[str]]:
    """An empty set once it watches; then sets of paths that changed, those that came together together."""
    from watchfiles import awatch

    directories = watched.directories()
    if not directories:
        return
    found = awatch(
        *directories,
        watch_filter=lambda kind, path: watched.concerns(path),
        debounce=DEBOUNCE_MS,
        step=QUIET_MS,
        recursive=False,
        ignore_permission_denied=True,
    )
    first = asyncio.ensure_future(found.__anext__())
    try:
        await asyncio.sleep(0)  # by then it watches
        yield set()
        yield {path for _, path in await first}
        async for batch in found:
            yield {path for _, path in batch}
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


# --- the process of one version ---


class Builds:
    """What a version's process shows: builds and nothing else. The rest is the parent's to say."""

    def __init__(self) -> None:
        from cadenza.cli.run import sink

        self._sink = sink(False)

    def phase(self, text: str) -> None:
        """Not shown."""

    def uploading(self, done_bytes: int, total_bytes: int) -> None:
        """Not shown."""

    def build_line(self, image_id: str, line: Any) -> None:
        """A step that begins, or what it says."""
        if line.kind != "cached":
            self._sink.build_line(image_id, line)

    def finished(self, text: str) -> None:
        """Not shown."""

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._sink.close()


def publish_version(ref: str, is_module: bool, name: str, environment: str, read_fd: int, write_fd: int) -> None:
    """Import the program, say what it is, publish it into the app that the parent names, in ``environment``."""
    from cadenza import compat
    from cadenza.base.config import load
    from cadenza.cli.run import user_code
    from cadenza.sdk import _dual, entrypoint, publish, serving
    from cadenza.sdk.client import Client

    report = serving.Report(read_fd, write_fd)
    compat.install()
    reference = entrypoint.parse_reference(ref, is_module)
    path = "" if is_module else reference.source
    described = None
    try:
        with user_code():
            module = entrypoint.import_program(reference)
            app = entrypoint.find_app(module, reference, "serve")
            described = serving.describe(app, name, path)
    finally:
        if described is None:
            described = serving.Described(watched=serving.watched(None, path))
        report.say(serving.plain(described))
    app_id = report.app_id()
    if not app_id:
        return
    shown = Builds()

    gone = False

    async def publishing() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def unwanted() -> None:  # the parent says nothing more: it is gone, killed perhaps, or has a newer version
            nonlocal gone
            gone = True
            loop.remove_reader(read_fd)  # else it is called for ever
            task.cancel()

        loop.add_reader(read_fd, unwanted)
        try:
            client = await Client.from_env.aio()
            declarations, force = list(app._declarations.values()), load().force_build
            return await publish.publish(client, app_id, declarations, shown, force, environment=environment)
        except (Exception, asyncio.CancelledError):
            if gone:
                return None  # there is nobody to tell
            raise
        finally:
            loop.remove_reader(read_fd)  # before it is closed: uvloop aborts the process over a closed one

    try:
        with user_code():
            functions = _dual.run(publishing())
    finally:
        shown.close()
    if functions is None:
        return
    report.say({"functions": len(functions)})


def main() -> int:
    """The process. Exit status 1: it could not be imported or published, and standard error says why."""
    ref, is_module, name, environment, read_fd, write_fd = sys.argv[1:]
    try:
        publish_version(ref, bool(is_module), name, environment, int(read_fd), int(write_fd))
    except click.exceptions.Exit as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
