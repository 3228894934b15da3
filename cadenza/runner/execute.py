"""Run inputs, on the main thread one after the other. `threads` and `tasks` have the other ways.

The main thread is the only reader of the connection. A synchronous function that is not concurrent runs on it, with no
hop between the socket and the user's code. Sources: semantics.md sections 5, 6, 9 and 10; docs/formats/wire.md.
"""

from __future__ import annotations

import sys
import time
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from cadenza.base.errors import InputCancellation, InvalidError
from cadenza.protocol.frame import INLINE_VALUE_BYTES
from cadenza.runner import context, values
from cadenza.runner.outbox import Outbox
from cadenza.runner.streams import Streams
from cadenza.runner.wire import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cadenza.runner.lane import Lane
    from typing import Any, Callable, Optional

# The words of cadenza.protocol.calls, which is too slow to import here.
SUCCESS, FAILURE, TERMINATED, REVOKED = "SUCCESS", "FAILURE", "TERMINATED", "REVOKED"

MAX_ERROR_CHARS = 8192
"""What of an exception's text goes into the frame's header."""
TOGETHER_S = 0.002
"""While inputs wait, outputs share a frame unless the last frame is older than this."""


class Entry:
    """What an input may ask for: a function, or one method of a class's instance."""

    __slots__ = ("call", "is_async", "is_generator")

    def __init__(self, call: Callable[..., Any], is_generator: bool = False, is_async: bool = False) -> None:
        self.call = call
        self.is_generator = is_generator
        self.is_async = is_async


class Job:
    """One run: of one attempt, from the frame that brings it to its output, or of a batch (`cadenza.runner.batch`)."""

    __slots__ = (
        "attempt", "batch", "began_at", "blob", "call_id", "cancelled", "data", "durable", "entry", "input_id", "items",
        "members", "method", "task", "unit",
    )  # fmt: skip

    def __init__(self, attempt: str, input_id: str, call_id: str, data: bytes, blob: str, durable: bool) -> None:
        self.attempt = attempt
        self.input_id = input_id
        self.call_id = call_id
        self.data = data
        self.blob = blob
        self.durable = durable
        self.method = ""
        self.entry: Any = None
        """Which of the container's entries; None when it has none of that name."""
        self.batch = ""
        self.members: Any = None
        """For the run of a batch: its attempts' jobs."""
        self.unit: Optional[Job] = None
        """For one of a batch that runs: the batch."""
        self.cancelled = False
        self.items = 0
        self.task: Any = None
        self.began_at = 0.0


class Channel:
    """What an executor speaks through."""

    def __init__(self, wire: Connection, outbox: Outbox, streams: Streams, lane: Lane) -> None:
        self.wire = wire
        self.outbox = outbox
        self.streams = streams
        self.lane = lane
        self.terminal: Any = None
        """A `cadenza.runner.terminal.Terminal`, while user code has one."""


