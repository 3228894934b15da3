"""What is fetched beside a file that is missing."""

from __future__ import annotations

from cadenza.fs.neighbours import FIRST_BYTES, FREE_BYTES, GROWTH, SHARE, SMALL_BYTES, Neighbours, Shown
from cadenza.fs.tree import Node, digest, directory
from cadenza.base.errors import NotFoundError

MIB = 1 << 20


def folder(name: str, count: int, size: int, suffix: str = "py") -> Node:
    """A directory of files ``0000.py`` and so on; `at` names their content."""
    made = directory()
    assert made.children is not None
    for number in range(count):
        made.children[b"%04d.%s" % (number, suffix.encode())] = Node(0o100644, size=size, data=at(name, number, suffix))
    return made


def at(name: str, number: int, suffix: str = "py") -> bytes:
    return digest(f"{name} {number} {suffix}".encode())


def tree(**folders: Node) -> Node:
    top = directory()
    assert top.children is not None
    for name, node in folders.items():
        top.children[name.encode()] = node
    return top


def test_the_rest_of_a_small_directory_comes_in_order_of_names() -> None:
    known = Neighbours(tree(one=folder("one", 5, 1000), two=folder("two", 3, 1000)))
    assert known.beside(at("one", 2)) == [at("one", number) for number in (3, 4, 0, 1)]
    assert known.beside(at("one", 4)) == []
    assert known.beside(digest(b"of another tree")) is None


def test_other_kinds_large_files_and_empty_ones_are_no_neighbours() -> None:
    made = folder("one", 2, 1000)
    assert made.children is not None
    made.children.update(folder("one", 2, 1000, "txt").children or {})
    made.children[b"large.py"] = Node(0o100644, size=SMALL_BYTES + 1, data=digest(b"large"))
    made.children[b"empty.py"] = Node(0o100644)
    made.children[b"link.py"] = Node(0o120777, data=b"0000.py")
    known = Neighbours(tree(one=made))
    assert known.beside(at("one", 0)) == [at("one", 1)]
    assert known.beside(digest(b"large")) is None


def test_a_directory_grows_with_each_miss_in_it_alone() -> None:
    size = FIRST_BYTES // 4
    known = Neighbours(tree(one=folder("one", 100, size), two=folder("two", 100, size)))
    assert len(known.beside(at("one", 0)) or ()) == 4
    assert len(known.beside(at("one", 50)) or ()) == 4 * GROWTH
    assert len(known.beside(at("two", 0)) or ()) == 4


def test_what_comes_unasked_is_bounded_by_what_was_asked_for() -> None:
    count = 2 * FREE_BYTES // FIRST_BYTES
    known = Neighbours(tree(**{f"d{number}": folder(f"d{number}", 100, 64 << 10) for number in range(count)}))
    got = sum(len(known.beside(at(f"d{number}", 0)) or ()) for number in range(count))
    assert FREE_BYTES < got * (64 << 10) <= FREE_BYTES + SHARE * count * (64 << 10)


def test_the_latest_trees_are_known_and_read_at_the_first_miss() -> None:
    trees = {bytes((number,)): tree(one=folder(f"tree{number}", 2, 1000)) for number in range(6)}
    read: list[bytes] = []

    def load(name: bytes) -> Node:
        read.append(name)
        if name == b"\5":
            raise NotFoundError("gone")
        return trees[name]

    shown = Shown(load)
    assert not shown
    for name in trees:
        shown.add(name)
    assert shown and not read
    assert shown.beside(at("tree4", 0)) == [at("tree4", 1)]
    assert read == [b"\5", b"\4"]
    assert shown.beside(at("tree0", 0)) == [], "the oldest is forgotten"
    shown.add(b"\4")
    assert shown.beside(at("tree4", 1)) == [], "what was given once is not given again"
