"""One run of an app: create, publish, keep alive, stop. Source: semantics.md section 23.

Whatever ends the ``with`` block, its end, an exception or Ctrl-C, the server is told to stop the app; if even that
cannot be said, missed heartbeats stop it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, AsyncIterator, Optional

from cadenza.base import config as configuration
from cadenza.base.errors import ConflictError, Error, InvalidError, NotFoundError
from cadenza.protocol.methods import AppCreate, AppFinish, AppRef
from cadenza.sdk import deploying, output, publish
from cadenza.sdk.context_api import container, current_input_id

if TYPE_CHECKING:
    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client

FINISH_DEADLINE_S = 15.0
"""How long the end of a run waits for the server to take note."""


async def run(
    app: App,
    name: Optional[str],
    client: Optional[Client],
    detach: bool,
    interactive: bool,
    environment_name: Optional[str],
) -> AsyncIterator[App]:
    """Yields the app once its functions can be called. See `App.run`."""
    from cadenza.sdk.client import Client

    _check(app)
    config = configuration.load()
    used: Client = client or await Client._environment()
    title = name or app.description or _program()
    budget = app._budget._spec() if app._budget is not None else None
    created = await used._request(
        "app.create", AppCreate(title, environment_name or config.environment, bool(detach), dict(app._tags), budget)
    )
    app_id: str = created.app_id
    app._app_id, app._client, app._interactive, app._runs = app_id, used, interactive, True
    heart = asyncio.ensure_future(_heartbeat(used, app_id, config.heartbeat_interval))
    shown = _Shown(used, app_id, title, config.logs_timeout)
    failure: Optional[BaseException] = None
    try:
        ids = await publish.publish(
            used, app_id, list(app._declarations.values()), shown.progress, config.force_build, bool(interactive),
            environment_name or config.environment,
        )  # fmt: skip
        deploying.hydrate(app, ids, used)
        shown.started(len(ids))
        yield app
    except BaseException as error:
        failure = error
        raise
    finally:
        heart.cancel()
        try:
            await _finish(used, app_id, failure)
            await shown.ended()
        finally:
            app._app_id, app._client, app._interactive, app._runs = None, None, False, False
            for function in app._functions.values():
                function._init_handle()
            if app._deployed is not None:  # it goes on beside this run
                deployed, of_it = app._deployed
                app._app_id, app._client = deployed.app_id, of_it
                deploying.hydrate(app, deployed.functions, of_it)


def _check(app: App) -> None:
    if container() is not None:
        if current_input_id() is not None:
            raise InvalidError(
                "app.run() was called in a function that runs in a container: the app runs already, so call its other "
                "functions with .remote()"
            )
        raise InvalidError(
            "app.run() was called in a container, where the program is imported again: call it below "
            'if __name__ == "__main__": or in a @app.local_entrypoint()'
        )
    if app._runs:
        raise InvalidError("the app runs already: one app.run() at a time")


def _program() -> str:
    """What an app without a name is called: the program's file."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "app"


async def _heartbeat(client: Client, app_id: str, interval_s: float) -> None:
    """Say every ``interval_s`` that somebody is there. A server that is away for a moment is no reason to stop."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await client._request("app.heartbeat", AppRef(app_id))
        except (NotFoundError, ConflictError):
            print(f"cadenza: the app {app_id} was stopped at the server", file=sys.stderr)
            return
        except Error:  # it may pass, and to say nothing more would end the app
            continue


async def _finish(client: Client, app_id: str, failure: Optional[BaseException]) -> None:
    """Tell the server that this client is done. A failure to do so must not hide what the program raised."""
    reason = "" if failure is None else type(failure).__name__
    if isinstance(failure, asyncio.CancelledError):
        reason = "interrupted"
    try:
        await asyncio.wait_for(
            client._request("app.finish", AppFinish(app_id, reason, error=failure is not None)), FINISH_DEADLINE_S
        )
    except (NotFoundError, ConflictError):
        pass  # it was stopped meanwhile
    except (Error, asyncio.TimeoutError) as error:
        print(
            f"cadenza: the server could not be told that the app is done ({error or 'no answer'}); "
            "it stops it by itself once it hears nothing more",
            file=sys.stderr,
        )


class _Shown:
    """What the user sees of a run, where output is enabled: phases, builds, logs."""

    def __init__(self, client: Client, app_id: str, title: str, logs_timeout_s: float) -> None:
        self._sink = output.current()
        self.progress: publish.Progress = self._sink or publish.Quiet()
        self._title = title
        self._patience_s = logs_timeout_s
        self._follower = output.Follower(client, app_id, self._sink) if self._sink is not None else None

    def started(self, functions: int) -> None:
        """The functions are there: from here on, logs."""
        self.progress.finished(f"{self._title} runs: {functions} function{'' if functions == 1 else 's'}")
        if self._follower is not None:
            self._follower.start()

    async def ended(self) -> None:
        """The app was told to stop: show the rest of its logs."""
        if self._follower is not None:
            await self._follower.end(self._patience_s)