class Executor:
    """Takes the agent's frames, runs jobs, sends outputs. What differs between ways of running is in the subclasses."""

    def __init__(self, entries: dict[str, Entry], channel: Channel, most: int = 1) -> None:
        self.entries = entries
        """By method; a function's own has an empty name."""
        self.channel = channel
        self.most = most
        """How many runs at once."""
        self.batched = False
        """The function takes lists: of the inputs that came as one batch."""
        self.kinds = False
        """Outputs of failures name their exception's classes: the retries ask for it."""
        self._held: dict[str, Job] = {}
        """Of a run frame that goes on in the next one."""
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, Job] = {}
        self.draining = False
        self.grace_s = 0.0
        """How long after a drain the process may take to end."""
        self.interrupted = False
        """KeyboardInterrupt ends the container: what runs gives no output."""
        self.raised = ""
        """What a thread raised that ends the container: the main thread sees a KeyboardInterrupt in its place."""
        self.ended = False
        """The agent is gone, or the container has to end at once."""

    # Frames.

    def handle(self, header: dict[str, Any], payload: bytes) -> None:
        """Take one frame from the agent. Starts nothing."""
        kind = header.get("t")
        if kind == "run":
            at = 0
            for one in header["ins"]:
                size = one.get("n", 0)
                data = payload if size == len(payload) else payload[at : at + size]
                at += size
                attempt = one["a"]
                job = Job(attempt, one["i"], one["c"], data, one.get("blob") or "", bool(one.get("durable")))
                job.method = one.get("m") or ""
                job.entry = self.entries.get(job.method)
                if self.batched:
                    job.batch = one.get("b") or attempt
                self._held[attempt] = job
            if header.get("more"):
                return
            self.waiting.update(self._held)
            self._held = {}
            if self.draining:
                self._give_back(list(self.waiting))
        elif kind == "cancel":
            for attempt in header["a"]:
                waits = self.waiting.pop(attempt, None)
                if waits is not None:
                    self.output(waits, TERMINATED, error="cancelled before it began")
                elif attempt in self.running:
                    self._cancel(self.running[attempt])
        elif kind == "revoke":
            self._give_back(header["a"])
        elif kind == "drain":
            self.draining = True
            self.grace_s = float(header.get("grace_s") or 0.0)
            self._give_back(list(self.waiting))
        # Anything else comes from a newer agent and is for a newer runner.

    def _give_back(self, attempts: list[str]) -> None:
        for attempt in attempts:
            job = self.waiting.pop(attempt, None)
            if job is not None:
                self.output(job, REVOKED)

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        unit = job.unit
        if unit is None:
            self.cancel_running(job)
            return
        # The others of its batch go on; the run itself is cancelled with the last of them.
        self.say(job, f"Successfully canceled input {job.input_id}\n")
        self.output(job, TERMINATED, error="cancelled")
        if not any(one.attempt in self.running for one in unit.members):
            unit.cancelled = True
            self.cancel_running(unit)

    def take(self) -> Job:
        """The job that waits longest, with the others of its batch; it runs from now on."""
        attempt = next(iter(self.waiting))
        job = self.running[attempt] = self.waiting.pop(attempt)
        if not self.batched:
            return job
        from cadenza.runner import batch

        return batch.gather(self, job)

    def busy(self) -> int:
        """How many runs are under way."""
        if not self.batched:
            return len(self.running)
        return len({one.batch for one in list(self.running.values())})

    def cancel_running(self, job: Job) -> None:
        raise NotImplementedError

    def serve(self) -> None:
        """Until drained, or until the agent is gone. KeyboardInterrupt comes through."""
        raise NotImplementedError

    def on_poke(self) -> None:
        """SIGUSR1 came."""

    def resize(self, most: int) -> None:
        """Run up to ``most`` at once from now on. Any thread may call it."""
        self.most = most

    def run_hook(self, hook: Callable[[], Any]) -> None:
        """Run a hook of the class's to its end, on the main thread."""
        value = hook()
        if isinstance(value, CoroutineType):  # a decorator hid that it is async
            import asyncio

            asyncio.run(value)

    def close(self) -> None:
        """After the last hook."""

    # One job.

    def entry_of(self, job: Job) -> Entry:
        """InvalidError when the container has nothing of that name."""
        if job.entry is None:
            has = ", ".join(sorted(one for one in self.entries if one))
            if not has:
                raise InvalidError(f"this is a function and not a class: it has no method {job.method!r}")
            raise InvalidError(
                f"the class has no method {job.method!r} in this container; it has {has}"
                if job.method
                else f"this is a class: say which method to run; it has {has}"
            )
        entry: Entry = job.entry
        return entry

    def arguments(self, job: Job) -> tuple[Any, Any]:
        if job.members is not None:
            from cadenza.runner import batch

            return batch.arguments(self, job)
        return self.unpack(job)

    def unpack(self, job: Job) -> tuple[Any, Any]:
        """The arguments of one attempt: positional ones and those by name."""
        data: Any = job.data
        if job.blob:
            data = self.channel.lane.get(job.blob)
        job.data = b""
        args, kwargs = values.unpack(data, handles())
        return args, kwargs

    def item(self, job: Job, value: Any) -> None:
        """One value that a generator gave."""
        parts = values.pack(value, context.persistent_id)
        header: dict[str, Any] = {"a": job.attempt, "k": job.items, "n": 0}
        now = time.monotonic() - self.channel.outbox.last_sent > TOGETHER_S
        parts = self._inline(job, header, parts, now)
        job.items += 1
        self.channel.outbox.put("gen", header, parts, now)

    def result(self, job: Job, value: Any) -> None:
        """The function returned. That does not undo a cancellation which it swallowed."""
        if job.cancelled:
            raise InputCancellation("Input was cancelled by user")
        generator = job.entry.is_generator
        if not generator and isinstance(value, (CoroutineType, GeneratorType, AsyncGeneratorType)):
            kind = type(value).__name__.replace("_", " ")
            if isinstance(value, CoroutineType):
                value.close()
            raise InvalidError(
                f"The function returned a {kind} object, but was declared as a plain function: a decorator probably "
                "hides what it is. Keep `async def` or `yield` visible in the function that @app.function sees."
            )
        if job.members is not None:
            from cadenza.runner import batch

            batch.results(self, job, value)
            return
        self.output(job, SUCCESS, [] if generator else values.pack(value, context.persistent_id))

    def failure(self, job: Job, exc: BaseException) -> None:
        """The function raised, or its argument or result could not be used."""
        if self.interrupted and not job.cancelled:
            return  # the container ends; the input is run again elsewhere
        jobs = [job] if job.members is None else [one for one in job.members if one.attempt in self.running]
        if job.cancelled or isinstance(exc, InputCancellation) or _is_cancelled_error(exc):
            for one in jobs:
                self.say(one, f"Successfully canceled input {one.input_id}\n")
                self.output(one, TERMINATED, error="cancelled")
            return
        if not jobs:
            return
        from cadenza.runner import faults

        text = faults.text_of(exc)
        self.say(job, text)
        try:
            message = f"{type(exc).__name__}: {exc}"
        except Exception:
            message = type(exc).__name__
        kinds = faults.kinds(exc) if self.kinds else None
        packed = values.pack_exception(exc)
        self.channel.streams.finish(job.input_id, job.call_id)
        for one in jobs:
            try:
                self.output(one, FAILURE, [packed], message, kinds)
            except Exception as error:  # the lane is gone, or its disk is full: the text still goes
                text = f"{message} (the exception itself could not be sent: {error})"
                self.output(one, FAILURE, [], text, kinds)

    def say(self, job: Job, text: str) -> None:
        err = self.channel.streams.err
        err.end_line()
        err.write(text)

    def output(
        self, job: Job, status: str, parts: Optional[list[Any]] = None, error: str = "",
        kinds: Optional[list[str]] = None,
    ) -> None:  # fmt: skip
        """Send what became of the attempt. Everything that it printed goes first."""
        channel = self.channel
        if channel.terminal is not None:
            channel.terminal.detach()
        channel.streams.finish(job.input_id, job.call_id)
        header: dict[str, Any] = {"a": job.attempt, "s": status, "n": 0}
        if error:
            header["error"] = error[:MAX_ERROR_CHARS]
        if job.items:
            header["items"] = job.items
        if kinds:
            header["kinds"] = kinds
        began_at = job.began_at if job.unit is None else job.unit.began_at
        if began_at:
            header["t0"], header["t1"] = began_at, time.time()
        now = not self.waiting or time.monotonic() - channel.outbox.last_sent > TOGETHER_S
        if parts:
            parts = self._inline(job, header, parts, now)
        self.running.pop(job.attempt, None)
        channel.outbox.put("out", header, parts or [], now)

    def _inline(self, job: Job, header: dict[str, Any], parts: list[Any], now: bool) -> list[Any]:
        """The parts for the frame: none when they had to go by the lane. Those not sent at once are copied out of the
        user's memory, which may change."""
        size = sum(map(len, parts))
        if size > INLINE_VALUE_BYTES:
            header["blob"], header["size"] = self.channel.lane.put(parts, job.durable)
            return []
        return parts if now or len(parts) < 3 else [b"".join(parts)]


