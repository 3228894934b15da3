"""`Client`, its connection, and how the embedded server is started: semantics.md sections 1, 2, 34; wire.md."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from cadenza.base.errors import ClientClosed, ConnectionError, InternalError, InvalidError, ServiceError, VersionError
from cadenza.protocol.frame import encode
from cadenza.protocol.methods import AppList, AppRef
from cadenza.sdk import _dual, connection, embedded
from cadenza.sdk.client import Client
from fake_server import FakeServer


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))
    yield one
    one.close()


@pytest.fixture
def client(server):
    one = Client("unix:" + server.path)
    yield one
    one.close()


def run(client, method, body, payload=()):
    return _dual.run(client._request_raw(method, body, payload))


def echo(peer, number, body, payload):
    peer.send("rep", number, body, payload)


def test_hello_says_who_and_which_version(client, server):
    client.hello()
    hello = server.received[0]
    assert (hello["t"], hello["protocol"], hello["role"]) == ("hello", 1, "client")
    with client as same:
        assert same is client
    assert client.is_closed()


def test_a_refusal_is_the_servers_own_sentence(client, server):
    server.refusal = "This server speaks protocol 2: upgrade the client."
    with pytest.raises(VersionError, match="upgrade the client"):
        client.hello()


def test_nobody_there_names_the_socket_and_the_way_out(tmp_path):
    path = str(tmp_path / "nobody.sock")
    with pytest.raises(ConnectionError, match=r"Could not connect to the Cadenza server at .*nobody\.sock") as caught:
        Client("unix:" + path).hello()
    assert "server_url" in str(caught.value)


def test_requests_are_answered_in_any_order(client, server):
    async def answer(peer, number, body, payload):
        await asyncio.sleep(0.02 if body["n"] == 0 else 0)
        peer.send("rep", number, body, payload)

    server.handlers["call.run"] = answer

    async def main():
        return await asyncio.gather(*(client._request_raw("call.run", {"n": n}, [b"x" * n]) for n in range(50)))

    assert _dual.run(main()) == [({"n": n}, b"x" * n) for n in range(50)]


def test_a_long_reply_is_in_the_payload(client, server):
    raw = json.dumps({"digests": ["x" * 64] * 50_000}).encode()
    server.handlers["object.missing"] = lambda peer, number, body, payload: peer.send(
        "rep", number, None, raw, b_in_payload=True
    )
    body, payload = run(client, "object.missing", {})
    assert len(body["digests"]) == 50_000 and payload == b""


def test_errors_become_their_classes(client, server):
    server.handlers["app.get"] = lambda peer, number, body, payload: peer.error(number, "internal", "see the log")
    with pytest.raises(InternalError, match="see the log"):
        run(client, "app.get", {"app": "x"})


def test_typed_requests(client, server):
    app = {"app_id": "ap-1", "name": "n", "state": "ephemeral", "created_at": 1.0, "novelty": 1}
    server.handlers["app.list"] = lambda peer, number, body, payload: peer.send("rep", number, {"apps": [app]})
    found = _dual.run(client._request("app.list", AppList()))
    assert found.apps[0].name == "n"


def test_cancelling_a_request_tells_the_server_and_frees_nothing_else(client, server):
    async def never(peer, number, body, payload):
        await asyncio.sleep(3600)

    server.handlers["call.run"] = never
    server.handlers["call.info"] = echo

    async def main():
        task = asyncio.ensure_future(client._request_raw("call.run", {}))
        while not server.requests("call.run"):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await client._request_raw("call.info", {"a": 1})

    assert _dual.run(main()) == ({"a": 1}, b"")
    assert [one["id"] for one in server.frames("cancel")] == [1]


def test_repeatable_requests_survive_a_broken_connection_and_others_do_not(client, server):
    seen = []

    def break_first(peer, number, body, payload):
        seen.append(number)
        if len(seen) == 1:
            peer.writer.transport.abort()
        else:
            peer.send("rep", number, {})

    server.handlers["app.heartbeat"] = break_first
    _dual.run(client._request("app.heartbeat", AppRef("ap-1")))
    assert server.hellos == 2
    seen.clear()
    server.handlers["app.create"] = break_first
    with pytest.raises(ServiceError, match="lost"):
        run(client, "app.create", {})
    assert len(seen) == 1


def test_streams_grant_credit_so_that_the_sender_goes_on(client, server):
    size = 64 << 10
    count = 3 * connection.STREAM_CREDIT_BYTES // size

    async def flood(peer, number, body, payload):
        for _ in range(count):
            while peer.credit[number] <= 0:
                await asyncio.sleep(0.001)
            peer.credit[number] -= size + 256
            peer.send("item", number, {}, bytes(size))
        peer.send("end", number)

    server.handlers["log.read"] = flood

    async def main():
        stream = await client._stream("log.read", {})
        got = 0
        while (item := await stream.receive()) is not None:
            got += len(item[1])
        return got

    assert _dual.run(main()) == size * count


def test_streams_wait_for_credit_before_they_send(client, server):
    """4 MiB may be outstanding, one item may overrun."""
    item = bytes(1 << 20)

    async def slow(peer, number, body, payload):
        await asyncio.sleep(0.05)
        before = len(server.frames("item"))
        peer.send("item", number, {"before": before})
        peer.send("credit", number, n=1 << 30)

    server.handlers["container.exec"] = slow

    async def main():
        stream = await client._stream("container.exec", {})
        for _ in range(10):
            await stream.send({}, [item])
        told = await stream.receive()
        stream.cancel()
        return told

    body, _ = _dual.run(main())
    assert body["before"] == 4


def test_more_requests_than_may_be_open_wait_their_turn(client, server, monkeypatch):
    monkeypatch.setattr(connection, "MAX_OPEN_REQUESTS", 5)
    open_now, most = [], []

    async def answer(peer, number, body, payload):
        open_now.append(number)
        most.append(len(open_now))
        await asyncio.sleep(0.002)
        open_now.remove(number)
        peer.send("rep", number, body)

    server.handlers["call.run"] = answer

    async def main():
        return await asyncio.gather(*(client._request_raw("call.run", {"n": n}) for n in range(40)))

    assert [body["n"] for body, _ in _dual.run(main())] == list(range(40))
    assert max(most) == 5


def test_all_that_is_under_way_fails_when_the_server_dies_each_with_its_own_error(client, server):
    async def never(peer, number, body, payload):
        if body["n"] == 9:
            server.drop_connections()
        await asyncio.sleep(3600)

    server.handlers["call.run"] = never

    async def main():
        calls = (client._request_raw("call.run", {"n": n}) for n in range(10))
        return await asyncio.gather(*calls, return_exceptions=True)

    ends = _dual.run(main())
    assert [type(one) for one in ends] == [ServiceError] * 10
    assert len({id(one) for one in ends}) == 10


def test_a_ping_is_answered(client, server):
    def ping(peer, number, body, payload):
        peer.writer.write(encode({"t": "ping"}))
        peer.send("rep", number, {})

    server.handlers["call.run"] = ping
    server.handlers["call.info"] = echo
    run(client, "call.run", {})
    run(client, "call.info", {})
    assert len(server.frames("pong")) == 1


def test_a_server_that_hangs_is_asked_and_then_given_up(client, server, monkeypatch):
    monkeypatch.setattr(connection, "PING_AFTER_S", 0.02)
    monkeypatch.setattr(connection, "GIVE_UP_AFTER_S", 0.2)
    server.handlers["call.run"] = lambda peer, number, body, payload: None
    with pytest.raises(ServiceError, match="has said nothing"):
        run(client, "call.run", {})
    assert server.frames("ping")


def test_a_slow_answer_is_waited_for_while_the_server_is_there(client, server, monkeypatch):
    monkeypatch.setattr(connection, "PING_AFTER_S", 0.02)
    monkeypatch.setattr(connection, "GIVE_UP_AFTER_S", 0.2)
    server.answers_pings = True

    async def late(peer, number, body, payload):
        await asyncio.sleep(0.5)
        peer.send("rep", number, {})

    server.handlers["call.run"] = late
    assert run(client, "call.run", {}) == ({}, b"")


def test_other_addresses_than_sockets_are_refused():
    with pytest.raises(InvalidError, match="unix:/path/to/socket"):
        Client("http://127.0.0.1:1").hello()


def test_what_is_not_our_protocol_ends_the_connection(client, server):
    server.handlers["call.run"] = lambda peer, number, body, payload: peer.writer.write(
        b"HTTP/1.1 400 Bad Request\r\n\r\n"
    )
    with pytest.raises(ServiceError, match="not our protocol"):
        run(client, "call.run", {})


def test_close_fails_what_is_under_way(client, server):
    async def never(peer, number, body, payload):
        threading.Timer(0.01, client.close).start()
        await asyncio.sleep(3600)

    server.handlers["call.run"] = never
    with pytest.raises(ClientClosed):
        run(client, "call.run", {})
    with pytest.raises(ClientClosed):
        client.hello()


def test_after_a_fork_the_child_makes_its_own_connection(client, server):
    server.handlers["call.info"] = echo
    run(client, "call.info", {})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if run(client, "call.info", {"a": 2}) == ({"a": 2}, b"") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(client, "call.info", {"a": 3}) == ({"a": 3}, b"")
    assert server.hellos == 2


def test_a_silent_peer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.05)
    path = str(tmp_path / "silent.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with pytest.raises(ConnectionError, match="said nothing"):
        Client("unix:" + path).hello()
    listener.close()


# --- the embedded server ---

SERVER = textwrap.dedent(
    """
    import fcntl, os, socket, sys, time
    from cadenza.base import config
    from cadenza.protocol.frame import encode
    c = config.load()
    os.makedirs(c.runtime_dir, exist_ok=True)
    lock = open(c.lock_path, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(3)
    print("serving", os.getpid(), flush=True)
    s = socket.socket(socket.AF_UNIX)
    s.bind(c.socket_path)
    s.listen()
    s.settimeout(10)
    kept = []
    try:
        while True:
            one, _ = s.accept()
            one.recv(1 << 16)
            one.sendall(encode({"t": "welcome", "protocol": 1, "version": "0", "connection": "co-1", "lane": ""}))
            kept.append(one)
    except Exception:
        pass
    """
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    root = tmp_path / "home"
    monkeypatch.setenv("CADENZA_HOME", str(root))
    for name in ("CADENZA_SERVER_URL", "MODAL_SERVER_URL", "CADENZA_SUPPORT"):
        monkeypatch.delenv(name, raising=False)
    yield root
    for child in embedded._children:
        child.kill()
        child.wait()
    embedded._children.clear()


def test_the_embedded_server_is_started_when_nobody_answers(home, monkeypatch):
    monkeypatch.setattr(embedded, "ARGUMENTS", ("-c", SERVER))
    with Client():
        pass
    with Client():
        pass
    assert (home / "state" / "server.log").read_text().count("serving") == 1
    assert os.getsid(embedded._children[0].pid) == embedded._children[0].pid


def test_two_programs_at_once_end_with_one_server(home, monkeypatch):
    program = (
        "import sys\nfrom cadenza.sdk import embedded\nfrom cadenza.sdk.client import Client\n"
        "embedded.ARGUMENTS = ('-c', sys.argv[1])\nc = Client()\nc.hello()\nprint('connected')\n"
        "print(*(one.pid for one in embedded._children), file=sys.stderr)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [one.communicate(timeout=60) for one in both]
    try:
        assert [out for out, _ in ends] == ["connected\n"] * 2
        assert (home / "state" / "server.log").read_text().count("serving") == 1
    finally:
        for _, err in ends:
            for pid in err.split():
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass


def test_a_server_that_fails_is_quoted(home, monkeypatch):
    monkeypatch.setattr(embedded, "ARGUMENTS", ("-c", "import sys; print('disk full'); sys.exit(4)"))
    with pytest.raises(ConnectionError, match="exit code 4") as caught:
        Client().hello()
    assert "disk full" in str(caught.value) and "server.log" in str(caught.value)


def test_a_server_that_never_listens_is_quoted_after_the_deadline(home, monkeypatch):
    monkeypatch.setattr(embedded, "ARGUMENTS", ("-c", "import time; print('thinking', flush=True); time.sleep(60)"))
    monkeypatch.setattr(embedded, "START_DEADLINE_S", 0.5)
    with pytest.raises(ConnectionError, match="does not listen"):
        Client().hello()


def test_a_server_that_is_just_ending_is_followed_by_a_new_one(home, monkeypatch):
    """It holds the lock and listens no more: ours finds the lock taken, and is started again."""
    monkeypatch.setattr(embedded, "AGAIN_S", 0.05)
    monkeypatch.setattr(embedded, "ARGUMENTS", ("-c", SERVER))
    (home / "state").mkdir(parents=True)
    holder = open(home / "state" / "server.lock", "w")  # noqa: SIM115
    fcntl.flock(holder, fcntl.LOCK_EX)
    threading.Timer(0.3, holder.close).start()
    Client().hello()


def test_a_stale_socket_does_not_matter(home, monkeypatch):
    (home / "run").mkdir(parents=True)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(home / "run" / "server.sock"))
    stale.close()
    monkeypatch.setattr(embedded, "ARGUMENTS", ("-c", SERVER.replace("s.bind", "os.unlink(c.socket_path); s.bind")))
    Client().hello()


def test_in_a_container_the_support_socket_is_used_and_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("CADENZA_SUPPORT", str(tmp_path))
    with pytest.raises(ConnectionError, match="the socket of this container"):
        Client().hello()
    server = FakeServer(str(tmp_path / "client.sock"))
    Client().hello()
    server.close()
    assert not embedded._children


def test_a_function_of_a_build_has_no_server_and_starts_none(monkeypatch):
    """semantics.md 13.3: `run_function` runs where the image is built."""
    from cadenza.runner import context

    monkeypatch.setattr(context, "_container", context.Container(context.BUILD))
    one = Client()
    with pytest.raises(ConnectionError, match="run_function"):
        one.hello()
    one.close()
