"""Histograms, slices and the table of metrics (semantics.md section 26)."""

from __future__ import annotations

import math
import random

import pytest

from cadenza.observe import histogram
from cadenza.observe.names import CURVES, METRICS, PREFIX
from cadenza.observe.slice import Slice, merged, pack, unpack

NAMES_OF_SECTION_26 = {
    "modal.cpu.utilization", "modal.memory.usage", "modal.gpu.memory.usage", "modal.gpu.compute.utilization",
    "modal.container.running", "modal.input_events.elapsed_time_us", "modal.input_events.input_queue_time_us",
    "modal.input_events.coldstart_time_us", "modal.input_events.successes", "modal.input_events.total_inputs",
    "modal.function.pending_inputs", "modal.function.running_inputs",
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_percentiles_are_within_six_percent(seed: int) -> None:
    source = random.Random(seed)
    values = sorted(math.exp(source.gauss(-3.0, 2.0)) for _ in range(5_000))
    counts = histogram.counted(values)
    for percent in histogram.PERCENTILES:
        true = values[int(len(values) * percent / 100.0) - 1]
        assert histogram.percentile(counts, percent) == pytest.approx(true, rel=0.065)


def test_values_outside_of_all_buckets_are_counted() -> None:
    counts = histogram.counted([0.0, 1e-9, 1e9])
    assert sum(counts.values()) == 3
    assert 0.0 <= histogram.percentile(counts, 10.0) <= histogram.SMALLEST_S
    assert histogram.percentile(counts, 100.0) >= 1e5
    assert histogram.percentile({}, 50.0) == 0.0
    assert histogram.percentiles({}) == {}


def test_cumulative_counts_grow_to_the_whole() -> None:
    counts = histogram.counted([0.002, 0.02, 0.2, 2.0, 1e9])
    assert histogram.cumulative(counts, (0.001, 0.01, 0.1, 1.0, 10.0)) == [0, 1, 2, 3, 4, 5]
    assert histogram.cumulative(histogram.counted([0.01]), (0.01,)) == [1, 1]


def test_slices_merge_and_are_kept_as_they_were() -> None:
    one, other = Slice(), Slice()
    one.count("SUCCESS", 2)
    one.sample("running", 3)
    one.durations("run", [0.1, 0.2])
    other.count("SUCCESS")
    other.sample("running", 1)
    other.durations("run", [0.4], weight=10)
    both = merged([one, other])
    assert both.counts == {"SUCCESS": 3}
    assert both.sums["running"] == [2, 4, 3, 1]
    assert (both.mean("running"), both.most("running"), both.last("running")) == (2.0, 3.0, 1.0)
    assert sum(both.times["run"].values()) == 12
    assert unpack(pack(both)) == both
    assert one.counts == {"SUCCESS": 2}


def test_a_slice_of_nothing_is_empty_and_damage_is_one() -> None:
    idle, busy = Slice(), Slice()
    idle.sample("running", 0)
    busy.sample("running", 1)
    assert idle.empty
    assert not busy.empty
    assert unpack(b"not a slice").empty


def test_every_name_of_section_26_is_there_once() -> None:
    names = [f"{PREFIX}.{one.name}" for one in METRICS]
    assert set(names) >= NAMES_OF_SECTION_26
    assert len(names) == len(set(names))
    curves = [one.name for one in CURVES]
    assert len(curves) == len(set(curves))


def test_curves_read_a_slice() -> None:
    one = Slice()
    one.count("SUCCESS", 3)
    one.count("FAILURE")
    one.durations("run", [0.5])
    by_name = {curve.name: curve.read(one) for curve in CURVES}
    assert by_name["modal.input_events.total_inputs"] == 4.0
    assert by_name["modal.input_events.successes"] == 3.0
    assert by_name["modal.input_events.elapsed_time_us"] == pytest.approx(500_000.0)
    assert by_name["modal.input_events.elapsed_time_us.p95"] == pytest.approx(500_000.0, rel=0.07)
    assert by_name["modal.cpu.utilization"] is None
