"""Trees as directories of hard links: the last resort, for kernels without data-only layers and users without root.

::

    links/<tree>/           the tree, whole
    links/variants/ab/<62>.<32>
                            an object with one set of attributes, named by the digests of both

A file's attributes belong to its inode, so that each set of them needs an inode of its own; trees that agree in both,
as images of one base do, share it. A variant is never the object itself, which the store dates when it is used; it is
a copy that shares blocks with it where the file system can do that (xfs, btrfs), and takes their room again elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Callable

import msgspec
from blake3 import blake3

from cadenza.fs.sparse import dress, plant
from cadenza.fs.tree import Node
from cadenza.fs.workplace import erase

VARIANTS = "variants"
TRIES = 4
"""How often a variant may go, with the last tree that had it, before it is taken."""
_FICLONE = 0x40049409
_COPY_BYTES = 1 << 30
_libc = ctypes.CDLL(None, use_errno=True)


def make(root: Node, home: str, name: str, path: Callable[[bytes], str], prefix: bytes) -> str:
    """The directory ``home/name`` with all of a tree in it, made if it is not there. ``path``: of an object.

    Every object is there. OSError.
    """
    place = os.path.join(home, name)
    if os.path.isdir(place):
        return place
    variants = os.path.join(home, VARIANTS)
    os.makedirs(variants, mode=0o755, exist_ok=True)
    scratch = f"{place}.{os.getpid()}.{os.urandom(4).hex()}"
    os.mkdir(scratch, 0o755)
    copied = False

    def make_file(node: Node, name: bytes, at: int) -> bool:
        nonlocal copied
        if not node.data:
            # One inode for each: of empty files there can be more than an inode takes links.
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=at))
            return True
        variant = os.path.join(variants, key(node))
        for left in reversed(range(TRIES)):
            try:
                os.link(variant, name, dst_dir_fd=at, follow_symlinks=False)
                break
            except OSError as error:
                if error.errno == errno.EMLINK:
                    os.unlink(variant)  # those that have it keep it; the next are of a new one
                elif error.errno != errno.ENOENT or not left:
                    raise
            copied = True
            _vary(node, path(node.digest), variant, prefix)
        return False

    try:
        plant(root, scratch, prefix, make_file)
        if copied:
            # A directory with its name is whole also after a loss of power.
            at = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
            _libc.syncfs(at)
            os.close(at)
        os.rename(scratch, place)
    except FileExistsError:
        erase(scratch)
    except OSError as error:
        erase(scratch)
        if error.errno != errno.ENOTEMPTY:
            raise
    except BaseException:
        erase(scratch)
        raise
    return place


def key(node: Node) -> str:
    """Where a file's variant is. Equal for files with the same content and the same attributes, and for no others."""
    attributes = (node.mode, node.uid, node.gid, node.mtime, sorted((node.xattrs or {}).items()))
    text = node.digest.hex()
    return f"{text[:2]}/{text[2:]}.{blake3(msgspec.msgpack.encode(attributes)).hexdigest(length=16)}"


def made(home: str) -> list[str]:
    """The names of the trees that are there."""
    return [one for one in os.listdir(home) if one != VARIANTS and "." not in one]


def remove(home: str, name: str) -> None:
    """Take a tree away, and the variants that no tree has any more. Nothing happens if it is not there."""
    place = os.path.join(home, name)
    if not os.path.isdir(place):
        return
    trash = f"{place}.{os.getpid()}.{os.urandom(4).hex()}"
    os.rename(place, trash)
    erase(trash)
    for folder, _, names in os.walk(os.path.join(home, VARIANTS)):
        for one in names:
            variant = os.path.join(folder, one)
            try:
                if os.lstat(variant).st_nlink == 1 and one.count(".") == 1:
                    os.unlink(variant)
            except FileNotFoundError:
                continue


def clear(home: str) -> None:
    """Drop what a killed process left half-made. Nobody else is at work in ``home``."""
    for folder in (home, *(os.path.join(home, VARIANTS, one) for one in _listed(os.path.join(home, VARIANTS)))):
        for name in _listed(folder):
            if name.count(".") > (folder != home):
                erase(os.path.join(folder, name))


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _vary(node: Node, source: str, variant: str, prefix: bytes) -> None:
    """Make a variant."""
    folder = os.path.dirname(variant)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    scratch = f"{variant}.{os.getpid()}.{os.urandom(4).hex()}"
    at = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _copy(source, scratch)
        dress(node, os.fsencode(os.path.basename(scratch)), at, prefix)
        os.rename(scratch, variant)
    except BaseException:
        if os.path.exists(scratch):
            os.unlink(scratch)
        raise
    finally:
        os.close(at)


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            while os.copy_file_range(old.fileno(), new.fileno(), _COPY_BYTES):
                pass
