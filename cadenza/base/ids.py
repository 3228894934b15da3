"""Typed, prefixed ids, minted from an injected source of randomness.

An id is its prefix, a dash and 22 characters of base 62 (131 bits), for example ``fc-5Yx0...``. Ids sort in no
meaningful order; nothing may be read out of one except its kind.
"""

from __future__ import annotations

import os
from typing import Callable

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BODY_CHARS = 22

KINDS = {
    "app": "ap",
    "function": "fu",
    "call": "fc",
    "input": "in",
    "container": "ta",
    "image": "im",
    "mount": "mo",
    "secret": "st",
    "volume": "vo",
    "sandbox": "sb",
    "blob": "bl",
    "node": "no",
    "connection": "co",
    "environment": "en",
    "schedule": "sc",
    "token": "ak",
    "user": "us",
}

_PAIRS = [one + other for other in ALPHABET for one in ALPHABET]
"""Two digits at once: minting is on the path of every call."""

_BY_PREFIX = {prefix: kind for kind, prefix in KINDS.items()}


class IdSource:
    """Mints ids. ``random_bytes(n)`` is the only source of randomness; tests pass a seeded one."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes

    def new(self, kind: str) -> str:
        """A fresh id of ``kind``, a key of `KINDS`."""
        return derived(kind, int.from_bytes(self._random_bytes(17), "big"))


def derived(kind: str, number: int) -> str:
    """The id of ``kind`` that a large number makes, a digest's for example: the same one always."""
    body = []
    for _ in range(BODY_CHARS // 2):
        number, pair = divmod(number, 3844)
        body.append(_PAIRS[pair])
    return KINDS[kind] + "-" + "".join(body)


def kind_of(object_id: str) -> str | None:
    """The kind that an id's prefix names, or None if it is not shaped like one of our ids."""
    prefix, dash, body = object_id.partition("-")
    if not dash or not body or not body.isalnum() or not body.isascii():
        return None
    return _BY_PREFIX.get(prefix)
