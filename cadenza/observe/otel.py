"""The metrics, and spans of calls, to a collector by OTLP over HTTP.

The numbers are counted elsewhere (`cadenza.observe.slice`); here they only take OpenTelemetry's form, once in
`EXPORT_EVERY_S`, and a thread sends them. The library is imported when an endpoint is configured, not before.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any, Callable, Optional, Sequence

from cadenza import __version__
from cadenza.base.errors import InvalidError
from cadenza.observe import histogram
from cadenza.observe.log import Log
from cadenza.observe.names import COUNT, METRICS, TIME
from cadenza.observe.slice import Slice
from cadenza.protocol.statuses import STATUSES, SUCCESS

EXPORT_EVERY_S = 15.0
SEND_LIMIT_S = 10.0
MAX_SPANS = 2_000
"""Inputs whose spans wait to be sent; of more between two exports a random part is taken."""
BOUNDS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
NANO = 1_000_000_000

_log = Log("cadenza.observe.otel")


class Exporter:
    """Sends to one collector."""

    def __init__(
        self,
        endpoint: str,
        prefix: str,
        totals: Callable[[], Sequence[tuple[Sequence[str], Slice]]],
        now: Callable[[], float],
        traces: bool = False,
    ) -> None:
        """``endpoint``: the collector's base address, ``/v1/metrics`` and ``/v1/traces`` are put behind it.
        ``totals()``: ``(app id, app, function, environment)`` with what has happened since the server began.
        InvalidError when the library is not installed or the address is none."""
        if not endpoint.startswith(("http://", "https://")):
            raise InvalidError(f"otel_endpoint = {endpoint!r}: it must be an address such as http://127.0.0.1:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
        except ImportError:
            raise InvalidError(
                "otel_endpoint is set, but OpenTelemetry is not installed: install cadenza[otel], then start anew"
            ) from None
        base = endpoint.rstrip("/")
        self._prefix = prefix
        self._totals = totals
        self._now = now
        self._started_ns = int(now() * NANO)
        self._resource = Resource({"service.name": "cadenza", "service.version": __version__})
        self._metrics: Any = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=SEND_LIMIT_S)
        self._spans: Any = OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=SEND_LIMIT_S) if traces else None
        self._ends: list[tuple[Any, float]] = []
        self._seen = 0
        self._sent_at = 0.0
        self._sending: Optional[asyncio.Task[None]] = None

    def ended(self, rows: Sequence[Any], wall: float) -> None:
        """Inputs that ended, as `cadenza.control.history` notes them: a fair part of them is kept for spans."""
        for raw in rows:
            self._seen += 1
            if len(self._ends) < MAX_SPANS:
                self._ends.append((raw, wall))
            elif (at := random.randrange(self._seen)) < MAX_SPANS:
                self._ends[at] = (raw, wall)

    def tick(self) -> None:
        """Send when it is time (also by a clock that was set back) and the last sending is over."""
        now = self._now()
        if abs(now - self._sent_at) >= EXPORT_EVERY_S and (self._sending is None or self._sending.done()):
            self._sent_at = now
            self._sending = asyncio.get_running_loop().create_task(self.send())

    async def send(self) -> None:
        """Send everything now. A collector that does not answer costs a line in the log, and nothing is kept for it:
        the next totals have all of it."""
        totals = list(self._totals())
        data = self._data(totals)
        ends, self._ends, self._seen = self._ends, [], 0
        try:
            result = await asyncio.to_thread(self._metrics.export, data)
            if self._spans is not None and ends:
                spans = [span for raw, wall in ends for span in self._span(raw, wall)]
                result = max(result, await asyncio.to_thread(self._spans.export, spans), key=lambda one: one.value)
            if result.value:
                _log.warning("the collector did not take the metrics", functions=len(totals))
        except Exception as error:  # whatever the library raises: the server goes on without its collector
            _log.warning("the collector cannot be reached", error=str(error))

    async def close(self) -> None:
        """Send what there is, and end."""
        if self._sending is not None:
            self._sending.cancel()
        try:
            await asyncio.wait_for(self.send(), SEND_LIMIT_S)
        except asyncio.TimeoutError:
            _log.warning("the last metrics could not be sent in time")
        self._metrics.shutdown()
        if self._spans is not None:
            self._spans.shutdown()

    def _data(self, totals: Sequence[tuple[Sequence[str], Slice]]) -> Any:
        from opentelemetry.sdk.metrics.export import Metric as Line
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now_ns = int(self._now() * NANO)
        lines = []
        for one in METRICS:
            data = self._points(one, totals, now_ns)
            if data is not None:
                lines.append(Line(f"{self._prefix}.{one.name}", one.description, one.unit, data))
        scope = ScopeMetrics(InstrumentationScope("cadenza", __version__), lines, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _points(self, one: Any, totals: Sequence[tuple[Sequence[str], Slice]], now_ns: int) -> Any:
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality, Gauge, Histogram, HistogramDataPoint, NumberDataPoint, Sum,
        )  # fmt: skip

        points: list[Any] = []
        for label, part in totals:
            about = {"app_id": label[0], "app": label[1], "function": label[2], "environment": label[3]}
            if one.kind == COUNT:
                if one.source == STATUSES:
                    points += [
                        NumberDataPoint({**about, "status": status}, self._started_ns, now_ns, part.counts[status])
                        for status in STATUSES if part.counts.get(status)
                    ]  # fmt: skip
                else:
                    value = sum(part.counts.get(each, 0) for each in one.source)
                    points.append(NumberDataPoint(about, self._started_ns, now_ns, value))
            elif one.kind == TIME:
                counts = part.times.get(one.source[0])
                if counts:
                    passed = histogram.cumulative(counts, BOUNDS_S)
                    single = [count - before for count, before in zip(passed, [0, *passed])]
                    _, total, most, _ = part.sums[one.source[0]]
                    points.append(
                        HistogramDataPoint(
                            about, self._started_ns, now_ns, passed[-1], total * one.scale, single,
                            [bound * one.scale for bound in BOUNDS_S], 0.0, most * one.scale,
                        )
                    )  # fmt: skip
            elif one.source[0] in part.sums:
                points.append(NumberDataPoint(about, self._started_ns, now_ns, float(part.last(one.source[0]))))
        if not points:
            return None
        if one.kind == COUNT:
            return Sum(points, AggregationTemporality.CUMULATIVE, True)
        return Histogram(points, AggregationTemporality.CUMULATIVE) if one.kind == TIME else Gauge(points)

    def _span(self, raw: Any, wall: float) -> list[Any]:
        """An input as a span, and in it its waiting and its run. Inputs of one call are one trace."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        function_id, input_id, call_id, status, enqueued_at, begun, ended, container_id, method, attempts, error = raw
        trace = _number(call_id, 16)
        end_ns = int((ended + wall) * NANO)
        start_ns = min(int(enqueued_at * NANO), end_ns)

        def context(what: str) -> Any:
            return SpanContext(trace, _number(input_id + what, 8), False, TraceFlags(TraceFlags.SAMPLED))

        about = {
            "cadenza.function_id": function_id, "cadenza.call_id": call_id, "cadenza.input_id": input_id,
            "cadenza.container_id": container_id, "cadenza.status": status, "cadenza.attempts": attempts,
            "cadenza.method": method,
        }  # fmt: skip
        whole = context("")
        verdict = Status(StatusCode.OK) if status == SUCCESS else Status(StatusCode.ERROR, error[:300] or status)
        found = [
            ReadableSpan(
                "input", whole, None, self._resource, about, kind=SpanKind.SERVER, status=verdict,
                start_time=start_ns, end_time=end_ns,
            )
        ]  # fmt: skip
        if begun >= 0.0:
            begun_ns = min(max(start_ns, int((begun + wall) * NANO)), end_ns)
            for name, first, last in (("queue", start_ns, begun_ns), ("execution", begun_ns, end_ns)):
                found.append(
                    ReadableSpan(name, context(name), whole, self._resource, {}, start_time=first, end_time=last)
                )
        return found


def _number(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big") or 1
