"""Variants: a function or class with other options, or a class with its parameters. Source: semantics.md section 12.3.

A variant has a function id of its own, made by the server (``function.bind``) at the first use: equal wishes give the
same id in all processes.
"""

from __future__ import annotations

from cadenza.base.errors import InvalidError, UnimplementedError
from cadenza.sdk import _dual
from cadenza.sdk.function import Function
from cadenza.sdk.options import DEFAULT_TIMEOUT_S, check_mounts, read_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Optional, Sequence, Union

    from cadenza.protocol.objects import OptionsPatch
    from cadenza.sdk.client import Client
    from cadenza.sdk.declaration import Parameter
    from cadenza.sdk.options import Cpu, Gpu, Memory
    from cadenza.sdk.retries import Retries
    from cadenza.sdk.secret import Secret

    Changes = dict[str, Any]
    """What is changed: single wishes, so that a later one overrides an earlier one. Keys are those of `read`, and
    ``concurrent`` and ``batched``, pairs of numbers as in `Marks`."""

MAX_KNOWN_IDS = 1000
"""So many variants of one handle are remembered, to be asked for once."""
_CARRIED = ("region", "cloud", "routing_region")


def read(
    where: str,
    *,
    cpu: Cpu = None,
    memory: Memory = None,
    gpu: Gpu = None,
    env: Optional[Mapping[str, Optional[str]]] = None,
    secrets: Optional[Sequence[Secret]] = None,
    volumes: Mapping[Any, Any] = {},
    retries: Union[int, Retries, None] = None,
    max_containers: Optional[int] = None,
    buffer_containers: Optional[int] = None,
    scaledown_window: Optional[int] = None,
    timeout: Optional[float] = None,
    region: Union[str, Sequence[str], None] = None,
    cloud: Optional[str] = None,
    routing_region: Optional[str] = None,
) -> Changes:
    """The arguments of ``with_options``, checked as a decorator's are; None says nothing."""
    if check_mounts(volumes, where):
        raise UnimplementedError(f"{where}: volumes are not built yet")
    options = read_options(
        where,
        cpu=cpu,
        memory=memory,
        gpu=gpu,
        env=env,
        secrets=secrets,
        retries=retries,
        max_containers=max_containers,
        buffer_containers=buffer_containers,
        scaledown_window=scaledown_window,
        timeout=DEFAULT_TIMEOUT_S if timeout is None else timeout,
        region=region,
        cloud=cloud,
        routing_region=routing_region,
    )
    cpu_milli, memory_mib, cpu_limit_milli, memory_limit_mib, _, gpus = options.numbers
    wishes: list[tuple[str, Any, Any]] = [
        ("cpu", cpu, (cpu_milli, cpu_limit_milli)),
        ("memory", memory, (memory_mib, memory_limit_mib)),
        ("gpu", gpu, gpus),
        ("env", env, options.env),
        ("secrets", secrets, options.secrets),
        ("retries", retries, options.retry),
        ("max_containers", max_containers, options.max_containers),
        ("buffer_containers", buffer_containers, options.buffer_containers),
        ("scaledown_window", scaledown_window, float(options.scaledown_window_s)),
        ("timeout", timeout, float(options.timeout_s)),
        *((name, options.carried.get(name), options.carried.get(name)) for name in _CARRIED),
    ]
    return {name: value for name, given, value in wishes if given is not None}


def patch(changes: Changes) -> Optional[OptionsPatch]:
    """Changes as the server is told of them; None for none."""
    if not changes:
        return None
    from cadenza.base.resources import Gpu
    from cadenza.protocol.objects import OptionsPatch
    from cadenza.sdk import secret

    get = changes.get
    cpu, memory, concurrent, batched = (get(name, (None, None)) for name in ("cpu", "memory", "concurrent", "batched"))
    retries = get("retries")
    return OptionsPatch(
        cpu_milli=cpu[0],
        cpu_limit_milli=cpu[1],
        memory_mib=memory[0],
        memory_limit_mib=memory[1],
        gpus=tuple(Gpu(*one) for one in changes["gpu"]) if "gpu" in changes else None,
        secrets=secret.references(changes["secrets"]) if "secrets" in changes else None,
        env=get("env"),
        retries=None if retries is None else retries._policy(),
        timeout_s=get("timeout"),
        max_containers=get("max_containers"),
        buffer_containers=get("buffer_containers"),
        scaledown_window_s=get("scaledown_window"),
        max_concurrent=concurrent[0],
        target_concurrent=concurrent[1],
        batch_max=batched[0],
        batch_wait_ms=batched[1],
        options={name: changes[name] for name in _CARRIED if name in changes},
    )