def handles() -> Optional[Callable[[Any], Any]]:
    """How handles inside values are read. The SDK brings it; values without handles do not load the SDK."""
    return context.persistent_load or _load_handle


def _load_handle(reference: Any) -> Any:
    if context.persistent_load is None:
        import importlib

        importlib.import_module("cadenza.sdk.handle")
    if context.persistent_load is None:
        raise InvalidError("a handle came in a value, and this version of the package cannot read it")
    return context.persistent_load(reference)


def _is_cancelled_error(exc: BaseException) -> bool:
    asyncio = sys.modules.get("asyncio.exceptions")
    return asyncio is not None and isinstance(exc, asyncio.CancelledError)


class OnMainThread(Executor):
    """Synchronous functions, one input at a time, on the main thread. Cancelled by SIGUSR1."""

    def __init__(self, entries: dict[str, Entry], channel: Channel, most: int = 1) -> None:
        super().__init__(entries, channel, most)
        self.active: Optional[Job] = None
        """The job whose user code runs now: only then may a cancellation be raised."""
        self._poked_early = False
        """SIGUSR1 came since the last look at the connection, while no user code ran."""

    def serve(self) -> None:
        wire, outbox = self.channel.wire, self.channel.outbox
        while not self.ended:
            if not self.waiting:
                if self.draining:
                    return
                outbox.flush()
            self._poked_early = False
            frames = wire.receive(wait=not self.waiting)
            if frames is None:
                self.ended = True
                return
            for header, payload in frames:
                self.handle(header, payload)
            header, payload, frames = {}, b"", None  # large ones are not kept while the next is waited for
            if self.waiting:
                self.run(self.take())

    def run(self, job: Job) -> None:
        """Run one job to its output. KeyboardInterrupt and GeneratorExit come through: they end the container."""
        job.began_at = time.time()
        context.enter(job.input_id, job.call_id)
        try:
            entry = job.entry or self.entry_of(job)
            args, kwargs = self.arguments(job)
            try:
                self.active = job
                if self._poked_early:  # perhaps for this job, whose arguments took long to unpickle
                    self.on_poke()
                value = entry.call(*args, **kwargs)
                if entry.is_generator:
                    for one in value:
                        self.item(job, one)
            finally:
                self.active = None
            self.result(job, value)
        except (KeyboardInterrupt, GeneratorExit) as exc:
            if self.channel.terminal is None:
                raise
            self.failure(job, exc)  # Ctrl-C at the container's own terminal: nobody wants to see it begin again
        except BaseException as exc:
            self.failure(job, exc)
        finally:
            context.leave()

    def cancel_running(self, job: Job) -> None:
        """Raised by `on_poke` once all frames are read."""

    def on_poke(self) -> None:
        job = self.active
        if job is None:
            self._poked_early = True
            return
        mask = self.channel.outbox.mask
        while True:
            mask.depth += 1
            try:
                frames = self.channel.wire.receive(wait=False)
                for header, payload in frames or ():
                    self.handle(header, payload)
                self.channel.outbox.flush()
            finally:
                mask.depth -= 1
            if frames is None:
                self.ended = True
            if not mask.poked:
                break
            mask.poked = False  # a signal came meanwhile, and its frame may not have been among these
        if job.cancelled and self.active is job:
            self.active = None  # once only: the user's clean-up is not interrupted
            raise InputCancellation("Input was cancelled by user")
