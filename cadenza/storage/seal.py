"""Secrets at rest: AES-256-GCM under one key, which a file of mode 0600 holds or a command prints.

A sealed value is ``nonce (12 random bytes) | ciphertext and tag``; the id of what it belongs to is associated data, so
that a value moved to another row does not open. All that is used of the key is derived from it (HMAC-SHA256 with a
label): the cipher's key, and the *key id*, which is no secret and is kept with each row, so that a changed key is
recognised. `cryptography` does the cipher.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import signal
import stat
import subprocess
from typing import Callable, Optional

from cadenza.base.errors import DataLossError, InvalidError

KEY_BYTES = 32
NONCE_BYTES = 12
COMMAND_LIMIT_S = 20.0
MAX_KEY_FILE_BYTES = 4096


class Seal:
    """Seals and opens under one key of `KEY_BYTES` bytes."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 40 ms, for those who have secrets

        if len(key) != KEY_BYTES:
            raise InvalidError(f"a key for secrets has {KEY_BYTES} bytes, not {len(key)}")
        self._cipher = AESGCM(_derive(key, b"cadenza secrets 1: cipher"))
        self._random_bytes = random_bytes
        self.key_id = _derive(key, b"cadenza secrets 1: id").hex()[:16]
        """Names the key and says nothing of it."""

    def seal(self, owner: str, plain: bytes) -> bytes:
        """``plain`` for the row ``owner``; different bytes at each call."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, owner.encode())

    def open(self, owner: str, sealed: bytes) -> bytes:
        """What `seal` was given. DataLossError when it was another key, another row, or the bytes are damaged."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError):
            raise DataLossError(f"{owner} does not open with the key {self.key_id}: it is damaged") from None


def _derive(key: bytes, label: bytes) -> bytes:
    return hmac.new(key, label, hashlib.sha256).digest()


def new_key(random_bytes: Callable[[int], bytes] = os.urandom) -> bytes:
    """A key from the machine's randomness."""
    return random_bytes(KEY_BYTES)


def parse(text: bytes, where: str) -> bytes:
    """A key from its base64 text. InvalidError, which shows nothing of it, for anything else."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidError(
            f"{where} has no key for secrets: it must give {KEY_BYTES} random bytes in base64 "
            f"(44 characters, as `openssl rand -base64 {KEY_BYTES}` prints them) and nothing else"
        )
    return key


def read_key_file(path: str) -> Optional[bytes]:
    """The key in a file; None when there is no file. InvalidError when others may read it, or it holds no key."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidError(f"the key of the secrets, {path}, cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidError(f"the key of the secrets, {path}, is not a plain file")
        if found.st_mode & 0o077:
            raise InvalidError(
                f"others may read or change the key of the secrets, {path}: run `chmod 600 {path}`. If somebody may "
                "have read it, run `cadenza secret rekey` afterwards and change the secrets where they come from"
            )
        if found.st_uid not in (os.geteuid(), 0):
            raise InvalidError(f"the key of the secrets, {path}, belongs to another user (uid {found.st_uid})")
        return parse(os.read(fd, MAX_KEY_FILE_BYTES), path)
    finally:
        os.close(fd)


def write_key_file(path: str, key: bytes) -> bytes:
    """Make the file, whole or not at all, durably; the key that is in it: another process's where that was first.

    InvalidError when it cannot be written.
    """
    try:
        _write(path, key)
    except OSError as error:
        raise InvalidError(f"the key of the secrets, {path}, cannot be written: {error.strerror}") from None
    found = read_key_file(path)
    if found is None:
        raise InvalidError(f"the key of the secrets, {path}, was removed while it was made: try again")
    return found


def _write(path: str, key: bytes) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}.draft"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, base64.b64encode(key) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename it never replaces a key that is in use
    finally:
        os.unlink(draft)
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def key_from_command(command: str, limit_s: float = COMMAND_LIMIT_S) -> bytes:
    """The key that a shell command prints. Blocks. InvalidError when it fails, takes longer than ``limit_s`` or prints
    something else; no error and no log has what it printed."""
    hint = "run it by hand to see why; it is the setting secrets_key_command"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.communicate()
        raise InvalidError(f"the command for the key of the secrets took over {limit_s:g} s: {hint}") from None
    if process.returncode:
        raise InvalidError(f"the command for the key of the secrets ended with status {process.returncode}: {hint}")
    return parse(printed, "the output of the command in secrets_key_command")
