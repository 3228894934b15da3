"""Files by their address, and archives unpacked: what ADD does beyond COPY. Blocking."""

from __future__ import annotations

import base64
import http.client
import lzma
import os
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from typing import IO, Iterator, Mapping, Sequence

from cadenza.base.errors import InvalidError, RemoteError
from cadenza.fs import copies, host
from cadenza.fs.edit import Edit
from cadenza.fs.recipe import shown
from cadenza.fs.store import Store
from cadenza.fs.tree import NAME_BYTES, Node, directory, validate

READ_LIMIT_S = 60.0
"""How long a server may say nothing."""
WHOLE_LIMIT_S = 3600.0
"""And how long it may take for all of a file."""
COPY_BYTES = 1 << 20
LAST_NS = 2**63 - 1
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, KeyError, ValueError, OverflowError)
"""What Python's tarfile raises for archives that are none, are cut off, or say what cannot be."""


def _open(url: str, environ: Mapping[str, str]) -> http.client.HTTPResponse:
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
    parts = urllib.parse.urlsplit(url)
    name = parts.hostname or ""
    if name in ("localhost", "127.0.0.1") or name in (environ.get("no_proxy") or "").split(","):
        proxies = {}
    certificates = host.read(environ).certificates
    context = ssl.create_default_context(cafile=certificates or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )
    login, at, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=place)))
    if at:  # for this server alone, and not for one that it redirects to
        word = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=READ_LIMIT_S)
    except urllib.error.HTTPError as error:
        raise RemoteError(
            f"{shown(url)} could not be fetched: the server answers {error.code} {error.reason}"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RemoteError(f"{shown(url)} could not be fetched: {_why(error)}") from None
    return answer


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _pieces(source: http.client.HTTPResponse, url: str, limit_s: float) -> Iterator[bytes]:
    """All of an answer. RemoteError when it ends before its end, or does not end in time."""
    until = time.monotonic() + limit_s
    wanted, at = source.length, 0
    try:
        while part := source.read1(COPY_BYTES):
            at += len(part)
            yield part
            if time.monotonic() > until:
                raise RemoteError(f"{shown(url)} could not be fetched within {limit_s:g} s: {at} bytes came")
    except (OSError, http.client.HTTPException) as error:
        raise RemoteError(f"{shown(url)} could not be fetched to its end: {_why(error)}") from None
    if wanted is not None and at != wanted:
        raise RemoteError(f"{shown(url)} could not be fetched to its end: {at} of {wanted} bytes came")


def fetch(
    url: str, store: Store, environ: Mapping[str, str], limit_s: float = WHOLE_LIMIT_S
) -> tuple[str, tuple[bytes, int]]:
    """The name that a file has by its address, and its content in the store."""
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) or "index"
    if name in (".", "..") or "\0" in name or len(name.encode()) > NAME_BYTES:
        raise InvalidError(f"{shown(url)} ends with {name[:80]!r}, which cannot be the name of a file")
    with _open(url, environ) as source, store.draft() as draft:
        for part in _pieces(source, url, limit_s):
            draft.write(part)
        return name, draft.commit()


def fetch_file(url: str, path: str, environ: Mapping[str, str], limit_s: float = WHOLE_LIMIT_S) -> None:
    """The content at an address into a file, whole or not at all."""
    scratch = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.partial"
    try:
        with _open(url, environ) as source, open(scratch, "wb") as target:
            for part in _pieces(source, url, limit_s):
                target.write(part)
        os.replace(scratch, path)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def unpacked(context: Node, sources: Sequence[str], store: Store) -> list[tuple[bytes, Node]]:
    """What the sources match, for `cadenza.fs.copies.put_found`; of tar archives what is in them.

    InvalidError when one matches nothing, or is an archive that cannot be read.
    """
    found = []
    for name, node in copies.matched(context, sources):
        inside = _archive(name, node, store) if node.is_file and node.size else None
        found.append((name, node) if inside is None else (b"", inside))
    return found


def _archive(name: bytes, node: Node, store: Store) -> Node | None:
    """What is in a tar archive; None: the file is none."""
    path = store.fetch(node.data, node.size)
    if not tarfile.is_tarfile(path):
        return None
    edit = Edit(directory())
    shown_name = name.decode(errors="replace")
    try:
        with tarfile.open(path) as archive:
            for one, content in _entries(archive):
                _put(edit, one, content, store)
        validate(edit.root)
    except InvalidError as error:
        raise InvalidError(f"ADD {shown_name}: the archive cannot be used: {error}") from None
    except _Broken as error:
        raise InvalidError(f"ADD {shown_name}: the archive cannot be read: {error}") from None
    return edit.root


class _Broken(Exception):
    """An archive ends too early, or says what cannot be."""


def _entries(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each entry, of files with their content. `_Broken`, and never what only the disk may raise."""
    entries = iter(archive)
    while True:
        try:
            one = next(entries, None)
            if one is None:
                return
            content = archive.extractfile(one) if one.isfile() or one.islnk() else None
        except _BROKEN as error:
            raise _Broken(str(error) or type(error).__name__) from None
        yield one, content


def _put(edit: Edit, one: tarfile.TarInfo, content: IO[bytes] | None, store: Store) -> None:
    name = b"/" + os.path.normpath("/" + one.name).lstrip("/").encode(errors="surrogateescape")
    mode = one.mode & 0o7777
    mtime = min(max(int(min(one.mtime, LAST_NS // 10**9) * 10**9), 0), LAST_NS)
    if one.isdir():
        edit.make_directory(name)
        if name != b"/":
            edit.set_attributes(name, Node(stat.S_IFDIR | mode, one.uid, one.gid, mtime, children={}))
    elif one.issym():
        target = one.linkname.encode(errors="surrogateescape")
        edit.put(name, Node(stat.S_IFLNK | 0o777, one.uid, one.gid, mtime, len(target), target), follow=False)
    elif content is not None:
        with content, store.draft() as draft:
            while part := _read(content):
                draft.write(part)
            data, size = draft.commit()
        edit.put(name, Node(stat.S_IFREG | mode, one.uid, one.gid, mtime, size, data), follow=False)


def _read(content: IO[bytes]) -> bytes:
    try:
        return content.read(COPY_BYTES)
    except _BROKEN as error:
        raise _Broken(str(error) or type(error).__name__) from None
