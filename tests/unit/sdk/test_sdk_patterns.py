"""Patterns of files to leave out: the rules of .dockerignore. Source: semantics.md sections 13.4 and 31."""

from __future__ import annotations

from pathlib import Path

import pytest

from cadenza import FilePatternMatcher
from cadenza.exception import InvalidError
from cadenza.sdk.patterns import NON_PYTHON_FILES, as_predicate

MATCHES = [
    # pattern, path, does it match
    ("*.md", "README.md", True),
    ("*.md", "docs/README.md", False),
    ("**/*.md", "README.md", True),
    ("**/*.md", "docs/deep/README.md", True),
    ("*/temp*", "somedir/temporary.txt", True),
    ("*/temp*", "somedir/temp", True),
    ("*/temp*", "temp", False),
    ("*/*/temp*", "somedir/subdir/temporary.txt", True),
    ("*/*/temp*", "somedir/temporary.txt", False),
    ("temp?", "tempa", True),
    ("temp?", "temp", False),
    ("temp?", "temp/", False),
    ("a?b", "a/b", False),
    ("foo", "foo/bar/baz", True),
    ("foo/", "foo/bar", True),
    ("/foo/bar", "foo/bar", True),
    ("/foo/bar/", "foo/bar/x", True),
    ("./foo", "foo", True),
    ("foo/../bar", "bar", True),
    ("foo", "food", False),
    ("foo", "x/foo", False),
    ("**/foo", "foo", True),
    ("**/foo", "a/b/foo", True),
    ("**/foo", "a/b/food", False),
    ("**/foo/**/x", "foo/x", True),
    ("**/foo/**/x", "a/foo/b/c/x", True),
    ("foo/**", "foo/a/b", True),
    ("foo/**", "foo", False),
    ("foo/**/bar", "foo/bar", True),
    ("foo/**/bar", "foo/x/y/bar", True),
    ("**", "anything/at/all", True),
    ("*", "anything/at/all", True),
    ("[a-c]x", "bx", True),
    ("[a-c]x", "dx", False),
    ("[^a-c]x", "dx", True),
    ("[^a-c]x", "ax", False),
    ("[^a]b", "/b", False),
    (r"\*.md", "*.md", True),
    (r"\*.md", "a.md", False),
    (r"a\?", "a?", True),
    ("a.b", "axb", False),
    ("a+b(c)", "a+b(c)", True),
    ("  spaced  ", "spaced", True),
    (".", "x", False),
    ("", "x", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES)
def test_one_pattern(pattern: str, path: str, expected: bool) -> None:
    assert FilePatternMatcher(pattern)(Path(path)) is expected


@pytest.mark.parametrize(
    ("patterns", "kept", "left_out"),
    [
        (["*.md", "!README.md"], ["README.md", "x.py"], ["notes.md"]),
        (["*.md", "!README*.md", "README-secret.md"], ["README.md"], ["README-secret.md", "x.md"]),
        (["*.md", "README-secret.md", "!README*.md"], ["README.md", "README-secret.md"], ["x.md"]),
        (["docs", "!docs/keep.txt"], ["docs/keep.txt"], ["docs/other.txt", "docs/a/b"]),
        (["**", "!**/*.py"], ["a.py", "x/y/b.py"], ["a.txt", "x/y"]),
        (["!a", "a"], [], ["a"]),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: list[str], kept: list[str], left_out: list[str]) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert [path for path in kept if matcher(Path(path))] == []
    assert [path for path in left_out if not matcher(Path(path))] == []


def test_the_opposite() -> None:
    assert (~FilePatternMatcher("**/*.py"))(Path("a.txt"))
    assert not (~FilePatternMatcher("**/*.py"))(Path("pkg/a.py"))
    assert (~~FilePatternMatcher("a"))(Path("a"))
    assert NON_PYTHON_FILES(Path("data.json"))


def test_from_file_leaves_out_comments_and_reads_late(tmp_path: Path) -> None:
    file = tmp_path / ".dockerignore"
    matcher = FilePatternMatcher.from_file(file)
    file.write_text("\ufeff# no pattern\n\n*.log\n!keep.log\n")
    assert matcher.patterns == ["*.log", "!keep.log"]
    assert matcher(Path("x.log"))
    assert not matcher(Path("keep.log"))


def test_directories_may_be_skipped_only_if_nothing_could_come_back() -> None:
    assert FilePatternMatcher("node_modules").can_prune_directories()
    assert not FilePatternMatcher("a", "!a/b").can_prune_directories()
    assert not (~FilePatternMatcher("a")).can_prune_directories()


@pytest.mark.parametrize("pattern", ["[a", "a\\", "!", "! "])
def test_malformed_patterns(pattern: str) -> None:
    with pytest.raises(InvalidError, match="pattern"):
        FilePatternMatcher(pattern)


def test_what_ignore_takes() -> None:
    assert as_predicate(["*.log"])(Path("a.log"))
    assert as_predicate(lambda path: path.name == "x")(Path("a/x"))
    with pytest.raises(InvalidError):
        as_predicate("*.log")
    with pytest.raises(InvalidError):
        FilePatternMatcher(3)  # type: ignore[arg-type]
