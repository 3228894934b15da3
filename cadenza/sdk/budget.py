"""`Budget`: a hard cap on what an app may spend."""

from __future__ import annotations

from cadenza.base.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from cadenza.protocol.objects import BudgetSpec

PERIODS = ("day", "month")


class Budget:
    """What an app may spend at most: seconds of its containers, money by the server's price table, or both.

    ``per``: ``"day"`` or ``"month"``; None is the app's whole life. InvalidError for what is no cap.
    """

    def __init__(
        self,
        *,
        container_seconds: Optional[float] = None,
        money: Optional[float] = None,
        per: Optional[str] = None,
    ) -> None:
        if container_seconds is None and money is None:
            raise InvalidError("Budget: say container_seconds=, money=, or both")
        self.container_seconds = _amount("container_seconds", container_seconds)
        self.money = _amount("money", money)
        if per is not None and per not in PERIODS:
            raise InvalidError(f"Budget: per is 'day', 'month' or None (the app's whole life), not {per!r}")
        self.per = per

    def _spec(self) -> BudgetSpec:
        from cadenza.protocol.objects import BudgetSpec  # late: declaring an app loads no dataclasses

        return BudgetSpec(self.container_seconds or 0.0, self.money or 0.0, self.per or "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.container_seconds, self.money, self.per))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"Budget({shown})"


def _amount(name: str, value: Optional[float]) -> Optional[float]:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"Budget: {name} must be a number, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise InvalidError(f"Budget: {name} must be above 0 and finite, not {value!r}")
    return float(value)
