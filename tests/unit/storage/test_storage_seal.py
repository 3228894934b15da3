"""The cipher of secrets and its key: what opens, what does not, and what errors never show."""

from __future__ import annotations

import base64
import os
import stat
import time
from pathlib import Path

import pytest

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.storage.seal import Seal, key_from_command, parse, read_key_file, write_key_file

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY)


def test_what_is_sealed_opens_with_its_key_and_its_row_only() -> None:
    seal = Seal(KEY)
    sealed = seal.seal("st-1", b"hunter2")
    assert b"hunter2" not in sealed
    assert seal.open("st-1", sealed) == b"hunter2"
    for owner, key in (("st-2", KEY), ("st-1", bytes(32))):
        with pytest.raises(DataLossError):
            Seal(key).open(owner, sealed)


@pytest.mark.parametrize("at", [0, 11, 12, -1])
def test_any_changed_byte_is_noticed(at: int) -> None:
    changed = bytearray(Seal(KEY).seal("st-1", b"hunter2"))
    changed[at] ^= 1
    with pytest.raises(DataLossError):
        Seal(KEY).open("st-1", bytes(changed))


@pytest.mark.parametrize("length", [0, 5, 12, 27])
def test_what_is_cut_short_does_not_open(length: int) -> None:
    with pytest.raises(DataLossError):
        Seal(KEY).open("st-1", Seal(KEY).seal("st-1", b"hunter2")[:length])


def test_nonces_are_fresh() -> None:
    seal = Seal(KEY)
    assert len({seal.seal("st-1", b"same")[:12] for _ in range(200)}) == 200


def test_a_key_id_names_the_key_and_is_no_part_of_it() -> None:
    assert Seal(KEY).key_id == Seal(KEY).key_id != Seal(bytes(32)).key_id
    assert Seal(KEY).key_id not in KEY.hex()
    with pytest.raises(InvalidError, match="32 bytes"):
        Seal(b"short")


@pytest.mark.parametrize(
    "text", [b"", b"hunter2", base64.b64encode(bytes(31)), base64.b64encode(bytes(33)), b"\xff" * 44]
)
def test_what_is_no_key_is_refused_and_not_shown(text: bytes) -> None:
    with pytest.raises(InvalidError, match="base64") as raised:
        parse(text, "the file")
    assert "hunter2" not in str(raised.value)
    assert parse(b" " + TEXT + b"\n", "the file") == KEY


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "config/secrets.key"
    assert read_key_file(str(path)) is None
    old = os.umask(0)
    try:
        assert write_key_file(str(path), KEY) == KEY
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert write_key_file(str(path), bytes(32)) == KEY  # what is there stays
    assert read_key_file(str(path)) == KEY
    assert [one.name for one in path.parent.iterdir()] == ["secrets.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_key_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secrets.key"
    write_key_file(str(path), KEY)
    path.chmod(mode)
    with pytest.raises(InvalidError, match=f"chmod 600 {path}"):
        read_key_file(str(path))


def test_a_key_file_is_a_plain_file_with_a_key(tmp_path: Path) -> None:
    real, link, pipe, empty = (tmp_path / one for one in ("real", "link", "pipe", "empty"))
    write_key_file(str(real), KEY)
    link.symlink_to(real)
    os.mkfifo(pipe, 0o600)
    empty.touch(0o600)
    for path in (link, pipe, empty, tmp_path):
        with pytest.raises(InvalidError, match=str(path)):
            read_key_file(str(path))


def test_a_command_prints_the_key() -> None:
    assert key_from_command(f"echo {TEXT.decode()}; echo noise >&2") == KEY


@pytest.mark.parametrize("command", ["echo hunter2; exit 3", "echo hunter2", "no-such-command-of-ours"])
def test_a_command_that_fails_shows_nothing_of_its_output(command: str) -> None:
    with pytest.raises(InvalidError, match="secrets_key_command") as raised:
        key_from_command(command)
    assert "hunter2" not in str(raised.value)


def test_a_command_has_a_time_limit_and_so_has_what_it_started() -> None:
    began = time.monotonic()
    with pytest.raises(InvalidError, match="took over"):
        key_from_command("sleep 60 & sleep 60", limit_s=0.2)
    assert time.monotonic() - began < 10


def test_a_key_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidError, match="cannot be written: File exists"):
        write_key_file(str(tmp_path / "file/secrets.key"), b"k" * 32)
