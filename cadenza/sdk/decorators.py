"""Decorators that stand below ``@app.function``: what they say is kept in a `PartialFunction`, checked at decoration.

Source: semantics.md sections 10, 12, 16 and 34.
"""

from __future__ import annotations

from cadenza.base.errors import DeprecationError, InvalidError
from cadenza.sdk import shape
from cadenza.sdk._light import Generic, cast, look_like, record
from cadenza.sdk.options import MAX_CONCURRENT_INPUTS, flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        Any,
        Callable,
        Concatenate,
        Coroutine,
        Optional,
        ParamSpec,
        Protocol,
        Sequence,
        TypeVar,
        overload,
    )

    from cadenza.sdk.function import Function

    P = ParamSpec("P")
    F = TypeVar("F", bound=Callable[..., Any])
    R = TypeVar("R")
    O = TypeVar("O")  # noqa: E741
    T = TypeVar("T")

    class Marking(Protocol):
        """A decorator that keeps the signature of what it is put on."""

        @overload
        def __call__(self, target: type[T], /) -> type[T]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, target: Callable[P, O], /) -> PartialFunction[P, O]: ...

    class MethodSlot(Protocol[P, R, O]):
        """What ``@method`` leaves in a class: on an instance it is a `Function` without ``self``."""

        def __get__(self, instance: Any, owner: Any = None, /) -> Function[P, R, O]: ...

    class MethodMarking(Protocol):
        """What ``@method()`` is."""

        @overload
        def __call__(
            self, target: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> MethodSlot[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, target: Callable[Concatenate[Any, P], R], /) -> MethodSlot[P, R, R]: ...

    class HookMarking(Protocol):
        """What ``@enter()`` and ``@exit()`` are."""

        def __call__(self, target: F, /) -> F: ...

else:
    P = O = None  # noqa: E741

MAX_BATCH_WAIT_MS = 600_000
WEB = ("asgi_app", "wsgi_app", "web_server", "fastapi_endpoint")
PARTS = ("method", "enter", "enter_snap", "exit")
_RENAMED = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
    "allow_concurrent_inputs": "the decorator @concurrent(max_inputs=...)",
}


def strict(factory: F) -> F:
    """Make a decorator of an app refuse parameters that were renamed, and to be used without its parentheses."""

    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        for old, new in _RENAMED.items():
            if old in kwargs:
                raise DeprecationError(f"the parameter {old} was replaced: use {new}")
        if len(args) == 1 and callable(args[0]) and not kwargs:
            raise InvalidError(f"@app.{factory.__name__} takes parentheses: write @app.{factory.__name__}()")
        return factory(self, *args, **kwargs)

    return cast("F", look_like(checked, factory))


@record
class Marks:
    """What the decorators below the app's have said."""

    concurrent: Optional[tuple[int, int]] = None
    """(most inputs at once, how many to aim at)."""
    batched: Optional[tuple[int, int]] = None
    """(largest batch, longest wait in ms)."""
    web: str = ""
    """Which of `WEB`; empty: none."""
    part: str = ""
    """One of `PARTS`: a part of a class."""
    is_generator: Optional[bool] = None
    """What ``@method(is_generator=)`` says."""


class PartialFunction(Generic[P, O]):
    """A function or class with marks, waiting for ``@app.function`` or ``@app.cls``."""

    def __init__(self, raw: Callable[..., Any], marks: Marks) -> None:
        self.raw = raw
        self.marks = marks
        look_like(self, raw, updated=())

    @property
    def __cadenza_raw__(self) -> Callable[..., Any]:
        return self.raw

    @property
    def __cadenza_part__(self) -> str:
        """Which part of a class it is (`PARTS`): what serves calls is a method, whatever decorator says so."""
        if self.marks.part or not is_method_name(getattr(self.raw, "__qualname__", "")):
            return self.marks.part
        return "method" if self.marks.batched is not None or self.marks.web else ""

    def __get__(self, obj: Any, objtype: Any = None) -> Any:
        """On an instance a method is a `Function`, with ``.local`` and ``.remote``; a hook can be called as it is."""
        if obj is not None and self.__cadenza_part__ == "method":
            from cadenza.sdk.cls import method_of

            return method_of(obj, self)
        return self.raw.__get__(obj, objtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self.raw, "__name__", "it")
        raise InvalidError(f"{name} is not part of an app: put @app.function() above its other decorators")


def is_method_name(qualname: str) -> bool:
    """Whether a qualified name is that of something in a class's body."""
    return "." in qualname.rsplit("<locals>.", 1)[-1]


def with_parentheses(name: str) -> Callable[[F], F]:
    """Make a decorator that is used without its parentheses say so."""

    def wrap(factory: F) -> F:
        def checked(*args: Any, **kwargs: Any) -> Any:
            if args and callable(args[0]) and not kwargs and len(args) == 1:
                raise InvalidError(f"@{name} takes its arguments in parentheses: write @{name}(...)")
            return factory(*args, **kwargs)

        return cast("F", look_like(checked, factory))

    return wrap


