"""What the builder remembers in the store: of each step its delta tree, of each image its tree and its settings.

Formats: docs/formats/records.md. A record that was written in another boot and never settled is not believed: a loss of
power may have torn what it names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from cadenza.fs.recipe import MACHINE, RECIPE, Settings
from cadenza.protocol.nodes import ImageInfo, ImageLayer


FIRST_MACHINE = "x86_64"
"""That of records which do not name one: there were no others when they were written."""


@dataclass(frozen=True)
class Made:
    """One step as it was made."""

    key: str
    """Of the step: `cadenza.fs.recipe.Step.key`."""
    tree: str
    """The digest of its delta tree in hex; of a base its tree."""
    settings: Settings
    """Those after it."""
    text: str
    size: int
    """Bytes of the files that it added or changed."""
    entries: int
    seconds: float
    created_at: float
    boot: str = ""
    """The boot in which it was made; empty once it is surely on disk."""
    source: str = ""
    """Of a base from a registry: its reference with the digest."""
    blobs: tuple[str, ...] = ()
    """Of a base from a registry: the names of its layers' records."""

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.tree)

    def layer(self, cached: bool) -> ImageLayer:
        """As it is shown."""
        return ImageLayer(self.text, self.tree, self.size, self.entries, self.seconds, self.created_at, cached)


@dataclass
class ImageRecord:
    """One image."""

    info: ImageInfo
    settings: Settings
    layers: tuple[ImageLayer, ...]
    steps: tuple[str, ...] = ()
    """The keys of its steps, the base's first; steps that change no file have none."""
    recipe: str = RECIPE
    """What its recipe meant when it was built. With another one, only a build of the recipe makes it anew."""
    boot: str = ""
    source: str = ""
    machine: str = MACHINE
    """The architecture of what is in it."""

    @property
    def tree(self) -> bytes:
        return bytes.fromhex(self.info.tree)


@dataclass(frozen=True)
class Believer:
    """Reads and writes records in the present boot."""

    boot: str
    """The present one: `cadenza.fs.settle.boot_id`."""
    machine: str = MACHINE
    """Images of another architecture do not run here."""

    def step(self, raw: Optional[bytes]) -> Optional[Made]:
        """A step's record; None when there is none, or none to believe."""
        value = _load(raw)
        if value is None:
            return None
        try:
            settings, blobs = _settings(value["settings"]), tuple(map(str, value.get("blobs", ())))
            made = Made(**{**value, "settings": settings, "blobs": blobs})
        except (TypeError, KeyError, ValueError):
            return None
        return made if not made.boot or made.boot == self.boot else None

    def image(self, raw: Optional[bytes]) -> Optional[ImageRecord]:
        """An image's record; None when there is none, or none to believe.

        One by another version's recipes is an image all the same: who names it by its id or a name means this one.
        """
        value = _load(raw)
        if value is None:
            return None
        try:
            record = ImageRecord(
                ImageInfo(**value["info"]),
                _settings(value["settings"]),
                tuple(ImageLayer(**one) for one in value["layers"]),
                tuple(value["steps"]),
                value["recipe"],
                value["boot"],
                value["source"],
                value.get("machine", FIRST_MACHINE),
            )
            bytes.fromhex(record.info.tree)
        except (TypeError, KeyError, ValueError):
            return None
        known = record.info.tree and record.machine == self.machine
        return record if known and (not record.boot or record.boot == self.boot) else None


def _load(raw: Optional[bytes]) -> Optional[dict[str, Any]]:
    try:
        value = json.loads(raw) if raw is not None else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _settings(value: dict[str, Any]) -> Settings:
    return Settings(**{**value, **{key: tuple(value[key]) for key in ("entrypoint", "cmd", "shell")}})


def write(record: Made | ImageRecord, settled: bool = False) -> bytes:
    """A record's bytes. ``settled``: what it names is surely on disk."""
    return json.dumps(asdict(replace(record, boot="") if settled else record), sort_keys=True).encode()
