"""The configuration file as text: its profiles, one setting more or less, and all comments where they were."""

from __future__ import annotations

import json
import re
from pathlib import Path

DEFAULT = "default"
_HEADER = re.compile(r"""\s*\[\s*["']?([^\]"']+?)["']?\s*\]\s*(?:#.*)?""")
"""The line that begins a table."""
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
"""A profile's name that needs no quotes."""


def names(text: str) -> list[str]:
    """The file's profiles, in order."""
    return [name for _, _, name in _tables(text.splitlines())]


def active(text: str) -> str:
    """The profile in force where nobody names one: marked ``active = true``, else ``default``."""
    lines = text.splitlines()
    for start, end, name in _tables(lines):
        if any(line.partition("#")[0].replace(" ", "") == "active=true" for line in lines[start:end]):
            return name
    return DEFAULT


def quoted(value: str) -> str:
    """A string as TOML."""
    return json.dumps(value)


def with_setting(text: str, profile: str, key: str, literal: str) -> str:
    """The text with ``key = literal`` in a profile's table; everything else stays as it was written.

    Without ``profile``: the active one.
    """
    lines = text.splitlines()
    profile = profile or active(text)
    for start, end, name in _tables(lines):
        if name != profile:
            continue
        for index in range(start + 1, end):
            if lines[index].split("=")[0].strip() == key:
                lines[index] = f"{key} = {literal}"
                return "\n".join(lines) + "\n"
        lines.insert(start + 1, f"{key} = {literal}")
        return "\n".join(lines) + "\n"
    header = f"[{profile}]" if PLAIN.match(profile) else f"[{quoted(profile)}]"
    return "\n".join([*lines, header, f"{key} = {literal}"]) + "\n"


def without_setting(text: str, profile: str, key: str) -> str:
    """The text without a setting of a profile's table."""
    lines = text.splitlines()
    for start, end, name in _tables(lines):
        if name == profile:
            kept = [one for one in lines[start + 1 : end] if one.split("=")[0].strip() != key]
            lines[start + 1 : end] = kept
            break
    return "\n".join(lines) + "\n" if lines else ""


def activated(text: str, profile: str) -> str:
    """The text with this profile as the active one, and no other."""
    for name in names(text):
        if name != profile:
            text = without_setting(text, name, "active")
    return with_setting(text, profile, "active", "true")


def _tables(lines: list[str]) -> list[tuple[int, int, str]]:
    """``(first line, line after the last, name)`` of each table."""
    found = [(at, match[1]) for at, line in enumerate(lines) if (match := _HEADER.fullmatch(line))]
    ends = [at for at, _ in found[1:]] + [len(lines)]
    return [(at, end, name) for (at, name), end in zip(found, ends)]


def replace(file: Path, text: str) -> None:
    """Put the text in place of the file, for its owner's eyes only: whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_suffix(".new")
    if draft.exists():
        draft.unlink()
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(file)
