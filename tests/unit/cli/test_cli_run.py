"""What ``cadenza run`` makes of the words after the file. Source: semantics.md section 23."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional

import click
import pytest
from click.testing import CliRunner

from cadenza import compat
from cadenza.cli.main import cli
from cadenza.cli.run import parse_arguments
from cadenza.sdk import entrypoint


def parsed(function: Any, *words: str) -> dict[str, Any]:
    found = SimpleNamespace(name="main", raw=function)
    kwargs, rest = parse_arguments("file.py", found, entrypoint.describe(function), list(words))
    assert rest == ()
    return kwargs


def needs(text: str, number: int, flag: bool) -> None: ...


def has_defaults(
    plain=5,
    verbose=False,
    kind: Literal[1, 2] = 1,
    day: datetime = datetime(2020, 1, 1),
    some: Optional[int] = None,
    flag: bool = True,
) -> None: ...


def test_an_argument_without_a_default_must_be_given() -> None:
    words = ("--text=a", "--number=3", "--no-flag")
    assert parsed(needs, *words) == {"text": "a", "number": 3, "flag": False}
    for at, missing in enumerate(("text", "number", "flag")):
        with pytest.raises(click.MissingParameter, match=missing):
            parsed(needs, *words[:at], *words[at + 1 :])


def test_defaults_are_the_program_s_own_objects() -> None:
    defaults = {"plain": 5, "verbose": False, "kind": 1, "day": datetime(2020, 1, 1), "some": None, "flag": True}
    assert parsed(has_defaults) == defaults
    words = ("--plain", "6", "--kind", "2", "--day", "2021-02-03", "--some", "4", "--no-flag")
    given = {"plain": "6", "kind": 2, "day": datetime(2021, 2, 3), "some": 4, "flag": False}
    assert parsed(has_defaults, *words) == {**defaults, **given}


def test_a_word_of_the_wrong_type_is_told() -> None:
    with pytest.raises(click.BadParameter, match="not a valid integer"):
        parsed(needs, "--text", "a", "--number", "three", "--flag")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_generator_is_refused_before_anything_is_started(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"program_{len(kind)}"
    program = tmp_path / f"{name}.py"
    program.write_text(f"import cadenza\napp = cadenza.App()\n@app.function()\n{kind} numbers():\n    yield 1\n")
    try:
        done = CliRunner().invoke(cli, ["run", str(program)])
    finally:
        sys.modules.pop(name, None)
        compat.uninstall()
    assert done.exit_code == 1 and "numbers is a generator" in done.output and not (tmp_path / "run").exists()
