"""Run async functions and methods: tasks on one asyncio loop in the main thread, cancelled as tasks are.

A class's synchronous methods run beside them: one at a time on the main thread while the loop stands still, so that
they may use it or a loop of their own; several at once on daemon threads. All that is async runs on this one loop, the
hooks too, so that what an enter hook made (a session, a connection) works in methods.
"""

from __future__ import annotations

import asyncio
import time
from inspect import iscoroutine

from cadenza.runner import context
from cadenza.runner.execute import TERMINATED, Channel, Entry, Job, OnMainThread
from cadenza.runner.threads import Threaded, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional


class OnLoop(OnMainThread, Threaded):
    """Async functions and generators, up to ``most`` at once, and synchronous ones between them or on threads."""

    def __init__(self, entries: dict[str, Entry], channel: Channel, most: int) -> None:
        super().__init__(entries, channel, most)
        self._concurrent = most > 1
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: Optional[Workers] = None
        self._aside: Optional[Job] = None
        """A synchronous job for the main thread, as soon as the loop has stopped."""
        self._done: Any = None
        self._interrupt: Optional[BaseException] = None

    def serve(self) -> None:
        loop = self._loop
        self._done = loop.create_future()
        loop.add_reader(self.channel.wire.sock.fileno(), self._readable)
        self._start()
        try:
            while True:
                self._until_done()
                job, self._aside = self._aside, None
                if job is None:
                    break
                self._done = loop.create_future()
                self.run(job)
                self._start()
        except KeyboardInterrupt:
            self._abandon()
            raise
        finally:
            if not self.channel.wire.closed:
                loop.remove_reader(self.channel.wire.sock.fileno())
        if self._interrupt is not None:
            self._abandon()
            raise self._interrupt
        if self._tasks:
            self._abandon()
        if self._workers is not None and not self.running:
            self._workers.part()

    def _until_done(self) -> None:
        while not self._done.done():
            try:
                self._loop.run_until_complete(self._done)
            except SystemExit:
                continue  # from a task that user code left behind; its input's own result is another matter

    def _abandon(self) -> None:
        """Let what runs clean up; it gives no output."""
        self.interrupted = self.ended = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def run_hook(self, hook: Callable[[], Any]) -> None:
        """A coroutine runs on the loop."""
        value = hook()
        if iscoroutine(value):
            self._loop.run_until_complete(value)

    def _readable(self) -> None:
        self._poked_early = False
        frames = self.channel.wire.receive(wait=False)
        if frames is None:
            self.ended = True
            self._loop.remove_reader(self.channel.wire.sock.fileno())
        for header, payload in frames or ():
            self.handle(header, payload)
        self._start()

    def _start(self) -> None:
        if self._done is None:
            return
        while self.waiting and self._aside is None and self.busy() < self.most and not self.ended:
            job = self.take()
            if job.entry is None or job.entry.is_async:
                job.task = self._loop.create_task(self._run(job))
                self._tasks.add(job.task)
                job.task.add_done_callback(self._tasks.discard)
            elif self._concurrent:
                if self._workers is None:
                    self._workers = Workers(self.run_in_thread, self._start_soon)
                self._workers.give(job)
            else:
                self._aside = job
        over = self.ended or (self.draining and not self.running)
        if (self._aside is not None or over) and not self._done.done():
            self._done.set_result(None)

    def _start_soon(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._start)
        except RuntimeError:
            pass  # the loop is closed: so is the container

    def resize(self, most: int) -> None:
        self.most = most
        self._start_soon()

    async def _run(self, job: Job) -> None:
        job.began_at = time.time()
        context.enter(job.input_id, job.call_id)
        try:
            entry = self.entry_of(job)
            args, kwargs = self.arguments(job)
            value: Any = entry.call(*args, **kwargs)
            if entry.is_generator:
                async for one in value:
                    self.item(job, one)
            else:
                value = await value
            self.result(job, value)
        except (KeyboardInterrupt, GeneratorExit) as exc:
            if self.channel.terminal is not None:
                self.failure(job, exc)  # Ctrl-C at the container's own terminal, as on the main thread
            else:
                self._interrupt, self.ended = exc, True
        except BaseException as exc:
            self.failure(job, exc)
        finally:
            self._forget(job)
            context.leave()
            self._start()

    def _forget(self, job: Job) -> None:
        for one in job.members or (job,):
            self.running.pop(one.attempt, None)

    def cancel_running(self, job: Job) -> None:
        if job.task is None:
            if self._concurrent:
                self.cancel_thread(job)
            return  # on the main thread `on_poke` raises it
        job.task.cancel()
        if not job.began_at and job.members is None:  # a task that has not begun ends without running any of `_run`
            self.output(job, TERMINATED, error="cancelled before it began")
