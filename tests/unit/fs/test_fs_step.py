"""What a step prints, as lines that are safe to show."""

from __future__ import annotations

import pytest

from cadenza.fs.step import LINE_CHARS, Lines, plain


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\tb é 漢", "a\tb é 漢"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hwiped", "wiped"),
        ("\x1b]0;a title\x07rest \x1b]8;;http://x\x1b\\link", "rest link"),
        ("\x1bPq#0\x1b\\six \x1b(B\x1b", "six "),
        ("nul\0 bell\a back\b del\x7f csi\x9b2J", "nul bell back del csi2J"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(said: str, shown: str) -> None:
    assert plain(said) == shown


def test_lines_are_plain_and_secrets_are_hidden_first() -> None:
    seen: list[str] = []
    lines = Lines(seen.append, ["pass\x1bword"])
    lines.feed(b"it is pass\x1bword\x1b[K\n50 %\r100 %\r\n\xff\xfe\x00end")
    lines.close()
    assert seen == ["it is ***", "100 %", "\ufffd\ufffdend"] and list(lines.last) == seen


def test_a_line_without_an_end_is_cut_and_nothing_of_it_is_lost() -> None:
    """What is sent of a build is bounded in bytes, not only in lines."""
    seen: list[str] = []
    lines = Lines(seen.append)
    for _ in range(5):
        lines.feed(b"x" * 65536)
    lines.feed(b"\n\nend\n")
    lines.close()
    assert max(map(len, seen)) == LINE_CHARS and sum(map(len, seen)) == 5 * 65536 + len("end")
    assert seen[-2:] == ["", "end"] and max(map(len, lines.last)) <= LINE_CHARS
