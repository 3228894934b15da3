"""What this machine has for containers: cores, memory, disk, from /proc and the agent's own cgroup."""

from __future__ import annotations

import os
import shutil

from cadenza.base.resources import Resources

CPU_OVERCOMMIT = 4
"""Requests may add up to so many times the cores: most containers wait most of the time, and shares decide the rest."""
SYSTEM_SHARE = 0.1
SYSTEM_MIN_MIB, SYSTEM_MAX_MIB = 256, 4096
"""What is left for the system and for the server itself: a tenth of the memory, within these bounds."""
DISK_SHARE = 0.1


def _number(path: str) -> int:
    """The number in a file of the kernel's; 0 when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def memory_mib() -> int:
    """The memory that this process and its containers may use, in MiB."""
    total = 0
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) // 1024
    for limit in (_number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if 0 < limit < total << 20:
            total = limit >> 20
    return total


def cores() -> int:
    """How many cores this process may use; at least 1."""
    return max(1, len(os.sched_getaffinity(0)))


def measure(data_dir: str) -> Resources:
    """The capacity that is reported: requests are counted against it."""
    memory = memory_mib()
    spared = min(SYSTEM_MAX_MIB, max(SYSTEM_MIN_MIB, int(memory * SYSTEM_SHARE)))
    free = shutil.disk_usage(data_dir).free >> 20
    return Resources(
        cpu_milli=cores() * 1000 * CPU_OVERCOMMIT,
        memory_mib=max(128, memory - spared),
        disk_mib=int(free * (1 - DISK_SHARE)),
    )
