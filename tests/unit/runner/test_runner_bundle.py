"""The library in one file: what comes out of it is what lies beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cadenza
from cadenza.runner import bundle

PROGRAM = """
import marshal, sys
lib = sys.argv[1]
with open(lib + "/.code-" + sys.implementation.cache_tag, "rb") as file:
    magic, size = file.read(4), int.from_bytes(file.read(4), "big")
    code, index = marshal.loads(file.read(size))
space = {"__name__": "cadenza.runner.bundle"}
exec(code, space)
space["install"](lib, index, 8 + size)
sys.path.append(lib)
"""


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lib")
    package = Path(cadenza.__file__).parent
    for part in ("base", "protocol", "runner"):
        shutil.copytree(package / part, home / "cadenza" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package / "__init__.py", home / "cadenza")
    bundle.compile_all(str(home), str(home))
    return home


def run(lib: Path, program: str) -> str:
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM + program, str(lib)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout


def test_modules_come_out_of_the_bundle_and_know_their_files(lib: Path) -> None:
    said = run(
        lib, "from cadenza.runner import session; print(type(session.__spec__.loader).__name__, session.__file__)"
    )
    assert said.split() == ["Bundle", str(lib / "cadenza/runner/session.py")]


def test_the_bundle_serves_what_it_holds_even_without_sources(lib: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(bundle.path(str(lib)), bare)
    assert run(bare, "import cadenza.base.ids as found; print(found.__name__)") == "cadenza.base.ids\n"


def test_tracebacks_show_source_lines(lib: Path) -> None:
    said = run(lib, "import linecache; from cadenza.base import errors; print(linecache.getline(errors.__file__, 1))")
    assert said.startswith('"""')


def test_packages_have_paths_and_what_is_not_ours_is_left_alone(lib: Path) -> None:
    said = run(lib, "import cadenza.runner as r, json; print(list(r.__path__), type(json.__spec__.loader).__name__)")
    assert said.strip() == f"{[str(lib / 'cadenza/runner')]} SourceFileLoader"
