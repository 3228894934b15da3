"""What a terminal shows of a run: the bar of a map."""

from __future__ import annotations

import pytest

from cadenza.cli.screen import Screen, bar


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 10, "f [..............................] 0 of 10"),
        (5, 10, "f [###############...............] 5 of 10"),
        (1200, 1200, "f [##############################] 1,200 of 1,200"),
        (7, None, "f: 7 done"),
        (0, 0, "f [..............................] 0 of 0"),
    ],
)
def test_bar(done: int, total: int | None, shown: str) -> None:
    assert bar("f", done, total, 80) == shown


def test_a_bar_is_never_wider_than_the_terminal() -> None:
    assert len(bar("f" * 100, 1, 2, 40)) == 40


def test_no_bar_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.map_progress("f", 1, 2, False)
    screen.map_progress("f", 2, 2, True)
    screen.close()
    assert capsys.readouterr().err == ""
