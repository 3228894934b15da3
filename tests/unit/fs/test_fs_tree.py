"""Trees as values: encoding, changing, merging, comparing. docs/formats/tree.md."""

from __future__ import annotations

import gc
import re
import stat
import time
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.fs import tree
from cadenza.fs.chunk import decode_list
from cadenza.fs.delta import diff
from cadenza.fs.tree import (
    CHUNKED_BYTES, OPAQUE, Node, copy, decode, directory, drop, encode, files, find, flatten, measure, merge, put,
    resolve, validate, walk, whiteout,
)  # fmt: skip

PAGE = Path(__file__).parents[3] / "docs/formats/tree.md"


def file_of(text: str, mode: int = 0o644, link: int = 0) -> Node:
    data = blake3(text.encode()).digest() if text else b""
    return Node(stat.S_IFREG | mode, size=len(text), data=data, link=link)


def symlink(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, data=target)


def tree_of(**paths: Node) -> Node:
    """A tree by its paths, ``__`` for a slash."""
    root = directory()
    for path, node in paths.items():
        root = put(root, path.replace("__", "/").encode(), node)
    return root


def paths(root: Node) -> list[str]:
    return [path.decode() for path, _ in walk(root)][1:]


# --- random trees ---

NAMES = st.one_of(st.sampled_from([b"a", b"b", b"c"]), st.binary(min_size=1, max_size=4)).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
NUMBERS = st.integers(0, 3)
XATTRS = st.none() | st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=3), max_size=2)


@st.composite
def leaves(draw: st.DrawFn, deltas: bool) -> Node:
    kind = draw(st.sampled_from("fflpcw" if deltas else "fflpc"))
    if kind == "w":
        return whiteout()
    node = {
        "f": lambda: file_of(draw(st.text("xy", max_size=3))),
        "l": lambda: symlink(draw(st.binary(min_size=1, max_size=3).filter(lambda one: b"\0" not in one))),
        "p": lambda: Node(stat.S_IFIFO | 0o600),
        "c": lambda: Node(stat.S_IFCHR | 0o600, rdev=draw(st.integers(1, 1 << 31))),
    }[kind]()
    node.uid, node.mtime, node.xattrs = draw(NUMBERS), draw(st.integers(-(1 << 62), 1 << 62)), draw(XATTRS) or None
    return node


@st.composite
def directories(draw: st.DrawFn, children: st.SearchStrategy[Node], deltas: bool) -> Node:
    node = directory(0o700 | draw(NUMBERS), uid=draw(NUMBERS), mtime=draw(NUMBERS))
    node.xattrs = draw(XATTRS) or None
    node.flags = OPAQUE if deltas and draw(st.booleans()) else 0
    node.children = draw(st.dictionaries(NAMES, children, max_size=4))
    return node


@st.composite
def trees(draw: st.DrawFn, deltas: bool = False) -> Node:
    """With hard links among its files."""
    nodes = st.recursive(leaves(deltas), lambda one: directories(one, deltas), max_leaves=12)
    root = directory()
    root.children = draw(st.dictionaries(NAMES, nodes, max_size=4))
    for link in range(1, draw(NUMBERS) + 1):
        linked = draw(leaves(deltas).filter(lambda one: not one.is_whiteout))
        linked.link = link
        for name in draw(st.lists(NAMES, max_size=3)):
            folders = [path for path, node in walk(root) if node.is_dir]
            root = put(root, draw(st.sampled_from(folders)) + b"/" + name, linked)
    return root


# --- the encoding ---


@given(trees(deltas=True))
def test_a_tree_comes_back(root: Node) -> None:
    validate(root, delta=True)
    assert decode(encode(root)) == root
    assert [path for path, _ in walk(decode(encode(root)))] == [path for path, _ in walk(root)]


