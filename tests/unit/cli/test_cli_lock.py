from __future__ import annotations

import fcntl
import os
import subprocess
import sys

from cadenza.cli import lock
from cadenza.cli.lock import Holder, ServerLock


def test_one_holder_at_a_time(tmp_path) -> None:
    path = str(tmp_path / "state" / "server.lock")
    first, second = ServerLock(path), ServerLock(path)
    me = Holder(1234, "0.1.0", "/s.sock", 5.0)
    assert first.holder() is None
    assert first.take(me)
    assert not second.take(Holder(99, "0.1.0", "", 0.0))
    assert second.holder() == me
    first.release()
    assert second.holder() is None
    assert second.take(me)
    second.release()


def test_who_asks_for_the_holder_keeps_no_server_from_starting(tmp_path, monkeypatch) -> None:
    path = str(tmp_path / "server.lock")
    asking = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.close(asking))
    starting = ServerLock(path)
    assert starting.take(Holder(1, "", "", 0.0))
    starting.release()


def test_a_killed_holder_lets_go(tmp_path) -> None:
    path = str(tmp_path / "server.lock")
    code = (
        "import sys, os, signal; from cadenza.cli.lock import *; "
        f"print(ServerLock({path!r}).take(Holder(os.getpid(), '', '', 0.0)), flush=True); signal.pause()"
    )
    # The lock object must stay referenced: a descriptor that is closed lets go.
    code = code.replace("print(ServerLock(", "lock = ServerLock(").replace(").take(", "); print(lock.take(", 1)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline().strip() == "True"
    holder = ServerLock(path).holder()
    assert holder is not None and holder.pid == child.pid
    child.kill()
    child.wait()
    assert ServerLock(path).holder() is None
