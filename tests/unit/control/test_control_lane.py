"""The lane: what travels over it, who may have what, and when memory is the sender's again. docs/formats/wire.md."""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import mmap
import os
import random
import socket
import subprocess
import sys
import threading
from typing import Any, Awaitable, Callable, Optional

import pytest
import uvloop

from cadenza.base.clock import ManualClock
from cadenza.base.errors import NotFoundError
from cadenza.base.ids import IdSource
from cadenza.control.blobs import FRESH_S, Blobs
from cadenza.control import blobs as blobs_module, lane as module
from cadenza.control.lane import MAX_CONTAINER_LANES, LaneServer
from cadenza.protocol.frame import encode
from cadenza.storage.blobs import MemoryBlobs

Head = dict[str, Any]


class World:
    """A lane server with a store in memory and a clock that stands still."""

    def __init__(self, path: str, memory_bytes: int = 1 << 30) -> None:
        self.clock = ManualClock()
        self.store = MemoryBlobs()
        self.blobs = Blobs(self.store, self.clock.monotonic, memory_bytes)
        self.server = LaneServer(self.blobs, IdSource())
        self.path = path
        self.server.listen(path)

    def lane(self) -> Lane:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        sock.settimeout(10)
        return Lane(sock)


class Lane:
    """A client. Its blocking calls run in a thread, because the server runs on this thread's loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.fds: list[int] = []

    async def ask(self, header: Head, fd: int = -1, body: bytes = b"") -> Head:
        return await asyncio.to_thread(self._ask, header, fd, body)

    def _ask(self, header: Head, fd: int, body: bytes) -> Head:
        self.say(header, fd)
        if body:
            self.sock.sendall(body)
        return self.read()

    def say(self, header: Head, fd: int = -1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self.sock.sendmsg([encode(header)], rights)

    def read(self) -> Head:
        while len(self.buffer) < 8 or len(self.buffer) < 4 + int.from_bytes(self.buffer[:4], "big"):
            data, ancillary, _, _ = self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(16))
            if not data:
                raise EOFError
            for _, _, raw in ancillary:
                self.fds += array.array("i", raw)
            self.buffer += data
        total = int.from_bytes(self.buffer[:4], "big")
        head, self.buffer = self.buffer[8 : 4 + total], self.buffer[4 + total :]
        return json.loads(head)  # type: ignore[no-any-return]

    async def body(self, size: int) -> bytes:
        def read() -> bytes:
            data = self.buffer[:size]
            self.buffer = self.buffer[size:]
            while len(data) < size:
                more = self.sock.recv(size - len(data))
                if not more:
                    raise EOFError
                data += more
            return data

        return await asyncio.to_thread(read)

    async def put(self, data: bytes, durable: bool = False) -> Head:
        fd = memfd(data)
        try:
            return await self.ask({"t": "put", "size": len(data), "fd": True, "durable": durable}, fd)
        finally:
            os.close(fd)

    async def get(self, blob: str) -> int:
        head = await self.ask({"t": "get", "blob": blob, "fd": True})
        assert head["t"] == "ok", head
        return self.fds.pop()

    async def free(self) -> list[str]:
        """What the next reply says is free."""
        return (await self.put(b"probe"))["free"]  # type: ignore[no-any-return]


def memfd(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def in_world(tmp_path: Any, test: Callable[[World], Awaitable[None]], memory_bytes: int = 1 << 30) -> None:
    async def main() -> None:
        world = World(str(tmp_path / "run" / "lane.sock"), memory_bytes)
        try:
            await test(world)
        finally:
            await world.server.close()
            world.blobs.close()
            for one in world.store.list():
                world.store.delete(one.blob_id)
        assert world.blobs.used_bytes == 0

    before = set(os.listdir("/proc/self/fd"))
    uvloop.run(main())
    assert {one for one in os.listdir("/proc/self/fd") if _is(one, "memfd") or _is(one, "pidfd")} <= before


def _is(fd: str, word: str) -> bool:
    try:
        return word in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False


def read_all(fd: int) -> bytes:
    try:
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


def test_a_memfd_is_kept_not_copied_and_given_out_read_only(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        sender, receiver = world.lane(), world.lane()
        fd = memfd(b"first")
        blob = (await sender.ask({"t": "put", "size": 5, "fd": True, "durable": False}, fd))["blob"]
        assert world.blobs.used_bytes == 5
        os.pwrite(fd, b"FIRST", 0)  # the same memory
        got = await receiver.get(blob)
        assert os.pread(got, 10, 0) == b"FIRST"
        with pytest.raises(OSError):
            os.write(got, b"x")
        with pytest.raises((PermissionError, OSError)):
            mmap.mmap(got, 5, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(got, 5, prot=mmap.PROT_READ) as view:
            assert view[:] == b"FIRST"
        os.close(got)
        os.close(fd)

    in_world(tmp_path, test)


def test_memory_is_free_when_the_call_is_over_and_the_receiver_released_it(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        sender, receiver = world.lane(), world.lane()
        blob = (await sender.put(b"argument"))["blob"]
        world.blobs.hold(blob, "call")
        os.close(await receiver.get(blob))
        assert blob not in await sender.free()
        world.blobs.drop("call")
        assert blob not in await sender.free()  # the receiver still looks at it
        receiver.say({"t": "release", "blob": blob})
        await receiver.put(b"in order behind the release")
        assert await sender.free() == [blob]
        assert await sender.free() == []  # named once
        with pytest.raises(NotFoundError):
            world.blobs.hold(blob, "another call")

    in_world(tmp_path, test)


def test_the_other_order_and_two_receivers(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        sender, one, two = world.lane(), world.lane(), world.lane()
        blob = (await sender.put(b"argument"))["blob"]
        world.blobs.hold(blob, "call")
        for lane in (one, one, two):
            os.close(await lane.get(blob))
        one.say({"t": "release", "blob": blob})
        await one.put(b"-")
        world.blobs.drop("call")
        one.say({"t": "release", "blob": blob})
        await one.put(b"-")
        assert blob not in await sender.free()
        two.say({"t": "release", "blob": blob})
        await two.put(b"-")
        assert await sender.free() == [blob]

    in_world(tmp_path, test)


def test_views_outlive_their_connection_but_not_their_process(tmp_path: Any) -> None:
    """A lane that breaks off leaves mappings behind: the sender may not write to that memory before they are gone."""
    code = (
        "import array, os, socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "sock.sendall(bytes.fromhex(sys.argv[2])); sock.recvmsg(4096, 64); sock.close()\n"
        "print('closed', flush=True); sys.stdin.read()\n"
    )

    async def test(world: World) -> None:
        sender = world.lane()
        blob = (await sender.put(b"argument"))["blob"]
        world.blobs.hold(blob, "call")
        ask = encode({"t": "get", "blob": blob, "fd": True}).hex()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, world.path, ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdin is not None
        assert await process.stdout.readline() == b"closed\n"
        world.blobs.drop("call")
        for _ in range(100):
            if len(world.server._lanes) == 1:
                break
            await asyncio.sleep(0.01)
        assert blob not in await sender.free()
        process.stdin.close()
        await process.wait()
        for _ in range(500):
            if world.blobs.find(blob) is None:
                break
            await asyncio.sleep(0.01)
        assert await sender.free() == [blob]

    in_world(tmp_path, test)


def test_a_result_lives_until_its_client_fetched_it_or_is_gone(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        runner, client = world.lane(), world.lane()
        first, second = (await runner.put(b"one"))["blob"], (await runner.put(b"two"))["blob"]
        for blob in (first, second):
            world.blobs.deliver(blob, "co-1")
        world.clock.advance(10 * FRESH_S)
        world.blobs.expire()
        assert read_all(await client.get(first)) == b"one"
        client.say({"t": "release", "blob": first})
        await client.put(b"-")
        assert await runner.free() == [first]
        world.blobs.connection_closed("co-1")
        assert await runner.free() == [second]

    in_world(tmp_path, test)


def test_what_is_never_named_ends_by_itself(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        lane = world.lane()
        blob = (await lane.put(b"x"))["blob"]
        world.clock.advance(FRESH_S - 1)
        world.blobs.expire()
        assert world.blobs.find(blob) is not None
        world.blobs.hold(blob, "refused call")
        world.blobs.drop("refused call", fresh=True)  # it may be named again
        assert world.blobs.find(blob) is not None
        world.clock.advance(FRESH_S + 1)
        world.blobs.expire()
        assert await lane.free() == [blob]

    in_world(tmp_path, test)


def test_durable_puts_are_in_the_store_before_the_reply(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        lane = world.lane()
        data = random.Random(1).randbytes(3_000_000)
        blob = (await lane.put(data, durable=True))["blob"]
        assert world.store.get(blob) == data
        assert world.blobs.used_bytes == 0
        raw = (await lane.ask({"t": "put", "size": len(data), "fd": False, "durable": True}, body=data))["blob"]
        assert world.store.get(raw) == data
        assert await lane.free() == []  # `blob`'s memory was named free by the reply in between
        world.blobs.hold(blob, "call")
        world.blobs.drop("call")
        assert read_all(await world.lane().get(blob)) == data

    in_world(tmp_path, test)


def test_raw_bytes_both_ways(tmp_path: Any) -> None:
    """For runtimes through which descriptors cannot pass."""

    async def test(world: World) -> None:
        lane, other = world.lane(), world.lane()
        data = random.Random(2).randbytes(5_000_000)
        blob = (await lane.ask({"t": "put", "size": len(data), "fd": False, "durable": False}, body=data))["blob"]
        assert world.blobs.used_bytes == len(data)
        assert (await other.ask({"t": "get", "blob": blob, "fd": False})) == {"t": "ok", "size": len(data), "fd": False}
        assert await other.body(len(data)) == data
        empty = (await lane.ask({"t": "put", "size": 0, "fd": False, "durable": False}))["blob"]
        assert (await other.ask({"t": "get", "blob": empty, "fd": False}))["size"] == 0
        assert (await other.ask({"t": "get", "blob": empty, "fd": False}))["size"] == 0  # the lane is still there

    in_world(tmp_path, test)


def test_beyond_the_bound_values_go_to_the_store_and_leave_it_again(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        lane, receiver = world.lane(), world.lane()
        kept = (await lane.put(b"x" * 80))["blob"]
        spilled = await lane.put(b"y" * 30)
        assert spilled["free"] == []
        assert (await lane.put(b"-"))["free"] == [spilled["blob"]]  # copied: the sender has its memory back
        assert world.blobs.used_bytes == 81
        world.blobs.hold(spilled["blob"], "call")
        got = await receiver.get(spilled["blob"])
        world.blobs.drop("call")
        assert world.store.size(spilled["blob"]) == 30
        receiver.say({"t": "release", "blob": spilled["blob"]})
        await receiver.put(b"-")
        for _ in range(100):
            if not [one for one in world.store.list() if one.blob_id == spilled["blob"]]:
                break
            await asyncio.sleep(0.01)
        with pytest.raises(NotFoundError):
            world.store.size(spilled["blob"])
        assert read_all(got) == b"y" * 30
        assert world.blobs.find(kept) is not None

    in_world(tmp_path, test, memory_bytes=100)


def test_a_value_can_be_made_durable_later(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        lane = world.lane()
        blob = (await lane.put(b"result of a spawned call"))["blob"]
        await world.server.persist(blob)
        assert await lane.free() == [blob]
        assert world.store.get(blob) == b"result of a spawned call"
        await world.server.persist(blob)
        with pytest.raises(NotFoundError):
            await world.server.persist(IdSource().new("blob"))

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"t": "get", "blob": "bl-0000000000000000000000", "fd": True}, "not_found"),
        ({"t": "get", "blob": "../../etc/passwd", "fd": True}, "invalid"),
        ({"t": "put", "size": 5, "fd": True}, "invalid"),
        ({"t": "put", "size": -1, "fd": False}, "invalid"),
        ({"t": "steal"}, "invalid"),
        ({"t": 5}, "invalid"),
    ],
)
def test_what_cannot_be_is_an_error(tmp_path: Any, header: Head, kind: str) -> None:
    async def test(world: World) -> None:
        reply = await world.lane().ask(header)
        assert reply["t"] == "err"
        assert reply["e"]["kind"] == kind
        assert (await world.lane().put(b"others go on"))["t"] == "ok"

    in_world(tmp_path, test)


def test_only_memory_of_the_stated_size_is_taken(tmp_path: Any) -> None:
    """A pipe would block the server, and a short file would give its receiver a bus error."""

    async def test(world: World) -> None:
        lane = world.lane()
        reader, writer = os.pipe()
        reply = await lane.ask({"t": "put", "size": 1, "fd": True}, reader)
        assert "memfd" in reply["e"]["message"]
        os.close(reader)
        os.close(writer)
        fd = memfd(b"short")
        reply = await lane.ask({"t": "put", "size": 6, "fd": True}, fd)
        assert "5 bytes" in reply["e"]["message"]
        assert (await lane.ask({"t": "put", "size": 4, "fd": True}, fd))["t"] == "ok"
        fcntl.fcntl(fd, 1034)
        os.close(fd)

    in_world(tmp_path, test)


def test_noise_half_bodies_and_silence_harm_nobody(tmp_path: Any) -> None:
    rng = random.Random(3)

    async def test(world: World) -> None:
        lanes = [world.lane() for _ in range(60)]
        for number, lane in enumerate(lanes):
            if number % 3 == 0:
                lane.sock.send(rng.randbytes(rng.randrange(1, 200)))
            elif number % 3 == 1:
                lane.say({"t": "put", "size": 1000, "fd": False, "durable": bool(number % 2)})
                lane.sock.send(b"half")
        good = world.lane()
        lanes[1].sock.shutdown(socket.SHUT_RDWR)
        for lane in lanes:
            lane.sock.close()
        blob = (await good.put(b"value"))["blob"]
        assert read_all(await good.get(blob)) == b"value"
        for _ in range(200):
            if len(world.server._lanes) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(world.server._lanes) == 1
        assert list(world.store.list()) == []

    in_world(tmp_path, test)


def test_a_container_has_its_own_way_in(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        world.server.serve(ours, "ta-1")
        container: Optional[Lane] = Lane(theirs)
        assert container is not None
        blob = (await container.put(b"from inside"))["blob"]
        assert read_all(await world.lane().get(blob)) == b"from inside"
        extra = [socket.socketpair() for _ in range(MAX_CONTAINER_LANES)]
        for mine, _ in extra:
            world.server.serve(mine, "ta-1")
        assert extra[-1][1].recv(1) == b""  # one too many
        assert (await world.lane().put(b"others go on"))["t"] == "ok"
        for _, one in extra:
            one.close()

    in_world(tmp_path, test)


def _slow_copies(monkeypatch: Any, *after: threading.Event) -> None:
    """The n-th copy to the store begins when the n-th event is set."""
    real, events = module._store_copy, list(after)

    def slow(*args: Any) -> None:
        events.pop(0).wait(10)
        real(*args)

    monkeypatch.setattr(module, "_store_copy", slow)


def test_a_cancelled_copy_never_reads_another_descriptor(tmp_path: Any, monkeypatch: Any) -> None:
    go = threading.Event()
    _slow_copies(monkeypatch, go)

    async def test(world: World) -> None:
        blob_id = IdSource().new("blob")
        world.blobs.keep("lane", blob_id, 4, memfd(b"AAAA"))
        task = asyncio.ensure_future(world.server.persist(blob_id))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0)
        world.clock.advance(FRESH_S * 2)
        world.blobs.expire()
        others = [memfd(b"SECRET OF ANOTHER") for _ in range(3)]  # a number that is free is used again
        go.set()
        for _ in range(500):
            if not world.server._persisting:
                break
            await asyncio.sleep(0.01)
        assert world.store.get(blob_id) == b"AAAA"
        for one in others:
            os.close(one)

    in_world(tmp_path, test)


def test_two_who_keep_one_value_share_one_copy(tmp_path: Any, monkeypatch: Any) -> None:
    go = threading.Event()
    _slow_copies(monkeypatch, go)

    async def test(world: World) -> None:
        blob_id = IdSource().new("blob")
        world.blobs.keep("lane", blob_id, 4, memfd(b"BBBB"))
        tasks = [asyncio.ensure_future(world.server.persist(blob_id)) for _ in range(3)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        go.set()
        assert await asyncio.gather(*tasks[1:]) == [None, None]
        assert world.store.get(blob_id) == b"BBBB"

    in_world(tmp_path, test)


async def _stall(lane: Lane, size: int) -> None:
    """Begin a raw put, and send nothing of its body."""
    await asyncio.to_thread(lane.say, {"t": "put", "size": size, "fd": False})


def test_bodies_that_stall_hold_up_nobody(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        stalled = []
        for _ in range(40):
            ours, theirs = socket.socketpair()
            world.server.serve(theirs, "ta-1")
            stalled.append(Lane(ours))
            await _stall(stalled[-1], 1000)
        await asyncio.sleep(0.05)
        lane = world.lane()
        reply = await asyncio.wait_for(lane.ask({"t": "put", "size": 5, "fd": False}, body=b"12345"), 5)
        await asyncio.wait_for(world.server.persist(reply["blob"]), 5)
        assert world.store.get(reply["blob"]) == b"12345"
        await lane.ask({"t": "get", "blob": reply["blob"], "fd": False})
        assert await asyncio.wait_for(lane.body(5), 5) == b"12345"
        for one in stalled:
            one.sock.close()
        lane.sock.close()

    in_world(tmp_path, test)


def test_a_container_has_only_its_share_of_the_threads(tmp_path: Any, monkeypatch: Any) -> None:
    go = threading.Event()
    _slow_copies(monkeypatch, *[go] * 20)

    async def test(world: World) -> None:
        lanes = []
        for _ in range(20):
            ours, theirs = socket.socketpair()
            world.server.serve(theirs, "ta-1")
            lanes.append(Lane(ours))
            fd = memfd(b"x")
            lanes[-1].say({"t": "put", "size": 1, "fd": True, "durable": True}, fd)
            os.close(fd)
        await asyncio.sleep(0.05)
        lane = world.lane()
        assert (await asyncio.wait_for(lane.ask({"t": "put", "size": 5, "fd": False}, body=b"12345"), 5))["t"] == "ok"
        go.set()
        for one in lanes:
            assert (await asyncio.to_thread(one.read))["t"] == "ok"
            one.sock.close()
        lane.sock.close()

    in_world(tmp_path, test)


def test_bodies_under_way_count_against_memory(tmp_path: Any) -> None:
    async def test(world: World) -> None:
        lanes = [world.lane() for _ in range(4)]
        for one in lanes:
            await _stall(one, 900)
        await asyncio.sleep(0.05)
        assert world.blobs.used_bytes == 900
        for one in lanes:
            await asyncio.to_thread(one.sock.sendall, b"x" * 900)
            assert (await asyncio.to_thread(one.read))["t"] == "ok"
        assert world.blobs.used_bytes == 900
        assert sum(1 for _ in world.store.list()) == 3
        await _stall(lanes[0], 50)
        await asyncio.sleep(0.05)
        assert world.blobs.used_bytes == 950
        for one in lanes:
            one.sock.close()
        await asyncio.sleep(0.05)
        assert world.blobs.used_bytes == 900, "a body that ends early gives back what it took"

    in_world(tmp_path, test, memory_bytes=1000)


def test_a_container_keeps_only_so_many_values_in_memory(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(blobs_module, "MAX_KEPT_VALUES", 5)

    async def test(world: World) -> None:
        lanes = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            world.server.serve(theirs, "ta-1")
            lanes.append(Lane(ours))
        puts = [(await lanes[number % 2].put(b"%d" % number))["blob"] for number in range(8)]
        kept = [world.blobs.find(one) for one in puts]
        assert [one is not None and one.fd >= 0 for one in kept] == [True] * 5 + [False] * 3
        assert sorted(one.blob_id for one in world.store.list()) == sorted(puts[5:])
        assert read_all(await lanes[0].get(puts[7])) == b"7"
        world.clock.advance(FRESH_S * 2)
        world.blobs.expire()
        again = await lanes[0].put(b"again")
        found = world.blobs.find(again["blob"])
        assert found is not None and found.fd >= 0
        for one in lanes:
            one.sock.close()

    in_world(tmp_path, test)


def test_all_values_together_leave_descriptors_for_the_rest(tmp_path: Any) -> None:
    blobs = Blobs(MemoryBlobs(), ManualClock().monotonic, 1 << 30, values=2)
    assert [blobs.reserve(lane, 0) for lane in ("a", "b", "c")] == [True, True, False]
    blobs.unreserve("a", 0)
    assert blobs.reserve("c", 0)


def test_nothing_is_held_for_a_client_that_is_gone() -> None:
    clock = ManualClock()
    blobs = Blobs(MemoryBlobs(), clock.monotonic, 1 << 30)
    one = IdSource().new("blob")
    blobs.keep("lane", one, 4, memfd(b"CCCC"))
    blobs.connection_closed("co-gone")
    blobs.deliver(one, "co-gone")
    clock.advance(FRESH_S * 2)
    blobs.expire()
    assert blobs.used_bytes == 0
    blobs.close()
