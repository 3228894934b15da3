"""Statistics, metrics and declarations as users get them (semantics.md sections 11.1, 26, 31)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from cadenza.base.errors import InvalidError
from cadenza.base.resources import Gpu
from cadenza.protocol.stats import Distribution, FunctionDetails, MetricSeries, Metrics
from cadenza.sdk import metrics, stats

UTC = timezone.utc


def test_ranges() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    assert stats.moments("x", None, None) == (0.0, 0.0)
    assert stats.moments("x", begin, begin + timedelta(hours=1)) == (begin.timestamp(), begin.timestamp() + 3600)
    with pytest.raises(InvalidError, match="since must be before until"):
        stats.moments("x", begin, begin)
    with pytest.raises(InvalidError, match="until must be a datetime"):
        stats.moments("x", None, "now")  # type: ignore[arg-type]


def test_distributions() -> None:
    found = stats.distributions({"queue_time": Distribution("s", {"50": 0.5, "99.9": 2.0})})["queue_time"]
    assert (found.unit, [(one.percentile, one.value) for one in found.percentiles]) == ("s", [(50.0, 0.5), (99.9, 2.0)])


def test_every_bucket_of_the_range_is_there() -> None:
    series = MetricSeries("modal.cpu.utilization", "cores", "avg", "CPU", (60.0, 180.0), (0.5, 1.0))
    found = metrics.exported("fu-1", Metrics(70.0, 240.0, 60.0, (series,)))
    assert (found.point_count, found.bucket_size) == (3, timedelta(minutes=1))
    points = found["modal.cpu.utilization"].points
    assert [(one.time.timestamp(), one.value) for one in points] == [(60.0, 0.5), (120.0, None), (180.0, 1.0)]
    assert points[0].time.tzinfo is UTC
    with pytest.raises(KeyError):
        found["modal.disk"]


def test_groups_are_checked() -> None:
    assert metrics._groups("x", None) == ()
    assert metrics._groups("x", ["cpu"]) == ("cpu",)
    for wrong in ("cpu", ["disk"]):
        with pytest.raises(InvalidError):
            metrics._groups("x", wrong)


def test_a_declaration() -> None:
    found = stats.described(
        FunctionDetails(
            "fu-1", "ap-1", "im-1", cpu_milli=500, memory_mib=256, memory_limit_mib=512, gpus=(Gpu("T4", 2),),
            timeout_s=60.0, max_concurrent=10, target_concurrent=8, batch_max=4, batch_wait_ms=100,
            secrets=("vault",), options={"region": "eu,us", "nonpreemptible": "1"},
        )
    )  # fmt: skip
    assert (found.cpu, found.memory_mib, found.gpus) == (0.5, (256, 512), [("T4", 2)])
    assert found.concurrency_info is not None
    assert (found.concurrency_info.max_inputs, found.concurrency_info.target_inputs) == (10, 8)
    assert found.batching_info is not None
    assert (found.batching_info.max_batch_size, found.batching_info.wait_ms) == (4, 100)
    assert (found.regions, found.nonpreemptible, found.secrets, found.timeout) == (["eu", "us"], True, ["vault"], 60)
    assert (found.image_info.image_id, found.startup_timeout, found.method_names) == ("im-1", None, None)
