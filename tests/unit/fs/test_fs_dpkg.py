"""Control parts of packages, and the database made of them, as dpkg itself reads it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from cadenza.base.errors import DataLossError
from cadenza.fs.dpkg import Package, read_control, status_stanza, triggers, write_database


def make_deb(directory: Path, name: str, control: str = "", **members: str) -> Path:
    """A package made by dpkg-deb, with one file in it."""
    tree = directory / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "etc" / name).write_text("setting\n")
    text = f"Package: {name}\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n{control}"
    (tree / "DEBIAN/control").write_text(text + f"Description: {name} for tests\n more of it\n")
    (tree / "DEBIAN/conffiles").write_text(f"/etc/{name}\n")
    for member, content in members.items():
        (tree / "DEBIAN" / member).write_text(content)
        (tree / "DEBIAN" / member).chmod(0o755)
    path = directory / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(path)], check=True, capture_output=True)
    return path


def test_the_database_satisfies_dpkg(tmp_path: Path) -> None:
    packages = []
    root = tmp_path / "root"
    for name, control in (("plain", ""), ("shared", "Multi-Arch: same\nDepends: plain\n")):
        deb = make_deb(tmp_path, name, control, postinst="#!/bin/sh\ntrue\n", triggers="interest-noawait /usr/lib/x\n")
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
        read = read_control(str(deb))
        packages.append(Package(read.name, read.fields, read.control, read.members, ("./", "./etc/", f"./etc/{name}")))
    write_database(str(root), packages, "amd64")
    for command, expected in (
        (["--audit"], ""),
        (["-l", "shared"], "ii  shared:amd64"),
        (["-L", "plain"], "/etc/plain"),
        (["-S", "/etc/shared"], "shared:amd64: /etc/shared"),
    ):
        done = subprocess.run(
            ["dpkg", f"--admindir={root}/var/lib/dpkg", *command], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout and done.stderr == ""
    assert (root / "var/lib/dpkg/info/shared:amd64.postinst").stat().st_mode & 0o777 == 0o755


def test_configuration_files_have_digests(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "plain")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/plain").write_text("setting\n")
    package = read_control(str(deb))
    stanza = status_stanza(package, str(tmp_path / "root"))
    assert stanza.splitlines()[1] == "Status: install ok installed"
    digest = hashlib.md5(b"setting\n").hexdigest()
    assert f"Conffiles:\n /etc/plain {digest}\n" in stanza
    # One that is not there is none of the installed.
    assert "Conffiles" not in status_stanza(package, str(tmp_path))


def test_triggers_go_to_their_files() -> None:
    def package(name: str, text: str, same: bool = False) -> Package:
        fields = {"Architecture": "amd64", **({"Multi-Arch": "same"} if same else {})}
        return Package(name, fields, "", {"triggers": text.encode()})

    files = triggers(
        [
            package("libc-bin", "# comment\ninterest-noawait ldconfig\nactivate-noawait ldconfig\n"),
            package("icons", "interest /usr/share/icons\n", same=True),
        ]
    )
    assert files == {"File": "/usr/share/icons icons:amd64\n", "ldconfig": "libc-bin/noawait\n"}


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"<html>not found</html>", b"!<arch>\n" + b"x" * 60])
def test_what_is_no_package_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.deb"
    path.write_bytes(content)
    with pytest.raises(DataLossError, match=r"broken\.deb"):
        read_control(str(path))
