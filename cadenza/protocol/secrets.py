"""What is said of secrets. No reply ever has a value in it. Source: semantics.md section 14."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.method import ADMIN, CLIENT, READ, Empty, Method


@dataclass(frozen=True)
class SecretCreate:
    """Keep a set of variables under a name. AlreadyExistsError, unless ``overwrite`` or ``allow_existing``."""

    name: str
    values: dict[str, str] = field(default_factory=dict, repr=False)
    environment: str = ""
    overwrite: bool = False
    allow_existing: bool = False


@dataclass(frozen=True)
class SecretFind:
    """NotFoundError when there is none, InvalidError when one of ``required_keys`` is not in it."""

    name: str = ""
    environment: str = ""
    secret_id: str = ""
    required_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class SecretUpdate:
    """Change single variables; None removes one. New containers see it."""

    secret_id: str
    values: dict[str, Optional[str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SecretDelete:
    name: str
    environment: str = ""
    allow_missing: bool = False


@dataclass(frozen=True)
class SecretList:
    environment: str = ""
    limit: int = 0
    created_before: float = 0.0


@dataclass(frozen=True)
class SecretInfo:
    secret_id: str
    name: str
    environment: str
    keys: tuple[str, ...]
    created_at: float
    updated_at: float = 0.0
    used_at: float = 0.0
    created_by: str = ""


@dataclass(frozen=True)
class Secrets:
    secrets: tuple[SecretInfo, ...]
    """Newest first."""


@dataclass(frozen=True)
class SecretRekey:
    """Seal all secrets anew under a new key. ``discard``: let go of those that no key here opens, else they are an
    error and nothing changes."""

    discard: bool = False


@dataclass(frozen=True)
class SecretRekeyed:
    sealed: int
    discarded: tuple[str, ...] = ()
    """Names of what is gone."""
    key_id: str = ""


ROWS = (
    Method("secret.create", SecretCreate, SecretInfo),
    Method("secret.find", SecretFind, SecretInfo, needs=READ),
    Method("secret.update", SecretUpdate, SecretInfo),
    Method("secret.delete", SecretDelete, Empty),
    Method("secret.list", SecretList, Secrets, callers=(CLIENT,), needs=READ),
    Method("secret.rekey", SecretRekey, SecretRekeyed, callers=(CLIENT,), needs=ADMIN),
)
