"""Uploads of files by content: which are missing, and storing them."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, Iterable, Sequence

from cadenza.base.errors import InvalidError
from cadenza.control.blobs import Blobs
from cadenza.control.request import Request
from cadenza.protocol.methods import Empty, Missing, ObjectPart, ObjectPut, ObjectsMissing
from cadenza.protocol.objects import FunctionSpec
from cadenza.storage.objects import ObjectStore

MAX_DIGESTS = 50_000
MAX_OBJECTS = 1_000
"""How many objects one request brings at most."""


class Objects:
    """Handlers of ``object.*``."""

    def __init__(self, store: ObjectStore, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    async def missing(self, request: Request[ObjectsMissing]) -> Missing:
        digests = request.body.digests
        if len(digests) > MAX_DIGESTS:
            raise InvalidError(f"at most {MAX_DIGESTS} digests at once, not {len(digests)}")
        return Missing(tuple(await asyncio.to_thread(self._store.missing, digests)))

    async def put(self, request: Request[ObjectPut]) -> Empty:
        body = request.body
        if body.objects:
            if body.digest or body.blob_id:
                raise InvalidError("object.put takes one object or several, not both")
            await asyncio.to_thread(self._put_all, body.objects, request.payload)
            return Empty()
        if not body.blob_id:
            await asyncio.to_thread(self._store.put, body.digest, request.payload)
            return Empty()
        if request.payload:
            raise InvalidError("object.put takes a payload or a blob, not both")
        holder = f"{request.caller.connection_id}:{request.id}"
        self._blobs.hold(body.blob_id, holder)
        try:
            blob = self._blobs.find(body.blob_id)
            fd, size = -1, 0
            if blob is not None and blob.fd >= 0:
                fd, size = os.dup(blob.fd), blob.size
            await _to_its_end(self._put_blob, body.digest, body.blob_id, fd, size)
        finally:
            self._blobs.drop(holder)
        return Empty()

    def _put_blob(self, digest: str, blob_id: str, fd: int, size: int) -> None:
        """``fd`` is closed here; -1 where the value is in the store."""
        if fd < 0:
            fd = self._blobs.store.open(blob_id)
            size = os.fstat(fd).st_size
        try:
            self._store.put_file(digest, fd, size)
        finally:
            os.close(fd)

    def _put_all(self, parts: Sequence[ObjectPart], payload: bytes) -> None:
        if len(parts) > MAX_OBJECTS:
            raise InvalidError(f"at most {MAX_OBJECTS} objects in one request, not {len(parts)}")
        if any(one.size < 0 for one in parts) or sum(one.size for one in parts) != len(payload):
            raise InvalidError(f"the objects do not fit the payload of {len(payload)} bytes")
        start = 0
        for one in parts:
            self._store.put(one.digest, payload[start : start + one.size])
            start += one.size


async def _to_its_end(fn: Callable[..., Any], *args: Any) -> None:
    """Run ``fn`` in a thread. A cancelled request does not wait for it, but what it was given it still closes."""
    task = asyncio.ensure_future(asyncio.to_thread(fn, *args))
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.shield(task)


def named(specs: Iterable[FunctionSpec]) -> set[str]:
    """The digests of all objects that functions name."""
    found: set[str] = set()
    for spec in specs:
        found.update(one.digest for one in spec.files)
        found.add(spec.serialized)
        found.update(spec.image.uploads())
    return found


def handlers(objects: Objects) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {"object.missing": objects.missing, "object.put": objects.put}
