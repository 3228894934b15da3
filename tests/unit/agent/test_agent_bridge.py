"""The host's end of the runner's conversation, byte by byte. docs/formats/wire.md, "Agent and runner"."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, Optional, Sequence

import pytest
from agent_fakes import attempt

from cadenza.agent import bridge
from cadenza.protocol.calls import AttemptOutput, BlobRef, GeneratorItem
from cadenza.protocol.frame import PROTOCOL, Decoder, encode

HELLO = {
    "t": "hello",
    "protocol": PROTOCOL,
    "version": "0",
    "role": "runner",
    "python": "3.11.2",
    "pid": 1,
    "boot": {"boot_s": 1},
}


class Ear(bridge.Host):
    """Writes down what it hears."""

    def __init__(self, refusal: Optional[str] = None) -> None:
        self.heard: list[Any] = []
        self.refusal = refusal

    def said_hello(self, link: bridge.Link, hello: bridge.Hello) -> Optional[str]:
        self.heard.append(("hello", hello.python))
        return self.refusal

    def said_ready(self, ready: bridge.Ready) -> None:
        self.heard.append(("ready", ready.import_s))

    def said_failed(self, failed: bridge.Failed, error: bytes) -> None:
        self.heard.append(("failed", failed.text, error))

    def gave_outputs(self, outputs: Sequence[AttemptOutput]) -> None:
        self.heard.append(list(outputs))

    def gave_items(self, items: Sequence[GeneratorItem]) -> None:
        self.heard.append(list(items))

    def printed(self, logs: Sequence[tuple[bridge.Log, bytes]]) -> None:
        self.heard.append([(log.fd, log.i, data) for log, data in logs])

    def said_bye(self) -> None:
        self.heard.append("bye")

    def lost(self, link: bridge.Link, fault: str) -> None:
        self.heard.append(("lost", fault))


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self, link: bridge.Link) -> None:
        super().__init__()
        self.link = link
        self.sent = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def writelines(self, parts: Any) -> None:
        self.sent += b"".join(parts)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.link.connection_lost(None)

    def frames(self) -> list[tuple[dict[str, Any], bytes]]:
        return [(json.loads(raw), payload) for raw, payload in Decoder().feed(self.sent)]


def talk(*pieces: bytes, refusal: Optional[str] = None) -> tuple[Ear, Wire, bridge.Link]:
    async def go() -> tuple[Ear, Wire, bridge.Link]:
        ear = Ear(refusal)
        link = bridge.Link(ear, "/lane")
        wire = Wire(link)
        link.connection_made(wire)
        for piece in pieces:
            link.data_received(piece)
        return ear, wire, link

    return asyncio.run(go())


def test_hello_is_welcomed_with_the_lanes_path() -> None:
    ear, wire, _ = talk(encode(HELLO))
    assert ear.heard == [("hello", "3.11.2")]
    [(header, _)] = wire.frames()
    assert (header["t"], header["protocol"], header["lane"]) == ("welcome", PROTOCOL, "/lane")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({**HELLO, "protocol": 99}, "99"),
        ({**HELLO, "role": "client"}, "only a runner"),
        ({"t": "bye"}, "hello"),
    ],
)
def test_who_is_no_runner_of_ours_is_refused(first: dict[str, Any], words: str) -> None:
    ear, wire, _ = talk(encode(first))
    [(header, _)] = wire.frames()
    assert header["t"] == "refuse"
    assert words in header["message"]
    assert wire.closed
    assert not [one for one in ear.heard if one[0] == "lost"]


def test_one_read_is_one_batch_logs_first_then_items_then_outputs() -> None:
    outs = [
        {"a": "in-1:1", "s": "SUCCESS", "n": 2},
        {"a": "in-2:1", "s": "FAILURE", "n": 3, "error": "E", "blob": None},
    ]
    data = (
        encode({"t": "out", "outs": outs}, b"okexc")
        + encode({"t": "log", "logs": [{"fd": 1, "i": "in-1", "c": "fc", "time": 5.0, "n": 3}]}, b"hi\n")
        + encode({"t": "gen", "items": [{"a": "in-3:1", "k": 0, "n": 0, "blob": "bl-1", "size": 9}]})
        + encode({"t": "out", "outs": [{"a": "in-3:1", "s": "SUCCESS", "items": 1}]})
    )
    ear, _, _ = talk(encode(HELLO), data)
    assert ear.heard[1:] == [
        [(1, "in-1", b"hi\n")],
        [GeneratorItem("in-3:1", 0, b"", BlobRef("bl-1", 9))],
        [
            AttemptOutput("in-1:1", "SUCCESS", b"ok"),
            AttemptOutput("in-2:1", "FAILURE", b"exc", error="E"),
            AttemptOutput("in-3:1", "SUCCESS", items=1),
        ],
    ]


def test_a_goodbye_comes_after_the_outputs_before_it() -> None:
    out = encode({"t": "out", "outs": [{"a": "in-1:1", "s": "SUCCESS"}]})
    ear, _, _ = talk(encode(HELLO), out + encode({"t": "bye"}))
    assert [one if one == "bye" else type(one) for one in ear.heard[1:]] == [list, "bye"]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff" * 16,
        encode({"t": "what"}),
        encode({"t": "out", "outs": [{"a": "in-1:1", "s": "SUCCESS", "n": 5}]}, b"abc"),
        encode({"t": "out", "outs": "no"}),
        encode({"t": "out", "outs": [{"a": "in-1:1", "s": "SUCCESS", "items": 2**63}]}),
        encode({"t": "out", "outs": [{"a": "in-1:1", "s": "SUCCESS", "blob": "bl-1", "size": 2**53 + 1}]}),
        encode({"t": "gen", "items": [{"a": "in-1:1", "k": -1}]}),
        encode({"t": "gen", "items": [{"a": "in-1:1", "k": 0, "blob": "bl-1", "size": 2**70}]}),
        encode(b"not json"),
        encode(HELLO),
    ],
)
def test_who_breaks_the_rules_is_told_and_cut_off(wrong: bytes) -> None:
    good = encode({"t": "out", "outs": [{"a": "in-0:1", "s": "SUCCESS"}]})
    ear, wire, _ = talk(encode(HELLO), good + wrong)
    assert ear.heard[1] == [AttemptOutput("in-0:1", "SUCCESS")]
    assert ear.heard[-1][0] == "lost"
    assert ear.heard[-1][1]
    header, _ = wire.frames()[-1]
    assert (header["t"], header["id"]) == ("err", 0)
    assert wire.closed


def test_frames_may_come_in_any_pieces() -> None:
    data = encode(HELLO) + encode({"t": "ready", "import_s": 0.5, "enter_s": 0.1}) + encode({"t": "bye"})
    ear, _, _ = talk(*(data[at : at + 1] for at in range(len(data))))
    assert ear.heard == [("hello", "3.11.2"), ("ready", 0.5), "bye"]


def test_attempts_go_out_in_frames_that_fit() -> None:
    many = [attempt(number, b"x" * (3 << 20)) for number in range(5)]
    assert [len(one) for one, _ in bridge.batches(many)] == [2, 2, 1]
    assert [len(one) for one, _ in bridge.batches([attempt(n) for n in range(2500)])] == [1000, 1000, 500]
    _, wire, link = talk(encode(HELLO))
    link.run([attempt(7, b"abc")])
    link.run([attempt(8, b"d"), attempt(9, b"ef")])
    link.run([replace(attempt(6), durable=True)])
    link.cancel(["in-7:1"])
    link.revoke(["in-8:1"])
    link.drain(2.5)
    one, two, lasting, cancel, revoke, drain = wire.frames()[1:]
    assert one == ({"t": "run", "ins": [{"a": "in-7:1", "i": "in-7", "c": "fc-1", "n": 3}]}, b"abc")
    assert ([item["n"] for item in two[0]["ins"]], two[1]) == ([1, 2], b"def")
    assert lasting[0]["ins"][0]["durable"] is True
    assert [header for header, _ in (cancel, revoke, drain)] == [
        {"t": "cancel", "a": ["in-7:1"]}, {"t": "revoke", "a": ["in-8:1"]}, {"t": "drain", "grace_s": 2.5},
    ]  # fmt: skip
