"""The other ends of a runner, in memory: an agent that drives a real runner process, and a lane server."""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from cadenza import runner
from cadenza.protocol.frame import Decoder, encode, encode_parts, loads
from cadenza.runner import values

WAIT_S = 20.0
VERSIONS = Path.home() / ".pyenv" / "versions"
LIB = str(Path(runner.__file__).resolve().parents[2])


def pythons() -> dict[str, str]:
    """Interpreters to try: this one, and those of other minor versions that are installed."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}-this": os.path.realpath(sys.executable)}
    for minor in (9, 10, 12, 13):
        for home in sorted(VERSIONS.glob(f"3.{minor}.*")):
            if (home / "bin/python3").exists() and minor != sys.version_info[1]:
                found[f"3.{minor}"] = str(home / "bin/python3")
    return found


EVERY_PYTHON = pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())


def read_with_descriptors(sock: socket.socket, size: int, fds: list[int]) -> bytes:
    """Exactly ``size`` bytes; descriptors that came along are added to ``fds``. Fewer at the end of the stream."""
    data = b""
    while len(data) < size:
        piece, ancillary, _, _ = sock.recvmsg(size - len(data), socket.CMSG_SPACE(16))
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                got = array.array("i")
                got.frombytes(raw[: len(raw) - len(raw) % 4])
                fds.extend(got)
        if not piece:
            break
        data += piece
    return data


class LaneServer:
    """docs/formats/wire.md, 'The lane', kept in memory. ``descriptors=False`` plays a host that cannot pass any."""

    def __init__(self, path: str, descriptors: bool = True) -> None:
        self.descriptors = descriptors
        self.blobs: dict[str, Any] = {}
        self.durable: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.released: list[str] = []
        self.freed: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        while True:
            fds: list[int] = []
            head = read_with_descriptors(sock, 8, fds)
            if len(head) < 8:
                sock.close()
                return
            request = json.loads(read_with_descriptors(sock, int.from_bytes(head[4:], "big"), fds))
            self.requests.append(request)
            if request["t"] == "put":
                self._put(sock, request, fds)
            elif request["t"] == "get":
                self._get(sock, request)
            else:
                self.released.append(request["blob"])

    def _put(self, sock: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        blob = f"bl-{len(self.blobs)}"
        if request["fd"] and not (self.descriptors and fds):
            error = {"t": "err", "e": {"kind": "invalid", "message": "no descriptor came"}}
            sock.sendall(encode(error))
            return
        if request["fd"]:
            self.blobs[blob] = (fds[0], request["size"])
        else:
            self.blobs[blob] = read_with_descriptors(sock, request["size"], [])
        if request["durable"]:
            self.durable.append(blob)
        freed, self.freed = self.freed, []
        sock.sendall(encode({"t": "ok", "blob": blob, "free": freed}))

    def _get(self, sock: socket.socket, request: dict[str, Any]) -> None:
        kept = self.blobs.get(request["blob"])
        if kept is None:
            error = {"t": "err", "e": {"kind": "not_found", "message": f"no blob {request['blob']}"}}
            sock.sendall(encode(error))
        elif isinstance(kept, tuple) and request["fd"]:
            fd = os.open(f"/proc/self/fd/{kept[0]}", os.O_RDONLY)
            rights = array.array("i", [fd])
            reply = encode({"t": "ok", "size": kept[1], "fd": True})
            sock.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(fd)
        else:
            data = kept if isinstance(kept, bytes) else self.content(request["blob"])
            sock.sendall(encode({"t": "ok", "size": len(data), "fd": False}) + data)

    def content(self, blob: str) -> bytes:
        kept = self.blobs[blob]
        return kept if isinstance(kept, bytes) else os.pread(kept[0], kept[1], 0)

    def close(self) -> None:
        self._socket.close()
        for kept in self.blobs.values():
            if isinstance(kept, tuple):
                os.close(kept[0])


class Agent:
    """Starts a runner, plays the agent to it, and keeps all it says: ``logs``, ``items``, ``outs``, ``others``."""

    def __init__(self, python: str = sys.executable, prefix: tuple[str, ...] = (), lane: bool = False) -> None:
        self.home = tempfile.mkdtemp(prefix="cadenza-runner-")
        self.root = os.path.join(self.home, "root")
        os.mkdir(self.root)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(os.path.join(self.home, runner.RUNNER_SOCKET))
        self._socket.listen(1)
        self._socket.settimeout(WAIT_S)
        self.lane = LaneServer(os.path.join(self.home, runner.LANE_SOCKET)) if lane else None
        self._fds = os.path.join(self.home, "fds")
        env = {"PATH": "/usr/bin:/bin", "CADENZA_SUPPORT": self.home, "CADENZA_ROOT": self.root, "HOME": self.root}
        self.began = time.monotonic()
        with open(self._fds, "wb") as sink:
            self.process = subprocess.Popen(
                [*prefix, *runner.command(python, LIB)], env=env, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
            )
        self.sock, _ = self._socket.accept()
        self.sock.settimeout(WAIT_S)
        self._decoder = Decoder()
        self._frames: list[tuple[dict[str, Any], bytes]] = []
        self.logs: list[tuple[dict[str, Any], bytes]] = []
        self.items: list[tuple[dict[str, Any], bytes]] = []
        self.outs: list[tuple[dict[str, Any], bytes]] = []
        self.order: list[str] = []
        self.frames = 0
        self.hello = self.other()[0]
        self.boot_s = time.monotonic() - self.began
        self.ended = False
        self.container_id = "ta-1"

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.lane is not None:
            self.lane.close()
        self._socket.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # What the agent says.

    def send(self, header: dict[str, Any], *payloads: bytes) -> None:
        self.sock.sendall(b"".join(encode_parts(header, payloads)))

    def attach(
        self,
        source: str = "",
        qualname: str = "f",
        serialized: bytes = b"",
        files: Optional[dict[str, bytes]] = None,
        env: Optional[dict[str, str]] = None,
        ready: bool = True,
        layout: Optional[dict[str, str]] = None,
        **function: Any,
    ) -> dict[str, Any]:
        """Attach a function of module ``user``; returns the `ready` frame (or `failed`, with ``ready=False``)."""
        contents = {"/root/user.py": source.encode(), **(files or {})}
        self.send({"t": "welcome", "protocol": 1, "version": "0", "connection": "co-1", "lane": ""})
        self.send(
            {
                "t": "attach", "container_id": self.container_id, "app_id": "ap-1", "function_id": "fu-1",
                "image_id": "im-1",
                "function": {
                    "name": qualname, "module": "" if serialized else "user", "qualname": qualname,
                    "is_generator": False, "is_async": False, "max_concurrent": 1, "python": "3.11", **function,
                },
                "env": env or {}, "layout": layout or {"f": "fu-1"}, "cwd": "/root", "serialized": len(serialized),
                "files": [{"path": p, "size": len(c), "mode": 0o644} for p, c in contents.items()],
            },
            *contents.values(), serialized,
        )  # fmt: skip
        header, payload = self.other()
        assert (header["t"] == "ready") == ready, (header, self.printed())
        return {**header, "payload": payload}

    def run(self, *calls: Any, start: int = 0, **extra: Any) -> None:
        """Send inputs; each of ``calls`` is a tuple of arguments."""
        values_ = [values.pack_bytes((call, {})) for call in calls]
        ins = [
            {"a": f"in-{n}:1", "i": f"in-{n}", "c": "fc-1", "n": len(one), **extra}
            for n, one in enumerate(values_, start)
        ]
        self.send({"t": "run", "ins": ins}, *values_)

    # What the runner says.

    def _read(self) -> tuple[dict[str, Any], bytes]:
        while not self._frames:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:  # it ended with frames of ours unread
                data = b""
            if not data:
                self.ended = True
                raise EOFError(f"the runner hung up; exit code {self.process.wait(WAIT_S)}; {self.printed()}")
            self._frames = [(loads(head), payload) for head, payload in self._decoder.feed(data)]
        self.frames += 1
        return self._frames.pop(0)

    def step(self) -> tuple[dict[str, Any], bytes]:
        """Take one frame and file it."""
        header, payload = self._read()
        kind = header["t"]
        self.order.append(kind)
        for name, kept in (("logs", self.logs), ("items", self.items), ("outs", self.outs)):
            at = 0
            for one in header.get(name, ()):
                kept.append((one, payload[at : at + one["n"]]))
                at += one["n"]
        return header, payload

    def other(self) -> tuple[dict[str, Any], bytes]:
        """The next frame that is no log, item or output."""
        while True:
            header, payload = self.step()
            if header["t"] not in ("log", "gen", "out"):
                return header, payload

    def out(self) -> tuple[dict[str, Any], Any]:
        """The next output: its header and its value, unpacked."""
        while not self.outs:
            self.step()
        header, data = self.outs.pop(0)
        return header, self._value(header, data)

    def _value(self, header: dict[str, Any], data: bytes) -> Any:
        if header.get("blob"):
            assert self.lane is not None
            data = self.lane.content(header["blob"])
        if not data:
            return None
        return values.unpack_exception(data, "ta-1") if header["s"] == "FAILURE" else values.unpack(data)

    def call(self, *args: Any) -> Any:
        """One input's value."""
        self.run(args)
        header, value = self.out()
        assert header["s"] == "SUCCESS", (header, value)
        return value

    def text(self, fd: int = 1, input_id: Optional[str] = None) -> str:
        """What came as log lines so far."""
        return b"".join(d for h, d in self.logs if h["fd"] == fd and input_id in (None, h["i"])).decode()

    def printed(self) -> str:
        """What the process wrote to its file descriptors directly."""
        return Path(self._fds).read_text()

    def finish(self) -> int:
        """Read to the end; the exit code."""
        try:
            while True:
                self.step()
        except EOFError:
            return self.process.wait(WAIT_S)
