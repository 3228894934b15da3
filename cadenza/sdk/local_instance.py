"""The one local instance of a handle, and its enter hooks: they run once, before its first method by ``.local()``.

Source: semantics.md sections 3.1 and 12.2.
"""

from __future__ import annotations

from _thread import RLock

from cadenza.runner import instances
from cadenza.sdk import shape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from typing import Any, Callable, Optional

    from cadenza.sdk.cls import Obj

_LINK = "__cadenza_obj__"

making = RLock()
"""Of two threads that use one handle, one makes its local instance."""


class _Link:
    """Kept in a local instance: whose it is. It does not travel with the instance."""

    __slots__ = ("obj",)

    def __init__(self, obj: Optional[Obj] = None) -> None:
        self.obj = obj

    def __reduce__(self) -> Any:
        return _Link, ()


def link_of(instance: Any) -> Optional[Obj]:
    """The handle whose local instance this is; None for one that a container made."""
    link = getattr(instance, "__dict__", {}).get(_LINK)
    return link.obj if isinstance(link, _Link) else None


class LocalInstance:
    """An instance of the user's class in this process. TypeError for parameters that it has not, as from a constructor;
    their types are not checked."""

    def __init__(self, user_cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], obj: Obj) -> None:
        import threading

        names = list(instances.parameters(user_cls))
        if len(args) > len(names):
            raise TypeError(f"{user_cls.__name__}() takes {len(names)} parameters but {len(args)} were given")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"{user_cls.__name__}() got several values for the parameter {name!r}")
            given[name] = value
        self.instance = instances.make(user_cls, given)
        if hasattr(self.instance, "__dict__"):
            self.instance.__dict__[_LINK] = _Link(obj)
        self._waiting = [*instances.enters(user_cls, True), *instances.enters(user_cls, False)]
        """Enter hooks that have not run to their end."""
        self._lock = threading.RLock()
        self._enters = False
        self._entering: Optional[Future[None]] = None

    def call(self, raw: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a method. Of an async one, the coroutine or async generator, in which the hooks run first."""
        if not self._waiting:
            return raw(self.instance, *args, **kwargs)
        if shape.is_async(raw):
            run = self._generate if shape.is_generator(raw) else self._await
            return run(raw, args, kwargs)
        self._enter()
        return raw(self.instance, *args, **kwargs)

    def _enter(self) -> None:
        """Run the hooks that are not async; those can only be awaited through an async method."""
        with self._lock:  # another thread's call waits here until they have run
            if self._enters:
                return  # a hook calls a method
            self._enters = True
            try:
                for hook in [one for one in self._waiting if not shape.is_async(one)]:
                    hook(self.instance)
                    self._waiting.remove(hook)
            finally:
                self._enters = False
        if self._waiting:
            import warnings

            names = ", ".join(hook.__name__ for hook in self._waiting)
            warnings.warn(
                f"{type(self.instance).__name__}: .local() of a method that is not async cannot run the async enter "
                f"hook {names}; an async method does",
                stacklevel=4,
            )

    async def _await(self, raw: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        await self._enter_async()
        return await raw(self.instance, *args, **kwargs)

    async def _generate(self, raw: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        await self._enter_async()
        async for one in raw(self.instance, *args, **kwargs):
            yield one

    async def _enter_async(self) -> None:
        import asyncio

        if not self._waiting:
            return
        if self._entering is None or (self._entering.done() and self._waiting):
            self._entering = asyncio.ensure_future(self._enter_all())
        await asyncio.shield(self._entering)

    async def _enter_all(self) -> None:
        while self._waiting:
            hook = self._waiting[0]
            found = hook(self.instance)
            if shape.is_async(hook):
                await found
            self._waiting.pop(0)
