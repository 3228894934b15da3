"""User code in a container says how many inputs it wants. Source: semantics.md section 31.

`cadenza.experimental` has these functions. They speak for the container of the process in which they are called.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError
from cadenza.runner import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cadenza.runner.execute import Executor


def _executor(name: str) -> Executor:
    if context.executor is None:
        raise InvalidError(f"{name}() is for code that runs in a container, in the process that runs its inputs")
    executor: Executor = context.executor
    return executor


def stop_fetching_inputs() -> None:
    """Take no more inputs: what runs goes on to its end, what waits here goes to other containers, and then this
    container ends, with its exit hooks. InvalidError outside of a container."""
    _executor("stop_fetching_inputs").channel.outbox.frame({"t": "stop_fetching"})


def get_local_input_concurrency() -> int:
    """How many inputs this container runs at once. InvalidError outside of a container."""
    return _executor("get_local_input_concurrency").most


def set_local_input_concurrency(concurrency: int) -> None:
    """Run up to ``concurrency`` inputs at once in this container, from 1 to what ``@concurrent`` declares as most.

    What runs goes on when the number shrinks. InvalidError outside of a container, for a number out of range, and in a
    function without ``@concurrent``, which runs one at a time.
    """
    executor = _executor("set_local_input_concurrency")
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        raise InvalidError(f"set_local_input_concurrency takes an integer, not {type(concurrency).__name__}")
    container = context.current()
    declared = int(container.function.get("max_concurrent") or 1) if container is not None else 1
    if not 1 <= concurrency <= declared:
        what = f"between 1 and {declared}, the max_inputs of @concurrent" if declared > 1 else "1 without @concurrent"
        raise InvalidError(f"set_local_input_concurrency: the number must be {what}, got {concurrency}")
    if concurrency != executor.most:
        executor.resize(concurrency)
        executor.channel.outbox.frame({"t": "slots", "n": concurrency})
