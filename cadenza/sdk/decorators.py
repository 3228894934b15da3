"""Decorators that stand below ``@app.function``: what they say is kept in a `PartialFunction`, checked at decoration.

Source: semantics.md sections 10, 12, 16 and 34.
"""

from __future__ import annotations

from cadenza.base.errors import DeprecationError, InvalidError
from cadenza.sdk import shape
from cadenza.sdk._light import Generic, cast, look_like, record
from cadenza.sdk.options import MAX_CONCURRENT_INPUTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, ParamSpec, Protocol, Sequence, TypeVar

    P = ParamSpec("P")
    F = TypeVar("F", bound=Callable[..., Any])
    O = TypeVar("O")  # noqa: E741

    class Marking(Protocol):
        """A decorator that keeps the signature of what it is put on."""

        def __call__(self, target: Callable[P, O], /) -> PartialFunction[P, O]: ...

else:
    P = O = None  # noqa: E741

MAX_BATCH_WAIT_MS = 600_000
WEB = ("asgi_app", "wsgi_app", "web_server", "fastapi_endpoint")


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
    """``method``, ``enter`` or ``exit``: a part of a class."""


class PartialFunction(Generic[P, O]):
    """A function or class with marks, waiting for ``@app.function`` or ``@app.cls``."""

    def __init__(self, raw: Callable[..., Any], marks: Marks) -> None:
        self.raw = raw
        self.marks = marks
        look_like(self, raw, updated=())

    def __get__(self, obj: Any, objtype: Any = None) -> Any:
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
    from cadenza.sdk.function import Function

    if isinstance(target, Function):
        raise InvalidError(f"@{name} comes below @app.function, not above it: the app's decorator is the outermost")
    before = target.marks if isinstance(target, PartialFunction) else Marks()
    raw = target.raw if isinstance(target, PartialFunction) else target
    if not callable(raw):
        raise InvalidError(f"@{name} goes on a function, not on {type(raw).__name__}")
    if check is not None:
        check(raw)
    return PartialFunction(raw, Marks(**{**vars(before), **marks}))


@with_parentheses("concurrent")
def concurrent(*, max_inputs: Optional[int] = None, target_inputs: Optional[int] = None) -> Marking:
    """Let a container run several inputs at once: at most ``max_inputs`` (up to 1,000), scaled to ``target_inputs``.

    Goes below ``@app.function`` or ``@app.cls``. InvalidError for numbers out of range and on a method.
    """
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target_inputs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidError(f"concurrent: {name} must be an integer, not {type(value).__name__}")
        if value is not None and not 1 <= value <= MAX_CONCURRENT_INPUTS:
            raise InvalidError(f"concurrent: {name} must be between 1 and {MAX_CONCURRENT_INPUTS}, got {value}")
    if max_inputs is None:
        raise InvalidError("concurrent: say how many inputs at once, for example concurrent(max_inputs=10)")
    if target_inputs is not None and target_inputs > max_inputs:
        raise InvalidError(f"concurrent: target_inputs ({target_inputs}) is above max_inputs ({max_inputs})")
    pair = (max_inputs, max_inputs if target_inputs is None else target_inputs)

    def check(raw: Any) -> None:
        if not isinstance(raw, type) and is_method_name(getattr(raw, "__qualname__", "")):
            raise InvalidError("@concurrent goes on the class, below @app.cls, and not on a method")

    return lambda target: _mark("concurrent", target, check, concurrent=pair)


@with_parentheses("batched")
def batched(*, max_batch_size: int, wait_ms: int) -> Marking:
    """Collect inputs into batches: up to ``max_batch_size`` (1 to 1,000), for at most ``wait_ms`` (0 to 600,000)."""
    for name, value, least, most in (
        ("max_batch_size", max_batch_size, 1, MAX_CONCURRENT_INPUTS),
        ("wait_ms", wait_ms, 0, MAX_BATCH_WAIT_MS),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidError(f"batched: {name} must be an integer, not {type(value).__name__}")
        if not least <= value <= most:
            raise InvalidError(f"batched: {name} must be between {least} and {most:,}, got {value}")

    def check(raw: Any) -> None:
        if shape.is_generator(raw):
            raise InvalidError("a batched function cannot be a generator: it returns a list, one result for each input")
        for name, has_default in shape.parameters(raw):
            if has_default:
                raise InvalidError(f"a batched function cannot have default arguments: {name} has one")

    return lambda target: _mark("batched", target, check, batched=(max_batch_size, wait_ms))


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
    return lambda target: _mark("asgi_app", target, _check_web("asgi_app", nullary=True), web="asgi_app")


@with_parentheses("wsgi_app")
def wsgi_app(
    *, label: Optional[str] = None, custom_domains: Optional[Sequence[str]] = None, requires_proxy_auth: bool = False
) -> Marking:
    """Serve the WSGI app that the function returns. Web functions cannot be run yet."""
    return lambda target: _mark("wsgi_app", target, _check_web("wsgi_app", nullary=True), web="wsgi_app")


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
    return lambda target: _mark("web_server", target, _check_web("web_server", nullary=True), web="web_server")


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
    return lambda target: _mark("fastapi_endpoint", target, web="fastapi_endpoint")


def web_endpoint(*args: Any, **kwargs: Any) -> Any:
    """Gone: renamed to `fastapi_endpoint`. Raises DeprecationError."""
    raise DeprecationError("web_endpoint was renamed: use fastapi_endpoint")


def _class_part(name: str, **marks: Any) -> Callable[[Any], Any]:
    def check(raw: Any) -> None:
        if not is_method_name(getattr(raw, "__qualname__", "")):
            raise InvalidError(
                f"@{name} goes on a method of a class under @app.cls; for a function use @app.function()"
            )

    return lambda target: _mark(name, target, check, part=name, **marks)


@with_parentheses("method")
def method(*, is_generator: Optional[bool] = None) -> Callable[[Any], Any]:
    """A method of an ``@app.cls`` class that runs in containers. Classes cannot be run yet."""
    return _class_part("method")


@with_parentheses("enter")
def enter(*, snap: bool = False) -> Callable[[Any], Any]:
    """A method that runs when a container starts. Classes cannot be run yet."""
    return _class_part("enter")


@with_parentheses("exit")
def exit() -> Callable[[Any], Any]:
    """A method that runs when a container ends. Classes cannot be run yet."""
    return _class_part("exit")
