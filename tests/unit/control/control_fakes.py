"""A node in memory that runs what it is given at once, and a client that speaks frames."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Callable, Optional, Sequence

from cadenza.base.errors import ImageBuildError, NotFoundError, PermissionDeniedError, ResourceExhaustedError
from cadenza.base.resources import Resources
from cadenza.protocol.calls import FAILURE, REVOKED, SUCCESS, TERMINATED, Attempt, AttemptOutput, BlobRef, GeneratorItem
from cadenza.protocol.frame import PROTOCOL, Decoder, encode
from cadenza.protocol.objects import FunctionSpec
from cadenza.protocol.nodes import (
    EXITED,
    GONE,
    READY,
    BuildLine,
    BuildOrder,
    CollectOrder,
    CollectReport,
    ContainerReport,
    Control,
    Desired,
    Exec,
    ImageDetail,
    ImageInfo,
    ImageLogLine,
    LogChunk,
    NodeInfo,
    NodeReport,
    PushOrder,
)

Head = dict[str, Any]


class FakeExec:
    """``cat``: what goes in comes out; ends with its input."""

    def __init__(self, output: Callable[[int, bytes], None]) -> None:
        self._output = output
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.size = (0, 0)
        self.drains = 0
        self.paused = False

    def write(self, data: bytes) -> None:
        self._output(1, data * (5 << 20) if data == b"much" else data)

    async def drain(self) -> None:
        self.drains += 1

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close_stdin(self) -> None:
        if not self._end.done():
            self._end.set_result(3)

    def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    def kill(self) -> None:
        if not self._end.done():
            self._end.set_result(137)

    async def wait(self) -> int:
        return await asyncio.shield(self._end)


class FakeNode:
    """Runs attempts by the qualified name of their function: echo, fail, never, count (a generator)."""

    def __init__(self) -> None:
        self.control: Optional[Control] = None
        self.functions: dict[str, str] = {}
        self.apps: dict[str, tuple[str, str]] = {}
        self.running: dict[str, list[Attempt]] = {}
        self.built: list[str] = []
        self.labels: dict[str, str] = {}
        self.command: FakeExec
        self.there = [FunctionSpec("f").image.image_id()]
        """Images that were built before."""
        self.used_at: dict[str, float] = {}
        self.orders: list[CollectOrder] = []
        self.pushed: list[PushOrder] = []
        self.pushing = asyncio.Event()
        self.building = 0
        self.go = asyncio.Event()
        self.go.set()
        self.put_blob: Optional[Callable[[bytes], BlobRef]] = None

    def info(self) -> NodeInfo:
        return NodeInfo(
            "no-1", Resources(cpu_milli=8000, memory_mib=8000, disk_mib=10**6), {}, self.labels, {"standard": "fake"}
        )

    def want(self, desired: Desired) -> None:
        wanted = {one.container_id: one for one in desired.containers}
        stops = {one.container_id for one in desired.stops}
        reports = []
        for container_id, spec in wanted.items():
            if container_id not in self.functions and container_id not in stops:
                self.functions[container_id] = spec.function.qualname
                self.apps[container_id] = (spec.app_id, spec.function_id)
                reports.append(ContainerReport(container_id, READY, phases={"boot": 0.1}, runtime="fake"))
        for container_id in [one for one in self.functions if one in stops or one not in wanted]:
            del self.functions[container_id]
            reports.append(ContainerReport(container_id, GONE, EXITED))
        if reports:
            self._say(lambda: self.control.report(NodeReport("no-1", tuple(reports), revision=desired.revision)))  # type: ignore[union-attr]

    def deliver(self, container_id: str, attempts: Sequence[Attempt]) -> None:
        kind = self.functions.get(container_id, "")
        for one in attempts:
            if kind == "never":
                self.running.setdefault(container_id, []).append(one)
                continue
            self._run(container_id, kind, one)

    def _run(self, container_id: str, kind: str, one: Attempt) -> None:
        control = self.control
        assert control is not None
        items = 0
        output = AttemptOutput(one.attempt_id, SUCCESS, one.data, one.blob)
        if kind == "fail":
            output = AttemptOutput(one.attempt_id, FAILURE, b"packed", error="ValueError: no")
        elif kind == "count":
            values = [GeneratorItem(one.attempt_id, number, b"%d" % number) for number in range(int(one.data))]
            items = len(values)
            self._say(lambda: control.items(container_id, values))
            output = AttemptOutput(one.attempt_id, SUCCESS, items=items)
        elif kind == "large":
            assert self.put_blob is not None
            output = AttemptOutput(one.attempt_id, SUCCESS, b"", self.put_blob(one.data * 1000))
        app_id, function_id = self.apps[container_id]
        chunk = LogChunk(
            app_id, container_id, function_id, 1, 5.0, b"ran " + one.data[:20] + b"\n", one.call_id, one.input_id
        )
        self._say(lambda: control.logs([chunk]))
        self._say(lambda: control.outputs(container_id, [output]))

    def cancel(self, container_id: str, attempt_ids: Sequence[str], revoke: bool = False) -> None:
        control = self.control
        assert control is not None
        status = REVOKED if revoke else TERMINATED
        outputs = [AttemptOutput(one, status) for one in attempt_ids]
        if not revoke:
            self._say(lambda: control.outputs(container_id, outputs))

    async def build(self, order: BuildOrder, progress: Callable[[BuildLine], None]) -> ImageInfo:
        self.built.append(order.image_id)
        self.building += 1
        try:
            progress(BuildLine("step", 1, 1, "base"))
            await self.go.wait()
            if order.spec.steps and order.spec.steps[0].kind == "fail":
                raise ImageBuildError("step 1 failed", image_id=order.image_id)
            progress(BuildLine("done", 1, 1))
            await asyncio.sleep(0)
            return ImageInfo(order.image_id, 1, 1.0, 1.0)
        finally:
            self.building -= 1

    def images(self) -> list[ImageInfo]:
        return [ImageInfo(one, 1, 1.0, self.used_at.get(one, 1.0)) for one in (*self.there, *self.built)]

    async def image(self, image_id: str) -> ImageDetail:
        found = next((one for one in self.images() if one.image_id == image_id), None)
        if found is None:
            raise NotFoundError(f"no image {image_id}")
        return ImageDetail(found)

    async def image_log(self, image_id: str, layers: int) -> list[ImageLogLine]:
        return [ImageLogLine(f"{image_id} {number}", float(number)) for number in range(layers or 9)]

    lent: tuple[str, ...] = ()
    """Images that stay, whatever is ordered."""

    async def collect(self, order: CollectOrder) -> CollectReport:
        self.orders.append(order)
        if not order.dry_run:
            self.there = [one for one in self.there if one not in order.images]
            self.built = [one for one in self.built if one not in order.images]
        return CollectReport(tuple(one for one in order.images if one not in self.lent), 3, 300, 5, 500)

    async def push(self, order: PushOrder, progress: Callable[[str], None]) -> str:
        self.pushed.append(order)
        if order.ref.startswith("hang"):
            self.pushing.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.pushing.clear()
        for number in range(3):
            progress(f"layer {number}")
        if order.ref.startswith("refused"):
            raise PermissionDeniedError("the registry refuses")
        return "sha256:" + "0" * 64

    async def exec(
        self, container_id: str, argv: Sequence[str], pty: bool, output: Callable[[int, bytes], None], rows: int = 0,
        columns: int = 0,
    ) -> Exec:  # fmt: skip
        if container_id not in self.functions:
            raise NotFoundError(f"no container {container_id}")
        self.command = FakeExec(output)
        self.command.size = (rows, columns)
        return self.command

    async def close(self, keep_containers: bool = False) -> None:
        pass

    def _say(self, words: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(words)


class Client:
    """A client that says exactly what a test tells it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = Decoder()
        self.frames: list[tuple[Head, bytes]] = []
        self.number = 0

    @classmethod
    async def connect(cls, path: str = "", sock: Any = None) -> Client:
        opened = asyncio.open_unix_connection(sock=sock) if sock is not None else asyncio.open_unix_connection(path)
        client = cls(*await opened)
        client.send({"t": "hello", "protocol": PROTOCOL, "version": "0.1.0", "role": "client"})
        client.welcome = (await client.next())[0]
        return client

    welcome: Head

    def send(self, header: Head, payload: bytes = b"") -> None:
        self.writer.write(encode(header, payload))

    async def next(self) -> tuple[Head, bytes]:
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(1 << 16), 10)
            if not data:
                raise EOFError
            self.frames += [(json.loads(head), payload) for head, payload in self.decoder.feed(data)]
        return self.frames.pop(0)

    def begin(self, method: str, body: Optional[Head] = None, payload: bytes = b"") -> int:
        self.number += 1
        self.send({"t": "req", "id": self.number, "m": method, "b": body or {}}, payload)
        return self.number

    async def ask(self, method: str, body: Optional[Head] = None, payload: bytes = b"") -> Head:
        """The reply's body; of an error, its ``e``."""
        self.begin(method, body, payload)
        head, self.payload = await self.next()
        if head.get("b_in_payload"):
            head, self.payload = {**head, "b": json.loads(self.payload)}, b""
        return head["b"] if head["t"] == "rep" else head["e"]  # type: ignore[no-any-return]

    payload: bytes = b""

    async def stream(self, method: str, body: Head, payload: bytes = b"") -> tuple[list[tuple[Head, bytes]], Head]:
        """All items of a stream down, and the frame that ended it."""
        self.begin(method, body, payload)
        items = []
        while True:
            head, data = await self.next()
            if head["t"] != "item":
                return items, head
            items.append((head["b"], data))

    async def app(self, *names: str, detach: bool = False, name: str = "demo") -> tuple[str, dict[str, str]]:
        """A published app with functions of these names."""
        app_id = (await self.ask("app.create", {"name": name, "detach": detach}))["app_id"]
        functions = [
            {"name": one, "module": "m", "qualname": one.split("-")[0], "is_generator": one == "count"} for one in names
        ]
        reply = await self.ask("app.publish", {"app_id": app_id, "functions": functions})
        return app_id, reply["functions"]

    def close(self) -> None:
        self.writer.close()


class FullDisk:
    """A database that refuses every change while ``full``."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def submit(self, fn: Any) -> asyncio.Future[Any]:
        if not self.full:
            return self._db.submit(fn)  # type: ignore[no-any-return]
        refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        refused.set_exception(ResourceExhaustedError("the disk is full"))
        return refused

    async def transaction(self, fn: Any) -> Any:
        return await self.submit(fn)

    async def execute(self, name: str, params: Any = ()) -> Any:
        return await self.submit(lambda transaction: transaction.execute(name, params))
