"""What ``@app.cls`` refuses at decoration, and what it declares: semantics.md sections 10, 12 and 34."""

from __future__ import annotations

import warnings
from typing import Any, Callable, Protocol

import pytest

import cadenza
from cadenza import App
from cadenza.base.errors import DeprecationError, InvalidError, UnimplementedError
from cadenza.protocol.objects import MethodSpec, ParameterSpec
from cadenza.sdk.publish import prepare


class Base:
    size: int = cadenza.parameter(default=3)

    @cadenza.method()
    def inherited(self) -> int:
        return self.size


class Model(Base):
    name: str = cadenza.parameter()
    flag: bool = cadenza.parameter(default=False)
    raw: bytes = cadenza.parameter(default=b"\xff")

    @cadenza.enter()
    def load(self) -> None: ...

    @cadenza.method()
    async def predict(self, x: int) -> int:
        return x

    @cadenza.method()
    def items(self) -> Any:
        yield 1

    @cadenza.method(is_generator=True)
    def forwarded(self) -> Any:
        return iter(())

    @cadenza.exit()
    async def bye(self) -> None: ...

    def plain(self) -> None: ...


class Batched:
    @cadenza.batched(max_batch_size=4, wait_ms=20)
    def many(self, xs: list[int]) -> list[int]:
        return xs


class TwoBatched(Batched):
    @cadenza.method()
    @cadenza.batched(max_batch_size=2, wait_ms=20)
    def others(self, xs: list[int]) -> list[int]:
        return xs


class BatchedAndMore(Batched):
    @cadenza.method()
    def one(self, x: int) -> int:
        return x


class Empty:
    def plain(self) -> None: ...


class Annotated:
    x: list[int] = cadenza.parameter()

    @cadenza.method()
    def get(self) -> None: ...


class UnknownAnnotation:
    x: NoSuchType = cadenza.parameter()  # type: ignore[name-defined]  # noqa: F821

    @cadenza.method()
    def get(self) -> None: ...


class WrongDefault:
    x: int = cadenza.parameter(default=True)

    @cadenza.method()
    def get(self) -> None: ...


Text = str


class Aliased:
    x: Text = cadenza.parameter()
    y: "int" = cadenza.parameter()

    @cadenza.method()
    def get(self) -> None: ...


class Outer:
    class Inner:
        @cadenza.method()
        def get(self) -> None: ...


class Served:
    @cadenza.asgi_app()
    def web(self) -> Any: ...


def declared(raw: Any, **options: Any) -> Any:
    app = App()
    app.cls(**options)(raw)
    return next(iter(app._declarations.values()))


def test_a_class_is_one_function_with_methods_and_parameters() -> None:
    """Section 12.2: one service function ``C.*``; undecorated bases are inherited."""
    spec = prepare(declared(Model, timeout=7, restrict_modal_access=True)).spec
    assert (spec.name, spec.qualname, spec.timeout_s, spec.restricted) == ("Model.*", "Model", 7.0, True)
    assert spec.methods == (
        MethodSpec("inherited"),
        MethodSpec("predict", is_async=True),
        MethodSpec("items", is_generator=True),
        MethodSpec("forwarded", is_generator=True),
    )
    assert spec.class_parameters == (
        ParameterSpec("size", "int", "3"),
        ParameterSpec("name", "str"),
        ParameterSpec("flag", "bool", "false"),
        ParameterSpec("raw", "bytes", '{"bytes": "/w=="}'),
    )


def test_concurrent_and_batched_are_published() -> None:
    """Section 10: ``@concurrent`` on the class, ``@batched`` on its one method."""
    spec = prepare(declared(cadenza.concurrent(max_inputs=8, target_inputs=4)(Batched))).spec
    assert (spec.max_concurrent, spec.target_concurrent, spec.batch_max, spec.batch_wait_ms) == (8, 4, 4, 20)
    assert spec.methods == (MethodSpec("many"),)


def test_a_type_by_another_name() -> None:
    assert prepare(declared(Aliased)).spec.class_parameters == (
        ParameterSpec("x", "str"),
        ParameterSpec("y", "int"),
    )


