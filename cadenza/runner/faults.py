"""Exceptions between two processes: to a dictionary of plain values, and back with the remote frames grafted on.

Python itself then prints the remote frames as part of the caller's traceback, file names prefixed by ``<ta-...>:``
and with their source lines. Source: semantics.md section 5.
"""

from __future__ import annotations

import linecache
import os
import sys
from types import TracebackType

from cadenza.base.errors import Error, ExecutionError, SerializationError
from cadenza.runner import context, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any, Iterator, Optional, Union

    Buffer = Union[bytes, bytearray, memoryview]
    Fault = dict[str, Any]

MAX_FRAMES = 1000
"""More of one traceback are cut in the middle: recursion fills both ends alike."""
MAX_CHAIN = 100
MAX_CACHED_FILES = 1000

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_cached: list[str] = []


def is_ours(filename: str) -> bool:
    """Whether a frame belongs to this package and not to user code."""
    return filename.startswith((_PACKAGE, "<frozen importlib"))


def clean(trace: Optional[TracebackType]) -> Iterator[tuple[FrameType, int, int]]:
    """The frames of user code: frame, line, instruction. Ours are left out, and those of a loop that we run."""
    ours = False
    while trace is not None:
        frame = trace.tb_frame
        from_loop = ours and str(frame.f_globals.get("__name__")).startswith("asyncio.")
        ours = from_loop or is_ours(frame.f_code.co_filename)
        if not ours:
            yield trace.tb_frame, trace.tb_lineno, trace.tb_lasti
        trace = trace.tb_next


def pack_exception(exc: BaseException) -> bytes:
    """See `values.pack_exception`."""
    return b"".join(values.pack(_describe(exc, MAX_CHAIN, set())))


def kinds(exc: BaseException) -> list[str]:
    """The exception's class and its bases, most special first, as ``module.qualname``: what retries compare with."""
    bases = [one for one in type(exc).__mro__ if one not in (object, BaseException)]
    return [f"{one.__module__}.{one.__qualname__}" for one in bases or [type(exc)]]


def text_of(exc: BaseException, chain: bool = True) -> str:
    """The traceback as Python prints it, without our own frames; with ``chain``, causes included."""
    import traceback

    return "".join(traceback.format_exception(type(exc), exc, strip(exc), chain=chain))


def strip(exc: BaseException, seen: Optional[set[int]] = None) -> Optional[TracebackType]:
    """Take our frames out of the tracebacks of ``exc`` and of what it was caused by. Returns its traceback."""
    seen = set() if seen is None else seen
    todo: list[Optional[BaseException]] = [exc]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        rest: Optional[TracebackType] = None
        for frame, line, lasti in reversed(list(clean(one.__traceback__))):
            rest = TracebackType(rest, frame, lasti, line)
        one.__traceback__ = rest
        todo += [one.__cause__, one.__context__]
        members = getattr(one, "exceptions", ())
        if isinstance(members, tuple):
            todo += [member for member in members if isinstance(member, BaseException)]
    return exc.__traceback__


def _describe(exc: BaseException, depth: int, seen: set[int]) -> Fault:
    seen.add(id(exc))
    frames = list(clean(exc.__traceback__))
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    fault: Fault = {
        "exception": _pickled(exc),
        "repr": _repr(exc),
        "type": f"{type(exc).__module__}.{type(exc).__qualname__}",
        "traceback": [_frame(*one) for one in frames],
        "text": _text(exc, depth == MAX_CHAIN),
        "cause": None,
        "context": None,
        "suppress_context": exc.__suppress_context__,
        "members": [],
    }
    members = getattr(exc, "exceptions", ())
    if isinstance(members, tuple) and depth > 0 and all(isinstance(one, BaseException) for one in members):
        fault["members"] = [None if id(one) in seen else _describe(one, depth - 1, seen) for one in members[:MAX_CHAIN]]
    for key, other in (("cause", exc.__cause__), ("context", exc.__context__)):
        if other is not None and depth > 0 and id(other) not in seen:
            fault[key] = _describe(other, depth - 1, seen)
    return fault


def _frame(frame: FrameType, line: int, lasti: int) -> tuple[str, str, int, Any, list[str]]:
    """``(file, function, line, (end line, column, end column) or None, source lines)``."""
    code = frame.f_code
    where = None
    end = line
    positions = getattr(code, "co_positions", None)
    if positions is not None and lasti >= 0:
        for number, found in enumerate(positions()):
            if number == lasti // 2:
                start, stop, column, end_column = found
                if start == line and None not in (stop, column, end_column):
                    where, end = (stop, column, end_column), stop
                break
    try:
        linecache.lazycache(code.co_filename, frame.f_globals)
        source = [linecache.getline(code.co_filename, one) for one in range(line, min(end, line + 20) + 1)]
    except Exception:
        source = []
    return code.co_filename, code.co_name, line, where, source


def _repr(exc: BaseException) -> str:
    try:
        text = repr(exc)
    except Exception as error:
        text = f"<{type(exc).__qualname__}, whose repr raised {type(error).__name__}>"
    if len(text) > MAX_REPR_BYTES // 4:
        text = text.encode("utf-8", "backslashreplace")[:MAX_REPR_BYTES].decode("utf-8", "ignore")
    return text


MAX_REPR_BYTES = values.MAX_REPR_BYTES


