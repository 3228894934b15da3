"""CPU, memory, GPU and disk as one vector: parse what users write, add, subtract, fit.

Units: CPU in thousandths of a core, memory and disk in MiB, GPUs counted by type. Limits are semantics.md section 11.2
and 11.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Optional, Sequence, Union

from cadenza.base.errors import InvalidError

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


@dataclass(frozen=True)
class Gpu:
    """One line of a GPU preference list: ``type`` is one of `GPU_TYPES`, ``count`` at least 1, all on one machine."""

    type: str
    count: int = 1


@dataclass(frozen=True)
class Resources:
    """What a container asks for and what a node has. A limit of 0 means none."""

    cpu_milli: int = DEFAULT_CPU_MILLI
    memory_mib: int = DEFAULT_MEMORY_MIB
    cpu_limit_milli: int = 0
    memory_limit_mib: int = 0
    disk_mib: int = 0
    gpus: tuple[Gpu, ...] = field(default_factory=tuple)

    def plus(self, other: Resources) -> Resources:
        """Requests added; limits and GPUs of the left side are kept."""
        return replace(
            self,
            cpu_milli=self.cpu_milli + other.cpu_milli,
            memory_mib=self.memory_mib + other.memory_mib,
            disk_mib=self.disk_mib + other.disk_mib,
        )

    def minus(self, other: Resources) -> Resources:
        """Requests taken away; limits and GPUs of the left side are kept."""
        return replace(
            self,
            cpu_milli=self.cpu_milli - other.cpu_milli,
            memory_mib=self.memory_mib - other.memory_mib,
            disk_mib=self.disk_mib - other.disk_mib,
        )

    def fits_in(self, room: Resources) -> bool:
        """Whether the requests fit into ``room``, GPUs aside (placement matches those by type)."""
        return (
            self.cpu_milli <= room.cpu_milli and self.memory_mib <= room.memory_mib and self.disk_mib <= room.disk_mib
        )


def parse_gpu(text: str) -> Gpu:
    """``"h100:2"`` to `Gpu`. InvalidError names what is wrong."""
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
    return Gpu(kind, count)


def parse_gpus(value: Union[str, Sequence[Optional[str]], None]) -> tuple[Gpu, ...]:
    """A user's ``gpu=``: None, a string, or a list in order of preference."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (parse_gpu(value),)
    if isinstance(value, (list, tuple)):
        return tuple(parse_gpu(one) for one in value if one is not None)
    raise InvalidError(
        f'gpu must be a string or a list of strings such as ["H100", "A100:2"], not {type(value).__name__}'
    )


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


def parse(
    cpu: Union[float, tuple[float, float], None] = None,
    memory: Union[int, tuple[int, int], None] = None,
    gpu: Union[str, Sequence[Optional[str]], None] = None,
    ephemeral_disk: Optional[int] = None,
) -> Resources:
    """What a decorator says, as one vector. Cores as floats, memory and disk in MiB. InvalidError on nonsense."""
    cpu_request, cpu_limit = _pair("cpu", cpu, (int, float), "a number of cores")
    memory_request, memory_limit = _pair("memory", memory, (int,), "an integer of MiB")
    if ephemeral_disk is not None and (isinstance(ephemeral_disk, bool) or not isinstance(ephemeral_disk, int)):
        raise InvalidError(f"ephemeral_disk must be an integer of MiB, not {type(ephemeral_disk).__name__}")
    if ephemeral_disk is not None and not 0 < ephemeral_disk <= MAX_EPHEMERAL_DISK_MIB:
        raise InvalidError(f"ephemeral_disk must be between 1 and {MAX_EPHEMERAL_DISK_MIB} MiB, got {ephemeral_disk}")
    cpu_milli = DEFAULT_CPU_MILLI if cpu_request is None else max(1, round(cpu_request * 1000))
    return Resources(
        cpu_milli=cpu_milli,
        memory_mib=DEFAULT_MEMORY_MIB if memory_request is None else memory_request,
        cpu_limit_milli=cpu_milli + CPU_LIMIT_ABOVE_REQUEST_MILLI if cpu_limit is None else round(cpu_limit * 1000),
        memory_limit_mib=memory_limit or 0,
        disk_mib=ephemeral_disk or 0,
        gpus=parse_gpus(gpu),
    )


def gpu_text(gpus: Sequence[Gpu]) -> str:
    """The preference list as users write it."""
    return ", ".join(one.type if one.count == 1 else f"{one.type}:{one.count}" for one in gpus)


def gpu_inventory_fits(gpus: Sequence[Gpu], free: Mapping[str, int]) -> Optional[Gpu]:
    """The first wish that ``free`` (count by type) can serve, or None. ``ANY`` takes whichever type has room."""
    for wish in gpus:
        if wish.type == "ANY":
            for kind, count in sorted(free.items()):
                if count >= wish.count:
                    return Gpu(kind, wish.count)
        elif free.get(wish.type.rstrip("!+"), 0) >= wish.count:
            return Gpu(wish.type.rstrip("!+"), wish.count)
    return None
