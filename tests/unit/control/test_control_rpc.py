"""The RPC server's edge: handshake, typed decoding, errors, streams with credit, limits, and hostile peers.

docs/formats/wire.md is the specification.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import socket
import stat
import struct
from typing import Any, Awaitable, Callable, Optional

import pytest
import uvloop
from hypothesis import given, settings, strategies as st

from cadenza.base.errors import ConflictError, ImageBuildError, InvalidError, NotFoundError, ResourceExhaustedError
from cadenza.base.ids import IdSource
from cadenza.control import connection
from cadenza.control import rpc as module
from cadenza.control.limits import Limits
from cadenza.control.listen import listen_private
from cadenza.control.request import ITEM_COST_BYTES, Reply, Request
from cadenza.control.hello import refuse
from cadenza.control.rpc import Rpc
from cadenza.protocol.calls import OutputItem, ValueRef
from cadenza.protocol.frame import MAX_HEADER_BYTES, PROTOCOL, STREAM_CREDIT_BYTES, Decoder, encode
from cadenza.protocol.objects import AppInfo
from cadenza.protocol.functions import FunctionInfo
from cadenza.protocol.methods import (
    AppCreated,
    Apps,
    CallOutput,
    Empty,
    ExecOutput,
    LogBatch,
    Missing,
)

Head = dict[str, Any]


class Peer:
    """A client that says exactly what a test tells it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = Decoder()
        self.frames: list[tuple[Head, bytes]] = []
        self.welcome: Head = {}

    @classmethod
    async def connect(cls, path: str, hello: bool = True) -> Peer:
        peer = cls(*await asyncio.open_unix_connection(path))
        if hello:
            await peer.hello()
        return peer

    async def hello(self) -> None:
        self.send({"t": "hello", "protocol": PROTOCOL, "version": "0.1.0", "role": "client"})
        self.welcome, _ = await self.next()

    def send(self, header: Head, payload: bytes = b"") -> None:
        self.writer.write(encode(header, payload))

    def request(self, number: int, method: str, body: Optional[Head] = None, payload: bytes = b"") -> None:
        self.send({"t": "req", "id": number, "m": method, "b": body or {}}, payload)

    async def next(self) -> tuple[Head, bytes]:
        """The next frame; EOFError at the end of the connection."""
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(1 << 16), 10)
            if not data:
                raise EOFError
            self.frames += [(json.loads(head), payload) for head, payload in self.decoder.feed(data)]
        return self.frames.pop(0)

    async def ask(self, number: int, method: str, body: Optional[Head] = None, payload: bytes = b"") -> Head:
        self.request(number, method, body, payload)
        return (await self.next())[0]

    def close(self) -> None:
        self.writer.close()


def serving(
    tmp_path: Any, handlers: dict[str, Any], test: Callable[[Rpc, str], Awaitable[None]], closed: Any = None
) -> None:
    """Run ``test(server, socket path)`` against a server with ``handlers``."""

    async def main() -> None:
        server = Rpc(handlers, IdSource(), closed or (lambda connection_id: None), "/run/lane.sock")
        path = str(tmp_path / "run" / "s.sock")
        server.listen(path)
        try:
            await test(server, path)
        finally:
            await server.close()
        assert not server.connections

    uvloop.run(main())


async def create(request: Request[Any]) -> AppCreated:
    return AppCreated("ap-" + request.body.name)


def test_a_long_list_is_the_replys_payload(tmp_path: Any) -> None:
    async def many(request: Request[Any]) -> Missing:
        return Missing(tuple(f"{one:064d}" for one in range(int(request.body.digests[0]))))

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        assert len((await peer.ask(1, "object.missing", {"digests": ["10000"]}))["b"]["digests"]) == 10_000
        peer.request(2, "object.missing", {"digests": ["50000"]})
        head, payload = await peer.next()
        assert head == {"t": "rep", "id": 2, "b_in_payload": True}
        assert len(json.loads(payload)["digests"]) == 50_000
        too_large = await peer.ask(3, "object.missing", {"digests": ["300000"]})
        assert too_large["e"]["kind"] == "request_size"
        peer.close()

    serving(tmp_path, {"object.missing": many}, test)


