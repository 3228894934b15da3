"""An image from a registry as one tree, its layers read straight into the store. docs/formats/oci.md.

Several layers are on their way at once, each in a thread of its own that unpacks what the event loop receives; a layer
that some image had before is not fetched again.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import AsyncIterator, Callable, Mapping, Optional

from cadenza.base.errors import DataLossError, ImageBuildError, NotFoundError, ServiceError
from cadenza.fs import layer_delta, layer_tar, manifest, tree
from cadenza.fs.feed import Feed, FeedClosed
from cadenza.fs.layer_delta import LayerError, Limits
from cadenza.fs.manifest import Descriptor, ImageConfig, Index, Manifest, ManifestError
from cadenza.fs.oci_push import push
from cadenza.fs.reference import Reference, parse
from cadenza.fs.registry import Registry, Waits
from cadenza.fs.registry_auth import GarbledError
from cadenza.fs.store import Store
from cadenza.fs.tree import Node

__all__ = ["ImageConfig", "Pulled", "pull", "push"]

AT_ONCE = 3
"""Layers on their way side by side."""
READING = 1
"""Version of how a layer is read: layers kept by another one are read again."""
PROGRESS_S = 10.0
INDEXES = 3
"""How deep indexes may lie in one another."""


@dataclass(frozen=True)
class Pulled:
    """An image that is here: its tree, whose files are in the store, and what it says of its processes.

    The tree is not put into the store, and its objects are safe from a sweep only while the caller has a pin open.
    """

    tree: Node
    config: ImageConfig
    digest: str
    """Of the platform's manifest."""
    ref: str
    """Its whole name."""
    layers: tuple[str, ...] = field(default=())
    """Digests of the layers' blobs, the lowest first."""


async def pull(
    ref: str,
    store: Store,
    credentials: Mapping[str, str],
    progress: Callable[[str], None],
    *,
    platform: str = "",
    waits: Waits = Waits(),
    environ: Optional[Mapping[str, str]] = None,
) -> Pulled:
    """Fetch an image for ``platform`` (``os/architecture[/variant]``; empty: this machine's).

    InvalidError for a reference or credentials that cannot be; ImageBuildError for all that a registry may do;
    ResourceExhaustedError when the disk is full.
    """
    name = parse(ref)
    wanted = platform or manifest.host()
    async with Registry(name, credentials, waits=waits, environ=environ) as registry:
        try:
            found, digest = await _manifest(registry, name, wanted)
            what = f"{name}, configuration {found.config.short}"
            config = manifest.read_config(await _checked_blob(registry, found.config, what, manifest.CONFIG_BYTES))
            _agree(found, config, wanted)
        except ManifestError as error:
            raise ImageBuildError(f"{name}: the image {error}") from None
        size = sum(one.size for one in found.layers)
        progress(f"{name}: {len(found.layers)} layers, {size / 1e6:.1f} MB")
        with store.pin():
            deltas = await _Layers(registry, store, str(name), progress).all(found, config)
            try:
                whole = await asyncio.to_thread(layer_delta.flatten, deltas)
            except LayerError as error:
                raise ImageBuildError(f"{name}: a layer {error}") from None
    return Pulled(whole, config, digest, str(name), tuple(one.digest for one in found.layers))


async def _manifest(registry: Registry, name: Reference, wanted: str) -> tuple[Manifest, str]:
    """The manifest for a platform, and its digest."""
    target = name.target
    for _ in range(INDEXES):
        body, digest, media_type = await _checked_manifest(registry, name, target)
        found = manifest.read_manifest(body, media_type)
        if isinstance(found, Manifest):
            return found, digest
        assert isinstance(found, Index)
        target = manifest.choose(found, wanted).digest
    raise ManifestError("is an index of indexes of indexes")


async def _checked_manifest(registry: Registry, name: Reference, target: str) -> tuple[bytes, str, str]:
    kind = target if ":" in target else "sha256:"
    for _ in range(2):
        body, media_type = await registry.manifest(target, manifest.ACCEPT, manifest.MANIFEST_BYTES)
        digest = _digest(body, kind)
        if ":" not in target or digest == target:
            return body, digest, media_type
    raise GarbledError(f"{name}: the registry gives another manifest than the one asked for: {target[:19]}")


async def _checked_blob(registry: Registry, one: Descriptor, what: str, limit_bytes: int) -> bytes:
    if one.size > limit_bytes:
        raise ManifestError(f"has a configuration of {one.size} bytes, where {limit_bytes} are allowed")
    for again in (True, False):
        try:
            body = await registry.small_blob(one.digest, one.size, what)
            if _digest(body, one.digest) == one.digest:
                return body
        except GarbledError:
            if not again:
                raise
    raise GarbledError(f"{what}: its bytes are not those of its digest, twice: the registry is damaged")


def _digest(body: bytes, kind: str) -> str:
    hasher = layer_tar.hasher(kind)
    hasher.update(body)
    return f"{hasher.name}:{hasher.hexdigest()}"


def _agree(found: Manifest, config: ImageConfig, wanted: str) -> None:
    if config.platform and not manifest.fits(config.platform, wanted) and not manifest.fits(wanted, config.platform):
        raise ManifestError(f"is not there for {wanted}; there is: {config.platform}")
    if len(config.diff_ids) != len(found.layers):
        raise ManifestError(f"has {len(found.layers)} layers, and a configuration for {len(config.diff_ids)}")


