"""What registries say of images: indexes, manifests, configurations; read and made. Pure.

Sources: the OCI image specification 1.1; Docker's image manifest version 2, schema 2, and image specification 1.2.
"""

from __future__ import annotations

import json
import platform as host_platform
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence, Union

from cadenza.base.errors import InvalidError
from cadenza.fs.reference import check_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
MANIFEST_BYTES = 4 << 20
CONFIG_BYTES = 8 << 20
BLOB_BYTES = 256 << 30
LAYERS = 500
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "arm", "i686": "386"}


class ManifestError(Exception):
    """A manifest that cannot be used; the text says why, in a sentence without its subject."""


@dataclass(frozen=True)
class Descriptor:
    """A blob or a manifest: what it is, its digest, its bytes."""

    media_type: str
    digest: str
    size: int
    platform: str = ""
    """``os/architecture[/variant]``; empty: not said."""

    @property
    def short(self) -> str:
        """Its digest for people."""
        return self.digest.partition(":")[2][:12]


@dataclass(frozen=True)
class Index:
    """One name for images of several platforms."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Manifest:
    """One image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of the processes in it. ``raw`` is the configuration as it came."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    shell: tuple[str, ...] = ()
    platform: str = ""
    """``os/architecture[/variant]``; empty: not said."""
    labels: Mapping[str, str] = field(default_factory=dict)
    diff_ids: tuple[str, ...] = ()
    """Digests of the layers' tars before compression."""
    history: tuple[str, ...] = ()
    """What made it, a line for each step that is known."""


def host() -> str:
    """This machine's platform."""
    return f"linux/{_MACHINES.get(host_platform.machine(), host_platform.machine())}"


def read_manifest(body: bytes, media_type: str) -> Union[Index, Manifest]:
    """What a registry's answer is. ManifestError when it is nothing that can be used."""
    document = _object(_load(body), "is no JSON object")
    said = document.get("mediaType")
    kind = said if isinstance(said, str) and said else media_type
    if document.get("schemaVersion") == 1 or "distribution.manifest.v1+" in kind:
        raise ManifestError("is in Docker's old format (schema 1): push it again with a tool of this decade")
    if document.get("schemaVersion") != 2:
        raise ManifestError("is in a format that is not known here")
    if kind in (OCI_INDEX, DOCKER_LIST) or ("manifests" in document and "layers" not in document):
        return Index(tuple(_descriptor(one) for one in _array(document.get("manifests"))))
    if "layers" not in document or "config" not in document:
        raise ManifestError("is no container image")
    config = _descriptor(document["config"])
    layers = tuple(_descriptor(one) for one in _array(document["layers"]))
    if len(layers) > LAYERS:
        raise ManifestError(f"has more than {LAYERS} layers")
    strange = [one.media_type for one in layers if "tar" not in one.media_type]
    if strange:
        raise ManifestError(f"is no container image but an artifact of another kind ({strange[0][:80]})")
    if any("foreign" in one.media_type or "nondistributable" in one.media_type for one in layers):
        raise ManifestError("has layers that registries may not give away (a Windows image?)")
    return Manifest(config, layers)


def choose(index: Index, wanted: str) -> Descriptor:
    """The manifest for a platform. ManifestError names those there are."""
    images = [one for one in index.manifests if not one.platform.startswith("unknown")]
    exact = [one for one in images if one.platform == wanted]
    near = [one for one in images if fits(one.platform, wanted)]
    if exact or near:
        return (exact or near)[0]
    if len(images) == 1 and not images[0].platform:
        return images[0]
    there = ", ".join(sorted({one.platform for one in images if one.platform})) or "none"
    raise ManifestError(f"is not there for {wanted}; there are: {there}")


def fits(platform: str, wanted: str) -> bool:
    """Whether an image for ``platform`` is what ``wanted`` asks for; a variant counts only where it was asked for."""
    return platform == wanted or (wanted.count("/") == 1 and platform.startswith(wanted + "/"))


def read_config(body: bytes) -> ImageConfig:
    """An image's configuration. ManifestError when it is none."""
    document = _object(_load(body), "has a configuration that is no JSON object")
    try:
        whole = json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise ManifestError("has a configuration with characters that are none") from None
    if b"\\u0000" in whole:
        raise ManifestError("has a configuration with a zero byte in it")
    inner = _object(document.get("config") or {}, "has a configuration that cannot be read")
    rootfs = _object(document.get("rootfs") or {}, "has a configuration that cannot be read")
    parts = [document.get("os"), document.get("architecture"), document.get("variant")]
    named = [str(one) for one in parts if one]
    env = [one.partition("=") for one in _strings(inner.get("Env")) if "=" in one[1:]]
    labels = inner.get("Labels")
    diff_ids = _strings(rootfs.get("diff_ids"))
    try:
        for one in diff_ids:
            check_digest(one)
    except InvalidError as error:
        raise ManifestError(f"has a configuration with a wrong digest: {error}") from None
    return ImageConfig(
        env={name: value for name, _, value in env},
        workdir=str(inner.get("WorkingDir") or ""),
        entrypoint=_strings(inner.get("Entrypoint")),
        cmd=_strings(inner.get("Cmd")),
        user=str(inner.get("User") or ""),
        shell=_strings(inner.get("Shell")),
        platform="/".join(named) if len(named) > 1 else "",
        labels={str(key): str(value) for key, value in labels.items()} if isinstance(labels, dict) else {},
        diff_ids=diff_ids,
        history=tuple(
            str(one.get("created_by") or "") for one in _array(document.get("history") or []) if isinstance(one, dict)
        ),
    )


def make_config(config: ImageConfig, diff_ids: Sequence[str], created: str) -> bytes:
    """The configuration of an image with these layers. ``created`` as RFC 3339 has it."""
    inner: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "Entrypoint": list(config.entrypoint) or None,
        "Cmd": list(config.cmd) or None,
        "WorkingDir": config.workdir,
        "User": config.user,
        "Shell": list(config.shell) or None,
        "Labels": dict(config.labels) or None,
    }
    system, _, machine = (config.platform or host()).partition("/")
    architecture, _, variant = machine.partition("/")
    lines = list(config.history) or ["cadenza"]
    history: list[dict[str, Any]] = [{"created": created, "created_by": one, "empty_layer": True} for one in lines]
    for one in history[len(history) - len(diff_ids) :]:
        del one["empty_layer"]
    document = {
        "created": created,
        "architecture": architecture,
        **({"variant": variant} if variant else {}),
        "os": system,
        "config": {key: value for key, value in inner.items() if value},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": history,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """An image's manifest as OCI has it."""

    def row(one: Descriptor) -> dict[str, object]:
        return {"mediaType": one.media_type, "digest": one.digest, "size": one.size}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": row(config),
        "layers": [row(one) for one in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _load(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ManifestError("is described by something that is no JSON") from None


def _object(value: object, why: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(why)
    return value


def _array(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ManifestError("has a manifest that cannot be read")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


def _descriptor(value: object) -> Descriptor:
    row = _object(value, "has a manifest that cannot be read")
    size: Optional[object] = row.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_BYTES:
        raise ManifestError("names a blob of a size that cannot be")
    try:
        digest = check_digest(str(row.get("digest")))
    except InvalidError as error:
        raise ManifestError(f"has a manifest with a wrong digest: {error}") from None
    place = row.get("platform")
    named = [place.get("os"), place.get("architecture"), place.get("variant")] if isinstance(place, dict) else []
    return Descriptor(str(row.get("mediaType") or ""), digest, size, "/".join(str(one) for one in named if one))
