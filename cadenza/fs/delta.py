"""What turns one tree into another, as a delta. Pure; the other direction is `cadenza.fs.tree.merge`."""

from __future__ import annotations

from typing import Any

from cadenza.fs.tree import Node, copy, find, highest_link, same, walk, whiteout


def diff(old: Node, new: Node) -> Node:
    """The delta that makes ``new`` of ``old``: ``merge(old, diff(old, new)) == new``. Both without whiteouts.

    A group of hard links is in it with all its names as soon as one is. What both share as a value costs no time.
    """
    found, linked = _diff(old, new, {})
    if linked:
        regrouped = _regrouped(old, new)
        if regrouped:
            found, _ = _diff(old, new, regrouped)
    return found


_Paths = dict[bytes, Any]
"""Paths as nested dictionaries by name; an empty one ends a path."""


def _diff(old: Node, new: Node, wanted: _Paths) -> tuple[Node, bool]:
    """The delta with what is ``wanted`` in any case, and whether links are among what differs."""
    linked = False
    top = copy(new)
    top.children = {}
    # (old, new, what of it is wanted, the delta's node, its parent's children, its name), parents before children.
    order: list[tuple[Node, Node, Node, dict[bytes, Node], bytes]] = []
    waiting: list[tuple[Node, Node, _Paths, Node, dict[bytes, Node], bytes]] = [(old, new, wanted, top, {}, b"")]
    while waiting:
        before, after, wanted, made, siblings, at = waiting.pop()
        order.append((before, after, made, siblings, at))
        was, now, changes = before.children, after.children, made.children
        assert was is not None and now is not None and changes is not None
        for name, gone in was.items():
            if name not in now:
                changes[name] = whiteout()
                linked = linked or bool(highest_link(gone))
        for name, node in now.items():
            earlier = was.get(name)
            want = wanted.get(name)
            if earlier is node and want is None:
                continue
            if earlier is not None and earlier.children is not None and node.children is not None:
                fresh = copy(node)
                fresh.children = {}
                waiting.append((earlier, node, want or {}, fresh, changes, name))
                continue
            linked = linked or bool(highest_link(node) or (earlier is not None and highest_link(earlier)))
            if want is not None or earlier is None or not same(earlier, node):
                changes[name] = node
    for before, after, made, siblings, at in reversed(order[1:]):
        if made.children or not same(before, after):
            siblings[at] = made
    return top, linked


def _groups(root: Node) -> tuple[dict[bytes, Node], dict[bytes, frozenset[bytes]]]:
    """Of every name of a file with several: the entry, and all its names."""
    nodes = {path: node for path, node in walk(root) if node.link}
    names: dict[int, list[bytes]] = {}
    for path, node in nodes.items():
        names.setdefault(node.link, []).append(path)
    sets = {link: frozenset(paths) for link, paths in names.items() if len(paths) > 1}
    return nodes, {path: sets[node.link] for path, node in nodes.items() if node.link in sets}


def _regrouped(old: Node, new: Node) -> _Paths:
    """The names whose file has other names in ``new`` than in ``old``, or is another."""
    old_nodes, old_names = _groups(old)
    new_nodes, new_names = _groups(new)
    changed: set[bytes] = set()
    for path, names in new_names.items():
        if old_names.get(path) != names or not same(old_nodes[path], new_nodes[path]):
            changed |= names
    changed |= {path for path in old_names if path not in new_names and find(new, path) is not None}
    found: _Paths = {}
    for path in changed:
        at = found
        for part in path[1:].split(b"/"):
            at = at.setdefault(part, {})
    return found
