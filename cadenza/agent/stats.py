"""What containers use, read from the machine now and then and told to the control plane."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Mapping, Sequence

from cadenza.protocol.nodes import Usage
from cadenza.runtime.driver import Stats

SAMPLE_EVERY_S = 15.0


class Sampler:
    """Reads and tells each `SAMPLE_EVERY_S`, as long as there is a container."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Mapping[str, Stats]]],
        tell: Callable[[Sequence[Usage]], None],
        now: Callable[[], float],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        """``read()`` gives what each container uses, ``tell`` takes it, ``now()`` is epoch seconds, ``fault`` is told
        when reading fails: the next time is another chance."""
        self._read = read
        self._tell = tell
        self._now = now
        self._fault = fault
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; nothing is told afterwards."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            await self.sample()

    async def sample(self) -> None:
        """Read and tell once."""
        try:
            found = await self._read()
        except Exception as error:  # of whatever kind: statistics end no agent
            self._fault("what containers use could not be read", error)
            return
        now = self._now()
        if found:
            self._tell([Usage(name, now, one.cpu_s, one.memory_bytes, one.pids) for name, one in found.items()])