@pytest.mark.parametrize("collects", [True, False])
def test_reading_a_tree_leaves_the_collector_as_it_was(collects: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        tree.decode(tree.encode(tree.directory()))
        assert gc.isenabled() == collects
        with pytest.raises(DataLossError):
            tree.decode(b"no tree")
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()


def test_equal_trees_are_equal_bytes() -> None:
    one = tree_of(b=file_of("1", link=7), a=file_of("1", link=7), c=file_of("2", link=9))
    other = tree_of(c=file_of("2"), a=file_of("1", link=2), b=file_of("1", link=2))
    assert encode(one) == encode(other)
    assert one == other
    assert one != tree_of(a=file_of("1"), b=file_of("1"), c=file_of("2"))
    assert decode(encode(one)).children[b"a"].link == 1  # type: ignore[index]


def row(name: bytes = b"", mode: int = 0o40755, count: int = 0, **more: object) -> list[object]:
    fields = {"uid": 0, "gid": 0, "mtime": 0, "size": 0, "data": b"", "rdev": 0, "link": 0, "xattrs": None, "flags": 0}
    return [name, mode, *{**fields, **more}.values(), count]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "begins with its root"),
        ([row(b"x")], "begins with its root"),
        ([row(mode=0o100644, count=-1)], "root is no directory"),
        ([row(count=1)], "ends too early"),
        ([row(), row(b"a")], "after its end"),
        ([row(count=2), row(b"a"), row(b"a")], "two entries"),
        ([row(count=1), row(b"a/b")], "the name"),
        ([row(count=1), row(b"..")], "the name"),
        ([row(count=1), row(b"")], "the name"),
        ([row(count=1), row(b"n" * 256)], "the name"),
        ([row(count=1), row(b"a", mode=0o100644, count=0)], "no kind"),
        ([row(count=1), row(b"a", count=-1)], "no kind"),
    ],
)
def test_what_is_no_tree_is_refused(rows: list[list[object]], said: str) -> None:
    with pytest.raises(DataLossError, match=said):
        decode(msgspec.msgpack.encode((tree.FORMAT, rows)))


@given(st.binary(max_size=40))
def test_any_bytes_are_a_tree_or_a_loss(data: bytes) -> None:
    try:
        root = decode(data)
    except DataLossError:
        return
    assert decode(encode(root)) == root


def test_another_format_says_so() -> None:
    with pytest.raises(DataLossError, match="format 2; this version reads format 1"):
        decode(msgspec.msgpack.encode((2, [row()])))


def test_the_pages_example_is_what_it_says() -> None:
    """The worked example of docs/formats/tree.md, byte by byte."""
    blocks = re.findall(r"```hex\n(.*?)```", PAGE.read_text(), re.DOTALL)
    encoded, listed = (bytes.fromhex("".join(re.sub(r"#.*", "", one).split())) for one in blocks)
    root = directory(mtime=1_700_000_000_000_000_000)
    hello = Node(0o100755, 0, 0, 0, 3, blake3(b"hi\n").digest(), link=5, xattrs={b"user.by": b"me"})
    for name, node in (
        (b"bin/hi", hello), (b"hi", hello), (b"gone", whiteout()), (b"to", symlink(b"bin/hi")),
    ):  # fmt: skip
        root = put(root, name, node)
    find(root, b"/bin").flags = OPAQUE  # type: ignore[union-attr]
    assert encode(root) == encoded
    assert decode(encoded) == root
    assert f"`{tree.digest(encoded).hex()}`" in PAGE.read_text()
    chunks = decode_list(listed)
    assert [(one.start, one.length) for one in chunks] == [(0, 300_000), (300_000, 1_000)]
    assert chunks[1].digest == blake3(bytes(1000)).digest()


# --- paths ---


def test_put_and_drop_share_what_they_do_not_change() -> None:
    root = tree_of(a__b__c=file_of("1"), other__d=file_of("2"))
    changed = put(root, b"/a/b/e", file_of("3"))
    assert paths(changed) == ["/a", "/a/b", "/a/b/c", "/a/b/e", "/other", "/other/d"]
    assert paths(root) == ["/a", "/a/b", "/a/b/c", "/other", "/other/d"]
    assert find(changed, b"/other") is find(root, b"/other")
    assert drop(changed, b"a/b/e") == root
    assert drop(root, b"a/none") is root
    assert drop(root, b"/") is root
    assert paths(drop(root, b"/a")) == ["/other", "/other/d"]
    assert put(root, b"/", directory()) == directory()


