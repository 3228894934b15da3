"""Many functions in few bytes: lists of files and images that functions share are named once, and all is compressed.

A frame's header has 1 MiB at most, and a package of some hundred files in fifty functions is more. Such functions
travel as the payload of ``app.publish`` and ``app.deploy``, and versions of deployed apps are kept so.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Sequence

from cadenza.protocol.objects import FileEntry, FunctionSpec, ImageSpec, to_json

HEADER_BYTES = 256 << 10
"""Functions that are larger than this as JSON travel packed."""
MAX_UNPACKED_BYTES = 512 << 20
_FILE_BYTES = 120
"""About what a file's entry takes besides its path."""


@dataclass(frozen=True)
class PackedFunction:
    """A function whose files and image are numbers."""

    spec: FunctionSpec
    files: int
    image: int


@dataclass(frozen=True)
class Packed:
    """Functions, with what they share beside them."""

    files: tuple[tuple[FileEntry, ...], ...] = ()
    images: tuple[ImageSpec, ...] = ()
    functions: tuple[PackedFunction, ...] = field(default_factory=tuple)

    def unpacked(self) -> tuple[FunctionSpec, ...]:
        """The functions as they were. IndexError for a number of nothing."""
        return tuple(
            replace(one.spec, files=self.files[one.files], image=self.images[one.image]) for one in self.functions
        )


def pack(specs: Sequence[FunctionSpec]) -> bytes:
    """Functions as compressed JSON of a `Packed`."""
    files: dict[tuple[FileEntry, ...], int] = {}
    images: dict[str, int] = {}
    texts: dict[int, str] = {}
    numbers: dict[int, int] = {}
    kept: list[ImageSpec] = []
    functions = []
    for spec in specs:
        text = texts.get(id(spec.image))
        if text is None:
            text = texts[id(spec.image)] = to_json(spec.image)
        number = images.setdefault(text, len(images))
        if number == len(kept):
            kept.append(spec.image)
        place = numbers.get(id(spec.files))
        if place is None:
            place = numbers[id(spec.files)] = files.setdefault(spec.files, len(files))
        functions.append(PackedFunction(replace(spec, files=(), image=ImageSpec()), place, number))
    packed = Packed(tuple(files), tuple(kept), tuple(functions))
    return zlib.compress(to_json(packed).encode(), 6)


def sendable(specs: Sequence[FunctionSpec]) -> tuple[tuple[FunctionSpec, ...], list[bytes]]:
    """What of some functions goes into a request's body, and what into its payload: one of the two is empty."""
    size = 0
    for spec in specs:
        entries = [*spec.files, *(one for step in spec.image.steps for one in step.files)]
        size += 4096 + sum(_FILE_BYTES + len(one.path) for one in entries)
        size += sum(len(text) for step in spec.image.steps for text in step.args)
        size += sum(len(key) + len(value) for key, value in spec.env.items())
        size += sum(len(key) + len(value) for one in spec.secrets for key, value in one.values.items())
        if size > HEADER_BYTES:
            return (), [pack(specs)]
    return tuple(specs), []
