"""What users write for cpu, memory, gpu and disk: checked, as plain numbers. `base.resources` makes its vector of them.

Apart from it because a program that only declares functions must not wait for `dataclasses`. Limits are semantics.md
sections 11.2 and 11.3.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    Numbers = tuple[int, int, int, int, int, tuple[tuple[str, int], ...]]
    """The fields of `Resources` in order, GPUs as (type, count)."""

DEFAULT_CPU_MILLI = 125
DEFAULT_MEMORY_MIB = 128
CPU_LIMIT_ABOVE_REQUEST_MILLI = 16_000
MAX_EPHEMERAL_DISK_MIB = 3_145_728
MAX_GPUS_PER_CONTAINER = 8

GPU_ALIASES = {"A10G": "A10", "A100": "A100-40GB"}
GPU_TYPES = (
    "T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "RTX-PRO-6000",
    "H100", "H100!", "H200", "B200", "B200+", "B300", "ANY",
)  # fmt: skip


def gpu(text: str) -> tuple[str, int]:
    """``"h100:2"`` as (type, count). InvalidError names what is wrong."""
    if not isinstance(text, str):
        raise InvalidError(f'gpu must be a string such as "H100" or "A100:2", not {type(text).__name__}')
    name, colon, count_text = text.partition(":")
    count = 1
    if colon:
        try:
            count = int(count_text)
        except ValueError:
            raise InvalidError(f'gpu="{text}": the count after the colon must be an integer') from None
    kind = name.strip().upper()
    kind = GPU_ALIASES.get(kind, kind)
    if kind not in GPU_TYPES:
        raise InvalidError(f'gpu="{text}": unknown type; known are {", ".join(GPU_TYPES)}')
    most = 4 if kind == "A10" else MAX_GPUS_PER_CONTAINER
    if not 1 <= count <= most:
        raise InvalidError(f'gpu="{text}": the count must be between 1 and {most}')
    return kind, count


def gpus(value: Union[str, Sequence[Optional[str]], None]) -> tuple[tuple[str, int], ...]:
    """A user's ``gpu=``: None, a string, or a list in order of preference."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (gpu(value),)
    if isinstance(value, (list, tuple)):
        return tuple(gpu(one) for one in value if one is not None)
    raise InvalidError(
        f'gpu must be a string or a list of strings such as ["H100", "A100:2"], not {type(value).__name__}'
    )


def gpu_text(wishes: Sequence[tuple[str, int]]) -> str:
    """The preference list as users write it."""
    return ", ".join(kind if count == 1 else f"{kind}:{count}" for kind, count in wishes)


def _pair(name: str, value: Any, kinds: tuple[type, ...], what: str) -> tuple[Any, Any]:
    if isinstance(value, tuple):
        if len(value) != 2:
            raise InvalidError(f"{name} as a tuple is (request, limit); got {len(value)} values")
        request, limit = value
    else:
        request, limit = value, None
    for one in (request, limit):
        if one is not None and (isinstance(one, bool) or not isinstance(one, kinds)):
            raise InvalidError(f"{name} must be {what} or a tuple (request, limit), not {type(one).__name__}")
        if isinstance(one, (int, float)) and one <= 0:
            raise InvalidError(f"{name} must be positive, got {one}")
    if request is not None and limit is not None and limit < request:
        raise InvalidError(f"{name}: the limit {limit} is below the request {request}")
    return request, limit


def read(
    cpu: Union[float, tuple[float, float], None] = None,
    memory: Union[int, tuple[int, int], None] = None,
    gpu: Union[str, Sequence[Optional[str]], None] = None,
    ephemeral_disk: Optional[int] = None,
) -> Numbers:
    """What a decorator says. Cores as floats, memory and disk in MiB. InvalidError on nonsense."""
    cpu_request, cpu_limit = _pair("cpu", cpu, (int, float), "a number of cores")
    memory_request, memory_limit = _pair("memory", memory, (int,), "an integer of MiB")
    if ephemeral_disk is not None and (isinstance(ephemeral_disk, bool) or not isinstance(ephemeral_disk, int)):
        raise InvalidError(f"ephemeral_disk must be an integer of MiB, not {type(ephemeral_disk).__name__}")
    if ephemeral_disk is not None and not 0 < ephemeral_disk <= MAX_EPHEMERAL_DISK_MIB:
        raise InvalidError(f"ephemeral_disk must be between 1 and {MAX_EPHEMERAL_DISK_MIB} MiB, got {ephemeral_disk}")
    cpu_milli = DEFAULT_CPU_MILLI if cpu_request is None else max(1, round(cpu_request * 1000))
    return (
        cpu_milli,
        DEFAULT_MEMORY_MIB if memory_request is None else memory_request,
        cpu_milli + CPU_LIMIT_ABOVE_REQUEST_MILLI if cpu_limit is None else round(cpu_limit * 1000),
        memory_limit or 0,
        ephemeral_disk or 0,
        gpus(gpu),
    )
