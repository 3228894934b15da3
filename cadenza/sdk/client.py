"""`Client`: this process's way to the server. Source: semantics.md sections 1, 2 and 24; docs/formats/wire.md.

One connection, made at the first request and again after it was lost. Requests that may safely run twice are tried
again when the connection breaks under them; the others fail with a ServiceError that says so.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, Optional, Sequence

from cadenza.base.errors import AuthError, ClientClosed, ConnectionError, InvalidError, ServiceError
from cadenza.sdk import _dual
from cadenza.sdk.connection import Connection, Payload, Stream, connect

if TYPE_CHECKING:
    from cadenza.base.config import Config
    from cadenza.protocol.calls import BlobRef
    from cadenza.sdk.lanes import Lanes

TRIES = 3
RETRY_DELAY_S = 0.1
"""Doubled at each try."""
DEFAULT_SUPPORT = "/.cadenza/run"

REPEATABLE = frozenset(
    {
        "app.get", "app.list", "app.heartbeat", "app.finish", "app.stop",
        "object.missing", "object.put",
        "image.list", "image.find", "image.inspect", "image.log", "image.names", "image.history",
        "call.get", "call.outputs", "call.info", "call.cancel",
        "function.get", "function.find", "function.stats", "function.bind", "function.settings", "function.scale",
        "call.graph",
        "container.list", "container.stop", "server.status", "server.keep",
        "account.whoami", "environment.list", "environment.get", "role.list", "user.list", "token.list",
        "workspace.get",
    }
)  # fmt: skip
"""Methods that may run twice: nothing is different afterwards."""


class Client:
    """A connection to a server. Programs seldom make one: the environment's is used.

    ``server_url`` is empty for the configured server, else ``unix:/path/to/socket``. The other parameters are those
    of programs written for Modal; a server of one's own on a unix socket knows its user and needs no credentials.
    """

    def __init__(
        self,
        server_url: str = "",
        client_type: Any = None,
        credentials: Optional[tuple[str, str]] = None,
        version: str = "",
        *,
        oauth_credentials: Any = None,
    ) -> None:
        if credentials is not None and (len(credentials) != 2 or not all(isinstance(one, str) for one in credentials)):
            raise InvalidError("a Client's credentials are a token id and its secret")
        self._server_url = server_url
        self._version = version
        self._credentials = credentials
        """None: those of the configuration. Two empty strings: none, whatever the configuration has."""
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        """What belongs to one process: nothing of it is used again after a fork."""
        self._pid = os.getpid()
        self._link: Optional[Connection] = None
        self._opening: Optional[asyncio.Lock] = None
        self._lanes: Optional[Lanes] = None

    # --- making one ---

    @_dual.class_method
    async def from_env(cls: Any, _override_config: Any = None) -> Client:
        """The process's client: to the configured server, or in a container to the one that runs it."""
        client: Client = await cls._environment()
        await client._connected()
        return client

    @classmethod
    async def _environment(cls) -> Client:
        global _default
        with _default_lock:
            client = _default
            if client is None or client._closed:
                client = _default = cls()
        return client

    @_dual.class_method
    async def from_credentials(cls: Any, token_id: str, token_secret: str) -> Client:
        """A client with this token. AuthError when the server does not take it."""
        client: Client = cls("", None, (token_id, token_secret))
        await client._connected()
        return client

    @_dual.method
    async def hello(self) -> None:
        """Connect and check that both ends speak the same version. ConnectionError, VersionError."""
        await self._connected()

    @_dual.method
    async def close(self) -> None:
        """End the connection. What is under way fails with ClientClosed, and so does every later use."""
        self._closed = True
        if self._pid == os.getpid():
            if self._link is not None:
                self._link.close(ClientClosed("the client was closed while the call was under way"))
            if self._lanes is not None:
                self._lanes.close()
        self._reset()

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Client:
        self.hello()
        return self

    def __exit__(self, exc_type: Any, exc: Any, tb: Any) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        await self.hello.aio()
        return self

    async def __aexit__(self, exc_type: Any, exc: Any, tb: Any) -> None:
        await self.close.aio()

    def __reduce__(self) -> Any:
        raise TypeError("a Client is a connection of this process and cannot be pickled")

    # --- the connection ---

    async def _connected(self) -> Connection:
        """The live connection, made now if there is none."""
        link = self._link
        if link is not None and link.alive and self._pid == os.getpid():
            return link
        if self._closed:
            raise ClientClosed("the client is closed: make a new one")
        if self._pid != os.getpid():
            self._reset()
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            link = self._link
            if link is None or not link.alive:
                link = self._link = await self._open()
        return link

    async def _open(self) -> Connection:
        version = self._version or _own_version()
        support = support_directory()
        if support is not None and not self._server_url:
            path = os.path.join(support, "client.sock")
            try:
                return await connect(path, version)
            except OSError as error:
                raise ConnectionError(
                    f"Could not connect to the Cadenza server at {path}, the socket of this container: "
                    f"{error.strerror or error}. The server may have gone; the container ends soon."
                ) from None
        from cadenza.runner import context

        here = context.current()
        if here is not None and here.container_id == context.BUILD and not self._server_url:
            raise ConnectionError(
                "There is no Cadenza server for a function that runs while an image is built (run_function): pass it "
                "what it needs as arguments, and keep what needs the server out of its module's top level"
            )
        from dataclasses import replace

        from cadenza.base import config as configuration
        from cadenza.sdk import embedded

        config = configuration.load()
        if self._server_url:
            config = replace(config, server_url=self._server_url)
        return await embedded.reach(config, version, greeting(config, self._credentials))

    # --- requests ---

    async def _request_raw(
        self, method: str, body: dict[str, Any], payload: Sequence[Payload] = ()
    ) -> tuple[dict[str, Any], bytes]:
        """One request as plain JSON values; the reply's body and payload."""
        if method not in REPEATABLE and not body.get("idempotency_key"):
            return await (await self._connected()).request(method, body, payload)
        delay_s = RETRY_DELAY_S
        for _ in range(TRIES - 1):
            try:
                return await (await self._connected()).request(method, body, payload)
            except ServiceError:
                await asyncio.sleep(delay_s)
                delay_s *= 2
        return await (await self._connected()).request(method, body, payload)

    async def _request(self, method: str, body: Any, payload: Sequence[Payload] = ()) -> Any:
        """One request as its row's dataclass; the reply's dataclass. For replies without values."""
        from cadenza.protocol.methods import row  # late: a container's calls are plain JSON values all the way
        from cadenza.protocol.plain import from_plain, to_plain

        reply, _ = await self._request_raw(method, to_plain(body), payload)
        return from_plain(row(method).reply, reply)

    async def _stream(self, method: str, body: Any, payload: Sequence[Payload] = ()) -> Stream:
        """Open a stream; ``body`` is the method's dataclass. Its items' bodies are plain JSON values."""
        from cadenza.protocol.plain import to_plain

        return await (await self._connected()).stream(method, to_plain(body), payload)

    # --- large values ---

    async def _put_blob(self, parts: Sequence[Payload], durable: bool) -> BlobRef:
        """Store one large value by the lane. ``durable``: it is on disk when this returns."""
        from cadenza.protocol.calls import BlobRef

        blob_id, size = await (await self._to_lanes()).put(parts, durable)
        return BlobRef(blob_id, size)

    async def _get_blob(self, blob_id: str) -> memoryview:
        """A large value's bytes; the memory is given back when the last view on it is gone."""
        return await (await self._to_lanes()).get(blob_id)

    async def _to_lanes(self) -> Lanes:
        path = lane_path(await self._connected())
        if self._lanes is None or self._lanes.path != path:
            from cadenza.sdk.lanes import Lanes

            if self._lanes is not None:
                self._lanes.close()
            self._lanes = Lanes(path)
        return self._lanes


