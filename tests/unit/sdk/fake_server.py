"""A server that speaks frames on a unix socket in a thread of its own, and runs functions in place.

`FakeServer.functions` maps a function's id to a callable; `handlers` replaces the answer to a method.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections import defaultdict
from typing import Any, Callable, Optional

from cadenza.protocol.frame import Decoder, encode
from cadenza.runner import values


class Peer:
    """One client's connection: what it sent, and how to answer it."""

    def __init__(self, server: FakeServer, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.writer = writer
        self.client_items: dict[int, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self.credit: dict[int, int] = defaultdict(lambda: 4 << 20)
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def send(self, kind: str, number: int, body: Any = None, payload: bytes = b"", **more: Any) -> None:
        header: dict[str, Any] = {"t": kind, "id": number, **more}
        if body is not None:
            header["b"] = body
        self.writer.write(encode(header, payload))

    def error(self, number: int, kind: str, message: str) -> None:
        self.send("err", number, e={"kind": kind, "message": message})


class FakeServer:
    def __init__(self, path: str) -> None:
        self.path = path
        self.functions: dict[str, Callable[..., Any]] = {}
        self.handlers: dict[str, Callable[[Peer, int, dict[str, Any], bytes], Any]] = {}
        self.received: list[dict[str, Any]] = []
        self.max_outstanding = 1000
        self.most_outstanding = 0
        self.refusal: Optional[str] = None
        self.hellos = 0
        self.calls: dict[str, list[Any]] = {}
        self.lane = ""
        self.answers_pings = False
        self._peers: list[Peer] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, self.path))
        self._ready.set()
        self._loop.run_forever()

    def close(self) -> None:
        def stop() -> None:
            self._server.close()
            for peer in self._peers:
                peer.writer.close()
            self._loop.call_later(0.01, self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(5)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def drop_connections(self) -> None:
        """As a server that dies: all connections end in the middle of what they do."""

        def drop() -> None:
            for peer in self._peers:
                peer.writer.transport.abort()

        self._loop.call_soon_threadsafe(drop)

    def requests(self, method: str) -> list[dict[str, Any]]:
        return [one["b"] for one in self.received if one.get("t") == "req" and one["m"] == method]

    def frames(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.received if one["t"] == kind]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        peer = Peer(self, writer)
        self._peers.append(peer)
        while data := await reader.read(1 << 18):
            for raw, payload in decoder.feed(data):
                header = json.loads(raw)
                self.received.append(header)
                self._frame(peer, header, payload)
        for task in peer.tasks.values():
            task.cancel()
        writer.close()

    def _frame(self, peer: Peer, header: dict[str, Any], payload: bytes) -> None:
        kind, number = header["t"], header.get("id", 0)
        if kind == "hello":
            self.hellos += 1
            if self.refusal is not None:
                peer.writer.write(encode({"t": "refuse", "message": self.refusal}))
                peer.writer.close()
                return
            peer.writer.write(
                encode({"t": "welcome", "protocol": 1, "version": "0", "connection": "co-1", "lane": self.lane})
            )
        elif kind == "req":
            peer.tasks[number] = asyncio.ensure_future(
                self._answer(peer, number, header["m"], header.get("b") or {}, payload)
            )
        elif kind in ("item", "end"):
            peer.client_items[number].put_nowait((header, payload))
        elif kind == "credit":
            peer.credit[number] += header["n"]
        elif kind == "ping" and self.answers_pings:
            peer.writer.write(encode({"t": "pong"}))
        elif kind == "cancel":
            task = peer.tasks.get(number)
            if task is not None and not task.done():
                task.cancel()
                peer.error(number, "cancelled", "cancelled")

    async def _answer(self, peer: Peer, number: int, method: str, body: dict[str, Any], payload: bytes) -> None:
        handler = self.handlers.get(method) or getattr(self, "on_" + method.replace(".", "_"), None)
        if handler is None:
            peer.error(number, "unimplemented", f"no {method}")
            return
        done = handler(peer, number, body, payload)
        if inspect.isawaitable(done):
            await done

    # --- the methods that most tests need ---

    def output(self, function_id: str, index: int, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Run a function on packed arguments; the output and its bytes."""
        item = {"index": index, "input_id": f"in-{index}", "status": "SUCCESS", "error": "", "container_id": "ta-1"}
        try:
            args, kwargs = values.unpack(data, lambda written: written)
            result = values.pack_bytes(self.functions[function_id](*args, **kwargs))
        except Exception as error:
            item["status"], item["error"] = "FAILURE", repr(error)
            result = values.pack_exception(error)
        item["value"] = {"size": len(result)}
        return item, result

    async def on_call_run(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        item, result = self.output(body["function_id"], 0, payload)
        peer.send("rep", number, {"call_id": "fc-1", "output": item}, result)

    async def on_call_generate(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        args, kwargs = values.unpack(payload)
        end: dict[str, Any] = {"index": 0, "input_id": "in-0", "status": "SUCCESS", "value": {"size": 0}}
        raised = b""
        try:
            for one in self.functions[body["function_id"]](*args, **kwargs):
                data = values.pack_bytes(one)
                peer.send("item", number, {"call_id": "fc-1", "values": [{"size": len(data)}]}, data)
        except Exception as error:
            raised = values.pack_exception(error)
            end = {**end, "status": "FAILURE", "value": {"size": len(raised)}}
        peer.send("item", number, {"call_id": "fc-1", "output": end}, raised)
        peer.send("end", number)

    async def on_call_map(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        peer.send("item", number, {"opened": {"call_id": "fc-1", "max_outstanding": self.max_outstanding}})
        done, total = 0, None
        queue = peer.client_items[number]
        while total is None or done < total:
            header, data = await queue.get()
            if header["t"] == "end":
                continue
            total = header["b"].get("total", total)
            offset = 0
            answered = []
            sent = b""
            self.most_outstanding = max(self.most_outstanding, len(header["b"]["inputs"]))
            for one in header["b"]["inputs"]:
                size = one["value"]["size"]
                item, result = self.output(body["function_id"], one["index"], data[offset : offset + size])
                offset += size
                answered.append(item)
                sent += result
            done += len(answered)
            if answered:
                answered, sent = self.shuffle(answered, sent)
                while peer.credit[number] <= 0:
                    await asyncio.sleep(0.001)
                peer.credit[number] -= len(sent) + 256
                peer.send("item", number, {"outputs": answered}, sent)
                await peer.writer.drain()
            peer.send("credit", number, n=len(data) + 256)
        peer.send("end", number)

    @staticmethod
    def shuffle(answered: list[dict[str, Any]], sent: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """Last to first: outputs come in no order."""
        pieces, offset = [], 0
        for one in answered:
            pieces.append(sent[offset : offset + one["value"]["size"]])
            offset += one["value"]["size"]
        return answered[::-1], b"".join(pieces[::-1])

    async def on_call_spawn(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        call_id = body.get("call_id") or f"fc-{len(self.calls) + 1}"
        outputs = self.calls.setdefault(call_id, [])
        offset = 0
        for one in body["inputs"]:
            size = one["value"]["size"]
            outputs.append(self.output(body["function_id"], one["index"], payload[offset : offset + size]))
            offset += size
        ids = [f"in-{one['index']}" for one in body["inputs"]]
        peer.send("rep", number, {"call_id": call_id, "input_ids": ids})

    async def on_call_get(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        outputs = self.calls.get(body["call_id"])
        if outputs is None:
            peer.error(number, "not_found", f"no call {body['call_id']}")
            return
        item, data = outputs[body["index"]]
        peer.send("rep", number, {"call_id": body["call_id"], "output": item}, data)

    async def on_call_outputs(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        outputs = self.calls[body["call_id"]]
        page = outputs[body["start"] : body["end"]]
        reply = {"outputs": [one[0] for one in page], "total": len(outputs)}
        peer.send("rep", number, reply, b"".join(one[1] for one in page))

    async def on_call_info(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        outputs = self.calls[body["call_id"]]
        reply = {
            "call_id": body["call_id"], "function_id": "fu-1", "function_name": "f", "app_id": "ap-1", "kind": "spawn",
            "created_at": 1.0, "inputs": len(outputs), "finished": len(outputs),
        }  # fmt: skip
        peer.send("rep", number, reply)

    async def on_call_cancel(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        peer.send("rep", number, {})

    async def on_function_find(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        if "fu-" + body["name"] not in self.functions:
            peer.error(number, "not_found", f"App {body['app']} has no function {body['name']}")
            return
        is_generator = inspect.isgeneratorfunction(self.functions["fu-" + body["name"]])
        reply = {"function_id": "fu-" + body["name"], "app_id": "ap-1", "name": body["name"]}
        peer.send("rep", number, {**reply, "is_generator": is_generator})

    async def on_function_stats(self, peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        peer.send("rep", number, {"backlog": 3, "num_total_runners": 2})
