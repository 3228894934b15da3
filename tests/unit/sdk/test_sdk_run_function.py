"""`Image.run_function`. Source: semantics.md section 13.3."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

from cadenza import App, Image, Secret
from cadenza.exception import InvalidError
from cadenza.protocol.objects import BuildFunction, ImageStep
from cadenza.runner import loader
from cadenza.sdk.recipe import resolve
from cadenza.sdk.source import Upload

MODEL = "small"
OTHER = 1


def download(name: str = "", *, size: int = 1) -> None:
    print(MODEL, name, size)


async def later() -> None:
    await asyncio.sleep(0)


def gives() -> Any:
    yield 1


class Holder:
    def method(self) -> None: ...


def base() -> Image:
    return Image.debian_slim("3.11")


def last(image: Image) -> ImageStep:
    return resolve(image._links).spec.steps[-1]


def function(image: Image) -> BuildFunction:
    found = last(image).function
    assert found is not None
    return found


def test_a_function_of_a_module() -> None:
    step = last(base().run_function(download, cpu=2.0, memory=512, gpu="T4", timeout=60, env={"A": "1"}))
    assert (step.kind, step.timeout_s, step.secrets) == ("function", 60.0, {"A": "1"})
    assert step.resources is not None
    assert (step.resources.cpu_milli, step.resources.memory_mib, step.resources.gpus[0].type) == (2000, 512, "T4")
    made = step.function
    assert made is not None
    assert (made.module, made.qualname, made.arguments, made.is_async) == (__name__, "download", "", False)
    assert made.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert [one.path for one in made.files] == [f"/root/{__name__}.py"]
    assert function(base().run_function(later)).is_async
    assert last(base().run_function(download)).resources is None


def test_its_sources_are_no_part_of_the_digest() -> None:
    image = base().run_function(download, include_source=False)
    assert function(image).files == ()
    one, two = (resolve(each._links).spec.image_id() for each in (image, base().run_function(download)))
    assert one == two


def test_arguments_travel_and_count() -> None:
    found = resolve(base().run_function(download, args=("x",), kwargs={"size": 2})._links)
    made = found.spec.steps[-1].function
    assert made is not None
    [content] = [one for one in found.files if isinstance(one, Upload)]
    assert content.digest == made.arguments
    assert loader.unpickle(content.data) == (("x",), {"size": 2})
    assert {made.arguments, *(one.digest for one in made.files)} == set(found.spec.uploads())
    others = [
        base().run_function(download, args=("x",), kwargs={"size": 2}),
        base().run_function(download, args=["x"], kwargs={"size": 2}),
        base().run_function(download, args=("y",), kwargs={"size": 2}),
        base().run_function(download, args=("x",), kwargs={"size": 3}),
        base().run_function(download, args=("x", 2)),
    ]
    assert [function(one).source == made.source for one in others] == [True, True, False, False, False]


def test_globals_that_it_uses_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = function(base().run_function(download)).source
    monkeypatch.setitem(globals(), "OTHER", 2)
    assert function(base().run_function(download)).source == before
    monkeypatch.setitem(globals(), "MODEL", "large")
    assert function(base().run_function(download)).source != before


PROGRAM = """
import math
from cadenza import App, Image
app = App()
ITEMS = {ITEMS}

class Own:
    def __init__(self): self.x = {X}

OWN = Own()

def helper():
    return {HELPER}

def f():
    def inner():
        return ITEMS, OWN
    return inner(), helper(), math, app, Own
"""


def module(directory: Path, name: str = "program", **values: str) -> ModuleType:
    text = PROGRAM
    for key, value in {"ITEMS": "{3, 1, 2}", "X": "1", "HELPER": "1", **values}.items():
        text = text.replace("{" + key + "}", value)
    path = directory / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({}, True),
        ({"ITEMS": "{2, 3, 1}"}, True),
        ({"ITEMS": "{2, 3}"}, False),
        ({"ITEMS": "{'a': 1, 'b': [2]}"}, False),
        ({"X": "2"}, False),
        ({"HELPER": "2"}, True),
    ],
)
def test_values_count_and_functions_that_it_calls_do_not(tmp_path: Path, values: dict[str, str], same: bool) -> None:
    def source(**more: str) -> str:
        import linecache

        linecache.clearcache()
        try:
            return function(base().run_function(module(tmp_path, **more).f)).source
        finally:
            del sys.modules["program"]

    assert (source() == source(**values)) is same


def test_cycles_and_what_cannot_be_pickled_are_no_fault(tmp_path: Path) -> None:
    made = module(tmp_path, ITEMS="[1]")
    try:
        made.ITEMS.append(made.ITEMS)
        made.OWN.x = lambda: 1
        assert function(base().run_function(made.f)).source
    finally:
        del sys.modules["program"]


def test_a_function_of_an_app_is_run_as_it_was_written() -> None:
    app = App()
    wrapped = app.function()(download)
    raw: Any = wrapped
    assert function(base().run_function(raw)).qualname == "download"


@pytest.mark.parametrize(
    "make",
    [
        lambda: base().run_function(lambda: None),
        lambda: base().run_function(print),
        lambda: base().run_function(3),  # type: ignore[arg-type]
        lambda: base().run_function(gives),
        lambda: base().run_function(Holder.method),
        lambda: base().run_function(Holder().method),
        lambda: base().run_function(Holder),
        lambda: base().run_function(download, timeout=0),
        lambda: base().run_function(download, timeout=None),  # type: ignore[arg-type]
        lambda: base().run_function(download, cpu=-1),
        lambda: base().run_function(download, cloud=3),  # type: ignore[arg-type]
        lambda: base().run_function(download, args="ab"),
        lambda: base().run_function(download, kwargs={1: 2}),  # type: ignore[dict-item]
    ],
)
def test_what_can_never_run_fails_at_the_call(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidError):
        make()


def test_functions_in_functions_cannot_be_imported() -> None:
    def nested() -> None: ...

    with pytest.raises(InvalidError, match="global scope"):
        base().run_function(nested)


def test_arguments_have_a_limit_when_resolved() -> None:
    assert function(base().run_function(download, args=("x" * (1 << 20),))).arguments
    image = base().run_function(download, args=("x" * (2 << 20),))
    with pytest.raises(InvalidError, match="at most 2 MiB"):
        resolve(image._links)
    with pytest.raises(InvalidError, match="cannot be"):
        resolve(base().run_function(download, args=(threading.Lock(),))._links)


def test_secrets_are_seen_and_no_part_of_the_digest() -> None:
    def image(value: str) -> Image:
        return base().run_function(download, secrets=[Secret.from_dict({"T": value})], force_build=True)

    assert last(image("1")).secrets == {"T": "1"}
    assert last(image("1")).force
    assert resolve(image("1")._links).spec.image_id() == resolve(image("2")._links).spec.image_id()


def test_a_program_that_is_typed_in_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("def typed():\n    return VALUE\nVALUE = 1\n", main.__dict__)
    typed = main.typed
    found = resolve(base().run_function(typed)._links)
    made = found.spec.steps[-1].function
    assert made is not None
    assert (made.module, made.files) == ("", ())
    [content] = [one for one in found.files if isinstance(one, Upload)]
    assert content.digest == made.serialized
    assert loader.load({}, content.data)() == 1
    main.VALUE = 2  # type: ignore[attr-defined]
    other = function(base().run_function(typed))
    assert other.source != made.source
