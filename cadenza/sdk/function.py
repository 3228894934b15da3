"""`Function`: a handle of one function of an app, and the verbs that call it. Source: semantics.md section 3."""

from __future__ import annotations

from cadenza.base.errors import ExecutionError, InvalidError
from cadenza.sdk import _dual
from cadenza.sdk._light import Generic, cast
from cadenza.sdk.handle import travels
from cadenza.sdk.identity import Definition as Definition
from cadenza.sdk.identity import FunctionIdentity

TYPE_CHECKING = False  # typing is slow to import; what the verbs need comes with the first call
if TYPE_CHECKING:
    from typing import (
        Any,
        AsyncIterator,
        Coroutine,
        Iterable,
        Literal,
        Mapping,
        Optional,
        ParamSpec,
        Protocol,
        Sequence,
        TypeVar,
        Union,
        overload,
    )

    from datetime import datetime

    from cadenza.sdk.call import FunctionCall
    from cadenza.sdk.client import Client
    from cadenza.sdk.logs import Logs
    from cadenza.sdk.metrics import FunctionMetrics
    from cadenza.sdk.retries import Retries
    from cadenza.sdk.scaler import Autoscaler
    from cadenza.sdk.secret import Secret
    from cadenza.sdk.types import FunctionCurrentStats as FunctionCurrentStats
    from cadenza.sdk.types import FunctionInfo, FunctionStats

    P = ParamSpec("P")
    R = TypeVar("R")
    """What the call gives: for ``async def`` the awaited value."""
    O = TypeVar("O")  # noqa: E741
    """What the user's own callable returns: for ``async def`` the coroutine."""

    class SpawnMap(Protocol[R]):
        """`Function.spawn_map`, which returns a handle only where it is wished."""

        @overload
        def __call__(
            self, *input_iterators: Any, kwargs: dict[str, Any] = ..., return_call: Literal[False] = False
        ) -> None: ...
        @overload
        def __call__(
            self, *input_iterators: Any, kwargs: dict[str, Any] = ..., return_call: Literal[True]
        ) -> FunctionCall[R]: ...
        @overload
        async def aio(
            self, *input_iterators: Any, kwargs: dict[str, Any] = ..., return_call: Literal[False] = False
        ) -> None: ...
        @overload
        async def aio(
            self, *input_iterators: Any, kwargs: dict[str, Any] = ..., return_call: Literal[True]
        ) -> FunctionCall[R]: ...
else:
    P = R = O = None  # noqa: E741

    def __getattr__(name: str) -> Any:
        if name != "FunctionCurrentStats":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cadenza.sdk.types import FunctionCurrentStats

        return FunctionCurrentStats


MAX_KEY_CHARS = 256
"""Of an idempotency key."""


