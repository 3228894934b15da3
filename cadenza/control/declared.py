"""What a declared function may be, and reading one that was kept. Limits: semantics.md sections 7, 8, 11, 30."""

from __future__ import annotations

import math
import re
import zlib
from typing import Mapping, Optional, Sequence

import msgspec

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.protocol.objects import BudgetSpec, FunctionSpec, RetryPolicy
from cadenza.protocol.packed import MAX_UNPACKED_BYTES, Packed
from cadenza.scheduling import cron

MIN_TIMEOUT_S, MAX_TIMEOUT_S = 1.0, 1e9
"""Modal's upper cap is 24 hours; this one, 31 years, is for clocks and timers, not for people."""
MIN_WINDOW_S, MAX_WINDOW_S = 2.0, 3_600.0
MAX_CONCURRENT = 1_000
MAX_CONTAINERS = 4_000
MAX_BATCH, MAX_BATCH_WAIT_MS = 1_000, 600_000
MAX_FUNCTIONS = 1_000
MAX_NAME_CHARS = 200

MAX_APP_NAME_CHARS = 64
"""Of an app that is deployed (semantics.md section 4)."""
MAX_TAGS, MAX_TAG_CHARS = 100, 63
PERIODS = ("", "day", "month")

_WORD = re.compile(r"[A-Za-z0-9._-]+")
_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}")

_decode_spec = msgspec.json.Decoder(FunctionSpec).decode
_decode_packed = msgspec.json.Decoder(Packed).decode


def read_spec(name: str, raw: str) -> FunctionSpec:
    """A kept function. DataLossError when it cannot be read."""
    try:
        return _decode_spec(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise DataLossError(
            f"what was kept of the function {name[:MAX_NAME_CHARS]} cannot be read: run the app again ({error})"
        ) from None


def unpack(data: bytes) -> tuple[FunctionSpec, ...]:
    """What `packed.pack` made. DataLossError for what is none."""
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(data, MAX_UNPACKED_BYTES)
        if not reader.eof:
            raise DataLossError(f"packed functions are cut short, or are over {MAX_UNPACKED_BYTES >> 20} MiB")
        return _decode_packed(text).unpacked()
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, IndexError) as error:
        raise DataLossError(f"packed functions cannot be read: {error}") from None


def functions_of(functions: Sequence[FunctionSpec], payload: bytes) -> Sequence[FunctionSpec]:
    """The functions of a request: of its body, or packed as its payload. InvalidError for both and for bad bytes."""
    if not payload:
        return functions
    if functions:
        raise InvalidError("functions are in the body or in the payload, not in both")
    try:
        return unpack(payload)
    except DataLossError as error:
        raise InvalidError(str(error)) from None


def check_app_name(name: str) -> None:
    """Whether an app may be deployed under this name. InvalidError."""
    if not _WORD.fullmatch(name) or len(name) > MAX_APP_NAME_CHARS:
        raise InvalidError(
            f"the name {name[:80]!r} of an app: letters, digits, '-', '_' and '.' are allowed, 1 to "
            f"{MAX_APP_NAME_CHARS} characters"
        )
    if _APP_ID.fullmatch(name):
        raise InvalidError(f"the name {name!r} looks like an app's id: choose another")


def check_tags(tags: Mapping[str, str]) -> None:
    """InvalidError for tags that are no words, too long or too many."""
    if len(tags) > MAX_TAGS:
        raise InvalidError(f"an app has at most {MAX_TAGS} tags, not {len(tags)}")
    for key, value in tags.items():
        for one in (key, value):
            if not _WORD.fullmatch(one) or len(one) > MAX_TAG_CHARS:
                raise InvalidError(
                    f"tag {key[:80]!r}: names and values are 1 to {MAX_TAG_CHARS} letters, digits, '-', '_' and '.'"
                )


def check_budget(budget: Optional[BudgetSpec]) -> None:
    """InvalidError for a cap that is no positive number, and for a period that there is not."""
    if budget is None:
        return
    if budget.per not in PERIODS:
        raise InvalidError(f"a budget is per day, per month, or for the app's whole life, not {budget.per[:40]!r}")
    for name, value in (("container_seconds", budget.container_s), ("money", budget.money)):
        if not math.isfinite(value) or value < 0:
            raise InvalidError(f"budget: {name} must be a number that is not negative, not {value:g}")
    if not budget.container_s and not budget.money:
        raise InvalidError("a budget caps container_seconds, money, or both")


