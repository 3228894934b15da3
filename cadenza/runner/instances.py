"""A user's class as its containers see it: instances without a constructor, hooks and methods in their order.

The marks are attributes, so that nothing of the SDK is needed here: a decorated function has ``__cadenza_raw__`` (the
user's function) and ``__cadenza_part__`` (`METHOD`, `ENTER`, `ENTER_SNAP`, `EXIT` or empty), a parameter has
``__cadenza_default__``, which raises AttributeError where there is none.

Order: base classes first (the reverse of the resolution order), inside of a class as it is written. What a subclass
defines again stands at its base's place and runs in its stead, also when the subclass does not repeat the decorator;
another decorator changes what it is, and ``name = None`` takes it away. Source: semantics.md sections 12.1 and 12.2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Function = Callable[..., Any]

RAW, PART, DEFAULT = "__cadenza_raw__", "__cadenza_part__", "__cadenza_default__"
METHOD, ENTER, ENTER_SNAP, EXIT = "method", "enter", "enter_snap", "exit"


def _parts(cls: type) -> dict[str, tuple[str, Function]]:
    """Name to (part, function as the user wrote it), in order."""
    found: dict[str, tuple[str, Function]] = {}
    for one in reversed(cls.__mro__):
        for name, value in list(vars(one).items()):
            part = getattr(value, PART, "")
            if part and isinstance(part, str):
                found[name] = (part, getattr(value, RAW, value))
            elif name in found:
                if callable(value):
                    found[name] = (found[name][0], getattr(value, RAW, value))
                else:
                    del found[name]
    return found


def _is_parameter(value: Any) -> bool:
    return hasattr(type(value), DEFAULT) or hasattr(value, DEFAULT)


def parameters(cls: type) -> dict[str, Any]:
    """The class's parameters, inherited ones first: name to the object that declares it."""
    found: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        for name, value in list(vars(one).items()):
            if not isinstance(value, type) and _is_parameter(value):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def make(cls: type, values: dict[str, Any]) -> Any:
    """An instance with its parameters set as attributes, defaults included. No constructor of the user's runs.

    TypeError for an unknown name, and for a parameter without a default that was not given.
    """
    declared = parameters(cls)
    for name in values:
        if name not in declared:
            has = ", ".join(declared) or "none"
            raise TypeError(f"{cls.__name__}() got an unexpected parameter {name!r}; it has {has}")
    construct: Any = cls.__new__
    instance = construct(cls)
    for name, parameter in declared.items():
        if name in values:
            value = values[name]
        else:
            try:
                value = getattr(parameter, DEFAULT)
            except AttributeError:
                raise TypeError(f"{cls.__name__}() misses its parameter {name!r}, which has no default") from None
        setattr(instance, name, value)
    return instance


def enters(cls: type, snap: bool) -> list[Function]:
    """The enter hooks in order: with ``snap`` those before a memory snapshot, else those after it."""
    wanted = ENTER_SNAP if snap else ENTER
    return [function for part, function in _parts(cls).values() if part == wanted]


def exits(cls: type) -> list[Function]:
    """The exit hooks in order."""
    return [function for part, function in _parts(cls).values() if part == EXIT]


def methods(cls: type) -> dict[str, Function]:
    """What can be called in a container: name to function, in order."""
    return {name: function for name, (part, function) in _parts(cls).items() if part == METHOD}
