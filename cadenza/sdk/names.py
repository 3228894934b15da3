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


def check_image_name(where: str, name: object, environment: object = None) -> tuple[str, str]:
    """``[environment/]name[:tag]`` as (``name:tag``, environment or empty). InvalidError says what is wrong with it."""
    if not isinstance(name, str):
        raise InvalidError(f"{where}: the name of an image is a string, not {type(name).__name__}")
    if environment is not None and not isinstance(environment, str):
        raise InvalidError(f"{where}: environment_name is a string, not {type(environment).__name__}")
    before, slash, rest = name.rpartition("/")
    title, colon, tag = rest.partition(":")
    if title.startswith("im-"):
        raise InvalidError(f"{where}({name!r}): names do not begin with im-; that is an id: use Image.from_id")
    if not colon:
        tag = "latest"
    if not _is_word(title, MAX_NAME_CHARS) or not _is_word(tag, MAX_NAME_CHARS) or (slash and not _is_word(before, 64)):
        raise InvalidError(
            f"{where}: {name!r} is no name for an image: it is [environment/]name[:tag], each of letters, digits, '-', "
            f"'_' and '.', at most {MAX_NAME_CHARS} characters"
        )
    if before and environment and before != environment:
        raise InvalidError(f"{where}: {name!r} names the environment {before!r}, and environment_name {environment!r}")
    return f"{title}:{tag}", before or environment or ""