def test_put_below_a_file_is_refused() -> None:
    with pytest.raises(InvalidError, match="a/b: a part of this path is no directory"):
        put(tree_of(a=file_of("1")), b"a/b", file_of("2"))


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/name", "/etc/name"), ("/lib/x", "/usr/lib/x"), ("/lib", "/usr/lib"), ("/to/lib/x", "/usr/lib/x"),
        ("/up/x", "/x"), ("a/../etc/./name", "/etc/name"), ("/../..", "/"), ("/none/../etc", "/etc"),
        ("/dangling/x", "/not/there/x"), ("", "/"),
    ],
)  # fmt: skip
def test_symlinks_are_followed_within_the_tree(path: str, wanted: str) -> None:
    root = tree_of(
        etc__name=file_of("1"), usr__lib__x=file_of("2"), lib=symlink(b"usr/lib"), to__lib=symlink(b"/lib"),
        up=symlink(b"../../.."), dangling=symlink(b"/not/there"),
    )  # fmt: skip
    assert resolve(root, path.encode()) == wanted.encode()


def test_the_last_symlink_may_stay() -> None:
    root = tree_of(a=directory(), lib=symlink(b"a"), a__to=symlink(b"/x"))
    assert resolve(root, b"/lib/to", last=False) == b"/a/to"


def test_symlinks_in_a_circle_are_refused() -> None:
    root = tree_of(a=symlink(b"b"), b=symlink(b"a/x"))
    with pytest.raises(InvalidError, match="a/y: the symlinks on this path go in a circle"):
        resolve(root, b"/a/y")


# --- merging and comparing ---


@given(trees(), trees(deltas=True))
def test_merge_has_no_marks_and_leaves_its_arguments(lower: Node, delta: Node) -> None:
    before = encode(lower), encode(delta)
    merged = merge(lower, delta)
    validate(merged)
    assert (encode(lower), encode(delta)) == before


@settings(max_examples=60)
@given(trees(), trees())
def test_the_difference_makes_the_one_the_other(old: Node, new: Node) -> None:
    delta = diff(old, new)
    validate(delta, delta=True)
    assert merge(old, decode(encode(delta))) == new


@settings(max_examples=60)
@given(trees(), trees(deltas=True))
def test_the_difference_of_a_change_is_that_change(lower: Node, delta: Node) -> None:
    upper = merge(lower, delta)
    assert merge(lower, diff(lower, upper)) == upper
    assert merge(upper, diff(upper, lower)) == lower


@given(trees())
def test_nothing_differs_from_itself(root: Node) -> None:
    assert diff(root, decode(encode(root))).children == {}


@settings(max_examples=30)
@given(trees(), trees(deltas=True), trees(deltas=True))
def test_layers_are_merged_one_after_the_other(first: Node, second: Node, third: Node) -> None:
    assert flatten([first, second, third]) == merge(merge(merge(directory(), first), second), third)


def test_what_overlayfs_shows() -> None:
    lower = tree_of(d__a=file_of("1"), d__b=file_of("2"), o__hidden=file_of("3"), f=file_of("4"), g__x=file_of("5"))
    opaque = tree_of(new=file_of("6"))
    opaque.flags = OPAQUE
    delta = tree_of(d__a=whiteout(), d__c=file_of("7"), o=opaque, f__below=file_of("8"), g=file_of("9"), h=whiteout())
    find(delta, b"d").mode = stat.S_IFDIR | 0o700  # type: ignore[union-attr]
    merged = merge(lower, delta)
    assert paths(merged) == ["/d", "/d/b", "/d/c", "/f", "/f/below", "/g", "/o", "/o/new"]
    assert find(merged, b"d").mode == stat.S_IFDIR | 0o700  # type: ignore[union-attr]


def test_links_of_two_layers_stay_apart() -> None:
    lower = tree_of(a=file_of("1", link=1), b=file_of("1", link=1))
    merged = merge(lower, tree_of(c=file_of("1", link=1), d=file_of("1", link=1)))
    links = [node.link for _, node in walk(decode(encode(merged)))]
    assert links == [0, 1, 1, 2, 2]


