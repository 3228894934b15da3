"""What a decorator says of its containers. Source: semantics.md sections 8, 11, 17 and 34."""

from __future__ import annotations

from typing import Any

import pytest

from cadenza import Cron, Secret
from cadenza.exception import InvalidError
from cadenza.sdk.options import read_options


def read(**given: Any) -> Any:
    return read_options("@app.function", **given)


def test_defaults() -> None:
    found = read()
    assert (found.timeout_s, found.startup_timeout_s, found.scaledown_window_s) == (300, 300, 60)
    assert (found.min_containers, found.max_containers, found.buffer_containers) == (0, 0, 0)
    assert found.retries is None
    assert found.carried == {}
    assert found.unbuilt == ()


def test_the_start_has_the_same_limit_as_the_run() -> None:
    assert read(timeout=7).startup_timeout_s == 7
    assert read(timeout=7, startup_timeout=9).startup_timeout_s == 9


@pytest.mark.parametrize("timeout", [0, 86_401, 1.5])
def test_the_server_checks_the_range_of_timeouts(timeout: Any) -> None:
    assert read(timeout=timeout).timeout_s == timeout


@pytest.mark.parametrize(
    "given",
    [
        {"timeout": None},
        {"timeout": "5"},
        {"timeout": True},
        {"timeout": -1},
        {"startup_timeout": "5"},
        {"min_containers": 3, "max_containers": 2},
        {"min_containers": 1.0},
        {"min_containers": True},
        {"max_containers": 0},
        {"buffer_containers": -1},
        {"scaledown_window": 1},
        {"scaledown_window": 3601},
        {"gpu": "H100:x"},
        {"gpu": "H1000"},
        {"gpu": 3},
        {"cpu": "2"},
        {"cpu": -1},
        {"memory": 1.5},
        {"memory": (1024, 512)},
        {"ephemeral_disk": 3_145_729},
        {"retries": "3"},
        {"schedule": "* * * * *"},
        {"env": {"A": 1}},
        {"secrets": [{"A": "1"}]},
        {"cloud": 1},
        {"region": [1]},
        {"nonpreemptible": "yes"},
        {"single_use_containers": 1},
        {"volumes": {"/": 1}},
        {"volumes": {"/root": 1}},
        {"volumes": {"/root/": 1}},
        {"volumes": {"/tmp": 1}},
        {"volumes": {"data": 1}},
        {"volumes": {"/a": 1, "/a/": 2}},
        {"volumes": ["/a"]},
    ],
)
def test_what_can_never_work(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        read(**given)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["timeout", "startup_timeout"])
def test_times_are_finite(name: str, value: float) -> None:
    with pytest.raises(InvalidError, match=f"{name} must be a finite number"):
        read(**{name: value})


def test_one_volume_at_two_places() -> None:
    volume = object()
    with pytest.raises(InvalidError, match="more than one path"):
        read(volumes={"/a": volume, "/b": volume})


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"volumes": {"/data": object()}}, "volumes"),
        ({"proxy": object()}, "proxy"),
        ({"i6pn": True}, "i6pn"),
    ],
)
def test_what_is_not_built_is_noted_and_not_ignored(given: dict[str, Any], word: str) -> None:
    assert word in " ".join(read(**given).unbuilt)


def test_what_is_carried() -> None:
    found = read(
        region=["eu", "us-east"],
        cloud="aws",
        nonpreemptible=True,
        enable_memory_snapshot=True,
        schedule=Cron("0 9 * * 1"),
        experimental_options={"x": 1},
    )
    assert found.carried["region"] == "eu,us-east"
    assert found.carried["cloud"] == "aws"
    assert found.carried["nonpreemptible"] == "1"
    assert found.carried["memory_snapshot"] == "1"
    assert '"0 9 * * 1"' in found.carried["schedule"]
    assert found.carried["experimental"] == '{"x": 1}'


def test_resources_and_variables() -> None:
    found = read(cpu=(0.5, 2), memory=256, env={"A": "1", "B": None}, secrets=[Secret.from_dict({"C": "1"})])
    assert (found.resources.cpu_milli, found.resources.cpu_limit_milli, found.resources.memory_mib) == (500, 2000, 256)
    assert found.env == {"A": "1"}
    assert len(found.secrets) == 1