class _Layers:
    """The layers of one pull."""

    def __init__(self, registry: Registry, store: Store, ref: str, progress: Callable[[str], None]) -> None:
        self._registry = registry
        self._store = store
        self._ref = ref
        self._progress = progress
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._threads = ThreadPoolExecutor(AT_ONCE, "cadenza-layer")
        self._count = 0

    async def all(self, found: Manifest, config: ImageConfig) -> list[Node]:
        """Their delta trees, the lowest first. The first that fails ends the others."""
        self._count = len(found.layers)
        loop = asyncio.get_running_loop()
        tasks: dict[str, asyncio.Task[Node]] = {}
        for number, (one, diff) in enumerate(zip(found.layers, config.diff_ids), 1):
            if one.digest not in tasks:
                tasks[one.digest] = loop.create_task(self._one(number, one, diff))
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            self._threads.shutdown(wait=False)
        return [tasks[one.digest].result() for one in found.layers]

    async def _one(self, number: int, layer: Descriptor, diff: str) -> Node:
        label = f"layer {number} of {self._count} ({layer.short})"
        what = f"{self._ref}, layer {layer.short}"
        async with _alone((self._store.home, layer.digest)), self._gate:
            kept = await asyncio.to_thread(recall, self._store, (layer.digest, diff))
            if kept is not None:
                self._progress(f"{label}: here already")
                return kept
            began = time.monotonic()
            for again in (True, False):
                try:
                    delta, actual = await self._fetch(layer, diff, label, what)
                    break
                except GarbledError:
                    if not again:
                        raise
                    self._progress(f"{label}: damaged on its way, once more from the start")
            await asyncio.to_thread(remember, self._store, (layer.digest, actual), delta)
            seconds = time.monotonic() - began
            self._progress(f"{label}: {layer.size / 1e6:.1f} MB in {seconds:.1f} s")
            return delta

    async def _fetch(self, layer: Descriptor, diff: str, label: str, what: str) -> tuple[Node, str]:
        """One download, unpacked as it comes: the delta, and the digest of its tar."""
        feed = Feed()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, _unpack, feed, layer, diff, self._store, what
        )  # fmt: skip
        try:
            async with aclosing(self._registry.blob(layer.digest, layer.size, what)) as chunks:
                at, told = 0, time.monotonic()
                async for chunk in chunks:
                    await feed.put(chunk)
                    at += len(chunk)
                    if time.monotonic() - told >= PROGRESS_S:
                        told = time.monotonic()
                        self._progress(f"{label}: {at / 1e6:.0f} of {layer.size / 1e6:.0f} MB")
            feed.end()
        except FeedClosed:
            pass  # the thread says why
        finally:
            feed.fail()
            # Even when this is cancelled: no thread writes on after its layer was given up.
            await _ended(work)
        return work.result()


class _Turn:
    """Who fetches a layer, and who waits to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


_turns: dict[tuple[str, str], _Turn] = {}


@asynccontextmanager
async def _alone(layer: tuple[str, str]) -> AsyncIterator[None]:
    """One after the other with others that want the same layer for the same store: the second finds it there."""
    turn = _turns.setdefault(layer, _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            del _turns[layer]


async def _ended(work: asyncio.Future[tuple[Node, str]]) -> None:
    """Wait for a thread's end, through cancellation; its outcome is left in it."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if work.exception() is not None and cancelled:
        raise asyncio.CancelledError
    if cancelled:
        raise asyncio.CancelledError


def _unpack(feed: Feed, layer: Descriptor, diff: str, store: Store, what: str) -> tuple[Node, str]:
    """In a thread: read a layer's blob. What is wrong with it is said only when it is the blob that was asked for."""
    try:
        blob, inner = layer_tar.hasher(layer.digest), layer_tar.hasher(diff)
        source = layer_tar.hashed(feed, blob.update)
        delta, problem = None, ""
        try:
            unpacked = layer_tar.hashed(layer_tar.unpack(source), inner.update)
            delta = layer_delta.read_layer(unpacked, store.draft, Limits.of(layer.size))
        except (LayerError, layer_tar.TarError) as error:
            problem = f"is no good tar: {error}" if isinstance(error, layer_tar.TarError) else str(error)
        for _ in source:
            pass
        if f"{blob.name}:{blob.hexdigest()}" != layer.digest:
            raise GarbledError(
                f"{what}: its bytes are not those of its digest: the registry or the way to it is damaged"
            )
        if delta is None:
            raise ImageBuildError(
                f"{what}: the layer cannot be used, it {problem}; whoever made the image has to repair it"
            )
        actual = f"{inner.name}:{inner.hexdigest()}"
        if actual != diff:
            raise ImageBuildError(
                f"{what}: its content is not what the image's configuration says: push the image again"
            )
        return delta, actual
    finally:
        feed.close()


# Layers that are here already.


def recall(store: Store, digests: tuple[str, ...]) -> Optional[Node]:
    """The delta tree of a layer that was read before, by the digest of its blob or its tar; None: not all is here."""
    for one in digests:
        raw = store.get_local_record("layers", record_name(one))
        if raw is None:
            continue
        try:
            found = json.loads(raw)
            if found["reading"] != READING:
                continue
            delta = store.tree(bytes.fromhex(found["tree"]))
        except (ValueError, KeyError, TypeError, NotFoundError, DataLossError, ServiceError):
            continue
        if all(_here(store, node) for node in tree.files(delta)):
            return delta
    return None


def _here(store: Store, node: Node) -> bool:
    return store.has(node.data) and (not node.list_digest or store.local_list(node.list_digest) is not None)


def remember(store: Store, digests: tuple[str, ...], delta: Node) -> None:
    """Keep a layer's delta tree under the digests of its blob and its tar."""
    record = json.dumps({"reading": READING, "tree": store.put_tree(delta).hex()}).encode()
    for one in dict.fromkeys(digests):
        store.put_local_record("layers", record_name(one), record)


def record_name(digest: str) -> str:
    """The name of a layer's record, by the digest of its blob or of its tar."""
    return digest.replace(":", "-")[:120]
