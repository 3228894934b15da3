"""The process's one background event loop, and how a coroutine runs on it from a thread or from another loop.

The thread and its loop start at the first use and do not survive a fork: a child starts its own. Source: semantics.md
section 1.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from typing import Any, Callable, Coroutine, Optional, TypeVar, cast

from cadenza.base.errors import Bug, ClientClosed
from cadenza.sdk._handover import finish

R = TypeVar("R")


class _Background:
    """The thread, its loop, and nothing else. Daemon: a program's end does not wait for it."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self.thread = threading.Thread(target=self._run, name="cadenza-loop", daemon=True)
        self.thread.start()
        self.ident = self.thread.ident

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed (the host), else the standard library's (any image)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


_background: Optional[_Background] = None
_starting = threading.Lock()


_abandoned: list[Optional[_Background]] = []
"""The parent's loops, in a child: freeing one would touch what belongs to the parent."""


def _forget() -> None:
    """After a fork: threads did not come along, so neither does the loop."""
    global _background, _starting
    _abandoned.append(_background)
    _background = None
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _start() -> _Background:
    global _background
    with _starting:
        if _background is None:
            _background = _Background()
        return _background


def background_loop() -> asyncio.AbstractEventLoop:
    """The process's background loop, started at the first use."""
    return (_background or _start()).loop


class _Run:
    """One coroutine on the background loop. ``ended()`` is called there when it is over, exactly once."""

    __slots__ = ("context", "coroutine", "ended", "error", "state", "task", "value")

    WAITS, RUNS, OVER = 0, 1, 2

    def __init__(self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[], Any]) -> None:
        self.coroutine = coroutine
        self.ended = ended
        self.context = contextvars.copy_context()
        self.state = self.WAITS
        self.value: Any = None
        self.error: Optional[BaseException] = None
        self.task: Optional[asyncio.Task[None]] = None

    def start(self) -> None:
        self.context.run(self._create)

    def _create(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._main())

    async def _main(self) -> None:
        self.state = self.RUNS
        try:
            self.value = await self.coroutine
        except BaseException as error:  # who waits raises it
            self.error = error
        finally:
            self.state = self.OVER
            self.ended()

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.state == self.WAITS:  # a task cancelled before its first step never takes it
            self.state = self.OVER
            self.coroutine.close()
            self.error = asyncio.CancelledError()
            self.ended()


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Block until ``coroutine`` has run on the background loop; its result or its exception.

    Ctrl-C cancels it, waits for its clean-up and raises KeyboardInterrupt; a second Ctrl-C does not wait.
    """
    background = _background or _start()
    if threading.get_ident() == background.ident:
        coroutine.close()
        raise Bug("a blocking call on the background loop's own thread would wait for itself")
    lock = threading.Lock()
    lock.acquire()
    one = _Run(coroutine, lock.release)
    try:
        background.loop.call_soon_threadsafe(one.start)
        lock.acquire()
    except BaseException:
        background.loop.call_soon_threadsafe(one.cancel)
        if one.state != _Run.OVER:  # else the interrupt came after the wait: the lock will not be released again
            lock.acquire()
        raise
    error = one.error
    if error is None:
        return cast(R, finish(one.value))
    try:
        if isinstance(error, asyncio.CancelledError):
            raise ClientClosed("the call was ended while it was under way") from error
        raise error
    finally:
        del error, one  # no cycle through this frame


async def bridge(coroutine: Coroutine[Any, Any, R]) -> R:
    """Await ``coroutine``, which runs on the background loop, from any loop. Cancelling the wait cancels it."""
    here = asyncio.get_running_loop()
    background = _background or _start()
    if here is background.loop:
        return cast(R, finish(await coroutine))
    ended: asyncio.Future[None] = here.create_future()

    def set_ended() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell() -> None:
        try:
            here.call_soon_threadsafe(set_ended)
        except RuntimeError:
            pass  # the user's loop was closed meanwhile: nobody waits

    one = _Run(coroutine, tell)
    background.loop.call_soon_threadsafe(one.start)
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        background.loop.call_soon_threadsafe(one.cancel)
        await ended  # its clean-up; a second cancellation does not wait
        raise
    if one.error is not None:
        try:
            raise one.error
        finally:
            del one
    return cast(R, finish(one.value))


def in_running_loop() -> bool:
    """Whether the calling thread is inside a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def soon(work: Callable[[], Any]) -> None:
    """Run ``work()`` on the background loop without waiting, from any thread. Nothing happens if the loop has ended."""
    background = _background
    if background is None:
        return
    try:
        background.loop.call_soon_threadsafe(work)
    except RuntimeError:
        pass  # the loop is closed: the process ends
