"""The client of registries against one that misbehaves as it is told: logins, limits, cuts, lies, redirects."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import os
import ssl
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from aiohttp import web

from cadenza.base.errors import Error, ImageBuildError, InvalidError, kind_of
from cadenza.fs import tree
from cadenza.fs.manifest import DOCKER_LIST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from cadenza.fs.oci import ImageConfig, Pulled, pull, push
from cadenza.fs.proxies import proxy
from cadenza.fs.registry import Waits
from cadenza.fs.registry_auth import challenges, retry_after
from cadenza.fs.store import Store
from yarl import URL

QUICK = Waits(connect_s=2, stall_s=0.3, whole_s=3, tries=3, backoff_s=0.01, longest_s=1.0)
Answer = Callable[[web.Request], Awaitable[Optional[web.StreamResponse]]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(str(tmp_path / "store"))
    yield found
    found.close()


def sha(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def layer(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Fake:
    """A registry in this process. ``before`` sees each request first and may answer it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.seen: list[web.BaseRequest] = []
        self.before: Optional[Answer] = None
        self.uploads: dict[str, bytes] = {}
        self.host = ""

    def image(self, *layers: bytes, tag: str = "v1", squeeze: bool = True, platform: str = "", **lies: Any) -> str:
        """Put an image of these tars there; its manifest's digest."""
        rows = []
        for one in layers:
            packed = gzip.compress(one, mtime=0) if squeeze else one
            self.blobs[sha(packed)] = packed
            rows.append(
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha(packed), "size": len(packed)}
            )
        system, _, machine = (platform or "linux/amd64").partition("/")
        about = json.dumps(
            {
                "os": system, "architecture": machine, "config": {"Env": ["A=1"], "Cmd": ["sh"]},
                "rootfs": {"diff_ids": lies.get("diff_ids") or [sha(one) for one in layers]},
            }
        ).encode()  # fmt: skip
        self.blobs[sha(about)] = about
        row = {"mediaType": OCI_CONFIG, "digest": sha(about), "size": len(about)}
        return self.put(tag, OCI_MANIFEST, {"schemaVersion": 2, "config": row, "layers": rows})

    def put(self, tag: str, kind: str, document: object) -> str:
        body = json.dumps(document).encode()
        self.manifests[tag] = self.manifests[sha(body)] = (kind, body)
        return sha(body)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if self.before is not None:
            answer = await self.before(request)
            if answer is not None:
                return answer
        path = request.path.partition("/v2/some/one/")[2]
        kind, _, name = path.rpartition("/")
        if kind == "manifests" and request.method == "PUT":
            body = await request.content.read()
            self.manifests[name] = self.manifests[sha(body)] = (request.content_type, body)
            return web.Response(status=201)
        if kind == "manifests" and name in self.manifests:
            media_type, body = self.manifests[name]
            return web.Response(body=body, content_type=media_type)
        if kind == "blobs" and name in self.blobs:
            return self.blob(request, self.blobs[name])
        if path == "blobs/uploads/":
            number = str(len(self.uploads))
            self.uploads[number] = b""
            return web.Response(status=202, headers={"Location": f"/v2/some/one/blobs/uploads/{number}?state=a%2Fb"})
        if kind == "blobs/uploads":
            self.uploads[name] += await request.content.read()
            if request.method == "PUT":
                if sha(self.uploads[name]) != request.query["digest"]:
                    return web.Response(status=400)
                self.blobs[request.query["digest"]] = self.uploads[name]
                return web.Response(status=201)
            headers = {"Location": str(request.rel_url), "Range": f"0-{len(self.uploads[name]) - 1}"}
            return web.Response(status=202 if request.method == "PATCH" else 204, headers=headers)
        return web.json_response({"errors": [{"code": "X", "message": "it is\nunknown"}]}, status=404)

    def blob(self, request: web.Request, body: bytes) -> web.Response:
        start = request.http_range.start or 0
        if start:
            headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            return web.Response(status=206, body=body[start:], headers=headers)
        return web.Response(body=body)

    def paths(self, prefix: str = "") -> list[str]:
        return [one.path for one in self.seen if one.path.startswith(prefix)]


