"""Names of images: ``name:tag`` in an environment to an image's id, and each publication of one. Source: semantics.md
section 13.2."""

from __future__ import annotations

import asyncio
import re
from dataclasses import astuple, replace
from typing import Any, Callable, Iterator

from cadenza.base.clock import Clock
from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.control.access import Access
from cadenza.control.request import Caller, Request
from cadenza.protocol.images import ImageName, ImageNameList, ImageNameRef, ImageNames, ImagePublish
from cadenza.protocol.method import READ, WRITE, Empty
from cadenza.storage.db import Database, Transaction

DEFAULT_TAG = "latest"
MAX_NAMES = 100_000
HISTORY_SHOWN = 1_000
_NAME = re.compile(r"(?:([A-Za-z0-9_.-]{1,64})/)?([A-Za-z0-9_.-]{1,64})(?::([A-Za-z0-9_.-]{1,64}))?\Z")

Key = tuple[str, str, str]
"""Environment, name, tag."""


def parse(text: str) -> Key:
    """``[environment/]name[:tag]`` as its parts; no environment is empty. InvalidError. Pure."""
    found = _NAME.match(text)
    if found is None:
        raise InvalidError(
            f"{text[:200]!r} is no name for an image: it is [environment/]name[:tag], each of 1 to 64 letters, digits, "
            "'-', '_' and '.'"
        )
    environment, name, tag = found.groups()
    if name.startswith("im-"):
        raise InvalidError(f"{text[:200]!r}: names of images do not begin with im-, as ids do: choose another")
    return environment or "", name, tag or DEFAULT_TAG


class Names:
    """Handlers of names of images; the only writer of their tables, but for the end and renaming of environments."""

    def __init__(self, db: Database, clock: Clock, access: Access, built: Callable[[str], bool]) -> None:
        """``built(image_id)``: whether it can be used."""
        self._db = db
        self._clock = clock
        self._access = access
        self._built = built
        self._names: dict[Key, ImageName] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Load what is kept."""
        for environment, name, tag, *rest in await self._db.fetch("image_name_all"):
            self._put(ImageName(name, tag, environment, *rest))

    def _put(self, one: ImageName) -> None:
        self._names[one.environment, one.name, one.tag] = one

    def __iter__(self) -> Iterator[ImageName]:
        return iter(list(self._names.values()))

    def of(self, image_id: str) -> list[ImageName]:
        """The names of an image, in all environments."""
        return sorted((one for one in self._names.values() if one.image_id == image_id), key=astuple)

    def find(self, text: str, environment: str, caller: Caller) -> ImageName:
        """What a name means for a caller. NotFoundError, InvalidError, PermissionDeniedError."""
        key = self._key(text, environment, caller, READ)
        found = self._names.get(key)
        if found is None:
            raise _missing(key)
        return found

    def _key(self, text: str, environment: str, caller: Caller, needs: str) -> Key:
        named, name, tag = parse(text)
        return self._access.environment(caller, named or environment, needs), name, tag

    # --- methods ---

    async def publish(self, request: Request[ImagePublish]) -> ImageName:
        body, caller = request.body, request.caller
        async with self._changing:
            environment, name, tag = self._key(body.name, body.environment, caller, WRITE)
            if not self._built(body.image_id):
                raise NotFoundError(f"the image {body.image_id[:80]} is not built here: build it before it gets a name")
            if len(self._names) >= MAX_NAMES and (environment, name, tag) not in self._names:
                raise ResourceExhaustedError(
                    f"there are {MAX_NAMES} names of images, the most there may be: delete some with "
                    "`cadenza image names delete`"
                )
            who = caller.container_id or self._access.standing(caller).user.name
            made = ImageName(name, tag, environment, body.image_id, self._clock.now(), who)
            row = (environment, name, tag, made.image_id, made.published_at, who)

            def write(transaction: Transaction) -> None:
                transaction.execute("image_name_put", row)
                transaction.execute("image_publication_put", row)

            await self._db.transaction(write)
            self._put(made)
        return made

    async def list(self, request: Request[ImageNameList]) -> ImageNames:
        body = request.body
        environment = self._access.environment(request.caller, body.environment, READ)
        rows = [
            one
            for one in self._names.values()
            if one.environment == environment and f"{one.name}:{one.tag}".startswith(body.prefix)
        ]
        return ImageNames(tuple(sorted(rows, key=lambda one: (one.name, one.tag))))

    async def unpublish(self, request: Request[ImageNameRef]) -> Empty:
        async with self._changing:
            key = self._key(request.body.name, request.body.environment, request.caller, WRITE)
            if key not in self._names:
                raise _missing(key)
            await self._db.execute("image_name_drop", key)
            self._names.pop(key, None)
        return Empty()

    async def history(self, request: Request[ImageNameRef]) -> ImageNames:
        """Publications of a name, newest first; of one tag where one is given. They outlive the name."""
        environment, name, tag = self._key(request.body.name, request.body.environment, request.caller, READ)
        rows = await self._db.fetch("image_publication_list", (environment, name, HISTORY_SHOWN))
        found = [ImageName(*row) for row in rows]
        if ":" in request.body.name:
            found = [one for one in found if one.tag == tag]
        if not found:
            raise _missing((environment, name, tag))
        return ImageNames(tuple(found))

    # --- environments ---

    async def environment_deleted(self, environment: str) -> None:
        """An environment is gone with its names; one that was being made meanwhile goes too."""
        async with self._changing:
            for key in [key for key in self._names if key[0] == environment]:
                del self._names[key]
            await self._db.execute("environment_images_drop", (environment,))
            await self._db.execute("environment_publications_drop", (environment,))

    async def environment_renamed(self, old: str, new: str) -> None:
        """The names of ``old`` are those of ``new``."""
        async with self._changing:
            for key in [key for key in self._names if key[0] == old]:
                self._put(replace(self._names.pop(key), environment=new))
            await self._db.execute("environment_images_move", (new, old))
            await self._db.execute("environment_publications_move", (new, old))


def _missing(key: Key) -> NotFoundError:
    environment, name, tag = key
    return NotFoundError(
        f"there is no image {name}:{tag} in the environment {environment!r}: give one the name with Image.publish, or "
        "see `cadenza image names list`"
    )


def handlers(names: Names) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "image.publish": names.publish,
        "image.names": names.list,
        "image.unpublish": names.unpublish,
        "image.history": names.history,
    }
