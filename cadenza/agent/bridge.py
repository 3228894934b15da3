"""The host's end of the conversation with a container's runner: frames to reports and back.

The conversation is docs/formats/wire.md, "Agent and runner".

The hot path of every call passes here twice, so it is lean: headers are decoded by msgspec into structs, payloads are
sliced once, and all outputs that came in one read go up in one batch: first logs, then generator items, then outputs,
so that nobody sees a result before what belongs to it.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Optional, Sequence, Union

import msgspec

from cadenza import __version__
from cadenza.protocol.calls import Attempt, AttemptOutput, BlobRef, GeneratorItem
from cadenza.protocol.frame import MAX_FRAME_BYTES, PROTOCOL, Decoder, FrameError, encode, encode_parts
from cadenza.protocol.nodes import LogChunk

HELLO_LIMIT_S = 10.0
"""How long a fresh connection may take to say hello."""
HELLO_BYTES = 64 << 10
"""The longest frame before that."""
RUN_FRAME_BYTES = 8 << 20
"""Payload of one run frame at most; a single input over it is a frame of its own (its limit is a blob's threshold)."""
RUN_FRAME_INPUTS = 1000
MAX_FRAME_ERROR_CHARS = 500
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A number that every part takes: the database's are of 64 bits, JSON's of 53."""


class Hello(msgspec.Struct, tag_field="t", tag="hello"):
    """The runner introduces itself."""

    protocol: int = 0
    version: str = ""
    role: str = ""
    python: str = ""
    pid: int = 0
    boot: dict[str, float] = msgspec.field(default_factory=dict)


class Ready(msgspec.Struct, tag_field="t", tag="ready"):
    """It has imported and entered."""

    import_s: float = 0.0
    enter_s: float = 0.0
    leaves: bool = False
    """Whether it has exit hooks."""


class Failed(msgspec.Struct, tag_field="t", tag="failed"):
    """Import or enter raised."""

    where: str = ""
    text: str = ""
    n: Count = 0


class Out(msgspec.Struct, gc=False):
    """One output; ``n`` bytes of the payload are its value."""

    a: str
    s: str
    n: Count = 0
    blob: Optional[str] = None
    size: Optional[Count] = None
    error: Optional[str] = None
    items: Count = 0
    t0: float = 0.0
    t1: float = 0.0
    kinds: tuple[str, ...] = ()


class Outs(msgspec.Struct, tag_field="t", tag="out"):
    """Outputs."""

    outs: list[Out]


class Item(msgspec.Struct, gc=False):
    """One value that a generator gave."""

    a: str
    k: Count
    n: Count = 0
    blob: Optional[str] = None
    size: Optional[Count] = None


class Items(msgspec.Struct, tag_field="t", tag="gen"):
    """Items of generators."""

    items: list[Item]


class Log(msgspec.Struct, gc=False):
    """One piece that user code printed."""

    fd: int
    n: Count
    time: float = 0.0
    i: Optional[str] = None
    c: Optional[str] = None


class Logs(msgspec.Struct, tag_field="t", tag="log"):
    """Pieces of output."""

    logs: list[Log]


class Bye(msgspec.Struct, tag_field="t", tag="bye"):
    """It ends in order."""


class Slots(msgspec.Struct, tag_field="t", tag="slots"):
    """User code has changed how many inputs it runs at once."""

    n: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class StopFetching(msgspec.Struct, tag_field="t", tag="stop_fetching"):
    """User code wants no more inputs: the container ends after those that run."""


class Ping(msgspec.Struct, tag_field="t", tag="ping"):
    """Is anybody there?"""


class Pong(msgspec.Struct, tag_field="t", tag="pong"):
    """Somebody is."""


Header = Union[Hello, Ready, Failed, Outs, Items, Logs, Bye, Slots, StopFetching, Ping, Pong]
_decode = msgspec.json.Decoder(Header).decode
_encode = msgspec.json.Encoder().encode


class Host:
    """What a link tells its owner. The owner overrides what it wants to hear; all on the loop's thread."""

    def said_hello(self, link: Link, hello: Hello) -> Optional[str]:
        """The runner introduced itself. Give None to welcome it, or the sentence that refuses it."""
        raise NotImplementedError

    def said_ready(self, ready: Ready) -> None:
        raise NotImplementedError

    def said_failed(self, failed: Failed, error: bytes) -> None:
        raise NotImplementedError

    def gave_outputs(self, outputs: Sequence[AttemptOutput]) -> None:
        raise NotImplementedError

    def gave_items(self, items: Sequence[GeneratorItem]) -> None:
        raise NotImplementedError

    def printed(self, logs: Sequence[tuple[Log, bytes]]) -> None:
        """What user code printed, by line or piece, with the input that it belongs to."""
        raise NotImplementedError

    def said_bye(self) -> None:
        raise NotImplementedError

    def set_slots(self, slots: int) -> None:
        """It runs so many inputs at once from now on."""
        raise NotImplementedError

    def stopped_fetching(self) -> None:
        """It wants no more inputs."""
        raise NotImplementedError

    def lost(self, link: Link, fault: str) -> None:
        """The connection of a welcomed runner is closed. ``fault`` says which rule it broke, if that was why."""
        raise NotImplementedError


class Link(asyncio.Protocol):
    """One connection to a container's ``runner.sock``."""

    def __init__(self, host: Host, lane_path: str) -> None:
        self._host = host
        self._lane_path = lane_path
        self._decoder = Decoder(HELLO_BYTES)
        self.stranger = True
        """Whether it is open and no hello was taken from it."""
        self._transport: Optional[asyncio.Transport] = None
        self._welcomed = False
        self._fault = ""
        self._limit: Optional[asyncio.TimerHandle] = None

    # --- from the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._limit = asyncio.get_running_loop().call_later(HELLO_LIMIT_S, self._refuse, "no hello within 10 s")

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            self._break(str(error))
            return
        outputs: list[AttemptOutput] = []
        items: list[GeneratorItem] = []
        logs: list[tuple[Log, bytes]] = []
        for raw, payload in frames:
            try:
                header = _decode(raw)
                if not self._welcomed:
                    if not isinstance(header, Hello):
                        self._refuse("the first frame must be a hello")
                        return
                    self._greet(header)
                    continue
                if isinstance(header, Outs):
                    read_outputs(header, payload, outputs)
                elif isinstance(header, Items):
                    read_items(header, payload, items)
                elif isinstance(header, Logs):
                    read_logs(header, payload, logs)
                else:
                    self._up(outputs, items, logs)
                    outputs, items, logs = [], [], []
                    self._rare(header, payload)
            except (msgspec.MsgspecError, FrameError) as error:
                self._up(outputs, items, logs)
                self._break(str(error)[:MAX_FRAME_ERROR_CHARS])
                return
        self._up(outputs, items, logs)
        if self._decoder.pending_bytes:
            try:
                self._decoder.feed(b"")  # what follows good frames may be no frame at all
            except FrameError as error:
                self._break(str(error))

    def _up(self, outputs: list[AttemptOutput], items: list[GeneratorItem], logs: list[tuple[Log, bytes]]) -> None:
        if logs:
            self._host.printed(logs)
        if items:
            self._host.gave_items(items)
        if outputs:
            self._host.gave_outputs(outputs)

    def _rare(self, header: Header, payload: bytes) -> None:
        if isinstance(header, Ready):
            self._host.said_ready(header)
        elif isinstance(header, Failed):
            self._host.said_failed(header, payload[: header.n] if header.n else payload)
        elif isinstance(header, Bye):
            self._host.said_bye()
        elif isinstance(header, Slots):
            self._host.set_slots(header.n)
        elif isinstance(header, StopFetching):
            self._host.stopped_fetching()
        elif isinstance(header, Ping):
            self._write({"t": "pong"})
        elif isinstance(header, Hello):
            raise FrameError("hello was said before")

    def _greet(self, hello: Hello) -> None:
        if self._limit is not None:
            self._limit.cancel()
        if hello.protocol != PROTOCOL:
            self._refuse(
                f"this server speaks protocol {PROTOCOL} (version {__version__}), the runner {hello.protocol} (version "
                f"{hello.version}); restart the server, so that it makes the runner's files anew"
            )
            return
        refused = self._host.said_hello(self, hello) if hello.role == "runner" else "only a runner may speak here"
        if refused:
            self._refuse(refused)
            return
        self._welcomed = True
        self.stranger = False
        self._decoder.allow(MAX_FRAME_BYTES)
        self._write(
            {"t": "welcome", "protocol": PROTOCOL, "version": __version__, "connection": "", "lane": self._lane_path}
        )

    def _refuse(self, message: str) -> None:
        self._write({"t": "refuse", "message": message})
        self._fault = message
        self.close()

    def _break(self, message: str) -> None:
        self._fault = message
        self._write({"t": "err", "id": 0, "e": {"kind": "invalid", "message": message}})
        self.close()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._transport = None
        self.stranger = False
        if self._welcomed:
            self._welcomed = False
            self._host.lost(self, self._fault)

    # --- to the socket ---

    def _write(self, header: dict[str, Any], payload: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(encode(_encode(header), payload))

    def attach(self, header: dict[str, Any], payloads: Sequence[bytes]) -> None:
        """Send the attach frame. `FrameError` when the whole is over a frame's limit."""
        parts = encode_parts(_encode({"t": "attach", **header}), payloads)
        if self._transport is not None:
            self._transport.writelines(parts)

    def run(self, attempts: Sequence[Attempt]) -> None:
        """Hand over attempts, in as many frames as their sizes need."""
        if self._transport is None:
            return
        if len(attempts) == 1:
            self._transport.write(encode(_encode({"t": "run", "ins": [_input(attempts[0])]}), attempts[0].data))
            return
        for batch, more in batches(attempts):
            header: dict[str, Any] = {"t": "run", "ins": [_input(one) for one in batch]}
            if more:
                header["more"] = True
            self._transport.writelines(encode_parts(_encode(header), [one.data for one in batch]))

    def cancel(self, attempt_ids: Sequence[str]) -> None:
        self._write({"t": "cancel", "a": list(attempt_ids)})

    def revoke(self, attempt_ids: Sequence[str]) -> None:
        self._write({"t": "revoke", "a": list(attempt_ids)})

    def drain(self, grace_s: float) -> None:
        self._write({"t": "drain", "grace_s": grace_s})

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _input(one: Attempt) -> dict[str, Any]:
    found: dict[str, Any] = {"a": one.attempt_id, "i": one.input_id, "c": one.call_id, "n": len(one.data)}
    if one.blob is not None:
        found["blob"] = one.blob.blob_id
        found["size"] = one.blob.size
    if one.retry_count:
        found["retry"] = one.retry_count
    if one.durable:
        found["durable"] = True
    if one.method:
        found["m"] = one.method
    if one.batch:
        found["b"] = one.batch
    return found


def batches(attempts: Sequence[Attempt]) -> list[tuple[list[Attempt], bool]]:
    """Attempts in order, cut so that no frame passes `RUN_FRAME_BYTES` or `RUN_FRAME_INPUTS`; each with whether the
    cut went through one run of a batched function, so that the next frame belongs to it."""
    found: list[tuple[list[Attempt], bool]] = []
    size = RUN_FRAME_BYTES + 1
    for one in attempts:
        if not found or size + len(one.data) > RUN_FRAME_BYTES or len(found[-1][0]) >= RUN_FRAME_INPUTS:
            if found and one.batch and found[-1][0][-1].batch == one.batch:
                found[-1] = (found[-1][0], True)
            found.append(([], False))
            size = 0
        found[-1][0].append(one)
        size += len(one.data)
    return found


def _blob(blob_id: Optional[str], size: Optional[int]) -> Optional[BlobRef]:
    return None if blob_id is None else BlobRef(blob_id, size or 0)


def _slice(payload: bytes, start: int, size: int) -> bytes:
    if start == 0 and size == len(payload):
        return payload
    if start + size > len(payload):
        raise FrameError("the payload is shorter than its header says")
    return payload[start : start + size]


def read_outputs(header: Outs, payload: bytes, into: list[AttemptOutput]) -> None:
    """An out frame's outputs, appended to ``into``. `FrameError` when the payload does not fit the header."""
    start = 0
    for one in header.outs:
        data = _slice(payload, start, one.n)
        start += one.n
        blob = None if one.blob is None else BlobRef(one.blob, one.size or 0)
        into.append(AttemptOutput(one.a, one.s, data, blob, one.error or "", one.items, one.t0, one.t1, one.kinds))


def read_items(header: Items, payload: bytes, into: list[GeneratorItem]) -> None:
    """A gen frame's items, appended to ``into``. `FrameError` as in `read_outputs`."""
    start = 0
    for one in header.items:
        data = _slice(payload, start, one.n)
        start += one.n
        into.append(GeneratorItem(one.a, one.k, data, _blob(one.blob, one.size)))


def read_logs(header: Logs, payload: bytes, into: list[tuple[Log, bytes]]) -> None:
    """A log frame's pieces, appended to ``into``. `FrameError` as in `read_outputs`."""
    start = 0
    for one in header.logs:
        into.append((one, _slice(payload, start, one.n)))
        start += one.n


def chunk(log: Log, data: bytes, app_id: str, container_id: str, function_id: str) -> LogChunk:
    """What a runner printed, in the words of the control plane."""
    return LogChunk(app_id, container_id, function_id, log.fd, log.time, data, log.c or "", log.i or "")
