"""One row of the table of methods (`cadenza.protocol.methods`), and who may call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

CLIENT = "client"
"""A user's process on the host, through the server's socket."""
CONTAINER = "container"
"""The SDK inside a container, through the socket that the agent put there."""

READ, WRITE, ADMIN = "read", "write", "admin"
"""What a row needs of a token's scopes: to look, to change things in an environment, to change who may do what."""
SCOPES = (READ, WRITE, ADMIN)


@dataclass(frozen=True)
class Empty:
    """Nothing to say."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    request: type
    reply: type
    stream: str = ""
    item: Optional[type] = None
    """What the client's further frames hold, for ``both``."""
    callers: tuple[str, ...] = (CLIENT, CONTAINER)
    needs: str = WRITE
    """The scope that a caller with a token must have."""
