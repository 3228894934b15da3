"""References to images in registries: ``[host[:port]/]repository[:tag][@digest]``. Pure.

Source: the OCI distribution specification 1.1 (names, tags, digests), and the field's habit for names without a host.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cadenza.base.errors import InvalidError

DEFAULT_NAME = "docker" + ".io"
"""Whose images names without a host mean."""
DEFAULT_HOST = f"registry-1.{DEFAULT_NAME}"
"""Where that registry answers."""
DEFAULT_ALIASES = (DEFAULT_NAME, f"index.{DEFAULT_NAME}", DEFAULT_HOST)
DEFAULT_TAG = "latest"
REPOSITORY_CHARACTERS = 255
DIGEST_HEX = {"sha256": 64, "sha512": 128}

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Reference:
    """One image in one registry. ``tag`` is empty only where a digest alone was given."""

    host: str
    """With its port if one was given."""
    repository: str
    tag: str = DEFAULT_TAG
    digest: str = ""

    @property
    def target(self) -> str:
        """What the registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP will do."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        at = f"@{self.digest}" if self.digest else ""
        host = DEFAULT_NAME if self.host == DEFAULT_HOST else self.host
        return f"{host}/{self.repository}{tag}{at}"


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` names this machine: localhost, ``*.localhost``, 127.0.0.0/8, ::1."""
    name = host_name(host).lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """``host[:port]`` without its port and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def check_digest(digest: str) -> str:
    """The same digest. InvalidError when it is not ``sha256:`` or ``sha512:`` with lower-case hex digits."""
    kind, _, value = digest.partition(":")
    if DIGEST_HEX.get(kind) != len(value) or not re.fullmatch("[0-9a-f]+", value):
        raise InvalidError(f"{digest[:90]!r} is no digest: it has the form sha256:<64 hex digits>")
    return digest


def parse(text: str, default_host: str = DEFAULT_HOST) -> Reference:
    """The reference that a text means. InvalidError, with what is wrong, when it is none.

    As everywhere in the field, the part before the first "/" is a host when it has a "." or a ":", or is "localhost".
    """
    given = text.strip()
    if "://" in given:
        raise InvalidError(f"{given!r}: an image is named without https://, as in 'host/repository:tag'")
    rest, at, digest = given.partition("@")
    if at:
        check_digest(digest)
    first, slash, after = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, rest = first, after
        if not _HOST.fullmatch(host):
            raise InvalidError(f"{given!r}: {host!r} is no host")
        if ":" in host.rpartition("]")[2] and not 0 < int(host.rpartition(":")[2]) < 65536:
            raise InvalidError(f"{given!r}: {host!r} has a port that cannot be")
    else:
        host = default_host
    if host in DEFAULT_ALIASES:
        host = default_host
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidError(f"{given!r}: {tag!r} is no tag: letters, digits, '_', '.' and '-', at most 128")
    if not repository:
        raise InvalidError(f"{given!r} names no image: write it as 'repository:tag' or 'host/repository:tag'")
    if host == default_host and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository) or len(repository) > REPOSITORY_CHARACTERS:
        lower = " (repositories are lower case)" if repository != repository.lower() else ""
        raise InvalidError(f"{given!r}: {repository!r} is no repository's name{lower}")
    return Reference(host, repository, tag or ("" if digest else DEFAULT_TAG), digest)
