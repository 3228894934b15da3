"""Journey: many async inputs at once in one warm container, against the runner alone on a bare socket.

    python bench/async_inputs.py

The floor is the same runner as a plain process, fed over its socket by a client that does nothing else: no control
plane, no agent, no client. Inputs a second; 100 at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cadenza

INPUTS = 20_000
AT_ONCE = 100
ROUNDS = 5
app = cadenza.App("bench-concurrent")


@app.function(max_containers=1)
@cadenza.concurrent(max_inputs=AT_ONCE)
async def echo(value: int) -> int:
    return value


def through_the_server() -> float:
    """Seconds for each of `INPUTS` through the whole path."""
    began = time.perf_counter()
    assert sum(echo.map(range(INPUTS), order_outputs=False)) == INPUTS * (INPUTS - 1) // 2
    return (time.perf_counter() - began) / INPUTS


class BareRunner:
    """A runner process with this module's `echo`, driven over its socket, `AT_ONCE` inputs under way at a time."""

    def __init__(self) -> None:
        import os
        import socket
        import subprocess
        import tempfile

        from cadenza import runner
        from cadenza.protocol.frame import Decoder, encode
        from cadenza.runner import values

        self._encode = encode
        self._decoder = Decoder()
        self._directory = tempfile.TemporaryDirectory(prefix="cadenza-floor-")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self._directory.name}/runner.sock")
        listener.listen(1)
        library = str(Path(runner.__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            runner.command(sys.executable, library),
            env={**os.environ, "CADENZA_SUPPORT": self._directory.name, "CADENZA_IS_REMOTE": "1"},
        )
        self._sock, _ = listener.accept()
        self._read()  # hello
        self._write({"t": "welcome", "protocol": 1, "version": cadenza.__version__, "connection": "", "lane": ""})
        here = Path(__file__).resolve()
        function = {
            "name": "echo", "module": here.stem, "qualname": "echo", "is_generator": False, "is_async": True,
            "max_concurrent": AT_ONCE, "python": "",
        }  # fmt: skip
        self._write(
            {
                "t": "attach", "container_id": "ta-floor", "app_id": "ap-floor", "function_id": "fu-floor",
                "function": function, "env": {"PYTHONPATH": f"{here.parent}:{library}"}, "files": [], "layout": {},
                "cwd": str(here.parent), "serialized": 0, "image_id": "im-floor",
            }
        )  # fmt: skip
        while not any(one["t"] == "ready" for one in self._read()):
            pass
        self._value = b"".join(values.pack(((7,), {})))
        self._number = 0

    def _write(self, header: dict[str, object], payload: bytes = b"") -> None:
        import json

        self._sock.sendall(self._encode(json.dumps(header).encode(), payload))

    def _read(self) -> list[dict[str, object]]:
        import json

        data = self._sock.recv(1 << 18)
        if not data:
            raise SystemExit(f"the bare runner ended with {self._process.wait(10)}")
        return [json.loads(header) for header, _ in self._decoder.feed(data)]

    def run(self) -> float:
        """Seconds for each of `INPUTS`."""
        began = time.perf_counter()
        sent = done = 0
        while done < INPUTS:
            count = min(AT_ONCE - (sent - done), INPUTS - sent)
            if count:
                ins = []
                for _ in range(count):
                    self._number += 1
                    name = f"in-{self._number}"
                    ins.append({"a": name + ":1", "i": name, "c": "fc-floor", "n": len(self._value)})
                self._write({"t": "run", "ins": ins}, self._value * count)
                sent += count
            for header in self._read():
                if header["t"] == "out":
                    done += len(header["outs"])  # type: ignore[arg-type]
        return (time.perf_counter() - began) / INPUTS

    def close(self) -> None:
        """End it."""
        self._sock.close()
        self._process.wait(10)
        self._directory.cleanup()


def main() -> None:
    """Print one ratio."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import side

    side.own_home()
    bare = BareRunner()
    with app.run():
        echo.remote(1)
        through_the_server()
        bare.run()
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(through_the_server())
            theirs.append(bare.run())
        side.report(f"async, {AT_ONCE} at once in a container, an input", ours, theirs, "runner alone")
    bare.close()


if __name__ == "__main__":
    main()