def greeting(config: Config, credentials: Optional[tuple[str, str]]) -> dict[str, str]:
    """What a client on the host says of itself: its token, its environment. AuthError for half a token. Pure."""
    token_id, secret = credentials or (config.token_id, config.token_secret)
    found = {"environment": config.environment} if config.environment else {}
    if bool(token_id) != bool(secret):
        have, lack = ("token_id", "token_secret") if token_id else ("token_secret", "token_id")
        raise AuthError(f"Token missing: the configuration has a {have} and no {lack}; see `cadenza config show`")
    if token_id:
        found.update(token_id=token_id, token_secret=secret)
    return found


def lane_path(link: Connection) -> str:
    """Where large values travel: in a container next to the client's socket, whatever the host calls it."""
    support = support_directory()
    if support is not None and link.path.startswith(support):
        return os.path.join(support, "lane.sock")
    return str(link.welcome.get("lane") or "")


def support_directory() -> Optional[str]:
    """The directory of a container's sockets; None on the host."""
    found = os.environ.get("CADENZA_SUPPORT")
    if found:
        return found
    return DEFAULT_SUPPORT if os.path.exists(os.path.join(DEFAULT_SUPPORT, "client.sock")) else None


def _own_version() -> str:
    import cadenza

    return str(cadenza.__version__)


_default: Optional[Client] = None
_default_lock = threading.Lock()


def _forget() -> None:
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
