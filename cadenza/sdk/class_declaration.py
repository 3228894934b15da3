"""What ``@app.cls`` is put on: whether containers could run it, checked at decoration; and its declaration.

Source: semantics.md sections 10, 12 and 34.
"""

from __future__ import annotations

import sys

from cadenza.base.errors import InvalidError
from cadenza.runner import instances
from cadenza.sdk import cls, shape
from cadenza.sdk.declaration import Declaration, Method, Parameter
from cadenza.sdk.decorators import Marks, PartialFunction, is_method_name
from cadenza.sdk.handle import Handle
from cadenza.sdk.parameter import ClassParameter
from cadenza.sdk.target import is_interactive_definition, package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Sequence

    from cadenza.sdk.app_classes import AppClasses
    from cadenza.sdk.image import Image
    from cadenza.sdk.options import FunctionOptions
    from cadenza.sdk.secret import Secret

TYPES = (str, int, bool, bytes)
"""What a parameter may be."""


def declare(
    app: AppClasses,
    target: Any,
    options: FunctionOptions,
    serialized: bool,
    include_source: bool,
    image: Callable[[], Image],
    secrets: Callable[[], Sequence[Secret]],
) -> cls.Cls:
    """The handle of a class that ``@app.cls`` was put on. InvalidError for one that can never work."""
    raw, marks = unwrap(target)
    by_value = serialized or is_interactive_definition(raw)
    check_place(raw, by_value)
    check_constructor(raw)
    parts = partials(raw)
    check_parts(raw, parts, "memory_snapshot" in options.carried)
    methods = tuple(
        Method(name, _is_generator(parts.get(name), function), shape.is_async(function))
        for name, function in instances.methods(raw).items()
    )
    if not methods:
        raise InvalidError(
            f"{raw.__qualname__} has nothing to call: put @{package()}.method() on the methods that run in containers"
        )
    batched = [one for one in parts.values() if one.marks.batched is not None]
    web = next((one.marks.web for one in parts.values() if one.marks.web), "")
    name = raw.__qualname__.rsplit("<locals>.", 1)[-1]
    declared = parameters(raw)
    declaration = Declaration(
        name=name + cls.SERVICE,
        raw=raw,
        is_generator=False,
        is_async=False,
        serialized=by_value,
        include_source=include_source,
        options=options,
        marks=Marks(concurrent=marks.concurrent, batched=batched[0].marks.batched if batched else None, web=web),
        image=image,
        app_secrets=secrets,
        methods=methods,
        parameters=declared,
    )
    service = app._register(declaration)
    service._methods, service._parameters = methods, declared
    handle = cls.Cls._made(name, service, raw, {})
    service._class = cls.handles[raw] = handle
    return handle


def unwrap(target: Any) -> tuple[type, Marks]:
    """The user's class below the decorators, and what they said. InvalidError for anything else."""
    marks = Marks()
    if isinstance(target, PartialFunction):
        target, marks = target.raw, target.marks
    if isinstance(target, cls.Cls):
        raise InvalidError(f"{target!r} has @app.cls() twice")
    if isinstance(target, Handle) or not isinstance(target, type):
        name = getattr(target, "__name__", type(target).__name__)
        raise InvalidError(f"@app.cls goes on a class; for the function {name} use @app.function()")
    for word, has in (("batched", marks.batched is not None), (marks.web, bool(marks.web)), (marks.part, marks.part)):
        if has:
            raise InvalidError(f"@{word} goes on a method of {target.__qualname__}, and not on the class")
    return target, marks


def check_place(raw: type, serialized: bool) -> None:
    """InvalidError for a class that a container could not import by name."""
    if not serialized and "<locals>" in raw.__qualname__:
        raise InvalidError(
            f"@app.cls must apply to classes in global scope, unless serialized=True: {raw.__qualname__} is not"
        )
    if is_method_name(raw.__qualname__):
        raise InvalidError(f"@app.cls must apply to classes in global scope: {raw.__qualname__} is inside of another")