def test_a_name_more_brings_all_names_into_the_difference() -> None:
    old = tree_of(a=file_of("1", link=1), d__b=file_of("1", link=1), d__other=file_of("2"))
    delta = diff(old, merge(old, tree_of(c=file_of("1", link=1)), same_links=True))
    assert paths(delta) == ["/a", "/c", "/d", "/d/b"]


def test_a_path_of_two_thousand_parts() -> None:
    path = b"/d" * 2000 + b"/file"
    root = put(directory(), path, file_of("deep"))
    changed = put(root, path, file_of("other"))
    delta = diff(root, changed)
    validate(delta)
    assert merge(root, delta) == changed
    assert resolve(changed, path) == path
    assert find(drop(changed, path), path) is None
    assert measure(root).entries == 2002


def test_a_small_change_of_a_large_tree_is_quick() -> None:
    root = directory()
    assert root.children is not None
    for number in range(1000):
        root.children[b"package%d" % number] = directory()
        root.children[b"package%d" % number].children = {b"file%d" % one: file_of("x", link=one) for one in range(100)}
    delta = tree_of(package7__file7=file_of("new"))
    took = []
    for _ in range(3):
        began = time.process_time()
        merged = merge(root, delta)
        took.append(time.process_time() - began)
    assert find(merged, b"package8") is find(root, b"package8")
    assert min(took) < 0.05  # it is about 0.0001


# --- counts and limits ---


def test_extent_counts_linked_files_once() -> None:
    root = tree_of(a=file_of("12345", link=1), b=file_of("12345", link=1), c__d=file_of("12345"), e=symlink(b"a"))
    found = measure(root)
    assert (found.entries, found.files, found.directories, found.size) == (6, 3, 2, 10)
    assert (found.objects, found.object_size) == (1, 5)
    assert len(list(files(root))) == 3


def large(data: int) -> Node:
    return Node(stat.S_IFREG | 0o644, size=CHUNKED_BYTES + 1, data=bytes(data))


def test_a_large_file_names_its_list() -> None:
    node = large(64)
    node.data = bytes(32) + b"x" * 32
    assert (node.digest, node.list_digest) == (bytes(32), b"x" * 32)
    assert symlink(b"y" * 64).list_digest == b""


def changed(node: Node, **fields: object) -> Node:
    made = copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (large(32), "64 bytes of digests"),
        (changed(file_of("x"), data=bytes(64)), "32 bytes of digests"),
        (changed(file_of(""), data=bytes(32)), "0 bytes of digests"),
        (symlink(b""), "symlink"),
        (symlink(b"x" * 4096), "symlink"),
        (symlink(b"a\0b"), "symlink"),
        (Node(0o644), "mode of no entry"),
        (Node(stat.S_IFSOCK), "mode of no entry"),
        (Node(stat.S_IFDIR), "mode of no entry"),
        (changed(directory(), mode=stat.S_IFREG), "mode of no entry"),
        (changed(file_of("x"), uid=1 << 32), "out of range"),
        (changed(file_of("x"), xattrs={b"user.x": bytes(65536)}), "65536 bytes"),
        (changed(file_of("x"), xattrs={b"none": b""}), "cannot be"),
        (changed(Node(stat.S_IFIFO), data=b"x"), "only files and symlinks"),
        (whiteout(), "of a delta"),
        (changed(directory(), flags=OPAQUE), "of a delta"),
    ],
)
def test_what_no_file_system_can_show_is_refused_with_its_path(node: Node, said: str) -> None:
    with pytest.raises(InvalidError, match=f"/d/\\\\?.*{said}"):
        validate(put(directory(), b"d/e", node))


@pytest.mark.parametrize("name", [b"", b".", b"a/b", b"a\0", b"n" * 256])
def test_names_that_cannot_be(name: bytes) -> None:
    root = directory()
    root.children = {name: directory()}
    with pytest.raises(InvalidError, match="cannot be a name"):
        validate(root)


def test_the_root_is_a_directory_and_the_size_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidError, match="root"):
        validate(file_of("x"))
    monkeypatch.setattr(tree, "MAX_ENTRIES", 1)
    with pytest.raises(InvalidError, match="2 entries; 1 are the limit"):
        validate(tree_of(a=file_of("x")))
