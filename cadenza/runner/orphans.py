"""The first process of a container, when the runner is its child: passes signals on and collects orphans.

It is a process apart: a runner that waited for any child would steal the exit codes of those that the user's code
waits for itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix as os  # `os` itself takes 1 ms


def collect(child: int, signals: list[int]) -> int:
    """Until ``child`` ends; its exit code, 128 + n for signal n. ``signals`` are blocked and are passed on to it."""
    while True:
        number = int(_signal.sigwait(signals))
        if number != _signal.SIGCHLD:
            try:
                os.kill(child, number)
            except ProcessLookupError:
                pass
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == 0:
                break
            if pid == child:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
