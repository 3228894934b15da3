"""Find the user's function or class: import its module, or unpickle it. What goes wrong is said in the user's words."""

from __future__ import annotations

import sys

from cadenza.base.errors import ExecutionError
from cadenza.runner import context, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Function = Callable[..., Any]

RAW = "__cadenza_raw__"
"""The attribute of the SDK's wrappers that holds the callable as the user wrote it."""


def load(function: dict[str, Any], serialized: bytes) -> Function:
    """The callable that ``function`` (keys name, module, qualname) names, or that ``serialized`` holds. For a class,
    whose name is ``Name.*``, the class as the user wrote it.

    Whatever the user's module raises while it is imported comes through.
    """
    if serialized:
        thing: Function = _unwrap(unpickle(serialized))
        return thing
    module = _import(str(function.get("module", "")))
    name = str(function.get("name", ""))
    qualname = str(function.get("qualname") or name)
    return _find(module, qualname[:-2] if qualname.endswith(".*") else qualname, name)


def unpickle(data: bytes) -> Any:
    """A packed value, or a bare pickle."""
    if data[:1] == b"\x80":  # a bare pickle; a packed value begins with its format's number
        data = values._PLAIN_HEAD.pack(values.FORMAT, 0, 0, len(data)) + data
    return values.unpack(data, context.persistent_load)


def _import(name: str) -> Any:
    if not name:
        raise ExecutionError(
            "The function has no module to import it from: define it in a file, or set serialized=True."
        )
    try:
        __import__(name)
        return sys.modules[name]
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            hint = (
                f"The module '{name}' of your function is not in the container: its source was not mounted. Remove "
                f"include_source=False, or add it by Image.add_local_python_source({name.partition('.')[0]!r})."
            )
        else:
            hint = (
                f"The module '{name}' of your function imports '{missing}', which is not in the container. Add it to "
                f"the image: Image.pip_install(...) for a package, "
                f"Image.add_local_python_source({missing.partition('.')[0]!r}) for a module of your own."
            )
        _note(error, hint)
        raise


def _note(error: BaseException, text: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(text)
    else:
        error.args = (f"{error.args[0] if error.args else ''}\n{text}", *error.args[1:])
        error.msg = error.args[0]  # type: ignore[attr-defined]


def _find(module: Any, qualname: str, name: str) -> Function:
    thing = module
    for part in qualname.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = None
            break
    if thing is not None:
        thing = _unwrap(thing)
        if callable(thing):
            return thing  # type: ignore[no-any-return]
    kind = "class" if name.endswith(".*") else "function"
    attribute = "registered_classes" if kind == "class" else "registered_functions"
    for other in list(vars(module).values()):
        registered = _quietly(other, attribute) if hasattr(type(other), attribute) else None
        if isinstance(registered, dict):
            found = _unwrap(registered.get(name[:-2] if kind == "class" else name))
            if callable(found):
                return found  # type: ignore[no-any-return]
    raise ExecutionError(
        f"The module '{module.__name__}' in the container has no {kind} '{qualname}'. A {kind} must be defined "
        'whenever its module is imported: not below `if __name__ == "__main__"`, and not by a condition that differs '
        "between your machine and the container."
    )


def _quietly(thing: Any, name: str) -> Any:
    """An attribute without its warning: that users are to have no use for it is no concern of ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(thing, name, None)


def _unwrap(thing: Any) -> Any:
    return getattr(thing, RAW, thing)