def _text(exc: BaseException, chain: bool) -> str:
    try:
        text = text_of(exc, chain)
    except Exception as error:
        text = f"{_repr(exc)} (its traceback could not be printed: {type(error).__name__})\n"
    return text if len(text) <= MAX_REPR_BYTES else text[:MAX_REPR_BYTES]


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception whose constructor does not take its own ``args``: made without calling it."""
    exc = cls.__new__(cls, *args)
    exc.args = args
    exc.__dict__.update(state)
    return exc


def _pickled(exc: BaseException) -> bytes:
    handle = context.persistent_id
    first: Optional[BaseException] = None
    for thing in (exc, (_rebuild, type(exc), exc.args, dict(exc.__dict__))):
        try:
            data = values.pack_bytes(thing, handle)
            _open(data)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            first = first or error
        else:
            return data
    what = f"{type(exc).__module__}.{type(exc).__qualname__}"
    return values.pack_bytes(
        SerializationError(f"The function raised {what}, which cannot be pickled ({first}): {_repr(exc)}")
    )


def _open(data: Buffer) -> BaseException:
    thing = values.unpack(data, context.persistent_load)
    if isinstance(thing, tuple):
        thing = thing[0](*thing[1:])
    if not isinstance(thing, BaseException):
        raise TypeError(f"{type(thing).__name__} is not an exception")
    return thing


def unpack_exception(data: Buffer, container_id: str) -> BaseException:
    """See `values.unpack_exception`."""
    fault = values.unpack(data)
    if not isinstance(fault, dict):
        raise TypeError("not a packed exception")
    return _restore(fault, container_id)


def _restore(fault: Fault, container_id: str) -> BaseException:
    try:
        exc = _open(fault["exception"])
    except Exception as error:
        lacking = error.__cause__ if isinstance(error, Error) else error
        if isinstance(lacking, ModuleNotFoundError) and lacking.name:
            why = (
                f"the module '{lacking.name}' is not there: install it where this code runs, or raise a plain exception"
            )
        else:
            why = str(error).rstrip(".")
        exc = ExecutionError(
            f"The function raised {fault['type']}, which cannot be unpickled here: {why}. "
            f"Its traceback in the container:\n\n{fault['text']}"
        )
    exc.__traceback__ = _traceback(fault.get("traceback") or [], container_id)
    cause, before = fault.get("cause"), fault.get("context")
    if cause:
        exc.__cause__ = _restore(cause, container_id)
    if before:
        exc.__context__ = _restore(before, container_id)
    elif cause:
        exc.__context__ = exc.__cause__
    exc.__suppress_context__ = bool(fault.get("suppress_context"))
    members = getattr(exc, "exceptions", ())
    for one, packed in zip(members, fault.get("members") or ()):
        if packed is None:
            continue  # it was told already, elsewhere in the chain
        copy = _restore(packed, container_id)
        one.__traceback__, one.__cause__, one.__context__ = copy.__traceback__, copy.__cause__, copy.__context__
        one.__suppress_context__ = copy.__suppress_context__
    return exc


def _traceback(frames: list[Any], container_id: str) -> Optional[TracebackType]:
    trace: Optional[TracebackType] = None
    for filename, name, line, where, source in reversed(frames):
        shown = filename if filename.startswith("<ta-") else f"<{container_id}>:{filename}"
        _remember(shown, line, source)
        code, lasti = _code(shown, name, line, where)
        try:
            exec(code, {"__name__": name, "__file__": shown})
        except ZeroDivisionError as error:
            made = error.__traceback__
            made = made.tb_next if made is not None else None
            if made is not None:
                trace = TracebackType(trace, made.tb_frame, made.tb_lasti if lasti is None else lasti, line)
    return trace


def _code(filename: str, name: str, line: int, where: Any) -> tuple[CodeType, Optional[int]]:
    """Code that raises at that place, and the instruction to say it was at: None for the one that raised."""
    import ast

    line = max(1, line)
    end, column, end_column = where or (line, 0, 0)
    place = {"lineno": line, "col_offset": column, "end_lineno": max(end, line), "end_col_offset": end_column}
    raises = ast.Raise(exc=ast.Name(id="ZeroDivisionError", ctx=ast.Load(), **place), cause=None, **place)
    code = compile(ast.Module(body=[raises], type_ignores=[]), filename, "exec")
    changes: dict[str, Any] = {"co_name": name, "co_firstlineno": code.co_firstlineno}
    if sys.version_info >= (3, 11):
        changes["co_qualname"] = name
    # Without columns no instruction is named: Python then shows the line and marks nothing in it.
    return code.replace(**changes), None if where or sys.version_info < (3, 11) else -1


def _remember(filename: str, line: int, source: list[str]) -> None:
    """Let the standard library's ``linecache`` find these source lines, under a name that no file has."""
    entry = linecache.cache.get(filename)
    lines: list[str] = list(entry[2]) if entry is not None and len(entry) == 4 else []
    if entry is None:
        _cached.append(filename)
        if len(_cached) > MAX_CACHED_FILES:
            linecache.cache.pop(_cached.pop(0), None)
    missing = line - 1 + len(source) - len(lines)
    if missing > 0:
        lines += [""] * missing
    for number, text in enumerate(source, line - 1):
        lines[number] = text
    # No modification time: linecache takes it as not being a file on disk, and keeps it.
    linecache.cache[filename] = (0, None, lines, filename)