def bound(parameters: Sequence[Parameter], args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> str:
    """The values of a class's parameters as the server is told of them. InvalidError for what does not fit."""
    if args:
        raise InvalidError(f"{where}: parameters are given by name, for example {where}(name=value)")
    if not parameters and not kwargs:
        return ""
    from cadenza.protocol.parameters import bind
    from cadenza.sdk.declaration import parameter_specs

    return bind(parameter_specs(parameters), kwargs, where)


class Derived(Function):  # type: ignore[type-arg]
    """A function that is known once another one, its base, is; and is no longer once the base is not: its app ended."""

    _travels_as = "Function"
    _base: Function[Any, Any, Any]
    _base_id: Optional[str] = None
    """Of the base, when this one was hydrated."""

    def _derive(self, base: Function[Any, Any, Any]) -> None:
        self._init_handle()
        self._base = base
        self._app, self._definition, self._name = base._app, base._definition, base._name
        self._is_generator, self._web_url = base._is_generator, base._web_url
        self._methods, self._parameters = base._methods, base._parameters

    def _findable(self) -> bool:
        return self._base._hydrated or self._base._findable()

    def _unhydrated_hint(self) -> str:
        if self._base._hydrated:
            return "nothing has asked for its containers yet; call it first, or .hydrate() it"
        return self._base._unhydrated_hint()

    def _take_at_once(self) -> bool:
        """Hydrate from the base, which is hydrated, if that needs no I/O."""
        raise NotImplementedError

    def _hydrate_here(self) -> None:
        base = self._base
        base._hydrate_here()
        if self._hydrated and self._base_id != base._object_id:
            self._init_handle()
        if not self._hydrated and base._hydrated:
            self._take_at_once()

    def _take(self, function_id: str) -> None:
        base = self._base
        self._base_id = base._object_id
        self._methods, self._parameters, self._web_url = base._methods, base._parameters, base._web_url
        self._hydrate(function_id, base._client)

    def _check_verb(self, verb: str, wants_generator: bool = False) -> None:
        self._hydrate_here()
        super()._check_verb(verb, wants_generator)

    async def _ready(self) -> Client:
        self._hydrate_here()
        client = self._client or await self._base._ready()
        if not self._hydrated:
            await self._find(client)
        return client

    def _prepare_to_travel(self) -> None:
        self._base._prepare_to_travel()
        self._hydrate_here()
        if not self._hydrated and self._base._hydrated:
            _dual.run(self._ready())


class Variant(Derived):
    """A function with changed options, or a class with those and parameters."""

    _changes: Changes
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    _wish: Optional[tuple[str, Optional[OptionsPatch], str]] = None

    @classmethod
    def _of(
        cls,
        base: Function[Any, Any, Any],
        changes: Changes,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> Variant:
        self = cls.__new__(cls)
        if isinstance(base, Variant):
            changes = {**base._changes, **changes}
            base = base._base
        self._derive(base)
        self._changes, self._arguments = changes, arguments
        if "retries" in changes and self._is_generator:
            raise InvalidError(f"{base!r}: retries are not supported for generator functions")
        if "batched" in changes:
            self._is_generator = False
        return self

    def __repr__(self) -> str:
        options = f".with_options({', '.join(sorted(self._changes))})" if self._changes else ""
        return f"{self._base!r}{options}"

    def _wanted(self) -> tuple[str, Optional[OptionsPatch], str]:
        """The parameters as text, the options, and both as one text; InvalidError for parameters that do not fit."""
        if self._wish is None:
            base = self._base
            args, kwargs = self._arguments
            text = bound(base._parameters or (), args, kwargs, base._name.rpartition(".")[0] or base._name)
            changes = patch(self._changes)
            key = ""
            if text or changes is not None:
                from cadenza.protocol.objects import to_json

                key = text + to_json(changes) if changes is not None else text
            self._wish = (text, changes, key)
        return self._wish

    def _take_at_once(self) -> bool:
        base = self._base
        assert base._object_id is not None
        key = self._wanted()[2]
        function_id = base._variants.get((base._object_id, key)) if key else base._object_id
        if function_id is None:
            return False
        self._take(function_id)
        return True

    def _take(self, function_id: str) -> None:
        super()._take(function_id)
        if self._is_generator is None:
            self._is_generator = self._base._is_generator

    async def _find(self, client: Client) -> None:
        base = self._base
        if not base._hydrated:
            await base._find(client)
        if not self._take_at_once():
            await self._bind(client)

    async def _bound_again(self, client: Client, gone: str) -> bool:
        """A server lets variants go that nobody used for long, to make room: the same wish makes one again."""
        if self._object_id == gone:
            if not self._wanted()[2]:
                return False
            await self._bind(client)
        return self._object_id != gone

    async def _bind(self, client: Client) -> None:
        from cadenza.protocol.functions import FunctionBind

        base = self._base
        text, changes, key = self._wanted()
        assert base._object_id is not None
        found = await client._request("function.bind", FunctionBind(base._object_id, text, changes))
        if len(base._variants) >= MAX_KNOWN_IDS:
            base._variants.pop(next(iter(base._variants)))
        base._variants[base._object_id, key] = found.function_id
        self._take(found.function_id)
