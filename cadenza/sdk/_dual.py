"""Write an async method once, offer both forms: ``obj.method(...)`` blocks, ``obj.method.aio(...)`` is the coroutine.

Coroutines of the SDK run on one event-loop thread of the process, the *background loop*. A blocking call hops there
and back; ``.aio`` awaited on a loop of the user's runs there too and is awaited from the user's. What touches the
user's own objects (packing arguments, unpacking results) must not run there: it may import modules or call us again. So

- the decorated function may be a plain one that returns a coroutine: its own body runs in the caller's thread;
- what it gives may be `later` (fn): ``fn`` then runs in the caller's thread, and its result is the result.

Source: semantics.md section 1 (both forms, fork, Ctrl-C, AsyncUsageWarning).
"""

from __future__ import annotations

import sys

from cadenza.base.errors import AsyncUsageWarning, Bug, DeprecationError, InvalidError
from cadenza.sdk._handover import later as later
from cadenza.sdk._light import Generic, cast

TYPE_CHECKING = False  # typing is slow to import, and so is all that `_loop` needs: it comes with the first call
if TYPE_CHECKING:
    from typing import (
        Any,
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Concatenate,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
        Optional,
        ParamSpec,
        TypeVar,
    )

    from cadenza.sdk._loop import background_loop as background_loop
    from cadenza.sdk._loop import bridge as bridge
    from cadenza.sdk._loop import run as run

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")
else:
    P = R = T = None

    def __getattr__(name: str) -> Any:
        if name not in ("background_loop", "bridge", "run"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cadenza.sdk import _loop

        return getattr(_loop, name)


def in_running_loop() -> bool:
    """Whether the calling thread is inside a running event loop."""
    if "asyncio" not in sys.modules:
        return False
    from cadenza.sdk import _loop

    return _loop.in_running_loop()


# --- methods ---


class Both(Generic[P, R]):
    """A bound method in both forms. Calling it blocks."""

    __slots__ = ("__wrapped__", "_first")

    def __init__(self, function: Callable[..., Coroutine[Any, Any, R]], first: Any) -> None:
        self.__wrapped__ = function
        self._first = first

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        from cadenza.sdk._loop import run

        return run(self.__wrapped__(self._first, *args, **kwargs))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same as a coroutine, for any event loop."""
        from cadenza.sdk._loop import bridge

        return await bridge(self.__wrapped__(self._first, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return _described(self.__wrapped__, name)


def _described(function: Any, name: str) -> Any:
    """What tools that look at a bound method ask for: its name, and its signature without the first parameter."""
    if name in ("__name__", "__qualname__"):
        return getattr(function, name)
    if name == "__signature__":
        import inspect

        signature = inspect.signature(function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])
    raise AttributeError(name)


class method(Generic[P, R]):
    """``async def method(self, ...) -> R`` in both forms. On the class itself its first argument is the object."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Both[P, R]:
        if instance is None:
            return cast("Both[P, R]", BothFree(self.__wrapped__))
        return Both(self.__wrapped__, instance)


class class_method(Generic[P, R]):
    """``async def method(cls, ...) -> R`` in both forms."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Both[P, R]:
        return Both(self.__wrapped__, owner)


class BothFree(Generic[P, R]):
    """A function in both forms. Calling it blocks."""

    __slots__ = ("__wrapped__",)

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> None:
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        from cadenza.sdk._loop import run

        return run(self.__wrapped__(*args, **kwargs))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same as a coroutine, for any event loop."""
        from cadenza.sdk._loop import bridge

        return await bridge(self.__wrapped__(*args, **kwargs))


class static_method(Generic[P, R]):
    """``async def method(...) -> R`` without self, in both forms. It stands above ``@staticmethod``, by which type
    checkers know that there is no self. For module-level functions there is `function`."""

    def __init__(self, method: Callable[P, Coroutine[Any, Any, R]]) -> None:
        function = cast("Callable[P, Coroutine[Any, Any, R]]", getattr(method, "__func__", method))
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> BothFree[P, R]:
        return BothFree(self.__wrapped__)


def function(function: Callable[P, Coroutine[Any, Any, R]]) -> BothFree[P, R]:
    """A module-level ``async def`` in both forms."""
    return BothFree(function)


class BothAtOnce(Generic[P, R]):
    """A method that never waits, with an ``.aio`` that is kept for old programs and warns."""

    __slots__ = ("__wrapped__", "_first", "_name")

    def __init__(self, function: Callable[..., R], first: Any) -> None:
        self.__wrapped__ = function
        self._first = first

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__wrapped__(self._first, *args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Deprecated: the blocking form does no I/O, use it from async code too."""
        import warnings

        name = getattr(self.__wrapped__, "__qualname__", "this method")
        warnings.warn(f"{name} does no I/O: call it without .aio", DeprecationError, stacklevel=2)
        return self.__wrapped__(self._first, *args, **kwargs)


class class_method_at_once(Generic[P, R]):
    """``def method(cls, ...) -> R`` that does no I/O, with a deprecated ``.aio``."""

    def __init__(self, function: Callable[Concatenate[Any, P], R]) -> None:
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> BothAtOnce[P, R]:
        return BothAtOnce(self.__wrapped__, owner)


# --- generators ---


class Items(Generic[T]):
    """What a blocking generator method returns: lazy, an iterator, warns when it is dropped without being iterated."""

    def __init__(self, batches: AsyncIterator[Iterable[T]], name: str, forbid_in_loop: bool) -> None:
        self._batches = batches
        self._name = name
        self._forbid = forbid_in_loop
        self._inner: Optional[Generator[T, None, None]] = None
        self._closed = False

    def _begin(self) -> Generator[T, None, None]:
        if self._inner is None:
            if in_running_loop():
                if self._forbid:
                    self._closed = True
                    raise InvalidError(
                        f"{self._name}() blocks, and this is a running event loop: "
                        f"use `async for ... in {self._name}.aio(...)`"
                    )
                import warnings

                warnings.warn(
                    f"{self._name}() blocks the running event loop: use `async for ... in {self._name}.aio(...)`",
                    AsyncUsageWarning,
                    stacklevel=3,
                )
            self._inner = _iterate(self._batches)
        return self._inner

    def __iter__(self) -> Iterator[T]:
        return self._begin()

    def __next__(self) -> T:
        return next(self._begin())

    def send(self, value: None) -> T:
        """As `next`; the value is ignored, since the generator runs elsewhere."""
        return next(self._begin())

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> T:
        """Raise in the consumer and end the generator."""
        return self._begin().throw(kind, value, traceback)

    def close(self) -> None:
        """End it: what runs for it is cancelled."""
        self._closed = True
        if self._inner is not None:
            self._inner.close()

    def __del__(self) -> None:
        if self._inner is None and not self._closed:
            import warnings

            warnings.warn(
                f"{self._name}() was called and never iterated, so nothing has run: iterate over it, e.g. "
                f"`for result in {self._name}(...)`",
                stacklevel=2,
                source=self,
            )


_END: Any = object()


async def _next(batches: AsyncIterator[Iterable[T]]) -> Any:
    try:
        return await batches.__anext__()
    except StopAsyncIteration:
        return _END


async def _aclose(batches: AsyncIterator[Any]) -> None:
    close = getattr(batches, "aclose", None)
    if close is not None:
        await close()


def _drop(batches: AsyncIterator[Any]) -> None:
    """Close without waiting, from any thread, also the background loop's (a garbage collection may run there)."""
    if not sys.is_finalizing():
        import asyncio

        from cadenza.sdk import _loop

        _loop.soon(lambda: asyncio.ensure_future(_aclose(batches)))


def _iterate(batches: AsyncIterator[Iterable[T]]) -> Generator[T, None, None]:
    from cadenza.sdk._loop import run

    ended = False
    try:
        while True:
            batch = run(_next(batches))
            if batch is _END:
                ended = True
                return
            yield from batch
    finally:
        if not ended:
            _drop(batches)


class AsyncItems(Generic[T]):
    """What ``.aio`` of a generator method returns: an async generator for any event loop."""

    def __init__(self, batches: AsyncIterator[Iterable[T]], name: str) -> None:
        self._batches = batches
        self._name = name
        self._inner: Optional[AsyncGenerator[T, None]] = None
        self._closed = False

    def __aiter__(self) -> AsyncIterator[T]:
        if self._inner is None:
            self._inner = _aiterate(self._batches)
        return self._inner

    async def __anext__(self) -> T:
        return await self.__aiter__().__anext__()

    async def aclose(self) -> None:
        """End it: what runs for it is cancelled."""
        self._closed = True
        if self._inner is not None:
            await self._inner.aclose()

    def __del__(self) -> None:
        if self._inner is None and not self._closed:
            import warnings

            warnings.warn(
                f"{self._name}.aio() was called and never iterated, so nothing has run: use "
                f"`async for result in {self._name}.aio(...)`",
                stacklevel=2,
                source=self,
            )


async def _aiterate(batches: AsyncIterator[Iterable[T]]) -> AsyncGenerator[T, None]:
    from cadenza.sdk._loop import bridge

    ended = False
    try:
        while True:
            batch = await bridge(_next(batches))
            if batch is _END:
                ended = True
                return
            for item in batch:
                yield item
    finally:
        if not ended:
            _drop(batches)


class BothGenerator(Generic[P, T]):
    """A bound generator method in both forms."""

    __slots__ = ("__wrapped__", "_first", "_forbid")

    def __init__(self, function: Callable[..., AsyncIterator[Iterable[T]]], first: Any, forbid: bool) -> None:
        self.__wrapped__ = function
        self._first = first
        self._forbid = forbid

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Items[T]:
        return Items(self.__wrapped__(self._first, *args, **kwargs), _name_of(self.__wrapped__), self._forbid)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncItems[T]:
        """The same as an async generator, for any event loop."""
        return AsyncItems(self.__wrapped__(self._first, *args, **kwargs), _name_of(self.__wrapped__))

    def __getattr__(self, name: str) -> Any:
        return _described(self.__wrapped__, name)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", "generator")).strip("_")


class generator(Generic[P, T]):
    """An async generator of *batches* in both forms; the user sees items one by one, and pays a hop for each batch.

    The decorated function gives an async iterator of iterables, or of `later` s that make them; they are iterated over
    in the consumer's thread.
    """

    _forbid_in_loop = False

    def __init__(self, function: Callable[Concatenate[Any, P], AsyncIterator[Iterable[T]]]) -> None:
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> BothGenerator[P, T]:
        return BothGenerator(self.__wrapped__, instance, self._forbid_in_loop)


class strict_generator(generator[P, T]):
    """As `generator`; iterating the blocking form inside a running event loop is an InvalidError, not a warning."""

    _forbid_in_loop = True


# --- context managers ---


class BothContext(Generic[T]):
    """A context manager for ``with`` and for ``async with``. One use."""

    def __init__(self, generator: AsyncIterator[T]) -> None:
        self._generator = generator

    def __enter__(self) -> T:
        from cadenza.sdk._loop import run

        return run(self._enter())

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> bool:
        from cadenza.sdk._loop import run

        return run(self._exit(error))

    async def __aenter__(self) -> T:
        from cadenza.sdk._loop import bridge

        return await bridge(self._enter())

    async def __aexit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> bool:
        from cadenza.sdk._loop import bridge

        return await bridge(self._exit(error))

    async def _enter(self) -> T:
        return await self._generator.__anext__()

    async def _exit(self, error: Optional[BaseException]) -> bool:
        generator = cast("AsyncGenerator[T, None]", self._generator)
        if error is None:
            if await _next(cast("Any", generator)) is not _END:
                raise Bug("the context's generator yielded twice")
            return False
        try:
            await generator.athrow(error)
        except StopAsyncIteration:
            return True
        except BaseException as raised:
            if raised is error or raised.__cause__ is error:
                return False
            raise
        raise Bug("the context's generator yielded again after an error")


class BothContextMethod(Generic[P, T]):
    """A bound method that returns a `BothContext`."""

    __slots__ = ("__wrapped__", "_first")

    def __init__(self, function: Callable[..., AsyncIterator[T]], first: Any) -> None:
        self.__wrapped__ = function
        self._first = first

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> BothContext[T]:
        return BothContext(self.__wrapped__(self._first, *args, **kwargs))


class context(Generic[P, T]):
    """An async generator method with one ``yield`` as a context manager for ``with`` and ``async with``."""

    def __init__(self, function: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> None:
        self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> BothContextMethod[P, T]:
        return BothContextMethod(self.__wrapped__, instance)
