"""Names and tags of things. Source: semantics.md section 4."""

from __future__ import annotations

from _collections_abc import Mapping  # as os does: collections.abc would load collections

from cadenza.base.errors import InvalidError

MAX_NAME_CHARS = 64
MAX_TAG_CHARS = 63
APP_ID_CHARS = 25
_MARKS = dict.fromkeys(map(ord, "-_."))


def _is_word(text: str, most: int) -> bool:
    """1 to ``most`` ASCII letters, digits, dashes, underscores and points."""
    rest = text.translate(_MARKS)
    return 1 <= len(text) <= most and text.isascii() and (not rest or rest.isalnum())


def check_name(name: object, what: str = "App") -> str:
    """A name that the server takes. InvalidError says what is wrong with it."""
    if not isinstance(name, str):
        raise InvalidError(f"{what} names are strings, not {type(name).__name__}")
    if not _is_word(name, MAX_NAME_CHARS):
        raise InvalidError(
            f"{what} name {name!r}: letters, digits, '-', '_' and '.' are allowed, at most {MAX_NAME_CHARS} characters"
        )
    if name.startswith("ap-") and len(name) == APP_ID_CHARS and name[3:].isalnum():
        raise InvalidError(f"{what} name {name!r} looks like an app's id: choose another")
    return name


def check_tags(tags: object) -> dict[str, str]:
    """A copy of tags whose names and values are right. InvalidError otherwise."""
    if not isinstance(tags, Mapping):
        raise InvalidError(f"tags must be a dictionary of strings, not {type(tags).__name__}")
    for key, value in tags.items():
        for one in (key, value):
            if not isinstance(one, str) or not _is_word(one, MAX_TAG_CHARS):
                raise InvalidError(f"tag {key!r}: names and values are 1 to 63 letters, digits, '-', '_' and '.'")
    return dict(tags)
