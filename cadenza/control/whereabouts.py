"""In which environment each thing is: what the guard asks of apps, calls and containers."""

from __future__ import annotations

from typing import Optional

from cadenza.base.errors import NotFoundError
from cadenza.control.apps import Apps
from cadenza.control.calls import Calls
from cadenza.control.guard import Home


class Whereabouts:
    """The `Lookup` of a running server."""

    def __init__(self, apps: Apps, calls: Calls) -> None:
        self._apps = apps
        self._calls = calls

    def app(self, app_id: str) -> Optional[str]:
        """An app's environment, by its id."""
        try:
            found = self._apps.find(app_id)
        except NotFoundError:
            return None
        return found.environment if found.app_id == app_id else None

    def function(self, function_id: str) -> Optional[str]:
        """The environment of a function that can be called, variants too."""
        found = self._calls.loop.cluster.functions.get(function_id)
        return self.app(found.app_id) if found is not None else None

    def container(self, container_id: str) -> Optional[Home]:
        """Where a container is that is not gone."""
        found = self._calls.loop.cluster.containers.get(container_id)
        if found is None:
            return None
        environment = self.app(found.function.app_id)
        return Home(environment, found.function.spec.restricted) if environment is not None else None

    async def call(self, call_id: str) -> Optional[str]:
        """A call's environment. Of one whose app is no longer known it is empty, which nobody may use."""
        try:
            info = await self._calls.info(call_id)
        except NotFoundError:
            return None
        return self.app(info.app_id) or ""
