"""Twins in memory for the agent's neighbours: a driver whose containers are tasks, a runner, a control plane."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import Any, Callable, Optional

from cadenza.agent import main, surroundings
from cadenza.base.clock import SystemClock
from cadenza.base.config import Config
from cadenza.base.errors import NotFoundError
from cadenza.base.ids import IdSource
from cadenza.fs.mount import Lowers
from cadenza.fs.recipe import Settings
from cadenza.protocol import nodes
from cadenza.protocol.calls import Attempt
from cadenza.protocol.frame import PROTOCOL, Decoder, encode
from cadenza.protocol.nodes import ContainerSpec, Desired, ImageInfo
from cadenza.protocol.objects import FunctionSpec
from cadenza.runtime.driver import ContainerConfig, Exit, Limits, RuntimeFault, Stats, Stdio
from cadenza.runtime.network import Namespace


class FakeRunner:
    """The runner's side of the conversation. ``behave`` is called with each frame and may answer with `send`."""

    def __init__(self, driver: FakeDriver, config: ContainerConfig) -> None:
        self.driver = driver
        self.config = config
        self.frames: list[tuple[dict[str, Any], bytes]] = []
        self.writer: Optional[asyncio.StreamWriter] = None
        self.stubborn = False

    async def live(self) -> None:
        path = os.path.join(self.config.env["CADENZA_SUPPORT"], "runner.sock")
        reader, self.writer = await asyncio.open_unix_connection(path)
        self.send({"t": "hello", "protocol": PROTOCOL, "version": "0", "role": "runner", "python": "3.11", "pid": 1})
        decoder = Decoder()
        while data := await reader.read(65536):
            for raw, payload in decoder.feed(data):
                header = json.loads(raw)
                self.frames.append((header, payload))
                self.driver.behave(self, header, payload)

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        assert self.writer is not None
        self.writer.write(encode(header, payload))

    def exit(self, code: int = 0, oom: bool = False) -> None:
        if self.writer is not None:
            self.writer.close()
        self.driver.end(self.config.container_id, Exit(code, max(0, code - 128), oom))


def echo(runner: FakeRunner, header: dict[str, Any], payload: bytes) -> None:
    """A function that gives back what it gets."""
    if header["t"] == "attach":
        runner.send({"t": "ready", "import_s": 0.0, "enter_s": 0.0})
    if header["t"] == "run":
        outs = [{"a": one["a"], "s": "SUCCESS", "n": one["n"], "t0": 1.0, "t1": 2.0} for one in header["ins"]]
        runner.send({"t": "out", "outs": outs}, payload)
    if header["t"] == "drain" and not runner.stubborn:
        runner.send({"t": "bye"})
        runner.exit(0)


class FakeDriver:
    """`cadenza.runtime.driver.Driver` whose containers are runners in this process."""

    def __init__(self, name: str = "process") -> None:
        self.name = name
        self.behave: Callable[[FakeRunner, dict[str, Any], bytes], None] = echo
        self.boots = True
        self.fault = ""
        self.runners: dict[str, FakeRunner] = {}
        self.ends: dict[str, asyncio.Future[Exit]] = {}
        self.signals: list[tuple[str, int]] = []
        self.limits: dict[str, Limits] = {}
        self.deleted: list[str] = []
        self.running = 0
        self.most_running = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, config: ContainerConfig, bundle: str, stdio: Stdio) -> int:
        assert os.path.isdir(bundle) and not os.listdir(bundle)
        if self.fault:
            raise RuntimeFault(self.fault)
        self.limits[config.container_id] = config.limits
        runner = self.runners[config.container_id] = FakeRunner(self, config)
        self.ends[config.container_id] = asyncio.get_running_loop().create_future()
        if self.boots:
            self.tasks.append(asyncio.get_running_loop().create_task(runner.live()))
        os.write(stdio.stdout, b"raw\n")
        return 4242

    def end(self, container_id: str, exit: Exit) -> None:
        future = self.ends.get(container_id)
        if future is not None and not future.done():
            future.set_result(exit)

    async def wait(self, container_id: str) -> Exit:
        return await asyncio.shield(self.ends[container_id])

    async def signal(self, container_id: str, signum: int) -> None:
        self.signals.append((container_id, signum))
        if signum == signal.SIGKILL and container_id in self.runners:
            self.runners[container_id].exit(137)

    async def exec(self, container_id: str, command: Any, stdio: Stdio) -> Any:
        raise NotFoundError(container_id)

    async def delete(self, container_id: str) -> None:
        self.deleted.append(container_id)
        if container_id in self.runners:
            self.runners.pop(container_id).exit(137)

    async def stats(self, container_id: str) -> Stats:
        return Stats(1 << 20, 0.5, 1)

    async def update(self, container_id: str, limits: Limits) -> None:
        self.limits[container_id] = limits

    async def list(self) -> dict[str, Optional[int]]:
        return dict.fromkeys(self.runners, 4242)


