"""Limits of the autoscaler at run time, as clients set and read them. They outlive a restart, and not a deploy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from cadenza.base.errors import Error
from cadenza.control.calls import Calls
from cadenza.control.request import Request
from cadenza.observe.log import Log
from cadenza.protocol.functions import AutoscalerSettings, FunctionRef, FunctionScale
from cadenza.protocol.methods import Empty
from cadenza.protocol.objects import AutoscalerPatch, to_json
from cadenza.scheduling.states import FunctionState
from cadenza.storage.db import Database

_log = Log("cadenza.control.scaling")


class Scaling:
    """Handlers of ``function.scale`` and ``function.settings``."""

    def __init__(self, db: Database, calls: Calls) -> None:
        self._db = db
        self._calls = calls
        self._kept: set[str] = set()
        calls.on_reset = self._reset

    async def start(self) -> None:
        """Set the limits again that were set before a restart. After the functions are there."""
        functions = self._calls.loop.cluster.functions
        for function_id, declared, text in await self._db.fetch("limits_all"):
            function = functions.get(function_id)
            if function is None or declared != _digest(function):
                await self._db.execute("limits_drop", (function_id,))
                continue
            self._kept.add(function_id)
            kept = json.loads(text)
            self._calls.loop.limit(function_id, AutoscalerPatch(**kept["patch"]), kept["unset"])

    async def scale(self, request: Request[FunctionScale]) -> Empty:
        """In force at once; where that cannot be kept, as before. Errors as `Calls.scale`; ResourceExhaustedError."""
        body = request.body
        function = self._calls.loop.cluster.functions.get(body.function_id)
        before = (function.limits, function.unset) if function is not None else (AutoscalerPatch(), ())
        self._calls.scale(body.function_id, body.patch, body.unset)
        function = self._calls.loop.cluster.functions[body.function_id]
        text = json.dumps({"patch": asdict(function.limits), "unset": list(function.unset)})
        self._kept.add(body.function_id)
        try:
            await self._db.execute("limits_put", (body.function_id, _digest(function), text))
        except Error:
            self._calls.loop.limit(body.function_id, None, ())
            self._calls.loop.limit(body.function_id, *before)
            raise
        return Empty()

    async def settings(self, request: Request[FunctionRef]) -> AutoscalerSettings:
        return self._calls.settings(request.body.function_id)

    def _reset(self, function_id: str) -> None:
        """The limits of a function are the declared ones again, or it is gone."""
        if function_id in self._kept:
            self._kept.discard(function_id)
            done = self._db.execute("limits_drop", (function_id,))
            self._calls.spawn(_logged(done, function_id))


async def _logged(work: Any, function_id: str) -> None:
    try:
        await work
    except Exception as error:
        _log.warning("limits that are no more could not be removed", function=function_id, error=str(error))


def _digest(function: FunctionState) -> str:
    """Of what the limits were set over."""
    return hashlib.sha256(to_json(function.declared).encode()).hexdigest()


def handlers(scaling: Scaling) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"function.scale": scaling.scale, "function.settings": scaling.settings}
