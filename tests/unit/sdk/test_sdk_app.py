"""Apps: what decorators accept, what is published, what a run does. Source: semantics.md sections 4, 11, 15, 23, 34."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import pytest

import cadenza
from cadenza import App, Cron, Image, Period, Retries, Secret
from cadenza.exception import (
    ConflictError,
    DeprecationError,
    ExecutionError,
    ImageBuildError,
    InternalError,
    InvalidError,
    ServerWarning,
    UnimplementedError,
)
from cadenza.protocol.images import ImageBuilt
from cadenza.protocol.methods import AppCreated, AppPublished, Empty, Missing
from cadenza.protocol.nodes import BuildLine, ImageInfo
from cadenza.protocol.plain import to_plain
from cadenza.runner import context
from cadenza.sdk import output
from cadenza.sdk.publish import prepare

SPARE = App("spare")


@SPARE.function(retries=2, env={"B": "env"}, secrets=[Secret.from_dict({"A": "own", "B": "own"})])
def spare(x: int) -> int:
    return x


def plain(x: int = 1) -> int:
    return x


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


async def async_generator() -> Any:
    yield 1


def needs(x: int) -> int:
    return x


class Holder:
    def method(self) -> None:
        pass


def local_function() -> Callable[[], None]:
    def inner() -> None:
        pass

    return inner


# --- decoration ---


@pytest.mark.parametrize(
    ("raw", "is_generator", "is_async"),
    [(plain, False, False), (generator, True, False), (coroutine, False, True), (async_generator, True, True)],
)
def test_kinds_of_functions(raw: Any, is_generator: bool, is_async: bool) -> None:
    app = App()
    app.function()(raw)
    spec = prepare(app._declarations[raw.__name__]).spec
    assert (spec.is_generator, spec.is_async, spec.module) == (is_generator, is_async, __name__)


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [
        ({}, Holder.method),
        ({"serialized": True}, Holder.method),
        ({}, local_function()),
        ({}, lambda: None),
        ({}, Holder),
        ({}, staticmethod(plain)),
        ({}, 5),
        ({"retries": 1}, generator),
        ({"retries": Retries(max_retries=1)}, async_generator),
        ({"schedule": Period(days=1)}, needs),
        ({"timeout": None}, plain),
        ({"min_containers": 2, "max_containers": 1}, plain),
        ({"gpu": "H100:x"}, plain),
        ({"image": "debian"}, plain),
        ({"name": "a b"}, plain),
        ({"name": "x" * 65}, plain),
        ({"name": "ap-" + "a" * 22}, plain),
        ({"max_inputs": 2}, plain),
    ],
)
def test_what_is_refused_at_decoration(arguments: dict[str, Any], raw: Any) -> None:
    with pytest.raises(InvalidError):
        App().function(**arguments)(raw)


def test_a_method_is_told_of_its_decorator() -> None:
    with pytest.raises(InvalidError, match=r"@cadenza.method"):
        App().function()(Holder.method)
    with pytest.raises(InvalidError, match="global scope, unless serialized=True"):
        App().function()(local_function())


@pytest.mark.parametrize(
    "name", ["keep_warm", "concurrency_limit", "container_idle_timeout", "allow_concurrent_inputs"]
)
def test_renamed_parameters(name: str) -> None:
    with pytest.raises(DeprecationError, match=name):
        App().function(**{name: 1})


def test_parentheses_are_not_forgotten() -> None:
    with pytest.raises(InvalidError, match="parentheses"):
        App().function(plain)  # type: ignore[call-arg, arg-type]
    with pytest.raises(InvalidError, match="parentheses"):
        App().local_entrypoint(plain)  # type: ignore[call-arg, arg-type]


def test_max_inputs_is_deprecated() -> None:
    app = App()
    with pytest.warns(DeprecationError, match="single_use_containers"):
        app.function(max_inputs=1)(plain)
    assert prepare(app._declarations["plain"]).spec.single_use


def test_a_function_of_the_same_name_wins_with_a_warning() -> None:
    app = App()
    app.function()(plain)
    with pytest.warns(UserWarning, match="two functions named 'plain'") as warned:
        second = app.function(name="plain")(needs)
    assert app._functions == {"plain": second} and warned[0].filename == __file__


def test_a_function_is_not_called_itself() -> None:
    function = App().function()(plain)
    with pytest.raises(TypeError):
        function(1)  # type: ignore[operator]
    assert function.local(4) == 4
    with pytest.raises(ExecutionError, match="not been hydrated"):
        function.remote(1)


def test_local_entrypoints() -> None:
    app = App()
    entrypoint = app.local_entrypoint()(plain)
    assert entrypoint(3) == 3
    assert entrypoint.name == "plain"
    with pytest.raises(InvalidError, match="two local entrypoints"):
        app.local_entrypoint()(plain)
    app.local_entrypoint(name="other")(plain)
    with pytest.raises(InvalidError, match="plain function"):
        app.local_entrypoint()(app.function()(needs))


@pytest.mark.parametrize(
    "arguments",
    [{"name": 3}, {"image": "x"}, {"secrets": "x"}, {"volumes": {"/": 1}}, {"tags": {"a b": "c"}}, {"tags": ["x"]}],
)
def test_bad_arguments_of_an_app(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        App(**arguments)


def test_include() -> None:
    one, two = App("one", tags={"a": "1"}), App("two", tags={"a": "2", "b": "2"})
    one.function()(plain)
    two.function()(needs)
    one.include(two)
    assert set(one._functions) == {"plain", "needs"}
    assert one.get_tags() == {"a": "1", "b": "2"}
    three = App()
    three.function()(plain)
    with pytest.warns(UserWarning, match="plain"):
        one.include(three)


def test_what_an_app_says_of_itself() -> None:
    app = App()
    app.set_description("x.py")
    assert (app.name, app.description, app.app_id, App("n").description) == (None, "x.py", None, "n")
    app.function()(plain)
    with pytest.warns(DeprecationError):
        assert list(app.registered_functions) == ["plain"]


def test_deploy() -> None:
    with pytest.raises(InvalidError, match=r'App\("my-app"\)'):
        App().deploy()
    with pytest.raises(InvalidError):
        App("a b").deploy()


# --- decorators below the app's ---


def test_concurrent() -> None:
    app = App()
    app.function()(cadenza.concurrent(max_inputs=10, target_inputs=4)(plain))
    spec = prepare(app._declarations["plain"]).spec
    assert (spec.max_concurrent, spec.target_concurrent) == (10, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cadenza.concurrent(max_inputs=2, target_inputs=3),
        lambda: cadenza.concurrent(max_inputs=0),
        lambda: cadenza.concurrent(max_inputs=1001),
        lambda: cadenza.concurrent(),
        lambda: cadenza.concurrent(max_inputs=2)(Holder.method),
        lambda: cadenza.concurrent(max_inputs=2)(App().function()(plain)),
        lambda: cadenza.concurrent(plain),  # type: ignore[call-arg, arg-type]
        lambda: cadenza.batched(max_batch_size=0, wait_ms=1),
        lambda: cadenza.batched(max_batch_size=1001, wait_ms=1),
        lambda: cadenza.batched(max_batch_size=1, wait_ms=600_001),
        lambda: cadenza.batched(max_batch_size=1, wait_ms=1)(plain),
        lambda: cadenza.batched(max_batch_size=1, wait_ms=1)(generator),
        lambda: cadenza.web_server("8000"),  # type: ignore[arg-type]
        lambda: cadenza.asgi_app()(needs),
        lambda: cadenza.asgi_app()(coroutine),
        lambda: cadenza.asgi_app()(App().function()(needs)),
        lambda: cadenza.method()(plain),
        lambda: cadenza.enter()(plain),
        lambda: App().function(retries=1)(cadenza.fastapi_endpoint()(needs)),
        lambda: App().function()(cadenza.method()(Holder.method)),
    ],
)
def test_decorators_refuse(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidError):
        make()


def test_web_endpoint_is_gone() -> None:
    with pytest.raises(DeprecationError, match="fastapi_endpoint"):
        cadenza.web_endpoint()


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (cadenza.fastapi_endpoint()(needs), "web functions"),
    ],
)
def test_what_is_not_built_can_be_declared_and_is_refused_by_a_run(target: Any, word: str) -> None:
    app = App()
    function = app.function()(target)
    assert function.local(5) == 5
    with pytest.raises(UnimplementedError, match=word):
        prepare(app._declarations["needs"])


def test_a_gpu_is_asked_for() -> None:
    app = App()
    app.function(gpu="A100:2")(plain)
    assert [(one.type, one.count) for one in prepare(app._declarations["plain"]).spec.resources.gpus] == [
        ("A100-40GB", 2)
    ]


# --- what is published ---


def test_variables_of_app_and_function() -> None:
    app = App(secrets=[Secret.from_dict({"A": "app", "B": "app", "C": "app"})])
    app.function(secrets=[Secret.from_dict({"B": "own", "D": "own"})], env={"D": "env"})(plain)
    spec = prepare(app._declarations["plain"]).spec
    assert spec.env == {"D": "env"}
    assert [one.values for one in spec.secrets] == [{"A": "app", "B": "app", "C": "app"}, {"B": "own", "D": "own"}]


def test_source_is_mounted_unless_it_is_turned_off() -> None:
    app = App()
    app.function()(plain)
    app.function(include_source=False, name="bare")(plain)
    assert [one.path for one in prepare(app._declarations["plain"]).spec.files] == [f"/root/{__name__}.py"]
    assert prepare(app._declarations["bare"]).spec.files == ()
    without = App(include_source=False)
    without.function()(plain)
    assert prepare(without._declarations["plain"]).spec.files == ()


def test_files_of_the_image_and_of_the_function(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = Image.debian_slim("3.11").add_local_file(tmp_path / "f", "/data/f")
    app = App(image=image)
    app.function()(plain)
    found = prepare(app._declarations["plain"])
    assert [one.path for one in found.spec.files] == ["/data/f", f"/root/{__name__}.py"]
    assert {one.digest for one in found.uploads} == {one.digest for one in found.spec.files}
    assert found.spec.python == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_the_apps_image_may_be_set_later() -> None:
    app = App()
    app.function()(plain)
    app.image = Image.debian_slim("3.12")
    assert prepare(app._declarations["plain"]).spec.image.steps[0].options["python"] == "3.12"


def test_a_serialized_function_travels_by_value() -> None:
    import cloudpickle

    app = App()
    number = 41

    def inner() -> int:
        return number + 1

    app.function(serialized=True)(inner)
    found = prepare(app._declarations["inner"])
    assert (found.spec.module, found.spec.files, found.spec.name) == ("", (), "inner")
    [upload] = found.uploads
    assert upload.digest == found.spec.serialized
    assert cloudpickle.loads(upload.data)() == 42


def test_a_serialized_function_has_limits() -> None:
    app = App()
    large, huge = b"x" * (300 << 10), b"x" * (17 << 20)
    app.function(serialized=True, name="large")(lambda: large)
    app.function(serialized=True, name="huge")(lambda: huge)
    with pytest.warns(UserWarning, match="when serialized"):
        prepare(app._declarations["large"])
    with pytest.raises(InvalidError, match="16 MiB"):
        prepare(app._declarations["huge"])


def test_a_serialized_function_uses_other_functions_of_its_app() -> None:
    import cloudpickle

    app = App("x")
    other = app.function(serialized=True, name="other")(lambda x: x)

    def caller() -> Any:
        return other, app

    app.function(serialized=True)(caller)
    [upload] = prepare(app._declarations["caller"]).uploads
    context.become(context.Container("ta-x", layout={"other": "fu-7"}))
    try:
        handle, same = cloudpickle.loads(upload.data)()
        assert (handle.object_id, handle.is_hydrated, same.name) == ("fu-7", True, "x")
        context.become(context.Container("ta-x", layout={}))
        with pytest.raises(ExecutionError, match="'other'"):
            cloudpickle.loads(upload.data)
    finally:
        context.become(None)


def test_a_definition_in_a_notebook_is_serialized(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec("def cell():\n    return 1\n", notebook.__dict__)
    app = App()
    app.function()(notebook.cell)
    assert app._declarations["cell"].serialized


# --- a run ---


class Recorder:
    """A server in memory: it records what it is asked, and answers as ours does."""

    def __init__(self, **failures: Exception) -> None:
        self.asked: list[str] = []
        self.bodies: dict[str, Any] = {}
        self.failures = failures
        self.warnings: tuple[str, ...] = ()

    def _is_usable(self) -> bool:
        return True

    async def _request(self, method: str, body: Any, payload: Any = ()) -> Any:
        self.asked.append(method)
        self.bodies[method] = body
        await asyncio.sleep(0)
        if method in self.failures:
            raise self.failures[method]
        if method == "app.create":
            return AppCreated("ap-1")
        if method == "object.missing":
            return Missing(body.digests)
        if method == "app.publish":
            return AppPublished({one.name: f"fu-{one.name}" for one in body.functions}, self.warnings)
        return Empty()

    async def _stream(self, method: str, body: Any, payload: Any = ()) -> Any:
        self.asked.append(method)
        self.bodies[method] = body
        if method in self.failures:
            raise self.failures[method]
        image = body.spec.image_id()
        return Items(
            [
                ImageBuilt((BuildLine("step", 1, 1, "base"),)),
                ImageBuilt((), ImageInfo(image, 1, 0.0, 0.0)),
            ]
        )


class Items:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def cancel(self) -> None:
        pass

    async def receive(self) -> Optional[tuple[dict[str, Any], bytes]]:
        return (to_plain(self.items.pop(0)), b"") if self.items else None


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CADENZA_HOME", str(tmp_path / "home"))


def test_the_order_of_a_run() -> None:
    server = Recorder()
    with SPARE.run(client=server) as app:  # type: ignore[arg-type]
        assert app is SPARE
        assert app.app_id == "ap-1"
        assert spare.object_id == "fu-spare"
    assert server.asked == [
        "app.create", "object.missing", "object.put", "image.build", "app.publish", "app.finish",
    ]  # fmt: skip
    assert server.bodies["app.create"].name == "spare"
    assert (server.bodies["app.finish"].error, server.bodies["app.finish"].reason) == (False, "")
    assert SPARE.app_id is None
    assert not spare.is_hydrated


def test_a_run_in_an_event_loop() -> None:
    server = Recorder()

    async def main() -> None:
        async with SPARE.run(client=server):  # type: ignore[arg-type]
            assert spare.is_hydrated
        async with SPARE.run.aio(client=server):  # type: ignore[arg-type]
            assert spare.is_hydrated

    asyncio.run(main())
    assert server.asked.count("app.finish") == 2


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_program_raises_ends_the_run_and_comes_through(error: BaseException) -> None:
    server = Recorder()
    with pytest.raises(type(error)):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            raise error
    finish = server.bodies["app.finish"]
    assert (finish.error, finish.reason) == (True, type(error).__name__)
    assert SPARE.app_id is None


def test_the_programs_traceback_is_its_own() -> None:
    import traceback

    def program() -> None:
        with SPARE.run(client=Recorder()):  # type: ignore[arg-type]
            raise ValueError("mine")

    async def async_program() -> None:
        async with SPARE.run(client=Recorder()):  # type: ignore[arg-type]
            raise ValueError("mine")

    for call in (program, lambda: asyncio.run(async_program())):
        try:
            call()
        except ValueError as error:
            shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        assert "running.py" not in shown
        assert "_dual.py" not in shown


def test_a_failed_build_publishes_nothing() -> None:
    server = Recorder(**{"image.build": ImageBuildError("no such package", "im-x")})
    with pytest.raises(ImageBuildError, match="no such package"):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            pass
    assert "app.publish" not in server.asked
    assert server.asked[-1] == "app.finish"


def test_the_end_of_a_run_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from cadenza.exception import ServiceError

    server = Recorder(**{"app.finish": ServiceError("gone")})
    with pytest.raises(ValueError, match="mine"):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            raise ValueError("mine")
    assert "gone" in capsys.readouterr().err
    stopped = Recorder(**{"app.finish": ConflictError("it is stopped")})
    with SPARE.run(client=stopped):  # type: ignore[arg-type]
        pass
    assert capsys.readouterr().err == ""


def test_one_run_at_a_time() -> None:
    server = Recorder()
    with SPARE.run(client=server):  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="already"):
            with SPARE.run(client=server):  # type: ignore[arg-type]
                pass
        assert spare.is_hydrated
        SPARE.stop()
    assert "app.stop" in server.asked
    with pytest.raises(InvalidError, match="neither runs nor is deployed"):
        SPARE.stop()


class Interrupting(Recorder):
    """A server that does not answer these methods, at whose call the user types Ctrl-C."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        self.methods = methods

    async def _request(self, method: str, body: Any, payload: Any = ()) -> Any:
        answer = await super()._request(method, body, payload)
        await self.interrupt(method)
        return answer

    async def _stream(self, method: str, body: Any, payload: Any = ()) -> Any:
        answer = await super()._stream(method, body, payload)
        await self.interrupt(method)
        return answer

    async def interrupt(self, method: str) -> None:
        if method in self.methods:
            await asyncio.sleep(
                0.05
            )  # the main thread must be in its wait: nobody types in its last microsecond before
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()


