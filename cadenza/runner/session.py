"""One runner's life: connect, hello, become a function's container, run its inputs, bye."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys
import time

from cadenza import __version__
from cadenza.base.errors import ExecutionError
from cadenza.runner import LANE_SOCKET, RUNNER_SOCKET, SUPPORT_DIR, context, preload
from cadenza.runner.outbox import Outbox
from cadenza.runner.wire import Connection, Mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Optional

    from cadenza.runner.execute import Executor
    from cadenza.runner.occupant import Occupant

PROTOCOL = 1  # cadenza.protocol.frame.PROTOCOL, as said in the hello
CONNECT_TRIES = 40
CONNECT_PAUSE_S = 0.05
MAX_EXIT_S = 30.0
"""How long exit functions and threads may hold the end of the process. Source: semantics.md section 12.1."""
WARN_EXIT_S = 1.0
MAX_TEXT_CHARS = 128 << 10
MAX_FAULT_BYTES = 8 << 20
"""There is no lane before a function is loaded: a larger fault is sent as its text."""

EXIT_OK, EXIT_FAILED, EXIT_NO_AGENT, EXIT_INTERRUPTED = 0, 1, 3, 130


def main(forked: bool = False) -> None:
    """Live one life and exit. ``forked``: the container's first process is our parent, and began before us."""
    Session(_process_age_s("1" if forked else "self")).run()


