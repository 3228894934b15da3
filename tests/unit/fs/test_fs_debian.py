"""The pure parts of making a base: which Python, which packages, which lots."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs import debian
from cadenza.fs.debian import check_python, host_uv, standalone_python, supported


def test_the_python_asked_for_or_this_one() -> None:
    """semantics.md 13.1: no python_version is the caller's minor; "major.minor" only."""
    assert check_python("3.13") == "3.13"
    assert check_python("") == f"3.{sys.version_info[1]}"
    for wrong in ("3", "3.11.2", "2.7", "three", "3.11 ", "3.1x"):
        with pytest.raises(InvalidError, match=r"major\.minor"):
            check_python(wrong)


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


def test_modes_of_unpacked_directories_are_read_from_the_listing() -> None:
    assert debian.listed("drwxr-xr-x 0/0               0 2023-01-05 10:00 ./usr/") == ("drwxr-xr-x", "./usr/")
    assert debian.listed("lrwxrwxrwx 0/0 0 2023-01-05 10:00 ./usr/bin/sh -> dash")[1] == "./usr/bin/sh"
    assert debian.listed("hrw-r--r-- 0/0 0 2023-01-05 10:00 ./b c link to ./a")[1] == "./b c"
    found = [debian.permissions(mode) for mode in ("drwxr-xr-x", "drwxrwxrwt", "drwx------", "drwxrws--T")]
    assert found == [0o755, 0o1777, 0o700, 0o3770]


def test_two_builds_that_fetch_a_python_side_by_side_have_a_place_each(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nset -e\nmkdir -p "$5/cpython-3.12.1/bin"\nsleep 0.2\necho half > "$5/cpython-3.12.1/bin/python3"\n'
    )
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin"}

    async def both() -> list[str]:
        async def second() -> str:
            await asyncio.sleep(0.1)
            return await standalone_python("3.12", str(tmp_path / "cache"), "debian", environ)

        return await asyncio.gather(standalone_python("3.12", str(tmp_path / "cache"), "debian", environ), second())

    first, other = asyncio.run(both())
    assert first == other and Path(first, "bin/python3").read_text() == "half\n"
    assert [one.name for one in (tmp_path / "cache").iterdir()] == ["3.12"]