@pytest.mark.parametrize("phase", ["object.put", "image.build", "app.publish"])
def test_ctrl_c_while_the_app_is_made(phase: str) -> None:
    server = Interrupting(phase)
    with pytest.raises(KeyboardInterrupt):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            raise AssertionError("it was interrupted before")
    assert server.asked[-1] == "app.finish"
    assert server.bodies["app.finish"].reason == "interrupted"
    assert SPARE.app_id is None


def test_ctrl_c_before_there_is_an_app() -> None:
    server = Interrupting("app.create")
    with pytest.raises(KeyboardInterrupt):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            raise AssertionError("it was interrupted before")
    assert server.asked == ["app.create"]


def test_a_second_ctrl_c_does_not_wait_for_the_server() -> None:
    server = Interrupting("app.finish")
    with pytest.raises(KeyboardInterrupt):
        with SPARE.run(client=server):  # type: ignore[arg-type]
            raise KeyboardInterrupt
    assert SPARE.app_id is None
    assert not spare.is_hydrated


def test_no_run_in_a_container() -> None:
    context.become(context.Container("ta-x"))
    try:
        with pytest.raises(InvalidError, match="__main__"):
            with SPARE.run():
                pass
        context.enter("in-1", "fc-1")
        with pytest.raises(InvalidError, match="in a function"):
            with SPARE.run():
                pass
        context.leave()
    finally:
        context.become(None)


