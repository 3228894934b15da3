"""Which key the secrets are sealed under, where it comes from, and how it is changed without a moment between.

The key in force is the one whose id the database names; a key that is there and is another one is never used in its
place. A new key first lies beside the old one as ``secrets.key.new``, then the database takes it in one transaction,
then it is renamed: after a crash the database says which of the two it is.
"""

from __future__ import annotations

import contextlib
import os
from typing import Callable, Optional

from cadenza.base.errors import ConflictError, InvalidError
from cadenza.storage.seal import (
    Seal,
    key_from_command,
    new_key,
    read_key_file,
    sync_folder,
    write_key_file,
)

RESTORE = "if it is lost for good, `cadenza secret rekey --discard` lets go of what nobody can open any more"


class Keyring:
    """The key's places: the file ``path``, or ``command`` if there is one. Its methods block: call them in threads."""

    def __init__(self, path: str, command: str = "", random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.path = path
        self._fresh = path + ".new"
        self._command = command
        self._random_bytes = random_bytes

    def open(self, known: str) -> Seal:
        """The key in force. ``known``: the id of the one that the database is sealed under; empty when nothing is yet,
        and then a file is made where no command is set. ConflictError when the key that is there is another one or
        none is there, InvalidError as `read_key_file` and `key_from_command`."""
        if self._command:
            seal = self._seal(key_from_command(self._command))
            if known and seal.key_id != known:
                raise ConflictError(
                    f"the command in secrets_key_command prints the key {seal.key_id}, and the secrets are sealed "
                    f"under {known}: let it print that one again; or, to change to the new one, write the old one to "
                    f"{self.path} (mode 0600) and run `cadenza secret rekey`; {RESTORE}"
                )
            return seal
        key, fresh = read_key_file(self.path), read_key_file(self._fresh)
        if not known:
            return self._seal(key or write_key_file(self.path, new_key(self._random_bytes)))
        if key is not None and self._seal(key).key_id == known:
            if fresh is not None:
                self._drop(self._fresh)  # of a change that did not come to pass
            return self._seal(key)
        if fresh is not None and self._seal(fresh).key_id == known:
            self.settle()
            return self._seal(fresh)
        if key is None:
            raise ConflictError(
                f"the key of the secrets is not there: put {self.path} (key {known}) back from where you keep a copy; "
                + RESTORE
            )
        raise ConflictError(
            f"{self.path} has the key {self._seal(key).key_id}, and the secrets are sealed under {known}: put that key "
            f"back from where you keep a copy; {RESTORE}"
        )

    def old(self) -> dict[str, Seal]:
        """Keys that lie in files, by id: what may open rows that are sealed under an earlier key. Unreadable files are
        left out."""
        found: dict[str, Seal] = {}
        for path in (self.path, self._fresh):
            key: Optional[bytes] = None
            with contextlib.suppress(InvalidError):
                key = read_key_file(path)
            if key is not None:
                seal = self._seal(key)
                found[seal.key_id] = seal
        return found

    def renew(self, known: str) -> Seal:
        """The key to change to: what the command prints, or a new one in ``secrets.key.new``. `settle` comes after.

        ConflictError when the command still prints the key in force.
        """
        if self._command:
            seal = self._seal(key_from_command(self._command))
            if seal.key_id == known:
                raise ConflictError(
                    "the command in secrets_key_command still prints the key that is in force: change it first, then "
                    f"write the old key to {self.path} (mode 0600), restart the server and run this again"
                )
            return seal
        self._drop(self._fresh)
        return self._seal(write_key_file(self._fresh, new_key(self._random_bytes)))

    def settle(self) -> None:
        """The database has taken the new key: the file with the old one goes."""
        if self._command:
            self._drop(self.path)
            return
        os.replace(self._fresh, self.path)
        sync_folder(os.path.dirname(self.path))

    def _seal(self, key: bytes) -> Seal:
        return Seal(key, self._random_bytes)

    def _drop(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