class Served:
    """An application on a free loopback port."""

    def __init__(
        self,
        handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
        context: Optional[ssl.SSLContext] = None,
    ) -> None:
        self._handle = handle
        self._context = context

    async def __aenter__(self) -> str:
        server = web.Server(self._handle)  # type: ignore[arg-type]
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        return f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def fetch(fake: Fake, store: Store, ref: str = "some/one:v1", waits: Waits = QUICK, **more: Any) -> Pulled:
    """Pull from the fake; ``secret``: its variables."""
    lines: list[str] = more.pop("lines", [])

    async def go() -> Pulled:
        async with Served(fake.handle) as host:
            fake.host = host
            credentials = more.pop("secret", {})
            environ = {"HOME": "/nonexistent", **more.pop("environ", {})}
            return await asyncio.wait_for(
                pull(f"{host}/{ref}", store, credentials, lines.append, waits=waits, environ=environ,
                     platform=more.pop("platform", "linux/amd64")), 30
            )  # fmt: skip

    return asyncio.run(go())


def refused(fake: Fake, store: Store, match: str, **more: Any) -> Error:
    with pytest.raises(ImageBuildError, match=match) as caught:
        fetch(fake, store, **more)
    assert kind_of(caught.value) == "image_build" and str(caught.value).startswith("127.0.0.1:")
    return caught.value


def test_an_image_and_what_it_says(store: Store) -> None:
    fake, lines = Fake(), list[str]()
    digest = fake.image(layer(a=b"1", b=b"2"), layer(a=b"3"))
    found = fetch(fake, store, lines=lines)
    assert [path for path, _ in tree.walk(found.tree)] == [b"", b"/a", b"/b"]
    assert (found.digest, found.config.env, found.config.cmd) == (digest, {"A": "1"}, ("sh",))
    assert any(line.startswith("layer 2 of 2 (") for line in lines)
    node = tree.find(found.tree, b"a")
    assert node is not None and Path(store.path(node.data)).read_bytes() == b"3"


def test_a_layer_is_fetched_once_for_all_images(store: Store) -> None:
    fake, lines = Fake(), list[str]()
    base = layer(a=b"1")
    fake.image(base, base, layer(b=b"2"), tag="v1")
    fake.image(base, layer(c=b"3"), tag="v2")
    fake.image(base, layer(d=b"4"), tag="v3", squeeze=False)
    fetch(fake, store)
    fetch(fake, store, ref="some/one:v2", lines=lines)
    assert lines[1].endswith("here already")
    fetch(fake, store, ref="some/one:v3")
    assert fake.paths("/v2/some/one/blobs/").count(f"/v2/some/one/blobs/{sha(gzip.compress(base, mtime=0))}") == 1
    assert f"/v2/some/one/blobs/{sha(base)}" not in fake.paths(), "the same tar, packed in another way"


def test_a_layer_whose_files_were_removed_is_fetched_again(store: Store) -> None:
    fake = Fake()
    fake.image(layer(a=b"1"))
    for _ in range(2):
        node = tree.find(fetch(fake, store).tree, b"a")
        assert node is not None
        Path(store.path(node.data)).unlink()
    assert len(fake.paths("/v2/some/one/blobs/")) == 4


def test_platforms(store: Store) -> None:
    fake = Fake()
    for kind in (OCI_INDEX, DOCKER_LIST):
        rows = []
        for machine in ("arm64", "amd64"):
            digest = fake.image(layer(**{machine: b"1"}), tag=machine, platform=f"linux/{machine}")
            size = len(fake.manifests[digest][1])
            place = {"os": "linux", "architecture": machine}
            rows.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": place})
        fake.put("v1", kind, {"schemaVersion": 2, "manifests": rows})
        assert tree.find(fetch(fake, store).tree, b"amd64") is not None
        assert tree.find(fetch(fake, store, platform="linux/arm64").tree, b"arm64") is not None
        refused(
            fake, store, r"not there for linux/riscv64; there are: linux/amd64, linux/arm64", platform="linux/riscv64"
        )
    refused(fake, store, "not there for linux/amd64; there is: linux/arm64", ref="some/one:arm64")
    only = fetch(fake, store, ref=f"some/one@{digest}")
    assert only.digest == digest and only.ref.endswith(digest)


def bearer(fake: Fake, passwords: dict[str, str], lasts: int = 1000) -> list[str]:
    """Let the fake ask for tokens; the scopes that were asked for."""
    scopes: list[str] = []

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        if request.path == "/token":
            scopes.append(request.query["scope"])
            given = request.headers.get("Authorization", "")
            user = base64.b64decode(given[6:]).decode() if given else ""
            if given and user not in passwords.values():
                return web.json_response({"details": "no"}, status=401)
            token = f"t{len(scopes)}-{user or 'anyone'}"
            return web.json_response({"token": token, "expires_in": lasts})
        given = request.headers.get("Authorization", "")
        if not given.startswith(
            f"Bearer t{len(scopes)}-" + (next(iter(passwords.values())) if passwords else "anyone")
        ):
            realm = f'Bearer realm="http://{fake.host}/token",service="s",scope="repository:some/one:pull"'
            return web.json_response({"errors": [{"code": "DENIED"}]}, status=401, headers={"WWW-Authenticate": realm})
        return None

    fake.before = before
    return scopes


