"""What containers wrote: `App.logs`, `Function.logs`, `FunctionCall.logs`. Source: semantics.md section 26.

`fetch` reads a range of time, `tail` the last lines, `stream` what comes; each gives `LogEntry` s, one for each line,
oldest first.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Iterator, Literal, Optional

from cadenza.base.errors import InvalidError, LogsFetchError, ServerWarning
from cadenza.protocol.methods import LogBatch, LogQuery
from cadenza.protocol.plain import from_plain
from cadenza.sdk import _dual
from cadenza.sdk.types import LogEntry

if TYPE_CHECKING:
    from cadenza.sdk.client import Client

    Place = Callable[[], Awaitable[tuple[Client, dict[str, str]]]]
    """Finds whom to ask, and the fields of `LogQuery` that say whose logs."""
    Source = Optional[Literal["stdout", "stderr", "system"]]

MAX_RANGE_DAYS = 35
QUIET_S = 0.5
"""After so long without a line a stream looks whether the call is over; its last words take less."""
_SOURCES: dict[int, Literal["stdout", "stderr", "system"]] = {0: "system", 1: "stdout", 2: "stderr"}


class Logs:
    """The logs of an app or a function."""

    def __init__(self, place: Place, is_over: Optional[Callable[[], Awaitable[bool]]] = None) -> None:
        self._place = place
        self._is_over = is_over

    @_dual.generator
    def fetch(
        self, *, since: datetime, until: Optional[datetime] = None, source: Source = None, search_text: str = ""
    ) -> AsyncIterator[list[LogEntry]]:
        """Lines from ``since`` to ``until`` (None: now) that hold ``search_text``. A time without a zone is local.

        LogsFetchError for more than 35 days.
        """
        return self._read(**_range(since, until), source=_source(source), search=_text(search_text))

    @_dual.generator
    def tail(self, entries: int = 100, *, source: Source = None) -> AsyncIterator[list[LogEntry]]:
        """The last lines, at most ``entries``."""
        if isinstance(entries, bool) or not isinstance(entries, int) or entries < 1:
            raise InvalidError(f"logs.tail: entries must be a positive integer, got {entries!r}")
        return self._read(tail=entries, source=_source(source))

    @_dual.generator
    def stream(self, timeout: Optional[float] = None) -> AsyncIterator[list[LogEntry]]:
        """Lines from now on, as they come, until the app ends or ``timeout`` seconds have passed."""
        return self._read(_timeout(timeout), since=time.time(), follow=True)

    async def _read(self, timeout_s: Optional[float] = None, **query: Any) -> AsyncIterator[list[LogEntry]]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        client, where = await self._place()
        stream = await client._stream("log.read", LogQuery(**{**where, **query}))
        is_last_look = False
        try:
            while True:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                wait_s = left_s
                if self._is_over is not None and query.get("follow"):
                    wait_s = QUIET_S if left_s is None else min(QUIET_S, left_s)
                try:
                    items = await asyncio.wait_for(stream.receive_all(), wait_s)
                except asyncio.TimeoutError:
                    if is_last_look or (deadline is not None and time.monotonic() >= deadline):
                        return
                    is_last_look = self._is_over is not None and await self._is_over()
                    continue
                if not items:
                    return
                for body, payload in items:
                    yield list(entries_of(from_plain(LogBatch, body), payload))
        finally:
            stream.cancel()


class CallLogs(Logs):
    """The logs of one call."""

    @_dual.generator
    def fetch(
        self,
        *,
        since: Optional[datetime] = None,
        until: Optional[datetime] = None,
        source: Source = None,
        search_text: str = "",
    ) -> AsyncIterator[list[LogEntry]]:
        """Lines from ``since`` (None: the call's start) to ``until`` (None: now) that hold ``search_text``."""
        return self._read(**_range(since, until), source=_source(source), search=_text(search_text))

    @_dual.generator
    def stream(self, timeout: Optional[float] = None) -> AsyncIterator[list[LogEntry]]:
        """Lines from the call's start on, as they come, until it is over or ``timeout`` seconds have passed."""
        return self._read(_timeout(timeout), follow=True)


def entries_of(batch: LogBatch, payload: bytes) -> Iterator[LogEntry]:
    """A batch line by line. Lines end at line feeds only: a carriage return is progress within a line. Pure, but for
    a warning where the server had to leave something out."""
    if batch.dropped_bytes:
        warnings.warn(f"{batch.dropped_bytes} bytes of logs were left out: this reader is too slow", ServerWarning, 2)
    offset = 0
    for one in batch.entries:
        text = payload[offset : offset + one.size].decode("utf-8", "replace")
        offset += one.size
        at = datetime.fromtimestamp(one.time, timezone.utc)
        context = [each for each in (one.container_id, one.call_id, one.input_id) if each]
        for line in _lines(text):
            yield LogEntry(line, at, _SOURCES.get(one.fd, "system"), one.function_id or one.app_id, context)


def _lines(text: str) -> list[str]:
    parts = text.split("\n")
    return [one + "\n" for one in parts[:-1]] + parts[-1:] * bool(parts[-1])


def _range(since: Optional[datetime], until: Optional[datetime]) -> dict[str, float]:
    for name, value in (("since", since), ("until", until)):
        if value is not None and not isinstance(value, datetime):
            raise InvalidError(f"logs.fetch: {name} must be a datetime, not {type(value).__name__}")
    begin = since.timestamp() if since is not None else 0.0
    end = until.timestamp() if until is not None else time.time()
    if since is not None and end < begin:
        raise InvalidError("logs.fetch: until is before since")
    if since is not None and end - begin > MAX_RANGE_DAYS * 86400.0:
        raise LogsFetchError(f"logs.fetch: at most {MAX_RANGE_DAYS} days at a time: ask for a shorter range")
    return {"since": begin, "until": end}


def _source(source: object) -> str:
    if source is None:
        return ""
    if source not in _SOURCES.values():
        raise InvalidError(f"logs: source must be stdout, stderr, system or None, got {source!r}")
    return str(source)


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidError(f"logs.fetch: search_text must be a string, not {type(text).__name__}")
    return text


def _timeout(timeout: Optional[float]) -> Optional[float]:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise InvalidError(f"logs.stream: timeout must be a number of seconds or None, got {timeout!r}")
    return timeout
