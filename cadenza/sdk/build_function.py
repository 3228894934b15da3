"""`Image.run_function`: a function that runs while an image is built. Source: semantics.md section 13.3.

Its step is known by the function's source text, the values of the globals that it uses, and its arguments. What other
functions do is not looked at.
"""

from __future__ import annotations

import sys

from cadenza.base.errors import InvalidError
from cadenza.sdk.decorators import is_method_name
from cadenza.sdk.options import places, seconds
from cadenza.sdk.recipe import Step, StepOptions
from cadenza.sdk.target import is_interactive_definition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash
    from typing import Any, Callable, Mapping, Sequence

    from cadenza.sdk.recipe import Made

WHERE = "run_function"
MAX_ARGUMENTS_BYTES = 2 << 20
_GENERATORS = 0x20 | 0x200  # inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_COROUTINE = 0x80
_MAX_DEPTH = 50


def check_timeout(timeout: object) -> float:
    """Seconds that the step may take. InvalidError for what is no such number."""
    limit_s = float(seconds("timeout", timeout, WHERE))
    if limit_s < 1:
        raise InvalidError(f"{WHERE}: timeout must be 1 second or more, got {timeout!r}")
    return limit_s


def check_places(cloud: object, region: object) -> None:
    """Taken as functions take them; a build runs where the server builds. InvalidError for what is no name."""
    places("cloud", cloud, WHERE)
    places("region", region, WHERE)


def link(raw: Any, args: Sequence[Any], kwargs: Mapping[str, Any], include_source: bool, options: StepOptions) -> Step:
    """The link of an image's chain. InvalidError for what can never run in a build."""
    raw = _plain(raw)
    if isinstance(args, (str, bytes)) or not isinstance(args, (list, tuple)):
        raise InvalidError(f"{WHERE}: args is a list or tuple of arguments, not {type(args).__name__}")
    if not isinstance(kwargs, dict) or not all(isinstance(one, str) for one in kwargs):
        raise InvalidError(f"{WHERE}: kwargs is a dictionary of arguments by name")

    def make() -> Made:
        return _make(raw, tuple(args), dict(kwargs), include_source, options)

    return Step(WHERE, make)


def _plain(raw: Any) -> Any:
    """The function as the user wrote it. InvalidError for what cannot be run by name."""
    from cadenza.sdk.function import Function

    if isinstance(raw, Function):
        raw = raw._defined().raw
    code = getattr(raw, "__code__", None)
    name = getattr(raw, "__qualname__", repr(raw))
    if not callable(raw) or code is None:
        raise InvalidError(f"{WHERE} takes a function that is written in Python, not {raw!r}")
    if getattr(raw, "__name__", "") == "<lambda>":
        raise InvalidError(f"{WHERE} cannot take a lambda: define a function with a name in global scope")
    if getattr(raw, "__self__", None) is not None or is_method_name(name):
        raise InvalidError(f"{WHERE}: {name} is a method: define a function in global scope")
    if code.co_flags & _GENERATORS:
        raise InvalidError(f"{WHERE}: {name} is a generator, which nobody would iterate over: let it return")
    if "<locals>" in name:
        raise InvalidError(f"{WHERE} must apply to functions in global scope, which can be imported: {name} is not")
    return raw


def _make(raw: Any, args: tuple[Any, ...], kwargs: dict[str, Any], include_source: bool, options: StepOptions) -> Made:
    from cadenza.protocol.objects import BuildFunction
    from cadenza.sdk import source
    from cadenza.sdk.publish import module_of

    contents: list[Any] = []
    module = serialized = arguments = ""
    files: list[source.HashedFile] = []
    if is_interactive_definition(raw):
        from cadenza.sdk.serialized import pickled_function

        contents.append(source.upload_of(pickled_function(raw, raw.__qualname__)))
        serialized = contents[-1].digest
    else:
        home = module_of(raw)
        module = source.module_name(home)
        files = source.hash_files(source.module_source(home)) if include_source else []
    if args or kwargs:
        contents.append(source.upload_of(pack(args, kwargs, raw.__qualname__)))
        arguments = contents[-1].digest
    function = BuildFunction(
        module=module,
        qualname=raw.__qualname__,
        serialized=serialized,
        arguments=arguments,
        source=key(raw, args, kwargs),
        files=tuple(one.entry for one in files),
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        is_async=bool(raw.__code__.co_flags & _COROUTINE),
    )
    return [options.step("function", function=function)], [*files, *contents]