def _mark(name: str, target: Any, check: Optional[Callable[[Any], None]] = None, **marks: Any) -> Any:
    from cadenza.sdk.handle import Handle

    if isinstance(target, Handle):
        own = "@app.cls" if type(target).__name__ == "Cls" else "@app.function"
        raise InvalidError(f"@{name} comes below {own}, not above it: the app's decorator is the outermost")
    before = target.marks if isinstance(target, PartialFunction) else Marks()
    raw = target.raw if isinstance(target, PartialFunction) else target
    if not callable(raw):
        raise InvalidError(f"@{name} goes on a function, not on {type(raw).__name__}")
    if check is not None:
        check(raw)
    after = Marks(**{**vars(before), **marks})
    _check_parts(name, getattr(raw, "__qualname__", name), before, after)
    return PartialFunction(raw, after)


def _check_parts(name: str, qualname: str, before: Marks, after: Marks) -> None:
    """InvalidError where one method would be two things: an interface and a hook, or two hooks."""
    was, now = before.part, after.part
    if was and name in ("method", "enter", "exit") and was != now:
        raise InvalidError(f"{qualname} has @{was.partition('_')[0]} and @{name}: one method is one of them")
    if now in ("enter", "enter_snap", "exit") and (after.batched is not None or after.web):
        other = after.web or "batched"
        raise InvalidError(f"{qualname} has @{now.partition('_')[0]} and @{other}: a hook takes no calls")


def concurrency(max_inputs: Optional[int], target_inputs: Optional[int], where: str) -> tuple[int, int]:
    """(most inputs at once, how many to aim at). InvalidError for numbers out of range."""
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target_inputs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidError(f"{where}: {name} must be an integer, not {type(value).__name__}")
        if value is not None and not 1 <= value <= MAX_CONCURRENT_INPUTS:
            raise InvalidError(f"{where}: {name} must be between 1 and {MAX_CONCURRENT_INPUTS}, got {value}")
    if max_inputs is None:
        raise InvalidError(f"{where}: say how many inputs at once, for example {where}(max_inputs=10)")
    if target_inputs is not None and target_inputs > max_inputs:
        raise InvalidError(f"{where}: target_inputs ({target_inputs}) is above max_inputs ({max_inputs})")
    return max_inputs, max_inputs if target_inputs is None else target_inputs


