"""Samples of what containers use."""

from __future__ import annotations

import asyncio
from typing import Any

from cadenza.agent import stats
from cadenza.protocol.nodes import Usage
from cadenza.runtime.driver import Stats


def test_samples_are_told_until_the_end_and_a_fault_is_not_the_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(stats, "SAMPLE_EVERY_S", 0.0)
    told: list[Usage] = []
    faults: list[str] = []
    answers: list[Any] = [OSError("gone"), {}, {"ta-1": Stats(5, 1.5, 2)}]

    async def read() -> Any:
        answer = answers.pop(0) if answers else {}
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def steps() -> None:
        sampler = stats.Sampler(read, told.extend, lambda: 7.0, lambda text, error: faults.append(f"{text}: {error}"))
        sampler.start()
        while answers:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await sampler.close()

    asyncio.run(steps())
    assert told == [Usage("ta-1", 7.0, 1.5, 5, 2)]
    assert faults == ["what containers use could not be read: gone"]
