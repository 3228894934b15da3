"""Threads that fetch, the thread that looks at the clock, and the table of errands between them.

Threads are made as work comes, up to `AT_ONCE` and `CALLERS`, and end without it; an idle crew costs no time at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Iterable, Optional, Sequence

from cadenza.base.errors import ResourceExhaustedError
from cadenza.fs.errands import FOREVER, Errands, Waiter

AT_ONCE = 64
"""How much is fetched at once."""
CALLERS = 8
"""Threads besides, which do not fetch: reads of what is here never wait for a store."""
AHEAD_AT_ONCE = 16
"""How many of the threads may fetch ahead of need."""
IDLE_S = 5.0
"""A thread without work ends after this time."""
SOON_S = 0.25
STACK_BYTES = 512 << 10


class Crew:
    """Thread-safe. ``fetch`` gets what a key names or raises; ``over`` is told who need not wait any more, and
    ``late`` who waited for too long; ``tick`` is called now and then and says in how many seconds it wants to be
    called again (`FOREVER`: when something was fetched, or at `stir`). ``ended`` hears of each fetch.
    """

    def __init__(
        self,
        fetch: Callable[[bytes], None],
        over: Callable[[Waiter[bytes]], None],
        late: Callable[[Waiter[bytes]], None],
        tick: Callable[[], float],
        ended: Callable[[bytes, bool, Optional[Exception]], None],
    ) -> None:
        self._fetch = fetch
        self._over = over
        self._late = late
        self._tick = tick
        self._ended = ended
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
        self._errands: Errands[bytes] = Errands()
        self._calls: deque[Callable[[], None]] = deque()
        self._threads = self._idle = self._running = self._ahead = 0
        self._due = FOREVER
        self._stirred = False
        threading.stack_size(STACK_BYTES)
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, waiter: Waiter[bytes], keys: Sequence[bytes]) -> None:
        """Have these fetched for it; it hears by ``over`` or ``late``."""
        with self._lock:
            self._errands.ask(waiter, keys)
            self._hands(min(len(keys), AHEAD_AT_ONCE))
            if waiter.until < self._due:
                self._clock.notify()

    def leave(self, waiter: Waiter[bytes]) -> bool:
        """It waits no more, and hears nothing. False: it has heard already, or is about to."""
        with self._lock:
            return self._errands.leave(waiter)

    def ahead(self, keys: Iterable[bytes]) -> None:
        """Fetch these when nobody waits for anything."""
        with self._lock:
            self._hands(min(self._errands.ahead(keys), AHEAD_AT_ONCE))

    def call(self, call: Callable[[], None]) -> None:
        """Have one of the threads do something, before it fetches anything. It must not raise."""
        with self._lock:
            self._calls.append(call)
            self._hands(1)

    def stir(self, soon_s: float) -> None:
        """See that ``tick`` is called within that time."""
        with self._lock:
            if self._due > time.monotonic() + soon_s:
                self._stirred = True
                self._clock.notify()

    # The threads.

    def _hands(self, count: int) -> None:
        """See that somebody takes up work that has come. The lock is held."""
        self._work.notify(count)
        for _ in range(min(count - self._idle, AT_ONCE + CALLERS - self._threads)):
            try:
                threading.Thread(target=self._run, daemon=True).start()
            except RuntimeError:  # the machine has no room for one more
                if not self._threads:
                    raise
                return
            self._threads += 1

    def _run(self) -> None:
        while True:
            call, begun = self._next()
            if call is not None:
                call()
            elif begun is not None:
                self._carry(*begun)
            else:
                return

    def _next(self) -> tuple[Optional[Callable[[], None]], Optional[tuple[bytes, bool]]]:
        """Work; neither of the two when none has come for `IDLE_S`: then the thread is no longer counted."""
        patient = True
        with self._lock:
            while True:
                if self._calls:
                    return self._calls.popleft(), None
                begun = self._errands.begin(self._ahead < AHEAD_AT_ONCE) if self._running < AT_ONCE else None
                if begun is not None:
                    self._running += 1
                    self._ahead += not begun[1]
                    return None, begun
                if not patient:
                    self._threads -= 1
                    return None, None
                self._idle += 1
                patient = self._work.wait(IDLE_S)
                self._idle -= 1

    def _carry(self, key: bytes, urgent: bool) -> None:
        fault: Optional[Exception] = None
        try:
            self._fetch(key)
        except Exception as error:
            fault = error
        with self._lock:
            over = self._errands.end(key, fault)
            self._running -= 1
            if not urgent:
                self._ahead -= 1
                if isinstance(fault, ResourceExhaustedError):  # a full disk is no place for more
                    over += self._errands.drop_ahead(fault)
        self._ended(key, bool(over), fault)
        self._tell(self._over, over)
        self.stir(SOON_S)

    def _watch(self) -> None:
        while True:
            with self._lock:
                late = self._errands.late(time.monotonic())
                self._stirred = False
                self._due = FOREVER  # whoever stirs from now on is heard
            self._tell(self._late, late)
            again = time.monotonic() + self._tick()
            with self._lock:
                due = min((one.until for one in self._errands.waiting), default=FOREVER)
                self._due = min(due, again)
                if not self._stirred:
                    self._clock.wait(None if self._due == FOREVER else max(0.0, self._due - time.monotonic()))

    def _tell(self, act: Callable[[Waiter[bytes]], None], waiters: Sequence[Waiter[bytes]]) -> None:
        for one in waiters:
            act(one)
