"""The endpoint for Prometheus, read by prometheus-client's own parser."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cadenza.base.errors import InvalidError
from cadenza.observe.prometheus import MAX_FUNCTIONS, OTHERS, Endpoint, families, labelled, page, parse_address
from cadenza.observe.slice import Slice

LABEL = ("ap-1", "shop", "sell", "main")


def busy() -> Slice:
    one = Slice()
    one.count("SUCCESS", 5)
    one.count("FAILURE", 1)
    one.durations("run", [0.02] * 6)
    one.sample("pending", 7)
    return one


def read(text: bytes) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels.get("function", ""), sample.labels.get("status", sample.labels.get("le", ""))):
        sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }  # fmt: skip


def test_names_are_those_of_section_26_with_underscores() -> None:
    found = read(page(list(families([(LABEL, busy())], {"requests": 3.0}, "modal"))))
    assert found[("modal_input_events_total_inputs_total", "sell", "SUCCESS")] == 5.0
    assert found[("modal_input_events_total_inputs_total", "sell", "FAILURE")] == 1.0
    assert found[("modal_input_events_successes_total", "sell", "")] == 5.0
    assert found[("modal_function_pending_inputs", "sell", "")] == 7.0
    assert found[("modal_input_events_elapsed_time_us_bucket", "sell", "10000.0")] == 0.0
    assert found[("modal_input_events_elapsed_time_us_bucket", "sell", "100000.0")] == 6.0
    assert found[("modal_input_events_elapsed_time_us_count", "sell", "")] == 6.0
    assert found[("modal_input_events_elapsed_time_us_sum", "sell", "")] == pytest.approx(120_000.0)
    assert found[("cadenza_server_requests", "", "")] == 3.0


def test_another_prefix() -> None:
    assert b"cadenza_input_events_successes_total{" in page(list(families([(LABEL, busy())], {}, "cadenza")))


def test_functions_beyond_the_bound_are_one() -> None:
    totals = [((f"ap-{n}", f"app{n}", "f", "main"), busy()) for n in range(MAX_FUNCTIONS + 50)]
    rows = labelled(totals)
    assert len(rows) == MAX_FUNCTIONS + 1
    assert dict(rows)[("", OTHERS, "")].counts["SUCCESS"] == 250


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9400") == ("127.0.0.1", 9400)
    assert parse_address("[::1]:0") == ("::1", 0)
    for wrong in ("9400", ":9400", "host", "host:", "host:x", "host:70000"):
        with pytest.raises(InvalidError, match="metrics_address"):
            parse_address(wrong)


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 10.0)).partition(b"\r\n\r\n")
    writer.close()
    return head, body


def test_only_two_paths_by_get() -> None:
    async def steps() -> None:
        endpoint = Endpoint(lambda: [(LABEL, busy())], dict, "modal")
        await endpoint.listen("127.0.0.1:0")
        try:
            head, body = await ask(endpoint.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"ok\n")
            head, body = await ask(endpoint.port, b"GET /metrics?x=1 HTTP/1.1\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert read(body)[("modal_input_events_successes_total", "sell", "")] == 5.0
            for request, status in (
                (b"GET / HTTP/1.1\r\n\r\n", b"404"),
                (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
                (b"nonsense\r\n\r\n", b"400"),
            ):
                head, _ = await ask(endpoint.port, request)
                assert head.split(b" ")[1] == status
            assert await ask(endpoint.port, b"x" * (64 << 10)) == (b"", b"")
            with pytest.raises(InvalidError, match="metrics_address"):
                await Endpoint(list, dict, "modal").listen(f"127.0.0.1:{endpoint.port}")
        finally:
            await endpoint.close()

    asyncio.run(steps())
