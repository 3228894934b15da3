"""A client of one repository in a registry: manifests and blobs, over aiohttp, with time limits on everything.

Source: the OCI distribution specification 1.1. What arrives is checked for its size here and for its digest by
`cadenza.fs.oci`. Credentials go to the registry and to the token server it names, and to no host that either redirects
to.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, AsyncGenerator, Awaitable, Mapping, Optional

import aiohttp
from yarl import URL

from cadenza.base.errors import InvalidError
from cadenza.fs.credentials import AwsKeys, Login, choose, docker_login, ecr_login, ecr_request
from cadenza.fs.proxies import authorities, proxy
from cadenza.fs.reference import Reference, is_loopback
from cadenza.fs.registry_auth import (
    Challenge, GarbledError, RegistryError, Token, challenges, read_token, refusal, registry_message, retry_after,
)  # fmt: skip

REDIRECTS = 5
AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers after which the same request may work."""
PROBE_S = 5.0
"""A registry on this machine that has not answered by HTTPS in this time is asked by HTTP."""
ERROR_BYTES = 64 << 10
TOKEN_BYTES = 1 << 20
READ_BYTES = 1 << 20
PART_BYTES = 16 << 20
"""Blobs up to this size are sent in one request, larger ones in parts of it."""
PROGRESS_BYTES = 1 << 20
"""A broken download that got so much further begins to count its tries anew."""


@dataclass(frozen=True)
class Waits:
    """How long a registry is waited for. A blob has ``first_s`` and a second for every ``slowest_bytes`` of it."""

    connect_s: float = 20.0
    stall_s: float = 60.0
    """Without a byte."""
    whole_s: float = 120.0
    """A manifest or a token, from request to last byte."""
    first_s: float = 300.0
    slowest_bytes: int = 32 << 10
    tries: int = 6
    backoff_s: float = 0.5
    longest_s: float = 60.0
    """A registry that asks for a longer wait than this is not waited for."""


