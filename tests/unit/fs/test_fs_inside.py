"""What is where inside a tree."""

from __future__ import annotations

import stat

from cadenza.fs import inside
from cadenza.fs import tree as trees
from cadenza.fs.tree import Node


def test_a_program_is_found_as_a_runtime_finds_it() -> None:
    root = trees.directory()
    for path, mode in ((b"/usr/bin/tool", 0o755), (b"/usr/bin/text", 0o644), (b"/srv/own", 0o755)):
        root = trees.put(root, path, Node(stat.S_IFREG | mode))
    root = trees.put(root, b"/bin", Node(stat.S_IFLNK | 0o777, data=b"usr/bin"))

    def has(name: str, path: str = "/nowhere:/bin") -> bool:
        return inside.has_program(root, name, path, "/srv")

    assert has("tool") and has("/bin/tool") and has("/usr/bin/tool") and has("./own")
    assert not has("own") and has("own", "/bin:"), "an empty folder of PATH is the working directory"
    assert not has("text") and not has("/bin") and not has("gone")
