"""What ``cadenza app explain`` says. Source: semantics.md section 11.1."""

from __future__ import annotations

import time
from typing import Any

import pytest
from click.testing import CliRunner

from cadenza.cli import explain
from cadenza.protocol.functions import Decision, Explained, Explanation, LiveContainer, WaitingInput

NOON = time.mktime((2026, 1, 2, 12, 0, 0, 0, 0, -1))

FOUND = Explained(
    "ap-1",
    "shop",
    (
        Explanation(
            "fu-1", "price", "all containers are busy", 3, 1,
            (WaitingInput("in-2", "fc-1", NOON - 75, "max_containers is 1"),),
            (LiveContainer("ta-1", "ready", NOON - 7200, 1, "1 input waited"),),
            (
                Decision(NOON - 1, "block", 0, "2 in a row crashed", "ta-9"),
                Decision(NOON - 60, "start", 2, "2 inputs waited"),
            ),
        ),
        Explanation("fu-2", "Till.*", "", variant="start=3"),
    ),
    ("the budget is spent", "price: all containers are busy"),
)  # fmt: skip


def test_a_stranger_reads_why() -> None:
    assert explain.text(FOUND, NOON) == (
        "App shop (ap-1)\n"
        "  Note: The budget is spent.\n"
        "\n"
        "price (fu-1)\n"
        "  All containers are busy.\n"
        "  Waiting inputs (the first 1 of 3):\n"
        "    in-2  for 75 s: max_containers is 1\n"
        "  Containers:\n"
        "    ta-1  ready, runs 1 input, there for 2 h: 1 input waited\n"
        "  Decided lately, newest first:\n"
        "    11:59:59  held back after ta-9: 2 in a row crashed\n"
        "    11:59:00  started 2: 2 inputs waited\n"
        "\n"
        "Till, start=3 (fu-2)\n"
        "  Nothing is to be done."
    )


def test_the_id_of_a_thing_stands_for_its_app(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(method: str, body: Any) -> Explained:
        asked.append((body.app, body.thing))
        return FOUND

    monkeypatch.setattr(explain, "ask", ask)
    monkeypatch.setattr(explain, "wanted", lambda env: env or "main")
    call = "fc-L0GhQ4jpRRiIuEqB7oztxA"
    for words in ([call], ["shop", "--input", call], ["in-house"]):
        assert CliRunner().invoke(explain.explain, words).exit_code == 0
    assert asked == [("", call), ("shop", call), ("in-house", "")]


def test_an_app_without_a_name_or_functions() -> None:
    assert explain.text(Explained("ap-2", ""), NOON) == "App ap-2\n  It has no functions."


TRACEBACK = (
    "8 of its containers failed to start; the next start is in 5 s: Traceback (most recent call last):\n"
    '  File "/root/shop.py", line 5, in <module>\n    raise RuntimeError("no")\n'
    "    ^^^^^^^^^^^^^^^^^^^^^^^^\nRuntimeError: no\n"
)


def test_a_crash_loop_is_told_whole_once_and_on_one_line_elsewhere() -> None:
    """Twenty inputs that wait for the same reason do not repeat its traceback twenty times."""
    waiting = tuple(WaitingInput(f"in-{n}", "fc-1", NOON - 14, TRACEBACK) for n in range(20))
    decided = (Decision(NOON, "block", 0, TRACEBACK, "ta-9"),)
    found = explain.text(
        Explained("ap-1", "shop", (Explanation("fu-1", "f", TRACEBACK, 20, 0, waiting, (), decided),)), NOON
    )
    assert found.count("Traceback (most recent call last)") == 1
    short = "8 of its containers failed to start; the next start is in 5 s: RuntimeError: no"
    assert f"    in-19  for 14 s: {short}\n" in found
    assert found.endswith(f"    12:00:00  held back after ta-9: {short}")
