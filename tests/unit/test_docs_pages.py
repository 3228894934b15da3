"""Pages are found: each is in the index, links lead somewhere, numbers of notes and decisions are used once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path != DOCS / "README.md")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def links(path: Path) -> list[Path]:
    """The files to which a page's relative links lead."""
    found = [one for one in LINK.findall(path.read_text()) if "://" not in one]
    return [(path.parent / one).resolve() for one in found]


def test_every_page_is_in_the_index() -> None:
    named = set(links(DOCS / "README.md"))
    assert [str(path.relative_to(DOCS)) for path in PAGES if path not in named] == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CHANGELOG.md", DOCS / "README.md", *PAGES], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    assert [str(one) for one in links(path) if not one.exists()] == []


@pytest.mark.parametrize("folder", [ROOT / "changes", DOCS / "decisions"], ids=["changes", "decisions"])
def test_numbers_are_used_once(folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.md"))
    numbers = [name[:4] for name in names]
    assert all(re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name) for name in names)
    assert len(set(numbers)) == len(numbers), names