class FakeStore:
    """`cadenza.fs.images.ImageStore` with whatever image is asked for."""

    async def lend(self, image_id: str) -> Lowers:
        raise NotFoundError(image_id)

    def give_back(self, image_id: str) -> None: ...

    def image(self, image_id: str) -> Optional[ImageInfo]:
        return ImageInfo(image_id, 1, 0.0, 0.0, env={"FROM_IMAGE": "1"}, workdir="/work", python="3.11")

    def settings(self, image_id: str) -> Settings:
        return Settings()

    def images(self) -> list[ImageInfo]:
        return []

    def touch(self, image_id: str, now: float) -> None: ...

    def cleanup(self) -> None: ...

    async def close(self) -> None: ...

    def python(self, image_id: str) -> str:
        return "/usr/bin/python3"


class FakeNetworks:
    """Counts what is out."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.count = 0
        self.closed = False

    async def open(self, keep: Any = ()) -> None: ...

    async def take(self) -> Namespace:
        self.count += 1
        self.out.append(f"net{self.count}")
        return Namespace(f"net{self.count}", "")

    async def give_back(self, name: str, whole: bool = False) -> None:
        self.out.remove(name)

    async def close(self) -> None:
        self.closed = True


class Recorder:
    """`cadenza.protocol.nodes.Control` that keeps all it hears."""

    def __init__(self) -> None:
        self.containers: dict[str, nodes.ContainerReport] = {}
        self.history: list[tuple[str, str]] = []
        self.given: list[Any] = []
        self.chunks: list[nodes.LogChunk] = []
        self.samples: list[nodes.Usage] = []
        self.objects: dict[str, str] = {}
        self.heard = asyncio.Event()

    def report(self, report: nodes.NodeReport) -> None:
        for one in report.containers:
            self.containers[one.container_id] = one
            if not self.history or self.history[-1] != (one.container_id, one.state):
                self.history.append((one.container_id, one.state))
        self.heard.set()

    def outputs(self, container_id: str, outputs: Any) -> None:
        self.given += [(container_id, one) for one in outputs]
        self.heard.set()

    def items(self, container_id: str, items: Any) -> None:
        self.given += [(container_id, one) for one in items]
        self.heard.set()

    def logs(self, chunks: Any) -> None:
        self.chunks += chunks
        self.heard.set()

    def usage(self, samples: Any) -> None:
        self.samples += samples
        self.heard.set()

    def object_path(self, digest: str) -> Optional[str]:
        return self.objects.get(digest)

    def missing_objects(self, files: Any) -> list[str]:
        return []

    async def until(self, condition: Callable[[], Any], limit_s: float = 15.0) -> Any:
        """Wait until something that was heard makes ``condition`` true."""

        async def hear() -> Any:
            while not (found := condition()):
                self.heard.clear()
                await self.heard.wait()
            return found

        return await asyncio.wait_for(hear(), limit_s)

    async def state(self, container_id: str, state: str, limit_s: float = 15.0) -> nodes.ContainerReport:
        """Wait until a container is in ``state``, or gone."""

        def there() -> bool:
            found = self.containers.get(container_id)
            return found is not None and found.state in (state, nodes.GONE)

        await self.until(there, limit_s)
        found = self.containers[container_id]
        assert found.state == state, found
        return found

    def text(self, container_id: str, fd: int) -> str:
        return b"".join(one.data for one in self.chunks if one.container_id == container_id and one.fd == fd).decode()


_prepare = main.support.prepare


class World:
    """An agent with fakes all around it."""

    def __init__(self, home: Any, driver: Optional[Any] = None, **settings: Any) -> None:
        self.config = Config(data_dir=str(home), runtime_dir=str(home), **{"pool_containers": 0, **settings})
        self.driver = driver or FakeDriver()
        self.networks = FakeNetworks()
        self.control = Recorder()
        self.clients: list[tuple[socket.socket, str]] = []
        self.lanes: list[tuple[socket.socket, str]] = []
        around = surroundings.Surroundings({"standard": self.driver}, FakeStore(), self.networks)  # type: ignore[arg-type]
        self.agent = main.Agent(
            self.config,
            SystemClock(),
            IdSource(),
            self.control,
            lambda sock, one: self.clients.append((sock, one)),
            lambda sock, one: self.lanes.append((sock, one)),
            around,
        )
        self.revision = 0
        main.support.prepare = lambda data_dir: os.path.join(data_dir, "lib")  # test_agent_files.py tests the real one

    async def __aenter__(self) -> World:
        await self.agent.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.agent.close()
        main.support.prepare = _prepare

    def want(
        self, *specs: ContainerSpec, stops: tuple[nodes.StopOrder, ...] = (), images: tuple[str, ...] = ()
    ) -> None:
        self.revision += 1
        self.agent.want(Desired(self.revision, tuple(specs), stops, images))


def spec(container_id: str = "ta-1", **function: Any) -> ContainerSpec:
    now = SystemClock().now()
    settings = {"name": "f", "module": "m", "qualname": "f", **function}
    return ContainerSpec(
        container_id, "ap-1", "app", "fu-1", FunctionSpec(**settings), "im-1", "standard",
        env=dict(settings.get("env", {})), wanted_at=now - 0.2, placed_at=now - 0.1,
    )  # fmt: skip


def attempt(number: int = 0, data: bytes = b"x") -> Attempt:
    return Attempt(f"in-{number}:1", f"in-{number}", "fc-1", "fu-1", number, data, None, 0, 300.0)
