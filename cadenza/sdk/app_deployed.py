"""The part of `App` about the app on the server: deploy, lookup, stop, tags. Source: semantics.md section 23."""

from __future__ import annotations

from cadenza.base.errors import InvalidError
from cadenza.sdk import _dual
from cadenza.sdk.names import check_tags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Mapping, Optional

    from cadenza.protocol.deployments import AppDeployed
    from cadenza.sdk.app import App
    from cadenza.sdk.budget import Budget
    from cadenza.sdk.client import Client
    from cadenza.sdk.declaration import Declaration
    from cadenza.sdk.function import Function
    from cadenza.sdk.types import AppInfo, AppStats


class AppOnServer:
    """What an `App` does with the app that it is on the server."""

    _name: Optional[str]
    _app_id: Optional[str]
    _client: Optional[Client]
    _tags: dict[str, str]
    _budget: Optional[Budget]
    _functions: dict[str, Function[Any, Any, Any]]
    _declarations: dict[str, Declaration]
    _runs: bool = False
    """Whether ``app.run()`` is under way."""
    _deployed: Optional[tuple[AppDeployed, Client]] = None
    """What the last deploy by this program came to."""
    _known: Optional[AppInfo] = None

    @_dual.method
    async def deploy(
        self,
        *,
        name: Optional[str] = None,
        environment_name: Optional[str] = None,
        tag: str = "",
        client: Optional[Client] = None,
        strategy: str = "rolling",
    ) -> App:
        """Put the app in force under its name, all its functions at once; it stays until it is stopped.

        Nothing changed since the last deploy: nothing happens, there is no new version. ``strategy``: ``rolling`` lets
        what runs end where it is, ``recreate`` stops old containers and runs their inputs again. ``tag`` is shown in
        the history. InvalidError for an app without a name and in a container; ImageBuildError when an image cannot
        be built: then what was in force stays.
        """
        from cadenza.sdk import deploying

        await deploying.deploy(self, name, environment_name, tag, client, strategy)  # type: ignore[arg-type]
        return self  # type: ignore[return-value]

    @_dual.static_method
    @staticmethod
    async def lookup(
        name: str,
        *,
        client: Optional[Client] = None,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
    ) -> App:
        """A deployed app by its name. NotFoundError, unless one without functions is to be made."""
        from cadenza.sdk import deploying

        return await deploying.lookup(name, client, environment_name, create_if_missing)

    @_dual.method
    async def stop(self, *, client: Optional[Client] = None) -> None:
        """Stop the app for good: its containers end and what waits is dropped. A deployed app's name is free again.
        InvalidError if it neither runs nor is deployed by this program."""
        from cadenza.protocol.methods import AppRef

        if self._app_id is None:
            raise InvalidError(
                "the app neither runs nor is deployed by this program: there is nothing to stop. For an app that is "
                "deployed use App.lookup(name).stop() or `cadenza app stop`"
            )
        used = client or self._client
        assert used is not None
        await used._request("app.stop", AppRef(self._app_id))
        if not self._runs:
            self._app_id, self._deployed = None, None
            for function in self._functions.values():
                function._init_handle()

    @_dual.method
    async def info(self, refresh: bool = False) -> AppInfo:
        """What the server knows of it, as it was at the first question unless ``refresh``. InvalidError if it is not
        there."""
        if self._known is None or refresh or self._known.app_id != self._app_id:
            from cadenza.sdk import deploying

            self._known = await deploying.info(self)  # type: ignore[arg-type]
        return self._known

    @_dual.method
    async def stats(self, *, since: Optional[datetime] = None, until: Optional[datetime] = None) -> AppStats:
        """What happened to all its functions from ``since`` (None: as far back as is kept) to ``until`` (None: now)."""
        from cadenza.sdk.stats import app_stats

        return await app_stats(self, since, until)

    @_dual.method
    async def set_tags(self, tags: Mapping[str, str], *, client: Optional[Client] = None) -> None:
        """Replace the tags: on the server, if it runs or is deployed by this program, else for the next run or
        deploy."""
        checked = check_tags(tags)
        if self._app_id is not None:
            from cadenza.sdk import deploying

            await deploying.set_tags(self, checked, client)  # type: ignore[arg-type]
        self._tags = checked

    @_dual.method
    async def get_tags(self, *, client: Optional[Client] = None) -> dict[str, str]:
        """The tags: those on the server, if it runs or is deployed by this program."""
        if self._app_id is not None:
            from cadenza.sdk import deploying

            self._tags = await deploying.get_tags(self, client)  # type: ignore[arg-type]
        return dict(self._tags)