@pytest.mark.parametrize("interactive", [False, True])
def test_containers_of_an_interactive_run_may_ask_for_a_terminal(interactive: bool) -> None:
    """Semantics 23."""
    server = Recorder()
    app = App()
    app.function()(plain)
    with app.run(client=server, interactive=interactive):  # type: ignore[arg-type]
        assert app.is_interactive == interactive
    assert [one.interactive for one in server.bodies["app.publish"].functions] == [interactive]
    assert not app.is_interactive


def test_detach_tags_and_environment() -> None:
    server = Recorder()
    app = App("x", tags={"team": "a"})
    app.function()(plain)
    with app.run(client=server, detach=True, environment_name="dev", name="other"):  # type: ignore[arg-type]
        pass
    body = server.bodies["app.create"]
    assert (body.name, body.detach, body.environment, body.tags) == ("other", True, "dev", {"team": "a"})


def test_warnings_of_a_run() -> None:
    server = Recorder()
    server.warnings = ("mind the gap",)
    app = App("x")
    app.function(schedule=Cron("* * * * *"))(plain)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with app.run(client=server):  # type: ignore[arg-type]
            pass
    assert [(one.category, str(one.message)) for one in caught] == [(ServerWarning, "mind the gap")]


def test_functions_that_share_an_image_build_it_once() -> None:
    server = Recorder()
    app = App()
    app.function()(plain)
    app.function()(needs)
    app.function(image=Image.debian_slim().pip_install("a"))(coroutine)
    with app.run(client=server):  # type: ignore[arg-type]
        pass
    assert server.asked.count("image.build") == 2


