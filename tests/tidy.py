"""Hygiene as a test: the list of packages, the doors of third-party libraries, sizes, bans, documentation.

Run by ``make test`` as ``pytest tests/tidy.py``. An exemption is a line in a table here; the tables must shrink.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cadenza"

PACKAGES = {
    "agent", "base", "cli", "control", "fs", "observe", "protocol", "runner", "runtime", "scheduling",
    "sdk", "storage",
}  # fmt: skip
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "service", "base_class"}
MAX_MODULE_LINES = 520
"""Around 500 is the point at which to ask whether there are two subjects."""
LONG_MODULES: dict[str, int] = {}
"""Modules that are longer, with the size at which they were let in. Only ever lower a number."""

DOORS: dict[str, set[str]] = {
    "click": {"cli"},
    "rich": {"cli"},
    "uvloop": {"cli", "sdk"},
    "msgspec": {"control", "agent", "fs"},
    "blake3": {"fs"},
    "obstore": {"storage"},
    "pyfastcdc": {"fs"},
    "zstandard": {"fs"},
    "aiohttp": {"fs"},
    "cloudpickle": {"runner", "sdk"},
    "dotenv": {"sdk"},
    "tomli": {"base", "sdk"},
    "cryptography": {"storage"},
    "cronsim": {"scheduling"},
    "watchfiles": {"cli"},
    "prometheus_client": {"observe"},
    "opentelemetry": {"observe"},
}
"""Which packages may import a third-party library. Changing a library changes the files in its row."""

ANYWHERE_39 = ("base", "protocol", "runner", "sdk")


def sources() -> list[Path]:
    """Every Python module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def tracked() -> list[str]:
    """Every path that git tracks, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [one for one in listed.stdout.splitlines() if (ROOT / one).is_file()]


def test_the_list_of_packages_is_exhaustive() -> None:
    found = {one.name for one in PACKAGE.iterdir() if one.is_dir() and one.name != "__pycache__"}
    assert found == PACKAGES


def test_no_module_is_named_after_nothing() -> None:
    assert not [one for one in sources() if one.stem in BANNED_NAMES]


def test_modules_have_one_subject() -> None:
    long = {}
    for one in sources():
        lines = one.read_text().count("\n")
        name = str(one.relative_to(ROOT))
        if lines > LONG_MODULES.get(name, MAX_MODULE_LINES):
            long[name] = lines
    assert not long, f"over {MAX_MODULE_LINES} lines: {long}"


def test_every_module_says_what_it_is() -> None:
    missing = []
    for one in sources():
        text = one.read_text()
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            missing.append(str(one.relative_to(ROOT)))
    assert not missing


def test_public_names_are_documented() -> None:
    missing = []
    for one in sources():
        if one.parts[-2] == "cli":
            continue  # click's help is the documentation there
        for node in ast.parse(one.read_text()).body:
            definition = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if definition and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{one.relative_to(ROOT)}:{node.lineno} {node.name}")
    missing = [one for one in missing if "cadenza/protocol/" not in one]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("library", sorted(DOORS))
def test_third_party_libraries_have_few_doors(library: str) -> None:
    found = set()
    for one in sources():
        for node in ast.walk(ast.parse(one.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            if any(name.split(".")[0] == library for name in names):
                inside = one.relative_to(PACKAGE).parts
                found.add(inside[0] if len(inside) > 1 else one.stem)
    assert found <= DOORS[library], f"{library} is imported by {sorted(found - DOORS[library])}"


def test_code_for_containers_is_python_3_9() -> None:
    wrong = []
    for one in sources():
        inside = one.relative_to(PACKAGE).parts
        if (len(inside) == 1 and one.stem != "__main__") or inside[0] in ANYWHERE_39:
            try:
                ast.parse(one.read_text(), feature_version=(3, 9))
            except SyntaxError as error:
                wrong.append(f"{one.relative_to(ROOT)}: {error}")
    assert not wrong


BANNED_TEXT = {
    "no registry's host": re.compile(
        r"pypi\.(org|python)|deb\.debian\.org|registry\.npmjs|docker\.io|files\.pythonhosted"
    ),
    "no unfinished work": re.compile(r"\b(TODO|FIXME|XXX)\b"),
    "no silent handlers": re.compile(r"except (Base)?Exception:\s*pass|except:\s"),
}
TEXT_SUFFIXES = {".py", ".md", ".sh", ".toml", ".sql", ".lock", ".txt", ".json", ".c"}


@pytest.mark.parametrize("what", sorted(BANNED_TEXT))
def test_banned_text(what: str) -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix not in TEXT_SUFFIXES or path.name == "tidy.py":
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if BANNED_TEXT[what].search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_locks_hold_no_addresses() -> None:
    for name in tracked():
        if name.endswith((".lock", "lock.json")):
            assert "://" not in (ROOT / name).read_text(), name


def test_changes_are_noted() -> None:
    assert [one for one in tracked() if one.startswith("changes/") and one.endswith(".md")]
