"""Every row of the table of semantics.md section 34: what an action gives where there is no server.

A row is text, what it does, and what comes of it: an exception class with words its message has, or None for "no
error". Rows about what is not built yet are in `MISSING`, which must shrink: a test fails when one of them works.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import pytest

import cadenza
from cadenza import App, Cron, Function, FunctionCall, Image, Period, Retries, Secret
from cadenza.base.errors import UnimplementedError
from cadenza.exception import ConnectionError, DeprecationError, ExecutionError, InvalidError
from cadenza.sdk import _dual, recipe
from cadenza.sdk.client import Client

APP = App("table")


def plain(x: int = 1) -> int:
    return x


def needs(x: int) -> int:
    return x


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


class Holder:
    def method(self) -> int:
        return 1


def local_function() -> Callable[..., Any]:
    def inner() -> int:
        return 1

    return inner


F = APP.function()(plain)


class Parametrized:
    x: int = cadenza.parameter(default=1)

    @cadenza.method()
    def get(self) -> Any:
        return self.x


C: Any = APP.cls()(Parametrized)


class Constructed:
    def __init__(self) -> None:
        pass


class InheritsConstructor(Constructed):
    @cadenza.method()
    def get(self) -> int:
        return 1


class Snapshots:
    @cadenza.enter(snap=True)
    def load(self) -> None:
        pass

    @cadenza.method()
    def get(self) -> int:
        return 1


class FloatParameter:
    x: float = cadenza.parameter()

    @cadenza.method()
    def get(self) -> int:
        return 1


class NoAnnotation:
    x = cadenza.parameter()

    @cadenza.method()
    def get(self) -> int:
        return 1


def declare_class(raw: Any, **options: Any) -> Any:
    return App().cls(**options)(raw)


def declare(raw: Any = plain, **options: Any) -> Any:
    return App().function(**options)(raw)


def resolve(image: Image) -> Any:
    return recipe.resolve(image._links)


def iterate_in_a_loop() -> None:
    function = Function.from_id("fu-1")

    async def main() -> None:
        for _ in function.map([1]):
            pass

    asyncio.run(main())


def nobody_listens(path: Path) -> None:
    _dual.run(Client(f"unix:{path}")._connected())


ROWS: dict[str, list[tuple[Callable[[], Any], Optional[type[BaseException]], str]]] = {
    "`f(1)` on a Function": [(lambda: F(1), TypeError, "not callable")],  # type: ignore[operator]
    "`f.remote()` with no running app": [(lambda: F.remote(), ExecutionError, "not been hydrated")],
    '`Function.from_name("a","b").local()`': [
        (lambda: Function.from_name("a", "b").local(), ExecutionError, "definition is not in this program")
    ],
    '`Function.from_name("a","B.c")`': [(lambda: Function.from_name("a", "B.c"), InvalidError, "Cls.from_name")],
    "retries on generator / web function": [
        (lambda: declare(generator, retries=1), InvalidError, "retries"),
        (lambda: declare(cadenza.fastapi_endpoint()(plain), retries=1), InvalidError, "retries"),
    ],
    "decorating a function in a local scope or a method": [
        (lambda: declare(local_function()), InvalidError, "global scope"),
        (lambda: declare(Holder.method), InvalidError, "@app.cls"),
    ],
    "`timeout=None`": [
        (lambda: declare(timeout=None), InvalidError, "None is not allowed"),
        (lambda: declare(timeout=0), None, ""),
        (lambda: declare(timeout=86401), None, ""),
    ],
    "min_containers > max_containers; scaledown_window=1": [
        (lambda: declare(min_containers=2, max_containers=1), InvalidError, "above max_containers"),
        (lambda: declare(scaledown_window=1), InvalidError, "between 2 and 3600"),
    ],
    'gpu="H100:x"': [(lambda: declare(gpu="H100:x"), InvalidError, "must be an integer")],
    "keep_warm=1": [(lambda: declare(keep_warm=1), DeprecationError, "min_containers")],
    "modal.Stub": [(lambda: cadenza.Stub, AttributeError, "use App")],  # type: ignore[attr-defined]
    "modal.web_endpoint()": [(lambda: cadenza.web_endpoint(), DeprecationError, "fastapi_endpoint")],
    "Retries(max_retries=-1), Retries(max_delay=61)": [
        (lambda: Retries(max_retries=-1), InvalidError, "0 or more"),
        (lambda: Retries(max_retries=1, max_delay=61), InvalidError, "between 1 and 60"),
    ],
    "batched(max_batch_size=0), concurrent(target > max)": [
        (lambda: cadenza.batched(max_batch_size=0, wait_ms=1), InvalidError, "between 1 and 1,?000"),
        (lambda: cadenza.concurrent(max_inputs=1, target_inputs=2), InvalidError, "above max_inputs"),
    ],
    "batched function with a default argument": [
        (lambda: cadenza.batched(max_batch_size=2, wait_ms=1)(plain), InvalidError, "default")
    ],
    "concurrent on a method; custom __init__; snap=True without the flag": [
        (lambda: cadenza.concurrent(max_inputs=2)(Holder.method), InvalidError, "on the class"),
        (lambda: declare_class(Constructed), InvalidError, "__init__"),
        (lambda: declare_class(InheritsConstructor), InvalidError, "from Constructed"),
        (lambda: declare_class(Snapshots), InvalidError, "enable_memory_snapshot=True"),
        (lambda: declare_class(Snapshots, enable_memory_snapshot=True), None, ""),
    ],
    "float class parameter; parameter without annotation": [
        (lambda: declare_class(FloatParameter), InvalidError, "not float"),
        (lambda: declare_class(NoAnnotation), InvalidError, "needs an annotation"),
    ],
    '`C(5)`, `C(x="wrong type")`, `C(z=1)`': [
        (lambda: (C(5), C(x="wrong type"), C(z=1)), None, ""),
        (lambda: C(5).get.local(), None, ""),
        (lambda: C(x="wrong type").get.local(), None, ""),
        (lambda: C(z=1).get.local(), TypeError, "unexpected"),
    ],
    "with_options(min_containers=1)": [
        (lambda: C.with_options(min_containers=1), TypeError, "min_containers"),
        (lambda: F.with_options(min_containers=1), TypeError, "min_containers"),  # type: ignore[call-arg]
    ],
    "asgi_app with parameter / async; wrong decorator order": [
        (lambda: cadenza.asgi_app()(needs), InvalidError, "no arguments"),
        (lambda: cadenza.asgi_app()(coroutine), InvalidError, "async"),
        (lambda: cadenza.asgi_app()(declare()), InvalidError, "below"),
    ],
    "relative add_local path; pip flags; env int; run_function(lambda)": [
        (lambda: Image.debian_slim().add_local_file("x", "relative"), InvalidError, "absolute"),
        (lambda: Image.debian_slim().pip_install("--pre"), InvalidError, "--pre"),
        (lambda: Image.debian_slim().env({"A": 1}), InvalidError, "string"),  # type: ignore[dict-item]
        (lambda: Image.debian_slim().run_function(lambda: None), InvalidError, "lambda"),
    ],
    'pip_install after add_local_file; debian_slim("3.7")': [
        (lambda: Image.debian_slim("3.11").add_local_file(__file__, "/x").pip_install("six"), None, ""),
        (
            lambda: resolve(Image.debian_slim("3.11").add_local_file(__file__, "/x").pip_install("six")),
            InvalidError,
            "copy=True",
        ),
        (lambda: Image.debian_slim("3.7"), None, ""),
        (lambda: resolve(Image.debian_slim("3.7")), InvalidError, "3.13"),
    ],
    'volumes at "/", "/root", "/tmp", relative, same twice': [
        *(
            (lambda path=path: declare(volumes={path: object()}), InvalidError, "nothing can be mounted")
            for path in ("/", "/root", "/tmp")
        ),
        (lambda: declare(volumes={"data": object()}), InvalidError, "absolute"),
        (lambda: declare(volumes=dict.fromkeys(("/a", "/b"), object())), InvalidError, "more than one path"),
    ],
    'Secret.from_dict({"a":1}); from_local_environ missing': [
        (lambda: Secret.from_dict({"a": 1}), InvalidError, "string"),  # type: ignore[dict-item]
        (lambda: Secret.from_local_environ(["NO_SUCH_VARIABLE"]), InvalidError, "NO_SUCH_VARIABLE"),
    ],
    'Image.from_name("im-a"); Volume.from_name("a b")': [(lambda: Image.from_name("im-a"), InvalidError, "im-")],
    "app.deploy() without name": [(lambda: App().deploy(), InvalidError, r'App\("my-app"\)')],
    'Probe.with_tcp(0); web_server("8000")': [
        (lambda: cadenza.web_server("8000"), InvalidError, "integer")  # type: ignore[arg-type]
    ],
    "iterating `f.map()` in a running loop": [(iterate_in_a_loop, InvalidError, r"\.aio")],
    "schedule on a function with required argument": [
        (lambda: declare(needs, schedule=Period(days=1)), InvalidError, "without arguments")
    ],
    'Cron("x")': [(lambda: Cron("x"), None, "")],
    "server unreachable": [
        (lambda: nobody_listens(Path("/nowhere/server.sock")), ConnectionError, "Could not connect")
    ],
    "FunctionCall.gather() with no arguments": [(lambda: FunctionCall.gather(), None, "")],
}

MISSING: dict[str, tuple[str, Callable[[], Any]]] = {
    # row, or the part of a row: (the name that is not built, what raises UnimplementedError until it is)
    "`.read_only().with_mount_options()`": ("Volume", lambda: cadenza.Volume),  # type: ignore[attr-defined]
    "Dict(), Queue()": ("Dict", lambda: cadenza.Dict),  # type: ignore[attr-defined]
    "Queue()": ("Queue", lambda: cadenza.Queue),  # type: ignore[attr-defined]
    'Queue partition ""': ("Queue", lambda: cadenza.Queue),  # type: ignore[attr-defined]
    'Volume.from_name("a b")': ("Volume", lambda: cadenza.Volume),  # type: ignore[attr-defined]
    "Sandbox.create without app outside a container": ("Sandbox", lambda: cadenza.Sandbox),  # type: ignore[attr-defined]
    "Probe.with_tcp(0)": ("Probe", lambda: cadenza.Probe),  # type: ignore[attr-defined]
}

ACTIONS = [(row, number, *one) for row, actions in ROWS.items() for number, one in enumerate(actions)]


@pytest.mark.parametrize(
    ("action", "error", "words"), [one[2:] for one in ACTIONS], ids=[f"{one[0]} #{one[1]}" for one in ACTIONS]
)
def test_row(action: Callable[[], Any], error: Optional[type[BaseException]], words: str) -> None:
    if error is None:
        action()
        return
    with pytest.raises(error, match=words) as caught:
        action()
    assert type(caught.value) is error


@pytest.mark.parametrize("row", MISSING)
def test_what_is_missing_says_so_and_leaves_this_list_once_it_is_built(row: str) -> None:
    with pytest.raises(UnimplementedError, match="not built yet"):
        MISSING[row][1]()


def test_gather_of_nothing_is_an_empty_list() -> None:
    assert FunctionCall.gather() == []


def test_a_program_without_a_server_gets_one_sentence(tmp_path: Path) -> None:
    """The same row for a whole program: a server that is named and not there is not started in its place."""
    program = "import cadenza\ntry:\n    cadenza.Function.from_name('a', 'b').remote()\nexcept Exception as e:\n"
    program += "    print(type(e).__module__, type(e).__name__, str(e).startswith('Could not connect'))\n"
    environ = {"CADENZA_HOME": str(tmp_path), "CADENZA_SERVER_URL": f"unix:{tmp_path}/none.sock", "PATH": "/usr/bin"}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environ, "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[1:] == ["ConnectionError", "True"], done.stdout + done.stderr
