"""How failures of an input are tried again: `Retries`, and what ``retries=`` takes. Source: semantics.md section 7."""

from __future__ import annotations

from cadenza.base.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    from cadenza.protocol.objects import RetryPolicy

INT_RETRY_DELAY_S = 1.0
"""``retries=N`` waits this long before each of its tries."""


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"Retries: {name} must be a number, not {type(value).__name__}")
    return float(value)


def _kinds(name: str, value: Any) -> tuple[type[BaseException], ...]:
    kinds = (value,) if isinstance(value, type) else value
    if not isinstance(kinds, (tuple, list, set, frozenset)):
        raise InvalidError(f"Retries: {name} takes exception classes, such as ({name}=(TimeoutError, OSError))")
    for one in kinds:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise InvalidError(f"Retries: {name} takes exception classes, and {one!r} is none")
    return tuple(kinds)


def names(kinds: Sequence[type[BaseException]]) -> tuple[str, ...]:
    """Exception classes as the server is told of them: ``module.qualname``, each once.

    A timeout of a function, which raises nothing in the container, counts as `FunctionTimeoutError` and as the builtin
    TimeoutError; so a base class of the former names that too. A class of the program itself has the name of its module
    in containers, and that under which it travels by value.
    """
    from cadenza.base.errors import FunctionTimeoutError

    found: dict[str, None] = {}
    for kind in kinds:
        if kind.__module__ == "__main__":
            import sys

            from cadenza.sdk.source import module_name

            try:
                found[f"{module_name(sys.modules['__main__'])}.{kind.__qualname__}"] = None
            except InvalidError:
                pass  # typed into an interpreter: it only ever travels by value
        found[f"{kind.__module__}.{kind.__qualname__}"] = None
        if issubclass(FunctionTimeoutError, kind):
            found[f"{FunctionTimeoutError.__module__}.{FunctionTimeoutError.__qualname__}"] = None
    return tuple(found)


class Retries:
    """A retry policy with exponential backoff.

    The n-th retry waits ``initial_delay * backoff_coefficient ** (n - 1)`` seconds, at most ``max_delay``.
    ``max_retries`` >= 0; ``backoff_coefficient`` 1 to 10; ``initial_delay`` 0 to 60 s; ``max_delay`` 1 to 60 s.
    InvalidError outside of these.

    ``on``: only failures by these exception classes and their subclasses are tried again; ``not_on``: these never are,
    whatever ``on`` says. A container that crashes or runs out of memory leaves no exception: with ``on`` its input is
    not tried again on its own account.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
        on: Union[type[BaseException], Sequence[type[BaseException]]] = (),
        not_on: Union[type[BaseException], Sequence[type[BaseException]]] = (),
    ) -> None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int):
            raise InvalidError(f"Retries: max_retries must be an integer, not {type(max_retries).__name__}")
        if max_retries < 0:
            raise InvalidError(f"Retries: max_retries must be 0 or more, got {max_retries}")
        coefficient = _number("backoff_coefficient", backoff_coefficient)
        initial = _number("initial_delay", initial_delay)
        longest = _number("max_delay", max_delay)
        if not 1 <= coefficient <= 10:
            raise InvalidError(f"Retries: backoff_coefficient must be between 1 and 10, got {backoff_coefficient}")
        if not 0 <= initial <= 60:
            raise InvalidError(f"Retries: initial_delay must be between 0 and 60 seconds, got {initial_delay}")
        if not 1 <= longest <= 60:
            raise InvalidError(f"Retries: max_delay must be between 1 and 60 seconds, got {max_delay}")
        self.on, self.not_on = _kinds("on", on), _kinds("not_on", not_on)
        for kind in self.on:
            if kind in self.not_on:
                raise InvalidError(f"Retries: {kind.__name__} is both in on and in not_on")
        self.max_retries = max_retries
        self.backoff_coefficient = coefficient
        self.initial_delay = initial
        self.max_delay = longest

    def _policy(self) -> RetryPolicy:
        from cadenza.protocol.objects import RetryPolicy  # late: a container never needs it

        return RetryPolicy(
            self.max_retries,
            self.backoff_coefficient,
            self.initial_delay,
            self.max_delay,
            names(self.on),
            names(self.not_on),
        )

    def __repr__(self) -> str:
        kinds = "".join(
            f", {name}=({', '.join(kind.__name__ for kind in given)},)"
            for name, given in (("on", self.on), ("not_on", self.not_on))
            if given
        )
        return (
            f"Retries(max_retries={self.max_retries}, backoff_coefficient={self.backoff_coefficient}, "
            f"initial_delay={self.initial_delay}, max_delay={self.max_delay}{kinds})"
        )


def check_retries(value: Union[int, Retries, None], where: str = "retries") -> Optional[Retries]:
    """``retries=``: an integer is that many tries, 1 s apart. InvalidError on anything else."""
    if value is None or isinstance(value, Retries):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidError(f"{where}: retries must be 0 or more, got {value}")
        return Retries(max_retries=value, backoff_coefficient=1.0, initial_delay=INT_RETRY_DELAY_S)
    raise InvalidError(f"{where}: retries must be an integer or a Retries, not {type(value).__name__}")


def parse_retries(value: Union[int, Retries, None], where: str = "retries") -> Optional[RetryPolicy]:
    """``retries=`` as the policy that the server is told."""
    checked = check_retries(value, where)
    return None if checked is None else checked._policy()
