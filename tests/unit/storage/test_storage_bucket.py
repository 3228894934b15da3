"""Addresses and options of buckets, and what becomes of calls to places that are dead, silent or refuse."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from cadenza.base.errors import InvalidError, NotFoundError, ResourceExhaustedError, ServiceError
from cadenza.storage.bucket import Bucket, open_bucket, parse_options, plain_url

S3 = {"access_key_id": "visible", "secret_access_key": "hidden", "region": "r"}


def test_options() -> None:
    assert parse_options("") == {}
    assert parse_options(" Endpoint=http://127.0.0.1:9/x=y , region = r,") == {
        "endpoint": "http://127.0.0.1:9/x=y", "region": "r",
    }  # fmt: skip
    for text in ("endpoint", "=x", "a=b,secret"):
        with pytest.raises(InvalidError, match="name=value"):
            parse_options(text)


def test_addresses_are_shown_without_secrets() -> None:
    assert plain_url("https://user:word@host:8/p?sig=word#x") == "https://host:8/p"
    assert plain_url("s3://bucket/prefix") == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("", {}, "no address of a store"),
        ("ftp://host/x", {}, "no address of a store"),
        ("file://relative/x", {}, "file:///path"),
        ("s3://b/p", {"nonsense": "1"}, "nonsense"),
        ("s3://b/p", {"conditional_put": "hidden"}, "s3://b/p"),
        ("http://127.0.0.1/x", {"region": "r"}, "region"),
        ("s3://b/p", {"max_retries": "many"}, "max_retries"),
        ("s3://b/p", {"timeout": "never"}, "s3://b/p"),
        ("s3://b/p", {"root_certificate": "/no/such/file"}, "/no/such/file"),
        ("az://c/p", {}, "az://c/p"),
    ],
)
def test_what_is_no_bucket(url: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidError) as caught:
        open_bucket(url, options)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "hidden" not in str(caught.value)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidError, match="file/x"):
        open_bucket(f"file://{tmp_path}/file/x")


def test_the_library_is_loaded_when_a_bucket_is_opened() -> None:
    code = "import sys, cadenza.storage.bucket, cadenza.fs.store; assert not {'obstore', 'aiohttp'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def server(act: Callable[[socket.socket], None]) -> tuple[str, socket.socket]:
    """The address of something that accepts and then does as told."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=act, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", listening


def calls(bucket: Bucket) -> Iterator[Callable[[], Any]]:
    yield lambda: bucket.get("k")
    yield lambda: bucket.get_range("k", 0, 1)
    yield lambda: bucket.put("k", b"1")
    yield lambda: bucket.put_if_absent("k", b"1")
    yield lambda: bucket.size("k")
    yield lambda: bucket.delete(["k"])
    yield lambda: list(bucket.list("k"))


def each_fails(bucket: Bucket, limit_s: float, says: str) -> None:
    for call in calls(bucket):
        begun = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            call()
        assert time.monotonic() - begun < limit_s
        text = str(caught.value)
        assert says in text and bucket.url in text, text
        assert "\n" not in text and "hidden" not in text and "visible" not in text and len(text) < 300


def test_a_dead_store_is_an_error_within_seconds() -> None:
    gone = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{gone.getsockname()[1]}"
    gone.close()
    each_fails(open_bucket("s3://bucket/p", {**S3, "endpoint": endpoint}), 3, "cannot be reached: connection refused")


def test_a_silent_store_is_an_error_within_its_limit() -> None:
    endpoint, listening = server(lambda connection: time.sleep(10))
    bucket = open_bucket("s3://b/p", {**S3, "endpoint": endpoint, "read_timeout": "200ms", "timeout": "400ms"})
    each_fails(bucket, 4, "does not answer within the time limit")
    listening.close()


@pytest.mark.parametrize(
    ("status", "says"),
    [("500 Oops", "answers with status 500"), ("403 Forbidden", "refuses the credentials"), ("400 Bad", "status 400")],
)
def test_a_store_that_refuses(status: str, says: str) -> None:
    def act(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    endpoint, listening = server(act)
    bucket = open_bucket("s3://b/p", {**S3, "endpoint": endpoint})
    for call in (lambda: bucket.get("k"), lambda: bucket.put("k", b"1"), lambda: list(bucket.list("k"))):
        with pytest.raises(ServiceError, match=says):
            call()
    listening.close()


def test_an_answer_that_ends_early_is_an_error() -> None:
    def act(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nLast-Modified: Sun, 22 Nov 2026 07:00:00 GMT\r\n\r\nabc"
            )

    endpoint, listening = server(act)
    with pytest.raises(ServiceError):
        open_bucket(endpoint, {"max_retries": "0"}).get("k")
    listening.close()


def test_a_full_directory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bucket = open_bucket(f"file://{tmp_path}/b")
    monkeypatch.setattr(obstore, "put", full)
    with pytest.raises(ResourceExhaustedError, match="no room left in file://"):
        bucket.put("k", b"1")


def test_what_the_callers_disk_says_is_raised_as_it_is() -> None:
    bucket = open_bucket("memory://")
    bucket.put("k", b"12")
    with pytest.raises(OSError) as caught:
        bucket.get_to("k", -1)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(NotFoundError):
        bucket.get_to("none", -1)
