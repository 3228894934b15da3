"""Names and tags of things. Source: semantics.md section 4."""

from __future__ import annotations

import re
from typing import Mapping

from cadenza.base.errors import InvalidError

MAX_NAME_CHARS = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,63}\Z")
_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}\Z")


def check_name(name: object, what: str = "App") -> str:
    """A name that the server takes. InvalidError says what is wrong with it."""
    if not isinstance(name, str):
        raise InvalidError(f"{what} names are strings, not {type(name).__name__}")
    if not _NAME.match(name):
        raise InvalidError(
            f"{what} name {name!r}: letters, digits, '-', '_' and '.' are allowed, at most {MAX_NAME_CHARS} characters"
        )
    if _APP_ID.match(name):
        raise InvalidError(f"{what} name {name!r} looks like an app's id: choose another")
    return name


def check_tags(tags: object) -> dict[str, str]:
    """A copy of tags whose names and values are right. InvalidError otherwise."""
    if not isinstance(tags, Mapping):
        raise InvalidError(f"tags must be a dictionary of strings, not {type(tags).__name__}")
    for key, value in tags.items():
        for one in (key, value):
            if not isinstance(one, str) or not _TAG.match(one):
                raise InvalidError(f"tag {key!r}: names and values are 1 to 63 letters, digits, '-', '_' and '.'")
    return dict(tags)
