"""The directory from which COPY and ADD take files: only what they name is looked at. Source: semantics.md 13.2."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Mapping, Optional, Sequence

from cadenza.sdk import patterns
from cadenza.sdk.patterns import AUTO_DOCKERIGNORE, FilePatternMatcher
from cadenza.sdk.source import LocalFile, walk

if TYPE_CHECKING:
    from cadenza.sdk.dockerfile import Place
    from cadenza.sdk.patterns import Ignore

_GLOB = re.compile(r"[*?\[\\]")


class Context:
    """A directory, without what ``ignore`` names, and single ``files``: paths in the context to local files.

    `AUTO_DOCKERIGNORE` stands for the ``.dockerignore`` beside the Dockerfile, with its name in front, or else the
    context's own.
    """

    def __init__(
        self, directory: str, ignore: Ignore, dockerfile: str = "", files: Optional[Mapping[str, str]] = None
    ) -> None:
        self._root = directory
        self._ignore = ignore
        self._dockerfile = dockerfile
        self._files = {_clean(path): local for path, local in (files or {}).items()}
        self._predicate: Optional[Callable[[Path], bool]] = None

    def find(self, source: str, place: Place) -> list[LocalFile]:
        """The files that a source of COPY or ADD names, each at ``/`` + its path in the context; of a directory all
        below it. InvalidError for a source outside of the context, and for one that names nothing."""
        clean = _clean(source)
        if clean == ".." or clean.startswith("../"):
            raise place.fault(
                f"{source} is outside of the context {self._root}: copy it there, or take a larger directory as context"
            )
        parts = [] if clean == "." else clean.split("/")
        found = {path: local for path, local in self._files.items() if _matches(parts, path.split("/"))}
        paths = list(self._expand(parts))
        for path in paths:
            for one in self._below(path):
                found.setdefault(one, os.path.join(self._root, one))
        if not found and not (paths and any(os.path.isdir(os.path.join(self._root, one)) for one in paths)):
            why = f"{self._left_out_by()} leaves it out" if paths else f"the context {self._root} has no such file"
            raise place.fault(f"{source}: {why}")
        return [LocalFile(found[path], "/" + path) for path in sorted(found)]

    def empty(self, source: str, files: Sequence[LocalFile]) -> list[str]:
        """The directories that a source names, or that are below one, from which none of ``files`` comes, those
        that `find` gave for it: ``/`` + their paths."""
        clean = _clean(source)
        ignored = self._ignored()
        full: set[str] = set()
        found: list[str] = []
        for file in files:
            one = file.remote.lstrip("/")
            while one not in full:
                full.add(one)
                one = posixpath.dirname(one)
        for path in self._expand([] if clean == "." else clean.split("/")):
            stack: list[tuple[str, frozenset[str]]] = [(path, frozenset())]
            while stack:
                one, above = stack.pop()
                here = os.path.join(self._root, one)
                real = os.path.realpath(here)
                if real in above or not os.path.isdir(here) or (one not in ("", path) and ignored(Path(one))):
                    continue
                if one and one not in full:
                    found.append("/" + one)
                stack.extend((os.path.join(one, name), above | {real}) for name in _names(here))
        return [one for one in sorted(set(found)) if not any(other.startswith(one + "/") for other in found)]

    def _ignored(self) -> Callable[[Path], bool]:
        if self._predicate is None:
            if self._ignore is AUTO_DOCKERIGNORE:
                self._predicate = FilePatternMatcher.from_file(self._ignore_file() or os.devnull)
            else:
                self._predicate = patterns.as_predicate(self._ignore)
        return self._predicate

    def _ignore_file(self) -> str:
        """The ``.dockerignore`` that counts; empty where there is none."""
        beside = [self._dockerfile + ".dockerignore"] if self._dockerfile else []
        both = [*beside, os.path.join(self._root, ".dockerignore")]
        return next((one for one in both if os.path.isfile(one)), "")

    def _left_out_by(self) -> str:
        return self._ignore_file() if self._ignore is AUTO_DOCKERIGNORE else "ignore="

    def _expand(self, parts: list[str]) -> Iterator[str]:
        """The paths in the context that a pattern's parts name, one name for each part."""
        level = [""]
        for part in parts:
            if _GLOB.search(part):
                expression = patterns.expression(part)
                level = [
                    os.path.join(one, name)
                    for one in level
                    for name in sorted(_names(os.path.join(self._root, one)))
                    if expression.match(name)
                ]
            else:
                level = [os.path.join(one, part) for one in level]
                level = [one for one in level if os.path.exists(os.path.join(self._root, one))]
        yield from (level if os.path.isdir(self._root) else ())

    def _below(self, path: str) -> Iterator[str]:
        """The files at or below a path that are not left out."""
        ignored = self._ignored()
        here = os.path.join(self._root, path)
        if not os.path.isdir(here):
            if not ignored(Path(path)):
                yield path
            return
        prune = isinstance(ignored, FilePatternMatcher) and ignored.can_prune_directories()
        if prune and path and ignored(Path(path)):
            return
        skip = (lambda part: ignored(Path(path, part))) if prune else None
        for part in walk(here, skip, True):
            one = os.path.join(path, part)
            if not ignored(Path(one)):
                yield one


def _clean(path: str) -> str:
    """A path in the context: relative, without ``.`` and doubled slashes."""
    return posixpath.normpath(path.lstrip("/") or ".")


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _matches(parts: list[str], path: list[str]) -> bool:
    """Whether a path is one that the pattern names, or is below one."""
    if len(parts) > len(path):
        return False
    return all(
        patterns.expression(part).match(name) if _GLOB.search(part) else part == name for part, name in zip(parts, path)
    )
