"""Who gets through a container's sockets, and how many before they have said who they are."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from agent_fakes import World, spec

from cadenza.agent import bridge
from cadenza.agent.doors import Door
from cadenza.agent.rootfs import Paths
from cadenza.protocol import nodes
from cadenza.protocol.frame import PROTOCOL, encode
from cadenza.runtime.ids import IdRange

NOBODY = 65534
BASE = 0x70000000
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="connects as other users: needs root")


@pytest.fixture
def place() -> Iterator[str]:
    """A directory that all may search; a test's own is its user's."""
    path = tempfile.mkdtemp(prefix="cadenza-doors-", dir="/tmp")
    os.chmod(path, 0o711)
    yield path
    shutil.rmtree(path)


async def connected(path: str, uid: int) -> bool:
    """Whether a process of that user, without rights, gets in and is not sent away."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(2)
                one.connect(path)
                os._exit(0 if one.recv(1) == b"!" else 1)
        except OSError:
            os._exit(2)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def answer(sock: socket.socket) -> None:
    with sock:
        sock.send(b"!")


@ROOT_ONLY
def test_only_the_containers_own_ids_get_in(place: str) -> None:
    """Issue 2: another user of the machine cannot call functions as a container."""

    async def go() -> None:
        paths = Paths(f"{place}/home", f"{place}/front")
        paths.make("crun")
        paths.hand_over(IdRange(BASE, -1))
        door = Door(paths.run, "client.sock", answer, range(BASE, BASE + 65536))
        client = f"{paths.run}/client.sock"
        assert await connected(client, BASE)
        assert await connected(client, 0)
        for stranger in (NOBODY, BASE + 65536):
            assert not await connected(client, stranger)
        door.close()

    asyncio.run(go())


@ROOT_ONLY
def test_the_door_asks_who_comes_even_where_the_directory_is_open(place: str) -> None:
    async def go() -> None:
        door = Door(place, "runner.sock", answer, range(BASE, BASE + 65536))
        assert await connected(f"{place}/runner.sock", BASE + 1000)
        assert not await connected(f"{place}/runner.sock", NOBODY)
        door.close()

    asyncio.run(go())


@ROOT_ONLY
def test_without_ids_of_its_own_nobody_reaches_the_directory(place: str) -> None:
    async def go() -> None:
        paths = Paths(f"{place}/home")
        paths.make("runsc")
        door = Door(paths.run, "client.sock", answer)
        assert await connected(f"{paths.run}/client.sock", 0)
        assert not await connected(f"{paths.run}/client.sock", NOBODY)
        door.close()

    asyncio.run(go())


def hello() -> bytes:
    return encode({"t": "hello", "protocol": PROTOCOL, "version": "0", "role": "runner", "python": "3.11", "pid": 1})


def test_few_may_wait_without_a_hello(tmp_path: Any) -> None:
    async def go() -> None:
        async with World(tmp_path) as world:
            world.driver.boots = False
            world.want(spec())
            await world.control.until(lambda: world.driver.runners)
            config = next(iter(world.driver.runners.values())).config
            path = os.path.join(config.env["CADENZA_SUPPORT"], "runner.sock")
            waiting = [await asyncio.open_unix_connection(path) for _ in range(4)]
            await asyncio.sleep(0)
            reader, writer = await asyncio.open_unix_connection(path)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            waiting[0][1].close()
            for _ in range(10):
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(hello())
            await world.control.until(lambda: world.agent._wanted["ta-1"]._link is not None)
            for one in (writer, *(writer for _, writer in waiting)):
                one.close()
            await world.control.state("ta-1", nodes.GONE)

    asyncio.run(go())


def test_a_stranger_cannot_send_much() -> None:
    """Before the hello a frame has 64 KiB at most; after it what the format allows."""

    class Transport:
        written: list[bytes]
        closed = False

        def __init__(self) -> None:
            self.written = []

        def write(self, data: bytes) -> None:
            self.written.append(data)

        def close(self) -> None:
            self.closed = True

    class Owner(bridge.Host):
        def said_hello(self, link: bridge.Link, hello: bridge.Hello) -> None:
            return None

        def lost(self, link: bridge.Link, fault: str) -> None:
            assert fault == ""

    async def go() -> None:
        large = encode({"t": "pong"}, bytes(100_000))
        first: Any = Transport()
        link = bridge.Link(Owner(), "")
        link.connection_made(first)
        link.data_received(large[:100])
        assert first.closed
        second: Any = Transport()
        link = bridge.Link(Owner(), "")
        link.connection_made(second)
        link.data_received(hello())
        link.data_received(large)
        assert not second.closed
        link.connection_lost(None)

    asyncio.run(go())
