"""Waiting while the server has no room for a call. Source: semantics.md sections 2 and 3.4.

Only for the limits of section 3.4 is it waited, which calls that end make room in: a disk that is full, say, is told.

The setting ``max_throttle_wait`` says for how many seconds: None for ever, 0 not at all.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from typing import Awaitable, Callable, Optional, TypeVar

from cadenza.base.errors import ResourceExhaustedError, ServerWarning

T = TypeVar("T")

FIRST_DELAY_S, MOST_DELAY_S = 0.1, 5.0
"""Doubled from try to try."""
WARN_EVERY_S = 30.0


def next_delay_s(tries: int, chance: float) -> float:
    """How long to wait after ``tries`` refusals. ``chance``, 0 to 1, spreads callers that were refused together."""
    return min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(tries - 1, 16)) * (0.75 + 0.5 * chance)


def may_pass(error: ResourceExhaustedError) -> bool:
    """Whether to wait: not where the server says that it is no limit on waiting calls."""
    return error.throttle is not False


async def until_room(attempt: Callable[[], Awaitable[T]], function: object, verb: str) -> T:
    """``attempt()`` until it is not refused for want of room; ``function`` and ``verb`` are for the warnings. The
    refusal itself once ``max_throttle_wait`` is over. ``attempt`` must leave nothing behind where it is refused."""
    try:
        return await attempt()
    except ResourceExhaustedError as error:
        most_s = _most_s()
        if not may_pass(error) or (most_s is not None and most_s <= 0):
            raise
    now = asyncio.get_running_loop().time
    began = now()
    warn_at = began + WARN_EVERY_S
    tries = 1
    while True:
        delay_s = next_delay_s(tries, os.urandom(1)[0] / 255)
        if most_s is not None:
            delay_s = min(delay_s, max(0.0, began + most_s - now()))
        await asyncio.sleep(delay_s)
        try:
            return await attempt()
        except ResourceExhaustedError as error:
            at = now()
            if not may_pass(error) or (most_s is not None and at - began >= most_s):
                raise
            if at >= warn_at:
                warn_at = at + WARN_EVERY_S
                warnings.warn(
                    f"{function!r}.{verb}() has waited {at - began:.0f} s for room at the server ({error}). "
                    "Set max_throttle_wait to give up after so many seconds",
                    ServerWarning,
                    stacklevel=2,
                )
        tries += 1


def _most_s() -> Optional[float]:
    from cadenza.base import config

    return config.load().max_throttle_wait
