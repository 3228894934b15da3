"""Who may do what where: a caller's environment, and whether its scopes and roles reach so far.

Source: semantics.md section 24.
"""

from __future__ import annotations

from typing import Callable

from cadenza.base.errors import NotFoundError
from cadenza.control.request import Caller
from cadenza.protocol.method import WRITE

MAIN = "main"
"""The environment that is always there."""


class Access:
    """Asked by every noun, before it looks at anything. ``home(container_id)`` is the environment of a container."""

    def __init__(self, home: Callable[[str], str] = lambda container_id: MAIN) -> None:
        self._home = home

    def environment(self, caller: Caller, wanted: str, needs: str = WRITE) -> str:
        """The environment that a request means: ``wanted``, or where it is empty the caller's own.

        NotFoundError when there is none of the name, PermissionDeniedError when the caller may not do ``needs`` there.
        """
        found = wanted or (self._home(caller.container_id) if caller.container_id else MAIN)
        self.check(caller, found, needs)
        return found

    def check(self, caller: Caller, environment: str, needs: str = WRITE) -> None:
        """As `environment`, for a thing whose environment is known."""
        if environment != MAIN:
            raise NotFoundError(f"there is no environment {environment!r}: see `cadenza environment list`")
