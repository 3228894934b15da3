"""Export by OTLP over HTTP, to a collector on loopback that decodes what comes."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import sys
import threading
from typing import Any, Iterator

import pytest

from cadenza.base.errors import InvalidError
from cadenza.observe.otel import MAX_SPANS, Exporter
from cadenza.observe.slice import Slice

LABEL = ("ap-1", "shop", "sell", "main")
RAW = ("fu-1", "in-1", "fc-1", "FAILURE", 1000.0, 10.0, 12.0, "ta-1", "", 2, "no")


class Collector(http.server.HTTPServer):
    """Keeps the bodies by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, bytes] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.bodies[self.path] = body
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def totals() -> list[tuple[tuple[str, ...], Slice]]:
    one = Slice()
    one.count("SUCCESS", 5)
    one.count("TIMEOUT", 1)
    one.durations("run", [0.02] * 6)
    one.sample("containers", 2)
    return [(LABEL, one)]


def test_metrics_and_spans_arrive(collector: Collector) -> None:
    async def steps() -> None:
        exporter = Exporter(f"http://127.0.0.1:{collector.server_port}/", "modal", totals, lambda: 2000.0, traces=True)
        exporter.ended([RAW], 995.0)
        await exporter.send()
        await exporter.close()

    asyncio.run(steps())
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    metrics = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"])
    lines = {one.name: one for one in metrics.resource_metrics[0].scope_metrics[0].metrics}
    inputs = {
        {each.key: each.value.string_value for each in point.attributes}["status"]: point.as_int
        for point in lines["modal.input_events.total_inputs"].sum.data_points
    }
    assert inputs == {"SUCCESS": 5, "TIMEOUT": 1}
    assert lines["modal.input_events.total_inputs"].sum.is_monotonic
    point = lines["modal.input_events.elapsed_time_us"].histogram.data_points[0]
    assert (point.count, round(point.sum), sum(point.bucket_counts)) == (6, 120_000, 6)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert lines["modal.container.running"].gauge.data_points[0].as_double == 2.0
    about = {each.key: each.value.string_value for each in point.attributes}
    assert about == {"app_id": "ap-1", "app": "shop", "function": "sell", "environment": "main"}

    traces = ExportTraceServiceRequest.FromString(collector.bodies["/v1/traces"])
    spans = {one.name: one for one in traces.resource_spans[0].scope_spans[0].spans}
    assert set(spans) == {"input", "queue", "execution"}
    whole = spans["input"]
    assert (whole.start_time_unix_nano, whole.end_time_unix_nano) == (1000 * 10**9, 1007 * 10**9)
    assert (spans["queue"].end_time_unix_nano, spans["execution"].start_time_unix_nano) == (1005 * 10**9,) * 2
    assert spans["queue"].parent_span_id == whole.span_id
    assert whole.status.code == 2


def test_spans_that_wait_are_bounded() -> None:
    exporter = Exporter("http://127.0.0.1:9", "modal", list, lambda: 0.0, traces=True)
    exporter.ended([RAW] * (3 * MAX_SPANS), 0.0)
    assert len(exporter._ends) == MAX_SPANS


def test_a_clock_that_is_set_back_stops_no_exports() -> None:
    async def steps() -> None:
        now, sent = [100_000.0], []
        exporter = Exporter("http://127.0.0.1:9", "modal", list, lambda: now[0])

        async def send() -> None:
            sent.append(now[0])

        exporter.send = send  # type: ignore[method-assign]
        for now[0] in (100_000.0, 100_001.0, 50_000.0, 50_001.0, 50_016.0):
            exporter.tick()
            await asyncio.sleep(0.001)
        assert sent == [100_000.0, 50_000.0, 50_016.0]

    asyncio.run(steps())


def test_a_wrong_address_and_a_missing_library_say_what_to_do(monkeypatch: Any) -> None:
    with pytest.raises(InvalidError, match="otel_endpoint"):
        Exporter("127.0.0.1:4318", "modal", list, lambda: 0.0)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(InvalidError, match=r"install cadenza\[otel\]"):
        Exporter("http://127.0.0.1:4318", "modal", list, lambda: 0.0)
