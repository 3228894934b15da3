"""`Function`: a handle of one function of an app, and the verbs that call it. Source: semantics.md section 3."""

from __future__ import annotations

from cadenza.base.errors import ExecutionError, InvalidError
from cadenza.runner import context
from cadenza.sdk import _dual
from cadenza.sdk._light import Generic, cast, record
from cadenza.sdk.handle import Object, travels

TYPE_CHECKING = False  # typing is slow to import; what the verbs need comes with the first call
if TYPE_CHECKING:
    from typing import Any, AsyncIterator, Callable, Coroutine, Iterable, Optional, ParamSpec, TypeVar

    from cadenza.protocol.functions import FunctionInfo
    from cadenza.protocol.objects import FunctionSpec
    from cadenza.sdk.call import FunctionCall
    from cadenza.sdk.client import Client
    from cadenza.sdk.logs import Logs
    from cadenza.sdk.types import FunctionCurrentStats as FunctionCurrentStats

    P = ParamSpec("P")
    R = TypeVar("R")
    """What the call gives: for ``async def`` the awaited value."""
    O = TypeVar("O")  # noqa: E741
    """What the user's own callable returns: for ``async def`` the coroutine."""
else:
    P = R = O = None  # noqa: E741

    def __getattr__(name: str) -> Any:
        if name != "FunctionCurrentStats":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cadenza.sdk.types import FunctionCurrentStats

        return FunctionCurrentStats


@record
class Definition:
    """A function as ``@app.function`` found it."""

    raw: Callable[..., Any]
    """The user's callable, as it was decorated."""
    name: str
    """Its name in the app."""
    module: str
    qualname: str
    is_generator: bool
    is_async: bool
    spec: Callable[[], FunctionSpec]
    """Makes what the server needs; called when the app is published, and may raise InvalidError."""
    is_web: bool = False


