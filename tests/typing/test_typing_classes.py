"""Classes keep their types, without stubs: what checkers say of `classes_program.py` and `parameters_program.py`.

Each line marked ``# error`` must be refused, and no other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("classes_program.py")
PARAMETERS = Path(__file__).with_name("parameters_program.py")
BIN = Path(sys.executable).parent


def expected(program: Path) -> set[int]:
    lines = program.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


def test_mypy_strict() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(PROGRAM)], cwd=ROOT, capture_output=True, text=True
    )
    found = {int(one) for one in re.findall(rf"{PROGRAM.name}:(\d+): error", done.stdout)}
    assert found == expected(PROGRAM), done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="pyright needs node, and would fetch it from the network")
@pytest.mark.parametrize("program", [PROGRAM, PARAMETERS], ids=lambda one: one.stem)
def test_pyright(program: Path) -> None:
    done = subprocess.run(
        [str(BIN / "pyright"), "--outputjson", str(program)], cwd=ROOT, capture_output=True, text=True
    )
    diagnostics = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    assert {one["range"]["start"]["line"] + 1 for one in diagnostics} == expected(program), done.stdout