def pack(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bytes:
    """The arguments as `cadenza.runner.buildstep` reads them. InvalidError beyond 2 MiB, or if they cannot travel."""
    from cadenza.runner import context, values

    try:
        data = b"".join(values.pack((args, kwargs), context.persistent_id))
    except InvalidError:
        raise
    except Exception as error:
        raise InvalidError(f"{WHERE}: the arguments of {name} cannot be pickled: {error}") from error
    if len(data) > MAX_ARGUMENTS_BYTES:
        raise InvalidError(
            f"{WHERE}: the arguments of {name} are {len(data) / (1 << 20):.1f} MiB, at most 2 MiB are allowed: "
            "add large data as a file with add_local_file(copy=True)"
        )
    return data


# --- the key ---


def key(raw: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """SHA-256 in hex of what the step's digest is to know of the function."""
    import hashlib

    digest = hashlib.sha256()
    _feed(digest, "source", source_text(raw))
    for name, value in sorted(used_globals(raw).items()):
        _feed(digest, "global", name)
        _describe(digest, value, 0)
    _feed(digest, "arguments", "")
    _describe(digest, (args, kwargs), 0)
    return digest.hexdigest()


def source_text(raw: Any) -> str:
    """The function's source, as it is in its file. InvalidError where it has none."""
    import inspect

    try:
        return inspect.getsource(raw)
    except (OSError, TypeError):
        if is_interactive_definition(raw):
            return _code_text(raw.__code__)
        raise InvalidError(
            f"{WHERE}: the source of {raw.__qualname__} cannot be read, and a change of it decides when it runs again: "
            "define the function in a file"
        ) from None


def _code_text(code: Any) -> str:
    """What stands for the source of a function that was typed into an interpreter."""
    inner = [_code_text(one) if hasattr(one, "co_code") else repr(one) for one in code.co_consts]
    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames} {inner}"


def used_globals(raw: Any) -> dict[str, Any]:
    """The globals whose names the function's code has, also that of functions inside of it, with their values."""
    while hasattr(raw, "__wrapped__"):
        raw = raw.__wrapped__
    names: set[str] = set()
    codes = [raw.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [one for one in code.co_consts if hasattr(one, "co_names")]
    return {name: raw.__globals__[name] for name in names if name in raw.__globals__}


def _feed(digest: _Hash, kind: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    digest.update(f"{kind} {len(data)}\n".encode())
    digest.update(data)


def _describe(digest: _Hash, value: Any, depth: int) -> None:
    """Equal values give equal input to the digest, in any process: sets are in order, code goes by its name."""
    from types import ModuleType

    from cadenza.sdk.handle import Handle

    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str, bytes):
        _feed(digest, kind.__name__, repr(value))
    elif kind in (list, tuple) and depth < _MAX_DEPTH:
        _feed(digest, kind.__name__, str(len(value)))
        for one in value:
            _describe(digest, one, depth + 1)
    elif kind in (set, frozenset, dict) and depth < _MAX_DEPTH:
        import hashlib

        inner = []
        for one in value.items() if kind is dict else value:
            each = hashlib.sha256()
            _describe(each, one, depth + 1)
            inner.append(each.hexdigest())
        _feed(digest, kind.__name__, " ".join(sorted(inner)))
    elif isinstance(value, ModuleType):
        _feed(digest, "module", value.__name__)
    elif isinstance(value, Handle):
        _feed(digest, "handle", kind.__name__)
    elif isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        _feed(digest, "code", f"{value.__module__}.{value.__qualname__}")
    else:
        _feed(digest, "object", f"{kind.__module__}.{kind.__qualname__}")
        import pickle

        try:
            digest.update(pickle.dumps(value, 4))
        except Exception:
            pass  # what cannot be written down counts by its class
