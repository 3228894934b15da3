"""What is said of images: building, names, what is kept of them. Source: semantics.md section 13."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from cadenza.protocol.method import ADMIN, CLIENT, READ, Empty, Method
from cadenza.protocol.nodes import BuildLine, ImageDetail, ImageInfo, ImageLogLine
from cadenza.protocol.objects import ImageSpec, SecretRef


@dataclass(frozen=True)
class ImageBuild:
    spec: ImageSpec
    force: bool = False
    environment: str = ""
    """Where secrets that are named without an environment are; empty: the caller's."""
    ignore_cache: bool = False
    """Build all steps again, and leave what is cached as it is."""


@dataclass(frozen=True)
class ImageBuilt:
    """An item of the build's stream: lines while it runs, and at its end the image."""

    lines: tuple[BuildLine, ...] = ()
    image: Optional[ImageInfo] = None


@dataclass(frozen=True)
class Images:
    images: tuple[ImageInfo, ...]


@dataclass(frozen=True)
class ImageFind:
    """An image by ``image_id`` or a prefix that no other has, or by ``name`` as ``[environment/]name[:tag]``.
    NotFoundError when there is none, InvalidError when a prefix fits several."""

    image_id: str = ""
    name: str = ""
    environment: str = ""


@dataclass(frozen=True)
class ImagePublish:
    """Give a built image a name; one that has another image now points to this one. NotFoundError: it is not built."""

    image_id: str
    name: str
    """``[environment/]name[:tag]``; the tag is ``latest`` where none is given."""
    environment: str = ""


@dataclass(frozen=True)
class ImageName:
    """One name, or in a history one publication."""

    name: str
    tag: str
    environment: str
    image_id: str
    published_at: float
    published_by: str = ""


@dataclass(frozen=True)
class ImageNameList:
    environment: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class ImageNameRef:
    name: str
    environment: str = ""


@dataclass(frozen=True)
class ImageNames:
    names: tuple[ImageName, ...] = ()


@dataclass(frozen=True)
class ImageLogQuery:
    """Output of the last ``layers`` steps that were built for an image; 0: of all."""

    image_id: str
    layers: int = 1
    entries: int = 0
    """Only so many lines, the last; 0: all."""


@dataclass(frozen=True)
class ImageLog:
    lines: tuple[ImageLogLine, ...] = ()


@dataclass(frozen=True)
class ImageRemove:
    """Forget an image. ConflictError while a deployed app, a container or a name has it, unless ``force`` (but never
    while a container runs on it). Its content goes with the next collection."""

    image_id: str
    force: bool = False


@dataclass(frozen=True)
class ImageCollect:
    """Remove what nothing names. ``unused_days``: also images that no app, name or container has had for so long; below
    0: none. ``remote``: also from the bucket that machines share, what none of them has."""

    dry_run: bool = False
    unused_days: float = -1.0
    remote: bool = False


@dataclass(frozen=True)
class ImagePush:
    """Send an image to a registry as an OCI image. ``ref``: ``host[:port]/repository[:tag]``."""

    image_id: str
    ref: str
    secrets: tuple[SecretRef, ...] = ()
    environment: str = ""


@dataclass(frozen=True)
class ImagePushed:
    lines: tuple[str, ...] = ()
    digest: str = ""
    """At the end: the manifest's, ``sha256:...``."""


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would (``dry_run``). Bytes on this machine's disk."""

    images: tuple[str, ...] = ()
    objects: int = 0
    size: int = 0
    kept_objects: int = 0
    kept_size: int = 0
    dry_run: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)


ROWS = (
    Method("image.build", ImageBuild, ImageBuilt, stream="down", callers=(CLIENT,)),
    Method("image.list", Empty, Images, callers=(CLIENT,), needs=READ),
    Method("image.find", ImageFind, ImageInfo, callers=(CLIENT,), needs=READ),
    Method("image.inspect", ImageFind, ImageDetail, callers=(CLIENT,), needs=READ),
    Method("image.log", ImageLogQuery, ImageLog, callers=(CLIENT,), needs=READ),
    Method("image.publish", ImagePublish, ImageName, callers=(CLIENT,)),
    Method("image.names", ImageNameList, ImageNames, callers=(CLIENT,), needs=READ),
    Method("image.unpublish", ImageNameRef, Empty, callers=(CLIENT,)),
    Method("image.history", ImageNameRef, ImageNames, callers=(CLIENT,), needs=READ),
    Method("image.remove", ImageRemove, Empty, callers=(CLIENT,)),
    Method("image.push", ImagePush, ImagePushed, stream="down", callers=(CLIENT,)),
    Method("image.collect", ImageCollect, Collected, callers=(CLIENT,), needs=ADMIN),
)
