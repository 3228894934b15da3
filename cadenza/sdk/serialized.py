"""Functions that travel by value: ``serialized=True``. Source: semantics.md section 4.

Other functions of the app that it uses have no id before the app is published; they travel by name, and the container
finds their ids in its layout.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from cadenza.base.errors import ExecutionError, InvalidError
from cadenza.runner import context
from cadenza.sdk.function import Function
from cadenza.sdk.handle import Handle

if TYPE_CHECKING:
    from cadenza.sdk.declaration import Declaration

MAX_SERIALIZED_BYTES = 16 << 20
LARGE_SERIALIZED_BYTES = 256 << 10


def pickled(declaration: Declaration) -> bytes:
    """The function itself as bytes, with what it uses of its module. InvalidError beyond 16 MiB."""
    return pickled_function(declaration.raw, declaration.name)


def pickled_function(raw: Any, name: str) -> bytes:
    """A function as `pickled` has it; ``name`` is for errors."""
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        raise InvalidError("serialized=True needs the package cloudpickle: pip install cloudpickle") from None
    module = sys.modules.get(raw.__module__)
    known = cloudpickle.list_registry_pickle_by_value()
    by_value = module is not None and module.__name__ != "__main__" and module.__name__ not in known
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        data = _dumps(raw, cloudpickle)
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    if len(data) > MAX_SERIALIZED_BYTES:
        raise InvalidError(
            f"function {name!r} is {len(data) >> 20} MiB when serialized, at most 16 MiB are allowed: "
            "pass large data as an argument, or do not capture it"
        )
    if len(data) > LARGE_SERIALIZED_BYTES:
        warnings.warn(
            f"function {name!r} is {len(data) >> 10} KiB when serialized: does it capture data that "
            "could be an argument?",
            stacklevel=2,
        )
    return data


def _dumps(raw: Any, cloudpickle: Any) -> bytes:
    import io

    from cadenza.sdk.app import App

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, Handle) and not thing._hydrated:
                by_name = _by_name(thing)
                if by_name is not None:
                    return by_name
            if isinstance(thing, App):
                return App, (thing.name,)
            return super().reducer_override(thing)

    stream = io.BytesIO()
    Pickler(stream, protocol=4).dump(raw)
    return stream.getvalue()


def _by_name(thing: Handle) -> Any:
    """How a handle of the app that is not published yet is made in a container; None for what is not of an app."""
    if isinstance(thing, Function):
        if thing._definition is None:
            return None
        if thing._method:
            return getattr, (thing._obj, thing._method)  # type: ignore[attr-defined]
        if thing._class is not None:
            return class_of_app, _told(thing._class)
        changes = getattr(thing, "_changes", None)
        if changes is not None:
            return _changed, (thing._base, changes)  # type: ignore[attr-defined]
        return function_of_app, (thing._definition.name, thing._definition.is_generator)
    if type(thing).__name__ == "Cls" and thing._service._definition is not None:  # type: ignore[attr-defined]
        return class_of_app, _told(thing)
    if type(thing).__name__ == "Obj" and thing._cls._service._definition is not None:  # type: ignore[attr-defined]
        pool: Any = thing._pool  # type: ignore[attr-defined]
        return _instance, (thing._cls, pool._changes, pool._arguments)  # type: ignore[attr-defined]
    return None


def _told(cls: Any) -> tuple[Any, ...]:
    return cls._name, cls._service._methods, cls._service._parameters, cls._options


def _changed(function: Any, changes: dict[str, Any]) -> Any:
    from cadenza.sdk.variant import Variant

    return Variant._of(function, changes)


def _instance(cls: Any, changes: dict[str, Any], arguments: tuple[Any, Any]) -> Any:
    return cls._changed(changes)(*arguments[0], **arguments[1])


def class_of_app(name: str, methods: Any, parameters: Any, options: dict[str, Any]) -> Any:
    """In a container: the handle of a class of the app that runs. ExecutionError if the app has none."""
    from cadenza.sdk.cls import SERVICE, Cls

    service = function_of_app(name + SERVICE, False)
    service._methods, service._parameters = methods, parameters
    return Cls._made(name, service, None, options)


def function_of_app(name: str, is_generator: bool) -> Function[Any, Any, Any]:
    """In a container: the handle of another function of the app that runs. ExecutionError if the app has none."""
    here = context.current()
    function_id = None if here is None else here.layout.get(name)
    if function_id is None:
        raise ExecutionError(f"a serialized function uses {name!r}, which is no function of the app that runs here")
    function = Function.from_id(function_id)
    function._hydrate(function_id, None, {"name": name, "is_generator": is_generator})
    return function
