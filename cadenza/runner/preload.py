"""While a generic container waits for a function, load what most functions load first: their import then takes a
fifth of the time.

Nothing here looks at the environment when it is imported, since the function's variables come with it. `site` is only
loaded, not run, because the function may bring its own paths.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

PAUSE_S = 0.25
"""How long nothing must have come before it begins: what is wanted at once is not held up, nor is the start of the
function whose place in the pool this container takes (the whole costs about 0.1 s of CPU time)."""

MODULES = (
    "cadenza.runner.surroundings", "cadenza.runner.streams", "cadenza.runner.execute", "cadenza.runner.loader",
    "cadenza.runner.lane", "site", "faulthandler", "atexit", "re", "json", "typing", "dataclasses", "contextvars",
    "inspect", "threading", "logging", "traceback", "pathlib", "random", "datetime", "subprocess", "hashlib", "ssl",
    "concurrent.futures", "asyncio", "cadenza.runner.tasks", "cadenza.runner.faults", "cadenza.compat",
    "cadenza.exception", "cadenza.sdk.app", "cadenza.sdk._loop", "cadenza.sdk.client", "cadenza.sdk.invocation",
)  # fmt: skip
"""In small steps, so that the function never waits for more than one of them."""


def preload(wanted: Callable[[], bool]) -> int:
    """Import `MODULES` one after the other until ``wanted()``; how many were done. One not there is left out."""
    for done, name in enumerate(MODULES):
        if wanted():
            return done
        try:
            __import__(name)
        except Exception:
            continue  # an interpreter built without it; user code that needs it gets the error itself
    return len(MODULES)
