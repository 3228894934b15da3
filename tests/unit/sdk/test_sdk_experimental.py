"""`cadenza.experimental`: semantics.md section 31."""

from __future__ import annotations

from typing import Any

import pytest

import cadenza
from cadenza.base.errors import InvalidError, UnimplementedError
from cadenza.runner import context


class Outbox:
    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def frame(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)


class Executor:
    def __init__(self) -> None:
        self.most = 4
        self.channel = self
        self.outbox = Outbox()

    def resize(self, most: int) -> None:
        self.most = most


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Any:
    one = Executor()
    monkeypatch.setattr(context, "executor", one)
    context.become(context.Container("ta-1", function={"max_concurrent": 8}))
    yield one
    context.become(None)


def test_outside_of_a_container() -> None:
    for ask in (
        cadenza.experimental.stop_fetching_inputs,
        cadenza.experimental.get_local_input_concurrency,
        lambda: cadenza.experimental.set_local_input_concurrency(2),
    ):
        with pytest.raises(InvalidError, match="in a container"):
            ask()


def test_the_container_says_what_it_takes(executor: Executor) -> None:
    assert cadenza.experimental.get_local_input_concurrency() == 4
    cadenza.experimental.set_local_input_concurrency(8)
    assert cadenza.experimental.get_local_input_concurrency() == 8
    cadenza.experimental.stop_fetching_inputs()
    assert [one["t"] for one in executor.outbox.frames] == ["slots", "stop_fetching"]
    with pytest.raises(InvalidError, match="between 1 and 8"):
        cadenza.experimental.set_local_input_concurrency(9)


def test_what_is_not_built_says_so() -> None:
    with pytest.raises(UnimplementedError, match="not built yet"):
        _ = cadenza.experimental.Stream
    with pytest.raises(AttributeError):
        _ = cadenza.experimental.nothing