def test_tokens_for_anyone(store: Store) -> None:
    fake = Fake()
    fake.image(layer(a=b"1"), layer(b=b"2"), layer(c=b"3"))
    scopes = bearer(fake, {})
    fetch(fake, store)
    assert scopes == ["repository:some/one:pull"], "one token does for all"


def test_tokens_for_those_who_log_in(store: Store) -> None:
    fake = Fake()
    fake.image(layer(a=b"1"))
    bearer(fake, {"me": "me:secret"})
    refused(fake, store, r"(?s)wants a login, or has no such image.*secret=\.\.\.")
    bearer(fake, {"me": "me:secret"})
    wrong = refused(fake, store, "credentials given may not pull", secret=login("me", "wrong"))
    assert "wrong" not in str(wrong)
    bearer(fake, {"me": "me:secret"})
    assert fetch(fake, store, secret=login("me", "secret")).digest


def login(name: str, password: str) -> dict[str, str]:
    return {"REGISTRY_USERNAME": name, "REGISTRY_PASSWORD": password}


def test_a_token_that_ends_too_soon_is_renewed_once(store: Store) -> None:
    fake = Fake()
    fake.image(*(layer(**{name: b"1"}) for name in "abc"))
    scopes = bearer(fake, {})
    ask = fake.before
    assert ask is not None
    uses = 0

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        nonlocal uses
        uses += "blobs" in request.path
        if uses == 2 and "blobs" in request.path:
            scopes.append("so that the present token is no longer good")
        return await ask(request)

    fake.before = before
    fetch(fake, store)
    assert len(scopes) == 3


def test_names_and_passwords(store: Store, tmp_path: Path) -> None:
    fake = Fake()
    fake.image(layer(a=b"1"))
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        if request.headers.get("Authorization") == wanted:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    fake.before = before
    refused(fake, store, "wants a login")
    refused(fake, store, "credentials given may not", secret=login("me", "no"))
    assert fetch(fake, store, secret=login("me", "secret"))
    with pytest.raises(InvalidError, match="two kinds"):
        fetch(fake, store, secret={**login("me", "secret"), "SERVICE_ACCOUNT_JSON": "{}"})

    async def with_docker_login() -> Pulled:
        async with Served(fake.handle) as host:
            (tmp_path / "config.json").write_text(
                json.dumps({"auths": {host: {"username": "me", "password": "secret"}}})
            )
            return await pull(f"{host}/some/one:v1", store, {}, lambda line: None, waits=QUICK,
                              platform="linux/amd64", environ={"DOCKER_CONFIG": str(tmp_path)})  # fmt: skip

    assert asyncio.run(with_docker_login())


def test_keys_of_aws_become_a_password(store: Store) -> None:
    fake = Fake()
    fake.image(layer(a=b"1"))
    wanted = base64.b64encode(b"AWS:secret").decode()

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        if request.path == "/" and request.method == "POST":
            assert request.headers["x-amz-target"].endswith("GetAuthorizationToken")
            assert "/eu-west-1/ecr/aws4_request" in request.headers["Authorization"]
            return web.json_response({"authorizationData": [{"authorizationToken": wanted}]})
        if request.headers.get("Authorization") == f"Basic {wanted}":
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r",service="ecr"'})

    async def go() -> Pulled:
        async with Served(fake.handle) as host:
            secret = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1",
                      "AWS_ENDPOINT_URL_ECR": f"http://{host}"}  # fmt: skip
            return await pull(f"{host}/some/one:v1", store, secret, print, waits=QUICK, platform="linux/amd64")

    fake.before = before
    assert asyncio.run(go())
    assert fake.paths().count("/") == 1


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (403, {}, "wants a login, or has no such image"),
        (404, {}, r"no such image or tag; private images look the same.*registry says: it is unknown"),
        (429, {"Retry-After": "100"}, "log in by secret=..., or try again in 100 s"),
        (429, {"Retry-After": "0"}, "limits how much"),
        (500, {}, "failed with status 500"),
        (418, {}, "status 418"),
    ],
)
def test_what_a_registry_answers_is_said_in_plain_words(
    store: Store, status: int, headers: dict[str, str], why: str
) -> None:
    fake = Fake()

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        if "/manifests/" not in request.path:
            return None
        return web.json_response({"errors": [{"message": "it is\nunknown"}]}, status=status, headers=headers)

    fake.before = before
    refused(fake, store, "(?s)" + why)
    again = len(fake.paths("/v2/some/one/manifests"))
    assert again == (3 if status in (500, 429) and headers.get("Retry-After") != "100" else 1)


