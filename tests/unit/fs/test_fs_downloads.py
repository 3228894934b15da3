"""What ADD fetches and unpacks: whole, or an error that says what is wrong; servers and archives may say anything."""

from __future__ import annotations

import io
import stat
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cadenza.base.errors import InvalidError, RemoteError
from cadenza.fs import downloads
from cadenza.fs.copies import Manner, put_found
from cadenza.fs.store import Store
from cadenza.fs.tree import Node, directory, find, put, walk

ENVIRON = {"PATH": "/usr/bin:/bin"}


class Server(BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    asked: list[str | None] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers["Authorization"])
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.headers['Host'].rpartition(':')[2]}/whole")
            self.end_headers()
            return
        if self.path == "/nothing":
            self.wfile.write(b"what is this\r\n\r\n")
            return
        if self.path == "/chunks":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\nhalf")
            return
        self.send_response(200)
        self.send_header("Content-Length", "100" if self.path == "/cut" else "5")
        self.end_headers()
        self.wfile.write(b"bytes")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    found = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(str(tmp_path / "store"))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [("/cut", "5 of 100 bytes came"), ("/chunks", "to its end"), ("/nothing", "could not be fetched")],
)
def test_what_does_not_come_whole_is_an_error(server: str, store: Store, path: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=words):
        downloads.fetch(f"http://{server}{path}", store, ENVIRON)
    with pytest.raises(RemoteError, match=words):
        downloads.fetch_file(f"http://{server}{path}", str(tmp_path / "file"), ENVIRON)
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


def test_a_login_goes_to_its_server_alone_and_into_no_error(server: str, store: Store) -> None:
    name, (data, size) = downloads.fetch(f"http://me:secret%21@{server}/moved", store, ENVIRON)
    assert (name, size) == ("moved", 5) and Path(store.path(data)).read_bytes() == b"bytes"
    assert Server.asked == ["Basic bWU6c2VjcmV0IQ==", None]
    with pytest.raises(RemoteError) as caught:
        downloads.fetch(f"http://me:secret@{server}/cut", store, ENVIRON)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/%2e%2e", "/a%00b", "/" + "x" * 300])
def test_names_that_no_file_can_have_are_refused(server: str, store: Store, path: str) -> None:
    with pytest.raises(InvalidError, match="cannot be the name"):
        downloads.fetch(f"http://{server}{path}", store, ENVIRON)


def test_a_server_without_end_is_left(server: str, store: Store) -> None:
    with pytest.raises(RemoteError, match="within 0 s"):
        downloads.fetch(f"http://{server}/whole", store, ENVIRON, 0.0)


# --- archives ---


def archive(*entries: tuple[str, bytes, str | None], mode: str = "w:gz") -> bytes:
    """Of ``(name, type, link)``; files have their own names as content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as made:  # type: ignore[call-overload]
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = kind, link or "", 0o640, 7
            info.size = len(name) if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(name.encode()) if info.size else None)
    return out.getvalue()


def context(store: Store, name: str, content: bytes) -> Node:
    with store.draft() as draft:
        draft.write(content)
        data, size = draft.commit()
    return put(directory(), b"/" + name.encode(), Node(stat.S_IFREG | 0o644, size=size, data=data))


def added(store: Store, root: Node, source: str) -> list[str]:
    made = put_found(directory(), downloads.unpacked(root, [source], store), "/to/", Manner())
    return [path.decode() for path, node in walk(made) if not node.is_dir]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_are_unpacked_and_reach_nothing_outside(store: Store, mode: str) -> None:
    content = archive(
        ("a/b", tarfile.REGTYPE, None), ("../../etc/x", tarfile.REGTYPE, None), ("up", tarfile.SYMTYPE, "../../.."),
        ("up/y", tarfile.REGTYPE, None), ("c", tarfile.LNKTYPE, "a/b"), ("/z", tarfile.REGTYPE, None),
        mode=mode,
    )  # fmt: skip
    root = context(store, "an archive", content)
    assert added(store, root, "/an archive") == ["/to/a/b", "/to/c", "/to/etc/x", "/to/up", "/to/y", "/to/z"]


@pytest.mark.parametrize(
    "content",
    [
        archive(*[(f"file{number}", tarfile.REGTYPE, None) for number in range(999)])[:-2000],
        archive(*[(f"file{number}", tarfile.REGTYPE, None) for number in range(999)], mode="w")[:-40000],
        archive(("link", tarfile.LNKTYPE, "to nothing")),
        archive(("x" * 300, tarfile.REGTYPE, None)),
        archive(("link", tarfile.SYMTYPE, "x" * 5000)),
        archive(("file", tarfile.REGTYPE, None), ("file/below", tarfile.REGTYPE, None)),
    ],
    ids=["cut gzip", "cut", "link to nothing", "long name", "long link", "below a file"],
)
def test_a_broken_archive_is_named(store: Store, content: bytes) -> None:
    with pytest.raises(InvalidError, match=r"ADD broken\.tar: the archive cannot be"):
        added(store, context(store, "broken.tar", content), "/broken.tar")


def test_names_with_signs_of_patterns_are_themselves(store: Store) -> None:
    root = context(store, "a[1]*.txt", b"x")
    assert added(store, root, "/*") == ["/to/a[1]*.txt"]
    found = find(put_found(directory(), [(b"[b]", next(iter(root.children.values())))], "/", Manner()), b"/[b]")  # type: ignore[union-attr]
    assert found is not None


def test_times_that_cannot_be_are_brought_into_range(store: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, when in (("late", "1e300"), ("early", "-5")):
            info = tarfile.TarInfo(name)
            info.pax_headers = {"mtime": when}
            made.addfile(info)
    root = put_found(directory(), downloads.unpacked(context(store, "t", out.getvalue()), ["/t"], store), "/", Manner())
    late, early = find(root, b"/late"), find(root, b"/early")
    assert late is not None and early is not None and early.mtime == 0 < late.mtime < 2**63
