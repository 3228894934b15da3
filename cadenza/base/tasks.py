"""Several things at once, for callers that want all of them or none."""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Awaitable, Iterable


async def all_or_none(work: Iterable[Awaitable[Any]]) -> None:
    """Run all at once. The first failure is raised after the others were cancelled and have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