class Registry:
    """One repository. Used as an async context manager. ``what`` in its methods names the thing in errors."""

    def __init__(
        self,
        ref: Reference,
        credentials: Mapping[str, str],
        *,
        push: bool = False,
        waits: Waits = Waits(),
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._ref = ref
        self._push = push
        self._waits = waits
        self._environ = os.environ if environ is None else environ
        self._keys = choose(credentials, ref.host)
        self._login: Optional[Login] = self._keys if isinstance(self._keys, Login) else None
        if self._keys is None:
            self._login = docker_login(ref.host, self._environ)
        self._scheme = ""
        self._token: Optional[Token] = None
        self._challenge: Optional[Challenge] = None
        self._authorizing = asyncio.Lock()
        self._session: Optional[aiohttp.ClientSession] = None
        self._actions = "pull,push" if push else "pull"

    async def __aenter__(self) -> Registry:
        from cadenza import __version__

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, ssl=await asyncio.to_thread(authorities, self._environ)),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._waits.connect_s, sock_connect=self._waits.connect_s,
                sock_read=self._waits.stall_s,
            ),
            headers={"User-Agent": f"cadenza/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, read_bufsize=READ_BYTES,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def logged_in(self) -> bool:
        """Whether there are credentials."""
        return self._keys is not None or self._login is not None

    # Pulling.

    async def manifest(self, target: str, accept: str, limit_bytes: int) -> tuple[bytes, str]:
        """The manifest of a tag or digest as it is, and the media type that the registry gives it."""
        url = await self._url(f"manifests/{target}")
        body, headers = await self._whole("GET", url, str(self._ref), limit_bytes, headers={"Accept": accept})
        return body, headers.get("Content-Type", "").partition(";")[0].strip()

    async def small_blob(self, digest: str, size: int, what: str) -> bytes:
        """A whole blob of at most a few MiB."""
        parts = []
        async with aclosing(self.blob(digest, size, what)) as chunks:
            async for chunk in chunks:
                parts.append(chunk)
        return b"".join(parts)

    async def blob(self, digest: str, size: int, what: str) -> AsyncGenerator[bytes, None]:
        """A blob's bytes, ``size`` of them. A download that breaks is taken up where it broke.

        GarbledError when there are more or fewer; RegistryError when the registry does not give it.
        """
        url = await self._url(f"blobs/{digest}")
        waits = self._waits
        deadline = time.monotonic() + waits.first_s + size / waits.slowest_bytes
        at = failures = 0
        while at < size:
            mark = at
            headers = {"Range": f"bytes={at}-"} if at else {}
            why = "the connection ended early"
            try:
                async with await self._open("GET", url, what, headers=headers) as response:
                    skip = _to_skip(response, at, size, what)
                    async for chunk in response.content.iter_any():
                        if skip:
                            chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                        at += len(chunk)
                        if at > size:
                            raise GarbledError(f"{what}: it is longer than the {size} bytes that the manifest says")
                        if chunk:
                            yield chunk
                        if time.monotonic() > deadline:
                            raise RegistryError(f"{what}: the registry is too slow ({at} of {size} bytes came in time)")
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                why = _why(error, waits)
            if at >= size:
                return
            failures = 1 if at - mark >= PROGRESS_BYTES else failures + 1
            if failures >= waits.tries:
                raise GarbledError(f"{what}: cut off after {at} of {size} bytes, {failures} times: {why}")
            await asyncio.sleep(_backoff(waits, failures))

    # Pushing.

    async def has_blob(self, digest: str, what: str) -> bool:
        """Whether the repository has a blob by now."""
        url = await self._url(f"blobs/{digest}")
        async with await self._open("HEAD", url, what, accepted=(404,)) as response:
            return response.status < 300

    async def put_blob(self, path: str, digest: str, size: int, what: str) -> None:
        """Send a file as a blob: whole, or in parts that are taken up again where one broke."""
        for again in (True, False):
            at, failures = 0, 0
            url = await self._upload(what)
            file = await asyncio.to_thread(open, path, "rb")
            with file:
                while size - at > PART_BYTES or (at and at < size):
                    part = await asyncio.to_thread(os.pread, file.fileno(), PART_BYTES, at)
                    headers = {
                        "Content-Type": "application/octet-stream",
                        "Content-Range": f"{at}-{at + len(part) - 1}",
                    }
                    try:
                        async with await self._open("PATCH", url, what, headers=headers, body=part, tries=1) as answer:
                            url, at, failures = self._location(answer, what), at + len(part), 0
                    except RegistryError as error:
                        failures += 1
                        if failures >= self._waits.tries or error.status in (400, 401, 403, 404, 413):
                            raise
                        await asyncio.sleep(_backoff(self._waits, failures))
                        url, at = await self._where(url, what)
                last = b"" if at else await asyncio.to_thread(os.pread, file.fileno(), size + 1, 0)
            end = url.update_query({"digest": digest})
            try:
                headers = {"Content-Type": "application/octet-stream"}
                async with await self._open("PUT", end, what, headers=headers, body=last):
                    return
            except RegistryError as error:
                # The upload may have been lost, or done by a request whose answer was lost.
                if await self.has_blob(digest, what):
                    return
                if not again or error.status in (401, 403):
                    raise

    async def put_bytes(self, body: bytes, digest: str, what: str) -> None:
        """Send a small blob."""
        end = (await self._upload(what)).update_query({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        async with await self._open("PUT", end, what, headers=headers, body=body):
            return

    async def put_manifest(self, target: str, body: bytes, media_type: str) -> None:
        """Send a manifest under a tag or its digest."""
        url = await self._url(f"manifests/{target}")
        async with await self._open("PUT", url, str(self._ref), headers={"Content-Type": media_type}, body=body):
            return

    async def _upload(self, what: str) -> URL:
        url = await self._url("blobs/uploads/")
        async with await self._open("POST", url, what, body=b"") as answer:
            return self._location(answer, what)

    async def _where(self, url: URL, what: str) -> tuple[URL, int]:
        """Where an upload goes on, and how many bytes of it the registry has."""
        async with await self._open("GET", url, what) as answer:
            end = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
            there = int(end[1]) + 1 if end and int(end[1]) else 0
            return (self._location(answer, what) if "Location" in answer.headers else url), there

    def _location(self, answer: aiohttp.ClientResponse, what: str) -> URL:
        try:
            return answer.url.join(URL(answer.headers["Location"], encoded=True))
        except (KeyError, ValueError):
            raise RegistryError(f"{what}: the registry does not say where to send it", answer.status) from None

    # Requests.

    async def _url(self, rest: str) -> URL:
        if not self._scheme:
            self._scheme = await self._find_scheme() if self._ref.loopback else "https"
        return URL(f"{self._scheme}://{self._ref.host}/v2/{self._ref.repository}/{rest}", encoded=True)

    async def _find_scheme(self) -> str:
        """HTTPS where a registry on this machine speaks it, else HTTP."""
        assert self._session is not None
        try:
            limit = aiohttp.ClientTimeout(total=PROBE_S)
            async with self._session.get(f"https://{self._ref.host}/v2/", allow_redirects=False, timeout=limit):
                return "https"
        except aiohttp.ClientConnectorCertificateError:
            return "https"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return "http"

    async def _whole(
        self, method: str, url: URL, what: str, limit_bytes: int, headers: Mapping[str, str]
    ) -> tuple[bytes, Mapping[str, str]]:
        """A small answer, whole."""
        why = ""
        for failures in range(1, self._waits.tries + 1):
            try:
                answer = self._open(method, url, what, headers=headers)
                response, body = await _read_all(answer, limit_bytes, self._waits.whole_s)
                if len(body) > limit_bytes:
                    raise RegistryError(f"{what}: the registry's answer is longer than {limit_bytes} bytes")
                return body, response.headers
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                why = _why(error, self._waits)
            if failures < self._waits.tries:
                await asyncio.sleep(_backoff(self._waits, failures))
        raise RegistryError(f"{what}: {self._ref.host} did not answer: {why}")

    async def _open(
        self,
        method: str,
        url: URL,
        what: str,
        *,
        headers: Optional[Mapping[str, str]] = None,
        body: Optional[bytes] = None,
        accepted: tuple[int, ...] = (),
        tries: int = 0,
    ) -> aiohttp.ClientResponse:
        """The answer to a request, its body unread; logs in, follows redirects, waits and tries again.

        RegistryError for what is neither below 300 nor ``accepted``.
        """
        waits = self._waits
        for failures in range(1, (tries or waits.tries) + 1):
            wait_s = _backoff(waits, failures)
            try:
                response = await self._once(method, url, what, dict(headers or {}), body)
            except aiohttp.ClientConnectorCertificateError as error:
                raise RegistryError(
                    f"{what}: the certificate of {error.host} is not trusted here: name its authority in SSL_CERT_FILE"
                ) from None
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                problem = RegistryError(f"{what}: {self._ref.host} did not answer: {_why(error, waits)}")
            else:
                if response.status < 300 or response.status in accepted:
                    return response
                asked_s = retry_after(response.headers.get("Retry-After"), time.time())
                said = ""
                if response.url.origin() == url.origin() and method != "HEAD":
                    try:
                        said = registry_message(await _read(response, ERROR_BYTES))
                    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
                        pass  # the status says enough
                response.close()
                problem = refusal(response.status, what, self.logged_in, self._push, said, asked_s)
                if response.status not in AGAIN or asked_s > waits.longest_s:
                    raise problem
                wait_s = max(wait_s, asked_s)
            if failures < (tries or waits.tries):
                await asyncio.sleep(wait_s)
        raise problem

    async def _once(
        self, method: str, url: URL, what: str, headers: dict[str, str], body: Optional[bytes]
    ) -> aiohttp.ClientResponse:
        """One request with what it takes to be let in; after a refusal, with a fresh token once."""
        token = self._token
        if token is not None and token.until < time.monotonic() and self._challenge is not None:
            token = await self._authorize(self._challenge, token, what)
        response = await self._follow(method, url, what, headers, body, token)
        if response.status != 401 or response.url.origin() != url.origin():
            return response
        asked = challenges(response.headers.getall("WWW-Authenticate", []))
        usable = [one for one in asked if one.scheme == "bearer" and one.parameters.get("realm")] or [
            one for one in asked if one.scheme == "basic"
        ]
        if not usable or (usable[0].scheme == "basic" and not self.logged_in):
            return response
        fresh = await self._authorize(usable[0], token, what)
        if fresh is None:
            return response
        response.close()
        return await self._follow(method, url, what, headers, body, fresh)

    async def _follow(
        self, method: str, url: URL, what: str, headers: dict[str, str], body: Optional[bytes], token: Optional[Token]
    ) -> aiohttp.ClientResponse:
        at = url
        for _ in range(REDIRECTS + 1):
            sent = dict(headers)
            if token is not None and at.origin() == URL(f"{self._scheme}://{self._ref.host}").origin():
                sent["Authorization"] = token.header
            response = await self._send(method, at, sent, body)
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response
            try:
                there = at.join(URL(response.headers["Location"], encoded=True))
                there.origin()
            except (KeyError, ValueError):
                return response
            response.close()
            if there.scheme != "https" and (at.scheme == "https" or there.scheme != "http"):
                raise RegistryError(
                    f"{what}: the registry redirects to an address without HTTPS, which is not followed"
                )
            at = there
        raise RegistryError(f"{what}: the registry redirects more than {REDIRECTS} times")

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], body: Optional[bytes]
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        data: Any = None
        if body is not None:
            headers = {**headers, "Content-Length": str(len(body))}
            data = io.BytesIO(body) if body else None
        return await self._session.request(
            method, url, headers=headers, data=data, allow_redirects=False, proxy=proxy(url, self._environ)
        )

    # Logging in.

    async def _authorize(self, challenge: Challenge, refused: Optional[Token], what: str) -> Optional[Token]:
        """Something better than what was refused; None: there is nothing."""
        async with self._authorizing:
            if self._token is not refused:
                return self._token
            if isinstance(self._keys, AwsKeys) and self._login is None:
                self._login = await self._ecr(self._keys, what)
            if challenge.scheme == "basic":
                if refused is not None or self._login is None:
                    return None
                self._token = Token(self._login.basic, float("inf"))
            else:
                self._token = await self._bearer(challenge, what)
                self._challenge = challenge
            return self._token

    async def _bearer(self, challenge: Challenge, what: str) -> Token:
        try:
            realm = URL(challenge.parameters["realm"])
        except ValueError:
            raise RegistryError(f"{what}: the registry does not say where one logs in") from None
        if realm.scheme != "https" and not (realm.scheme == "http" and self._scheme == "http"):
            raise RegistryError(f"{what}: the registry sends logins to an address without HTTPS, which is refused")
        scope = challenge.parameters.get("scope") or f"repository:{self._ref.repository}:{self._actions}"
        asked = {"service": challenge.parameters.get("service", ""), "scope": scope}
        login, headers, body = self._login, {}, None
        if login is not None and login.identity_token:
            form = {
                **asked,
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": "cadenza",
            }
            body = str(URL.build(query=form))[1:].encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            realm = realm.update_query({key: value for key, value in asked.items() if value})
            if login is not None:
                headers["Authorization"] = login.basic
        answer = await self._ask("POST" if body else "GET", realm, headers, body, what)
        token = read_token(answer, time.monotonic())
        if token is None:
            raise RegistryError(f"{what}: {realm.host} gave no token: the registry's login is out of order")
        return token

    async def _ecr(self, keys: AwsKeys, what: str) -> Login:
        url, headers, body = ecr_request(keys, datetime.now(timezone.utc))
        if not url.startswith("https://") and not is_loopback(URL(url).authority):
            raise InvalidError("AWS_ENDPOINT_URL_ECR has to begin with https://")
        return ecr_login(await self._ask("POST", URL(url), headers, body, what))

    async def _ask(self, method: str, url: URL, headers: Mapping[str, str], body: Optional[bytes], what: str) -> bytes:
        """A token server's answer. It is asked without redirects: what it gets is a password."""
        waits = self._waits
        for failures in range(1, waits.tries + 1):
            try:
                sent = self._send(method, url, headers, body)
                response, answer = await _read_all(sent, TOKEN_BYTES, waits.whole_s)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                problem = RegistryError(f"{what}: {url.host}, where one logs in, did not answer: {_why(error, waits)}")
            else:
                if response.status < 300:
                    return answer
                status = 403 if response.status == 400 and self.logged_in else response.status
                problem = refusal(status, what, self.logged_in, self._push, registry_message(answer))
                if status not in AGAIN:
                    raise problem
            if failures < waits.tries:
                await asyncio.sleep(_backoff(waits, failures))
        raise problem


def _to_skip(response: aiohttp.ClientResponse, at: int, size: int, what: str) -> int:
    """How many bytes of an answer are known already. GarbledError when it cannot be the blob."""
    length = response.content_length
    if response.status == 206:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if begins is None or int(begins[1]) != at:
            raise GarbledError(f"{what}: the registry answered with another part of it than was asked for")
        return 0
    if length is not None and length != size:
        raise GarbledError(f"{what}: the registry has {length} bytes where the manifest says {size}")
    return at


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """A body, or its first ``limit_bytes`` and one more."""
    parts, length = [], 0
    async for chunk in response.content.iter_any():
        parts.append(chunk)
        length += len(chunk)
        if length > limit_bytes:
            break
    return b"".join(parts)[: limit_bytes + 1]


async def _read_all(
    opening: Awaitable[aiohttp.ClientResponse], limit_bytes: int, limit_s: float
) -> tuple[aiohttp.ClientResponse, bytes]:
    """An answer and its body, which has ``limit_s`` to come."""
    async with await opening as response:
        return response, await asyncio.wait_for(_read(response, limit_bytes), limit_s)


def _backoff(waits: Waits, failures: int) -> float:
    return float(min(waits.backoff_s * 2 ** (failures - 1), waits.longest_s)) * random.uniform(0.7, 1.3)


def _why(error: BaseException, waits: Waits) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {waits.connect_s:g} s"
    if isinstance(error, asyncio.TimeoutError):
        return f"nothing came for {waits.stall_s:g} s"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known here"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error.strerror or error.os_error})"
    return "the connection ended early"
