"""`cadenza.runtime.launcher`: ordinary programs, started and seen to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cadenza.runtime.driver import Exit, RuntimeFault, Stdio
from cadenza.runtime.launcher import Child, Launcher, Program, exit_of

ENV = {"PATH": "/usr/bin:/bin"}


def run(body: Callable[[Launcher], Awaitable[None]]) -> None:
    async def main() -> None:
        launcher = Launcher(cores=2)
        try:
            await body(launcher)
        finally:
            launcher.close()

    asyncio.run(main())


def shell(script: str, **more: object) -> Program:
    return Program("/bin/sh", ("sh", "-c", script), ENV, private_mounts=False, **more)


def test_exit_and_signal_as_a_shell_says_them() -> None:
    assert exit_of(7 << 8) == Exit(7)
    assert exit_of(9) == Exit(137, 9)


def test_a_program_has_its_three_streams_and_no_other(tmp_path: Path) -> None:
    async def body(launcher: Launcher) -> None:
        with open(tmp_path / "out", "wb") as out:
            program = shell(
                "ls -l /proc/self/fd | grep -c ' [0-9]* -> '; pwd", stdio=Stdio(-1, out.fileno()), cwd="/usr"
            )
            assert await launcher.run(program, 10) == Exit(0)

    run(body)
    # The fourth is that of ls, on the directory.
    assert (tmp_path / "out").read_text() == "4\n/usr\n"


def test_a_program_past_its_limit_is_killed() -> None:
    async def body(launcher: Launcher) -> None:
        with pytest.raises(RuntimeFault, match="did not answer within"):
            await launcher.run(shell("sleep 300"), 0.05)

    run(body)


def test_what_cannot_be_started_is_a_fault() -> None:
    async def body(launcher: Launcher) -> None:
        with pytest.raises(RuntimeFault, match="/no/such/program"):
            await launcher.spawn(Program("/no/such/program", ("x",), ENV))

    run(body)


def test_signals_of_the_agent_are_not_inherited(tmp_path: Path) -> None:
    async def body(launcher: Launcher) -> None:
        before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            assert await launcher.run(shell("kill -PIPE $$"), 10) == Exit(128 + signal.SIGPIPE, signal.SIGPIPE)
        finally:
            signal.signal(signal.SIGPIPE, before)

    run(body)


def test_the_end_of_a_process_that_is_not_ours() -> None:
    """As after an agent's restart. Known since Linux 6.15."""
    parent = subprocess.Popen(
        ["/bin/bash", "-c", "exec 3<&0; (read line <&3; exit 23) & echo $!; wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None

    async def main() -> None:
        child = Child(int(parent.stdout.readline()))
        assert not await child.ends_within(0)
        expected = 23 if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15) else -1
        child.signal(0)
        parent.stdin.close()
        end = await asyncio.wait_for(child.wait(), 10)
        assert end.code == expected
        child.signal(signal.SIGTERM)

    try:
        asyncio.run(main())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
