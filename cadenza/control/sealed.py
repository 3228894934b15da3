"""What a secret is: its row, the limits of its variables, the id of one that has no name. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Iterable, Mapping

from cadenza.base.errors import DataLossError, InvalidError, NotFoundError
from cadenza.base.ids import derived
from cadenza.protocol.secrets import SecretInfo
from cadenza.storage.seal import Seal

MAX_KEY_CHARS = 16_384
MAX_VALUE_CHARS = 32_768
MAX_VARIABLES_BYTES = 640 << 10
"""As JSON, of one secret and of all variables of a function: they travel to a container in one frame's header, which
has at most 1 MiB."""


@dataclass(frozen=True)
class Stored:
    """One secret as the database has it. ``name`` is empty for those that a declaration brought."""

    secret_id: str
    environment: str
    name: str
    variables: tuple[str, ...]
    key_id: str
    sealed: bytes
    created_at: float
    updated_at: float
    used_at: float = 0.0
    created_by: str = ""

    def row(self) -> tuple[Any, ...]:
        """In the order of the table's columns."""
        return (
            self.secret_id, self.environment, self.name, json.dumps(self.variables), self.key_id, self.sealed,
            self.created_at, self.updated_at, self.used_at, self.created_by,
        )  # fmt: skip


def check_variables(values: Mapping[str, str], where: str) -> None:
    """InvalidError for what cannot be a secret's variables; it shows names and no values. Semantics section 14."""
    for key, value in values.items():
        shown = key if len(key) <= 64 else key[:64] + "..."
        if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isidentifier()):
            raise InvalidError(
                f"{where}: {shown!r} is no name for a variable: letters, digits and _, no digit first, at most "
                f"{MAX_KEY_CHARS:,} characters"
            )
        if len(value) > MAX_VALUE_CHARS:
            raise InvalidError(
                f"{where}: the value of {shown!r} has {len(value):,} characters; at most {MAX_VALUE_CHARS:,} may be"
            )
        if "\0" in value:
            raise InvalidError(f"{where}: the value of {shown!r} has a NUL character in it")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidError(f"{where}: the value of {shown!r} is not valid Unicode") from None
    check_total(values, where)


def check_total(values: Mapping[str, str], where: str) -> None:
    """InvalidError when the variables are too many to give them to a container."""
    if sum(map(len, values)) + sum(map(len, values.values())) < MAX_VARIABLES_BYTES >> 4:
        return  # whatever its characters are
    if len(json.dumps(values, ensure_ascii=False).encode()) > MAX_VARIABLES_BYTES:
        raise InvalidError(
            f"{where}: its variables have over {MAX_VARIABLES_BYTES >> 10} KiB together: put large values into a file"
        )


def text_of(values: Mapping[str, str]) -> str:
    """The variables as the one text that is sealed: equal ones have equal texts."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def id_of(key: bytes, environment: str, text: str) -> str:
    """The id that equal values have in one environment; without ``key`` nobody can tell values from it."""
    digest = hmac.new(key, f"{environment}\0{text}".encode(), hashlib.sha256).digest()
    return derived("secret", int.from_bytes(digest, "big"))


def openable(rows: Iterable[Stored], keys: Mapping[str, Seal]) -> tuple[list[tuple[Stored, str]], list[Stored]]:
    """Rows with their text, and those that none of the keys opens."""
    found, lost = [], []
    for row in rows:
        try:
            found.append((row, keys[row.key_id].open(row.secret_id, row.sealed).decode()))
        except (KeyError, DataLossError):
            lost.append(row)
    return found, lost


def with_keys(row: Stored, required: Iterable[str]) -> Stored:
    """The row, if it has these variables. InvalidError names those that it lacks."""
    missing = [one for one in required if one not in row.variables]
    if missing:
        raise InvalidError(
            f"the secret {row.name!r} lacks {', '.join(missing)}: it has {', '.join(row.variables) or 'nothing'}"
        )
    return row


def missing(secret_id: str, name: str) -> NotFoundError:
    """The error for a secret that was there once."""
    what = f"the secret {name!r} ({secret_id})" if name else f"a secret of the function ({secret_id})"
    return NotFoundError(f"{what} is not there: it was removed. Make it again and deploy or run the app anew")


def info_of(row: Stored) -> SecretInfo:
    """What clients see of a secret."""
    return SecretInfo(
        row.secret_id, row.name, row.environment, row.variables, row.created_at, row.updated_at, row.used_at,
        row.created_by,
    )  # fmt: skip
