"""What user code prints: docs/formats/wire.md, frame `log`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any, Iterator

import pytest
from runner_peer import Agent

from cadenza.protocol.frame import Decoder, loads
from cadenza.runner import context
from cadenza.runner.outbox import Outbox
from cadenza.runner.streams import Streams
from cadenza.runner.wire import Connection, Mask


class Wired:
    """Streams over a socket pair; ``read`` gives the log entries so far."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX)
        self.connection = Connection(ours)  # type: ignore[arg-type]
        self.outbox = Outbox(self.connection, Mask())
        self.streams = Streams(self.outbox)
        self.out, self.err = self.streams.out, self.streams.err
        self.frames = 0
        self._decoder = Decoder()

    def read(self) -> list[tuple[int, Any, str]]:
        self.outbox.flush()
        self.theirs.settimeout(0.2)
        found = []
        try:
            while True:
                for head, payload in self._decoder.feed(self.theirs.recv(1 << 20)):
                    self.frames += 1
                    at = 0
                    for one in loads(head)["logs"]:
                        found.append((one["fd"], one["i"], payload[at : at + one["n"]].decode()))
                        at += one["n"]
        except TimeoutError:
            return found


@pytest.fixture
def wired() -> Iterator[Wired]:
    one = Wired()
    yield one
    context.leave()
    one.connection.sock.close()
    one.theirs.close()


def test_lines_keep_their_order_across_both_streams(wired: Wired) -> None:
    context.enter("in-1", "fc-1")
    wired.out.write("a\nb\n")
    wired.err.write("c\n")
    wired.out.write("d\n")
    assert wired.read() == [(1, "in-1", "a\nb\n"), (2, "in-1", "c\n"), (1, "in-1", "d\n")]


def test_partial_lines(wired: Wired) -> None:
    wired.out.write("half")
    assert wired.read() == []
    wired.out.flush()
    assert wired.read() == [(1, None, "half")]
    wired.out.write("a")
    wired.out.write("b\rc")
    assert wired.read() == [(1, None, "ab\r")]
    wired.streams.finish("", "")
    assert wired.read() == [(1, None, "c")]


def test_a_partial_line_belongs_to_its_input(wired: Wired) -> None:
    context.enter("in-1", "fc-1")
    wired.out.write("one")
    context.enter("in-2", "fc-1")
    wired.out.write("two\n")
    wired.streams.finish("in-1", "fc-1")
    assert wired.read() == [(1, "in-2", "two\n"), (1, "in-1", "one")]


def test_huge_writes_are_cut_and_odd_ones_survive(wired: Wired) -> None:
    got: list[tuple[int, Any, str]] = []
    reader = threading.Thread(target=lambda: got.extend(wired.read()))
    reader.start()
    wired.out.write("x" * 1_000_000 + "\n")
    reader.join()
    got += wired.read()
    assert sum(len(text) for _, _, text in got) == 1_000_001 and all(len(text) <= 3 * 65536 for _, _, text in got)
    wired.out.write("\ud800 lone\n")
    assert wired.read() == [(1, None, "\\ud800 lone\n")]
    with pytest.raises(TypeError, match="must be str, not bytes"):
        wired.out.write(b"x")  # type: ignore[arg-type]


def test_what_a_text_stream_must_have(wired: Wired) -> None:
    out = wired.out
    assert out.fileno() == 1 and wired.err.fileno() == 2 and not out.isatty() and out.writable() and not out.closed
    assert out.encoding == "utf-8"
    out.reconfigure(line_buffering=True)
    out.buffer.write(b"raw\n")
    out.buffer.flush()
    out.writelines(["a\n", "b\n"])
    print("printed", file=out)
    out.close()
    out.write("still\n")
    assert "".join(text for _, _, text in wired.read()) == "raw\na\nb\nprinted\nstill\n"


def test_many_lines_share_frames(wired: Wired) -> None:
    got: list[tuple[int, Any, str]] = []
    reader = threading.Thread(target=lambda: got.extend(wired.read()))
    reader.start()
    for number in range(50_000):
        wired.out.write(f"line {number}\n")
    reader.join()
    got += wired.read()
    assert "".join(text for _, _, text in got) == "".join(f"line {n}\n" for n in range(50_000))
    assert wired.frames < 200


def test_a_destructor_that_prints_does_not_break_frames(wired: Wired) -> None:
    class Noisy:
        def __del__(self) -> None:
            wired.out.write("from destructor\n")
            wired.outbox.flush()

    class Send:
        def __init__(self) -> None:
            self.send = wired.connection.send

        def __call__(self, *args: Any) -> None:
            noisy = Noisy()
            del noisy
            self.send(*args)
            wired.connection.send = self.send  # type: ignore[method-assign]

    wired.connection.send = Send()  # type: ignore[method-assign]
    wired.out.write("line\n")
    assert [text for _, _, text in wired.read()] == ["line\n", "from destructor\n"]


def test_what_was_flushed_is_with_the_agent_when_the_process_dies() -> None:
    """The last words of a function that crashes are the ones that matter."""
    with Agent() as agent:
        agent.attach(
            "import os, sys\ndef f():\n    print('last', end='')\n    print(' words', flush=True)\n    os._exit(3)"
        )
        agent.run(())
        assert agent.finish() == 3
        assert agent.text(1, "in-0") == "last words\n"


def test_a_child_of_a_fork_does_not_wait_for_a_lock_that_another_thread_held(wired: Wired) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with wired.outbox.lock:
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(5)
        wired.outbox.after_fork()
        wired.outbox.put("out", {"a": "in-1:1", "n": 0}, [], True)
        os._exit(0)
    free.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_line_before_a_long_sleep_arrives_at_once() -> None:
    with Agent() as agent:
        agent.attach(
            "import time, sys\ndef f():\n    print('now')\n    print('part', end='', flush=True)\n    time.sleep(60)"
        )
        agent.run(())
        while "part" not in agent.text(1):
            agent.step()  # times out if it waits for the function
        assert agent.text(1, "in-0") == "now\npart" and agent.outs == []


def test_output_precedes_the_result_and_is_complete() -> None:
    with Agent() as agent:
        agent.attach(
            "import os\ndef f(n):\n    for i in range(n): print('line', i)\n"
            "    print('no end', end='')\n    os.write(2, b'direct')"
        )
        agent.run((20_000,))
        agent.out()
        assert agent.text(1, "in-0") == "".join(f"line {n}\n" for n in range(20_000)) + "no end"
        assert agent.frames < 200 and agent.printed() == "direct"


def test_threads_of_user_code_are_tagged_in_a_container_of_one_input() -> None:
    with Agent() as agent:
        agent.attach(
            "import threading, logging, sys\nlogging.basicConfig(level=20)\n"
            "def f():\n    t = threading.Thread(target=print, args=('from thread',)); t.start(); t.join()\n"
            "    logging.info('logged')"
        )
        agent.run(())
        agent.out()
        assert agent.text(1, "in-0") == "from thread\n" and "INFO:root:logged" in agent.text(2, "in-0")