def test_an_app_without_functions_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/program.py", "--flag"])
    server = Recorder()
    with App().run(client=server):  # type: ignore[arg-type]
        pass
    assert server.bodies["app.create"].name == "program.py"


@pytest.mark.parametrize("answers", [{}, {"app.heartbeat": InternalError("a fault of the server's")}])
def test_heartbeats(answers: dict[str, Any]) -> None:
    """They go on whatever the server says of one: without them it would stop the app."""
    import time

    server = Recorder(**answers)
    os.environ["CADENZA_HEARTBEAT_INTERVAL"] = "0.005"
    try:
        with SPARE.run(client=server):  # type: ignore[arg-type]
            deadline = time.monotonic() + 5
            while server.asked.count("app.heartbeat") < 2 and time.monotonic() < deadline:
                time.sleep(0.002)
    finally:
        del os.environ["CADENZA_HEARTBEAT_INTERVAL"]
    assert server.asked.count("app.heartbeat") >= 2


class Sink:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.seen.append(name)


def test_a_run_is_shown_where_output_is_enabled() -> None:
    from cadenza.exception import NotFoundError

    sink = Sink()
    output.install(sink)
    try:
        with SPARE.run(client=Recorder(**{"log.read": NotFoundError("x")})):  # type: ignore[arg-type]
            pass
    finally:
        output.remove(sink)
    assert sink.seen[0] == "phase"
    assert {"uploading", "build_line", "finished"} <= set(sink.seen)


def test_an_image_can_be_built_by_itself() -> None:
    from cadenza.sdk.publish import build_image

    server, image = Recorder(), Image.debian_slim("3.11")
    asyncio.run(build_image(server, image))
    assert image.object_id.startswith("im-")
    assert server.asked == ["image.build"]