@travels
class Function(Object, Generic[P, R, O]):
    """A function that runs in containers. Made by ``@app.function``, `from_name` or `from_id`.

    It cannot be called itself: ``f.remote(...)`` runs it in a container, ``f.local(...)`` in this process.
    """

    _app: Any = None
    _definition: Optional[Definition] = None
    _source: tuple[str, ...] = ()
    """How to find it: (app, name, environment), or (id,)."""
    _name: str = ""
    _is_generator: Optional[bool] = None
    """None: not known before it is hydrated."""
    _web_url: Optional[str] = None
    _information: Optional[FunctionInfo] = None

    # --- making one ---

    @classmethod
    def _from_definition(cls, app: Any, definition: Definition) -> Function[Any, Any, Any]:
        """The handle that ``@app.function`` gives. Hydrated by `_hydrate` when the app is published."""
        function: Function[Any, Any, Any] = cls.__new__(cls)
        function._init_handle()
        function._app = app
        function._definition = definition
        function._name = definition.name
        function._is_generator = definition.is_generator
        return function

    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: Optional[int] = None,
        environment_name: Optional[str] = None,
        client: Optional[Client] = None,
    ) -> Function[Any, Any, Any]:
        """A function of a deployed app. No I/O: NotFoundError comes at the first use.

        InvalidError for ``"Class.method"``: look the class up instead.
        """
        if "." in name:
            kind, _, method = name.partition(".")
            raise InvalidError(
                f"Function.from_name cannot look up the method {name!r}: use "
                f"Cls.from_name({app_name!r}, {kind!r}) and call its instance's .{method}"
            )
        function: Function[Any, Any, Any] = cls.__new__(cls)
        function._init_handle(client=client)
        function._source = (app_name, name, environment_name or "")
        function._name = name
        return function

    @classmethod
    def from_id(cls, function_id: str, *, client: Optional[Client] = None) -> Function[Any, Any, Any]:
        """The function with this id (``fu-...``). No I/O: NotFoundError comes at the first use."""
        function: Function[Any, Any, Any] = cls.__new__(cls)
        function._init_handle(function_id, client)
        function._source = (function_id,)
        return function

    # --- what it is ---

    @property
    def app(self) -> Any:
        """The app that defines it. ExecutionError for a handle that was looked up."""
        if self._app is None:
            raise ExecutionError(f"{self!r} was looked up, so it does not know its App object")
        return self._app

    @property
    def __cadenza_raw__(self) -> Callable[..., Any]:
        """The user's own callable. ExecutionError on a handle without one."""
        return self._defined().raw

    def _defined(self) -> Definition:
        if self._definition is None:
            raise ExecutionError(
                f"{self!r} was looked up and its definition is not in this program, so it cannot run here: "
                f"use .remote(...) to run it in a container"
            )
        return self._definition

    def __repr__(self) -> str:
        if len(self._source) == 3:
            return f"Function.from_name({self._source[0]!r}, {self._source[1]!r})"
        if self._source:
            return f"Function.from_id({self._source[0]!r})"
        return f"<Function {self._name or self._object_id}>"

    # --- hydration ---

    def _unhydrated_hint(self) -> str:
        if self._source:
            return "it has not been hydrated; call .hydrate() first"
        return (
            "it has not been hydrated with what it needs to run on the server, because the App it is defined on is not "
            "running. Put the call inside `with app.run():` or a local entrypoint, or use .local(...)"
        )

    def _hydrate_here(self) -> None:
        if self._hydrated or self._definition is None:
            return
        container = context.current()
        if container is not None:
            function_id = container.layout.get(self._definition.name)
            if function_id is not None:
                self._hydrate(function_id, None)

    def _metadata(self) -> dict[str, Any]:
        return {"name": self._name, "is_generator": bool(self._is_generator), "web_url": self._web_url}

    def _take_metadata(self, metadata: dict[str, Any]) -> None:
        self._name = metadata.get("name") or self._name
        self._is_generator = metadata.get("is_generator", self._is_generator)
        self._web_url = metadata.get("web_url", self._web_url)

    async def _find(self, client: Client) -> None:
        from cadenza.protocol.functions import FunctionFind, FunctionRef

        if len(self._source) == 3:
            app, name, environment = self._source
            if not environment:
                from cadenza.base import config

                environment = config.load().environment
            found = await client._request("function.find", FunctionFind(app, name, environment))
        elif self._source:
            found = await client._request("function.get", FunctionRef(self._source[0]))
        else:
            raise ExecutionError(f"{self!r} cannot be called: {self._unhydrated_hint()}")
        self._information = found
        self._hydrate(found.function_id, self._client, {"name": found.name, "is_generator": found.is_generator})

    @_dual.method
    async def hydrate(self, client: Optional[Client] = None) -> Function[P, R, O]:
        """Ask the server for it now. NotFoundError if it is not there, ExecutionError if its app is not running."""
        if client is not None:
            self._client = client
        self._hydrate_here()
        await self._ready()
        return self

    def _check_verb(self, verb: str, wants_generator: bool = False) -> None:
        """Whether ``verb`` fits. First: is it hydrated, or can it be (semantics.md section 3.1)."""
        if not self._hydrated:
            self._hydrate_here()
            if not self._hydrated and not self._source:
                raise ExecutionError(f"{self!r} cannot be called: {self._unhydrated_hint()}")
        if self._web_url or (self._definition is not None and self._definition.is_web):
            where = f" at {self._web_url}" if self._web_url else ""
            raise InvalidError(
                f"{self!r} is a web function and cannot be called by .{verb}(): send HTTP requests to it{where}, "
                f"or run it here with .local()"
            )
        if self._is_generator is not None and self._is_generator != wants_generator:
            if wants_generator:
                raise InvalidError(f"{self!r} is not a generator: use .remote() instead of .{verb}()")
            if verb == "spawn":
                raise InvalidError(
                    f"Cannot `spawn` a generator function. Iterate over .remote_gen() of {self!r} instead."
                )
            raise InvalidError(f"{self!r} is a generator: use .remote_gen() instead of .{verb}()")

    async def _called(self, verb: str, wants_generator: bool = False) -> Client:
        """The client to call by, once it is sure that ``verb`` fits."""
        if self._hydrated:
            return self._client or await self._ready()
        client = await self._ready()
        self._check_verb(verb, wants_generator)
        return client

    # --- calling ---

    @_dual.method
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run it in a container and wait for the result, or raise the exception it raised."""
        self._check_verb("remote")
        from cadenza.sdk import invocation

        return invocation.remote(self, (args, kwargs))

    @_dual.generator
    def remote_gen(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Iterable[Any]]:
        """Run a generator in a container and iterate over what it yields."""
        self._check_verb("remote_gen", wants_generator=True)
        from cadenza.sdk import invocation

        return invocation.remote_gen(self, (args, kwargs))

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> O:
        """Run the user's own callable in this process. ExecutionError when its definition is not in this program."""
        return cast(O, self._defined().raw(*args, **kwargs))

    @_dual.method
    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, FunctionCall[R]]:
        """Start it in a container and return at once; the work outlives this program. The result is kept for 7 days."""
        self._check_verb("spawn")
        from cadenza.sdk import invocation

        return invocation.spawn(self, (args, kwargs))

    # --- many inputs ---

    @_dual.strict_generator
    def map(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006 - the signature of semantics.md section 3.3; never written to
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
    ) -> AsyncIterator[Iterable[R]]:
        """Call it for each of ``zip(*input_iterators)``, in parallel; iterate over the results.

        Nothing runs before the first iteration. Inputs are taken as they are needed and may be endless. With
        ``order_outputs=False`` results come as they finish; with ``return_exceptions=True`` an exception takes its
        input's place, otherwise the first one is raised and ends the map. ``.aio`` also takes async iterables.
        """
        _warn_wrapped(wrap_returned_exceptions)
        self._check_verb("map")
        from cadenza.sdk import mapping

        return mapping.results(self, mapping.zipped(input_iterators, kwargs), order_outputs, return_exceptions)

    @_dual.strict_generator
    def starmap(
        self,
        input_iterator: Any,
        *,
        kwargs: dict[str, Any] = {},  # noqa: B006
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
    ) -> AsyncIterator[Iterable[R]]:
        """As `map`, where each input is a tuple of arguments."""
        _warn_wrapped(wrap_returned_exceptions)
        self._check_verb("starmap")
        from cadenza.sdk import mapping

        return mapping.results(self, mapping.starred(input_iterator, kwargs), order_outputs, return_exceptions)

    @_dual.method
    def for_each(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006
        ignore_exceptions: bool = False,
    ) -> Coroutine[Any, Any, None]:
        """Call it for each of ``zip(*input_iterators)`` and wait for all; results are dropped, and are not fetched
        apart. The first exception is raised and ends it, unless ``ignore_exceptions``."""
        self._check_verb("for_each")
        from cadenza.sdk import mapping

        return mapping.for_each(self, mapping.zipped(input_iterators, kwargs), ignore_exceptions)

    @_dual.method
    def spawn_map(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006
    ) -> Coroutine[Any, Any, None]:
        """`spawn` for each of ``zip(*input_iterators)``; returns when all are accepted."""
        self._check_verb("spawn_map")
        from cadenza.sdk import mapping

        return mapping.spawn_each(self, mapping.zipped(input_iterators, kwargs))

    @_dual.method
    def experimental_spawn_map(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006
    ) -> Coroutine[Any, Any, FunctionCall[R]]:
        """As `spawn_map`, as one call: read its results by ``get(index=i)`` and ``iter()``."""
        self._check_verb("experimental_spawn_map")
        from cadenza.sdk import mapping

        return mapping.spawn_all(self, mapping.zipped(input_iterators, kwargs))

    # --- what the server knows of it ---

    @_dual.method
    async def get_current_stats(self) -> FunctionCurrentStats:
        """How many inputs wait for it, and how many containers it has."""
        from cadenza.protocol.functions import FunctionRef
        from cadenza.sdk.types import FunctionCurrentStats

        self._hydrate_here()
        client = await self._ready()
        found = await client._request("function.stats", FunctionRef(self.object_id))
        return FunctionCurrentStats(
            backlog=found.backlog,
            num_total_runners=found.num_total_runners,
            num_running_inputs=getattr(found, "num_running_inputs", 0),
            input_headroom=getattr(found, "input_headroom", 0),
        )

    @_dual.method
    async def info(self, *, refresh: bool = False) -> FunctionInfo:
        """What the server says of it."""
        from cadenza.protocol.functions import FunctionRef

        self._hydrate_here()
        client = await self._ready()
        if self._information is None or refresh:
            self._information = await client._request("function.get", FunctionRef(self.object_id))
        return cast("FunctionInfo", self._information)

    @property
    def logs(self) -> Logs:
        """What its containers wrote: ``fetch``, ``tail`` and ``stream``."""
        from cadenza.sdk.logs import Logs

        return Logs(self._logs_place)

    async def _logs_place(self) -> tuple[Client, dict[str, str]]:
        found = await self.info.aio()
        return await self._ready(), {"app": found.app_id, "function": found.function_id}

    @_dual.method
    async def get_web_url(self) -> Optional[str]:
        """Its address, if it is a web function."""
        self._hydrate_here()
        await self._ready()
        return self._web_url


def _warn_wrapped(value: Optional[bool]) -> None:
    if value is not None:
        import warnings

        from cadenza.base.errors import DeprecationError

        warnings.warn(
            "wrap_returned_exceptions does nothing any more: returned exceptions are never wrapped",
            DeprecationError,
            stacklevel=4,
        )