@pytest.mark.parametrize("fault", ["429", "503", "close", "stall", "cut"])
def test_faults_that_pass(store: Store, fault: str) -> None:
    fake = Fake()
    body = bytes(range(256)) * 4000
    fake.image(layer(a=body), squeeze=False)
    left = {"manifests": 2, "blobs": 2}

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        kind = request.path.split("/")[-2]
        small = kind == "blobs" and len(fake.blobs[request.path.split("/")[-1]]) < 9999
        if not left.get(kind) or (fault == "cut" and small):
            return None
        left[kind] -= 1
        if fault in ("429", "503"):
            return web.Response(status=int(fault), headers={"Retry-After": "0"})
        assert request.transport is not None
        if fault == "stall":
            await asyncio.sleep(1)
        elif fault == "cut" and kind == "blobs":
            start = request.http_range.start or 0
            answer = fake.blob(request, fake.blobs[request.path.split("/")[-1]])
            whole = answer.body
            assert isinstance(whole, bytes)
            stream = web.StreamResponse(
                status=answer.status, headers={**answer.headers, "Content-Length": str(len(whole))}
            )
            await stream.prepare(request)
            await stream.write(whole[: 300_000 + start])
        request.transport.close()
        return None

    fake.before = before
    node = tree.find(fetch(fake, store).tree, b"a")
    assert node is not None and Path(store.path(node.data)).read_bytes() == body
    if fault == "cut":
        ranges = [one.headers.get("Range") for one in fake.seen if one.headers.get("Range")]
        assert ranges, "what has come is not asked for again"


def test_a_registry_that_knows_no_ranges(store: Store) -> None:
    fake = Fake()
    body = layer(a=bytes(range(256)) * 4000)
    fake.image(body, squeeze=False)
    cuts = 2

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        nonlocal cuts
        if not request.path.endswith(sha(body)):
            return None
        stream = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await stream.prepare(request)
        cuts -= 1
        await stream.write(body if cuts < 0 else body[:200_000])
        if cuts >= 0 and request.transport is not None:
            request.transport.close()
        return stream

    fake.before = before
    assert fetch(fake, store).tree


def test_a_registry_that_never_answers_is_given_up(store: Store) -> None:
    fake = Fake()

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        await asyncio.sleep(60)
        return None

    fake.before = before
    refused(fake, store, "did not answer: nothing came for 0.3 s")


def test_nobody_there(store: Store) -> None:
    with pytest.raises(ImageBuildError, match=r"127\.0\.0\.1:1 did not answer: no connection"):
        asyncio.run(pull("127.0.0.1:1/a", store, {}, print, waits=QUICK))


@pytest.mark.parametrize("lie", ["flip", "longer", "shorter", "zeros"])
@pytest.mark.parametrize("times", [1, 99])
def test_wrong_bytes_are_asked_for_once_more_and_then_refused(store: Store, lie: str, times: int) -> None:
    fake, lines = Fake(), list[str]()
    body = layer(a=bytes(range(256)) * 1000)
    fake.image(body, squeeze=False)
    wrong = {
        "flip": body[:70_000] + bytes([body[70_000] ^ 1]) + body[70_001:],
        "longer": body + b"x",
        "shorter": body[:-1],
        "zeros": b"x" * len(body),
    }[lie]
    left = times

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        nonlocal left
        if not request.path.endswith(sha(body)) or not left:
            return None
        left -= 1
        return web.Response(body=wrong)

    fake.before = before
    if times == 1:
        assert fetch(fake, store, lines=lines).tree
        assert any("once more" in line for line in lines)
    else:
        refused(fake, store, f"layer {sha(body)[7:19]}: (its bytes are not those|the registry has)")
        assert times - left == 2
        assert not list(Path(store.home, "layers").iterdir()), "nothing wrong is kept"


