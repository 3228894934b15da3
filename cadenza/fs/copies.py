"""COPY: files of one tree put into another, as a Dockerfile says it; and files of a recipe at their paths. Pure.

Source: the Dockerfile reference, COPY and ADD; semantics.md section 13.4.
"""

from __future__ import annotations

import fnmatch
import re
import stat
from dataclasses import dataclass
from typing import Callable, Iterable, Optional, Sequence

from cadenza.base.errors import InvalidError
from cadenza.fs.edit import PUT_NS, Edit
from cadenza.fs.tree import Node, copy, directory, find, resolve
from cadenza.protocol.objects import FileEntry

Found = tuple[bytes, int]
"""``Node.data`` and the size of a file's content."""


def files_tree(files: Iterable[FileEntry], content: Callable[[FileEntry], Found]) -> Node:
    """Files of a step as a tree of their own: the context of COPY."""
    edit = Edit(directory(mtime=PUT_NS))
    for one in files:
        edit.put(_bytes(one.path), _file(one, content(one)))
    return edit.root


def put_files(root: Node, files: Iterable[FileEntry], content: Callable[[FileEntry], Found]) -> Node:
    """The tree with each file at its path. InvalidError when a directory is there."""
    edit = Edit(root)
    for one in files:
        edit.put(_bytes(one.path), _file(one, content(one)))
    return edit.root


def put_directory(root: Node, path: str) -> Node:
    """The tree with a directory at this path."""
    edit = Edit(root)
    edit.make_directory(_bytes(path))
    return edit.root


def _file(entry: FileEntry, found: Found) -> Node:
    data, size = found
    return Node(stat.S_IFREG | (entry.mode & 0o7777), mtime=PUT_NS, size=size, data=data)


@dataclass(frozen=True)
class Manner:
    """How copies are owned and what they may do; None: as they are in the source."""

    owner: Optional[tuple[int, int]] = None
    mode: Optional[int] = None


def put_copies(root: Node, source: Node, patterns: Iterable[str], target: str, manner: Manner) -> Node:
    """The tree with what the patterns match in ``source`` at ``target``. InvalidError when one matches nothing."""
    return put_found(root, matched(source, patterns), target, manner)


def matched(source: Node, patterns: Iterable[str]) -> list[tuple[bytes, Node]]:
    """``(name, node)`` of what the patterns match. InvalidError when one matches nothing."""
    found: list[tuple[bytes, Node]] = []
    for one in patterns:
        here = match(source, one)
        if not here:
            raise InvalidError(f"COPY: there is no {one.lstrip('/') or '/'!r} to copy")
        found += here
    return found


def put_found(root: Node, found: Sequence[tuple[bytes, Node]], target: str, manner: Manner) -> Node:
    """The tree with these at ``target``: files by their names, of directories what is in them."""
    edit = Edit(root)
    into = target.endswith("/") or len(found) > 1
    path = _bytes(target).rstrip(b"/") or b"/"
    there = find(root, resolve(root, path))
    for name, node in found:
        if node.children is not None:
            _merge(edit, path, node, manner)
        elif into or (there is not None and there.is_dir):
            _leaf(edit, path.rstrip(b"/") + b"/" + name, node, manner)
        else:
            _leaf(edit, path, node, manner)
    return edit.root


def _bytes(path: str) -> bytes:
    """A path as the tree has it: names that are no UTF-8 come with surrogates, as `os.fsdecode` makes them."""
    return path.encode(errors="surrogateescape")


def match(source: Node, pattern: str) -> list[tuple[bytes, Node]]:
    """``(name, node)`` of what a pattern matches, by name; wildcards never match a slash. Links above are followed."""
    found: list[tuple[bytes, Node]] = [(b"", source)]
    places = [b"/"]
    parts = [one for one in pattern.split("/") if one and one != "."]
    for part in parts:
        lower: list[tuple[bytes, Node]] = []
        lower_places = []
        for place, (_, node) in zip(places, found, strict=True):
            real = resolve(source, place) if node.is_link else place
            at = find(source, real)
            if at is None or at.children is None:
                continue
            names = [_bytes(part)] if not any(one in part for one in "*?[\\") else _globbed(at.children, part)
            for name in names:
                if name in at.children:
                    lower.append((name, at.children[name]))
                    lower_places.append(real.rstrip(b"/") + b"/" + name)
        found, places = lower, lower_places
    # A link that is named itself is copied as what it leads to.
    made = []
    for place, (name, node) in zip(places, found, strict=True):
        real_node = find(source, resolve(source, place)) if node.is_link else node
        if real_node is not None:
            made.append((name, real_node))
    return made


def _globbed(children: dict[bytes, Node], part: str) -> list[bytes]:
    wanted = re.compile(fnmatch.translate(part.replace("[^", "[!")))
    return [one for one in sorted(children) if wanted.match(one.decode(errors="surrogateescape"))]


def _changed(node: Node, manner: Manner) -> Node:
    made = copy(node)
    made.link = 0
    if manner.owner is not None:
        made.uid, made.gid = manner.owner
    if manner.mode is not None and not node.is_link:
        made.mode = stat.S_IFMT(node.mode) | manner.mode
    return made


def _leaf(edit: Edit, path: bytes, node: Node, manner: Manner) -> None:
    edit.put(path, _changed(node, manner), follow=False)


def _merge(edit: Edit, path: bytes, node: Node, manner: Manner) -> None:
    """What is in a directory goes into another."""
    waiting = [(path, node)]
    while waiting:
        path, node = waiting.pop()
        made = _changed(node, Manner(manner.owner))
        fresh = find(edit.root, resolve(edit.root, path)) is None
        here = edit.make_directory(path, 0o755, *(manner.owner or (0, 0)))
        if fresh:
            edit.set_attributes(here, made)
        for name, child in sorted((node.children or {}).items(), reverse=True):
            below = here.rstrip(b"/") + b"/" + name
            if child.children is None:
                _leaf(edit, below, child, manner)
                continue
            there = find(edit.root, resolve(edit.root, below))
            if there is not None and not there.is_dir:
                raise InvalidError(
                    f"COPY: {below.decode(errors='replace')} is a file in the image, and not in the source"
                )
            waiting.append((below, child))
