"""An attached call while it runs, and how an input and its output are named to who asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional

from cadenza.base.ids import ALPHABET
from cadenza.protocol.calls import BlobRef, OutputItem, ValueRef
from cadenza.storage.entry import CallRecord, Output

OnOutput = Callable[[OutputItem, bytes], None]
OnItem = Callable[[int, bytes, Optional[BlobRef]], None]
Value = tuple[int, bytes, Optional[BlobRef]]
"""An input's index in its call, its bytes (empty when there is a blob), its blob."""


ENDS_KNOWN = 200
"""Of how many inputs of a call is remembered how they ended: what a call graph shows."""


@dataclass(eq=False)
class Attached:
    """A call that ends with its caller."""

    record: CallRecord
    on_output: Optional[OnOutput]
    on_item: Optional[OnItem]
    finished: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    ends: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Status and last container of the inputs with the first `ENDS_KNOWN` indices that have ended."""
    dropped: bool = False
    """Inputs of it ended in the table, which keeps their outputs."""
    below: int = 0
    """All indices under this are known, and those in ``beyond``."""
    beyond: set[int] = field(default_factory=set)

    def is_new(self, index: int) -> bool:
        """Whether the call did not have this index; from now on it has."""
        if index == self.below and not self.beyond:
            self.below = index + 1
            return True
        if index < self.below or index in self.beyond:
            return False
        self.beyond.add(index)
        while self.below in self.beyond:
            self.beyond.discard(self.below)
            self.below += 1
        return True


def input_id(call_id: str, index: int) -> str:
    """An input's id: its call's, with the index in the last four of 22 characters. Empty above what four can hold."""
    if index < 62:
        return "in-" + call_id[3:-4] + "000" + ALPHABET[index]
    if index >= 62**4:
        return ""
    tail = []
    for _ in range(4):
        index, digit = divmod(index, 62)
        tail.append(ALPHABET[digit])
    return "in-" + call_id[3:-4] + "".join(reversed(tail))


def call_ids(name: str) -> tuple[str, str]:
    """Between which ids the call of an input is whose id `input_id` made: by those the table is sorted."""
    begin = "fc-" + name[3:-4]
    return begin, begin + "~"


def item_of(output: Output) -> OutputItem:
    """An output as the caller is told of it."""
    value = ValueRef(0 if output.blob is not None else len(output.data), output.blob)
    return OutputItem(
        output.index, output.input_id, output.status, value, output.error, output.items, output.attempts,
        output.container_id,
    )  # fmt: skip