def test_manifests_and_configurations_that_lie(store: Store) -> None:
    fake = Fake()
    digest = fake.image(layer(a=b"1"))
    kind, body = fake.manifests[digest]
    fake.manifests[digest] = (kind, body + b" ")
    refused(fake, store, "gives another manifest", ref=f"some/one@{digest}")
    about = json.loads(body)["config"]["digest"]
    fake.blobs[about] = fake.blobs[about].replace(b"amd64", b"amd46")
    refused(fake, store, "configuration .*: its bytes are not those")
    fake.image(layer(a=b"1"), diff_ids=[sha(b"")])
    refused(fake, store, "not what the image's configuration says")
    fake.image(layer(a=b"1"), diff_ids=[sha(b"")] * 2)
    refused(fake, store, "1 layers, and a configuration for 2")
    fake.manifests["v1"] = (OCI_MANIFEST, b" " * (5 << 20))
    refused(fake, store, "longer than 4194304 bytes")
    fake.manifests["v1"] = ("application/vnd.docker.distribution.manifest.v1+prettyjws", b'{"schemaVersion": 1}')
    refused(fake, store, "schema 1")
    fake.image(b"not a tar" * 100, squeeze=False)
    refused(fake, store, r"layer [0-9a-f]{12}: the layer cannot be used, it is no good tar")
    fake.image(layer(**{"../x": b"1"}))
    refused(fake, store, r"cannot be used, it has a path with '\.\.' in it, or|'\.\.'")


def test_credentials_do_not_follow_redirects(store: Store) -> None:
    fake, elsewhere = Fake(), list[web.BaseRequest]()
    fake.image(layer(a=b"1"))

    async def other(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return web.Response(body=fake.blobs[request.path[1:]])

    async def go() -> None:
        async with Served(other) as there, Served(fake.handle) as host:

            async def before(request: web.Request) -> Optional[web.StreamResponse]:
                if not request.headers.get("Authorization"):
                    return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
                if "/blobs/" in request.path:
                    target = f"http://{there}/{request.path.split('/')[-1]}"
                    return web.Response(status=307, headers={"Location": target})
                return None

            fake.before = before
            await pull(f"{host}/some/one:v1", store, login("me", "secret"), print, waits=QUICK, platform="linux/amd64")

    asyncio.run(go())
    assert len(elsewhere) == 2 and not any("Authorization" in one.headers for one in elsewhere)


def test_redirects_end(store: Store) -> None:
    fake = Fake()

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        return web.Response(status=302, headers={"Location": request.path})

    fake.before = before
    refused(fake, store, "redirects more than 5 times")
    fake.before = None

    async def away(request: web.Request) -> Optional[web.StreamResponse]:
        return web.Response(status=302, headers={"Location": "file:///etc/passwd"})

    fake.before = away
    refused(fake, store, "without HTTPS|status 302")


def test_a_pull_that_is_cancelled_leaves_no_thread_writing(store: Store) -> None:
    fake = Fake()
    fake.image(layer(a=bytes(3_000_000)), squeeze=False)

    async def go() -> None:
        began = asyncio.Event()

        async def before(request: web.Request) -> Optional[web.StreamResponse]:
            found = fake.blobs.get(request.path.split("/")[-1], b"")
            if len(found) < 10_000:
                return None
            stream = web.StreamResponse(headers={"Content-Length": str(len(found))})
            await stream.prepare(request)
            await stream.write(found[:1_000_000])
            began.set()
            await asyncio.sleep(30)
            return stream

        fake.before = before
        async with Served(fake.handle) as host:
            task = asyncio.ensure_future(pull(f"{host}/some/one:v1", store, {}, print, platform="linux/amd64"))
            await asyncio.wait_for(began.wait(), 10)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)

    asyncio.run(go())
    assert not list(Path(store.home, "tmp").glob("*/*"))


