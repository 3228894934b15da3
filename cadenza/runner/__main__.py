"""The runner's entry, started by its path: ``python3 -I -S .../cadenza/runner/__main__.py``.

It is compiled at each start, so it is short. As the first process of its container it forks at once, before there is
much memory to share: the child is the runner, this one collects orphans (`cadenza.runner.orphans`).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Find our code, fork if nobody is there to collect orphans, and live a runner's life."""
    gc.disable()  # nothing becomes garbage while we boot; `session` enables it for the user's code
    lib = __file__.rsplit("/cadenza/runner/", 1)[0]
    # At the end of the path: the user's own packages come first. `surroundings` finds it there again.
    sys.path.append(lib)
    try:
        with open(f"{lib}/.code-{sys.implementation.cache_tag}", "rb", 0) as file:
            magic, size = file.read(4), int.from_bytes(file.read(4), "big")
            if magic == MAGIC_NUMBER:
                code, index = marshal.loads(file.read(size))
                bundle: dict[str, Any] = {"__name__": "cadenza.runner.bundle"}
                exec(code, bundle)
                bundle["install"](lib, index, 8 + size)
    except OSError:
        pass  # an interpreter for which nobody has compiled
    first = posix.getpid() == 1
    if first:
        forwarded = [
            getattr(_signal, name)
            for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCHLD")
        ]
        _signal.pthread_sigmask(_signal.SIG_BLOCK, forwarded)
        child = posix.fork()
        if child:
            from cadenza.runner import orphans

            posix._exit(orphans.collect(child, forwarded))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, forwarded)
    from cadenza.runner import session

    session.main(first)


if __name__ == "__main__":
    main()
