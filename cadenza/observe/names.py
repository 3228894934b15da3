"""The metrics by name: one table for the command, the SDK, Prometheus and OpenTelemetry.

Names and their units are those of semantics.md section 26; those it does not have follow its pattern. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

from cadenza.observe import histogram
from cadenza.observe.slice import Slice
from cadenza.protocol.statuses import STATUSES, SUCCESS

COUNT, GAUGE, TIME = "count", "gauge", "time"
PREFIX = "modal"
FAILED_STATUSES = tuple(one for one in STATUSES if one != SUCCESS)


@dataclass(frozen=True)
class Metric:
    """One quantity. ``source`` is its name in a `Slice`; of a count, several are added up."""

    name: str
    """Without the prefix and its dot."""
    group: str
    kind: str
    unit: str
    source: tuple[str, ...]
    description: str
    scale: float = 1.0
    """What a value of a slice is multiplied by."""


METRICS: tuple[Metric, ...] = (
    Metric("container.running", "containers", GAUGE, "containers", ("containers",), "Containers that are ready."),
    Metric("container.creating", "containers", GAUGE, "containers", ("creating",), "Containers that are starting."),
    Metric("container.started", "containers", COUNT, "containers", ("started",), "Containers that became ready."),
    Metric("container.failed", "containers", COUNT, "containers", ("failed",), "Containers that ended by a failure."),
    Metric(
        "container.start_time_us", "containers", TIME, "us", ("start",), "From the wish for one to its readiness.",
        1e6,
    ),
    Metric("cpu.utilization", "cpu", GAUGE, "cores", ("cpu",), "CPU cores that a container uses."),
    Metric("memory.usage", "memory", GAUGE, "bytes", ("memory",), "Memory that a container uses."),
    Metric("gpu.memory.usage", "gpu", GAUGE, "bytes", ("gpu_memory",), "GPU memory that a container uses."),
    Metric("gpu.compute.utilization", "gpu", GAUGE, "percent", ("gpu",), "How busy a container's GPUs are."),
    Metric("input_events.total_inputs", "calls", COUNT, "inputs", STATUSES, "Inputs that ended."),
    Metric("input_events.successes", "calls", COUNT, "inputs", (SUCCESS,), "Inputs that succeeded."),
    Metric("input_events.failures", "calls", COUNT, "inputs", FAILED_STATUSES, "Inputs that ended otherwise."),
    Metric("input_events.elapsed_time_us", "calls", TIME, "us", ("run",), "How long inputs ran.", 1e6),
    Metric("input_events.input_queue_time_us", "calls", TIME, "us", ("queue",), "How long inputs waited to run.", 1e6),
    Metric(
        "input_events.coldstart_time_us", "calls", TIME, "us", ("cold",),
        "How much of that inputs waited for a container that was starting.", 1e6,
    ),
    Metric("function.pending_inputs", "calls", GAUGE, "inputs", ("pending",), "Inputs that wait."),
    Metric("function.running_inputs", "calls", GAUGE, "inputs", ("running",), "Inputs that run."),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One series that a chart can show: a metric and how a bucket's values become one."""

    name: str
    group: str
    unit: str
    aggregation: str
    description: str
    read: Callable[[Slice], float | None]


def _curves() -> tuple[Curve, ...]:
    found = []
    for one in METRICS:
        name = f"{PREFIX}.{one.name}"
        if one.kind == COUNT:
            found.append(Curve(name, one.group, one.unit, "sum", one.description, _counting(one.source)))
        elif one.kind == GAUGE:
            found.append(Curve(name, one.group, one.unit, "avg", one.description, _averaging(one.source[0])))
            text = f"{one.description} The largest sample."
            found.append(Curve(f"{name}.max", one.group, one.unit, "max", text, _largest(one.source[0])))
        else:
            found.append(
                Curve(
                    name, one.group, one.unit, "avg", f"{one.description} Mean.", _averaging(one.source[0], one.scale)
                )
            )
            for percent in (50.0, 95.0, 99.0):
                aggregation = f"p{percent:g}"
                read = _ranking(one.source[0], percent, one.scale)
                text = f"{one.description} Percentile {percent:g}."
                found.append(Curve(f"{name}.{aggregation}", one.group, one.unit, aggregation, text, read))
    return tuple(found)


def _counting(sources: Sequence[str]) -> Callable[[Slice], float | None]:
    return lambda one: float(sum(one.counts.get(name, 0) for name in sources))


def _averaging(source: str, scale: float = 1.0) -> Callable[[Slice], float | None]:
    return lambda one: one.mean(source) * scale if source in one.sums else None


def _largest(source: str) -> Callable[[Slice], float | None]:
    return lambda one: one.most(source) if source in one.sums else None


def _ranking(source: str, percent: float, scale: float) -> Callable[[Slice], float | None]:
    def read(one: Slice) -> float | None:
        counts = one.times.get(source)
        return histogram.percentile(counts, percent) * scale if counts else None

    return read


CURVES = _curves()
