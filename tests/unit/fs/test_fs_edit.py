"""Files put into trees without a mount: through links, over old ones; and what differs then. semantics.md 13.4."""

from __future__ import annotations

import random
import stat

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs import finish
from cadenza.fs.copies import Manner, files_tree, match, put_copies, put_directory, put_files
from cadenza.fs.delta import diff
from cadenza.fs.edit import Edit, with_mount_points
from cadenza.fs.inside import at, home, owner, python
from cadenza.fs.tree import Node, directory, encode, find, merge, put, resolve, walk
from cadenza.protocol.objects import FileEntry

CONTENTS: dict[bytes, bytes] = {}


def file(text: str = "x", mode: int = 0o644, uid: int = 0) -> Node:
    data = text.encode().ljust(32, b".")
    CONTENTS[data] = text.encode()
    return Node(stat.S_IFREG | mode, uid, uid, size=len(text), data=data)


def link(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, size=len(target), data=target.encode())


def read(node: Node) -> bytes:
    return CONTENTS[node.data]


def tree(**entries: Node) -> Node:
    root = directory()
    for path, node in entries.items():
        root = put(root, path.encode(), node)
    return root


BASE = tree(
    **{
        "/usr/bin/sh": file(mode=0o755), "/bin": link("usr/bin"), "/etc/motd": file("old"), "/loop": link("/loop"),
        "/var/run": link("/run"), "/opt/up": link("../../../etc"),
        "/etc/passwd": file("root:x:0:0::/root:/bin/sh\nme:x:7:8::/home/me:/bin/sh\n"),
        "/etc/group": file("root:x:0:\nwheel:x:10:me\n"),
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/bin/x", "/usr/bin/x"), ("/var/run/a", "/run/a"), ("/opt/up/motd", "/etc/motd"), ("/", "/"), ("/../..", "/"),
        ("/new/deep", "/new/deep"), ("/bin/../lib", "/usr/lib"),
    ],
)  # fmt: skip
def test_links_are_followed_within_the_tree(path: str, resolved: str) -> None:
    assert resolve(BASE, path.encode()) == resolved.encode()


def test_a_circle_of_links_is_said() -> None:
    with pytest.raises(InvalidError, match="circle"):
        resolve(BASE, b"/loop/x")


def test_files_are_put_and_directories_keep_what_they_were() -> None:
    base = put(BASE, b"/etc", find(BASE, b"/etc") or directory())
    entries = [FileEntry(path, "d", 3, 0o640) for path in ("/bin/tool", "/opt/up/motd", "/var/run/deep/x")]
    before = encode(base)
    after = put_files(base, entries, lambda entry: (b"n" * 32, 3))
    assert encode(base) == before
    for path in (b"/usr/bin/tool", b"/etc/motd", b"/run/deep/x"):
        found = find(after, path)
        assert found is not None and found.mode == stat.S_IFREG | 0o640 and found.size == 3
    kept = find(after, b"/bin")
    assert kept is not None and kept.is_link


def test_what_cannot_be_put_is_said() -> None:
    with pytest.raises(InvalidError, match="is a file"):
        put_files(BASE, [FileEntry("/etc/motd/below", "d", 3)], lambda entry: (b"n" * 32, 3))
    with pytest.raises(InvalidError, match="is a directory"):
        put_files(BASE, [FileEntry("/usr/bin", "d", 3)], lambda entry: (b"n" * 32, 3))
    with pytest.raises(InvalidError, match="is a file"):
        put_directory(BASE, "/etc/motd/x")


@pytest.mark.parametrize("seed", range(20))
def test_the_difference_is_what_an_overlay_needs(seed: int) -> None:
    """Put over the tree before, it gives the tree after; and it holds no more than what changed."""
    chance = random.Random(seed)
    edit = Edit(BASE)
    for _ in range(20):
        path = b"/" + b"/".join(chance.choice([b"a", b"b", b"usr", b"etc"]) for _ in range(chance.randint(1, 4)))
        try:
            if chance.random() < 0.3:
                edit.make_directory(path)
            else:
                edit.put(
                    path, link("a") if chance.random() < 0.2 else file(str(chance.random())), chance.random() < 0.5
                )
        except InvalidError:
            continue  # a file or a circle is in the way
    delta = diff(BASE, edit.root)
    assert encode(merge(BASE, delta)) == encode(edit.root)
    assert at(delta, b"/var/run") is None and find(delta, b"/etc/motd") is None
    assert [path for path, _ in walk(diff(BASE, BASE))] == [b""]


def test_mount_points_are_added_once() -> None:
    made = with_mount_points(put(BASE, b"/etc/resolv.conf", link("../run/stub.conf")))
    for name in finish.MOUNT_POINTS:
        found = at(made, b"/" + name.encode())
        assert found is not None and found.is_dir
    for name in finish.MOUNT_FILES:
        found = find(made, b"/" + name.encode())
        assert found is not None and found.is_file
    temporary = find(made, b"/tmp")
    assert temporary is not None and temporary.mode & 0o7777 == 0o1777
    assert with_mount_points(made) is made