def test_a_class_travels_by_value() -> None:
    def make() -> Any:
        class Local:
            @cadenza.method()
            def get(self) -> int:
                return 1

        return Local

    with pytest.raises(InvalidError, match="global scope"):
        declared(make())
    spec = prepare(declared(make(), serialized=True)).spec
    assert (spec.name, spec.module, bool(spec.serialized)) == ("Local.*", "", True)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (TwoBatched, "several batched"),
        (BatchedAndMore, "no other methods: one"),
        (Empty, "nothing to call"),
        (Annotated, "str, int, bool or bytes"),
        (UnknownAnnotation, "not NoSuchType"),
        (WrongDefault, "cannot be True"),
        (Outer.Inner, "inside of another"),
        (test_a_type_by_another_name, "@app.function"),
        (cadenza.batched(max_batch_size=2, wait_ms=1)(Empty), "goes on a method"),
    ],
)
def test_classes_that_are_refused(raw: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        declared(raw)


def test_a_class_of_the_same_name_wins_with_a_warning() -> None:
    app = App()
    app.cls()(Model)
    with pytest.warns(UserWarning, match="two classes named 'Model'") as warned:
        app.cls()(Model)
    assert warned[0].filename == __file__


class Speaks(Protocol):
    def word(self) -> str: ...


class Parrot(Speaks):
    @cadenza.method()
    def word(self) -> str:
        return "kraa"


def test_a_protocol_is_no_constructor() -> None:
    """Python gives protocols a constructor of its own."""
    handle: Any = App().cls()(Parrot)
    assert handle().word.local() == "kraa"


def test_twice() -> None:
    app = App()
    with pytest.raises(InvalidError, match="twice"):
        app.cls()(app.cls()(Base))
    with pytest.raises(InvalidError, match=r"below @app\.cls"):
        cadenza.concurrent(max_inputs=2)(App().cls()(Base))


def test_web_methods_are_for_later() -> None:
    with pytest.raises(UnimplementedError, match=r"class 'Served'.*web functions"):
        prepare(declared(Served))


def test_a_parameter_of_the_decorator_that_was_renamed() -> None:
    with pytest.raises(DeprecationError, match="min_containers"):
        App().cls(keep_warm=1)  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match="parentheses"):
        App().cls(Base)  # type: ignore[misc]


class Hooks:
    def enter_with(self, x: int) -> None: ...
    def enter_default(self, x: int = 1) -> None: ...
    def generates(self) -> Any:
        yield 1

    def fine(self) -> None: ...
    def selfless() -> None: ...  # type: ignore[misc]
    def starred(*args: Any) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "words"),
    [
        (lambda: cadenza.enter()(Hooks.enter_with), "only self"),
        (lambda: cadenza.exit()(Hooks.enter_default), "only self"),
        (lambda: cadenza.enter()(Hooks.generates), "generator"),
        (lambda: cadenza.enter()(cadenza.method()(Hooks.fine)), "one of them"),
        (lambda: cadenza.method()(cadenza.exit()(Hooks.fine)), "one of them"),
        (lambda: cadenza.enter()(cadenza.exit()(Hooks.fine)), "one of them"),
        (lambda: cadenza.batched(max_batch_size=2, wait_ms=0)(cadenza.method()(Hooks.fine)), "takes no arguments"),
        (lambda: cadenza.enter()(Hooks.selfless), "with self"),
        (lambda: cadenza.method()(Hooks.selfless), "with self"),
        (lambda: cadenza.method()(staticmethod(Hooks.fine)), "with self|not on staticmethod"),
        (lambda: cadenza.enter()(cadenza.fastapi_endpoint()(Hooks.fine)), "takes no calls"),
        (lambda: cadenza.enter(snap=1), "True or False"),  # type: ignore[arg-type]
        (lambda: cadenza.method(Hooks.fine), "parentheses"),  # type: ignore[misc]
    ],
)
def test_decorators_that_do_not_go_together(decorate: Callable[[], Any], words: str) -> None:
    """Section 12.1: hooks take only self; interface and lifecycle are not combined."""
    with pytest.raises(InvalidError, match=words):
        decorate()


def test_a_method_whose_self_is_among_its_arguments() -> None:
    cadenza.exit()(Hooks.starred)
    cadenza.method()(Hooks.starred)
    cadenza.batched(max_batch_size=2, wait_ms=0)(Hooks.starred)


def test_init_of_a_parameter_is_deprecated() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cadenza.parameter(init=False)
    assert [one.category for one in caught] == [DeprecationError]


def test_the_apps_classes() -> None:
    app, other = App("a"), App("b")
    handle = app.cls()(Base)
    other.include(app)
    assert other._classes == {"Base": handle}
    with pytest.warns(DeprecationError):
        assert app.registered_classes == {"Base": handle}
