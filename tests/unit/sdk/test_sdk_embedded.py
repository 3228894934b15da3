from __future__ import annotations

import asyncio
import os

import pytest

from cadenza.exception import ConnectionError
from cadenza.sdk.connection import connect
from cadenza.sdk.embedded import inherited


def test_a_server_does_not_keep_its_first_programs_secrets() -> None:
    environ = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "DATABASE_PASSWORD": "hush",
        "MODAL_TOKEN_SECRET": "hush",
        "CADENZA_HOME": "/h",
        "PIP_INDEX_URL": "http://here/simple",
        "https_proxy": "http://proxy",
        "LC_ALL": "C",
    }
    kept = inherited(environ)
    assert "hush" not in kept.values()
    assert set(kept) == {"PATH", "CADENZA_HOME", "PIP_INDEX_URL", "https_proxy", "LC_ALL"}


def test_a_socket_of_another_user_gets_nothing(tmp_path) -> None:
    path = str(tmp_path / "s.sock")
    heard = []

    async def main() -> None:
        async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read())
            writer.close()

        server = await asyncio.start_unix_server(on_client, path)
        with pytest.raises(ConnectionError, match=f"belongs to user {os.geteuid()}"):
            await connect(path, "0.1.0", frozenset((os.geteuid() + 1,)))
        await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        for _ in range(100):
            if heard:
                break
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert heard == [b""]
