"""Run async functions: tasks on one asyncio loop in the main thread, up to ``most`` at once; cancelled as tasks are."""

from __future__ import annotations

import asyncio
import time

from cadenza.runner import context
from cadenza.runner.execute import TERMINATED, Channel, Executor, Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional


class OnLoop(Executor):
    """An async function or async generator."""

    def __init__(self, function: Callable[..., Any], is_generator: bool, channel: Channel, most: int) -> None:
        super().__init__(function, is_generator, channel)
        self.most = most
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._done: Any = None
        self._interrupt: Optional[BaseException] = None

    def serve(self) -> None:
        loop = self._loop
        self._done = loop.create_future()
        loop.add_reader(self.channel.wire.sock.fileno(), self._readable)
        self._start()
        try:
            while not self._done.done():
                try:
                    loop.run_until_complete(self._done)
                except SystemExit:
                    continue  # from a task that user code left behind; its input's own result is another matter
                except KeyboardInterrupt:
                    self._abandon()
                    raise
        finally:
            if not self.channel.wire.closed:
                loop.remove_reader(self.channel.wire.sock.fileno())
        if self._interrupt is not None:
            self._abandon()
            raise self._interrupt
        loop.run_until_complete(loop.shutdown_asyncgens())

    def _abandon(self) -> None:
        """Let what runs clean up; it gives no output."""
        self.interrupted = self.ended = True
        tasks = [job.task for job in self.running.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def _readable(self) -> None:
        frames = self.channel.wire.receive(wait=False)
        if frames is None:
            self.ended = True
            self._loop.remove_reader(self.channel.wire.sock.fileno())
        for header, payload in frames or ():
            self.handle(header, payload)
        self._start()

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.most and not self.ended:
            job = self.take()
            job.task = self._loop.create_task(self._run(job))
        if (self.ended or (self.draining and not self.running)) and not self._done.done():
            self._done.set_result(None)

    async def _run(self, job: Job) -> None:
        job.began_at = time.time()
        context.enter(job.input_id, job.call_id)
        try:
            args, kwargs = self.arguments(job)
            value: Any = self.function(*args, **kwargs)
            if self.is_generator:
                async for one in value:
                    self.item(job, one)
            else:
                value = await value
            self.result(job, value)
        except (KeyboardInterrupt, GeneratorExit) as exc:
            self._interrupt, self.ended = exc, True
        except BaseException as exc:
            self.failure(job, exc)
        finally:
            self.running.pop(job.attempt, None)
            context.leave()
            self._start()

    def cancel_running(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
            if not job.began_at:  # a task that has not begun ends without running any of `_run`
                self.output(job, TERMINATED, error="cancelled before it began")