def check_functions(specs: Sequence[FunctionSpec]) -> None:
    """InvalidError for what can never be run, whichever machine there is."""
    if len(specs) > MAX_FUNCTIONS:
        raise InvalidError(f"an app has at most {MAX_FUNCTIONS} functions, not {len(specs)}")
    seen: set[str] = set()
    for spec in specs:
        fault = _fault(spec, seen)
        if fault:
            raise InvalidError(f"function {spec.name[:MAX_NAME_CHARS]!r}: {fault}")
        seen.add(spec.name)


def _fault(spec: FunctionSpec, seen: set[str]) -> str:
    if not spec.name or len(spec.name) > MAX_NAME_CHARS:
        return f"a name has 1 to {MAX_NAME_CHARS} characters"
    if spec.name in seen:
        return "this name is there twice"
    if not spec.serialized and not (spec.module and spec.qualname):
        return "it names neither a module and a qualified name nor a serialized object"
    for name, value in (("timeout", spec.timeout_s), ("startup_timeout", spec.startup_timeout_s)):
        if not MIN_TIMEOUT_S <= value <= MAX_TIMEOUT_S:
            return f"{name} must be between {MIN_TIMEOUT_S:g} s and {MAX_TIMEOUT_S:g} s (31 years), not {value:g}"
    if spec.retries is not None:
        fault = _retries_fault(spec.retries)
        if fault:
            return fault
        if spec.is_generator and spec.retries.max_retries:
            return "a generator cannot have retries"
    if not MIN_WINDOW_S <= spec.scaledown_window_s <= MAX_WINDOW_S:
        return (
            f"scaledown_window must be between {MIN_WINDOW_S:g} and {MAX_WINDOW_S:g} seconds, "
            f"not {spec.scaledown_window_s:g}"
        )
    for name, count in (
        ("min_containers", spec.min_containers),
        ("max_containers", spec.max_containers),
        ("buffer_containers", spec.buffer_containers),
    ):
        if not 0 <= count <= MAX_CONTAINERS:
            return f"{name} must be between 0 and {MAX_CONTAINERS}, not {count}"
    if 0 < spec.max_containers < spec.min_containers:
        return f"min_containers ({spec.min_containers}) is above max_containers ({spec.max_containers})"
    if not 1 <= spec.max_concurrent <= MAX_CONCURRENT:
        return f"a container takes between 1 and {MAX_CONCURRENT} inputs at once, not {spec.max_concurrent}"
    if not 1 <= spec.target_concurrent <= spec.max_concurrent:
        return f"target_inputs must be between 1 and max_inputs ({spec.max_concurrent}), not {spec.target_concurrent}"
    if not 0 <= spec.batch_max <= MAX_BATCH or not 0 <= spec.batch_wait_ms <= MAX_BATCH_WAIT_MS:
        return f"a batch has at most {MAX_BATCH} inputs and waits at most {MAX_BATCH_WAIT_MS} ms"
    if spec.resources.cpu_milli < 1 or spec.resources.memory_mib < 1:
        return "cpu and memory must be positive"
    if spec.isolation not in ("", "standard", "strong"):
        return f"isolation must be standard or strong, not {spec.isolation[:40]!r}"
    return _schedule_fault(spec)


def _schedule_fault(spec: FunctionSpec) -> str:
    """The server reads the line, not the client (semantics.md section 15)."""
    text = spec.options.get("schedule", "")
    if text and spec.methods:
        return "a class has no schedule: give it to a function that calls the class's method"
    return cron.fault(text, 0.0)


def _retries_fault(retries: RetryPolicy) -> str:
    if not 0 <= retries.max_retries <= 10:
        return f"max_retries must be between 0 and 10, not {retries.max_retries}"
    if not 1 <= retries.backoff_coefficient <= 10:
        return f"backoff_coefficient must be between 1 and 10, not {retries.backoff_coefficient:g}"
    if not 0 <= retries.initial_delay_s <= 60:
        return f"initial_delay must be between 0 and 60 seconds, not {retries.initial_delay_s:g}"
    if not 1 <= retries.max_delay_s <= 60:
        return f"max_delay must be between 1 and 60 seconds, not {retries.max_delay_s:g}"
    return ""
