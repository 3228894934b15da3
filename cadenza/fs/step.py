"""One step of a build as whoever runs containers sees it; what it is made on, and what it prints."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Awaitable, Callable, Iterable, Optional

from cadenza.base.resources import Resources
from cadenza.fs import tree as trees
from cadenza.fs.mount import Lowers
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.protocol.objects import BuildFunction

SHOWN_LINES = 30
"""How much of a failed step's output its error repeats."""
MOST_LINES = 100_000
"""So many lines of a command are passed on: one that prints without end would keep the server from all else."""

STEP_LIMIT_S = 3600.0
STACKED = 24
"""So many deltas are mounted above each other; more are made one tree first."""
LINE_CHARS = 2_000
"""Longer lines of output are cut into pieces: what is sent and kept of a build is bounded."""
MASK_CHARS = 4
"""Secret values of at least so many characters are not shown in a step's output."""


@dataclass(frozen=True)
class Bind:
    """One path of the host that a build step sees. The target exists in the image already, as a file or a directory."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class StepRun:
    """One command of a build, to be run as root of its own root filesystem: an overlay of `lowers` under `upper`.

    ``upper`` and ``work`` are directories on one filesystem, made for this step; several commands of one step run
    one after the other on the same ``upper``. After the command ends, nothing may be mounted or running on them.
    Whoever runs it adds what every container has (/proc, /dev, /sys, a network namespace), and leaves no file of its
    own in ``upper``.
    """

    image_id: str
    lowers: Lowers
    """Never empty."""
    upper: str
    work: str
    argv: tuple[str, ...]
    """The first word is a path, or a name to look for in ``env["PATH"]`` inside."""
    env: dict[str, str] = field(repr=False)
    """The whole environment of the command, image variables, secrets and proxies included."""
    cwd: str
    """Absolute; exists."""
    output: Callable[[bytes], None]
    """Takes stdout and stderr, mixed, as they come; called on the loop's thread."""
    binds: tuple[Bind, ...] = ()
    network: bool = True
    """Whether the command reaches the network as the host does (names resolve by the bound /etc/resolv.conf)."""
    timeout_s: float = STEP_LIMIT_S
    """Kill it after so long; then raise the builtin TimeoutError."""
    resources: Optional[Resources] = None
    """What it may use; None: the whole machine. Its GPUs are its own while it runs."""
    user: tuple[int, int] = (0, 0)
    """User and group inside."""
    function: Optional[BuildFunction] = None
    """Run this, by the Python that ``argv`` names alone; its files are seen and stay out of ``upper``."""


RunStep = Callable[[StepRun], Awaitable[int]]
"""Runs a command and gives its exit code; 128 + n when a signal ended it. OSError when it could not be started."""

Emit = Callable[[str, str], None]
"""Takes a line of progress: its kind, as in `BuildLine.kind`, and its text."""


_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # a terminal's sequences: colours, the cursor
    r"|\x1b[]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?"  # its title, and whatever else has text in it
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


def plain(text: str) -> str:
    """A line without what a terminal would obey; tabs stay. Pure. Source: ECMA-48."""
    return text if text.isprintable() else _CONTROL.sub("", text)


class Lines:
    """Bytes as they come into lines for people; ``\\r`` ends a line that was a progress display."""

    LINE_BYTES = 16384

    def __init__(self, emit: Callable[[str], None], hidden: Iterable[str] = ()) -> None:
        """``hidden``: values of secrets, which are not shown."""
        self._emit = emit
        # A secret of several lines is hidden line by line, as it is printed.
        parts = {part.strip() for one in hidden for part in (one, *one.splitlines())}
        self._hidden = sorted((one for one in parts if len(one) >= MASK_CHARS), key=len, reverse=True)
        self._shown = 0
        self._rest = b""
        self.last: deque[str] = deque(maxlen=SHOWN_LINES)

    def feed(self, data: bytes) -> None:
        """Take a piece of output."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole if self._shown < MOST_LINES else whole[-SHOWN_LINES:]:
            self._line(line)
        if len(self._rest) > self.LINE_BYTES:
            self.close()

    def close(self) -> None:
        """Give out what has no end of line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
        for one in self._hidden:
            text = text.replace(one, "***")
        text = plain(text)
        for start in range(0, max(len(text), 1), LINE_CHARS):
            piece = text[start : start + LINE_CHARS]
            self.last.append(piece)
            self._shown += 1
            if self._shown <= MOST_LINES:
                self._emit(piece if self._shown < MOST_LINES else "the step prints on: further lines are not shown")


class Ground:
    """What a step is made on: the trees so far, and what they are as one. Blocks; one build's own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.trees: list[bytes] = []
        self._whole: Optional[Node] = None
        self._merged = 0

    def add(self, tree: bytes) -> None:
        """One more delta on top."""
        self.trees.append(tree)

    def whole(self) -> Node:
        """All of it as one tree."""
        while self._merged < len(self.trees):
            delta = self._store.tree(self.trees[self._merged])
            self._whole = trees.merge(self._whole if self._whole is not None else trees.directory(), delta)
            self._merged += 1
        return self._whole if self._whole is not None else trees.directory()

    def mounted(self) -> list[bytes]:
        """The trees to mount, topmost first."""
        if len(self.trees) <= STACKED:
            return self.trees[::-1]
        upper = self.trees[len(self.trees) // STACKED * STACKED :]
        flat = trees.flatten(self._store.tree(one) for one in self.trees[: len(self.trees) - len(upper)])
        return [*upper[::-1], self._store.put_tree(flat)]


def measure(tree: Node) -> tuple[int, int]:
    """Bytes of the files in a tree, each link of a file once, and how many entries it has; pure."""
    size = entries = 0
    seen: set[int] = set()
    for _, node in trees.walk(tree):
        entries += 1
        if node.is_file and not (node.link and node.link in seen):
            size += node.size
            if node.link:
                seen.add(node.link)
    return size, entries - 1
