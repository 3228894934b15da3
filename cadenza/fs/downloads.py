"""Files by their address, and archives unpacked: what ADD does beyond COPY. Blocking."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Mapping, Sequence

from cadenza.base.errors import InvalidError, RemoteError
from cadenza.fs import copies, host
from cadenza.fs.edit import Edit
from cadenza.fs.recipe import shown
from cadenza.fs.store import Store
from cadenza.fs.tree import Node, directory

READ_LIMIT_S = 60.0
"""How long a server may say nothing."""
COPY_BYTES = 1 << 20


def _open(url: str, environ: Mapping[str, str]) -> IO[bytes]:
    """The content at an address; proxies and certificates are those of this machine. RemoteError with the address."""
    if not url.startswith(("http://", "https://")):
        raise InvalidError(
            f"{shown(url)} is no address that can be fetched: it begins with neither http:// nor https://"
        )
    proxies = {
        scheme: found
        for scheme in ("http", "https")
        if (found := environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY"))
    }
    name = urllib.parse.urlsplit(url).hostname or ""
    if name in ("localhost", "127.0.0.1") or name in (environ.get("no_proxy") or "").split(","):
        proxies = {}
    certificates = host.read(environ).certificates
    context = ssl.create_default_context(cafile=certificates or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )
    try:
        found = opener.open(url, timeout=READ_LIMIT_S)
    except urllib.error.HTTPError as error:
        raise RemoteError(
            f"{shown(url)} could not be fetched: the server answers {error.code} {error.reason}"
        ) from None
    except (OSError, ValueError) as error:
        raise RemoteError(f"{shown(url)} could not be fetched: {error}") from None
    return found  # type: ignore[no-any-return]


def fetch(url: str, store: Store, environ: Mapping[str, str]) -> tuple[str, tuple[bytes, int]]:
    """The name that a file has by its address, and its content in the store."""
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) or "index"
    with _open(url, environ) as source, store.draft() as draft:
        try:
            while part := source.read(COPY_BYTES):
                draft.write(part)
        except OSError as error:
            raise RemoteError(f"{shown(url)} could not be fetched to its end: {error}") from None
        return name, draft.commit()


def fetch_file(url: str, path: str, environ: Mapping[str, str]) -> None:
    """The content at an address into a file, whole or not at all."""
    scratch = f"{path}.{os.getpid()}.partial"
    try:
        with _open(url, environ) as source, open(scratch, "wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
        os.replace(scratch, path)
    except OSError as error:
        raise RemoteError(f"{shown(url)} could not be fetched: {error}") from None
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def unpacked(context: Node, sources: Sequence[str], store: Store) -> tuple[Node, list[str]]:
    """The context in which sources that are tar archives are directories of what is in them, and the sources then."""
    edit = Edit(context)
    names = []
    for number, pattern in enumerate(sources):
        for place, (name, node) in enumerate(copies.match(context, pattern)):
            own = f"/.add-{number}-{place}"
            content = _archive(node, store) if node.is_file and node.size else None
            if content is None:
                names.append(own + "/" + name.decode(errors="surrogateescape") if not node.is_dir else own)
            else:
                names.append(own)
            if node.is_dir or content is not None:
                top = content if content is not None else node
                edit.root = _graft(edit.root, own.encode(), top)
            else:
                edit.put(own.encode() + b"/" + name, node)
    return edit.root, names


def _graft(root: Node, path: bytes, node: Node) -> Node:
    from cadenza.fs.tree import put

    return put(root, path, node)


def _archive(node: Node, store: Store) -> Node | None:
    """What is in a tar archive; None: the file is none."""
    path = store.fetch(node.data, node.size)
    if not tarfile.is_tarfile(path):
        return None
    edit = Edit(directory())
    with tarfile.open(path) as archive:
        for one in archive:
            name = b"/" + os.path.normpath("/" + one.name).lstrip("/").encode(errors="surrogateescape")
            mode, mtime = one.mode & 0o7777, int(one.mtime) * 1_000_000_000
            if one.isdir():
                edit.make_directory(name)
                if name != b"/":
                    edit.set_attributes(name, Node(stat.S_IFDIR | mode, one.uid, one.gid, mtime, children={}))
            elif one.issym():
                target = one.linkname.encode(errors="surrogateescape")
                link = Node(stat.S_IFLNK | 0o777, one.uid, one.gid, mtime, len(target), target)
                edit.put(name, link, follow=False)
            elif one.isfile() or one.islnk():
                source = archive.extractfile(one)
                if source is None:
                    continue
                with source, store.draft() as draft:
                    while part := source.read(COPY_BYTES):
                        draft.write(part)
                    data, size = draft.commit()
                edit.put(name, Node(stat.S_IFREG | mode, one.uid, one.gid, mtime, size, data), follow=False)
    return edit.root
