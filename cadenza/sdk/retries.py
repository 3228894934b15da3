"""How failures of an input are tried again: `Retries`, and what ``retries=`` takes. Source: semantics.md section 7."""

from __future__ import annotations

from cadenza.base.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Union

    from cadenza.protocol.objects import RetryPolicy

INT_RETRY_DELAY_S = 1.0
"""``retries=N`` waits this long before each of its tries."""


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"Retries: {name} must be a number, not {type(value).__name__}")
    return float(value)


class Retries:
    """A retry policy with exponential backoff.

    The n-th retry waits ``initial_delay * backoff_coefficient ** (n - 1)`` seconds, at most ``max_delay``.
    ``max_retries`` >= 0; ``backoff_coefficient`` 1 to 10; ``initial_delay`` 0 to 60 s; ``max_delay`` 1 to 60 s.
    InvalidError outside of these.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
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
        self.max_retries = max_retries
        self.backoff_coefficient = coefficient
        self.initial_delay = initial
        self.max_delay = longest

    def _policy(self) -> RetryPolicy:
        from cadenza.protocol.objects import RetryPolicy  # late: a container never needs it

        return RetryPolicy(self.max_retries, self.backoff_coefficient, self.initial_delay, self.max_delay)

    def __repr__(self) -> str:
        return (
            f"Retries(max_retries={self.max_retries}, backoff_coefficient={self.backoff_coefficient}, "
            f"initial_delay={self.initial_delay}, max_delay={self.max_delay})"
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
