"""What apt prints, what the host's apt is set to, and the lots that are fetched side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from cadenza.fs.apt import last, Archive, host_logins, host_mirror, parse_uris, run, shares


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


def test_a_program_may_end_before_it_has_read_what_it_is_given() -> None:
    """In the server's own loop, whose pipes say so with a RuntimeError."""
    given = b"x" * (4 << 20)

    async def go() -> None:
        for _ in range(20):
            assert await run(["/bin/false"], {}, given=given) == (1, "")
        assert await run(["/usr/bin/wc", "-c"], {}, given=given) == (0, f"{len(given)}\n")

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(go())
    finally:
        loop.close()


def test_the_end_of_apt_s_words_has_no_password() -> None:
    said = "W: one\nE: Failed to fetch http://me:pass@proxy.test:3128 502"
    assert last(said, 1) == "E: Failed to fetch http://***@proxy.test:3128 502"
