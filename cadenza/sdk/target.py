"""What ``@app.function`` is put on: whether a container could run it, checked at decoration.

Source: semantics.md sections 4, 7, 15 and 34.
"""

from __future__ import annotations

import sys

from cadenza.base.errors import InvalidError
from cadenza.sdk import shape
from cadenza.sdk.decorators import Marks, PartialFunction, is_method_name
from cadenza.sdk.function import Function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def package() -> str:
    """What the program calls this package: ``modal`` where it imported it under that name."""
    return "modal" if "modal" in sys.modules else "cadenza"


def unwrap(target: Any) -> tuple[Callable[..., Any], Marks]:
    """The plain function below the decorators, and what they said. InvalidError for anything else."""
    marks = Marks()
    if isinstance(target, PartialFunction):
        target, marks = target.raw, target.marks
    if isinstance(target, Function):
        raise InvalidError(f"{target!r} has @app.function() twice")
    if isinstance(target, type):
        raise InvalidError(f"@app.function goes on a function; {target.__name__} is a class: use @app.cls")
    if isinstance(target, (staticmethod, classmethod)):
        raise InvalidError(
            f"@app.function goes on a function in global scope; for a method of a class use @{package()}.method()"
        )
    if not callable(target) or not hasattr(target, "__qualname__"):
        raise InvalidError(f"@app.function goes on a function, not on {type(target).__name__}")
    if marks.part:
        raise InvalidError(f"@{marks.part} goes on a method of a class under @app.cls, not together with @app.function")
    return target, marks


def is_interactive_definition(raw: Callable[..., Any]) -> bool:
    """Whether it was typed into a notebook or an interpreter: no file has it, so it travels by value."""
    module = sys.modules.get(raw.__module__)
    return raw.__module__ == "__main__" and module is not None and not getattr(module, "__file__", None)


def check_place(raw: Callable[..., Any], serialized: bool) -> None:
    """InvalidError for a function that a container could not import by name."""
    qualname = raw.__qualname__
    if is_method_name(qualname):
        raise InvalidError(
            f"@app.function on {qualname}, which is a method: put @app.cls() on the class and "
            f"@{package()}.method() on the method"
        )
    if serialized:
        return
    if "<locals>" in qualname:
        raise InvalidError(
            f"@app.function must apply to functions in global scope, unless serialized=True: {qualname} is not"
        )
    if qualname == "<lambda>":
        raise InvalidError("@app.function on a lambda needs serialized=True: a container cannot import it by name")


def check_kind(raw: Callable[..., Any], marks: Marks, generator: bool, retries: bool, schedule: bool) -> None:
    """InvalidError for combinations that have no meaning."""
    if retries and generator:
        raise InvalidError(f"{raw.__qualname__}: retries are not supported for generator functions")
    if retries and marks.web:
        raise InvalidError(f"{raw.__qualname__}: retries are not supported for web functions")
    if marks.batched is not None and generator:
        raise InvalidError(f"{raw.__qualname__}: a batched function cannot be a generator")
    if schedule:
        for name, has_default in shape.parameters(raw):
            if not has_default:
                raise InvalidError(
                    f"{raw.__qualname__} has a schedule and so must be callable without arguments: "
                    f"{name} needs a default"
                )
