"""A user's program with classes, as type checkers see it. Checked by test_typing_classes.py; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from typing_extensions import assert_type

import cadenza
from cadenza import Function, FunctionCall

app = cadenza.App("typed")


@app.cls(gpu="T4", enable_memory_snapshot=True)
class Model:
    size: int = cadenza.parameter(default=3)

    @cadenza.enter(snap=True)
    def load(self) -> None:
        self.loaded = True

    @cadenza.method()
    def predict(self, x: int, name: str = "a") -> float:
        return x / len(name)

    @cadenza.method()
    async def ask(self, x: int) -> str:
        return str(await self.other.remote.aio(x))

    @cadenza.method()
    def other(self, x: int) -> bool:
        return bool(x) and self.predict.local(x) > 0

    @cadenza.method()
    def items(self, n: int) -> Iterator[int]:
        yield n

    @cadenza.method()
    async def async_items(self, n: int) -> AsyncIterator[int]:
        yield n

    @cadenza.exit()
    def bye(self) -> None: ...


@app.cls()
@cadenza.concurrent(max_inputs=3)
class Concurrent:
    @cadenza.method()
    def get(self) -> int:
        return 1


def use() -> None:
    model = Model()
    assert_type(model, Model)
    assert_type(model.predict.remote(1, name="b"), float)
    assert_type(model.predict.local(1), float)
    assert_type(model.ask.remote(1), str)
    assert_type(model.predict.spawn(1), FunctionCall[float])
    assert_type(model.predict.spawn_once("key", 1), FunctionCall[float])
    assert_type(list(model.predict.map([1], max_in_flight=3)), list[float])
    assert_type(model.predict.spawn_map([1]), None)
    assert_type(model.predict.spawn_map([1], return_call=True), FunctionCall[float])
    assert_type(model.load(), None)
    assert_type(model.size, int)
    assert_type(Concurrent().get.remote(), int)
    for _ in model.items.remote_gen(3):
        pass
    found = cadenza.Cls.from_name("app", "Model", version=2)
    assert_type(found.with_options(cpu=2.0, gpu=["T4", "L4"]).with_concurrency(max_inputs=2), cadenza.Cls)
    found(size=3).predict.remote(1)
    function = Function.from_name("app", "f")
    function.autoscaler.update(min_containers=1, max_containers=None)
    function.with_options(timeout=3).remote()
    cadenza.Retries(max_retries=2, on=(OSError, TimeoutError), not_on=FileNotFoundError)


async def use_async() -> None:
    assert_type(await Model().ask.remote.aio(1), str)
    assert_type(await Model().ask.local(1), str)


def wrong() -> None:
    Model().predict.remote("no int")  # error
    Model().predict(1)  # error
    Model().ask.remote(1, 2)  # error
    Model().no_such_method.remote()  # error
    app.cls(keep_warm=1)  # error
    cadenza.enter(snap=1)  # error
    cadenza.Cls.from_name("app", "Model").with_options(min_containers=1)  # error
    Model().predict.autoscaler.update(max_containers="1")  # error
    cadenza.Retries(max_retries=1, on=(3,))  # error
