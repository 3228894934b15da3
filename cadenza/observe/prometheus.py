"""The metrics for Prometheus: ``GET /metrics`` and ``GET /healthz`` on an address of the configuration.

Names are those of `cadenza.observe.names` with underscores for dots; counters end in ``_total``, as is the rule there.
At most `MAX_FUNCTIONS` functions have lines of their own, the others are added up as function ``(others)``.
"""

from __future__ import annotations

import asyncio
import re
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric as Family

from cadenza.base.errors import InvalidError
from cadenza.observe import histogram
from cadenza.observe.log import Log
from cadenza.observe.names import COUNT, METRICS, TIME, Metric
from cadenza.observe.slice import Slice
from cadenza.protocol.statuses import STATUSES

MAX_FUNCTIONS = 200
OTHERS = "(others)"
BOUNDS_S = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
"""Bounds of the buckets that are shown."""
MAX_REQUEST_BYTES = 16 << 10
REQUEST_LIMIT_S = 10.0
MAX_CONNECTIONS = 32
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("app", "function", "environment")

Names = tuple[str, str, str]
"""App, function, environment."""
_log = Log("cadenza.observe.prometheus")


def labelled(totals: Iterable[tuple[Sequence[str], Slice]]) -> list[tuple[Names, Slice]]:
    """Totals by (app, function, environment). ``totals``: ``(app id, app, function, environment)`` and a slice, those
    that were busy last first. Apps of one name are one; beyond `MAX_FUNCTIONS` all are one more. Pure."""
    found: dict[Names, Slice] = {}
    for label, one in totals:
        names = (label[1] or label[0], label[2], label[3])
        if names not in found and len(found) >= MAX_FUNCTIONS:
            names = ("", OTHERS, "")
        found.setdefault(names, Slice()).merge(one)
    return list(found.items())


def families(
    totals: Iterable[tuple[Sequence[str], Slice]], server: Mapping[str, float], prefix: str
) -> Iterator[Family]:
    """Everything as Prometheus takes it. Pure."""
    rows = labelled(totals)
    for one in METRICS:
        name = prefix + "_" + one.name.replace(".", "_")
        text = f"{one.description} Unit: {one.unit}."
        if one.kind == COUNT:
            yield _counter(name, text, one, rows)
        elif one.kind == TIME:
            yield _histogram(name, text, one, rows)
        else:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for names, part in rows:
                if one.source[0] in part.sums:
                    gauge.add_metric(names, part.last(one.source[0]))
            yield gauge
    for key, value in sorted(server.items()):
        name = "cadenza_server_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)
        yield GaugeMetricFamily(name, "Of the server itself.", value=value)


def _counter(name: str, text: str, one: Metric, rows: Iterable[tuple[Names, Slice]]) -> Family:
    by_status = one.source == STATUSES
    counter = CounterMetricFamily(name, text, labels=(*LABELS, "status") if by_status else LABELS)
    for names, part in rows:
        if by_status:
            for status in one.source:
                if part.counts.get(status):
                    counter.add_metric((*names, status), part.counts[status])
        else:
            counter.add_metric(names, sum(part.counts.get(each, 0) for each in one.source))
    return counter


def _histogram(name: str, text: str, one: Metric, rows: Iterable[tuple[Names, Slice]]) -> Family:
    family = HistogramMetricFamily(name, text, labels=LABELS)
    for names, part in rows:
        counts = part.times.get(one.source[0])
        if counts:
            passed = histogram.cumulative(counts, BOUNDS_S)
            bounds = [*(str(round(bound * one.scale, 3)) for bound in BOUNDS_S), "+Inf"]
            family.add_metric(
                names, [(bound, float(count)) for bound, count in zip(bounds, passed)],
                sum_value=part.sums[one.source[0]][1] * one.scale,
            )  # fmt: skip
    return family


class _Collected:
    """Families that are made already, as a collector."""

    def __init__(self, made: Sequence[Family]) -> None:
        self._made = made

    def collect(self) -> Iterable[Family]:
        return self._made


def page(made: Sequence[Family]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(made))
    return generate_latest(registry)


def parse_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[::1]:port``. InvalidError otherwise. Pure."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise InvalidError(f"metrics_address = {address!r}: it must be host:port, for example 127.0.0.1:9400")
    return host, int(port)


class Endpoint:
    """A small HTTP server for two paths. One request on a connection."""

    def __init__(
        self,
        totals: Callable[[], Sequence[tuple[Sequence[str], Slice]]],
        server: Callable[[], Mapping[str, float]],
        prefix: str,
    ) -> None:
        """``totals()`` as `labelled` takes them; ``server()`` the server's own counters."""
        self._totals = totals
        self._server = server
        self._prefix = prefix
        self._listening: list[asyncio.base_events.Server] = []
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    async def listen(self, address: str) -> None:
        """Serve at ``address``. InvalidError when it cannot be had."""
        host, port = parse_address(address)
        if host not in LOOPBACK:
            _log.warning("anybody who can reach the address may read the metrics", address=address)
        try:
            server = await asyncio.start_server(self._accept, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise InvalidError(f"metrics_address = {address!r}: {error.strerror or error}") from None
        self._listening.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and end what is open."""
        for one in self._listening:
            one.close()
        for task in list(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(list(self._open))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_LIMIT_S)
            status, kind, body = await self._answer(head.split(b"\r\n", 1)[0])
            words = (
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(words.encode() + body)
            await asyncio.wait_for(writer.drain(), REQUEST_LIMIT_S)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or never said what was wanted
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> tuple[str, str, bytes]:
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", "text/plain", b"not an HTTP request\n"
        if words[0] != b"GET":
            return "405 Method Not Allowed", "text/plain", b"only GET\n"
        path = words[1].split(b"?", 1)[0]
        if path == b"/healthz":
            return "200 OK", "text/plain", b"ok\n"
        if path != b"/metrics":
            return "404 Not Found", "text/plain", b"there are /metrics and /healthz\n"
        made = list(families(self._totals(), self._server(), self._prefix))
        return "200 OK", CONTENT_TYPE, await asyncio.to_thread(page, made)