@travels
class Function(FunctionIdentity, Generic[P, R, O]):
    """A function that runs in containers. Made by ``@app.function``, `from_name` or `from_id`.

    It cannot be called itself: ``f.remote(...)`` runs it in a container, ``f.local(...)`` in this process.
    """

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
            if not self._hydrated and not self._findable():
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

    @_dual.method
    def spawn_once(
        self, idempotency_key: str, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, FunctionCall[R]]:
        """As `spawn`, at most once for a key: the same key for the same function gives the call that it gave first,
        for as long as that call is kept. InvalidError for an empty key or one of over 256 characters."""
        self._check_verb("spawn")
        if not isinstance(idempotency_key, str) or not 0 < len(idempotency_key) <= MAX_KEY_CHARS:
            raise InvalidError(f"spawn_once takes a key of 1 to {MAX_KEY_CHARS} characters before the arguments")
        from cadenza.sdk import invocation

        return invocation.spawn(self, (args, kwargs), idempotency_key)

    # --- many inputs ---

    @_dual.strict_generator
    def map(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006 - the signature of semantics.md section 3.3; never written to
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
        max_in_flight: Optional[int] = None,
    ) -> AsyncIterator[Iterable[R]]:
        """Call it for each of ``zip(*input_iterators)``, in parallel; iterate over the results.

        Nothing runs before the first iteration. Inputs are taken as they are needed and may be endless. With
        ``order_outputs=False`` results come as they finish; with ``return_exceptions=True`` an exception takes its
        input's place, otherwise the first one is raised and ends the map. ``.aio`` also takes async iterables.
        At most ``max_in_flight`` inputs (1 to 1000) are with the server at once.
        """
        _warn_wrapped(wrap_returned_exceptions)
        most = _in_flight(max_in_flight)
        self._check_verb("map")
        from cadenza.sdk import mapping

        inputs = mapping.zipped(input_iterators, kwargs)
        return mapping.results(self, inputs, order_outputs, return_exceptions, most)

    @_dual.strict_generator
    def starmap(
        self,
        input_iterator: Any,
        *,
        kwargs: dict[str, Any] = {},  # noqa: B006
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
        max_in_flight: Optional[int] = None,
    ) -> AsyncIterator[Iterable[R]]:
        """As `map`, where each input is a tuple of arguments."""
        _warn_wrapped(wrap_returned_exceptions)
        most = _in_flight(max_in_flight)
        self._check_verb("starmap")
        from cadenza.sdk import mapping

        inputs = mapping.starred(input_iterator, kwargs)
        return mapping.results(self, inputs, order_outputs, return_exceptions, most)

    @_dual.method
    def for_each(
        self,
        *input_iterators: Any,
        kwargs: dict[str, Any] = {},  # noqa: B006
        ignore_exceptions: bool = False,
        max_in_flight: Optional[int] = None,
    ) -> Coroutine[Any, Any, None]:
        """Call it for each of ``zip(*input_iterators)`` and wait for all; results are dropped, and are not fetched
        apart. The first exception is raised and ends it, unless ``ignore_exceptions``."""
        most = _in_flight(max_in_flight)
        self._check_verb("for_each")
        from cadenza.sdk import mapping

        return mapping.for_each(self, mapping.zipped(input_iterators, kwargs), ignore_exceptions, most)

    if TYPE_CHECKING:

        @property
        def spawn_map(self) -> SpawnMap[R]: ...

    else:

        @_dual.method
        def spawn_map(
            self,
            *input_iterators: Any,
            kwargs: dict[str, Any] = {},  # noqa: B006
            return_call: bool = False,
        ) -> Coroutine[Any, Any, Optional[FunctionCall[R]]]:
            """`spawn` for each of ``zip(*input_iterators)``; returns when all are accepted.

            With ``return_call=True`` they are one call, and it returns its handle: ``get(index=i)``, ``iter()``.
            """
            self._check_verb("spawn_map")
            from cadenza.sdk import mapping

            inputs = mapping.zipped(input_iterators, kwargs)
            return mapping.spawn_all(self, inputs) if return_call else mapping.spawn_each(self, inputs)

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

    # --- variants and limits ---

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
    ) -> Function[P, R, O]:
        """A variant of it with other options, in containers of its own; this handle stays as it is.

        Later calls override single options; ``secrets``, ``env`` and ``volumes`` replace the whole earlier set. Equal
        options, also in other processes, are one variant. None leaves an option. No ``min_containers``: that is for
        the function itself.
        """
        from cadenza.sdk import variant

        changes = variant.read(
            "with_options", cpu=cpu, memory=memory, gpu=gpu, env=env, secrets=secrets, volumes=volumes, retries=retries,
            max_containers=max_containers, buffer_containers=buffer_containers, scaledown_window=scaledown_window,
            timeout=timeout, region=region, cloud=cloud, routing_region=routing_region,
        )  # fmt: skip
        return self._changed("with_options", changes)

    def with_concurrency(self, *, max_inputs: int, target_inputs: Optional[int] = None) -> Function[P, R, O]:
        """A variant whose containers run several inputs at once; see `cadenza.concurrent`."""
        from cadenza.sdk.decorators import concurrency

        pair = concurrency(max_inputs, target_inputs, "with_concurrency")
        return self._changed("with_concurrency", {"concurrent": pair})

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function[P, R, O]:
        """A variant that collects inputs into batches; see `cadenza.batched`."""
        from cadenza.sdk.decorators import batching, check_batched

        pair = batching(max_batch_size, wait_ms, "with_batching")
        if self._definition is not None and self._class is None:
            check_batched(self._definition.raw)
        return self._changed("with_batching", {"batched": pair})

    def _changed(self, verb: str, changes: dict[str, Any]) -> Function[P, R, O]:
        from cadenza.sdk.variant import Variant

        if self._method:
            raise InvalidError(
                f"{self!r} is a method: use {verb} on its class, such as C.{verb}(...)().method.remote()"
            )
        return cast("Function[P, R, O]", Variant._of(self, changes))

    @property
    def _variants(self) -> dict[tuple[str, str], str]:
        """Ids of variants that the server has told: by this function's id, and the wish as text."""
        if self._known_variants is None:
            self._known_variants = {}
        return self._known_variants

    @property
    def autoscaler(self) -> Autoscaler:
        """Its limits at run time: ``update`` and ``settings``."""
        from cadenza.sdk.scaler import Autoscaler

        return Autoscaler(self)

    @_dual.method
    async def update_autoscaler(
        self,
        *,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
    ) -> None:
        """Deprecated: use ``autoscaler.update``. None leaves a limit as it is."""
        from cadenza.sdk.scaler import old_update

        await old_update(self, min_containers, max_containers, buffer_containers, scaledown_window)

    # --- what the server knows of it ---

    _declared: Optional[FunctionInfo] = None

    @_dual.method
    async def get_current_stats(self) -> FunctionCurrentStats:
        """How many inputs wait and run, how many containers it has, and how many more inputs those could take."""
        from cadenza.protocol.functions import FunctionRef
        from cadenza.sdk.types import FunctionCurrentStats

        self._hydrate_here()
        client = await self._ready()
        found = await client._request("function.stats", FunctionRef(self.object_id))
        return FunctionCurrentStats(
            backlog=found.backlog,
            num_total_runners=found.num_total_runners,
            num_running_inputs=found.num_running_inputs,
            input_headroom=found.input_headroom,
        )

    @_dual.method
    async def stats(
        self,
        *,
        since: Optional[datetime] = None,
        until: Optional[datetime] = None,
        container: Optional[str] = None,
        all_variants: bool = False,
    ) -> FunctionStats:
        """What happened to it from ``since`` (None: as far back as is kept) to ``until`` (None: now), by minutes.

        ``container``: only what that one ran, of the last inputs that are kept. ``all_variants``: this function and
        its variants together.
        """
        from cadenza.sdk.stats import function_stats

        return await function_stats(self, since, until, container, all_variants)

    @property
    def metrics(self) -> FunctionMetrics:
        """What was measured over time: ``schema`` and ``export``."""
        from cadenza.sdk.metrics import FunctionMetrics

        return FunctionMetrics(self)

    @_dual.method
    async def info(self, *, refresh: bool = False) -> FunctionInfo:
        """What it is declared to be on the server."""
        from cadenza.sdk.stats import function_info

        if self._declared is None or refresh:
            self._declared = await function_info(self)
        return self._declared

    @property
    def logs(self) -> Logs:
        """What its containers wrote: ``fetch``, ``tail`` and ``stream``."""
        from cadenza.sdk.logs import Logs

        return Logs(self._logs_place)

    async def _logs_place(self) -> tuple[Client, dict[str, str]]:
        from cadenza.protocol.functions import FunctionRef

        self._hydrate_here()
        client = await self._ready()
        found = self._information or await client._request("function.get", FunctionRef(self.object_id))
        self._information = found
        return client, {"app": found.app_id, "function": found.function_id}

    @_dual.method
    async def get_web_url(self) -> Optional[str]:
        """Its address, if it is a web function."""
        self._hydrate_here()
        await self._ready()
        return self._web_url


def _in_flight(value: Optional[int]) -> int:
    """``max_in_flight``; 0: as many as the server lets be. InvalidError out of range."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        raise InvalidError(f"max_in_flight must be an integer between 1 and 1000, got {value!r}")
    return value


def _warn_wrapped(value: Optional[bool]) -> None:
    if value is not None:
        import warnings

        from cadenza.base.errors import DeprecationError

        warnings.warn(
            "wrap_returned_exceptions does nothing any more: returned exceptions are never wrapped",
            DeprecationError,
            stacklevel=4,
        )
