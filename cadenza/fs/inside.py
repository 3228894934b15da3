"""What is where inside a tree: links followed, users and interpreters found. Pure."""

from __future__ import annotations

import re
from typing import Callable, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs.tree import Node, find

MAX_LINKS = 40
PASSWD, GROUP = b"/etc/passwd", b"/etc/group"
ReadFile = Callable[[Node], bytes]
"""Gives a regular file's content."""
_PYTHON = re.compile(rb"python(3\.\d{1,2}t?)")


def resolve(root: Node, path: bytes, last: bool = True) -> bytes:
    """The path with every link on its way followed, within the tree; of its end too, if ``last``.

    What does not exist stays as it is written. InvalidError when links go in a circle.
    """
    rest = [one for one in path.split(b"/") if one]
    done: list[bytes] = []
    links = 0
    while rest:
        part = rest.pop(0)
        if part == b".":
            continue
        if part == b"..":
            done = done[:-1]
            continue
        here = b"/" + b"/".join([*done, part])
        found = find(root, here)
        if found is not None and found.is_link and (rest or last):
            links += 1
            if links > MAX_LINKS:
                raise InvalidError(f"links in the image go in a circle at {here.decode(errors='replace')}")
            if found.data.startswith(b"/"):
                done = []
            rest = [one for one in found.data.split(b"/") if one] + rest
        else:
            done.append(part)
    return b"/" + b"/".join(done)


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
        uid, gid = int(row[2]), int(row[3])
    elif user.isdigit():
        uid, gid = int(user), 0
    elif not user:
        uid, gid = 0, 0
    else:
        raise InvalidError(f"there is no user {user!r} in the image's /etc/passwd")
    if colon and group:
        entry = _entry(root, GROUP, group, read)
        if entry is not None and len(entry) >= 3:
            gid = int(entry[2])
        elif group.isdigit():
            gid = int(group)
        else:
            raise InvalidError(f"there is no group {group!r} in the image's /etc/group")
    return uid, gid


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
    rows = [one for one in rows if len(one) >= 3 and one[2].strip().isdigit()]
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
        real = resolve(root, here)
        found = find(root, real)
        if found is not None and found.is_file and found.mode & 0o111:
            version = _PYTHON.fullmatch(real.rpartition(b"/")[2])
            return here.decode(), version[1].decode() if version else _beside(root, real)
    return "", ""


def _beside(root: Node, real: bytes) -> str:
    """The version of an interpreter called ``python3`` alone: where its library is says it, if there is one."""
    folder = real.rpartition(b"/")[0].rpartition(b"/")[0] + b"/lib"
    library = at(root, folder)
    names = [] if library is None or library.children is None else list(library.children)
    found = [one for one in map(_PYTHON.fullmatch, names) if one is not None]
    return found[0][1].decode() if len(found) == 1 else ""
