"""Who waits for which content, and what is fetched next. Pure; its user holds a lock around it.

An *errand* is one thing being fetched, named by a key: however many wait for it, it is fetched once. What somebody
waits for goes before what is fetched ahead of need.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Collection, Generic, Hashable, Iterable, Optional, TypeVar

Key = TypeVar("Key", bound=Hashable)
FOREVER = float("inf")


@dataclass(eq=False)
class Waiter(Generic[Key]):
    """Somebody who goes on when nothing of ``missing`` is missing any more, or, unless ``patient``, when one failed."""

    missing: set[Key] = field(default_factory=set)
    until: float = FOREVER
    """When it is told that it took too long; seconds on its user's clock."""
    patient: bool = False
    """Wants all of it however much fails, and waits ahead of need."""
    failed: int = 0
    error: Optional[Exception] = None
    """The last thing that went wrong."""


@dataclass(slots=True)
class _Errand(Generic[Key]):
    urgent: bool
    running: bool = False
    waiters: list[Waiter[Key]] = field(default_factory=list)


class Errands(Generic[Key]):
    """Errands by key, and the two queues of those that nobody has begun."""

    def __init__(self) -> None:
        self._errands: dict[Key, _Errand[Key]] = {}
        self._urgent: deque[Key] = deque()
        self._ahead: deque[Key] = deque()
        self._waiters: dict[Waiter[Key], None] = {}

    def __len__(self) -> int:
        return len(self._errands)

    @property
    def waiting(self) -> Collection[Waiter[Key]]:
        """Who is not patient and waits."""
        return self._waiters.keys()

    def ask(self, waiter: Waiter[Key], keys: Iterable[Key]) -> None:
        """Begin to wait for these, fetched in this order; each is named once."""
        for key in keys:
            waiter.missing.add(key)
            errand = self._errands.get(key)
            if errand is None:
                errand = self._errands[key] = _Errand(not waiter.patient)
                (self._ahead if waiter.patient else self._urgent).append(key)
            elif not errand.urgent and not waiter.patient:
                errand.urgent = True
                if not errand.running:
                    self._urgent.append(key)  # what is left of it in the other queue is passed over
            errand.waiters.append(waiter)
        if not waiter.patient:
            self._waiters[waiter] = None

    def ahead(self, keys: Iterable[Key]) -> int:
        """Fetch these when there is nothing better to do; how many of them nobody had asked for before."""
        count = 0
        for key in keys:
            if key not in self._errands:
                self._errands[key] = _Errand(False)
                self._ahead.append(key)
                count += 1
        return count

    def begin(self, ahead: bool) -> Optional[tuple[Key, bool]]:
        """What to fetch next, and whether somebody waits for it; with ``ahead`` also what nobody waits for.

        None: nothing.
        """
        for queue, urgent in ((self._urgent, True), (self._ahead, False)):
            while queue and (urgent or ahead):
                key = queue.popleft()
                errand = self._errands.get(key)
                if errand is not None and not errand.running and errand.urgent == urgent:
                    errand.running = True
                    return key, urgent
        return None

    def end(self, key: Key, error: Optional[Exception] = None) -> list[Waiter[Key]]:
        """It is here, or failed: who need not wait any more."""
        errand = self._errands.pop(key)
        over = []
        for waiter in errand.waiters:
            waiter.missing.discard(key)
            if error is not None:
                waiter.failed += 1
                waiter.error = error
            if waiter.patient:
                if not waiter.missing:
                    over.append(waiter)
            elif waiter in self._waiters and (error is not None or not waiter.missing):
                del self._waiters[waiter]
                over.append(waiter)
        return over

    def leave(self, waiter: Waiter[Key]) -> bool:
        """Wait no more; the errands go on. False: it did not wait."""
        if waiter not in self._waiters:
            return False
        del self._waiters[waiter]
        for key in waiter.missing:
            errand = self._errands.get(key)
            if errand is not None:
                errand.waiters.remove(waiter)
        return True

    def late(self, now: float) -> list[Waiter[Key]]:
        """Who has waited for too long: they leave."""
        over = [one for one in self._waiters if one.until <= now]
        for one in over:
            self.leave(one)
        return over

    def drop_ahead(self, error: Exception) -> list[Waiter[Key]]:
        """Give up what nobody needs yet and nobody has begun: who waited for that alone."""
        over = []
        while self._ahead:
            key = self._ahead.popleft()
            errand = self._errands.get(key)
            if errand is not None and not errand.running and not errand.urgent:
                over.extend(self.end(key, error))
        return over
