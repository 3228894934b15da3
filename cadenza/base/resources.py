"""CPU, memory, GPU and disk as one vector: parse what users write, add, subtract, fit.

Units: CPU in thousandths of a core, memory and disk in MiB, GPUs counted by type. Limits are semantics.md section 11.2
and 11.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Optional, Sequence, Union

from cadenza.base import demand
from cadenza.base.demand import CPU_LIMIT_ABOVE_REQUEST_MILLI as CPU_LIMIT_ABOVE_REQUEST_MILLI
from cadenza.base.demand import DEFAULT_CPU_MILLI as DEFAULT_CPU_MILLI
from cadenza.base.demand import DEFAULT_MEMORY_MIB as DEFAULT_MEMORY_MIB
from cadenza.base.demand import GPU_ALIASES as GPU_ALIASES
from cadenza.base.demand import GPU_TYPES as GPU_TYPES
from cadenza.base.demand import MAX_EPHEMERAL_DISK_MIB as MAX_EPHEMERAL_DISK_MIB
from cadenza.base.demand import MAX_GPUS_PER_CONTAINER as MAX_GPUS_PER_CONTAINER


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


def parse(
    cpu: Union[float, tuple[float, float], None] = None,
    memory: Union[int, tuple[int, int], None] = None,
    gpu: Union[str, Sequence[Optional[str]], None] = None,
    ephemeral_disk: Optional[int] = None,
) -> Resources:
    """What a decorator says, as one vector. Cores as floats, memory and disk in MiB. InvalidError on nonsense."""
    return of(demand.read(cpu, memory, gpu, ephemeral_disk))


def of(numbers: demand.Numbers) -> Resources:
    """The vector of what `demand.read` gave."""
    cpu_milli, memory_mib, cpu_limit_milli, memory_limit_mib, disk_mib, gpus = numbers
    return Resources(
        cpu_milli, memory_mib, cpu_limit_milli, memory_limit_mib, disk_mib, tuple(Gpu(*one) for one in gpus)
    )


def gpu_text(gpus: Sequence[Gpu]) -> str:
    """The preference list as users write it."""
    return demand.gpu_text([(one.type, one.count) for one in gpus])


SERVED_BY = {
    "A100-40GB": ("A100-40GB", "A100-80GB"),
    "H100": ("H100", "H200"),
    "H100!": ("H100",),
    "B200+": ("B200", "B300"),
    "ANY": tuple(one for one in GPU_TYPES if one != "ANY" and one[-1] not in "!+"),
}
"""Which cards serve a wish, the nearest first; others serve their own. Source: semantics.md section 11.3."""


def gpu_choices(gpus: Sequence[Gpu]) -> list[Gpu]:
    """A preference list as cards that there are, in order of preference."""
    return [Gpu(kind, wish.count) for wish in gpus for kind in SERVED_BY.get(wish.type, (wish.type,))]
