"""This user's embedded server: control plane and agent in one process, found by a lock file, gone when idle.

``python -m cadenza.cli.server [--keep]``. Started by the SDK when no server answers, or by ``cadenza up``. Exit status:
0 it ended in order, 3 another server holds the lock, 1 it could not start; the reason is in ``server.log``.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import errno
import gc
import os
import signal
import sys
import time

from cadenza import __version__
from cadenza.base.clock import SystemClock
from cadenza.base.config import Config, load
from cadenza.base.errors import Error
from cadenza.base.ids import IdSource
from cadenza.cli.lock import Holder, ServerLock

LOCKED = 3
IDLE_CHECK_S = 5.0


LARGE_BYTES = 1 << 20
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def give_memory_back() -> None:
    """What this process frees goes back to the machine, as far as the C library lets us say so (glibc).

    Of itself it keeps large pieces for threads that may want them again, each thread apart: after one image was built a
    server held 20 MiB more than with these two settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_ARENA_MAX, 2)


async def serve(config: Config, keep: bool) -> None:
    """Run until told to stop by a signal or a client, or until idle for ``config.idle_stop_s``."""
    from cadenza.agent.main import Agent
    from cadenza.control.main import ControlPlane

    clock, ids = SystemClock(), IdSource()
    stop = asyncio.Event()
    control = ControlPlane(config, clock, ids)
    agent = Agent(config, clock, ids, control, control.accept_client, control.accept_lane)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    try:
        await agent.start()
        await control.start(agent)
        control.kept = keep
        control.on_stop(stop.set)
        gc.collect()
        gc.freeze()
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), min(IDLE_CHECK_S, config.idle_stop_s))
            except asyncio.TimeoutError:
                if not control.kept and control.idle_s() >= config.idle_stop_s:
                    break
    finally:
        try:
            await control.close()
        finally:
            await agent.close()


def sentence(error: OSError, data_dir: str) -> str:
    """What went wrong, and where there is one, what to do. ``data_dir`` is meant where the error names no file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {error.filename or data_dir} is full: free some space and start it again"
    return str(error)


def main(argv: list[str] | None = None) -> int:
    """The process. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="cadenza-server", description="The embedded Cadenza server.")
    parser.add_argument("--keep", action="store_true", help="do not stop when idle")
    options = parser.parse_args(argv)
    from cadenza.observe import log

    try:
        config = load()
    except Error as error:
        print(error, file=sys.stderr)
        return 1
    log.configure(config.loglevel)
    lock = ServerLock(config.lock_path)
    try:
        for directory in (config.data_dir, config.state_dir, config.runtime_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        taken = lock.take(Holder(os.getpid(), __version__, config.socket_path, time.time()))
    except OSError as error:
        print(f"the server cannot start: {sentence(error, config.data_dir)}", file=sys.stderr)
        return 1
    if not taken:
        print("another server of this user is running", file=sys.stderr)
        return LOCKED
    try:
        from cadenza.agent.surroundings import enter_rootless

        enter_rootless(config)
        import uvloop

        give_memory_back()
        uvloop.run(serve(config, options.keep))
    except Error as error:
        print(f"the server could not go on: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the server could not go on: {sentence(error, config.data_dir)}", file=sys.stderr)
        return 1
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
