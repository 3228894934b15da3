"""Standard input of a command in a container: the thread that reads it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading

from cadenza.cli import terminal


def _pumps() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "stdin"]


def test_reading_ends_with_the_command_and_leaves_no_descriptor() -> None:
    """Also while nobody takes what was typed."""
    read, write = os.pipe()
    own = os.dup(0)
    os.dup2(read, 0)

    async def go(data: bytes, room: int) -> None:
        typed: asyncio.Queue[bytes] = asyncio.Queue(maxsize=room)
        stop = terminal._pump_stdin(asyncio.get_running_loop(), typed)
        (thread,) = _pumps()
        if data:
            os.write(write, data)
            while not typed.full():
                await asyncio.sleep(0.001)
            os.write(write, data)
            await asyncio.sleep(0.01)
        stop()
        while thread.is_alive():
            await asyncio.sleep(0.001)

    try:
        before = len(os.listdir("/proc/self/fd"))
        for data in (b"", b"x"):
            asyncio.run(asyncio.wait_for(go(data, 1), 10))
        assert not _pumps() and len(os.listdir("/proc/self/fd")) == before
    finally:
        os.dup2(own, 0)
        for number in (own, read, write):
            os.close(number)
