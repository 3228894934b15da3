"""What kind of function the user's is, and its parameters, from its code object: `inspect` is slow to import."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Of code objects; source: the documentation of `inspect`, "Code Objects Bit Flags".
_ARGS, _KEYWORDS = 0x04, 0x08
_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200


def _plain() -> None: ...


FunctionType = type(_plain)


def _flags(raw: Any) -> int:
    function = getattr(raw, "__func__", raw)  # of a bound method
    return function.__code__.co_flags if isinstance(function, FunctionType) else 0


def is_generator(raw: Any) -> bool:
    """Whether calling it gives a generator, of either kind."""
    return bool(_flags(raw) & (_GENERATOR | _ASYNC_GENERATOR))


def is_async(raw: Any) -> bool:
    """Whether it is an ``async def``, generator or not."""
    if getattr(raw, "_is_coroutine_marker", None) is not None:
        import inspect

        return inspect.iscoroutinefunction(raw)
    return bool(_flags(raw) & (_COROUTINE | _ASYNC_GENERATOR))


def is_routine(raw: Any) -> bool:
    """Whether it is a function or method of any kind, and not a class or another callable."""
    if isinstance(raw, FunctionType):
        return True
    import inspect

    return inspect.isroutine(raw)


def takes_at_most(raw: Any, count: int) -> bool:
    """Whether it can surely not be called with more than ``count`` arguments. A signature that cannot be read may."""
    if isinstance(raw, FunctionType) and not ("__wrapped__" in vars(raw) or "__signature__" in vars(raw)):
        code = raw.__code__
        return not code.co_flags & (_ARGS | _KEYWORDS) and code.co_argcount + code.co_kwonlyargcount <= count
    return False


def parameters(raw: Any) -> list[tuple[str, bool]]:
    """Its parameters in order, each with whether it has a default; ``*args`` and ``**kwargs`` are left out."""
    if not isinstance(raw, FunctionType) or "__wrapped__" in vars(raw) or "__signature__" in vars(raw):
        import inspect

        return [
            (one.name, one.default is not one.empty)
            for one in inspect.signature(raw).parameters.values()
            if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
    code = raw.__code__
    count = code.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    first_default = count - len(raw.__defaults__ or ())
    by_keyword = raw.__kwdefaults__ or {}
    return [(name, at >= first_default if at < count else name in by_keyword) for at, name in enumerate(names)]
