"""`Cls`, `Obj`, variants and limits against a fake server: semantics.md sections 3.1, 11.1, 12.2, 12.3 and 34."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from typing import Any

import pytest

import cadenza
from cadenza import App, Cls, Function, Retries, Secret
from cadenza.base.errors import DeprecationError, ExecutionError, InvalidError, NotFoundError, ServiceError
from cadenza.runner import context, values
from cadenza.sdk import cls as cls_module
from cadenza.sdk import handle
from cadenza.sdk.client import Client
from fake_server import FakeServer, Peer

app = App("classes")
events: list[str] = []


class Base:
    size: int = cadenza.parameter(default=3)

    @cadenza.method()
    def inherited(self, x: int) -> str:
        return f"base {x}"


class RawModel(Base):
    name: str = cadenza.parameter(default="m")

    @cadenza.enter()
    def second(self) -> None:
        events.append("second")
        self.loaded = True

    @cadenza.method()
    def predict(self, x: int) -> Any:
        return self.name, self.size, x

    @cadenza.method()
    def chain(self, x: int) -> Any:
        return self.predict.local(x)

    @cadenza.method()
    def inherited(self, x: int) -> str:
        return "derived over " + super().inherited.local(x)  # type: ignore[no-any-return]

    @cadenza.method()
    def items(self, n: int) -> Any:
        yield from range(n)

    def plain(self) -> bool:
        return hasattr(self, "loaded")


class RawAsync:
    @cadenza.enter(snap=True)
    async def first(self) -> None:
        await asyncio.sleep(0)
        events.append("first")

    @cadenza.enter()
    def second(self) -> None:
        events.append("second")

    @cadenza.method()
    async def get(self, x: int) -> int:
        events.append("get")
        return x

    @cadenza.method()
    async def items(self, n: int) -> Any:
        for one in range(n):
            yield one

    @cadenza.method()
    def sync(self) -> int:
        return 1


Model: Any = app.cls()(RawModel)
Async: Any = app.cls(enable_memory_snapshot=True)(RawAsync)


@app.function()
def plain(x: int, y: int = 0) -> int:
    return x


@pytest.fixture(autouse=True)
def forget():
    events.clear()
    yield
    for function in app._functions.values():
        function._init_handle()
        function._known_variants = None


@pytest.fixture
def server(tmp_path):
    one = FakeServer(str(tmp_path / "s.sock"))

    def bind(peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        wish = json.dumps([body.get("parameters"), body.get("patch")], sort_keys=True)
        function_id = f"fu-{body['function_id'][3:]}-{len(one.bound)}"
        function_id = one.bound.setdefault(wish, function_id)
        one.functions[function_id] = lambda *args, **kwargs: (function_id, args)
        peer.send("rep", number, {"function_id": function_id, "app_id": "ap-1", "name": "x", "is_generator": False})

    def find(peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        if body["name"] != "Model.*":
            peer.error(number, "not_found", "no such class")
            return
        peer.send("rep", number, {
            "function_id": "fu-model", "app_id": "ap-1", "name": "Model.*", "is_generator": False,
            "methods": [{"name": "predict"}, {"name": "items", "is_generator": True}],
            "class_parameters": [{"name": "name", "type": "str", "default": '"m"'}],
        })  # fmt: skip

    one.bound = {}  # type: ignore[attr-defined]
    one.handlers.update({"function.bind": bind, "function.find": find})
    one.functions["fu-model"] = lambda *args, **kwargs: ("fu-model", args)
    yield one
    one.close()


@pytest.fixture
def client(server):
    one = Client("unix:" + server.path)
    yield one
    one.close()


@pytest.fixture
def running(client, server):
    """As while the app runs."""
    app._functions["Model.*"]._hydrate("fu-model", client)
    app._functions["RawAsync.*"]._hydrate("fu-async", client)
    app._functions["plain"]._hydrate("fu-plain", client)
    server.functions["fu-plain"] = plain.local


# The decorated classes are called Raw...: give the services the names that the tests speak of.
app._functions["Model.*"] = app._functions.pop("RawModel.*")


# --- local ---


def test_nothing_happens_before_it_is_used() -> None:
    """Section 12.2: no network, no validation, no enter."""
    Model(5), Model(name=3), Model(nonsense=1)
    assert events == []


def test_local_runs_enter_once_for_each_handle() -> None:
    """Section 3.1."""
    one, other = Model(name="a"), Model()
    assert one.predict.local(1) == ("a", 3, 1)
    assert one.predict.local(2) == ("a", 3, 2)
    assert events == ["second"]
    assert other.chain.local(2) == ("m", 3, 2)
    assert events == ["second", "second"]


def test_local_in_two_threads_waits_for_the_hooks() -> None:
    """Neither sees an instance that has not entered, and there is one: semantics.md section 12.2."""
    begun, go_on = threading.Event(), threading.Event()

    class Raw:
        entered = 0

        @cadenza.enter()
        def load(self) -> None:
            begun.set()
            assert self.again.local() == (id(self), 0)  # a hook may call a method
            assert go_on.wait(10)
            self.entered += 1

        @cadenza.method()
        def again(self) -> tuple[int, int]:
            return id(self), self.entered

    obj: Any = App().cls(serialized=True)(Raw)()
    found: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: found.append(obj.again.local())) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert found == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert found == [(found[0][0], 1)] * 2


def test_plain_attributes_are_those_of_an_instance_that_has_not_entered() -> None:
    one = Model(name="a")
    assert one.plain() is False
    assert one.name == "a"
    with pytest.raises(AttributeError):
        _ = one.loaded
    one.predict.local(1)
    assert one.plain() is True


def test_super_and_inheritance() -> None:
    assert Model().inherited.local(1) == "derived over base 1"


def test_a_subclass_of_a_decorated_class() -> None:
    class Derived(Model):  # type: ignore[misc, valid-type]
        pass

    assert Derived.__mro__[1] is RawModel


def test_async_hooks_are_awaited_through_an_async_method() -> None:
    """Section 3.1: those with snap=True first; once, also for two calls at once."""
    one = Async()

    async def main() -> list[int]:
        return list(await asyncio.gather(one.get.local(1), one.get.local(2)))

    assert asyncio.run(main()) == [1, 2]
    assert events == ["first", "second", "get", "get"]


def test_a_sync_method_runs_the_sync_hooks_and_says_what_it_cannot() -> None:
    one = Async()
    with pytest.warns(UserWarning, match="first"):
        assert one.sync.local() == 1
    assert events == ["second"]

    async def main() -> list[int]:
        return [item async for item in one.items.local(2)]

    assert asyncio.run(main()) == [0, 1]
    assert events == ["second", "first"]


def test_a_hook_that_fails_is_tried_again() -> None:
    tries: list[int] = []

    class Flaky:
        @cadenza.enter()
        def load(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise OSError("not yet")

        @cadenza.method()
        def get(self) -> int:
            return len(tries)

    one: Any = App().cls(serialized=True)(Flaky)()  # type: ignore[call-arg]
    with pytest.raises(OSError, match="not yet"):
        one.get.local()
    assert one.get.local() == 2


def test_local_parameters_are_not_checked_but_their_names() -> None:
    """Section 34."""
    assert Model(5).predict.local(1) == ("m", 5, 1)
    assert Model(name=5).predict.local(1) == (5, 3, 1)
    with pytest.raises(TypeError, match="unexpected"):
        Model(z=1).predict.local(1)
    with pytest.raises(TypeError, match="3 were given"):
        Model(1, 2, 3).predict.local(1)
    with pytest.raises(TypeError, match="several values"):
        Model(1, size=2).predict.local(1)


def test_a_method_without_an_instance() -> None:
    """Section 12.2."""
    with pytest.raises(AttributeError, match=r"RawModel\(\)\.predict\.remote"):
        _ = Model.predict.remote
    with pytest.raises(ExecutionError, match="needs an instance"):
        Model.predict.local(1)
    assert Model.plain is RawModel.plain
    with pytest.raises(AttributeError):
        _ = Model.nothing


def test_a_handle_is_no_method() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Model().predict(1)
    with pytest.raises(AttributeError):
        _ = Model().nothing


# --- remote ---


def test_without_a_running_app() -> None:
    with pytest.raises(ExecutionError, match="not been hydrated"):
        Model().predict.remote(1)
    with pytest.raises(ExecutionError, match="not been hydrated"):
        Model(nonsense=1).predict.remote(1)


def test_calls_name_the_method(running, server) -> None:
    assert Model().predict.remote(5)[1] == (5,)
    assert server.requests("call.run")[-1]["method"] == "predict"
    assert "method" not in (plain.remote(1), server.requests("call.run")[-1])[1]
    Model().predict.spawn(1)
    assert server.requests("call.spawn")[-1]["method"] == "predict"
    list(Model().predict.map([1, 2]))
    assert server.requests("call.map")[-1]["method"] == "predict"


def test_defaults_share_a_pool(running, server) -> None:
    """Section 12.2, section 33 point 11: ``C()`` and ``C(x=default)``."""
    same = {Model().predict.remote(1)[0], Model(name="m").predict.remote(1)[0], Model(size=3).chain.remote(1)[0]}
    assert len(same) == 1
    assert len(server.requests("function.bind")) == 1
    assert server.requests("function.bind")[0]["parameters"] == '{"name":"m","size":3}'
    assert Model(name="b").predict.remote(1)[0] not in same


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((5,), {}, "by name"),
        ((), {"name": 5}, "takes str"),
        ((), {"size": True}, "takes int"),
        ((), {"z": 1}, "no param"),
    ],
)
def test_parameters_are_checked_when_they_are_bound(running, args, kwargs, words) -> None:
    with pytest.raises(InvalidError, match=words):
        Model(*args, **kwargs).predict.remote(1)


def test_a_class_without_parameters_needs_no_binding(running, server) -> None:
    server.functions["fu-async"] = lambda *args: "async"
    assert Async().get.remote(1) == "async"
    assert server.requests("function.bind") == []


def test_generators_of_a_class(running) -> None:
    with pytest.raises(InvalidError, match="remote_gen"):
        Model().items.remote(3)
    with pytest.raises(InvalidError, match="not a generator"):
        Model().predict.remote_gen(3)


def test_a_handle_ends_with_its_app(running) -> None:
    one = Model()
    one.predict.remote(1)
    app._functions["Model.*"]._init_handle()
    with pytest.raises(ExecutionError, match="not been hydrated"):
        one.predict.remote(1)


def test_from_name_is_lazy(server, client) -> None:
    """Section 12.2; section 33 point 26."""
    found: Any = Cls.from_name("app", "Model", client=client, version=3)
    one = found(name="a")
    predict, nothing = one.predict, one.nothing
    assert server.received == []
    assert predict.remote(1)[1] == (1,)
    asked = server.requests("function.find")[0]
    assert (asked["app"], asked["name"], asked["version"]) == ("app", "Model.*", 3)
    assert server.requests("function.bind")[0]["parameters"] == '{"name":"a"}'
    with pytest.raises(NotFoundError, match="has no method 'nothing'; it has predict, items"):
        nothing.remote(1)
    with pytest.raises(InvalidError, match="remote_gen"):
        one.items.remote(1)
    with pytest.raises(ExecutionError, match="not in this program"):
        predict.local(1)


def test_from_name_of_what_is_not_there(client) -> None:
    found: Any = Cls.from_name("app", "Other", client=client)
    with pytest.raises(NotFoundError):
        found().get.remote()
    with pytest.raises(NotFoundError):
        found.hydrate()
    with pytest.raises(InvalidError, match="name of a class"):
        Cls.from_name("app", "Model.predict")
    with pytest.raises(InvalidError, match="version"):
        Cls.from_name("app", "Model", version=0)


@pytest.fixture
def forgetful(server):
    """A server that lets variants go: ids in its set ``gone`` are known no more, and a wish gives another one."""
    gone: set[str] = set()

    def let_go() -> None:
        gone.update(server.bound.values())
        server.bound.clear()

    def guarded(name: str) -> Any:
        async def answer(peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
            if body["function_id"] in gone:
                peer.error(number, "not_found", f"there is no function {body['function_id']}")
            else:
                await getattr(server, "on_" + name.replace(".", "_"))(peer, number, body, payload)

        return answer

    def bind(peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> None:
        wish = json.dumps([body.get("parameters"), body.get("patch")], sort_keys=True)
        function_id = server.bound.setdefault(wish, f"fu-again-{len(gone)}-{len(server.bound)}")
        server.functions[function_id] = lambda *args, **kwargs: (function_id, args)
        peer.send("rep", number, {"function_id": function_id, "app_id": "ap-1", "name": "x", "is_generator": False})

    server.handlers.update({name: guarded(name) for name in ("call.run", "call.spawn", "call.map", "call.generate")})
    server.handlers["function.bind"] = bind
    server.let_go = let_go
    server.gone = gone
    return server


@pytest.mark.parametrize("handle", ["class", "options"])
def test_a_variant_that_the_server_let_go_is_bound_again(running, forgetful, handle) -> None:
    """Beyond some 10,000 variants of a function the server lets go those that nobody uses: handles do not notice."""
    one = Model(name="z").predict if handle == "class" else plain.with_options(timeout=9)
    first = one.remote(1)[0]
    forgetful.let_go()
    second = one.remote(2)
    assert second[0] != first and second[1] == (2,)
    assert len(forgetful.requests("function.bind")) == 2
    forgetful.let_go()
    assert one.spawn(3).object_id == "fc-1"
    forgetful.let_go()
    assert [arguments for _, arguments in one.map([4, 5])] == [(4,), (5,)]
    forgetful.let_go()
    one.spawn_map([6])
    assert len(forgetful.requests("function.bind")) == 5


def test_a_function_that_is_gone_is_not_bound_for_ever(running, forgetful) -> None:
    one = Model(name="z").predict
    one.remote(1)
    forgetful.let_go()
    forgetful.handlers["function.bind"] = lambda peer, number, body, payload: peer.send(
        "rep", number, {"function_id": next(iter(forgetful.gone)), "app_id": "ap-1", "name": "x", "is_generator": False}
    )
    with pytest.raises(NotFoundError):
        one.remote(2)
    forgetful.gone.add("fu-plain")
    bound = len(forgetful.requests("function.bind"))
    with pytest.raises(NotFoundError):
        plain.remote(1)
    with pytest.raises(NotFoundError):
        list(plain.map([1]))
    assert len(forgetful.requests("function.bind")) == bound == 2


# --- options ---


def test_options_merge_one_by_one(running, server) -> None:
    """Section 12.3: later calls override scalars, secrets replace the earlier set."""
    function = plain.with_options(
        cpu=2.0, memory=512, timeout=7, secrets=[Secret.from_dict({"A": "1"}), Secret.from_dict({"B": "2"})]
    )
    function = function.with_options(cpu=(1.0, 2.0), secrets=[Secret.from_dict({"C": "3"})], gpu=["H100", "A100:2"])
    function = function.with_concurrency(max_inputs=10, target_inputs=5).with_options(retries=Retries(max_retries=2))
    assert function.remote(4)[1] == (4,)
    body = server.requests("function.bind")[0]
    assert body["function_id"] == "fu-plain"
    patch = {name: value for name, value in body["patch"].items() if value not in (None, {})}
    assert [one["values"] for one in patch.pop("secrets")] == [{"C": "3"}]
    assert patch.pop("retries")["backoff_coefficient"] == 2.0
    assert patch == {
        "cpu_milli": 1000, "cpu_limit_milli": 2000, "memory_mib": 512, "memory_limit_mib": 0, "timeout_s": 7.0,
        "gpus": [{"type": "H100", "count": 1}, {"type": "A100-40GB", "count": 2}],
        "max_concurrent": 10, "target_concurrent": 5,
    }  # fmt: skip
    assert plain.remote(4) == 4


def test_options_of_a_class_and_its_instances(running, server) -> None:
    changed = Model.with_options(max_containers=2)
    ids = {
        Model().predict.remote(1)[0],
        changed().predict.remote(1)[0],
        changed(name="a").predict.remote(1)[0],
        Model(name="a").with_options(max_containers=2).predict.remote(1)[0],
        changed.with_concurrency(max_inputs=3)().predict.remote(1)[0],
    }
    assert len(ids) == 4
    assert [one["patch"] and one["patch"]["max_containers"] for one in server.requests("function.bind")] == [
        None, 2, 2, 2,
    ]  # fmt: skip
    with pytest.raises(InvalidError, match="on its class"):
        Model().predict.with_options(cpu=1.0)


def test_options_are_refused_at_once() -> None:
    for options in ({"cpu": -1}, {"gpu": "X"}, {"max_containers": 0}, {"env": {"A": 1}}, {"volumes": {"/": object()}}):
        with pytest.raises(InvalidError):
            plain.with_options(**options)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="above max_inputs"):
        Model.with_concurrency(max_inputs=1, target_inputs=2)
    with pytest.raises(InvalidError, match="default arguments: y"):
        plain.with_batching(max_batch_size=2, wait_ms=1)
    with pytest.raises(InvalidError, match="one method"):
        Model.with_batching(max_batch_size=2, wait_ms=1)


def test_local_of_a_variant() -> None:
    assert plain.with_options(cpu=1.0).local(3) == 3
    assert Model.with_options(cpu=1.0)(name="z").predict.local(3) == ("z", 3, 3)


# --- travelling ---


def loaded(thing: Any) -> Any:
    return values.unpack(values.pack_bytes(thing, handle.persistent_id), handle.persistent_load)


def test_instances_classes_and_methods_travel(running, server, client) -> None:
    one = loaded(Model(name="a"))
    function_id = Model(name="a").predict.remote(1)[0]
    for piece in (one.predict, loaded(Model(name="a").predict)):
        piece._hydrate_here()
        assert piece._object_id == function_id
        assert piece._method == "predict"
        assert type(loaded(piece)) is Function
    assert one.items._is_generator is True
    with pytest.raises(AttributeError):
        _ = one._private
    cls = loaded(Model)
    assert cls._object_id == "fu-model"
    assert [found.name for found in cls._service._parameters] == ["size", "name"]
    assert cls(name="a")._pool._wanted()[0] == '{"name":"a","size":3}'
    assert loaded(plain.with_options(cpu=3.0))._object_id.startswith("fu-plain-")


def test_a_method_of_a_fresh_instance_travels(running, server) -> None:
    """Its containers are asked for then, as those of the instance are."""
    piece = loaded(Model.with_options(cpu=2.0)(name="never called").predict)
    assert piece._object_id == Model.with_options(cpu=2.0)(name="never called").predict.remote(1)[0]


def test_an_id_that_nothing_asked_for_yet(running) -> None:
    """The app runs, and the words do not say that it does not."""
    with pytest.raises(ExecutionError, match="nothing has asked for its containers yet"):
        _ = Model(name="no id").predict.object_id


def test_what_is_not_hydrated_does_not_travel() -> None:
    for thing in (Model, Model(), Model().predict, plain.with_options(cpu=1.0), Cls.from_name("a", "B")):
        with pytest.raises(InvalidError, match="cannot be an argument"):
            loaded(thing)


def test_an_instance_of_the_users_travels_without_its_handle() -> None:
    one = Model(name="a")
    one.predict.local(1)
    copy = pickle.loads(pickle.dumps(one._local().instance))
    assert copy.name == "a"


# --- in a container ---


@pytest.fixture
def in_container():
    def become(**more: Any) -> None:
        context.become(context.Container("ta-1", "ap-1", "fu-variant", "im-1", {"RawModel.*": "fu-model"}, more))

    yield become
    context.become(None)


def test_self_in_a_container_is_its_own_pool(in_container) -> None:
    """Section 12.2: ``self.other.remote()`` in the containers of this very instance."""
    from cadenza.runner import instances

    in_container(name="RawModel.*", app="classes")
    instance = instances.make(RawModel, {"name": "a"})
    method = instance.predict
    method._hydrate_here()
    assert (method._object_id, method._method) == ("fu-variant", "predict")
    assert method.local(2) == ("a", 3, 2)
    assert events == []


def test_self_of_a_class_that_came_by_value(in_container) -> None:
    """Section 4: ``serialized=True`` brings the class without its handle; a decorated base is another class."""
    from cadenza.runner import instances

    class ByValue(RawModel):
        @cadenza.method()
        def items(self, n: int) -> Any:
            yield n

    for base in (RawModel, ByValue):
        assert (base in cls_module.handles) == (base is RawModel)
    in_container(
        name="ByValue.*", app="classes", methods=[{"name": "predict"}, {"name": "items", "is_generator": True}]
    )
    instance = instances.make(ByValue, {"name": "a"})
    for method, generates in ((instance.predict, False), (instance.items, True)):
        method._hydrate_here()
        assert (method._object_id, method._is_generator) == ("fu-variant", generates)
    assert list(instance.items.local(2)) == [2]


def test_a_handle_in_a_container_finds_its_class(in_container) -> None:
    in_container(name="plain", app="classes")
    Model._hydrate_here()
    assert Model.object_id == "fu-model"


def test_two_apps_of_one_program_with_functions_of_one_name(in_container, monkeypatch) -> None:
    """A handle belongs to the container's app, or to one that it includes."""
    from cadenza.sdk import context_api

    here: list[Any] = []
    monkeypatch.setattr("cadenza.sdk.identity.apps_here", here)
    monkeypatch.setattr("cadenza.sdk.app_classes.apps_here", here)
    assert context_api.container() is None
    context.become(context.Container("ta-1", "ap-1", "fu-1", "", {"same": "fu-1", "lib": "fu-2"}, {"app": "second"}))
    first, second, library = App("first"), App("second"), App("library")

    def same() -> None: ...
    def lib() -> None: ...

    one = first.function(serialized=True)(same)
    two = second.function(serialized=True)(same)
    three = library.function(serialized=True)(lib)
    second.include(library)
    for function in (one, two, three):
        function._hydrate_here()
    assert [function._object_id for function in (one, two, three)] == [None, "fu-1", "fu-2"]
    # An app that runs under another name than the program gives it.
    context.become(context.Container("ta-1", "ap-1", "fu-1", "", {"same": "fu-9"}, {"app": "renamed"}))
    one._hydrate_here()
    assert one._object_id == "fu-9"


