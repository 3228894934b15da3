"""The pool's decisions."""

from __future__ import annotations

from cadenza.agent.pool import MAX_IMAGES, UNUSED_LIMIT_S, Kind, Plan, plan

A, B, C = (Kind(f"im-{name}", "standard") for name in "abc")
STRONG = Kind("im-a", "strong")
IMAGES = ("im-a", "im-b", "im-c")


def test_one_is_made_for_what_was_used() -> None:
    assert plan({A: 0.0}, IMAGES, {}, 1, False, 1.0) == Plan(make=(A,))
    assert plan({A: 0.0}, IMAGES, {"x": A}, 1, False, 1.0) == Plan()


def test_nothing_is_made_while_somebody_waits_for_a_start() -> None:
    assert plan({A: 0.0}, IMAGES, {}, 1, True, 1.0) == Plan()


def test_only_the_last_images_have_warm_containers() -> None:
    used = {A: 1.0, B: 2.0, C: 3.0}
    found = plan(used, IMAGES, {"a": A, "b": B}, 1, False, 4.0)
    assert found == Plan(make=(C,), end=("a",))
    assert MAX_IMAGES == 2


def test_an_image_may_have_both_levels_of_isolation() -> None:
    assert plan({A: 1.0, STRONG: 2.0, B: 3.0}, IMAGES, {"a": A, "s": STRONG, "b": B}, 1, False, 4.0) == Plan()


def test_unused_images_lose_theirs() -> None:
    assert plan({A: 0.0}, IMAGES, {"a": A}, 1, False, UNUSED_LIMIT_S) == Plan(end=("a",))
    assert plan({A: 0.0}, ("im-b",), {"a": A}, 1, False, 1.0) == Plan(end=("a",))


def test_zero_turns_it_off_and_surplus_ends() -> None:
    assert plan({A: 0.0}, IMAGES, {"a": A}, 0, False, 1.0) == Plan(end=("a",))
    assert plan({A: 0.0}, IMAGES, {"a": A, "b": A, "c": A}, 2, False, 1.0) == Plan(end=("c",))
