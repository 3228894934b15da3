"""The pure parts of making a base: which Python, which packages, which lots."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs.debian import (
    Archive, check_python, host_logins, host_mirror, host_uv, parse_uris, run, shares, standalone_python, supported,
)  # fmt: skip


def test_the_python_asked_for_or_this_one() -> None:
    """semantics.md 13.1: no python_version is the caller's minor; "major.minor" only."""
    assert check_python("3.13") == "3.13"
    assert check_python("") == f"3.{sys.version_info[1]}"
    for wrong in ("3", "3.11.2", "2.7", "three", "3.11 ", "3.1x"):
        with pytest.raises(InvalidError, match=r"major\.minor"):
            check_python(wrong)


def test_what_apt_prints_is_read() -> None:
    text = (
        "Reading package lists...\n'http://mirror.test/pool/a_1%2b2_amd64.deb' a_1+2_amd64.deb 123 SHA256:ab\n"
        "'https://mirror.test/b.deb' b_1%3a2_all.deb 7 SHA256:cd\nW: a warning\n"
    )
    assert parse_uris(text) == [
        Archive("http://mirror.test/pool/a_1%2b2_amd64.deb", "a_1+2_amd64.deb", 123, "SHA256:ab"),
        Archive("https://mirror.test/b.deb", "b_1%3a2_all.deb", 7, "SHA256:cd"),
    ]


def test_lots_are_of_about_equal_size() -> None:
    archives = [Archive("", str(size), size, "") for size in (10, 1, 9, 2, 8, 3, 7)]
    lots = shares(archives, 3)
    assert sorted(one.size for lot in lots for one in lot) == [1, 2, 3, 7, 8, 9, 10]
    assert max(sum(one.size for one in lot) for lot in lots) <= 15
    assert len(shares(archives[:2], 8)) == 2


def test_a_python_that_nothing_has_names_those_there_are(tmp_path: Path) -> None:
    """semantics.md 33.29: an unsupported minor must name the supported ones."""
    assert supported("debian") == "3.9, 3.11, 3.13"
    failing = tmp_path / "bin" / "uv"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\necho cannot be fetched; exit 2\n")
    failing.chmod(0o755)
    with pytest.raises(InvalidError, match=r"(?s)3\.9, 3\.11, 3\.13.*cannot be fetched"):
        environ = {"PATH": f"{failing.parent}:/usr/bin:/bin"}
        asyncio.run(standalone_python("3.12", str(tmp_path / "cache"), "debian", environ))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_standalone_python_is_fetched_once(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --install-dir ] && dir=$2; shift; done\n"
        "mkdir -p $dir/cpython-3.12.1-linux/bin; echo x >> " + str(tmp_path / "calls") + "\n"
    )  # fmt: skip
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    for _ in range(2):
        found = asyncio.run(standalone_python("3.12", str(tmp_path / "cache"), "debian", environ))
        assert found == str(tmp_path / "cache/3.12/cpython-3.12.1-linux")
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_uv_that_is_a_script_is_not_taken_inside(tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\nexec something\n")
    (tmp_path / "uv").chmod(0o755)
    assert host_uv({"PATH": str(tmp_path)}) != str(tmp_path / "uv")
    (tmp_path / "uv").write_bytes(b"\x7fELF....")
    assert host_uv({"PATH": str(tmp_path)}) == str(tmp_path / "uv")


def test_the_host_s_sources_are_found(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.test/debian trixie main\n")
    (tmp_path / "sources.list.d/off.sources.disabled").write_text("Types: deb\nURIs: http://x\nSuites: sid\n")
    assert host_mirror(str(tmp_path)).archive == ("http://mirror.test/debian",)


def test_logins_are_gathered_for_build_steps(tmp_path: Path) -> None:
    (tmp_path / "auth.conf.d").mkdir()
    (tmp_path / "auth.conf.d/own.conf").write_text("machine own.test login a password b\n")
    (tmp_path / "sources.list").write_text("deb https://me:secret@mirror.test/debian trixie main\n")
    assert host_logins(str(tmp_path)).splitlines() == [
        "machine own.test login a password b",
        "machine https://mirror.test/debian login me password secret",
    ]


def test_a_program_that_does_not_end_is_ended() -> None:
    code, text = asyncio.run(run(["sleep", "60"], {"PATH": "/usr/bin:/bin"}, timeout_s=0.05))
    assert code == 124 and "did not end within" in text
