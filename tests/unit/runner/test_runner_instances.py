"""Instances of users' classes, their hooks and methods, with marks made by hand. semantics.md 12.1, 12.2."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from cadenza.runner import instances


class Mark:
    def __init__(self, raw: Any, part: str) -> None:
        self.__cadenza_raw__ = raw
        self.__cadenza_part__ = part

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        return self.__cadenza_raw__.__get__(obj, owner)


class Parameter:
    __slots__ = ("__cadenza_default__",)

    def __init__(self, *default: Any) -> None:
        if default:
            self.__cadenza_default__ = default[0]


def part(name: str) -> Callable[[Any], Any]:
    return lambda raw: Mark(raw, name)


class Base:
    x: int = Parameter(3)  # type: ignore[assignment]
    name: str = Parameter()  # type: ignore[assignment]

    @part("enter")
    def first(self) -> str:
        return "base first"

    @part("enter_snap")
    def early(self) -> str:
        return "base early"

    @part("exit")
    def over(self) -> str:
        return "base over"

    @part("method")
    def work(self) -> str:
        return "base work"

    def plain(self) -> str:
        return "plain"


class Derived(Base):
    y: bool = Parameter(False)  # type: ignore[assignment]

    @part("enter")
    def second(self) -> str:
        return "derived second"

    @part("enter")
    def first(self) -> str:
        return "derived first"

    @part("method")
    def more(self) -> str:
        return "derived more"


def names(functions: list[Any]) -> list[str]:
    return [one(None) for one in functions]


def test_base_classes_come_first_and_an_override_stands_at_its_bases_place() -> None:
    assert names(instances.enters(Derived, False)) == ["derived first", "derived second"]
    assert names(instances.enters(Derived, True)) == ["base early"]
    assert names(instances.exits(Derived)) == ["base over"]
    assert {name: one(None) for name, one in instances.methods(Derived).items()} == {
        "work": "base work",
        "more": "derived more",
    }


def test_an_override_without_a_decorator_keeps_its_bases_part_and_none_takes_it_away() -> None:
    class Plain(Base):
        def first(self) -> str:
            return "plain first"

        over = None

        @part("method")
        def early(self) -> str:
            return "a method now"

    assert names(instances.enters(Plain, False)) == ["plain first"]
    assert instances.exits(Plain) == []
    assert instances.enters(Plain, True) == []
    assert list(instances.methods(Plain)) == ["early", "work"]


def test_two_bases_with_a_common_one_run_each_hook_once_in_reversed_resolution_order() -> None:
    class Left(Base):
        @part("enter")
        def left(self) -> str:
            return "left"

    class Right(Base):
        @part("enter")
        def right(self) -> str:
            return "right"

    class Both(Left, Right):
        pass

    assert names(instances.enters(Both, False)) == ["base first", "right", "left"]


def test_an_instance_has_its_parameters_and_no_constructor_was_called() -> None:
    class WithInit(Derived):
        def __init__(self) -> None:
            raise AssertionError("called")

    made = instances.make(WithInit, {"name": "a", "y": True})
    assert (made.x, made.name, made.y) == (3, "a", True)
    assert made.plain() == "plain"
    assert made.work() == "base work"
    assert list(instances.parameters(Derived)) == ["x", "name", "y"]


def test_a_plain_value_in_a_subclass_is_no_parameter_any_more() -> None:
    class Fixed(Base):
        x = 9
        name = "n"

    assert instances.make(Fixed, {}).x == 9
    with pytest.raises(TypeError, match="it has none"):
        instances.make(Fixed, {"x": 1})


def test_unknown_and_missing_parameters_are_type_errors() -> None:
    with pytest.raises(TypeError, match="unexpected parameter 'z'; it has x, name, y"):
        instances.make(Derived, {"name": "a", "z": 1})
    with pytest.raises(TypeError, match="misses its parameter 'name'"):
        instances.make(Derived, {"x": 1})
