"""One run for many inputs: lists go in, one for each argument, and one list comes out.

Source: semantics.md section 10.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError
from cadenza.runner import context, values
from cadenza.runner.execute import SUCCESS, Executor, Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def gather(executor: Executor, first: Job) -> Job:
    """The run of ``first`` and of all that wait with its batch's name. They run from now on.

    It has the first one's ids: what is printed and asked while it runs is the first one's.
    """
    unit = Job(first.attempt, first.input_id, first.call_id, b"", "", False)
    unit.batch, unit.method, unit.entry = first.batch, first.method, first.entry
    unit.members = [first, *[one for one in executor.waiting.values() if one.batch == first.batch]]
    for one in unit.members:
        executor.waiting.pop(one.attempt, None)
        executor.running[one.attempt] = one
        one.unit = unit
    return unit


def live(executor: Executor, unit: Job) -> list[Job]:
    """Those of the batch that have no output yet."""
    return [one for one in unit.members if one.attempt in executor.running]


def arguments(executor: Executor, unit: Job) -> tuple[Any, Any]:
    """The batch's arguments as lists. An input whose own cannot be read fails alone.

    InvalidError when the others do not all pass the same arguments.
    """
    calls: list[tuple[Any, Any]] = []
    kept: list[Job] = []
    for one in live(executor, unit):
        try:
            calls.append(executor.unpack(one))
            kept.append(one)
        except Exception as error:
            executor.failure(one, error)
    unit.members = kept
    if not calls:
        raise InvalidError("no input of the batch could be read")
    shapes = {(len(args), frozenset(kwargs)) for args, kwargs in calls}
    if len(shapes) > 1:
        calls = _by_name(unit, calls)
    count, names = len(calls[0][0]), list(calls[0][1])
    lists = [[args[number] for args, _ in calls] for number in range(count)]
    return lists, {name: [kwargs[name] for _, kwargs in calls] for name in names}


def _by_name(unit: Job, calls: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Calls that pass by position what others pass by name, all by name."""
    import inspect

    signature = inspect.signature(unit.entry.call)
    try:
        bound = [dict(signature.bind(*args, **kwargs).arguments) for args, kwargs in calls]
    except TypeError as error:
        bound, why = [], f" ({error})"
    else:
        why = ""
    starred = any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in signature.parameters.values())
    if not bound or starred or len({frozenset(one) for one in bound}) > 1:
        raise InvalidError(
            f"all inputs of a batch must pass the same arguments, and these did not{why}; they are given to the "
            "function as lists, one list for each argument"
        )
    return [((), one) for one in bound]


def results(executor: Executor, unit: Job, value: Any) -> None:
    """Give each input its own of what the function returned. InvalidError when that is no list of as many."""
    if not isinstance(value, list):
        raise InvalidError(
            f"a batched function must return a list with one result for each input; this one returned "
            f"{type(value).__name__}"
        )
    if len(value) != len(unit.members):
        raise InvalidError(
            f"a batched function must return one result for each input; this one got {len(unit.members)} inputs and "
            f"returned {len(value)} results"
        )
    executor.channel.streams.finish(unit.input_id, unit.call_id)
    for one, mine in zip(unit.members, value):
        if one.attempt not in executor.running:
            continue  # cancelled meanwhile
        try:
            executor.output(one, SUCCESS, values.pack(mine, context.persistent_id))
        except Exception as error:  # this result cannot be sent; the others can
            executor.failure(one, error)
