"""``interact()`` and ``breakpoint()``: a container's function gets the terminal of ``cadenza run -i``.

The function makes a terminal, says in the container's log that it waits (`WAITS`), and listens on a socket in /tmp.
Whoever follows the log runs `relay_argv` in the container on a terminal of its own (`cadenza.runner.relay`), which
gets the controlling side over that socket and passes bytes on. From then on standard input, output and error are the
terminal, until the input ends or the other side hangs up; then they are the log again. Source: semantics.md section 23.
"""

from __future__ import annotations

import io
import os
import shutil
import sys

from cadenza.base.errors import InvalidError
from cadenza.runner import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Optional

    from cadenza.runner.execute import Channel

WAITS = "The container waits for a terminal"
"""How the line of the system's log begins by which a container asks for one."""


def relay_argv() -> list[str]:
    """The command that connects the terminal on which it runs, inside of the container, with the function's."""
    from cadenza.runner import relay

    with open(relay.__file__, encoding="utf-8") as file:
        return ["python3", "-I", "-S", "-c", file.read()]


def folder(container_id: str) -> str:
    """Where that container listens, as `relay` has it too."""
    return f"/tmp/.cadenza-terminal-{container_id}"


def interact() -> None:
    """Wait for the terminal of the interactive run; standard input, output and error are that terminal then.

    Returns at once when they are already. InvalidError outside of a container, and in a run without ``-i``.
    """
    container = context.current()
    if container is None:
        raise InvalidError("interact() works in a container only: call it inside of a function")
    if context.executor is None:
        raise InvalidError("interact() works in the process that runs the inputs, and not in one that it started")
    if not container.function.get("interactive"):
        raise InvalidError("interact() and breakpoint() need an interactive run: start the program by `cadenza run -i`")
    channel = context.executor.channel
    if channel.terminal is None:
        Terminal(container.container_id, channel)


def breakpoint_hook(*args: Any, **kwargs: Any) -> Any:
    """What ``breakpoint()`` does in a container: `interact`, then the debugger. PYTHONBREAKPOINT holds as ever."""
    chosen = os.environ.get("PYTHONBREAKPOINT") or "pdb.set_trace"
    if chosen == "0":
        return None
    interact()
    if chosen != "pdb.set_trace" or args:
        return sys.__breakpointhook__(*args, **kwargs)
    import pdb

    from cadenza.runner import faults

    frame: Any = sys._getframe()
    while frame.f_back is not None and faults.is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    pdb.Pdb().set_trace(frame)
    return None


class Terminal:
    """A terminal in place of the standard streams. Making one waits until somebody has connected."""

    def __init__(self, container_id: str, channel: Channel) -> None:
        import pty
        import socket
        import threading

        self._channel = channel
        self._lock = threading.Lock()
        self._main = threading.current_thread() is threading.main_thread()
        self._folder = folder(container_id)
        self._saved: list[int] = []
        self._streams: tuple[Any, ...] = ()
        self._hangup: Any = None
        self._connection: Optional[socket.socket] = None
        shutil.rmtree(self._folder, ignore_errors=True)
        os.mkdir(self._folder, 0o700)
        self._ours, self._theirs = pty.openpty()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(f"{self._folder}/s")
                listener.listen(1)
                channel.outbox.log(0, "", "", f"{WAITS}: connect one by `cadenza run -i`\n".encode())
                channel.outbox.flush()
                self._connection = self._accept(listener)
        except BaseException:
            os.close(self._ours)
            os.close(self._theirs)
            raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._attach()
        channel.terminal = self
        threading.Thread(target=self._watch, name="cadenza-terminal", daemon=True).start()

    def _accept(self, listener: socket.socket) -> socket.socket:
        import socket

        while True:
            connection, _ = listener.accept()
            try:
                socket.send_fds(connection, [b"t"], [self._ours])
                if connection.recv(1):  # the terminal has its size
                    return connection
            except OSError:
                pass
            connection.close()  # it went away; another may come

    def _attach(self) -> None:
        import fcntl
        import signal
        import termios

        sys.stdout.flush()
        sys.stderr.flush()
        if self._main:
            # As its controlling terminal, so that Ctrl-C gets here; its hang-up must not end the container.
            self._hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
            try:
                os.setsid()
            except OSError:
                pass  # it leads a session already
            try:
                fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)
            except OSError:
                pass
        self._saved = [os.dup(number) for number in range(3)]
        for number in range(3):
            os.dup2(self._theirs, number)
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin = _text(0, "r")
        sys.stdout, sys.stderr = _text(1, "w"), _text(2, "w")

    def _watch(self) -> None:
        assert self._connection is not None
        try:
            self._connection.recv(1)
        except OSError:
            pass
        self.detach(False)

    def detach(self, main: bool = True) -> None:
        """The standard streams are the log again. ``main``: on the thread that runs inputs."""
        with self._lock:
            if self._channel.terminal is not self:
                return
            self._channel.terminal = None
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it
        sys.stdin, sys.stdout, sys.stderr = self._streams
        for number, saved in enumerate(self._saved):
            os.dup2(saved, number)
            os.close(saved)
        if self._main and main:
            import fcntl
            import signal
            import termios

            try:
                fcntl.ioctl(self._theirs, termios.TIOCNOTTY)
                signal.signal(signal.SIGHUP, self._hangup or signal.SIG_DFL)
            except (OSError, ValueError):
                pass
        assert self._connection is not None
        import socket

        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()
        os.close(self._theirs)
        os.close(self._ours)


def _text(number: int, mode: str) -> io.TextIOWrapper:
    raw = io.FileIO(number, mode, closefd=False)
    buffer: Any = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
    )
