"""Run several synchronous inputs at once, each on a daemon thread. Source: semantics.md sections 9 and 10."""

from __future__ import annotations

import time
from _thread import allocate_lock

from cadenza.runner import context
from cadenza.runner.execute import REVOKED, TERMINATED, Channel, Entry, Executor, Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

PART_S = 1.0
"""How long threads without work may take to end."""
DRAIN_POLL_S = 0.02


class Workers:
    """Daemon threads, made as they are needed, each of which runs one job after the other."""

    def __init__(self, run: Callable[[Job], None], after: Callable[[], None]) -> None:
        import _queue
        import threading

        self._run = run
        self._after = after
        self._threading = threading
        self._queue: Any = _queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._idle = 0

    def give(self, job: Job) -> None:
        with self._lock:
            fresh = self._idle == 0
            if not fresh:
                self._idle -= 1
        self._queue.put(job)
        if fresh:
            thread = self._threading.Thread(target=self._work, name="cadenza-input", daemon=True)
            self._threads.append(thread)
            thread.start()

    def part(self) -> None:
        """Let idle threads end: on Python 3.10 a daemon thread at work while the interpreter ends can crash it."""
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + PART_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            self._run(job)
            with self._lock:
                self._idle += 1
            self._after()


class Threaded(Executor):
    """What the ways of running share that run jobs on threads."""

    def run_in_thread(self, job: Job) -> None:
        """Run one job to its output, on a thread."""
        job.began_at = time.time()
        context.enter(job.input_id, job.call_id)
        try:
            entry = self.entry_of(job)
            args, kwargs = self.arguments(job)
            value = entry.call(*args, **kwargs)
            if entry.is_generator:
                for one in value:
                    self.item(job, one)
            self.result(job, value)
        except (KeyboardInterrupt, GeneratorExit) as exc:
            import _signal  # type: ignore[import-not-found]

            self.raised = type(exc).__name__
            self.interrupted = True
            # A true signal: `interrupt_main` would not wake a main thread that waits for the agent.
            _signal.pthread_kill(self.channel.outbox.mask.main, _signal.SIGINT)
        except BaseException as exc:
            self.failure(job, exc)
        finally:
            context.leave()

    def cancel_thread(self, job: Job) -> None:
        """A thread cannot be stopped safely: the container ends, and the others are given back without charge."""
        if job.members is None:
            self.say(job, f"Successfully canceled input {job.input_id}\n")
            self.output(job, TERMINATED, error="cancelled")
        for other in [*self.running.values(), *self.waiting.values()]:
            if not other.cancelled:
                self.output(other, REVOKED)
        self.waiting.clear()
        self.ended = True


class OnThreads(Threaded):
    """Synchronous functions, up to ``most`` inputs at once, each on a daemon thread of its own."""

    def __init__(self, entries: dict[str, Entry], channel: Channel, most: int) -> None:
        super().__init__(entries, channel, most)
        self._workers = Workers(self.run_in_thread, self._start)
        self._lock = allocate_lock()

    def serve(self) -> None:
        wire = self.channel.wire
        self._start()
        while not self.ended:
            if self.draining:
                import select

                if not self.running:
                    self._workers.part()
                    return
                if not select.select([wire.sock], [], [], DRAIN_POLL_S)[0]:
                    continue
            frames = wire.receive()
            if frames is None:
                self.ended = True
                return
            with self._lock:
                for header, payload in frames:
                    self.handle(header, payload)
            self._start()

    def _start(self) -> None:
        while True:
            with self._lock:
                if not self.waiting or self.busy() >= self.most:
                    return
                job = self.take()
            self._workers.give(job)

    def resize(self, most: int) -> None:
        self.most = most
        self._start()

    def cancel_running(self, job: Job) -> None:
        self.cancel_thread(job)
