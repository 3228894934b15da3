"""SQLite behind one class: transactions, migrations, named queries."""

from __future__ import annotations

from typing import Any, Callable, Sequence, TypeVar

T = TypeVar("T")


class Transaction:
    """What a function given to `Database.transaction` works with, in the writer's thread."""

    def execute(self, name: str, params: Sequence[Any] = ()) -> int:
        """Run a named query; how many rows it changed."""
        raise NotImplementedError

    def fetch(self, name: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a named query; its rows."""
        raise NotImplementedError


class Database:
    """The database of one control plane. Opened by `open`, closed by `close`."""

    @classmethod
    async def open(cls, path: str, durability: str = "process") -> Database:
        """Open or create (mode 0600) and migrate."""
        raise NotImplementedError

    async def execute(self, name: str, params: Sequence[Any] = ()) -> int:
        """One named query, durable on return; how many rows it changed."""
        raise NotImplementedError

    async def fetch(self, name: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one named query; sees everything that was awaited before."""
        raise NotImplementedError

    async def transaction(self, fn: Callable[[Transaction], T]) -> T:
        """Run ``fn`` in the writer's thread as one transaction: all or nothing."""
        raise NotImplementedError

    async def close(self) -> None:
        """Write what waits, then close."""
        raise NotImplementedError
