"""A user's program with an app, as type checkers see it. Checked by test_typing_apps.py; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Optional

from typing_extensions import assert_type

import cadenza


app = cadenza.App("typed", image=cadenza.Image.debian_slim().pip_install("numpy").env({"A": "1"}))


@app.function(
    cpu=1.5, memory=(128, 256), retries=cadenza.Retries(max_retries=2), secrets=[cadenza.Secret.from_dict({})]
)
def plain(x: int, name: str = "a") -> float:
    return x / len(name)


@app.function(gpu=["H100", "A100:2"], schedule=cadenza.Period(days=1), region="eu")
async def coroutine(x: int) -> str:
    return str(x)


@app.function()
def generator(n: int) -> Iterator[int]:
    yield n


@app.function()
async def async_generator(n: int) -> AsyncIterator[int]:
    yield n


@app.function()
@cadenza.concurrent(max_inputs=10)
def marked(x: int) -> int:
    return x


@app.local_entrypoint()
def main(count: int = 3) -> str:
    assert_type(plain.local(1, name="b"), float)
    assert_type(plain.remote(1, name="b"), float)
    assert_type(coroutine.remote(1), str)
    assert_type(list(plain.map([1])), list[float])
    return "done"


def use() -> None:
    assert_type(main(2), str)
    assert_type(app.app_id, Optional[str])
    assert_type(app.name, Optional[str])
    with app.run(detach=True) as running:
        assert_type(running, cadenza.App)
    assert_type(app.stop(), None)
    assert_type(cadenza.is_local(), bool)
    assert_type(cadenza.current_input_id(), Optional[str])
    assert_type(cadenza.Image.debian_slim().pipe(lambda image: image.workdir("/x")), cadenza.Image)
    assert_type(cadenza.Image.debian_slim().build(app), cadenza.Image)
    assert_type(cadenza.FilePatternMatcher("a").patterns, list[str])
    cadenza.Image.debian_slim().add_local_dir(".", "/x", ignore=lambda path: path.suffix == ".pyc")
    cadenza.Image.debian_slim().add_local_dir(".", "/x", ignore=~cadenza.FilePatternMatcher("**/*.py"))


async def use_async() -> None:
    async with app.run() as running:
        assert_type(running, cadenza.App)
        assert_type(await coroutine.remote.aio(1), str)
        assert_type(await coroutine.local(1), str)
        await running.stop.aio()
    async with app.run.aio(detach=True) as again:
        assert_type(again, cadenza.App)


def wrong() -> None:
    plain.remote("no int")  # error
    marked.remote("no int")  # error
    plain(1)  # error
    main("no int")  # error
    app.function(keep_warm=1)  # error
    app.run(detached=True)  # error
    cadenza.App(3)  # error
    cadenza.Image.debian_slim(3.11)  # error
    cadenza.Image.debian_slim().env({"A": 1})  # error
    cadenza.Retries(3)  # error
    cadenza.Period(1)  # error
    print(cadenza.no_such_name)  # error
