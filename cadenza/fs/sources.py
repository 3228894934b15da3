"""Which mirrors a base root filesystem comes from: the host's own apt sources, read and turned to another suite. Pure.

No mirror is named here: what the host's administrator chose for the host is what images use too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional
from urllib.parse import unquote, urlsplit, urlunsplit

from cadenza.base.errors import InvalidError

SUITES: dict[str, dict[str, str]] = {
    "debian": {"3.9": "bullseye", "3.11": "bookworm", "3.13": "trixie"},
    "ubuntu": {"3.10": "jammy", "3.12": "noble"},
}
"""Distribution to Python minor to the suite whose own python3 it is."""

NEWEST_PLAIN = {"debian": "bookworm", "ubuntu": "noble"}
"""The suite under a Python that no suite has."""

OTHER_SUITES = {
    "debian": ("buster", "forky", "sid", "stable", "oldstable", "testing", "unstable"),
    "ubuntu": ("focal", "plucky", "questing", "resolute", "devel"),
}
NETWORK = ("http", "https", "ftp", "tor+http", "tor+https", "mirror+http", "mirror+https")
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
"""Where the distribution's own package puts its keys, on the host as in the image."""


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources. ``signed_by``: paths of keyrings, or the key itself in ASCII armour, or empty."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...] = ()
    signed_by: str = ""
    trusted: bool = False


@dataclass(frozen=True)
class Mirror:
    """Where one distribution comes from: the archive's URIs, those of its security updates, and the keys."""

    distribution: str
    archive: tuple[str, ...]
    security: tuple[str, ...] = ()
    signed_by: str = ""
    trusted: bool = False

    def sources(self, suite: str, signed_by: Optional[str] = None) -> tuple[Source, ...]:
        """The sources of one suite, its updates included. ``signed_by`` replaces the host's path of the keys."""
        keys = self.signed_by if signed_by is None else signed_by
        parts = COMPONENTS[self.distribution]
        found = [Source(self.archive, (suite, suite + "-updates"), parts, keys, self.trusted)]
        if self.security:
            found.append(Source(self.security, (suite + "-security",), parts, keys, self.trusted))
        return tuple(found)


def _stanza(fields: dict[str, str]) -> Optional[Source]:
    types = fields.get("types", "").split()
    if "deb" not in types or fields.get("enabled", "yes").strip().lower() in ("no", "false", "0"):
        return None
    return Source(
        tuple(fields.get("uris", "").split()),
        tuple(fields.get("suites", "").split()),
        tuple(fields.get("components", "").split()),
        fields.get("signed-by", "").strip(),
        fields.get("trusted", "").strip().lower() in ("yes", "true", "1"),
    )


def parse_deb822(text: str) -> list[Source]:
    """The binary sources of a ``.sources`` file (RFC 822 stanzas). Source: sources.list(5)."""
    found: list[Source] = []
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            one = _stanza(fields) if fields else None
            if one:
                found.append(one)
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            # A lone dot stands for an empty line, as in an armoured key.
            fields[last] += "\n" + ("" if line.strip() == "." else line.strip())
        elif ":" in line:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()
    return found


def parse_one_line(text: str) -> list[Source]:
    """The binary sources of a ``.list`` file, ``deb [options] uri suite component...``. Source: sources.list(5)."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].strip()
        if not words.startswith("deb ") and not words.startswith("deb\t"):
            continue
        rest = words[3:].strip()
        options: dict[str, str] = {}
        if rest.startswith("["):
            inside, _, rest = rest[1:].partition("]")
            options = dict(one.partition("=")[::2] for one in inside.split())
        parts = rest.split()
        if len(parts) >= 2:
            found.append(
                Source(
                    (parts[0],),
                    (parts[1],),
                    tuple(parts[2:]),
                    options.get("signed-by", "").replace(",", " "),
                    options.get("trusted", "").lower() in ("yes", "true", "1"),
                )
            )
    return found


def _distribution(suite: str) -> str:
    stem = suite.split("/")[0]
    for ending in ("-updates", "-security", "-backports", "-proposed-updates", "-proposed"):
        stem = stem.removesuffix(ending)
    for name, suites in SUITES.items():
        if stem in suites.values() or stem in OTHER_SUITES[name]:
            return name
    return ""


def mirror_of(sources: Iterable[Source]) -> Mirror:
    """The host's mirror. InvalidError when it has no source of a Debian or Ubuntu that is reached over the network.

    Others publish packages under the same names of suites. The distribution's own archive is the one that has updates
    too, is signed by the distribution's keys, and is named by codename.
    """
    archive: dict[str, tuple[int, Source, str]] = {}
    security: list[str] = []
    entries = [
        (uri, suite, one)
        for one in sources
        for uri in one.uris
        for suite in one.suites
        if uri.partition(":")[0] in NETWORK and _distribution(suite)
    ]
    updated = {uri for uri, suite, _ in entries if suite.endswith("-updates")}
    for uri, suite, one in entries:
        name = _distribution(suite)
        if suite.endswith(("-security", "/updates")):
            security += [uri] if uri not in security else []
        elif "-" not in suite and "main" in one.components:
            rank = 4 * (uri in updated) + 2 * (KEYRINGS[name] in one.signed_by) + (suite in SUITES[name].values())
            if uri not in archive or archive[uri][0] < rank:
                archive[uri] = (rank, one, name)
    if not archive:
        raise InvalidError(
            "this machine's apt has no source of Debian or Ubuntu packages, from which images are made: add the "
            "distribution's archive to /etc/apt/sources.list.d and try again"
        )
    best = max(rank for rank, _, _ in archive.values())
    chosen = {uri: (one, name) for uri, (rank, one, name) in archive.items() if rank == best}
    first, distribution = next(iter(chosen.values()))
    uris = tuple(uri for uri, (_, name) in chosen.items() if name == distribution)
    return Mirror(distribution, uris, tuple(security), first.signed_by, first.trusted)


def without_login(uri: str) -> tuple[str, str]:
    """An address without the name and password in it, and the line of apt_auth.conf(5) that says them, or empty."""
    parts = urlsplit(uri)
    if parts.username is None:
        return uri, ""
    host = parts.netloc.rpartition("@")[2]
    login, password = unquote(parts.username), unquote(parts.password or "")
    line = f"machine {parts.scheme}://{host}{parts.path} login {login} password {password}"
    return urlunsplit(parts._replace(netloc=host)), line


def suite_for(distribution: str, python: str) -> str:
    """The suite whose own python3 is this minor ("3.11"); empty when there is none."""
    return SUITES[distribution].get(python, "")


def deb822(sources: Iterable[Source]) -> str:
    """The sources as a ``.sources`` file."""
    stanzas = []
    for one in sources:
        lines = ["Types: deb", "URIs: " + " ".join(one.uris), "Suites: " + " ".join(one.suites)]
        lines.append("Components: " + " ".join(one.components))
        if one.trusted:
            lines.append("Trusted: yes")
        if one.signed_by:
            first, *more = one.signed_by.strip("\n").split("\n")
            if more:
                lines += ["Signed-By:", *(" " + (part or ".") for part in (first, *more))]
            else:
                lines.append("Signed-By: " + first)
        stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)