# --- limits at run time ---


def test_limits_are_changed_one_by_one(running, server) -> None:
    """Section 11.1."""
    server.handlers["function.scale"] = lambda peer, number, body, payload: peer.send("rep", number, {})
    plain.autoscaler.update(min_containers=2, max_containers=None, scaledown_window=5)
    body = server.requests("function.scale")[0]
    assert body["function_id"] == "fu-plain"
    assert {name: value for name, value in body["patch"].items() if value is not None} == {
        "min_containers": 2, "scaledown_window_s": 5.0,
    }  # fmt: skip
    assert body["unset"] == ["max_containers"]
    Model(name="a").autoscaler.update(buffer_containers=1)
    assert server.requests("function.scale")[1]["function_id"].startswith("fu-model-")
    with pytest.warns(DeprecationError, match=r"autoscaler\.update"):
        plain.update_autoscaler(max_containers=4)
    assert server.requests("function.scale")[2]["unset"] == []
    with pytest.warns(DeprecationError, match=r"autoscaler\.update"):
        Model().update_autoscaler(max_containers=4)


@pytest.mark.parametrize(
    "wrong",
    [{"min_containers": -2}, {"max_containers": 0}, {"scaledown_window": 1}, {"min_containers": 3, "max_containers": 2},
     {"buffer_containers": 1.5}, {"min_containers": True}],
)  # fmt: skip
def test_limits_that_make_no_sense(running, wrong) -> None:
    with pytest.raises(InvalidError):
        plain.autoscaler.update(**wrong)


