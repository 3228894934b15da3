"""The inputs of a map: taken from the user's iterables and packed, ahead of demand but not far ahead.

Sync iterables are read in a thread of their own, since they may block; async ones on the event loop they belong to.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from typing import Any, AsyncIterator, Callable, Iterator, Optional

from cadenza.base.errors import InvalidError
from cadenza.sdk import _dual, result

AHEAD_INPUTS, AHEAD_BYTES = 1000, 16 << 20
"""How far inputs are packed ahead of what is sent."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Inputs:
    """Arguments one after the other, from the user's iterables: all of them sync, or some async."""

    def __init__(self, iterables: tuple[Any, ...], kwargs: dict[str, Any], star: bool) -> None:
        self.iterables = iterables
        self.kwargs = kwargs
        self.star = star
        self.is_async = any(hasattr(one, "__aiter__") for one in iterables)

    def _call(self, values: tuple[Any, ...]) -> Arguments:
        return (tuple(values[0]) if self.star else values), self.kwargs

    def __iter__(self) -> Iterator[Arguments]:
        for values in zip(*self.iterables):
            yield self._call(values)

    async def __aiter__(self) -> AsyncIterator[Arguments]:
        iterators = [one.__aiter__() if hasattr(one, "__aiter__") else iter(one) for one in self.iterables]
        while True:
            values = []
            for one in iterators:
                try:
                    values.append(await one.__anext__() if hasattr(one, "__anext__") else next(one))
                except (StopIteration, StopAsyncIteration):
                    return
            yield self._call(tuple(values))


def zipped(iterables: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The inputs of ``map(*iterables)``. InvalidError when one of them is no iterable."""
    if not iterables:
        raise InvalidError("map needs at least one iterable of inputs")
    return _checked(Inputs(iterables, kwargs, star=False))


def starred(iterable: Any, kwargs: dict[str, Any]) -> Inputs:
    """The inputs of ``starmap(iterable)``."""
    return _checked(Inputs((iterable,), kwargs, star=True))


def _checked(inputs: Inputs) -> Inputs:
    for one in inputs.iterables:
        if not hasattr(one, "__aiter__") and not hasattr(one, "__iter__") and not hasattr(one, "__getitem__"):
            raise InvalidError(
                f"map takes iterables of inputs, not {type(one).__name__}: wrap a single input in a list"
            )
    if not isinstance(inputs.kwargs, dict):
        raise InvalidError(f"kwargs must be a dictionary, not {type(inputs.kwargs).__name__}")
    return inputs


class Feeder:
    """Packs inputs ahead of demand. Made where the user calls; `start` and `take` are the background loop's.

    ``name``: the function's, for messages.
    """

    def __init__(self, inputs: Inputs, name: str) -> None:
        self._inputs = inputs
        self._name = name
        self._context = contextvars.copy_context()
        self._user_loop: Optional[asyncio.AbstractEventLoop] = None
        if inputs.is_async:
            if not _dual.in_running_loop():
                raise InvalidError("async iterables need the async form: use `async for ... in f.map.aio(...)`")
            self._user_loop = asyncio.get_running_loop()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._packed: deque[result.Packed] = deque()
        self._bytes = 0
        self._ended = False
        self._stopped = False
        self._error: Optional[BaseException] = None
        self._wake: Optional[Callable[[], None]] = None
        self._room_async: Optional[asyncio.Future[None]] = None

    def start(self, wake: Callable[[], None]) -> None:
        """Begin. ``wake()`` is called on this loop when there is something to `take` after nothing was."""
        self._loop = asyncio.get_running_loop()
        self._wake = wake
        if self._user_loop is not None:
            self._user_loop.call_soon_threadsafe(self._context.run, self._start_async)
        else:
            threading.Thread(
                target=self._context.run, args=(self._feed,), name="cadenza-map-inputs", daemon=True
            ).start()

    def _start_async(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._feed_async())

    def _feed(self) -> None:
        try:
            for arguments in self._inputs:
                if not self._put(result.Packed(arguments, self._name)):
                    return
                if self._is_full():
                    with self._room:
                        while self._is_full() and not self._stopped:
                            self._room.wait()
        except BaseException as error:  # the consumer raises it
            self._error = error
        finally:
            self._finish()

    async def _feed_async(self) -> None:
        try:
            async for arguments in self._inputs:
                if not self._put(result.Packed(arguments, self._name)):
                    return
                while True:
                    with self._lock:
                        if not self._is_full() or self._stopped:
                            break
                        self._room_async = asyncio.get_running_loop().create_future()
                    await self._room_async
        except BaseException as error:
            self._error = error
        finally:
            self._finish()

    def _is_full(self) -> bool:
        return len(self._packed) >= AHEAD_INPUTS or self._bytes >= AHEAD_BYTES

    def _put(self, one: result.Packed) -> bool:
        with self._lock:
            if self._stopped:
                return False
            was_empty = not self._packed
            self._packed.append(one)
            self._bytes += one.size
        if was_empty:
            self._tell()
        return True

    def _finish(self) -> None:
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:
                pass  # the loop is closed: the process ends

    # The background loop's side.

    def take(self, most: int, most_bytes: int) -> list[result.Packed]:
        """Up to ``most`` packed inputs of about ``most_bytes`` together."""
        taken: list[result.Packed] = []
        size = 0
        with self._lock:
            packed = self._packed
            while packed and len(taken) < most and size < most_bytes:
                one = packed.popleft()
                size += one.size
                taken.append(one)
            self._bytes -= size
            self._give_room()
        return taken

    def _give_room(self) -> None:
        self._room.notify()
        future, self._room_async = self._room_async, None
        if future is not None and self._user_loop is not None:
            try:
                self._user_loop.call_soon_threadsafe(_set, future)
            except RuntimeError:
                pass

    @property
    def waiting(self) -> bool:
        """Whether there is something to take."""
        return bool(self._packed)

    @property
    def ended(self) -> bool:
        """Whether all inputs have been taken."""
        return self._ended and not self._packed

    @property
    def error(self) -> Optional[BaseException]:
        """What the user's iterables, or packing, raised."""
        return self._error

    def stop(self) -> None:
        """Take no more from the user's iterables."""
        with self._lock:
            self._stopped = True
            self._packed.clear()
            self._give_room()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Signal:
    """Wakes one task of the background loop."""

    def __init__(self) -> None:
        self._future: Optional[asyncio.Future[None]] = None
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self._future is not None:
            _set(self._future)

    async def wait(self) -> None:
        if not self._is_set:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            finally:
                self._future = None
        self._is_set = False