def _process_age_s(process: str) -> float:
    """Seconds since a process began, to the kernel's hundredth."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


class Session:
    """The life. ``age_s``: how old the process is already."""

    def __init__(self, age_s: float) -> None:
        self._age_s = age_s
        self._started = time.monotonic()
        self._support = os.environ.get("CADENZA_SUPPORT") or SUPPORT_DIR
        self._executor: Optional[Executor] = None
        self._occupant: Optional[Occupant] = None
        """Of a class: from the end of its enter hooks on."""
        self._stopping = False
        self._told = False
        self._said_last = False
        self.mask = Mask()

    def run(self) -> None:
        """Exits the process, in order where it can: with the user's exit functions run."""
        self.mask.action = self._signalled
        _signal.signal(_signal.SIGUSR1, self._on_usr1)
        _signal.signal(_signal.SIGTERM, self._on_term)
        self._connect()
        try:
            self._attach(*self._until_attached())
            code = self._serve()
            self._deafen()
        except (KeyboardInterrupt, GeneratorExit) as exc:
            self._deafen()
            code = self._interrupted(type(exc).__name__)
        self._end(code)

    # Signals. Handlers run between two instructions of the main thread; inside of the mask they only leave a note.

    def _on_usr1(self, number: int, frame: Any) -> None:
        self._poke()

    def _on_term(self, number: int, frame: Any) -> None:
        self._stopping = True
        self._poke()

    def _poke(self) -> None:
        if self.mask.depth:
            self.mask.poked = True
        else:
            self._signalled()

    def _signalled(self) -> None:
        try:
            if self._executor is not None and (self._told or not self._stopping):
                self._executor.on_poke()
        finally:  # SIGTERM may also come while that reads, and then only leaves a note
            self._obey()

    def _obey(self) -> None:
        if self._stopping and not self._told:
            self._told = True  # once: the user's clean-up is not interrupted again
            if self._executor is not None:
                self._executor.handle({"t": "drain", "grace_s": 0}, b"")
            raise KeyboardInterrupt("the container is being stopped")

    def _deafen(self) -> None:
        """Nothing is left to cancel, and the end is on its way: exit hooks are not disturbed, except by SIGKILL."""
        _signal.signal(_signal.SIGUSR1, _signal.SIG_IGN)
        if self._occupant is not None:
            _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
            _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)

    # The connection.

    def _connect(self) -> None:
        path = f"{self._support}/{RUNNER_SOCKET}"
        for left in reversed(range(CONNECT_TRIES)):
            try:
                self.wire = Connection.open(path)
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                fault: OSError = error
                if not left:
                    _die(f"The runner cannot connect to the agent at {path}: {fault}.")
                time.sleep(CONNECT_PAUSE_S)
            except OSError as error:
                _die(f"The runner cannot connect to the agent at {path}: {error}.")
        self.outbox = Outbox(self.wire, self.mask)
        boot = {"boot_s": round(self._age_s + time.monotonic() - self._started, 6), "cpu_s": time.process_time()}
        major, minor, micro = sys.version_info[:3]
        self._send(
            {
                "t": "hello", "protocol": PROTOCOL, "version": __version__, "role": "runner",
                "python": f"{major}.{minor}.{micro}", "pid": os.getpid(), "boot": boot,
            }
        )  # fmt: skip

    def _send(self, header: dict[str, Any], payloads: Any = ()) -> None:
        try:
            self.outbox.frame(header, payloads)
        except OSError as error:
            _die(f"The agent closed the runner's connection: {error}.")

    def _until_attached(self) -> tuple[dict[str, Any], bytes]:
        self._later: list[tuple[dict[str, Any], bytes]] = []
        welcomed = loaded = False
        while True:
            if welcomed and not loaded and not self._comes(preload.PAUSE_S):
                loaded = preload.preload(lambda: self._comes(0)) == len(preload.MODULES)
            frames = self.wire.receive()
            if frames is None:
                os._exit(EXIT_NO_AGENT)  # nobody has any use for this container
            for position, (header, payload) in enumerate(frames):
                kind = header.get("t")
                welcomed = welcomed or kind == "welcome"
                if kind == "refuse":
                    _die(f"The agent refused the runner: {header.get('message')}")
                if kind == "drain":
                    self._end(EXIT_OK)
                if kind == "attach":
                    self._later = frames[position + 1 :]
                    return header, payload

    def _comes(self, wait_s: float) -> bool:
        """Whether the agent says something within that time."""
        import select

        return bool(select.select([self.wire.sock], [], [], wait_s)[0])

    # Becoming a container.

    def _attach(self, header: dict[str, Any], payload: bytes) -> None:
        from cadenza.runner import surroundings
        from cadenza.runner.streams import Streams

        self.streams = Streams(self.outbox)
        self.streams.install()
        os.register_at_fork(after_in_child=self._after_fork)
        import faulthandler

        sys.breakpointhook = _breakpoint
        faulthandler.enable(2)  # a crash in C code leaves the Python stack on the file descriptor
        function = header["function"]
        began = time.monotonic()
        most = int(function.get("max_concurrent") or 1)
        context.become(
            context.Container(
                header["container_id"], header["app_id"], header["function_id"], header.get("image_id", ""),
                header.get("layout") or {}, function,
            ),
            concurrent=most > 1,
        )  # fmt: skip
        where, enter_s = "import", 0.0
        try:
            rest = surroundings.arrange(header, payload)
            import atexit

            atexit.register(self._last)
            _load_pickle()
            from cadenza.runner import loader

            _collect_from_here()
            call = loader.load(function, rest[: int(header.get("serialized") or 0)])
            if function.get("methods"):
                where = "enter"
                entered = time.monotonic()
                self._enter(call, function, most)
                enter_s = time.monotonic() - entered
            else:
                from cadenza.runner.execute import Entry

                entry = Entry(call, bool(function.get("is_generator")), bool(function.get("is_async")))
                self._executor = self._make_executor({"": entry}, function, most, entry.is_async)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as exc:
            self._failed(exc, where)
        ready: dict[str, Any] = {"t": "ready", "import_s": round(time.monotonic() - began - enter_s, 6)}
        ready["enter_s"] = round(enter_s, 6)
        if self._occupant is not None and self._occupant.leaves:
            ready["leaves"] = True
        self._send(ready)

    def _enter(self, cls: Any, function: dict[str, Any], most: int) -> None:
        from cadenza.runner.occupant import Occupant

        occupant = Occupant(cls, function)
        executor = self._make_executor(occupant.entries, function, most, occupant.is_async)
        occupant.enter(executor)
        self._occupant, self._executor = occupant, executor

    def _make_executor(self, entries: Any, function: dict[str, Any], most: int, is_async: bool) -> Executor:
        from cadenza.runner.execute import Channel, OnMainThread

        lane: Any = LaterLane(f"{self._support}/{LANE_SOCKET}")
        channel = Channel(self.wire, self.outbox, self.streams, lane)
        executor: Executor
        if is_async:
            from cadenza.runner.tasks import OnLoop

            executor = OnLoop(entries, channel, most)
        elif most > 1:
            from cadenza.runner.threads import OnThreads

            executor = OnThreads(entries, channel, most)
        else:
            executor = OnMainThread(entries, channel)
        executor.batched = bool(function.get("batch_max"))
        executor.kinds = bool(function.get("kinds"))
        context.executor = executor
        return executor

    def _failed(self, exc: BaseException, where: str) -> NoReturn:
        from cadenza.runner import faults, values

        text = faults.text_of(exc)
        sys.stderr.flush()
        sys.stderr.write(text)
        self.streams.finish_all()
        text = text[-MAX_TEXT_CHARS:]
        packed = values.pack_exception(exc)
        if len(packed) > MAX_FAULT_BYTES:
            packed = values.pack_exception(ExecutionError(f"The container could not load the function:\n{text}"))
        self._send({"t": "failed", "where": where, "text": text, "n": len(packed)}, [packed])
        os._exit(EXIT_FAILED)

    # Working.

    def _serve(self) -> int:
        executor = self._executor
        assert executor is not None
        for header, payload in self._later:
            executor.handle(header, payload)
        self._later = []
        executor.serve()
        self._refuse_late()
        return EXIT_NO_AGENT if self.wire.closed else EXIT_OK

    def _refuse_late(self) -> None:
        """What came while the last input ran is given back as well."""
        for header, payload in self.wire.receive(wait=False) or ():
            if self._executor is not None:
                self._executor.draining = True
                self._executor.handle(header, payload)

    def _interrupted(self, raised: str) -> int:
        """SIGTERM, or a KeyboardInterrupt or GeneratorExit of the user's own: what has not begun is given back."""
        ordered = self._stopping
        if not ordered and hasattr(self, "streams"):
            if self._executor is not None:
                raised = self._executor.raised or raised
            what = "The function" if self._executor is not None else "The import or an enter hook"
            sys.stderr.write(f"{what} raised {raised}: the container ends.\n")
        self._stopping = True
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
        if self._executor is not None:
            self._executor.handle({"t": "drain", "grace_s": 0}, b"")
            self._refuse_late()
        return EXIT_OK if ordered else EXIT_INTERRUPTED

    def _end(self, code: int) -> NoReturn:
        """The user's exit hooks and functions run, threads are waited for as Python does, then `_last`."""
        self._code = code
        # Python's own end would make the signal deadly.
        _signal.signal(_signal.SIGUSR1, _signal.SIG_IGN)
        if self.wire.closed or not hasattr(self, "streams"):
            self._last()
            os._exit(code)
        from _thread import start_new_thread

        start_new_thread(self._limit_end, (code,))
        executor = self._executor
        if executor is not None:
            if self._occupant is not None:
                self._occupant.exit(executor)
            executor.close()
        sys.exit(code)

    def _limit_end(self, code: int) -> None:
        """Python waits for threads that are no daemons without an end; a container does so for a limited time."""
        grace_s = MAX_EXIT_S
        if self._executor is not None and self._executor.grace_s:
            grace_s = min(grace_s, self._executor.grace_s)
        time.sleep(min(WARN_EXIT_S, grace_s / 2))
        if self._occupant is not None and self._occupant.hook:
            sys.stderr.write(f"Waiting at most {grace_s:g} s for the exit hook {self._occupant.hook}\n")
        threading = sys.modules.get("threading")
        if threading is not None:
            main = threading.main_thread()
            names = [one.name for one in threading.enumerate() if one is not main and not one.daemon]
            if names:
                sys.stderr.write(f"Waiting at most {grace_s:g} s for threads that still run: {', '.join(names)}\n")
        time.sleep(max(grace_s - WARN_EXIT_S, grace_s / 2))
        if self._occupant is not None and self._occupant.hook:
            sys.stderr.write(f"The exit hook {self._occupant.hook} did not end within {grace_s:g} s and was cut off\n")
        self._last()
        os._exit(code)

    def _last(self) -> None:
        """The last exit function of all: what was printed goes out, then the good-bye."""
        if self.outbox.broken or self._said_last:
            return
        self._said_last = True
        if hasattr(self, "streams"):
            self.streams.finish_all()
        if getattr(self, "_code", EXIT_FAILED) == EXIT_OK:
            try:
                self.outbox.frame({"t": "bye"})
            except OSError:
                pass

    def _after_fork(self) -> None:
        """A child of the user's code: it has neither the connection nor our signal handlers."""
        self.outbox.after_fork()
        self.streams.after_fork()
        self.wire.closed = True
        self.wire.sock.close()
        self._executor = context.executor = None
        for number in (_signal.SIGUSR1, _signal.SIGTERM):
            if getattr(_signal.getsignal(number), "__self__", None) is self:
                _signal.signal(number, _signal.SIG_DFL)