def certificate(path: Path) -> tuple[str, str]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (path / "key.pem").write_bytes(pem)
    (path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(path / "cert.pem"), str(path / "key.pem")


def test_https_with_an_authority_of_ones_own(store: Store, tmp_path: Path) -> None:
    """A certificate that is not trusted never leads to plain HTTP."""
    fake = Fake()
    fake.image(layer(a=b"1"))
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def go(environ: dict[str, str]) -> Pulled:
        async with Served(fake.handle, context) as host:
            return await pull(f"{host}/some/one:v1", store, {}, print, waits=QUICK, platform="linux/amd64",
                              environ={"HOME": "/nonexistent", **environ})  # fmt: skip

    with pytest.raises(ImageBuildError, match=r"certificate of 127\.0\.0\.1 is not trusted here.*SSL_CERT_FILE"):
        asyncio.run(go({}))
    assert not fake.seen
    assert asyncio.run(go({"REQUESTS_CA_BUNDLE": cert}))
    assert all(one.secure for one in fake.seen)
    with pytest.raises(InvalidError, match="REQUESTS_CA_BUNDLE"):
        asyncio.run(go({"REQUESTS_CA_BUNDLE": "/nonexistent"}))


# Pushing.


def some_tree(store: Store, size: int = 100) -> tree.Node:
    draft = store.draft()
    draft.write(os.urandom(size))
    data, size = draft.commit()
    return tree.put(tree.directory(), b"a/b", tree.Node(0o100644, size=size, data=data))


def send(fake: Fake, store: Store, root: tree.Node, **more: Any) -> str:
    async def go() -> str:
        async with Served(fake.handle) as host:
            fake.host = host
            ref = f"{host}/some/one:{more.pop('tag', 'v1')}"
            return await push(ref, root, ImageConfig(cmd=("x",)), store, {}, lambda line: None, waits=QUICK, **more)

    return asyncio.run(go())


@pytest.mark.parametrize("size", [100, 40 << 20])
def test_what_is_pushed_can_be_pulled(store: Store, size: int) -> None:
    fake = Fake()
    root = some_tree(store, size)
    digest = send(fake, store, root)
    found = fetch(fake, store)
    assert (found.tree, found.digest, found.config.cmd) == (root, digest, ("x",))
    sent = len(fake.uploads)
    assert send(fake, store, root, tag="v2") == digest and len(fake.uploads) == sent, "nothing is sent twice"


@pytest.mark.parametrize("fault", ["503", "lost", "forgotten"])
def test_an_upload_goes_on_where_it_broke(store: Store, fault: str) -> None:
    fake = Fake()
    left = 2

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        nonlocal left
        if request.method != "PATCH" or not left:
            return None
        left -= 1
        if fault == "503":
            await request.content.read()
            return web.Response(status=503)
        name = request.path.split("/")[-1]
        fake.uploads[name] += await request.content.read()
        if fault == "forgotten":
            fake.uploads[name] = b""
        assert request.transport is not None
        request.transport.close()
        return None if fault == "503" else web.Response(status=202)

    fake.before = before
    root = some_tree(store, 40 << 20)
    send(fake, store, root)
    fake.before = None
    assert fetch(fake, store).tree == root


def test_pushes_that_are_refused(store: Store) -> None:
    fake = Fake()
    root = some_tree(store)

    async def before(request: web.Request) -> Optional[web.StreamResponse]:
        return web.Response(status=403) if request.method == "POST" else None

    fake.before = before
    with pytest.raises(ImageBuildError, match="the registry wants a login"):
        send(fake, store, root)
    with pytest.raises(InvalidError, match="compressed by"):
        send(fake, store, root, compression="rar")
    with pytest.raises(InvalidError, match="under a tag"):
        asyncio.run(push(f"127.0.0.1:1/a@{sha(b'')}", root, ImageConfig(), store, {}, print))
    assert not list(Path(store.home, "tmp").glob("*/*"))


# Pure parts.


def test_challenges_of_several_schemes() -> None:
    found = challenges(
        ['Bearer realm="https://a/t",service="x, y",scope="a:b:pull,push", Basic realm="q\\"r"', "Negotiate"]
    )
    assert [(one.scheme, dict(one.parameters)) for one in found] == [
        ("bearer", {"realm": "https://a/t", "service": "x, y", "scope": "a:b:pull,push"}),
        ("basic", {"realm": 'q"r'}),
        ("negotiate", {}),
    ]
    assert challenges(["", "=", '"x"']) == []


def test_how_long_a_registry_asks_to_wait() -> None:
    assert retry_after("7", 0) == 7 and retry_after(None, 0) == retry_after("soon", 0) == retry_after("-1", 0) == 0
    assert (
        retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40) == 60 and retry_after("Thu, 01 Jan 1970 00:00:00 GMT", 40) == 0
    )


def test_proxies_are_those_of_the_environment() -> None:
    environ = {"HTTPS_PROXY": "http://p.test:1", "no_proxy": "in.test,.inside.test"}
    assert proxy(URL("https://out.test/x"), environ) == "http://p.test:1"
    for direct in (
        "https://in.test/",
        "https://a.inside.test/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "http://out.test/",
    ):
        assert proxy(URL(direct), environ) is None
    assert proxy(URL("https://x.test"), {"all_proxy": "p.test:3"}) == "http://p.test:3"
