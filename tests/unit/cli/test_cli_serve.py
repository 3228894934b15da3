"""``cadenza serve``: the process of one version. Source: semantics.md section 23."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cadenza.cli import serve
from cadenza.sdk import _dual, publish
from cadenza.sdk.client import Client


def test_a_version_is_built_where_its_app_is(tmp_path: Path, monkeypatch: Any) -> None:
    """Stored secrets of build steps are those of the environment that ``--env`` names."""
    program = tmp_path / "served_program.py"
    program.write_text("import cadenza\napp = cadenza.App('shop')\n@app.function()\ndef f(): pass\n")
    seen: list[Any] = []

    async def published(client: Any, app_id: str, declarations: Any, *rest: Any, environment: str = "") -> Any:
        seen.append((app_id, [one.name for one in declarations], environment))
        return {"f": "fu-1"}

    async def connected() -> None:
        return None

    monkeypatch.setattr(publish, "publish", published)
    monkeypatch.setattr(Client, "from_env", _dual.BothFree(connected))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "served_program", raising=False)
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    os.write(we_write, b"ap-1\n")
    serve.publish_version(str(program), False, "", "staging", child_reads, child_writes)
    sys.modules.pop("served_program", None)
    said = [json.loads(one) for one in os.read(we_read, 1 << 16).splitlines()]
    os.close(we_write)
    os.close(we_read)
    assert seen == [("ap-1", ["f"], "staging")]
    assert said[0]["title"] == "shop" and str(program) in said[0]["watched"]["files"]
    assert said[1] == {"functions": 1}


def test_the_process_is_told_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    program = tmp_path / "shop.py"
    program.write_text("")
    seen: list[Any] = []

    class Serving:
        def __init__(self, client: Any, environment: str, heartbeat_s: float, start: Any, *rest: Any) -> None:
            seen.append(environment)
            self._start = start

        async def run(self, timeout: Any) -> bool:
            await self._start()
            return True

    async def start(command: Any, environ: Any) -> None:
        seen.append(command[3:])

    async def connected() -> None:
        return None

    from click.testing import CliRunner

    from cadenza.sdk import serving

    monkeypatch.setattr(serving, "Serving", Serving)
    monkeypatch.setattr(serving, "Child", SimpleNamespace(start=start))
    monkeypatch.setattr(Client, "from_env", _dual.BothFree(connected))
    done = CliRunner().invoke(serve.serve, [str(program), "--env", "staging"])
    assert done.exit_code == 0, done.output
    assert seen == ["staging", [str(program), "", "", "staging"]]