class LaterLane:
    """The lane, made when the first value comes that is large enough for it: importing it takes 1 ms."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        from cadenza.runner.lane import Lane

        lane = Lane(self._path)
        self.get, self.put = lane.get, lane.put
        return getattr(lane, name)


def _breakpoint(*args: Any, **kwargs: Any) -> Any:
    from cadenza.runner import terminal

    return terminal.breakpoint_hook(*args, **kwargs)


def _collect_from_here() -> None:
    """Collect the user's garbage only: what we have made so far lives as long as the process. Saves 1.5 ms of 16."""
    import gc

    gc.freeze()
    gc.enable()


def _load_pickle() -> None:
    """C pickle wants nothing of functools but ``partial``, which is in C too: 3 ms that most functions never need."""
    if "functools" in sys.modules or "_pickle" in sys.modules:
        return
    import _functools  # type: ignore[import-not-found]

    stand_in: Any = type(sys)("functools")
    stand_in.partial = _functools.partial
    sys.modules["functools"] = stand_in
    try:
        import _pickle  # noqa: F401
    except Exception:
        sys.modules.pop("_pickle", None)  # another interpreter's pickle wants more
    finally:
        del sys.modules["functools"]


def _die(message: str) -> NoReturn:
    os.write(2, (message + "\n").encode("utf-8", "backslashreplace"))
    os._exit(EXIT_NO_AGENT)
