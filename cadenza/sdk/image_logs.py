"""What the builds of images have written: `Image.logs`. Source: semantics.md section 13.1."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import TYPE_CHECKING, AsyncIterator

from cadenza.base.errors import InvalidError
from cadenza.protocol.images import ImageLog, ImageLogQuery
from cadenza.sdk import _dual, publish
from cadenza.sdk.types import LogEntry

if TYPE_CHECKING:
    from cadenza.sdk.image import Image


class ImageLogs:
    """The output of an image's steps, as they were built, one `LogEntry` for each line. An image that is not built is
    not built for it: its failed build may have an output too."""

    def __init__(self, image: Image) -> None:
        self._image = image

    @_dual.generator
    def fetch(self, layers: int = 1) -> AsyncIterator[list[LogEntry]]:
        """The output of the last ``layers`` steps that wrote something."""
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
            raise InvalidError(f"Image.logs.fetch: layers must be a positive integer, got {layers!r}")
        return self._read(layers, 0)

    @_dual.generator
    def tail(self, entries: int = 100) -> AsyncIterator[list[LogEntry]]:
        """The last lines of all steps, at most ``entries``."""
        if isinstance(entries, bool) or not isinstance(entries, int) or entries < 1:
            raise InvalidError(f"Image.logs.tail: entries must be a positive integer, got {entries!r}")
        return self._read(0, entries)

    async def _read(self, layers: int, entries: int) -> AsyncIterator[list[LogEntry]]:
        image = self._image
        client = await image._any_client()
        if image._hydrated:
            image_id = image.object_id
        else:
            ids = await publish.find_wanted(client, [image])
            resolved = await asyncio.get_running_loop().run_in_executor(None, publish.resolve, image, ids)
            image_id = resolved.spec.image_id()
        found: ImageLog = await client._request("image.log", ImageLogQuery(image_id, layers, entries))
        yield [
            LogEntry(
                one.text + "\n" * (not one.text.endswith("\n")),
                datetime.fromtimestamp(one.time, timezone.utc),
                "stdout",
                image_id,
                [one.step] if one.step else [],
            )
            for one in found.lines
        ]
