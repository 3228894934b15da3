"""Dockerfiles as instructions: lines, continuations, comments, here-documents, words and variables. Pure.

The grammar is that of Docker's documentation ("Dockerfile reference"): parser directives (``# escape=``) come first,
comments are lines of their own, a line that ends in the escape character goes on, RUN, COPY and ADD may have
here-documents. Faults are InvalidErrors that name file and line. Source: semantics.md section 13.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Optional, Sequence

from cadenza.base.errors import InvalidError

USED = (
    "FROM", "ARG", "RUN", "CMD", "ENV", "ADD", "COPY", "ENTRYPOINT", "USER", "WORKDIR", "SHELL",
)  # fmt: skip
IGNORED = ("EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "VOLUME")
"""What says nothing of a container's files and process; passed over."""
_HEREDOC_IN = ("RUN", "COPY", "ADD")
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*\Z")
_HEREDOC = re.compile(r"(?:^|(?<=[\s\d]))<<(-?)(\"([^\"\s]+)\"|'([^'\s]+)'|([A-Za-z_][\w.-]*))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Place:
    """A line of a file, for errors."""

    file: str
    line: int

    def fault(self, text: str) -> InvalidError:
        """The error for what is wrong there."""
        return InvalidError(f"{self.file}:{self.line}: {text}")


@dataclass(frozen=True)
class Document:
    """A here-document: ``name`` is its delimiter, by which COPY and ADD call the file."""

    name: str
    text: str
    literal: bool
    """Its delimiter was quoted: nothing in it is expanded."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``rest``: what follows its keyword, continuation lines joined, as written."""

    keyword: str
    rest: str
    place: Place
    documents: tuple[Document, ...] = ()
    escape: str = "\\"


def parse(text: str, file: str) -> list[Instruction]:
    """The instructions of a Dockerfile, without those that are `IGNORED`. InvalidError names the file and the line."""
    lines = text.lstrip("\ufeff").splitlines()
    escape, at = _directives(lines, file)
    found: list[Instruction] = []
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        place = Place(file, at + 1)
        joined, at = _joined(lines, at, escape)
        keyword, _, rest = _split_once(joined.strip())
        keyword = keyword.upper()
        if keyword not in USED and keyword not in IGNORED:
            raise place.fault(f"{keyword!r} is no instruction of a Dockerfile")
        documents: list[Document] = []
        if keyword in _HEREDOC_IN:
            documents, at = _documents(lines, at, rest, place)
        if keyword in IGNORED:
            continue
        if not rest and keyword not in ("CMD", "ENTRYPOINT"):
            raise place.fault(f"{keyword} needs something after it")
        found.append(Instruction(keyword, rest, place, tuple(documents), escape))
    return found


def _split_once(text: str) -> tuple[str, str, str]:
    parts = text.split(None, 1)
    return parts[0], " ", parts[1].strip() if len(parts) > 1 else ""


def _directives(lines: Sequence[str], file: str) -> tuple[str, int]:
    """The escape character, and the first line that is no parser directive."""
    escape, at = "\\", 0
    for at, line in enumerate(lines):
        match = _DIRECTIVE.match(line.strip())
        if match is None or match[1].lower() not in ("escape", "syntax", "check"):
            return escape, at
        if match[1].lower() == "escape":
            if match[2] not in ("\\", "`"):
                raise Place(file, at + 1).fault(f"escape must be \\ or `, not {match[2]!r}")
            escape = match[2]
    return escape, len(lines)


def _joined(lines: Sequence[str], at: int, escape: str) -> tuple[str, int]:
    """A line with those that continue it, and the number of the next. Comments and empty lines between are left out."""
    parts: list[str] = []
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        ended = line.rstrip()
        goes_on = ended.endswith(escape) and (len(ended) - len(ended.rstrip(escape))) % 2 == 1
        if not goes_on:
            parts.append(line)
            break
        parts.append(ended[: -len(escape)])
    return "".join(parts), at


def _documents(lines: Sequence[str], at: int, rest: str, place: Place) -> tuple[list[Document], int]:
    """The here-documents that a line announces, and the number of the line after them."""
    found: list[Document] = []
    for match in _HEREDOC.finditer(_without_quoted(rest)):
        name = match[3] or match[4] or match[5]
        body: list[str] = []
        while True:
            if at >= len(lines):
                raise place.fault(f"the here-document {name} has no end: a line with {name} alone")
            line = lines[at].lstrip("\t") if match[1] else lines[at]
            at += 1
            if line == name:
                break
            body.append(line + "\n")
        found.append(Document(name, "".join(body), match[5] is None))
    return found, at


def _without_quoted(text: str) -> str:
    """The text with quoted parts blanked out, except for delimiters of here-documents."""
    out, at = [], 0
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            out.append("  ")
            at += 2
            continue
        if char in "'\"" and not re.search(r"<<-?\Z", text[:at]):
            end = text.find(char, at + 1)
            end = len(text) - 1 if end < 0 else end
            out.append(" " * (end + 1 - at))
            at = end + 1
            continue
        if char in "'\"":
            end = text.find(char, at + 1)
            end = len(text) - 1 if end < 0 else end
            out.append(text[at : end + 1])
            at = end + 1
            continue
        out.append(char)
        at += 1
    return "".join(out)


# --- words ---

Lookup = Callable[[str], Optional[str]]
"""The value of a variable; None: it has none; `UNKNOWN`: nobody can say here."""
UNKNOWN = "\0"


def words(text: str, lookup: Lookup, escape: str, place: Place) -> list[str]:
    """The words of a line, quotes removed and variables expanded: ``$NAME``, ``${NAME}``, and with ``:-`` and ``:+``.

    An expansion is not split. InvalidError for a quote or a brace that does not end.
    """
    found: list[str] = []
    at, current, inside = 0, "", False
    while at < len(text):
        char = text[at]
        if char in " \t":
            if inside:
                found.append(current)
            current, inside = "", False
            at += 1
            continue
        inside = True
        piece, at = _piece(text, at, lookup, escape, place)
        current += piece
    return [*found, current] if inside else found


def _piece(text: str, at: int, lookup: Lookup, escape: str, place: Place) -> tuple[str, int]:
    char = text[at]
    if char == "'":
        end = text.find("'", at + 1)
        if end < 0:
            raise place.fault(f"a quote does not end: {text[at:]}")
        return text[at + 1 : end], end + 1
    if char == '"':
        out, at = "", at + 1
        while at < len(text) and text[at] != '"':
            if text[at] == escape and text[at + 1 : at + 2] in ('"', "$", escape):
                out, at = out + text[at + 1], at + 2
            elif text[at] == "$":
                value, at = _variable(text, at, lookup, escape, place)
                out += value
            else:
                out, at = out + text[at], at + 1
        if at >= len(text):
            raise place.fault(f"a quote does not end: {text}")
        return out, at + 1
    if char == escape and at + 1 < len(text):
        return text[at + 1], at + 2
    if char == "$":
        return _variable(text, at, lookup, escape, place)
    return char, at + 1


def _variable(text: str, at: int, lookup: Lookup, escape: str, place: Place) -> tuple[str, int]:
    """What stands at a dollar sign, expanded, and where it ends."""
    if text[at + 1 : at + 2] != "{":
        match = _NAME.match(text, at + 1)
        return ("$", at + 1) if match is None else (lookup(match[0]) or "", match.end())
    match = _NAME.match(text, at + 2)
    if match is None:
        raise place.fault(f"no name of a variable in {text[at:]}")
    end = _closing(text, match.end(), place)
    form = text[match.end() : end]
    if not form:
        return lookup(match[0]) or "", end + 1
    operator, word = form[:2], form[2:]
    if operator not in (":-", ":+"):
        raise place.fault(f"${{{match[0]}{form}}} is not supported: only ${{NAME}}, ${{NAME:-word}}, ${{NAME:+word}}")
    value = lookup(match[0])
    value = None if value == UNKNOWN else value  # a default is there for this
    if bool(value) is not (operator == ":+"):
        return value or "", end + 1
    return "".join(spaced(word, lookup, escape, place)), end + 1


def _closing(text: str, at: int, place: Place) -> int:
    depth = 1
    for position in range(at, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if not depth:
            return position
    raise place.fault(f"a brace does not end: {text}")


def pairs(text: str, lookup: Lookup, escape: str, place: Place) -> dict[str, str]:
    """What ENV sets: ``NAME=value ...``, or the old form ``NAME value``."""
    first = text.split(None, 1)
    if first and "=" not in first[0]:
        if len(first) < 2:
            raise place.fault("ENV needs a name and a value, as in ENV NAME=value")
        return {first[0]: "".join(spaced(first[1], lookup, escape, place))}
    found: dict[str, str] = {}
    for one in words(text, lookup, escape, place):
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise place.fault(f"ENV needs NAME=value, and {one!r} is not that")
        found[name] = value
    return found


def spaced(text: str, lookup: Lookup, escape: str, place: Place) -> list[str]:
    """A text as one word: blanks stay."""
    out, at = [], 0
    while at < len(text):
        piece, at = (text[at], at + 1) if text[at] in " \t" else _piece(text, at, lookup, escape, place)
        out.append(piece)
    return out
