"""How lists, facts and times look, to people and to scripts."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from cadenza.cli import logs, show
from cadenza.protocol.methods import LogEntry


def test_columns_are_keys_and_pipes_have_them_all(capsys) -> None:
    columns, rows = ["App ID", "Stopped at", "Functions"], [("ap-1", show.when(None), show.Cell("2", ["f", "g"]))]
    show.table("Apps", columns, rows, True)
    assert json.loads(capsys.readouterr().out) == [{"app_id": "ap-1", "stopped_at": None, "functions": ["f", "g"]}]
    show.table("Apps", columns, rows, False)
    assert capsys.readouterr().out == "App ID\tStopped at\tFunctions\nap-1\t\t2\n"
    show.table("Apps", columns, [], False)
    assert capsys.readouterr().out == "App ID\tStopped at\tFunctions\n"


def test_a_terminal_has_whole_ids_and_no_empty_columns(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    name = "ap-" + "x" * 22
    show.table("Apps", ["App ID", "Stopped at", "Why"], [(name, show.when(None), "because " * 10)], False, True)
    out = capsys.readouterr().out
    assert name in out and "Stopped at" not in out and "because" in out


def test_facts(capsys) -> None:
    pairs = [("App ID", "ap-1"), ("Version", show.number(0)), ("Max containers", show.limit(None)), ("Note", "")]
    show.facts(pairs)
    assert capsys.readouterr().out == "App ID          ap-1\nMax containers  none\n"
    assert show.facts_as_json(pairs) == {"app_id": "ap-1", "version": None, "max_containers": None, "note": ""}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (3600, "60 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_times_in_a_terminals_table_are_short(capsys, monkeypatch) -> None:
    import time

    now = show.when(time.time())
    assert len(now.shown) == 19 and len(now.short) == 8
    before = show.when(86400.0 * 400)
    assert before.short.startswith("1971-02-0") and len(before.short) == 16
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show.table("Apps", ["Created at"], [(before,)], False, True)
    assert before.short in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    show.table("Apps", ["Created at"], [(before,)], False)
    assert before.shown in capsys.readouterr().out


def test_a_reason_on_one_line() -> None:
    text = "f: next start in 5 s: Traceback (most recent call last):\n  File 'x'\n    raise E\nE: no\n; g: it ended"
    assert show.brief(text) == "f: next start in 5 s: E: no ; g: it ended"
    assert show.brief("plain") == "plain"
    assert show.brief("") == ""


def test_times_of_replies_that_are_printed_whole_are_iso_8601() -> None:
    found = show.dated({"since": 1_767_348_000.5, "rows": [{"time": 0.0, "count": 3}], "started_at": None})
    assert datetime.fromisoformat(found["since"]).timestamp() == 1_767_348_000.5
    assert found["rows"] == [{"time": None, "count": 3}]
    assert found["started_at"] is None


def test_a_line_of_a_log_as_json_has_its_time_to_the_microsecond(capsys) -> None:
    logs.show_json_line(LogEntry(1_767_348_000.000123, 1, 4, "ap-1"), "text")
    row = json.loads(capsys.readouterr().out)
    moment = datetime.fromisoformat(row["timestamp"])
    assert moment.tzinfo is not None
    assert abs(moment.timestamp() - 1_767_348_000.000123) < 2e-6
    assert (row["source"], row["data"]) == ("stdout", "text")
