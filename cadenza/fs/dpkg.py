"""A Debian package's control part, and a dpkg database made from many: what `dpkg` would have written itself.

Formats: deb(5), dpkg's ``/var/lib/dpkg`` as its manual pages and `doc/` describe it.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from typing import Iterable

from cadenza.base.errors import DataLossError

SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")


@dataclass(frozen=True)
class Package:
    """One package: its control stanza, the other members of its control archive, and the paths it unpacked to."""

    name: str
    fields: dict[str, str]
    control: str
    members: dict[str, bytes] = field(default_factory=dict)
    paths: tuple[str, ...] = ()

    @property
    def info_name(self) -> str:
        """How its files in ``info/`` begin."""
        return f"{self.name}:{self.fields['Architecture']}" if self.fields.get("Multi-Arch") == "same" else self.name


def _ar_members(data: bytes) -> Iterable[tuple[str, bytes]]:
    """The members of an ar archive. Source: ar(5)."""
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("not an ar archive")
    at = 8
    while at + 60 <= len(data):
        name = data[at : at + 16].decode("ascii").strip().rstrip("/")
        size = int(data[at + 48 : at + 58])
        yield name, data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def read_control(path: str, head_bytes: int = 1 << 20) -> Package:
    """The control part of a ``.deb``. DataLossError when the file is no package."""
    archive = b""
    try:
        with open(path, "rb") as file:
            head = file.read(head_bytes)
        for name, content in _ar_members(head):
            if name in ("control.tar.xz", "control.tar.gz", "control.tar"):
                archive = content
                break
            if name.startswith("control.tar"):  # a compression that this Python may not read
                done = subprocess.run(["dpkg-deb", "--ctrl-tarfile", path], capture_output=True, check=True)
                archive = done.stdout
                break
        members: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for one in tar:
                if one.isfile():
                    stream = tar.extractfile(one)
                    members[os.path.basename(one.name)] = stream.read() if stream else b""
        control = members.pop("control").decode().strip() + "\n"
    except (ValueError, KeyError, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise DataLossError(f"{os.path.basename(path)} is not a Debian package: {error}") from error
    fields = parse_fields(control)
    return Package(fields["Package"], fields, control, members)


def parse_fields(text: str) -> dict[str, str]:
    """The first lines of a stanza's fields; what a continuation line holds is left out."""
    found = {}
    for line in text.splitlines():
        if line[:1] not in ("", " ", "\t", "#") and ":" in line:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    return found


def status_stanza(package: Package, root: str) -> str:
    """The package's entry of ``status``, as installed, with the digests of its configuration files under ``root``."""
    lines = []
    for line in package.control.rstrip("\n").split("\n"):
        lines.append(line)
        if line.startswith("Package:"):
            lines.append("Status: install ok installed")
    kept = []
    for path in package.members.get("conffiles", b"").decode().split("\n"):
        # "remove-on-upgrade PATH" names a file that is no longer there.
        if not path.startswith("/"):
            continue
        try:
            with open(root + path, "rb") as file:
                digest = hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
        except OSError:
            continue
        kept.append(f" {path} {digest}")
    if kept:
        lines += ["Conffiles:", *kept]
    return "\n".join(lines) + "\n"


def triggers(packages: Iterable[Package]) -> dict[str, str]:
    """The files of ``triggers/`` by name: who wants to hear of which path or name. Source: deb-triggers(5)."""
    files: dict[str, list[str]] = {"File": []}
    for package in packages:
        for line in package.members.get("triggers", b"").decode().splitlines():
            words = line.split("#", 1)[0].split()
            if len(words) != 2 or not words[0].startswith("interest"):
                continue
            who = package.info_name + ("/noawait" if words[0] == "interest-noawait" else "")
            if words[1].startswith("/"):
                files["File"].append(f"{words[1]} {who}")
            else:
                files.setdefault(words[1], []).append(who)
    return {name: "".join(line + "\n" for line in lines) for name, lines in files.items()}


def write_database(root: str, packages: Iterable[Package], arch: str) -> None:
    """Make ``root``'s dpkg believe that the packages are installed, as they are."""
    every = sorted(packages, key=lambda one: one.info_name)
    base = os.path.join(root, "var/lib/dpkg")
    for name in ("info", "updates", "triggers", "alternatives", "parts"):
        os.makedirs(os.path.join(base, name), exist_ok=True)
    info = os.path.join(base, "info")
    for package in every:
        stem = os.path.join(info, package.info_name)
        for member, content in package.members.items():
            _write(f"{stem}.{member}", content, 0o755 if member in SCRIPTS else 0o644)
        listed = []
        for path in package.paths:
            plain = "/" + path.removeprefix("./").rstrip("/")
            listed.append("/." if plain == "/" else plain)
        _write(f"{stem}.list", ("\n".join(listed) + "\n").encode(), 0o644)
    _write(os.path.join(info, "format"), b"1\n", 0o644)
    stanzas = "\n".join(status_stanza(one, root) for one in every)
    _write(os.path.join(base, "status"), (stanzas + "\n").encode(), 0o644)
    _write(os.path.join(base, "arch"), (arch + "\n").encode(), 0o644)
    for name in (
        "available",
        "diversions",
        "statoverride",
        "lock",
        "lock-frontend",
        "triggers/Lock",
        "triggers/Unincorp",
    ):
        _write(os.path.join(base, name), b"", 0o644)
    for name, text in triggers(every).items():
        _write(os.path.join(base, "triggers", name), text.encode(), 0o644)


def _write(path: str, content: bytes, mode: int) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)