def test_settings(running, server) -> None:
    server.handlers["function.settings"] = lambda peer, number, body, payload: peer.send(
        "rep", number, {"min_containers": 1, "scaledown_window_s": 60.0}
    )
    found = plain.autoscaler.settings()
    assert (found.min_containers, found.max_containers, found.scaledown_window) == (1, None, 60)


def test_a_method_has_no_limits_of_its_own(running) -> None:
    with pytest.raises(InvalidError, match="of the instance"):
        Model().predict.autoscaler.update(max_containers=1)


# --- more than Modal has ---


def test_spawn_once_sends_its_key_and_not_as_an_argument(running, server) -> None:
    plain.spawn_once("k", 1, y=2)
    assert server.requests("call.spawn")[0]["idempotency_key"] == "k"
    for key in ("", "x" * 257, 3):
        with pytest.raises(InvalidError, match="key"):
            plain.spawn_once(key, 1)  # type: ignore[arg-type]


def test_spawn_once_is_tried_again_when_the_connection_breaks(running, server) -> None:
    """The key makes it safe: the server answers with the call that it has."""
    inner = server.on_call_spawn

    def lose(peer: Peer, number: int, body: dict[str, Any], payload: bytes) -> Any:
        server.handlers["call.spawn"] = inner
        peer.writer.transport.abort()

    server.handlers["call.spawn"] = lose
    assert plain.spawn_once("k", 1).object_id == "fc-1"
    server.handlers["call.spawn"] = lose
    with pytest.raises(ServiceError):
        plain.spawn(1)


def test_spawn_map_returns_a_handle_where_it_is_wished(running, server) -> None:
    """Section 33 point 14: without the wish it returns None."""
    assert plain.spawn_map([1, 2]) is None
    call = plain.spawn_map([1, 2], return_call=True)
    assert list(call.iter()) == [1, 2]


def test_max_in_flight(running, server) -> None:
    assert list(plain.map(range(20), max_in_flight=3)) == list(range(20))
    assert 0 < server.most_outstanding <= 3
    for wrong in (0, 1001, True, "3"):
        with pytest.raises(InvalidError, match="max_in_flight"):
            plain.map([1], max_in_flight=wrong)


def test_two_threads_use_one_handle(running, server) -> None:
    one = Model(name="threads")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(one.predict.remote(1)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
