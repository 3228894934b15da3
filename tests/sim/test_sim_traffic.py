"""The autoscaler under traffic of several shapes: what must always hold. Semantics: section 11.1.

The bounds are generous: a change that breaks one has made something much worse. ``python bench/traffic.py`` prints the
numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from traffic import SHAPES, TIMES, Trace, clairvoyant, engine, trace

RATE, FOR_S, MEAN_S = 10.0, 120.0, 0.5
MOST_TIMES_IDEAL = {
    (0.05, "burst"): 200.0,  # the window: each container is idle for 60 s after its half second
    (1.0, "burst"): 50.0,
    (20.0, "burst"): 2.0,
    (20.0, "on-off"): 10.0,
}
"""Container-seconds, by start and shape, at most so many times what the clairvoyant scaler has; else `ELSE`."""
ELSE = 8.0


def longest_wait_s(start_s: float) -> float:
    """Nobody waits longer than for two starts, one of them begun when the first inputs have shown how long they take,
    and what then remains."""
    return 2 * start_s + 3 * MEAN_S


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_traffic(shape: str, times: str) -> None:
    for seed in (1, 2):
        what = trace(shape, times, RATE, FOR_S, MEAN_S, seed)
        for start_s in (0.05, 1.0, 20.0):
            ours, ideal = engine(what, start_s), clairvoyant(what, start_s)
            case = f"{shape}, {times}, start {start_s:g} s, seed {seed}"
            assert ours.unfinished == 0 and len(ours.waits) == len(what.arrivals), case
            assert max(ours.waits) <= longest_wait_s(start_s), case
            ratio = ours.container_s / ideal.container_s
            assert ratio <= MOST_TIMES_IDEAL.get((start_s, shape), ELSE), f"{case}: {ratio:.2f}"


def test_a_steady_load_above_the_first_step_grows_the_pool_and_does_not_overshoot() -> None:
    """48 inputs run at once where starts take 20 s and 32 containers are the first step."""
    what = trace("step", "fixed", 60.0, 180.0, 0.8)
    ours = engine(what, 20.0)
    assert ours.unfinished == 0
    assert max(ours.waits[len(ours.waits) // 2 :]) < 1.0, "half of the time later it is there"
    assert 48 <= ours.containers <= 200


def test_a_cap_is_kept_and_its_queue_moves_as_it_can() -> None:
    what = trace("burst", "fixed", RATE, FOR_S, MEAN_S)
    ours, ideal = engine(what, 1.0, max_containers=10), clairvoyant(what, 1.0, 10)
    assert ours.containers == ideal.containers == 10
    assert max(ours.waits) <= max(ideal.waits) + 1.0 + 1e-3, "the start, which the other one makes before"


def test_the_clairvoyant_scaler() -> None:
    """By hand: starts of 1 s, three inputs at once, one right after them, one much later."""
    what = Trace((10.0, 10.0, 10.0, 10.5, 100.0), (0.5, 1.0, 2.0, 1.0, 1.0))
    found = clairvoyant(what, 1.0)
    assert found.waits == (0.0,) * 5
    assert found.containers == 4, "three, one of which takes the fourth input; and one more much later"
    assert found.container_s == pytest.approx(3 * 1.0 + 1.5 + 1.0 + 2.0 + (1.0 + 1.0))
    capped = clairvoyant(what, 1.0, 2)
    assert capped.waits == (0.0, 0.0, 0.5, 0.5, 0.0) and capped.containers == 3
