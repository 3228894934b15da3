"""Variants of functions: a class with parameters, a function with options. The pure rules.

A *wish* is what a variant changes: parameters of a class as text, and an `OptionsPatch`. Equal wishes for one base are
one variant in all processes. Source: semantics.md sections 12.2 and 12.3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any, Mapping, Optional

import msgspec

from cadenza.base.errors import DataLossError, InvalidError, ResourceExhaustedError
from cadenza.base.resources import gpu_text
from cadenza.protocol import parameters
from cadenza.protocol.objects import FunctionSpec, OptionsPatch
from cadenza.protocol.plain import to_plain

CREATE_PER_S, CREATE_BURST = 1.0, 1_000.0
"""How many new variants of one function may be made: sustained, and at once (semantics.md section 12.2)."""
MAX_VARIANTS = 10_000
"""So many variants of one function are kept; beyond, the oldest that have neither inputs nor containers go."""
PATCHED_OPTIONS = ("region", "cloud", "routing_region")

_RESOURCES = ("cpu_milli", "cpu_limit_milli", "memory_mib", "memory_limit_mib", "disk_mib", "gpus")
_FIELDS = tuple(one.name for one in fields(OptionsPatch) if one.name != "options")


@dataclass(frozen=True)
class Wish:
    """What a variant changes of its base."""

    parameters: str = ""
    patch: OptionsPatch = field(default_factory=OptionsPatch)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.parameters and self.patch == OptionsPatch()


_decode_wish = msgspec.json.Decoder(Wish).decode


def text_of(wish: Wish) -> str:
    """A wish as canonical JSON: equal wishes have equal texts. What it leaves alone is not in it."""
    patch = {name: value for name, value in to_plain(wish.patch).items() if value is not None and value != {}}
    if wish.patch.env is not None:
        patch["env"] = dict(wish.patch.env)  # an empty set replaces the earlier one
    return json.dumps({"parameters": wish.parameters, "patch": patch}, sort_keys=True, separators=(",", ":"))


def read_wish(text: str) -> Wish:
    """The inverse of `text_of`. DataLossError for what is none."""
    try:
        return _decode_wish(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise DataLossError(f"what was kept of a variant cannot be read: {error}") from None


def merged(before: Wish, after: Wish) -> Wish:
    """A wish on top of another: later fields win one by one, ``secrets`` and ``env`` as whole sets (section 12.3)."""
    changes: dict[str, Any] = {
        name: getattr(after.patch, name) for name in _FIELDS if getattr(after.patch, name) is not None
    }
    changes["options"] = {**before.patch.options, **after.patch.options}
    return Wish(after.parameters or before.parameters, replace(before.patch, **changes))


def normalised(base: FunctionSpec, wish: Wish) -> Wish:
    """A new wish, checked by `checked`. Parameters that are all as the defaults say are left out, so that such a wish
    is the class itself. InvalidError."""
    wish = checked(base, wish)
    return replace(wish, parameters="") if wish.parameters == defaults(base) else wish


def checked(base: FunctionSpec, wish: Wish) -> Wish:
    """A wish whose parameters fit those that the class declares, defaults filled in. InvalidError."""
    unknown = [name for name in wish.patch.options if name not in PATCHED_OPTIONS]
    if unknown:
        raise InvalidError(f"{base.name}: the option {unknown[0][:40]!r} cannot be changed at the call")
    if not base.class_parameters:
        if wish.parameters not in ("", "{}"):
            raise InvalidError(f"{base.name} has no parameters")
        return replace(wish, parameters="")
    if not wish.parameters and defaults(base) is not None:
        return wish  # it goes with the defaults
    return replace(wish, parameters=parameters.check(base.class_parameters, wish.parameters))


def defaults(base: FunctionSpec) -> Optional[str]:
    """The parameters of a class when none is given; None where one has no default."""
    if any(not one.default for one in base.class_parameters):
        return None
    return parameters.bind(base.class_parameters, {}, base.name.rpartition(".")[0])


def derived(base: FunctionSpec, wish: Wish) -> FunctionSpec:
    """The base with what the wish changes. Pure; whether the result may be is `declared.check_functions`' to say.

    No containers are kept warm for a variant, and it does not run by schedule: that is its base's.
    """
    patch = wish.patch
    resources = {name: getattr(patch, name) for name in _RESOURCES if getattr(patch, name) is not None}
    changes: dict[str, Any] = {
        name: getattr(patch, name) for name in _FIELDS if name not in _RESOURCES and getattr(patch, name) is not None
    }
    most = changes.get("max_concurrent")
    if most is not None and "target_concurrent" not in changes:
        changes["target_concurrent"] = most
    if "cpu_milli" in resources and "cpu_limit_milli" not in resources:
        resources["cpu_limit_milli"] = 0
    if "memory_mib" in resources and "memory_limit_mib" not in resources:
        resources["memory_limit_mib"] = 0
    return replace(
        base,
        resources=replace(base.resources, **resources),
        options={**unscheduled(base.options), **patch.options},
        parameters=wish.parameters or base.parameters,
        min_containers=0,
        **changes,
    )


def unscheduled(options: Mapping[str, str]) -> dict[str, str]:
    """A function's options without its schedule."""
    return {name: value for name, value in options.items() if name != "schedule"}


def callable_base(spec: FunctionSpec) -> FunctionSpec:
    """How a declared function is run: one whose parameters have no defaults is run only by its variants, so nothing is
    kept warm for it (semantics.md section 12.2)."""
    if spec.class_parameters and defaults(spec) is None:
        return replace(spec, min_containers=0, buffer_containers=0)
    return spec


def described(patch: OptionsPatch) -> str:
    """What a patch changes, for people. Names of variables at most, never their values."""
    parts = []
    for name in _FIELDS:
        value = getattr(patch, name)
        if value is None:
            continue
        if name == "gpus":
            parts.append(f"gpu={gpu_text(value) or 'none'}")
        elif name == "secrets":
            keys = sorted({key for one in value for key in one.keys})
            parts.append(f"secrets={', '.join(keys) or len(value)}")
        elif name == "env":
            parts.append(f"env={', '.join(sorted(value)) or 'none'}")
        elif name == "retries":
            parts.append(f"retries={value.max_retries}")
        else:
            parts.append(f"{name}={value:g}")
    parts += [f"{name}={value}" for name, value in sorted(patch.options.items())]
    return ", ".join(parts)


@dataclass
class Bucket:
    """How many more variants of one function may be made now. Times are monotonic seconds."""

    tokens: float = CREATE_BURST
    at: float = 0.0

    def take(self, name: str, now: float) -> None:
        """One is made. ResourceExhaustedError, with ``throttle``, when it is too many."""
        self.tokens = min(CREATE_BURST, self.tokens + max(0.0, now - self.at) * CREATE_PER_S)
        self.at = now
        if self.tokens < 1.0:
            error = ResourceExhaustedError(
                f"{name}: too many new sets of parameters or options: {CREATE_BURST:g} at once and then "
                f"{CREATE_PER_S:g} in a second. Try again later, or pass what differs as an argument"
            )
            error.throttle = True
            raise error
        self.tokens -= 1.0
