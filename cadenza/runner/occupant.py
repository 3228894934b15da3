"""The instance of a class that lives in this container: made, entered, asked for its methods, left.

Everything async of it runs on one loop, which lives as long as it does. Source: semantics.md sections 12.1 and 12.2.
"""

from __future__ import annotations

import sys
from binascii import a2b_base64
from inspect import isasyncgenfunction, iscoroutinefunction

from cadenza.base.errors import ExecutionError
from cadenza.runner import instances, wire
from cadenza.runner.execute import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from cadenza.runner.execute import Executor


def values(text: str) -> dict[str, Any]:
    """The parameters' values, as `cadenza.protocol.parameters` wrote them. That is too slow to import here."""
    given = wire.loads(text.encode()) if text else {}
    return {name: a2b_base64(one["bytes"]) if isinstance(one, dict) else one for name, one in given.items()}


class Occupant:
    """One class's instance. ``function`` is that of the attach frame."""

    def __init__(self, cls: Any, function: dict[str, Any]) -> None:
        if not isinstance(cls, type):
            raise ExecutionError(f"{function.get('name')} is a {type(cls).__name__} in the container, and not a class")
        self._cls = cls
        self._instance = instances.make(cls, values(str(function.get("parameters") or "")))
        self._enters = [*instances.enters(cls, True), *instances.enters(cls, False)]
        self._exits = instances.exits(cls)
        self.entries: dict[str, Entry] = {}
        marked = instances.methods(cls)
        for one in function["methods"]:
            name = str(one["name"])
            raw = marked.get(name) or getattr(getattr(cls, name, None), instances.RAW, getattr(cls, name, None))
            if callable(raw):
                bound = raw.__get__(self._instance, cls) if hasattr(raw, "__get__") else raw
                self.entries[name] = Entry(bound, bool(one.get("is_generator")), bool(one.get("is_async")))
        self.is_async = any(one.is_async for one in self.entries.values()) or any(
            iscoroutinefunction(one) or isasyncgenfunction(one) for one in [*self._enters, *self._exits]
        )
        """Whether it needs a loop."""
        self.hook = ""
        """The hook that runs now."""

    @property
    def leaves(self) -> bool:
        """Whether it has exit hooks."""
        return bool(self._exits)

    def enter(self, executor: Executor) -> None:
        """Run the enter hooks. What one raises comes through, and the others do not run."""
        for hook in self._enters:
            self._run(executor, hook)

    def exit(self, executor: Executor) -> None:
        """Run the exit hooks, all of them: what one raises goes to the log only."""
        for hook in self._exits:
            try:
                self._run(executor, hook)
            except BaseException as exc:
                from cadenza.runner import faults

                sys.stderr.write(f"The exit hook {hook.__qualname__} failed:\n{faults.text_of(exc)}")
        self._exits = []

    def _run(self, executor: Executor, hook: Callable[..., Any]) -> None:
        self.hook = getattr(hook, "__qualname__", "")
        bound: Optional[Callable[[], Any]] = hook.__get__(self._instance, self._cls)
        assert bound is not None
        try:
            executor.run_hook(bound)
        finally:
            self.hook = ""
