"""The host's apt sources become a mirror, and a mirror becomes another suite's sources."""

from __future__ import annotations

import pytest

from cadenza.base.errors import InvalidError
from cadenza.fs.sources import Mirror, Source, deb822, mirror_of, parse_deb822, parse_one_line, suite_for, without_login

DEB822 = """\
# made by an installer
Types: deb deb-src
URIs: http://mirror.test/debian
# a comment inside
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://mirror.test/src
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://off.test/debian bookworm main
deb [arch=amd64 signed-by=/etc/apt/keyrings/own.gpg] https://proxy.test/debian bookworm main non-free # ours
deb-src https://proxy.test/debian bookworm main
deb https://proxy.test/debian-security bookworm-security main
deb https://other.test/tool stable main
"""


def test_stanzas_are_read() -> None:
    first, second = parse_deb822(DEB822)
    assert first == Source(
        ("http://mirror.test/debian",),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    )
    assert second.suites == ("bookworm-security",)


def test_lines_are_read() -> None:
    first, second, third = parse_one_line(ONE_LINE)
    assert first == Source(
        ("https://proxy.test/debian",), ("bookworm",), ("main", "non-free"), "/etc/apt/keyrings/own.gpg"
    )
    assert second.uris == ("https://proxy.test/debian-security",)
    assert third.suites == ("stable",)


def test_a_key_inside_a_stanza_survives_a_round_trip() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n=xyz\n-----END PGP PUBLIC KEY BLOCK-----"
    source = Source(("http://mirror.test/debian",), ("bookworm",), ("main",), "\n" + key, True)
    (again,) = parse_deb822(deb822([source]))
    assert again.signed_by.strip() == key and again.trusted


@pytest.mark.parametrize("sources", [parse_deb822(DEB822), parse_one_line(ONE_LINE)])
def test_the_mirror_serves_another_suite(sources: list[Source]) -> None:
    mirror = mirror_of(sources)
    main, security = mirror.sources("trixie")
    assert main.suites == ("trixie", "trixie-updates") and security.suites == ("trixie-security",)
    assert main.uris == sources[0].uris and security.uris == sources[1].uris
    assert main.signed_by == sources[0].signed_by


def test_other_publishers_of_the_same_suite_are_left_out() -> None:
    text = (
        "deb [signed-by=/etc/apt/keyrings/tool.gpg] https://tool.test/apt bookworm main\n"
        "deb https://engine.test/linux bookworm stable\ndeb https://database.test/apt bookworm-extra main\n"
        "deb http://mirror.test/debian bookworm main\ndeb http://mirror.test/debian bookworm-updates main\n"
    )
    assert mirror_of(parse_one_line(text)).archive == ("http://mirror.test/debian",)


def test_passwords_are_taken_out_of_addresses() -> None:
    plain, line = without_login("https://me:p%40ss@mirror.test:8443/debian")
    assert plain == "https://mirror.test:8443/debian"
    assert line == "machine https://mirror.test:8443/debian login me password p@ss"
    assert without_login("http://mirror.test/debian") == ("http://mirror.test/debian", "")


def test_ubuntu_brings_universe() -> None:
    mirror = mirror_of(parse_one_line("deb http://mirror.test/ubuntu noble main restricted\n"))
    assert mirror.distribution == "ubuntu"
    assert mirror.sources("jammy")[0].components == ("main", "universe")
    assert len(mirror.sources("jammy")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deb https://other.test/tool nodistro main\n",
        "deb cdrom:[disc]/ bookworm main\n",
        "deb file:/srv bookworm main\n",
    ],
)
def test_no_usable_source_is_said(text: str) -> None:
    with pytest.raises(InvalidError, match=r"sources\.list\.d"):
        mirror_of(parse_one_line(text))


def test_the_suite_follows_the_python() -> None:
    """semantics.md 13.1: the Python minor chooses the base."""
    assert [suite_for("debian", one) for one in ("3.9", "3.11", "3.13", "3.12")] == [
        "bullseye",
        "bookworm",
        "trixie",
        "",
    ]
    assert suite_for("ubuntu", "3.12") == "noble"
    assert Mirror("debian", ("http://mirror.test",)).sources("trixie", "/k.gpg")[0].signed_by == "/k.gpg"
