"""`Cls` and `Obj`: the handles of a class whose methods run in containers, and of an instance. Source: semantics.md
section 12.2.

A class has one function on the server, called ``Name.*``: its *service*. An instance with parameters or options has a
variant of that. All methods of an instance share its containers.
"""

from __future__ import annotations

from cadenza.base.errors import ExecutionError, InvalidError, NotFoundError
from cadenza.runner import context, instances
from cadenza.sdk import _dual
from cadenza.sdk.declaration import Method
from cadenza.sdk.function import Function
from cadenza.sdk.handle import Handle, Object, travels
from cadenza.sdk.local_instance import LocalInstance, link_of, making
from cadenza.sdk.variant import Derived, Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Mapping, Optional, Sequence, Union

    from cadenza.sdk.client import Client
    from cadenza.sdk.decorators import PartialFunction
    from cadenza.sdk.retries import Retries
    from cadenza.sdk.scaler import Autoscaler
    from cadenza.sdk.secret import Secret
    from cadenza.sdk.variant import Changes

    AnyFunction = Function[Any, Any, Any]

SERVICE = ".*"
"""What a class's name has behind it as the name of a function."""

handles: dict[type, Cls] = {}
"""The user's classes that ``@app.cls`` was put on."""


class MethodFunction(Derived):
    """A method of an instance. ``base`` is the function of the instance's containers."""

    _obj: Optional[Obj] = None
    _instance: Any = None
    """Inside of user code: the very object that it is a method of, whose hooks have run."""
    _raw: Optional[Callable[..., Any]] = None

    @classmethod
    def _of(cls, base: AnyFunction, class_name: str, method: str, raw: Optional[Callable[..., Any]]) -> MethodFunction:
        self = cls.__new__(cls)
        self._derive(base)
        self._is_generator = None
        self._method, self._raw = method, raw
        self._name = f"{class_name}.{method}"
        self._learn()
        return self

    def _learn(self) -> None:
        for one in self._methods or ():
            if one.name == self._method:
                self._is_generator = one.is_generator

    def _take_at_once(self) -> bool:
        base = self._base
        assert base._object_id is not None
        if base._methods is not None and all(one.name != self._method for one in base._methods):
            has = ", ".join(one.name for one in base._methods) or "none"
            raise NotFoundError(f"{self!r}: the class has no method {self._method!r}; it has {has}")
        self._take(base._object_id)
        self._learn()
        return True

    async def _find(self, client: Client) -> None:
        await self._base._ready()
        self._take_at_once()

    async def _bound_again(self, client: Client, gone: str) -> bool:
        if self._object_id == gone and await self._base._bound_again(client, gone):
            self._take_at_once()
        return self._object_id != gone

    def __repr__(self) -> str:
        return f"<Function {self._name}>"

    @property
    def __cadenza_raw__(self) -> Callable[..., Any]:
        if self._raw is None:
            self._defined()
            raise ExecutionError(f"{self!r} has no definition in this program")
        return self._raw

    def local(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it in this process, on the handle's one local instance, whose enter hooks run before its first call."""
        raw = self.__cadenza_raw__
        if self._instance is not None:
            return raw(self._instance, *args, **kwargs)
        assert self._obj is not None
        return self._obj._local().call(raw, args, kwargs)


class UnboundMethod:
    """``C.method``: a method without an instance. It cannot be called."""

    def __init__(self, class_name: str, method: str) -> None:
        self._what = f"{class_name}.{method}"
        self._instead = f"{class_name}().{method}"

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """ExecutionError: it needs an instance."""
        raise ExecutionError(f"{self._what} is a method and needs an instance: use {self._instead}.local(...)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{self._what} is a method of a class and has no {name!r}: make an instance first, {self._instead}.{name}"
        )

    def __repr__(self) -> str:
        return f"<method {self._what} without an instance>"


class Obj(Handle):
    """A handle of an instance, made by calling a `Cls`. Nothing happens before a method is called: no network, no check
    of the parameters, no enter hook.

    ``obj.method`` is a `Function`. Of a class that this program defines, other attributes are those of one local
    instance, on which hooks have not run unless ``.local()`` was called.
    """

    def __init__(
        self,
        cls: Cls,
        user_cls: Optional[type],
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._init_handle()
        self._cls = cls
        self._user_cls = user_cls
        self._pool: AnyFunction = Variant._of(cls._service, dict(options), (args, kwargs))
        self._functions: dict[str, MethodFunction] = {}
        self._own: Optional[LocalInstance] = None

    # --- as a handle ---

    def _hydrate_here(self) -> None:
        self._pool._hydrate_here()
        self._object_id, self._hydrated = self._pool._object_id, self._pool._hydrated

    def _prepare_to_travel(self) -> None:
        self._pool._prepare_to_travel()
        self._hydrate_here()

    def _unhydrated_hint(self) -> str:
        return self._pool._unhydrated_hint()

    def _metadata(self) -> dict[str, Any]:
        return _told(self._pool, self._cls._name)

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        pool = Function.from_id(self._object_id or "")
        _learn(pool, metadata)
        pool._hydrate(self._object_id or "", None)
        cls = Cls._made(metadata["class"], pool, None, {})
        Obj.__init__(self, cls, None, {}, (), {})
        self._pool = pool
        self._hydrate_here()

    def __repr__(self) -> str:
        args, kwargs = self._pool._arguments if isinstance(self._pool, Variant) else ((), {})
        shown = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        return f"<Obj {self._cls._name}({shown})>"

    # --- its attributes ---

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and "_functions" not in self.__dict__:
            raise AttributeError(name)  # half made
        function = self._functions.get(name) or self._method(name)
        if function is not None:
            return function
        user_cls = self._user_cls
        if user_cls is None or not hasattr(user_cls, name):
            make = _OF_INSTANCES.get(name)
            if make is not None:
                return make(self)
        if user_cls is None:
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        return getattr(self._local().instance, name)

    def _method(self, name: str) -> Optional[MethodFunction]:
        raw = None
        if self._user_cls is not None:
            raw = instances.methods(self._user_cls).get(name)
            if raw is None:
                return None
        elif name.startswith("_") or (
            name in _OF_INSTANCES and all(one.name != name for one in self._cls._service._methods or ())
        ):
            return None
        function = self._functions[name] = MethodFunction._of(self._pool, self._cls._name, name, raw)
        function._obj = self
        return function

    def _local(self) -> LocalInstance:
        if self._user_cls is None:
            raise ExecutionError(f"{self!r} was looked up and its class is not in this program, so it cannot run here")
        with making:
            if self._own is None:
                args, kwargs = self._pool._arguments if isinstance(self._pool, Variant) else ((), {})
                self._own = LocalInstance(self._user_cls, args, kwargs, self)
            return self._own

    @_dual.method
    async def update_autoscaler(
        self,
        *,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        buffer_containers: Optional[int] = None,
    ) -> None:
        """Deprecated: use ``autoscaler.update``. None leaves a limit as it is."""
        from cadenza.sdk.scaler import old_update

        await old_update(self._pool, min_containers, max_containers, buffer_containers, scaledown_window)

    def _autoscaler(self) -> Autoscaler:
        return self._pool.autoscaler

    def _again(self, cls: Cls) -> Obj:
        """The same instance of the class with other options."""
        if not isinstance(self._pool, Variant):
            raise InvalidError(f"{self!r} came from another process: set options where it is made")
        args, kwargs = self._pool._arguments
        return Obj(cls, cls._user_cls, cls._options, args, kwargs)


_OF_INSTANCES: dict[str, Callable[[Obj], Any]] = {
    # What an instance can do where the user's class has nothing of that name.
    "autoscaler": Obj._autoscaler,
    "with_options": lambda obj: lambda **options: obj._again(obj._cls.with_options(**options)),
    "with_concurrency": lambda obj: lambda **options: obj._again(obj._cls.with_concurrency(**options)),
    "with_batching": lambda obj: lambda **options: obj._again(obj._cls.with_batching(**options)),
    "get_current_stats": lambda obj: obj._pool.get_current_stats,
    "logs": lambda obj: obj._pool.logs,
    "hydrate": lambda obj: _dual.Both(_hydrate_obj, obj),
}


async def _hydrate_obj(obj: Obj, client: Optional[Client] = None) -> Obj:
    """Ask the server for the instance's containers now."""
    if client is not None:
        obj._pool._client = client
    await obj._pool._ready()
    obj._hydrate_here()
    return obj


@travels
class Cls(Object):
    """A class whose methods run in containers. Made by ``@app.cls`` or `from_name`; calling it makes an instance."""

    _service: AnyFunction
    _user_cls: Optional[type]
    _options: Changes
    _name: str

    @classmethod
    def _made(cls, name: str, service: AnyFunction, user_cls: Optional[type], options: Changes) -> Cls:
        self = cls.__new__(cls)
        self._init_handle()
        self._name, self._service, self._user_cls, self._options = name, service, user_cls, options
        return self

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: Optional[int] = None,
        environment_name: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> Cls:
        """A class of a deployed app. No I/O: NotFoundError comes at the first use, for an unknown method too.

        ``version``: that version of the app, in containers of its own.
        """
        if not isinstance(name, str) or "." in name:
            raise InvalidError(f"Cls.from_name takes the name of a class, not {name!r}")
        service = Function._from_source(app_name, name + SERVICE, version, environment_name, client)
        found = cls._made(name, service, None, {})
        service._class = found
        found._client = client
        return found

    # --- as a handle ---

    def _hydrate_here(self) -> None:
        self._service._hydrate_here()
        self._object_id, self._hydrated = self._service._object_id, self._service._hydrated

    async def _find(self, client: Client) -> None:
        if not self._service._hydrated:
            await self._service._find(client)
        self._hydrate_here()

    def _unhydrated_hint(self) -> str:
        return self._service._unhydrated_hint()

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Cls:
        """Ask the server for it now. NotFoundError if it is not there, ExecutionError if its app is not running."""
        if client is not None:
            self._client = self._service._client = client
        self._hydrate_here()
        await self._ready()
        return self

    def _metadata(self) -> dict[str, Any]:
        if self._options:
            raise InvalidError(f"{self!r} has options and cannot be an argument: make an instance of it, and pass that")
        return _told(self._service, self._name)

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        service = Function.from_id(self._object_id or "")
        _learn(service, metadata)
        service._hydrate(self._object_id or "", None)
        self._name, self._service, self._user_cls, self._options = metadata["class"], service, None, {}

    @property
    def app(self) -> Any:
        """The app that defines it. ExecutionError for a handle that was looked up."""
        return self._service.app

    @property
    def __cadenza_raw__(self) -> type:
        if self._user_cls is None:
            raise AttributeError(f"{self!r} was looked up: its class is not in this program")
        return self._user_cls

    def __repr__(self) -> str:
        source = self._service._source
        if len(source) == 3:
            return f"Cls.from_name({source[0]!r}, {self._name!r})"
        return f"<Cls {self._name}>"

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        """``class D(C)``: the user's class is the base."""
        return (self.__cadenza_raw__,)

    # --- instances and attributes ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A handle of an instance with these parameters. Nothing is checked and nothing runs yet."""
        return Obj(self, self._user_cls, self._options, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        user_cls = self.__dict__.get("_user_cls")
        if user_cls is not None:
            if name in instances.methods(user_cls):
                return UnboundMethod(self._name, name)
            return getattr(user_cls, name)
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return UnboundMethod(self._name, name)

    # --- options ---

    def with_options(
        self,
        *,
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        gpu: Union[str, Sequence[Optional[str]], None] = None,
        env: Optional[Mapping[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        volumes: Mapping[Any, Any] = {},
        retries: Union[int, Retries, None] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        timeout: Optional[int] = None,
        region: Union[str, Sequence[str], None] = None,
        cloud: Optional[str] = None,
        routing_region: Optional[str] = None,
    ) -> Cls:
        """The class with other options: its instances have containers of their own. See `Function.with_options`."""
        from cadenza.sdk import variant

        return self._changed(
            variant.read(
                "with_options", cpu=cpu, memory=memory, gpu=gpu, env=env, secrets=secrets, volumes=volumes,
                retries=retries, max_containers=max_containers, buffer_containers=buffer_containers,
                scaledown_window=scaledown_window, timeout=timeout, region=region, cloud=cloud,
                routing_region=routing_region,
            )
        )  # fmt: skip

    def with_concurrency(self, *, max_inputs: int, target_inputs: Optional[int] = None) -> Cls:
        """The class with containers that run several inputs at once."""
        from cadenza.sdk.decorators import concurrency

        return self._changed({"concurrent": concurrency(max_inputs, target_inputs, "with_concurrency")})

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls:
        """The class with its one method on batches. InvalidError if it has several."""
        from cadenza.sdk.decorators import batching, check_batched

        pair = batching(max_batch_size, wait_ms, "with_batching")
        if self._user_cls is not None:
            methods = instances.methods(self._user_cls)
            if len(methods) > 1:
                raise InvalidError(
                    f"{self!r}: only a class with one method can be batched; it has {', '.join(methods)}"
                )
            for raw in methods.values():
                check_batched(raw)
        return self._changed({"batched": pair})

    def _changed(self, changes: Changes) -> Cls:
        changed = Cls._made(self._name, self._service, self._user_cls, {**self._options, **changes})
        changed._client = self._client
        return changed


travels(Obj)


def _told(function: AnyFunction, class_name: str) -> dict[str, Any]:
    """What a copy of a handle in another process has to know of the class, as plain JSON values."""
    from cadenza.protocol.plain import to_plain
    from cadenza.sdk.declaration import method_specs, parameter_specs

    return {
        "class": class_name,
        "methods": to_plain(method_specs(function._methods or ())),
        "parameters": to_plain(parameter_specs(function._parameters or ())),
    }


def _learn(function: AnyFunction, metadata: dict[str, Any]) -> None:
    function._name = metadata["class"] + SERVICE
    function._methods = tuple(
        Method(one["name"], one.get("is_generator", False), one.get("is_async", False)) for one in metadata["methods"]
    )
    if metadata["parameters"]:
        from cadenza.protocol.objects import ParameterSpec
        from cadenza.sdk.declaration import parameters_of

        function._parameters = parameters_of([ParameterSpec(**one) for one in metadata["parameters"]])
    else:
        function._parameters = ()


# --- inside of user code ---


def method_of(instance: Any, partial: PartialFunction[Any, Any]) -> AnyFunction:
    """``self.method`` in a method of the user's: ``.local()`` runs on ``self``, ``.remote()`` in the containers of the
    instance that it is."""
    raw = partial.raw
    obj = link_of(instance)
    if obj is None:
        obj = _obj_of(instance)
    function = MethodFunction._of(obj._pool, obj._cls._name, raw.__name__, raw)
    function._obj, function._instance = obj, instance
    return function


def _obj_of(instance: Any) -> Obj:
    user_cls = type(instance)
    here = context.current()
    name = user_cls.__qualname__.rsplit("<locals>.", 1)[-1]
    told = here.function if here is not None else {}
    if here is not None and user_cls not in handles and told.get("name") == name + SERVICE:
        # It came to its container by value, and so without its handle.
        pool = Function.from_id(here.function_id)
        _learn(pool, {"class": name, "methods": told.get("methods") or (), "parameters": ()})
        pool._hydrate(here.function_id, None)
        obj = Obj(Cls._made(name, pool, user_cls, {}), user_cls, {}, (), {})
        obj._pool = pool
        return obj
    cls = next((handles[one] for one in user_cls.__mro__ if one in handles), None)
    if cls is None:
        return Obj(
            Cls._made(user_cls.__name__, _Homeless._named(user_cls.__name__), user_cls, {}), user_cls, {}, (), {}
        )
    values = {name: getattr(instance, name) for name in instances.parameters(user_cls)}
    obj = Obj(cls, cls._user_cls, {}, (), values)
    service = cls._service
    if here is not None and told.get("name") == service._name:
        service._hydrate_here()
        if service._hydrated:
            # This very container's function: the class with its parameters and options.
            pool = Function.from_id(here.function_id)
            pool._name, pool._methods, pool._parameters = service._name, service._methods, service._parameters
            pool._hydrate(here.function_id, service._client)
            obj._pool = pool
    return obj


class _Homeless(Function):  # type: ignore[type-arg]
    """Stands for the containers of a class that is in no app."""

    @classmethod
    def _named(cls, name: str) -> _Homeless:
        self = cls.__new__(cls)
        self._init_handle()
        self._name = name
        return self

    def _unhydrated_hint(self) -> str:
        return f"its class {self._name} is not part of an app: put @app.cls() on it"