def check_constructor(raw: type) -> None:
    """InvalidError for a constructor of the user's, also an inherited one: containers make instances without."""
    for one in raw.__mro__[:-1]:
        constructor = vars(one).get("__init__")
        if constructor is not None and getattr(constructor, "__module__", "") not in ("typing", "typing_extensions"):
            whose = "" if one is raw else f", which it has from {one.__qualname__}"
            raise InvalidError(
                f"{raw.__qualname__} has a constructor __init__{whose}: use @{package()}.enter() for what runs when a "
                f"container starts, and {package()}.parameter() for values that an instance takes"
            )


def partials(raw: type) -> dict[str, PartialFunction[Any, Any]]:
    """The decorated methods in force, by name."""
    found: dict[str, PartialFunction[Any, Any]] = {}
    for one in reversed(raw.__mro__):
        for name, value in vars(one).items():
            if isinstance(value, PartialFunction):
                found[name] = value
            elif isinstance(value, Handle) and not isinstance(value, (cls.Cls, cls.Obj)) and one is raw:
                raise InvalidError(
                    f"{raw.__qualname__}.{name} has @app.function(): use @{package()}.method() in a class"
                )
    return found


def check_parts(raw: type, parts: dict[str, PartialFunction[Any, Any]], snapshots: bool) -> None:
    """InvalidError for combinations of decorated methods that have no meaning."""
    for name, one in parts.items():
        if one.__cadenza_part__ == instances.ENTER_SNAP and not snapshots:
            raise InvalidError(
                f"{raw.__qualname__}.{name} has @enter(snap=True), which needs @app.cls(enable_memory_snapshot=True)"
            )
    methods = [name for name, one in parts.items() if one.__cadenza_part__ == instances.METHOD]
    batched = [name for name in methods if parts[name].marks.batched is not None]
    if len(batched) > 1:
        raise InvalidError(f"{raw.__qualname__} has several batched methods ({', '.join(batched)}): one is the most")
    if batched and len(methods) > 1:
        others = ", ".join(name for name in methods if name not in batched)
        raise InvalidError(
            f"{raw.__qualname__} has the batched method {batched[0]}, and so no other methods: {others} must go into "
            "another class"
        )


def _is_generator(partial: Optional[PartialFunction[Any, Any]], function: Any) -> bool:
    said = None if partial is None else partial.marks.is_generator
    return shape.is_generator(function) if said is None else said


# --- parameters ---


def parameters(raw: type) -> tuple[Parameter, ...]:
    """The class's parameters. InvalidError for one without an annotation, of another type, or with a default that is
    not of its type."""
    found = []
    for name, value in instances.parameters(raw).items():
        if not isinstance(value, ClassParameter):
            continue
        where = f"{raw.__qualname__}.{name}"
        if name.startswith("__"):
            raise InvalidError(f"{where}: a parameter's name does not begin with two underscores")
        kind = _type_of(raw, name, where)
        has_default = hasattr(value, "__cadenza_default__")
        default = value.__cadenza_default__ if has_default else None
        if has_default and type(default) is not kind:
            raise InvalidError(
                f"{where}: the default of a parameter of type {kind.__name__} cannot be {default!r}, "
                f"which is {type(default).__name__}"
            )
        found.append(Parameter(name, kind.__name__, has_default, default))
    return tuple(found)


def _type_of(raw: type, name: str, where: str) -> type:
    owner = next(one for one in raw.__mro__ if isinstance(vars(one).get(name), ClassParameter))
    annotations: Any = getattr(owner, "__annotations__", {})
    if name not in annotations:
        raise InvalidError(f"{where}: a parameter needs an annotation: {name}: str = {package()}.parameter()")
    written = annotations[name]
    kind = _read(written, owner) if isinstance(written, str) else written
    if kind not in TYPES:
        shown = getattr(kind, "__name__", kind)
        raise InvalidError(f"{where}: a parameter is str, int, bool or bytes, and not {shown}")
    return kind  # type: ignore[no-any-return]


def _read(text: str, owner: type) -> Any:
    """An annotation that is text, as with ``from __future__ import annotations``, in quotes besides or not."""
    text = text.strip().strip("'\"")
    for one in TYPES:
        if text == one.__name__:
            return one
    module = sys.modules.get(owner.__module__)
    try:
        return eval(text, dict(vars(module)) if module is not None else {}, dict(vars(owner)))
    except Exception:  # whatever a name that is not there yet, or is no type, gives
        return text
