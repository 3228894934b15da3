"""What is where inside a tree: links followed, users and interpreters found. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import Callable, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs.tree import MAX_ID, Node, find, resolve

PASSWD, GROUP = b"/etc/passwd", b"/etc/group"
ReadFile = Callable[[Node], bytes]
"""Gives a regular file's content."""
_PYTHON = re.compile(rb"python(3\.\d{1,2}t?)")


def at(root: Node, path: bytes) -> Optional[Node]:
    """What a path leads to, links followed; None: nothing."""
    return find(root, resolve(root, path))


def owner(root: Node, wanted: str, read: ReadFile) -> tuple[int, int]:
    """The numbers of ``user[:group]`` by the image's own /etc/passwd and /etc/group. InvalidError for unknown names.

    A user's group is that of its entry; of a number without an entry it is 0.
    """
    user, colon, group = wanted.partition(":")
    row = _entry(root, PASSWD, user, read)
    if row is not None and len(row) >= 4:
        uid, gid = _number(row[2]), _number(row[3])
    elif _is_number(user):
        uid, gid = _number(user), 0
    elif not user:
        uid, gid = 0, 0
    else:
        raise InvalidError(f"there is no user {user!r} in the image's /etc/passwd")
    if colon and group:
        entry = _entry(root, GROUP, group, read)
        if entry is not None and len(entry) >= 3:
            gid = _number(entry[2])
        elif _is_number(group):
            gid = _number(group)
        else:
            raise InvalidError(f"there is no group {group!r} in the image's /etc/group")
    return uid, gid


def _is_number(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdecimal()


def _number(text: str) -> int:
    """A user's or a group's. InvalidError for what can be none: the image's files say what they like."""
    if not _is_number(text) or int(text[:20]) >= MAX_ID:
        raise InvalidError(f"{text[:40]!r} is no number that a user or a group can have")
    return int(text)


def home(root: Node, user: str, read: ReadFile) -> str:
    """A user's home directory; ``/`` for one without an entry."""
    row = _entry(root, PASSWD, user.partition(":")[0], read)
    return row[5] if row is not None and len(row) >= 6 and row[5] else "/"


def _entry(root: Node, path: bytes, wanted: str, read: ReadFile) -> Optional[list[str]]:
    """The row whose name, or number, is ``wanted``."""
    node = at(root, path)
    if node is None or not node.is_file or not node.size:
        return None
    rows = [line.split(":") for line in read(node).decode(errors="replace").splitlines()]
    rows = [one for one in rows if len(one) >= 3 and _is_number(one[2])]
    for index in (0, 2):
        for row in rows:
            if row[index] == wanted:
                return row
    return None


def python(root: Node, path: str) -> tuple[str, str]:
    """The Python of an image by its PATH: the interpreter's path, and its minor version as far as names tell it.

    Both empty: there is none. The version alone empty: the interpreter must be asked.
    """
    for folder in path.split(":"):
        if not folder.startswith("/"):
            continue
        here = folder.encode().rstrip(b"/") + b"/python3"
        try:
            real = resolve(root, here)
        except InvalidError:
            continue  # links in a circle: no interpreter is there
        found = find(root, real)
        if found is not None and found.is_file and found.mode & 0o111:
            version = _PYTHON.fullmatch(real.rpartition(b"/")[2])
            return here.decode(), version[1].decode() if version else _beside(root, real)
    return "", ""


def has_program(root: Node, name: str, path: str, directory: str) -> bool:
    """Whether a command's first word names a file of the image, as a runtime looks for it."""
    folders = [directory] if "/" in name else path.split(":")
    for folder in folders:
        found = at(root, posixpath.join(folder or directory, name).encode())
        if found is not None and found.is_file and found.mode & 0o111:
            return True
    return False


def _beside(root: Node, real: bytes) -> str:
    """The version of an interpreter called ``python3`` alone: where its library is says it, if there is one."""
    folder = real.rpartition(b"/")[0].rpartition(b"/")[0] + b"/lib"
    library = at(root, folder)
    names = [] if library is None or library.children is None else list(library.children)
    found = [one for one in map(_PYTHON.fullmatch, names) if one is not None]
    return found[0][1].decode() if len(found) == 1 else ""
