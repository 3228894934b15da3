"""A deploy of an app: resolve, send files, build images, put the new version in force: in this order, all or nothing.

Also what else is asked of an app on the server: look it up, its tags, what is known of it. Source: semantics.md
section 23.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from typing import TYPE_CHECKING, Mapping, Optional, Sequence

from cadenza.base import config as configuration
from cadenza.base.errors import InvalidError, ServerWarning
from cadenza.protocol.deployments import (
    MAX_TAG_CHARS,
    STRATEGIES,
    AppDeploy,
    AppDeployed,
    AppLookup,
    AppSetTags,
    GitInfo,
)
from cadenza.protocol.functions import FunctionList
from cadenza.protocol.methods import AppRef
from cadenza.protocol.objects import AppInfo as Known
from cadenza.protocol.packed import sendable
from cadenza.sdk import git, output, publish
from cadenza.sdk.context_api import container, current_input_id
from cadenza.sdk.declaration import Declaration
from cadenza.sdk.names import check_name

if TYPE_CHECKING:
    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client
    from cadenza.sdk.types import AppInfo

NEEDS_A_NAME = (
    'an app needs a name to be deployed: app = App("my-app"), or app.deploy(name="my-app"), '
    "or on the command line --name my-app"
)


async def deploy(
    app: App,
    name: Optional[str],
    environment_name: Optional[str],
    tag: str,
    client: Optional[Client],
    strategy: str,
    staged: bool = False,
) -> AppDeployed:
    """What the server made of it. See `App.deploy`; ``staged`` keeps the version and does not put it in force."""
    from cadenza.sdk.client import Client

    title = check(app, name, tag, strategy)
    config = configuration.load()
    used: Client = client or await Client._environment()
    declarations = list(app._declarations.values())
    shown = output.current() or publish.Quiet()
    loop = asyncio.get_running_loop()
    commit: asyncio.Future[GitInfo] = loop.run_in_executor(None, git.describe, home(declarations))
    environment = environment_name or config.environment
    specs = await publish.bring(used, declarations, shown, config.force_build, environment)
    shown.phase("Deploying")
    from cadenza import __version__

    functions, payload = sendable(specs)
    request = AppDeploy(
        name=title,
        functions=functions,
        environment=environment,
        tags=dict(app._tags),
        tag=tag,
        strategy=strategy,
        git=await commit,
        client_version=__version__,
        budget=app._budget._spec() if app._budget is not None else None,
        staged=staged,
    )
    deployed: AppDeployed = await used._request("app.deploy", request, payload)
    for text in deployed.warnings:
        warnings.warn(text, ServerWarning, stacklevel=2)
    app._deployed = (deployed, used)
    app._app_id, app._client = deployed.app_id, used
    hydrate(app, deployed.functions, used)
    shown.finished(sentence(title, deployed))
    return deployed


def check(app: App, name: Optional[str], tag: str, strategy: str) -> str:
    """The name to deploy under. InvalidError for what can never be deployed."""
    if container() is not None:
        if current_input_id() is not None:
            raise InvalidError("app.deploy() was called in a function that runs in a container: deploy from outside")
        raise InvalidError(
            "app.deploy() was called in a container, where the program is imported again: call it below "
            'if __name__ == "__main__": or use `cadenza deploy`'
        )
    if name is None and app._name is None:
        raise InvalidError(NEEDS_A_NAME)
    title: str = check_name(name if name is not None else app._name)
    if not isinstance(tag, str) or len(tag) > MAX_TAG_CHARS:
        raise InvalidError(f"app.deploy: tag is a text of at most {MAX_TAG_CHARS} characters")
    if strategy not in STRATEGIES:
        raise InvalidError(f"app.deploy: strategy must be 'rolling' or 'recreate', not {strategy!r}")
    if app._runs:
        raise InvalidError("the app runs: deploy it outside of app.run()")
    return title


def home(declarations: Sequence[Declaration]) -> str:
    """The directory whose commit is that of the app: its first function's, else the present one."""
    for one in declarations:
        path = getattr(sys.modules.get(one.raw.__module__), "__file__", None)
        if path and os.path.isfile(path):
            return os.path.dirname(os.path.abspath(str(path)))
    return os.getcwd()


def sentence(name: str, deployed: AppDeployed) -> str:
    """What a deploy did, for people."""
    count = len(deployed.functions)
    functions = f"{count} function{'' if count == 1 else 's'}"
    if not deployed.changed:
        return f"{name}: nothing has changed, version {deployed.version} stays in force ({functions})"
    return f"{name}: version {deployed.version} is deployed ({functions})"


def hydrate(app: App, ids: Mapping[str, str], client: Client) -> None:
    """Give the app's handles the ids that the server knows their functions by."""
    for name, function_id in ids.items():
        function = app._functions.get(name)
        if function is not None:
            function._hydrate(function_id, client)


async def lookup(name: str, client: Optional[Client], environment_name: Optional[str], create_if_missing: bool) -> App:
    """A deployed app by name. See `App.lookup`."""
    from cadenza.sdk.app import App
    from cadenza.sdk.client import Client

    check_name(name)
    used = client or await Client._environment()
    environment = environment_name or ("" if container() is not None else configuration.load().environment)
    found: Known = await used._request("app.lookup", AppLookup(name, environment, create_if_missing))
    app = App(name, tags=found.tags)
    app._app_id, app._client = found.app_id, used
    return app


async def set_tags(app: App, tags: Mapping[str, str], client: Optional[Client]) -> None:
    """Replace the tags of an app on the server."""
    used, app_id = on_server(app, client)
    await used._request("app.set_tags", AppSetTags(app_id, dict(tags)))


async def get_tags(app: App, client: Optional[Client]) -> dict[str, str]:
    """The tags of an app on the server."""
    used, app_id = on_server(app, client)
    found: Known = await used._request("app.get", AppRef(app_id))
    return dict(found.tags)


async def info(app: App) -> AppInfo:
    """What the server knows of an app. See `App.info`."""
    from datetime import datetime, timezone

    from cadenza.sdk.types import AppInfo, AppLifecycle, AppState

    def time_of(epoch_s: Optional[float]) -> Optional[datetime]:
        return datetime.fromtimestamp(epoch_s, timezone.utc) if epoch_s is not None else None

    used, app_id = on_server(app, None)
    found: Known = await used._request("app.get", AppRef(app_id))
    rows = await used._request("function.list", FunctionList(app_id))
    lifecycle = AppLifecycle(
        state=AppState(found.state),
        version=found.version or None,
        created_at=datetime.fromtimestamp(found.created_at, timezone.utc),
        created_by=found.created_by,
        deployed_at=time_of(found.deployed_at),
        deployed_by=found.deployed_by or None,
        stopped_at=time_of(found.stopped_at),
        stopped_by=None,
    )
    return AppInfo(app_id, found.name, lifecycle, {one.name: one.function_id for one in rows.functions}, {})


def on_server(app: App, client: Optional[Client]) -> tuple[Client, str]:
    """The client and the id by which to ask for an app. InvalidError when it is not on the server."""
    if app._app_id is None:
        raise InvalidError(
            "the app neither runs nor is deployed by this program: use app.run, app.deploy or App.lookup"
        )
    used = client or app._client
    assert used is not None
    return used, app._app_id