def batching(max_batch_size: int, wait_ms: int, where: str) -> tuple[int, int]:
    """(largest batch, longest wait in ms). InvalidError for numbers out of range."""
    for name, value, least, most in (
        ("max_batch_size", max_batch_size, 1, MAX_CONCURRENT_INPUTS),
        ("wait_ms", wait_ms, 0, MAX_BATCH_WAIT_MS),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidError(f"{where}: {name} must be an integer, not {type(value).__name__}")
        if not least <= value <= most:
            raise InvalidError(f"{where}: {name} must be between {least} and {most:,}, got {value}")
    return max_batch_size, wait_ms


def check_batched(raw: Any) -> None:
    """InvalidError for a function that cannot run on batches."""
    if shape.is_generator(raw):
        raise InvalidError("a batched function cannot be a generator: it returns a list, one result for each input")
    for name, has_default in shape.parameters(raw):
        if has_default:
            raise InvalidError(f"a batched function cannot have default arguments: {name} has one")
    least = 2 if is_method_name(getattr(raw, "__qualname__", "")) else 1
    if shape.takes_at_most(raw, least - 1):
        raise InvalidError(
            f"@batched: {getattr(raw, '__qualname__', 'it')} takes no arguments, and so has nothing to make lists of"
        )


@with_parentheses("concurrent")
def concurrent(*, max_inputs: Optional[int] = None, target_inputs: Optional[int] = None) -> Marking:
    """Let a container run several inputs at once: at most ``max_inputs`` (up to 1,000), scaled to ``target_inputs``.

    Goes below ``@app.function`` or ``@app.cls``. InvalidError for numbers out of range and on a method.
    """
    pair = concurrency(max_inputs, target_inputs, "concurrent")

    def check(raw: Any) -> None:
        if not isinstance(raw, type) and is_method_name(getattr(raw, "__qualname__", "")):
            raise InvalidError("@concurrent goes on the class, below @app.cls, and not on a method")

    return cast("Marking", lambda target: _mark("concurrent", target, check, concurrent=pair))


@with_parentheses("batched")
def batched(*, max_batch_size: int, wait_ms: int) -> Marking:
    """Collect inputs into batches: up to ``max_batch_size`` (1 to 1,000), for at most ``wait_ms`` (0 to 600,000).

    The function gets a list for each argument and returns a list of the same length; callers pass single values.
    """
    pair = batching(max_batch_size, wait_ms, "batched")
    return cast("Marking", lambda target: _mark("batched", target, check_batched, batched=pair))


def _check_web(name: str, *, nullary: bool) -> Callable[[Any], None]:
    def check(raw: Any) -> None:
        if not nullary:
            return
        if shape.is_async(raw):
            raise InvalidError(f"the function below @{name} must not be async: it returns the app")
        if not isinstance(raw, type) and not is_method_name(getattr(raw, "__qualname__", "")):
            for parameter, _ in shape.parameters(raw):
                raise InvalidError(f"the function below @{name} takes no arguments: {parameter} is one")

    return check


@with_parentheses("asgi_app")
def asgi_app(
    *, label: Optional[str] = None, custom_domains: Optional[Sequence[str]] = None, requires_proxy_auth: bool = False
) -> Marking:
    """Serve the ASGI app that the function returns. Web functions cannot be run yet."""
    return cast(
        "Marking", lambda target: _mark("asgi_app", target, _check_web("asgi_app", nullary=True), web="asgi_app")
    )


@with_parentheses("wsgi_app")
def wsgi_app(
    *, label: Optional[str] = None, custom_domains: Optional[Sequence[str]] = None, requires_proxy_auth: bool = False
) -> Marking:
    """Serve the WSGI app that the function returns. Web functions cannot be run yet."""
    return cast(
        "Marking", lambda target: _mark("wsgi_app", target, _check_web("wsgi_app", nullary=True), web="wsgi_app")
    )


def web_server(
    port: int,
    *,
    startup_timeout: float = 5.0,
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    requires_proxy_auth: bool = False,
) -> Marking:
    """Serve what listens on ``port`` in the container. Web functions cannot be run yet."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise InvalidError(f"web_server: port must be an integer between 1 and 65535, got {port!r}")
    if isinstance(startup_timeout, bool) or not isinstance(startup_timeout, (int, float)) or not startup_timeout > 0:
        raise InvalidError("web_server: startup_timeout must be a positive number of seconds")
    return cast(
        "Marking", lambda target: _mark("web_server", target, _check_web("web_server", nullary=True), web="web_server")
    )


@with_parentheses("fastapi_endpoint")
def fastapi_endpoint(
    *,
    method: str = "GET",
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Marking:
    """Serve the function as one HTTP route. Web functions cannot be run yet."""
    if not isinstance(method, str):
        raise InvalidError(f'fastapi_endpoint: method must be a string such as "POST", not {type(method).__name__}')
    return cast("Marking", lambda target: _mark("fastapi_endpoint", target, web="fastapi_endpoint"))


def web_endpoint(*args: Any, **kwargs: Any) -> Any:
    """Gone: renamed to `fastapi_endpoint`. Raises DeprecationError."""
    raise DeprecationError("web_endpoint was renamed: use fastapi_endpoint")


def _class_part(name: str, part: str, check: Optional[Callable[[Any], None]] = None, **marks: Any) -> Any:
    def checked(raw: Any) -> None:
        if not is_method_name(getattr(raw, "__qualname__", "")):
            raise InvalidError(
                f"@{name} goes on a method of a class under @app.cls; for a function use @app.function()"
            )
        if isinstance(raw, staticmethod) or shape.takes_at_most(raw, 0):
            raise InvalidError(f"@{name} goes on a method with self: {getattr(raw, '__qualname__', 'it')} has none")
        if check is not None:
            check(raw)

    return lambda target: _mark(name, target, checked, part=part, **marks)


def _check_hook(name: str) -> Callable[[Any], None]:
    def check(raw: Any) -> None:
        if shape.is_generator(raw):
            raise InvalidError(f"@{name}: {raw.__qualname__} is a generator: a hook runs from its start to its end")
        for other, _ in shape.parameters(raw)[1:]:
            raise InvalidError(f"@{name}: {raw.__qualname__} takes only self, and {other} is another argument")

    return check


@with_parentheses("method")
def method(*, is_generator: Optional[bool] = None) -> MethodMarking:
    """A method of an ``@app.cls`` class that runs in containers: ``C().m.remote(...)``."""
    if is_generator is not None:
        flag("is_generator", is_generator, "@method")
    return cast("MethodMarking", _class_part("method", "method", is_generator=is_generator))


@with_parentheses("enter")
def enter(*, snap: bool = False) -> HookMarking:
    """A method that runs when a container starts, before its first input. It takes only ``self``.

    ``snap=True``: before the container's memory snapshot; the class needs ``enable_memory_snapshot=True``.
    """
    part = "enter_snap" if flag("snap", snap, "@enter") else "enter"
    return cast("HookMarking", _class_part("enter", part, _check_hook("enter")))


@with_parentheses("exit")
def exit() -> HookMarking:
    """A method that runs when a container ends in order, for at most 30 s. It takes only ``self``."""
    return cast("HookMarking", _class_part("exit", "exit", _check_hook("exit")))
