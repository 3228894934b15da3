"""Which files to leave out: patterns in the syntax of ``.dockerignore``.

The rules, as Docker's documentation states them: a pattern is cleaned (surrounding blanks, a leading and a trailing
slash and ``.`` parts do not matter) and anchored at the root; ``*`` and ``?`` do not cross a slash; ``**`` stands for
any number of directories, none included; ``[a-z]`` and ``[^a-z]`` are character classes; a backslash takes the next
character as it is. A pattern that matches a directory holds for all below it. A pattern with ``!`` makes an exception;
the last pattern that matches decides.
"""

from __future__ import annotations

import os
import posixpath

from cadenza.base.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path, PurePath
    from re import Pattern
    from typing import Callable, Optional, Sequence, Union

    Ignore = Union[Sequence[str], Callable[[Path], bool]]
    """What ``ignore=`` takes: patterns, or a predicate that is True for what is left out."""


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./*?")
"""A pattern of these alone is never malformed, so that it need not be tried at once: `re` is slow to import."""


class _Pattern:
    """One line: its text, whether it is an exception, and its regular expression, made when it is needed."""

    __slots__ = ("_expression", "cleaned", "exception", "text")

    def __init__(self, text: str, exception: bool, cleaned: str) -> None:
        self.text = text
        self.exception = exception
        self.cleaned = cleaned
        self._expression: Optional[Pattern[str]] = None
        if not _PLAIN.issuperset(cleaned):
            self.expression()  # it may be malformed

    def expression(self) -> Pattern[str]:
        """The regular expression. InvalidError if it is malformed."""
        if self._expression is None:
            import re

            try:
                self._expression = re.compile(_translate(self.cleaned), re.DOTALL)
            except re.error as error:
                raise InvalidError(f"ignore pattern {self.text!r} is malformed: {error}") from None
        return self._expression


def expression(pattern: str) -> Pattern[str]:
    """One pattern's regular expression, for a whole path. InvalidError if it is malformed."""
    return _Pattern(pattern, False, pattern).expression()


def _translate(pattern: str) -> str:
    """The regular expression of a cleaned pattern."""
    import re

    out = []
    at, end = 0, len(pattern)
    while at < end:
        char = pattern[at]
        at += 1
        if char == "*":
            if at < end and pattern[at] == "*":
                while at < end and pattern[at] == "*":
                    at += 1
                if at < end and pattern[at] == "/":
                    at += 1
                out.append(".*" if at >= end else "(?:.*/)?")
            else:
                out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            if at >= end:
                raise InvalidError(f"ignore pattern {pattern!r} ends in a backslash that escapes nothing")
            out.append(re.escape(pattern[at]))
            at += 1
        elif char == "[":
            close = _class_end(pattern, at)
            if close < 0:
                raise InvalidError(f"ignore pattern {pattern!r} has a [ without its ]")
            body = pattern[at:close]
            negated = body[:1] == "^"
            out.append("[" + ("^/" if negated else "") + _class_body(body[1:] if negated else body) + "]")
            at = close + 1
        else:
            out.append(re.escape(char))
    return r"\A" + "".join(out) + r"\Z"


def _class_end(pattern: str, start: int) -> int:
    at = start + 1 if pattern[start : start + 1] == "^" else start
    first = at
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 2
            continue
        if pattern[at] == "]" and at > first:
            return at
        at += 1
    return -1


def _class_body(body: str) -> str:
    import re

    out = []
    at = 0
    while at < len(body):
        char = body[at]
        if char == "\\" and at + 1 < len(body):
            at += 1
            out.append(re.escape(body[at]))
        else:
            out.append(char if char == "-" else re.escape(char))
        at += 1
    return "".join(out)


def _read(text: str) -> _Pattern | None:
    """One line as a pattern; None for an empty one."""
    line = text.strip()
    exception = line.startswith("!")
    body = line[1:].strip() if exception else line
    if not body:
        if exception:
            raise InvalidError('ignore pattern "!" is an exception to nothing: write "!" and a pattern')
        return None
    cleaned = posixpath.normpath(body).lstrip("/")
    if cleaned in ("", "."):
        return None
    return _Pattern(line, exception, cleaned)


class FilePatternMatcher:
    """A predicate on paths, True where the patterns match; usable as ``ignore=``.

    ``~matcher`` is the opposite: ``~FilePatternMatcher("**/*.py")`` leaves out all but Python files. Paths are relative
    to the directory that is added. InvalidError for a malformed pattern.
    """

    def __init__(self, *pattern: str) -> None:
        self._texts: list[str] | None = list(pattern)
        self._file: Path | None = None
        self._read: list[_Pattern] | None = None
        self._negated = False
        for one in pattern:
            if not isinstance(one, str):
                raise InvalidError(f"ignore patterns are strings, not {type(one).__name__}")
        self._compiled()

    @classmethod
    def from_file(cls, file_path: Union[str, Path]) -> FilePatternMatcher:
        """The patterns in a file, one a line, ``#`` comments left out. The file is read at the first use."""
        matcher = cls()
        matcher._texts = None
        matcher._read = None
        from pathlib import Path

        matcher._file = Path(file_path)
        return matcher

    @property
    def patterns(self) -> list[str]:
        """The patterns in force, in order, as written."""
        return [one.text for one in self._compiled()]

    def _compiled(self) -> list[_Pattern]:
        if self._read is None:
            if self._texts is None:
                assert self._file is not None
                self._texts = [
                    line
                    for line in self._file.read_text("utf8").lstrip("\ufeff").splitlines()
                    if not line.startswith("#")
                ]
            self._read = [one for one in map(_read, self._texts) if one is not None]
        return self._read

    def can_prune_directories(self) -> bool:
        """Whether a directory that matches may be skipped whole: not if an exception could bring back part of it."""
        return not self._negated and not any(one.exception for one in self._compiled())

    def __call__(self, file_path: Union[str, PurePath]) -> bool:
        return self._matches(file_path) is not self._negated

    def _matches(self, file_path: Union[str, PurePath]) -> bool:
        path = posixpath.normpath(os.fspath(file_path)).lstrip("/")
        if path == ".":
            return False
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        matched = False
        for pattern in self._compiled():
            if pattern.exception is not matched:
                continue  # it could not change the answer so far
            if any(pattern.expression().match(prefix) for prefix in prefixes):
                matched = not pattern.exception
        return matched

    def __invert__(self) -> FilePatternMatcher:
        other = FilePatternMatcher()
        other._texts, other._file, other._read = self._texts, self._file, self._read
        other._negated = not self._negated
        return other

    def __repr__(self) -> str:
        inner = f"from_file({str(self._file)!r})" if self._file is not None else repr(tuple(self._texts or ()))
        return f"{'~' if self._negated else ''}FilePatternMatcher{inner}"


def as_predicate(ignore: Ignore) -> Callable[[Path], bool]:
    """``ignore=`` as a predicate on paths. InvalidError for what is neither patterns nor callable."""
    if callable(ignore):
        return ignore
    if isinstance(ignore, str) or not isinstance(ignore, (list, tuple)):
        raise InvalidError("ignore must be a list of patterns, a FilePatternMatcher or a function of a Path")
    return FilePatternMatcher(*ignore)


AUTO_DOCKERIGNORE = FilePatternMatcher()
"""Stands for: the ``.dockerignore`` next to the Dockerfile, else that of the context."""
NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
"""Leaves out all but Python source."""