def test_owners_are_the_image_s_own() -> None:
    assert owner(BASE, "me", read) == (7, 8) and owner(BASE, "me:wheel", read) == (7, 10)
    assert owner(BASE, "55:66", read) == (55, 66) and owner(BASE, "7", read) == (7, 8)
    assert home(BASE, "me", read) == "/home/me" and home(BASE, "55", read) == "/"
    with pytest.raises(InvalidError, match="no user 'you'"):
        owner(BASE, "you", read)
    with pytest.raises(InvalidError, match="no group 'them'"):
        owner(BASE, "me:them", read)


def test_the_python_of_an_image_is_found_by_its_names() -> None:
    plain = tree(**{"/usr/bin/python3": link("python3.13"), "/usr/bin/python3.13": file(mode=0o755)})
    assert python(plain, "/usr/local/bin:/usr/bin") == ("/usr/bin/python3", "3.13")
    nameless = tree(**{"/opt/bin/python3": file(mode=0o755)})
    assert python(nameless, "/opt/bin") == ("/opt/bin/python3", "")
    assert (
        python(tree(**{"/opt/bin/python3": file(mode=0o755), "/opt/lib/python3.9/os.py": file()}), "/opt/bin")[1]
        == "3.9"
    )
    assert python(BASE, "/usr/bin") == ("", "") and python(tree(**{"/b/python3": file()}), "/b") == ("", "")


SOURCE = files_tree(
    [FileEntry(one, one, len(one), 0o755) for one in ("/app/main.py", "/app/lib/a.py", "/app/lib/b.txt", "/README")],
    lambda entry: (entry.path.encode().ljust(32, b"."), entry.size),
)


def copied(*sources: str, target: str, onto: Node = BASE, manner: Manner = Manner()) -> list[str]:
    made = put_copies(onto, SOURCE, sources, target, manner)
    return sorted(path.decode() for path, node in walk(diff(onto, made)) if not node.is_dir)


@pytest.mark.parametrize(
    ("sources", "target", "paths"),
    [
        (("/README",), "/doc", ["/doc"]),
        (("/README",), "/doc/", ["/doc/README"]),
        (("/README",), "/etc", ["/etc/README"]),
        (("/app",), "/srv", ["/srv/lib/a.py", "/srv/lib/b.txt", "/srv/main.py"]),
        (("/app/*.py",), "/srv/", ["/srv/main.py"]),
        (("/app/lib/?.*",), "/srv", ["/srv/a.py", "/srv/b.txt"]),
        (("/README", "/app/lib"), "/srv/", ["/srv/README", "/srv/a.py", "/srv/b.txt"]),
        (("/",), "/", ["/README", "/app/lib/a.py", "/app/lib/b.txt", "/app/main.py"]),
    ],
)
def test_copies_land_where_a_dockerfile_says(sources: tuple[str, ...], target: str, paths: list[str]) -> None:
    assert copied(*sources, target=target) == paths


def test_copies_take_owner_and_mode_and_miss_nothing() -> None:
    made = put_copies(BASE, SOURCE, ["/app"], "/srv", Manner((7, 8), 0o600))
    found, folder = find(made, b"/srv/lib/a.py"), find(made, b"/srv/lib")
    assert found is not None and (found.uid, found.gid, found.mode & 0o7777) == (7, 8, 0o600)
    assert folder is not None and (folder.uid, folder.mode & 0o7777) == (7, 0o755)
    with pytest.raises(InvalidError, match="no 'nothing'"):
        copied("/nothing", target="/srv")
    assert [name for name, _ in match(SOURCE, "/app/m*")] == [b"main.py"]


def test_deep_trees_are_copied_and_names_of_any_bytes_are_kept() -> None:
    deep = files_tree([FileEntry("/d" * 1500 + "/file", "f", 1)], lambda entry: (b"f" * 32, 1))
    made = put_copies(directory(mtime=deep.mtime), deep, ["/"], "/", Manner())
    assert encode(made) == encode(deep) and encode(merge(directory(), diff(directory(), made))) == encode(made)
    odd = put_files(BASE, [FileEntry("/srv/\udcff\n", "f", 1)], lambda entry: (b"f" * 32, 1))
    assert find(odd, b"/srv/\xff\n") is not None
    assert find(put_copies(directory(), odd, ["/srv/\udcff*"], "/to/", Manner()), b"/to/\xff\n") is not None


@pytest.mark.parametrize("row", ["me:x:²:8::/:", "me:x:99999999999:8::/:", "me:x:7:none::/:", "me:x:7:-8::/:"])
def test_users_of_an_image_with_strange_numbers_are_refused(row: str) -> None:
    root = tree(**{"/etc/passwd": file(row + "\n")})
    with pytest.raises(InvalidError):
        owner(root, "me", read)
    with pytest.raises(InvalidError):
        owner(root, "7:²", read)


def test_links_in_a_circle_are_no_interpreter() -> None:
    root = tree(**{"/a/python3": link("python3"), "/b/python3": link("python3.11"), "/b/python3.11": file(mode=0o755)})
    assert python(root, "/a:/b") == ("/b/python3", "3.11")
