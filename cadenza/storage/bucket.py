"""Keys to bytes in a place that several machines reach: S3, GCS, Azure, a directory, memory; to read, HTTP. Blocking.

One class over obstore for all of them; ``memory://`` is the twin for tests. Every call ends within a bounded time, by
an error if need be, whose one sentence names the place without credentials.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Iterable, Iterator, Mapping, NoReturn, Optional
from urllib.parse import urlsplit, urlunsplit

from cadenza.base.errors import DataLossError, InvalidError, NotFoundError, ResourceExhaustedError, ServiceError

CONNECT_S = 3
STALL_S = 10
"""An answer whose bytes stop coming for so long is given up."""
REQUEST_S = 60
"""What one request may take in all: 8 MiB at 140 KB/s."""
MAX_RETRIES = 2
RETRY_S = 5
"""No request is tried again later than this after its start."""
PART_BYTES = 1 << 20
WHOLE_BYTES = 16 << 20
"""Values up to this size come in one part."""
DELETE_KEYS = 500
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file", "memory", "http", "https")
_CLIENT_OPTIONS = {
    "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only", "pool_idle_timeout",
    "pool_max_idle_per_host", "proxy_url", "proxy_ca_certificate", "proxy_excludes", "read_timeout",
    "root_certificate", "timeout", "user_agent",
}  # fmt: skip
_FLAGS = {"allow_http", "allow_invalid_certificates", "http1_only", "http2_only"}


@dataclass(frozen=True)
class Stored:
    """A key, its size in bytes and when it was written, in seconds since the epoch."""

    key: str
    size: int
    at: float


def parse_options(text: str) -> dict[str, str]:
    """``name=value,name=value`` as a mapping. InvalidError names a part that is none."""
    found = {}
    for one in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise InvalidError(f"store_options: {name[:40]!r} is no option: write name=value, with commas between them")
        found[name.strip().lower()] = value.strip()
    return found


def plain_url(url: str) -> str:
    """The address without user, password and query: for people to read."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def is_web_address(text: str) -> bool:
    """Whether it is ``http://host:port`` or ``https://host``, with whatever path."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def open_bucket(url: str, options: Optional[Mapping[str, str]] = None) -> Bucket:
    """The bucket at ``url``; what ``options`` do not say comes from the environment, as the clouds' own tools have it.

    Nothing is asked of it yet. InvalidError when the address or an option is none. ``max_retries`` and the client's
    options (``timeout=30s``, ``root_certificate=/path`` ...) count for every kind; ``bearer`` for ``http``.
    """
    given = dict(options or {})
    where = plain_url(url)
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise InvalidError(f"{where!r} is no address of a store: it begins with one of {', '.join(SCHEMES)}")
    return Bucket(_open(url, scheme, where, given), where, readable_only=scheme in ("http", "https"))


def _open(url: str, scheme: str, where: str, given: dict[str, str]) -> Any:
    from obstore import exceptions, store  # 40 ms: a server without a store never pays them

    client: dict[str, Any] = {
        "connect_timeout": f"{CONNECT_S}s",
        "read_timeout": f"{STALL_S}s",
        "timeout": f"{REQUEST_S}s",
    }
    for name in sorted(_CLIENT_OPTIONS & set(given)):
        value = given.pop(name)
        client[name] = value.lower() in ("1", "true", "yes", "on") if name in _FLAGS else value
    if "root_certificate" in client:
        try:
            with open(client["root_certificate"], "rb") as file:
                client["root_certificate"] = file.read()
        except OSError as error:
            raise InvalidError(f"{client['root_certificate']}: {error.strerror}: the certificate of {where}") from None
    endpoints = [value for name, value in given.items() if name.endswith("endpoint")]
    for one in endpoints:
        if not is_web_address(one):  # the library ends its thread at the first request
            raise InvalidError(f"{where}: the endpoint {plain_url(one)!r} is no address: write http://host:port")
    if scheme == "http" or any(one.startswith("http://") for one in endpoints):
        client["allow_http"] = True
    try:
        retries = int(given.pop("max_retries", MAX_RETRIES))
    except ValueError:
        raise InvalidError("store_options: max_retries is a whole number") from None
    retry: Any = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2,
        },
    }  # fmt: skip
    try:
        if scheme == "memory":
            return store.MemoryStore()
        if scheme == "file":
            path = urlsplit(url).path
            if not path.startswith("/") or urlsplit(url).netloc:
                raise InvalidError(f"{where!r} is no directory: write file:///path")
            os.makedirs(path, mode=0o755, exist_ok=True)
            return store.LocalStore(path)
        if scheme in ("http", "https"):
            if bearer := given.pop("bearer", ""):
                client["default_headers"] = {"authorization": f"Bearer {bearer}"}
            if given:
                raise InvalidError(f"{where}: no option {min(given)!r} for an address of this kind")
            return store.HTTPStore(url, client_options=client, retry_config=retry)  # type: ignore[arg-type]
        made: Any = store.from_url  # its overloads know no mapping of names that are read at run time
        return made(url, client_options=client, retry_config=retry, **given)
    except OSError as error:
        raise InvalidError(f"{where}: {error.strerror or error}") from None
    except exceptions.BaseError as error:
        first = str(error).partition("\n")[0]
        for value in given.values():
            first = first.replace(value, "...") if len(value) > 3 else first
        raise InvalidError(f"{where}: {first[:200]}") from None


class Bucket:
    """Bytes by key. Keys are paths of plain parts; a value is whole or not there.

    Every method raises ServiceError when the place cannot be reached, does not answer in time or refuses.
    """

    def __init__(self, store: Any, url: str, *, readable_only: bool = False) -> None:
        self.url = url
        self._store = store
        self.read_only = readable_only

    def get(self, key: str, limit_bytes: int = 1 << 40) -> bytes:
        """The value. NotFoundError when there is none; DataLossError when it is longer than the limit."""
        parts: list[bytes] = []
        for part in self._parts(key, limit_bytes):
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def get_to(self, key: str, fd: int, limit_bytes: int = 1 << 40) -> int:
        """The same, written to a file descriptor part by part; how many bytes. What the caller's disk says is raised
        as it is."""
        done = 0
        for part in self._parts(key, limit_bytes):
            view = memoryview(part)
            while view:
                wrote = os.pwrite(fd, view, done)
                view, done = view[wrote:], done + wrote
        return done

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; fewer where the value ends. NotFoundError as for `get`."""
        import obstore

        try:
            return bytes(obstore.get_range(self._store, key, start=start, length=length))
        except Exception as error:
            self._fail(error, key)

    def put(self, key: str, value: bytes | str) -> None:
        """Write a value: bytes, or the content of the file of that path. An older one is replaced."""
        self._put(key, value, "overwrite")

    def put_if_absent(self, key: str, value: bytes) -> bool:
        """Write a value where there is none; whether it was written. Atomic across machines."""
        from obstore import exceptions

        try:
            self._put(key, value, "create")
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        return True

    def size(self, key: str) -> Optional[int]:
        """The value's size in bytes; None: there is none."""
        found = self.stat(key)
        return None if found is None else found.size

    def stat(self, key: str) -> Optional[Stored]:
        """What is known of a value without reading it; None: there is none."""
        import obstore

        try:
            found = obstore.head(self._store, key)
            return Stored(key, int(found["size"]), found["last_modified"].timestamp())
        except FileNotFoundError:
            return None
        except Exception as error:
            self._fail(error, key)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove values, where they are there."""
        import obstore

        self._writable()
        waiting = list(keys)
        for at in range(0, len(waiting), DELETE_KEYS):
            batch = waiting[at : at + DELETE_KEYS]
            try:
                obstore.delete(self._store, batch)
            except FileNotFoundError:
                for key in batch:  # a directory says which are missing, and stops there
                    try:
                        obstore.delete(self._store, key)
                    except FileNotFoundError:
                        continue
                    except Exception as error:
                        self._fail(error, key)
            except Exception as error:
                self._fail(error, batch[0])

    def list(self, prefix: str) -> Iterator[Stored]:
        """All values whose keys are below ``prefix`` (a path), page by page."""
        import obstore

        self._writable()
        try:
            for page in obstore.list(self._store, prefix, chunk_size=1000):
                for one in page:
                    modified: datetime = one["last_modified"]
                    yield Stored(one["path"], int(one["size"]), modified.timestamp())
        except FileNotFoundError:
            return
        except Exception as error:
            self._fail(error, prefix)

    def _parts(self, key: str, limit_bytes: int) -> Iterator[bytes]:
        import obstore

        done = 0
        try:
            answer = obstore.get(self._store, key)
            if answer.meta["size"] > limit_bytes:
                raise DataLossError(
                    f"{self.url}: {key} has {answer.meta['size']} bytes, at most {limit_bytes} expected"
                )
            if answer.meta["size"] <= WHOLE_BYTES:
                yield bytes(answer.bytes())  # its length is what the answer's head says, or it is an error
                return
            stream = answer.stream(min_chunk_size=PART_BYTES)
            while True:
                try:
                    part = bytes(next(stream))
                except StopIteration:
                    return
                done += len(part)
                if done > limit_bytes:
                    raise DataLossError(f"{self.url}: {key} has more than the {limit_bytes} bytes expected")
                yield part
        except DataLossError:
            raise
        except Exception as error:
            self._fail(error, key)

    def _put(self, key: str, value: bytes | str, mode: Any) -> None:
        import obstore
        from obstore import exceptions

        self._writable()
        try:
            if isinstance(value, str):
                with open(value, "rb") as file:
                    value = file.read()
            obstore.put(self._store, key, value, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except Exception as error:
            self._fail(error, key)

    def _writable(self) -> None:
        if self.read_only:
            raise InvalidError(f"{self.url}: content is only read from an http address")

    def _fail(self, error: Exception, key: str) -> NoReturn:
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{self.url} has no {key}") from None
        text = str(error)
        if "StorageFull" in text or "No space left" in text or getattr(error, "errno", 0) == 28:
            raise ResourceExhaustedError(f"no room left in {self.url}") from None
        raise ServiceError(f"the store {self.url} {_reason(error, text)}") from None


def _reason(error: Exception, text: str) -> str:
    from obstore import exceptions

    status = re.search(r"status(?: code)?:? \"?(\d{3})", text)
    refused = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if refused or (status and status[1] in ("401", "403")):
        return "refuses the credentials: set store_options, or the environment's"
    if status:
        return f"answers with status {status[1]}"
    if "Timeout" in text or "TimedOut" in text or "timed out" in text:
        return "does not answer within the time limit"
    if "dns error" in text:
        return "has a name that nobody knows"
    if message := re.search(r'message: "([^"]{1,80})"', text):
        return f"cannot be reached: {message[1].lower()}"
    if "error sending request" in text:
        return "cannot be reached: the connection was closed before an answer came"
    first = re.sub(r"\b[a-z0-9]+://\S+", "...", text.partition("\n")[0])
    return f"fails: {first[:160]}"
