"""What a store needs of S3, over a directory, on loopback; and how it can fail."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web


class Bucket:
    """A server with one bucket, ``content``, below ``root``. ``fault``: ``""``, ``dead``, ``slow`` or ``wrong``."""

    slow_s = 0.5

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fault = ""
        self.given_bytes = 0
        self.secret = "S3CRET-" + os.urandom(8).hex()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that uses it."""
        options = f"endpoint=http://127.0.0.1:{self.port},access_key_id=key,region=r,secret_access_key={self.secret}"
        return {"CADENZA_STORE": "s3://content/fleet", "CADENZA_STORE_OPTIONS": options}

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def begin() -> None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/content{key:.*}", self._answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            self._ready.set()

        self._loop.run_until_complete(begin())
        self._loop.run_forever()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.fault == "dead":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.fault == "slow":
            await asyncio.sleep(self.slow_s)
        path = self.root / unquote(request.match_info["key"]).lstrip("/")
        return await getattr(self, f"_{request.method.lower()}")(request, path)  # type: ignore[no-any-return]

    async def _put(self, request: web.Request, path: Path) -> web.Response:
        if request.headers.get("If-None-Match") and path.exists():
            return web.Response(status=412)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        part.write_bytes(await request.read())
        part.rename(path)
        return web.Response(headers={"ETag": '"x"'})

    async def _delete(self, request: web.Request, path: Path) -> web.Response:
        path.unlink(missing_ok=True)
        return web.Response(status=204)

    async def _post(self, request: web.Request, path: Path) -> web.Response:
        keys = re.findall("<Key>(.*?)</Key>", (await request.read()).decode())
        for one in keys:
            (self.root / one).unlink(missing_ok=True)
        rows = "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in keys)
        return web.Response(text=f"<DeleteResult>{rows}</DeleteResult>", content_type="application/xml")

    async def _head(self, request: web.Request, path: Path) -> web.Response:
        if not path.is_file():
            return web.Response(status=404)
        return web.Response(headers={**_about(path), "Content-Length": str(path.stat().st_size)})

    async def _get(self, request: web.Request, path: Path) -> web.Response:
        if "list-type" in request.query:
            return self._list(request.query.get("prefix", ""))
        if not path.is_file():
            return web.Response(status=404)
        data, status, more = path.read_bytes(), 200, _about(path)
        if asked := request.headers.get("Range"):
            first, last = (int(one) for one in asked[len("bytes=") :].split("-"))
            more["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.fault == "wrong" and ("objects" in path.parts or "chunks" in path.parts):
            data = bytes(len(data))
        self.given_bytes += len(data)
        return web.Response(body=data, status=status, headers=more)

    def settled_bytes(self, quiet_s: float = 1.0, limit_s: float = 30.0) -> int:
        """What was given by the time nobody asks any more."""
        end = time.monotonic() + limit_s
        given = -1
        while given != self.given_bytes and time.monotonic() < end:
            given = self.given_bytes
            time.sleep(quiet_s)
        return given

    def _list(self, prefix: str) -> web.Response:
        rows = []
        for folder, _, names in os.walk((self.root / prefix) if prefix.endswith("/") else self.root):
            for name in names:
                path = Path(folder, name)
                key = str(path.relative_to(self.root))
                if key.startswith(prefix) and not name.startswith("."):
                    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(path.stat().st_mtime))
                    size = path.stat().st_size
                    rows.append(
                        f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><LastModified>{at}</LastModified></Contents>"
                    )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(sorted(rows))}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")


def _about(path: Path) -> dict[str, Any]:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(path.stat().st_mtime))
    return {"ETag": '"x"', "Last-Modified": at}
