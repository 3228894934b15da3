"""The command line's way to the server: one blocking question, or a stream to listen to. Over the SDK's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cadenza.base.config import load
from cadenza.base.errors import ConnectionError
from cadenza.protocol.methods import row
from cadenza.protocol.plain import from_plain
from cadenza.sdk import _dual
from cadenza.sdk.client import Client


OWN = ("server.status", "server.keep", "server.stop")
"""What is asked as the server's own user, without the configured token: whoever may read its files may end it, and a
token that has expired must not be in the way."""


async def client(start: bool, method: str = "") -> Client:
    """The process's client. Without ``start``, a server that is not there is not started: ConnectionError."""
    if method in OWN:
        return Client("" if start else "unix:" + load().socket_path, None, ("", ""))
    if start:
        return await Client.from_env.aio()
    return Client("unix:" + load().socket_path)


def ask(method: str, request: Any, start: bool = True) -> Any:
    """One request; the reply's dataclass."""

    async def asking() -> Any:
        return await (await client(start, method))._request(method, request)

    return _dual.run(asking())


def listen(method: str, request: Any, start: bool = True) -> Iterator[tuple[Any, bytes]]:
    """The items of a stream as they come: each item's dataclass and its payload."""
    reply = row(method).reply

    async def opening() -> Any:
        return await (await client(start))._stream(method, request)

    stream = _dual.run(opening())
    try:
        while True:
            item = _dual.run(stream.receive())
            if item is None:
                return
            yield from_plain(reply, item[0]), item[1]
    finally:
        _dual.background_loop().call_soon_threadsafe(stream.cancel)


__all__ = ["ConnectionError", "ask", "client", "listen"]
