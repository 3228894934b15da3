"""What every `Bucket` promises: memory, a directory, and an S3-compatible server over loopback."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator

import pytest

from cadenza.base.errors import DataLossError, InvalidError, NotFoundError, ServiceError
from cadenza.storage.bucket import Bucket, open_bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3, with the bucket ``content``."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    import urllib.request

    request = urllib.request.Request(f"{endpoint}/content", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    yield endpoint
    server.stop()


KINDS = ("memory", "directory", "s3")


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest, tmp_path: Any) -> Bucket:
    if request.param == "memory":
        return open_bucket("memory://")
    if request.param == "directory":
        return open_bucket(f"file://{tmp_path}/a/b")
    options = {
        "endpoint": request.getfixturevalue("s3"), "access_key_id": "a", "secret_access_key": "b",
        "region": "us-east-1",
    }  # fmt: skip
    return open_bucket(f"s3://content/{os.path.basename(tmp_path)}", options)


def test_what_is_put_is_got(bucket: Bucket, tmp_path: Any) -> None:
    for number, value in enumerate((b"", b"x", os.urandom(3_000_000))):
        bucket.put(f"objects/ab/{number}", value)
        assert bucket.get(f"objects/ab/{number}") == value
        assert bucket.size(f"objects/ab/{number}") == len(value)
    path = tmp_path / "file"
    path.write_bytes(b"of a file")
    bucket.put("objects/cd/1", str(path))
    assert bucket.get("objects/cd/1") == b"of a file"
    bucket.put("objects/cd/1", b"another")
    assert bucket.get("objects/cd/1") == b"another"


def test_a_value_goes_to_a_descriptor(bucket: Bucket, tmp_path: Any) -> None:
    value = os.urandom(5_000_000)
    bucket.put("k", value)
    fd = os.open(tmp_path / "to", os.O_RDWR | os.O_CREAT)
    try:
        assert bucket.get_to("k", fd) == len(value)
        assert os.pread(fd, 6_000_000, 0) == value
    finally:
        os.close(fd)


def test_ranges(bucket: Bucket) -> None:
    bucket.put("k", bytes(range(100)))
    assert bucket.get_range("k", 10, 5) == bytes(range(10, 15))
    assert bucket.get_range("k", 95, 50) == bytes(range(95, 100))
    with pytest.raises(NotFoundError):
        bucket.get_range("none", 0, 1)


def test_absent_keys(bucket: Bucket, tmp_path: Any) -> None:
    assert bucket.size("objects/none") is None
    with pytest.raises(NotFoundError, match="none"):
        bucket.get("objects/none")
    bucket.delete(["objects/none"])
    bucket.put("objects/one", b"1")
    bucket.put("objects/two", b"2")
    bucket.delete(["objects/none", "objects/one", "objects/nor"])
    assert [one.key for one in bucket.list("objects")] == ["objects/two"]


def test_a_longer_value_than_expected_is_refused(bucket: Bucket) -> None:
    bucket.put("k", bytes(1000))
    with pytest.raises(DataLossError, match="999"):
        bucket.get("k", 999)
    assert len(bucket.get("k", 1000)) == 1000


def test_listing_stays_below_its_prefix_and_pages(bucket: Bucket) -> None:
    names = [f"trees/ab/{number:04}" for number in range(1203 if bucket.url.startswith("memory") else 23)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: bucket.put(one, b"123"), names))
    bucket.put("trees2/ab/1", b"")
    found = sorted(bucket.list("trees"), key=lambda one: one.key)
    assert [one.key for one in found] == names
    assert {one.size for one in found} == {3}
    assert all(one.at > 1_600_000_000 for one in found)
    assert list(bucket.list("nothing")) == []


def test_only_one_of_many_writes_what_is_absent(bucket: Bucket) -> None:
    started = threading.Barrier(6)

    def write(number: int) -> bool:
        started.wait(10)
        return bucket.put_if_absent("images/im-1", b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(write, range(6)))
    assert won.count(True) == 1
    assert bucket.get("images/im-1") == b"%d" % won.index(True)
    assert not bucket.put_if_absent("images/im-1", b"late")


def test_many_threads(bucket: Bucket) -> None:
    values = {f"objects/{number % 7}/{number}": os.urandom(20_000) for number in range(60)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: bucket.put(*one), values.items()))
        assert list(pool.map(bucket.get, values)) == list(values.values())
    bucket.delete(values)
    assert list(bucket.list("objects")) == []


def test_wrong_credentials_are_said_in_one_sentence(s3: str) -> None:
    bucket = open_bucket(
        "s3://no-such-bucket/x", {"endpoint": s3, "access_key_id": "a", "secret_access_key": "hidden", "region": "r"}
    )
    with pytest.raises((ServiceError, NotFoundError)) as caught:
        bucket.put("k", b"1")
    assert "\n" not in str(caught.value) and "hidden" not in str(caught.value)
    assert "s3://no-such-bucket/x" in str(caught.value)


def test_reading_alone_over_http() -> None:
    bucket = open_bucket("http://127.0.0.1:1/x", {"bearer": "k"})
    for act in (lambda: bucket.put("a", b""), lambda: bucket.delete(["a"]), lambda: list(bucket.list("a"))):
        with pytest.raises(InvalidError, match="only read"):
            act()


@pytest.mark.parametrize("endpoint", ["not-a-url", "127.0.0.1:9000", "http://", "http://host:port"])
def test_an_endpoint_that_is_none_is_refused_before_it_is_asked(endpoint: str) -> None:
    """The library's thread would panic at the first request, past every ``except Exception``."""
    with pytest.raises(InvalidError, match="endpoint") as caught:
        open_bucket("s3://b/x", {"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "hidden"})
    assert "hidden" not in str(caught.value)


def test_a_connection_that_is_closed_is_said_in_words() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def close_all() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=close_all, daemon=True).start()
        options = {
            "endpoint": f"http://127.0.0.1:{server.getsockname()[1]}", "access_key_id": "a", "secret_access_key": "b",
            "region": "r", "max_retries": "0",
        }  # fmt: skip
        with pytest.raises(ServiceError, match="the store s3://b/x cannot be reached: "):
            open_bucket("s3://b/x", options).get("k")
        server.shutdown(socket.SHUT_RDWR)
