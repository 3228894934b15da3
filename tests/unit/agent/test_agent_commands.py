"""A command beside a function: all that is typed reaches it, and nothing of what it prints is lost."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any, Callable

from cadenza.agent.commands import Running
from cadenza.runtime.driver import Command, Exit, Stdio

MIB = 1 << 20


class Execution:
    """A plain process."""

    pty_fd = -1

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    async def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    async def wait(self) -> Exit:
        code = await asyncio.to_thread(self._process.wait)
        return Exit(code if code >= 0 else 128 - code)


class Machine:
    """A driver that runs commands here."""

    async def exec(self, container_id: str, command: Command, stdio: Stdio) -> Execution:
        return Execution(
            subprocess.Popen(command.argv, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, cwd=command.cwd)
        )


async def start(output: Callable[[int, bytes], None], *argv: str) -> Running:
    running = Running(output)
    driver: Any = Machine()
    await running.start(driver, "ta-1", argv, {}, "/", False)
    return running


def test_all_input_arrives_however_slow_the_command_is() -> None:
    async def go() -> None:
        said: list[bytes] = []
        running = await start(lambda fd, data: said.append(data), "sh", "-c", "sleep 0.2; wc -c")
        waits = 0
        for _ in range(10):
            running.write(bytes(MIB))
            draining = asyncio.ensure_future(running.drain())
            await asyncio.sleep(0)
            waits += not draining.done()
            await draining
            assert len(running._queued) <= 2 * MIB
        running.close_stdin()
        assert await asyncio.wait_for(running.wait(), 10) == 0
        assert b"".join(said).strip() == b"%d" % (10 * MIB)
        assert waits > 0

    asyncio.run(go())


def test_the_end_of_a_command_that_reads_nothing_lets_its_writer_go() -> None:
    async def go() -> None:
        running = await start(lambda fd, data: None, "sleep", "0.1")
        running.write(bytes(4 * MIB))
        ended = asyncio.ensure_future(running.wait())
        await asyncio.wait_for(running.drain(), 5)
        assert await asyncio.wait_for(ended, 5) == 0
        running.write(b"more")
        await running.drain()

    asyncio.run(go())


def test_a_command_whose_output_is_not_wanted_waits() -> None:
    async def go() -> None:
        seen = 0

        def output(fd: int, data: bytes) -> None:
            nonlocal seen
            if not seen:
                running.pause()
            seen += len(data)

        running = await start(output, "head", "-c", str(20 * MIB), "/dev/zero")
        ended = asyncio.ensure_future(running.wait())
        while not seen:
            await asyncio.sleep(0.01)
        paused_at = -1
        while seen != paused_at:
            paused_at = seen
            await asyncio.sleep(0.05)
        assert seen < 4 * MIB and not ended.done()
        running.resume()
        assert await asyncio.wait_for(ended, 10) == 0
        assert seen == 20 * MIB

    asyncio.run(go())
