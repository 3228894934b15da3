"""`Declaration`: one function, or class, as its decorators describe it."""

from __future__ import annotations

from cadenza.sdk._light import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from cadenza.protocol.objects import MethodSpec, ParameterSpec
    from cadenza.sdk.decorators import Marks
    from cadenza.sdk.image import Image
    from cadenza.sdk.options import FunctionOptions
    from cadenza.sdk.secret import Secret


@record
class Method:
    """One method of a class that runs in containers."""

    name: str
    is_generator: bool
    is_async: bool


@record
class Parameter:
    """One parameter of a class; ``type`` is str, int, bool or bytes. Without ``has_default``, ``default`` is None."""

    name: str
    type: str
    has_default: bool
    default: Any = None


@record
class Declaration:
    """One function, or class, as its decorators describe it. Nothing is read from disk before
    `cadenza.sdk.publish.prepare`."""

    name: str
    raw: Callable[..., Any]
    is_generator: bool
    is_async: bool
    serialized: bool
    include_source: bool
    options: FunctionOptions
    marks: Marks
    image: Callable[[], Image]
    app_secrets: Callable[[], Sequence[Secret]]
    methods: tuple[Method, ...] = ()
    """Of a class, which is called ``Name.*``."""
    parameters: tuple[Parameter, ...] = ()


# What the protocol calls these; loaded late, since a container that only declares a class needs none of it.


def method_specs(methods: Sequence[Method]) -> tuple[MethodSpec, ...]:
    """Methods as the server is told of them."""
    from cadenza.protocol.objects import MethodSpec

    return tuple(MethodSpec(one.name, one.is_generator, one.is_async) for one in methods)


def methods_of(specs: Sequence[MethodSpec]) -> tuple[Method, ...]:
    """The inverse of `method_specs`."""
    return tuple(Method(one.name, one.is_generator, one.is_async) for one in specs)


def parameter_specs(parameters: Sequence[Parameter]) -> tuple[ParameterSpec, ...]:
    """Parameters as the server is told of them."""
    import json

    from cadenza.protocol.objects import ParameterSpec
    from cadenza.protocol.parameters import to_value

    return tuple(
        ParameterSpec(one.name, one.type, json.dumps(to_value(one.default)) if one.has_default else "")
        for one in parameters
    )


def parameters_of(specs: Sequence[ParameterSpec]) -> tuple[Parameter, ...]:
    """The inverse of `parameter_specs`."""
    import json

    from cadenza.protocol.parameters import from_value

    return tuple(
        Parameter(one.name, one.type, bool(one.default), from_value(json.loads(one.default)) if one.default else None)
        for one in specs
    )
