"""A tree into a registry, as an image of one layer. docs/formats/oci.md."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import datetime, timezone
from typing import Callable, Iterable, Iterator, Mapping, Optional

from cadenza.base.errors import InvalidError
from cadenza.fs import layer_tar, layer_write, manifest, tree
from cadenza.fs.draft import room
from cadenza.fs.manifest import Descriptor, ImageConfig
from cadenza.fs.reference import parse
from cadenza.fs.registry import Registry, Waits
from cadenza.fs.store import Store
from cadenza.fs.tree import Node

COMPRESSIONS: dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {
    "gzip": layer_write.gzip,
    "zstd": layer_write.zstd,
}


async def push(
    ref: str,
    root: Node,
    config: ImageConfig,
    store: Store,
    credentials: Mapping[str, str],
    progress: Callable[[str], None],
    *,
    compression: str = "gzip",
    waits: Waits = Waits(),
    environ: Optional[Mapping[str, str]] = None,
) -> str:
    """Send a tree under a name; the manifest's digest. The same tree and configuration give the same digest.

    Blobs that the repository has are not sent again. InvalidError for a reference, credentials or names in the tree
    that cannot be; ImageBuildError for all that a registry may do; ResourceExhaustedError when the disk is full, which
    holds the compressed layer meanwhile.
    """
    name = parse(ref)
    if name.digest:
        raise InvalidError(f"{name}: an image is pushed under a tag, not under a digest")
    if compression not in COMPRESSIONS:
        raise InvalidError(f"Layers are compressed by {' or '.join(COMPRESSIONS)}, not by {compression!r}")
    async with Registry(name, credentials, push=True, waits=waits, environ=environ) as registry:
        await registry.has_blob("sha256:" + hashlib.sha256(b"").hexdigest(), str(name))  # before any work: may we?
        path = store.drafts.new()
        stop: list[bool] = []
        work = asyncio.get_running_loop().run_in_executor(None, _pack, root, store, path, compression, stop)
        try:
            layer, diff, newest = await asyncio.shield(work)
            created = datetime.fromtimestamp(min(newest // 10**9, 253402300799), timezone.utc)
            raw = manifest.make_config(config, [diff], created.strftime("%Y-%m-%dT%H:%M:%SZ"))
            about = Descriptor(manifest.OCI_CONFIG, f"sha256:{hashlib.sha256(raw).hexdigest()}", len(raw))
            what = f"{name}, layer {layer.short}"
            if await registry.has_blob(layer.digest, what):
                progress(f"layer {layer.short}: there already")
            else:
                progress(f"layer {layer.short}: {layer.size / 1e6:.1f} MB to send")
                await registry.put_blob(path, layer.digest, layer.size, what)
        finally:
            stop.append(True)
            await _ended(work)
            if os.path.exists(path):
                os.unlink(path)
        what = f"{name}, configuration {about.short}"
        if not await registry.has_blob(about.digest, what):
            await registry.put_bytes(raw, about.digest, what)
        body = manifest.make_manifest(about, [layer])
        await registry.put_manifest(name.tag, body, manifest.OCI_MANIFEST)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    progress(f"{name}: pushed, {digest}")
    return digest


async def _ended(work: asyncio.Future[tuple[Descriptor, str, int]]) -> None:
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            pass  # the cancellation that brought us here goes on when the thread has ended
    work.exception()


def _pack(root: Node, store: Store, path: str, compression: str, stop: list[bool]) -> tuple[Descriptor, str, int]:
    """Write the compressed layer to ``path``: what it is, the digest of its tar, the newest time in it."""
    inner, outer = hashlib.sha256(), hashlib.sha256()
    size = 0
    chunks = layer_tar.hashed(layer_write.tar(root, lambda node: store.fetch(node.data, node.size)), inner.update)
    with room(store.home), open(path, "xb", buffering=0) as file:
        for chunk in COMPRESSIONS[compression](chunks):
            if stop:
                break
            outer.update(chunk)
            file.write(chunk)
            size += len(chunk)
    newest = max(node.mtime for _, node in tree.walk(root))
    layer = Descriptor(f"{manifest.OCI_LAYER}+{compression}", f"sha256:{outer.hexdigest()}", size)
    return layer, f"sha256:{inner.hexdigest()}", max(0, newest)
