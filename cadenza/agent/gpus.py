"""The NVIDIA cards of this machine, and who has which. Source: semantics.md section 11.3."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import Sequence

from cadenza.base.errors import InvalidError, ServiceError
from cadenza.base.resources import GPU_TYPES, Gpu
from cadenza.runtime import cdi

QUERY_LIMIT_S = 10.0
"""How long the driver's program may take; it loads the driver when nobody uses it."""
QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
KIND = "nvidia.com/gpu"


@dataclass(frozen=True)
class Card:
    """``type`` as users write it."""

    index: int
    uuid: str
    type: str


def gpu_type(model: str, memory_mib: int = 0) -> str:
    """A driver's name for a card (``NVIDIA A100-SXM4-80GB``) as users write it; empty for one they cannot."""
    words = set(re.split(r"[^A-Z0-9]+", model.upper()))
    if "A100" in words:
        return "A100-80GB" if "80GB" in words or memory_mib > 50_000 else "A100-40GB"
    if "RTX" in words and "PRO" in words and "6000" in words:
        return "RTX-PRO-6000"
    if "A10G" in words:
        return "A10"
    return next((kind for kind in GPU_TYPES if kind in words), "")


def read(text: str) -> list[Card]:
    """What the driver's program printed; cards of unknown types are left out. Pure."""
    found = []
    for line in text.splitlines():
        parts = [one.strip() for one in line.split(",")]
        if len(parts) != 4 or not parts[0].isdigit():
            continue
        kind = gpu_type(parts[2], int(parts[3]) if parts[3].isdigit() else 0)
        if kind:
            found.append(Card(int(parts[0]), parts[1], kind))
    return found


def detect() -> tuple[list[Card], str]:
    """This machine's cards, and a sentence for the log when they could not be asked for. Blocks."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], ""
    try:
        done = subprocess.run(
            [program, *QUERY], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=QUERY_LIMIT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"the machine's GPUs are not known: {error}"
    if done.returncode != 0:
        return [], f"the machine's GPUs are not known: nvidia-smi: {(done.stderr or done.stdout).strip()[:300]}"
    return read(done.stdout), ""


class Cards:
    """Who has which card. A card is one container's."""

    def __init__(self, cards: Sequence[Card] = ()) -> None:
        self._cards = list(cards)
        self._taken: dict[str, list[Card]] = {}

    @property
    def types(self) -> dict[str, int]:
        """How many there are of each type."""
        return dict(Counter(one.type for one in self._cards))

    def take(self, cell_id: str, wishes: Sequence[Gpu]) -> list[Card]:
        """Cards for a container. ServiceError when others have them, InvalidError when there are not so many."""
        taken = {one.index for cards in self._taken.values() for one in cards}
        mine: list[Card] = []
        for wish in wishes:
            kind = wish.type.rstrip("!+")
            free = [one for one in self._cards if one.index not in taken and kind in (one.type.rstrip("!+"), "ANY")]
            if len(free) < wish.count:
                here = sum(kind in (one.type.rstrip("!+"), "ANY") for one in self._cards)
                if here < wish.count:
                    has = ", ".join(f"{count} of type {name}" for name, count in self.types.items()) or "none"
                    raise InvalidError(f"gpu={wish.type}:{wish.count} was wanted, and of GPUs this machine has {has}")
                raise ServiceError(f"{wish.count} GPUs of type {wish.type} were wanted, and {len(free)} are free here")
            mine += free[: wish.count]
            taken |= {one.index for one in mine}
        if mine:
            self._taken[cell_id] = mine
        return mine

    def give_back(self, cell_id: str) -> None:
        """All that a container has."""
        self._taken.pop(cell_id, None)


def devices(cards: Sequence[Card]) -> tuple[str, ...]:
    """The cards as the machine's CDI files name them: by index or, where they do not, by UUID."""
    return tuple(
        f"{KIND}={one.uuid}" if not cdi.known([f"{KIND}={one.index}"]) and cdi.known([f"{KIND}={one.uuid}"])
        else f"{KIND}={one.index}"
        for one in cards
    )  # fmt: skip


def variables(cards: Sequence[Card]) -> dict[str, str]:
    """What tells a plain process which cards are its own: without ``gpu=`` none, though it could reach them all."""
    numbers = ",".join(str(one.index) for one in cards)
    return {"NVIDIA_VISIBLE_DEVICES": numbers or "void", "CUDA_VISIBLE_DEVICES": numbers}
