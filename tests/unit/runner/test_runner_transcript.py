"""One conversation, frame by frame, as a transcript that a person can read. CADENZA_REWRITE=1 writes it anew."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from runner_peer import Agent

from cadenza.runner import values

GOLDEN = Path(__file__).parents[2] / "golden" / "runner" / "conversation.txt"
SOURCE = """
import sys, time
print("imported")
def f(x):
    print("working on", x)
    if x == 1:
        print("warned", file=sys.stderr)
        raise ValueError("bad")
    if x == 2:
        time.sleep(60)
    for part in range(x):
        yield part
"""


def shown(header: dict[str, Any], payload: bytes) -> list[str]:
    """A frame's entries, a line each, and their values below them; what differs from run to run is left out.

    How entries are spread over frames depends on time, and is not shown.
    """
    entries = header.get("logs") or header.get("items") or header.get("outs")
    if not entries:
        text = re.sub(r'"(import_s|boot_s|cpu_s|pid)": [0-9.e-]+', r'"\1": 0', json.dumps(header))
        return ["runner  " + re.sub(r'"python": "[^"]+"', '"python": "3.x.y"', text)]
    lines = []
    at = 0
    for one in entries:
        data = payload[at : at + one["n"]]
        at += one["n"]
        if header["t"] == "log":
            found = re.sub(r'File "[^"]*/', 'File ".../', data.decode())
            lines += [f"log     {one['fd']} {one['i']} {one['c']} | {line}" for line in found.splitlines()]
            continue
        text = json.dumps({key: value for key, value in one.items() if key not in ("t0", "t1", "n")})
        lines.append(f"{header['t']:7s} {text}")
        if data and one.get("s") == "FAILURE":
            lines.append(f"        = {values.unpack_exception(data, 'ta-1')!r}")
        elif data:
            lines.append(f"        = {values.unpack(data)!r}")
    return lines


def test_conversation() -> None:
    lines: list[str] = []
    with Agent() as agent:
        lines += shown(agent.hello, b"")
        step = agent.step

        def told() -> tuple[dict[str, Any], bytes]:
            header, payload = step()
            lines.extend(shown(header, payload))
            return header, payload

        agent.step = told  # type: ignore[method-assign]
        lines.append("agent   welcome, attach f of module user")
        agent.attach(SOURCE, is_generator=True)
        lines.append("agent   run f(1), f(3), f(2)")
        agent.run((1,))
        agent.out()
        agent.run((3,), start=1)
        agent.out()
        agent.run((2,), start=2)
        while "working on 2" not in agent.text():
            agent.step()
        lines.append("agent   run f(4); revoke it; cancel f(2), and SIGUSR1")
        agent.run((4,), start=3)
        agent.send({"t": "revoke", "a": ["in-3:1"]})
        agent.send({"t": "cancel", "a": ["in-2:1"]})
        agent.process.send_signal(signal.SIGUSR1)
        agent.out()
        agent.out()
        lines.append("agent   drain")
        agent.send({"t": "drain", "grace_s": 30})
        assert agent.finish() == 0
    text = "\n".join(lines) + "\n"
    if os.environ.get("CADENZA_REWRITE"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