def test_an_error_that_shows_a_long_word_arrives(tmp_path: Any) -> None:
    async def unknown(request: Request[Any]) -> AppCreated:
        raise NotFoundError(f"there is no app {request.body.name!r}")

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        told = await peer.ask(1, "app.create", {"name": "\u00e9" * 500_000})
        assert told["e"]["kind"] == "not_found" and len(told["e"]["message"]) < 100_000
        peer.close()

    serving(tmp_path, {"app.create": unknown}, test)


def test_a_request_is_decoded_and_answered(tmp_path: Any) -> None:
    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        assert peer.welcome["t"] == "welcome"
        assert peer.welcome["protocol"] == PROTOCOL
        assert peer.welcome["lane"] == "/run/lane.sock"
        assert peer.welcome["connection"].startswith("co-")
        assert await peer.ask(1, "app.create", {"name": "x"}) == {"t": "rep", "id": 1, "b": {"app_id": "ap-x"}}
        assert server.clients == 1
        peer.close()

    serving(tmp_path, {"app.create": create}, test)


def test_the_socket_is_this_users_alone(tmp_path: Any) -> None:
    async def test(server: Rpc, path: str) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700

    serving(tmp_path, {}, test)


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Any) -> None:
    """It is told to the user and not closed: it may be one that others need."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(InvalidError, match="chmod 700"):
        listen_private(str(folder / "s.sock"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    folder.chmod(0o700)
    (folder / "s.sock").write_text("not a socket")
    with pytest.raises(InvalidError, match="cannot listen"):
        listen_private(str(folder / "s.sock"))
    (folder / "s.sock").unlink()
    listen_private(str(folder / "s.sock")).close()
    listen_private(str(folder / "s.sock")).close()  # one that a killed server left is replaced


def test_a_mismatch_is_refused_with_a_sentence(tmp_path: Any) -> None:
    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path, hello=False)
        peer.send({"t": "hello", "protocol": PROTOCOL + 1, "version": "9.9", "role": "client"})
        head, _ = await peer.next()
        assert head["t"] == "refuse"
        assert "9.9" in head["message"]
        assert "upgrade" in head["message"]
        with pytest.raises(EOFError):
            await peer.next()
        peer.close()

    serving(tmp_path, {}, test)
    assert "program" in refuse(PROTOCOL - 1, "0.0.9", "client")
    assert "restart" in refuse(PROTOCOL + 1, "2", "client")
    assert "role" in refuse(PROTOCOL, "2", "runner")
    assert refuse(PROTOCOL, "2", "client") == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"functions": []}, "app_id"),
        ({"app_id": 7, "functions": []}, "str"),
        ({"app_id": "ap-1", "functions": [{"name": "f", "timeout_s": "soon"}]}, "timeout_s"),
        ({"app_id": "ap-1", "functions": 5}, "array"),
    ],
)
def test_a_body_of_the_wrong_shape_is_an_error_of_that_request(tmp_path: Any, body: Head, words: str) -> None:
    async def never(request: Request[Any]) -> Empty:
        raise AssertionError("a handler saw what could not be decoded")

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        reply = await peer.ask(1, "app.publish", body)
        assert reply["t"] == "err"
        assert reply["e"]["kind"] == "invalid"
        assert words in reply["e"]["message"]
        assert (await peer.ask(2, "app.create", {"name": "y"}))["b"] == {"app_id": "ap-y"}
        peer.close()

    serving(tmp_path, {"app.publish": never, "app.create": create}, test)


def test_errors_travel_by_kind_and_faults_do_not_leak(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ResourceExhaustedError) as too_many:
        Limits({}).check("fu-1", attached=False, count=10_000_000)

    async def get(request: Request[Any]) -> AppInfo:
        raise {
            "a": NotFoundError("no app a"),
            "b": ConflictError("b is stopped"),
            "c": ImageBuildError("step 2", image_id="im-1"),
            "d": ZeroDivisionError("a secret of ours"),
            "e": OSError(errno.ENOSPC, "No space left on device"),
            "f": ResourceExhaustedError("the disk that holds the data is full"),
            "g": too_many.value,
        }[request.body.app]

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        found = {one: (await peer.ask(1, "app.get", {"app": one}))["e"] for one in "abcdefg"}
        assert found["a"]["kind"] == "not_found"
        assert found["b"]["kind"] == "conflict"
        assert found["c"] == {"kind": "image_build", "message": "step 2", "detail": {"image_id": "im-1"}}
        assert found["e"]["kind"] == "resource_exhausted"
        assert "free some space" in found["e"]["message"]
        # Whether callers wait for room: for calls that end, not for a disk.
        assert [found[one]["detail"] for one in "efg"] == [{"throttle": False}, {"throttle": False}, {"throttle": True}]
        assert found["d"]["kind"] == "internal"
        assert "secret" not in found["d"]["message"]
        fault = found["d"]["message"].rsplit(" ", 1)[1]
        assert any(fault in one.getMessage() for one in caplog.records)
        assert server.metrics.read() == {
            "connections": 1,
            "requests": 7,
            **{f"errors.{kind}": 1 for kind in ("not_found", "conflict", "image_build", "internal")},
            "errors.resource_exhausted": 3,
        }
        peer.close()

    serving(tmp_path, {"app.get": get}, test)


def test_who_calls_is_known_from_the_socket(tmp_path: Any) -> None:
    """A container's SDK says ``client`` too, and may not call what is for users' processes."""
    seen: list[str] = []

    async def info(request: Request[Any]) -> FunctionInfo:
        seen.append(request.caller.container_id)
        return FunctionInfo("fu-1", "ap-1", "f", False)

    async def test(server: Rpc, path: str) -> None:
        ours, theirs = socket.socketpair()
        server.serve(ours, "ta-1")
        peer = Peer(*await asyncio.open_unix_connection(sock=theirs))
        await peer.hello()
        assert peer.welcome["lane"] == ""
        assert (await peer.ask(1, "app.create", {"name": "x"}))["e"]["kind"] == "permission_denied"
        assert (await peer.ask(2, "function.get", {"function_id": "fu-1"}))["t"] == "rep"
        assert server.clients == 0
        peer.close()

    serving(tmp_path, {"app.create": create, "function.get": info}, test)
    assert seen == ["ta-1"]


def test_a_container_cannot_keep_others_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTAINER_CONNECTIONS", 3)

    async def test(server: Rpc, path: str) -> None:
        pairs = [socket.socketpair() for _ in range(4)]
        for ours, _ in pairs:
            server.serve(ours, "ta-1")
        head, _ = Decoder().feed(pairs[3][1].recv(1000))[0]
        assert json.loads(head)["t"] == "refuse"
        other, theirs = socket.socketpair()
        server.serve(other, "ta-2")
        peer = Peer(*await asyncio.open_unix_connection(sock=theirs))
        await peer.hello()
        assert peer.welcome["t"] == "welcome"
        peer.close()
        for _, one in pairs:
            one.close()

    serving(tmp_path, {}, test)


def test_unknown_and_unbuilt_methods(tmp_path: Any) -> None:
    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        assert (await peer.ask(1, "no.such"))["e"]["kind"] == "not_found"
        assert (await peer.ask(2, "app.stop", {"app": "x"}))["e"]["kind"] == "unimplemented"
        peer.close()

    serving(tmp_path, {}, test)


def test_values_ride_in_the_payload(tmp_path: Any) -> None:
    async def run(request: Request[Any]) -> Reply:
        data = request.payload[::-1]
        return Reply(CallOutput("fc-1", OutputItem(0, "in-1", "SUCCESS", ValueRef(len(data)))), (data,))

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        peer.request(1, "call.run", {"function_id": "fu-1", "value": {"size": 3}}, b"abc")
        head, payload = await peer.next()
        assert head["b"]["output"]["value"] == {"size": 3, "blob": None}
        assert payload == b"cba"
        peer.close()

    serving(tmp_path, {"call.run": run}, test)


def test_cancel_ends_a_request_and_frees_its_number(tmp_path: Any) -> None:
    cancelled: list[bool] = []

    async def run(request: Request[Any]) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.lost)
            raise
        raise AssertionError

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        peer.request(1, "call.run", {"function_id": "f", "value": {}})
        peer.send({"t": "cancel", "id": 99})
        peer.send({"t": "ping"})
        assert (await peer.next())[0] == {"t": "pong"}
        peer.send({"t": "cancel", "id": 1})
        assert (await peer.next())[0]["e"]["kind"] == "cancelled"
        assert (await peer.ask(1, "app.create", {"name": "z"}))["b"] == {"app_id": "ap-z"}
        peer.close()

    serving(tmp_path, {"call.run": run, "app.create": create}, test)
    assert cancelled == [False]


def test_a_connections_end_cancels_its_requests_and_is_told_once(tmp_path: Any) -> None:
    lost: list[bool] = []
    closed: list[str] = []
    over = asyncio.Event()

    async def run(request: Request[Any]) -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            lost.append(request.lost)
            over.set()
        raise AssertionError

    async def test(server: Rpc, path: str) -> None:
        silent = await Peer.connect(path, hello=False)
        silent.close()
        peer = await Peer.connect(path)
        for number in range(1, 4):
            peer.request(number, "call.run", {"function_id": "f", "value": {}})
        peer.send({"t": "ping"})
        await peer.next()
        peer.close()
        await asyncio.wait_for(over.wait(), 5)
        for _ in range(10):
            await asyncio.sleep(0)
        assert closed == [peer.welcome["connection"]]

    serving(tmp_path, {"call.run": run}, test, closed.append)
    assert lost == [True, True, True]


def test_a_stream_down_waits_for_credit(tmp_path: Any) -> None:
    """4 MiB may be outstanding; one item may overrun it, the next one waits."""
    item = 1 << 20
    sent: list[int] = []

    async def read(request: Request[Any]) -> None:
        for number in range(8):
            await request.send(LogBatch((), number), (bytes(item),))
            sent.append(number)

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        peer.request(1, "log.read", {"app": "x"})
        for _ in range(4):
            await peer.next()
        peer.send({"t": "ping"})
        assert (await peer.next())[0] == {"t": "pong"}
        assert sent == [0, 1, 2, 3]  # 4 MiB and 4 * 256 bytes are out
        peer.send({"t": "credit", "id": 1, "n": 2 * (item + ITEM_COST_BYTES)})
        for number in (4, 5):
            head, payload = await peer.next()
            assert head["b"]["dropped_bytes"] == number
            assert len(payload) == item
        peer.send({"t": "credit", "id": 1, "n": 1 << 40})
        for _ in (6, 7):
            await peer.next()
        assert (await peer.next())[0] == {"t": "end", "id": 1}
        peer.close()

    serving(tmp_path, {"log.read": read}, test)


def test_a_stream_up_is_typed_granted_again_and_bounded(tmp_path: Any) -> None:
    got: list[Any] = []
    go = asyncio.Event()

    async def execute(request: Request[Any]) -> None:
        await go.wait()
        while (one := await request.receive()) is not None:
            got.append(one)
        await request.send(ExecOutput(exit_code=0))

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        peer.request(1, "container.exec", {"container_id": "ta-1", "argv": ["cat"]})
        peer.send({"t": "item", "id": 1, "b": {"rows": 3}}, bytes(2 << 20))
        peer.send({"t": "item", "id": 1, "b": {"eof": True}})
        peer.send({"t": "end", "id": 1})
        go.set()
        credit, _ = await peer.next()
        assert credit == {"t": "credit", "id": 1, "n": (2 << 20) + ITEM_COST_BYTES}
        assert (await peer.next())[0]["b"]["exit_code"] == 0
        assert (await peer.next())[0]["t"] == "end"
        assert [(one.rows, one.eof, len(data)) for one, data in got] == [(3, False, 2 << 20), (0, True, 0)]

        go.clear()
        peer.request(2, "container.exec", {"container_id": "ta-1", "argv": ["cat"]})
        for _ in range(STREAM_CREDIT_BYTES // (1 << 20) + 1):
            peer.send({"t": "item", "id": 2, "b": {}}, bytes(1 << 20))
        head, _ = await peer.next()
        assert head["id"] == 2
        assert head["e"]["kind"] == "invalid"
        assert "credit" in head["e"]["message"]

        peer.request(3, "container.exec", {"container_id": "ta-1", "argv": ["cat"]})
        peer.send({"t": "item", "id": 3, "b": {"rows": "many"}})
        assert (await peer.next())[0]["e"]["kind"] == "invalid"
        peer.close()

    serving(tmp_path, {"container.exec": execute}, test)


def test_too_many_requests_and_a_number_in_use(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_OPEN_REQUESTS", 5)

    async def run(request: Request[Any]) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        for number in range(1, 7):
            peer.request(number, "call.run", {"function_id": "f", "value": {}})
        head, _ = await peer.next()
        assert (head["id"], head["e"]["kind"]) == (6, "resource_exhausted")
        peer.request(5, "call.run", {"function_id": "f", "value": {}})
        head, _ = await peer.next()
        assert head["id"] == 0
        assert "not free" in head["e"]["message"]
        with pytest.raises(EOFError):
            await peer.next()
        peer.close()

    serving(tmp_path, {"call.run": run}, test)


def test_payloads_are_for_methods_with_values_and_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_OPEN_BYTES", 1000)
    go = asyncio.Event()

    async def run(request: Request[Any]) -> Reply:
        await go.wait()
        return Reply(CallOutput("fc-1", OutputItem(0, "in-1", "SUCCESS", ValueRef())))

    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        refused = await peer.ask(1, "app.create", {"name": "x"}, b"what for")
        assert refused["e"]["kind"] == "invalid" and "takes no payload" in refused["e"]["message"]
        body = {"function_id": "f", "value": {"size": 600}}
        peer.request(2, "call.run", body, b"x" * 600)
        refused = await peer.ask(3, "call.run", body, b"x" * 600)
        assert (refused["id"], refused["e"]["kind"]) == (3, "resource_exhausted")
        peer.send({"t": "cancel", "id": 2})
        assert (await peer.next())[0]["e"]["kind"] == "cancelled"
        go.set()
        for number in range(4, 8):
            assert (await peer.ask(number, "call.run", body, b"x" * 600))["t"] == "rep"
        peer.close()

    serving(tmp_path, {"call.run": run, "app.create": create}, test)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        struct.pack(">II", 10, MAX_HEADER_BYTES + 1) + b"x" * 10,
        encode(b"[]"),
        encode(b'{"t":"hello"}'),
        encode(b'{"t":"req","id":1}'),
        encode(b"not json"),
        encode(b'{"t":"hello","protocol":"one"}'),
    ],
)
def test_what_is_no_hello_is_told_so_and_closed(tmp_path: Any, raw: bytes) -> None:
    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path, hello=False)
        peer.writer.write(raw)
        head, _ = await peer.next()
        assert head["t"] == "err"
        assert head["id"] == 0
        with pytest.raises((EOFError, ConnectionResetError)):
            await peer.next()
        peer.close()

    serving(tmp_path, {}, test)


def test_a_fault_behind_good_frames_is_found_at_once(tmp_path: Any) -> None:
    async def test(server: Rpc, path: str) -> None:
        peer = await Peer.connect(path)
        peer.writer.write(encode({"t": "ping"}) + b"\xff" * 8)
        assert (await peer.next())[0] == {"t": "pong"}
        assert (await peer.next())[0]["id"] == 0
        peer.close()

    serving(tmp_path, {}, test)


def test_a_client_that_does_not_read_is_not_read_from(tmp_path: Any) -> None:
    served = 0

    async def missing(request: Request[Any]) -> Missing:
        nonlocal served
        served += 1
        return Missing(("0" * 1_000_000,))

    async def test(server: Rpc, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        peer = await Peer.connect(path)
        frames = encode({"t": "hello", "protocol": PROTOCOL, "version": "", "role": "client"})
        sock.send(frames)
        number = 0
        stuck = 0
        while stuck < 20:
            number += 1
            try:
                sock.send(encode({"t": "req", "id": number, "m": "object.missing", "b": {"digests": ["x" * 4000]}}))
                stuck = 0
            except BlockingIOError:
                stuck += 1
            peer.send({"t": "ping"})  # others are served meanwhile
            assert (await peer.next())[0] == {"t": "pong"}
        assert served < 200
        decoder, answered = Decoder(), 0
        while answered < number - 20:  # it reads after all, and nothing was lost
            try:
                answered += sum(b'"rep"' in head for head, _ in decoder.feed(sock.recv(1 << 20)))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert served >= answered
        sock.close()
        peer.close()

    serving(tmp_path, {"object.missing": missing}, test)


def test_a_thousand_connections_and_random_bytes(tmp_path: Any) -> None:
    """A half frame, nothing at all, noise: the server goes on serving, and lets every connection go."""
    rng = random.Random(5)
    good = encode({"t": "hello", "protocol": PROTOCOL, "version": "1", "role": "client"})

    async def test(server: Rpc, path: str) -> None:
        socks = []
        for number in range(1000):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            sock.connect(path)
            choice = number % 4
            if choice == 0:
                sock.send(good[: rng.randrange(len(good))] or b"\0")
            elif choice == 1:
                sock.send(rng.randbytes(rng.randrange(1, 300)))
            elif choice == 2:
                frame = bytearray(encode({"t": "req", "id": 1, "m": "app.create", "b": {"name": "x"}}))
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
                sock.send(good + bytes(frame))
            socks.append(sock)
            if number % 50 == 0:
                await asyncio.sleep(0)
        peer = await Peer.connect(path)
        assert (await peer.ask(1, "app.create", {"name": "x"}))["b"] == {"app_id": "ap-x"}
        for sock in socks:
            sock.close()
        for _ in range(200):
            if len(server.connections) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(server.connections) == 1
        peer.close()

    serving(tmp_path, {"app.create": create}, test)


def test_closing_says_so_and_cancels(tmp_path: Any) -> None:
    ended: list[int] = []

    async def listed(request: Request[Any]) -> Apps:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(request.id)
        raise AssertionError

    async def main() -> None:
        server = Rpc({"app.list": listed}, IdSource())
        path = str(tmp_path / "run" / "s.sock")
        server.listen(path)
        peer = await Peer.connect(path)
        peer.request(1, "app.list")
        peer.send({"t": "ping"})
        await peer.next()
        await server.close()
        head, _ = await peer.next()
        assert head["e"]["kind"] == "unavailable"
        assert not os.path.exists(path)
        peer.close()

    uvloop.run(main())
    assert ended == [1]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.out = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.out += data

    def writelines(self, parts: list[bytes]) -> None:
        self.out += b"".join(parts)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(["req", "rep", "item", "end", "credit", "cancel", "ping", "pong", "hello", "", "err"])
heads = st.fixed_dictionaries(
    {"t": words},
    optional={
        "id": st.integers(-2, 4) | json_values,
        "m": st.sampled_from(["app.create", "log.read", "container.exec", "x"]) | json_values,
        "b": json_values | st.just({"container_id": "ta-1", "argv": ["x"]}),
        "n": st.integers(-5, 10) | json_values,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(heads, st.binary(max_size=20)) | st.binary(max_size=40), max_size=12), st.booleans())
def test_whatever_arrives_is_answered_in_frames(pieces: list[Any], greet: bool) -> None:
    """Half frames, nonsense, the right frames in the wrong order: replies, errors, or the end; never a fault."""

    async def talk(request: Request[Any]) -> None:
        while (item := await request.receive()) is not None:
            await request.send(ExecOutput(), (item[1],))

    async def read(request: Request[Any]) -> None:
        await request.send(LogBatch(()))

    async def main() -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        server = Rpc({"app.create": create, "log.read": read, "container.exec": talk}, IdSource())
        connection = module.Connection(server, "")
        server.connections.add(connection)
        wire = Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        raw = encode({"t": "hello", "protocol": PROTOCOL, "role": "client"}) if greet else b""
        for one in pieces:
            raw += one if isinstance(one, bytes) else encode(one[0], one[1])
        for start in range(0, len(raw), 37):
            part = raw[start : start + 37]
            connection.get_buffer(-1)[: len(part)] = part
            connection.buffer_updated(len(part))
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        for head, _ in Decoder().feed(wire.out):
            answer = json.loads(head)
            assert answer["t"] in ("welcome", "refuse", "rep", "err", "item", "end", "credit", "pong")
            if answer["t"] == "err":
                assert answer["e"]["kind"] != "internal"
        connection.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not server.connections
        assert faults == []

    asyncio.run(main())
