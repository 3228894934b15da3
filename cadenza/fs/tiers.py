"""Where content comes from that is not on this disk: other machines, then the bucket; and which to leave alone.

A tier that fails is not asked for a while, so that a dead one costs one wait and not one for each file; then one thread
asks it again, and when it answers all do. Nothing needs a restart.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional, Sequence, TypeVar

from cadenza.base.errors import DataLossError, InvalidError, NotFoundError, ServiceError
from cadenza.observe.log import Log
from cadenza.storage.bucket import Bucket, is_web_address, open_bucket, plain_url

T = TypeVar("T")
REST_S = 1.0
"""How long a tier that failed once is left alone; twice as long after each further failure, up to:"""
MAX_REST_S = {"peer": 60.0, "remote": 4.0}
PEER_LIMITS = {"connect_timeout": "1s", "read_timeout": "3s", "timeout": "20s", "max_retries": "0"}
"""A peer saves time or it is of no use."""
WRONG_S = 1.0
_log = Log("cadenza.fs.tiers")


class Tier:
    """One place, ``kind`` ``peer`` or ``remote``."""

    def __init__(self, bucket: Bucket, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.bucket = bucket
        self.kind = kind
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._rests_until = 0.0
        self._wrong = 0
        self._wrong_at = -WRONG_S
        self.fault = ""
        """The sentence of its last failure; empty when it works."""

    def ready(self) -> bool:
        """Whether to ask it now. After a rest the first who asks here tries it, alone."""
        with self._lock:
            if not self._failures:
                return True
            now = self._clock()
            if now < self._rests_until:
                return False
            self._failures += 1  # until it has answered
            self._rests_until = now + self._rest_s()
            return True

    def worked(self) -> None:
        """It answered."""
        if self._failures:
            with self._lock:
                self._failures = 0
                self.fault = ""
            _log.info("store.back", url=self.bucket.url)

    def failed(self, fault: str) -> None:
        """It did not."""
        with self._lock:
            first = not self._failures
            self._failures = max(1, self._failures)
            self._rests_until = self._clock() + self._rest_s()
            self.fault = fault
        if first:
            _log.warning("store.down", url=self.bucket.url, why=fault)

    def wrong(self, what: str, why: str) -> None:
        """It gave something else than what it was asked for. At most one line for the log in `WRONG_S`."""
        now = self._clock()
        with self._lock:
            if now < self._wrong_at + WRONG_S:
                self._wrong += 1
                return
            self._wrong_at, left_out, self._wrong = now, self._wrong, 0
        _log.error("store.wrong", what=what, url=self.bucket.url, why=why, left_out=left_out)

    def _rest_s(self) -> float:
        return min(REST_S * 2.0 ** min(max(self._failures - 1, 0), 10), MAX_REST_S[self.kind])


class Tiers:
    """All of them, nearest first."""

    def __init__(
        self, peers: Sequence[Bucket], remote: Optional[Bucket], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.peers = [Tier(one, "peer", clock) for one in peers]
        self.remote = Tier(remote, "remote", clock) if remote is not None else None

    def __bool__(self) -> bool:
        return bool(self.peers) or self.remote is not None

    def order(self, digest: bytes) -> list[Tier]:
        """Whom to ask for this digest, one after the other: machines begin with another for another digest."""
        turn = digest[0] % len(self.peers) if self.peers else 0
        found = self.peers[turn:] + self.peers[:turn]
        return [*found, self.remote] if self.remote is not None else found

    def ask(self, what: str, digest: bytes, get: Callable[[Tier], T]) -> T:
        """The first good answer. ``get`` raises NotFoundError, DataLossError (wrong bytes) or ServiceError of a tier.

        NotFoundError: no tier has it. DataLossError: what is to be had is wrong. ServiceError: a tier that may have it
        does not answer.
        """
        name = f"{what} {digest.hex()}"
        wrong: list[str] = []
        down: list[str] = []
        for tier in self.order(digest):
            if not tier.ready():
                down.append(tier.fault)
                continue
            try:
                found = get(tier)
            except NotFoundError:
                tier.worked()
            except DataLossError as error:
                tier.worked()
                wrong.append(tier.bucket.url)
                tier.wrong(name, str(error))
            except ServiceError as error:
                tier.failed(str(error))
                down.append(str(error))
            else:
                tier.worked()
                return found
        if self.remote is not None and self.remote.fault and down:
            raise ServiceError(f"{name} cannot be had now: {self.remote.fault}")
        if wrong:
            raise DataLossError(f"{name} is corrupt in {' and in '.join(wrong)}, and nobody else has it")
        if down:
            raise ServiceError(f"{name} cannot be had now: {down[0]}")
        where = self.remote.bucket.url if self.remote is not None else "any peer's store"
        raise NotFoundError(f"{name} is not in {where}")


def open_peers(addresses: str, key: str) -> list[Bucket]:
    """Buckets of other machines, by ``Config.peers``. InvalidError names an address that is none."""
    options = {**PEER_LIMITS, **({"bearer": key} if key else {})}
    found = []
    for one in filter(None, (part.strip() for part in addresses.split(","))):
        if not is_web_address(one):
            where = plain_url(one)
            raise InvalidError(f"peers: {where!r} is no machine's address: write http://host:port, commas between")
        found.append(open_bucket(one, options))
    return found


class Flights:
    """One thread does a thing by its key; others that want the same wait for it. All get its end or its error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[bytes, _Flight] = {}

    def fly(self, key: bytes, do: Callable[[], object], wait_s: float) -> bool:
        """Run ``do``, or wait for the thread that does. Whether it was this one. ServiceError after ``wait_s``."""
        with self._lock:
            flight = self._under_way.get(key)
            mine = flight is None
            if flight is None:
                flight = self._under_way[key] = _Flight()
        if not mine:
            if not flight.done.wait(wait_s):
                raise ServiceError(f"{key[:32].hex()} did not arrive within {wait_s:.0f} seconds")
            if flight.error is not None:
                # Of its own, since each thread that raises one adds to its traceback.
                raise type(flight.error)(*flight.error.args) from None
            return False
        try:
            do()
        except BaseException as error:
            flight.error = error if isinstance(error, Exception) else ServiceError("the thread that asked was ended")
            raise
        finally:
            with self._lock:
                del self._under_way[key]
            flight.done.set()
        return True


class _Flight:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Optional[Exception] = None
