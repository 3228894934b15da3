"""What is chosen of what a machine can do, and what people are told of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs import kernel
from cadenza.fs.abilities import FORCED, NEEDS_ROOT, Abilities, choose, describe, detect


@pytest.mark.parametrize(
    ("erofs", "data_layers", "prefix", "mode"),
    [
        ("file", True, b"trusted", "erofs"),
        ("loop", True, b"trusted", "erofs"),
        ("", True, b"trusted", "sparse"),
        ("", True, b"user", "sparse"),
        ("file", False, b"trusted", "links"),
        ("", False, b"user", "links"),
    ],
)
def test_the_best_that_can_be_had(erofs: str, data_layers: bool, prefix: bytes, mode: str) -> None:
    assert choose(erofs, data_layers, prefix, "", {}) == mode


def test_a_wish_for_less_is_granted() -> None:
    assert choose("file", True, b"trusted", "sparse", {}) == "sparse"
    assert choose("file", True, b"trusted", "links", {}) == "links"


def test_a_wish_that_cannot_be_granted_says_why() -> None:
    why = {"erofs file": "this kernel lacks the file system", "erofs loop": "no loop device is free"}
    with pytest.raises(
        InvalidError, match=rf"{FORCED}=erofs cannot be had .*lacks the file system; erofs loop: no loop"
    ):
        choose("", True, b"trusted", "erofs", why)
    with pytest.raises(InvalidError, match=r"sparse cannot be had .*data layers: Invalid argument"):
        choose("", False, b"trusted", "sparse", {"data layers": "Invalid argument"})
    with pytest.raises(InvalidError, match="there are erofs, sparse, links"):
        choose("file", True, b"trusted", "fast", {})


def test_people_are_told_the_mode_the_reason_and_the_remedy() -> None:
    rows = {name: (works, said, remedy) for name, works, said, remedy in describe(Abilities("erofs", "loop", True))}
    assert rows["file system"] == (
        True,
        "Images are EROFS metadata, mounted from a loop device, over shared content (mode erofs).",
        "",
    )
    assert rows["lazy fetching"][0] is False and rows["lazy fetching"][2] == "modprobe fuse"

    lacking = Abilities("links", reasons={"data layers": "Invalid argument", "fuse": NEEDS_ROOT})
    rows = {name: (works, said, remedy) for name, works, said, remedy in describe(lacking)}
    assert rows["file system"][0] is False
    assert "data layers: Invalid argument" in rows["file system"][1] and "6.5" in rows["file system"][2]

    rootless = Abilities("sparse", "", True, True, prefix=b"user", reasons={"erofs file": NEEDS_ROOT})
    rows = {name: (works, said, remedy) for name, works, said, remedy in describe(rootless)}
    assert rows["file system"][0] and rows["file system"][2] == "" and NEEDS_ROOT in rows["file system"][1]
    assert rows["lazy fetching"][0]


def test_a_forced_mode_is_told(tmp_path: Path) -> None:
    found = detect(str(tmp_path), {FORCED: "links"})
    assert found.mode == "links" and found.forced
    assert FORCED in describe(found)[0][2]


def test_trials_are_quick_and_leave_nothing(tmp_path: Path) -> None:
    detect(str(tmp_path), {})  # imports
    descriptors, loops = len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text()
    begun = time.perf_counter()
    detect(str(tmp_path), {})
    took_s = time.perf_counter() - begun
    assert took_s < 0.5, "measured: 2 to 5 ms"
    assert os.listdir(tmp_path) == [] and kernel.below(str(tmp_path)) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert str(tmp_path) not in loops


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, and a kernel of this machine's kind")
def test_every_reason_is_a_sentence_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza.fs.abilities.FUSE", str(tmp_path / "none"))
    found = detect(str(tmp_path), {})
    assert not found.fuse and found.reasons["fuse"] == "No such file or directory"


def test_nothing_is_run_to_find_the_c_library() -> None:
    program = (
        "import sys; sys.addaudithook(lambda name, _: name in ('subprocess.Popen', 'os.posix_spawn', 'os.fork') "
        "and sys.exit(name)); import cadenza.fs.kernel"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
