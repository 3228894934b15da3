"""The kernel's FUSE messages, by their layouts in include/uapi/linux/fuse.h."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys

from cadenza.fs import fuse


def init(minor: int, flags: int, major: int = 7) -> bytes:
    low, high = flags & 0xFFFFFFFF, flags >> 32
    return struct.pack("=IIIII44x", major, minor, 131072, low, high)


EVERYTHING = (1 << 42) - 1


def test_messages_come_back() -> None:
    raw = fuse.pack_request(fuse.LOOKUP, 7 | fuse.RESENT, 258, b"name\0", pid=12)
    assert struct.unpack_from("=II", raw) == (45, 1)
    found = fuse.request(memoryview(raw + b"left over"))
    assert (found.opcode, found.node, found.pid, fuse.name(found.body)) == (fuse.LOOKUP, 258, 12, "name")
    assert found.unique == 7 | fuse.RESENT and found.key == 7


def test_answers_have_the_kernels_sizes() -> None:
    # sizeof of fuse_entry_out, fuse_attr_out, fuse_open_out, fuse_statfs_out
    assert len(fuse.entry(5, 0o100444, 9)) == 128
    assert len(fuse.attributes(5, 0o100444, 9)) == 104
    assert len(fuse.opened()) == 16
    assert len(fuse.statistics()) == 80


def test_an_entry_says_number_size_and_mode() -> None:
    body = fuse.entry(1 << 62 | 5, 0o100444, 700)
    assert struct.unpack_from("=QQQQ", body) == (1 << 62 | 5, 0, fuse.FOREVER_S, fuse.FOREVER_S)
    ino, size, blocks = struct.unpack_from("=QQQ", body, 40)
    assert (ino, size, blocks) == (1 << 62 | 5, 700, 2)
    assert struct.unpack_from("=I", body, 40 + 60) == (0o100444,)


def test_replies_carry_errors_as_negative_numbers() -> None:
    assert fuse.reply(9, b"xy") == struct.pack("=IiQ", 18, 0, 9) + b"xy"
    assert fuse.reply(9, b"xy", error=5) == struct.pack("=IiQ", 16, -5, 9)


def test_terms_of_a_new_kernel() -> None:
    body, terms = fuse.agree(init(45, EVERYTHING), passthrough=False)
    assert terms is not None and (terms.minor, terms.resend, terms.passthrough) == (41, True, False)
    assert len(body) == 64
    flags = struct.unpack_from("=I", body, 12)[0] | struct.unpack_from("=I", body, 32)[0] << 32
    assert flags & 1 << 18, "lookups of one directory at once"
    assert flags & 1 << 39, "resend"
    assert not flags & 1 << 37, "passthrough"
    assert not flags & 1 << 16, "no writes are cached"


def test_passthrough_is_asked_for_with_a_depth() -> None:
    body, terms = fuse.agree(init(45, EVERYTHING), passthrough=True)
    assert terms is not None and terms.passthrough
    assert struct.unpack_from("=I", body, 36) == (1,)


def test_terms_of_an_older_kernel() -> None:
    # Linux 6.6: no resend, no passthrough.
    _, terms = fuse.agree(init(39, (1 << 36) - 1), passthrough=True)
    assert terms is not None and (terms.minor, terms.resend, terms.passthrough) == (39, False, False)


def test_another_major_version_is_asked_to_come_down() -> None:
    body, terms = fuse.agree(init(0, 0, major=8), passthrough=False)
    assert terms is None and struct.unpack_from("=I", body) == (7,)


def test_a_kernel_that_is_too_old_is_refused() -> None:
    assert fuse.agree(init(30, EVERYTHING), passthrough=False) == (b"", None)


def test_ranges_handles_and_interrupts() -> None:
    read = struct.pack("=QQIIQII", 0, 1 << 33, 4096, 0, 0, 0, 0)
    assert fuse.read_range(read) == (1 << 33, 4096)
    assert fuse.released(struct.pack("=QIIQ", 3, 0, 0, 0)) == 3
    assert fuse.interrupted(struct.pack("=Q", 77 | fuse.RESENT)) == 77


def test_who_is_killed_is_told_from_who_is_signalled() -> None:
    script = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        assert not fuse.is_killed(one.pid)
        os.kill(one.pid, signal.SIGUSR1)
        assert not fuse.is_killed(one.pid)
        # A stopped process keeps what comes: the kernel shows it as pending.
        one.kill()
        one.wait()
        assert fuse.is_killed(one.pid)
