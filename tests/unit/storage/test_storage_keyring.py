"""Which key is in force, and what a crash in the middle of its change leaves."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from cadenza.base.errors import ConflictError, InvalidError
from cadenza.storage.keyring import Keyring
from cadenza.storage.seal import Seal, write_key_file

OLD, NEW = bytes(32), bytes(range(32))
OLD_ID, NEW_ID = Seal(OLD).key_id, Seal(NEW).key_id


def command(key: bytes) -> str:
    return f"echo {base64.b64encode(key).decode()}"


def test_a_key_is_made_when_nothing_is_sealed_yet(tmp_path: Path) -> None:
    ring = Keyring(str(tmp_path / "secrets.key"))
    first = ring.open("")
    assert ring.open(first.key_id).key_id == first.key_id
    assert ring.open("").key_id == first.key_id


def test_no_key_is_made_in_place_of_a_lost_one(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    with pytest.raises(ConflictError, match=r"put .*back.*--discard"):
        Keyring(str(path)).open(OLD_ID)
    assert not path.exists()


def test_another_key_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    write_key_file(str(path), NEW)
    with pytest.raises(ConflictError, match=f"{NEW_ID}.*{OLD_ID}"):
        Keyring(str(path)).open(OLD_ID)
    with pytest.raises(ConflictError, match=f"{NEW_ID}.*{OLD_ID}"):
        Keyring(str(path), command(NEW)).open(OLD_ID)
    assert Keyring(str(path), command(OLD)).open(OLD_ID).key_id == OLD_ID


@pytest.mark.parametrize("taken", [False, True], ids=["before the commit", "after it"])
def test_a_crash_in_the_middle_of_a_change(tmp_path: Path, taken: bool) -> None:
    """The database says which of two keys is in force."""
    path = tmp_path / "secrets.key"
    write_key_file(str(path), OLD)
    fresh = Keyring(str(path)).renew(OLD_ID)
    in_force = fresh.key_id if taken else OLD_ID
    again = Keyring(str(path))
    assert again.open(in_force).key_id == in_force
    assert [one.name for one in tmp_path.iterdir()] == ["secrets.key"]
    assert again.open(in_force).key_id == in_force


def test_from_a_file_to_a_command_and_from_one_command_to_another(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    write_key_file(str(path), OLD)
    ring = Keyring(str(path), command(NEW))
    assert set(ring.old()) == {OLD_ID}
    assert ring.renew(OLD_ID).key_id == NEW_ID
    ring.settle()
    assert not path.exists()
    with pytest.raises(ConflictError, match="still prints"):
        ring.renew(NEW_ID)


def test_a_file_that_is_not_private_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    write_key_file(str(path), OLD)
    path.chmod(0o644)
    assert Keyring(str(path)).old() == {}
    with pytest.raises(InvalidError, match="chmod 600"):
        Keyring(str(path)).open("")
