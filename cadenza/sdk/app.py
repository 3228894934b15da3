"""`App`: functions that are run and published together. Source: semantics.md sections 4, 11 and 23.

What a run of an app does is in `cadenza.sdk.running`.
"""

from __future__ import annotations

from cadenza.base.errors import DeprecationError, InvalidError
from cadenza.sdk import _dual, shape
from cadenza.sdk._light import cast
from cadenza.sdk.app_classes import AppClasses
from cadenza.sdk.app_deployed import AppOnServer
from cadenza.sdk.context_api import container
from cadenza.sdk.declaration import Declaration
from cadenza.sdk.decorators import PartialFunction
from cadenza.sdk.decorators import strict as _strict
from cadenza.sdk.function import Definition, Function
from cadenza.sdk.image import Image
from cadenza.sdk.later import LaterApp
from cadenza.sdk.local_entrypoint import LocalEntrypoint
from cadenza.sdk.names import check_name, check_tags
from cadenza.sdk.options import DEFAULT_TIMEOUT_S, check_mounts, flag, read_options
from cadenza.sdk.secret import Secret, check_secrets
from cadenza.sdk.target import check_kind, check_place, is_interactive_definition, unwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        Any,
        AsyncIterator,
        Callable,
        Coroutine,
        Mapping,
        Optional,
        ParamSpec,
        Protocol,
        Sequence,
        TypeVar,
        Union,
        overload,
    )

    from cadenza.protocol.objects import FunctionSpec
    from cadenza.sdk.budget import Budget
    from cadenza.sdk.client import Client
    from cadenza.sdk.logs import Logs
    from cadenza.sdk.retries import Retries
    from cadenza.sdk.schedule import Schedule

    P = ParamSpec("P")
    R = TypeVar("R")
    F = TypeVar("F", bound=Callable[..., Any])
    T = TypeVar("T")

    class FunctionDecorator(Protocol):
        """What ``@app.function(...)`` is: it keeps the signature of what it is put on."""

        @overload
        def __call__(self, target: PartialFunction[P, R], /) -> Function[P, R, R]: ...
        @overload
        def __call__(
            self, target: Callable[P, Coroutine[Any, Any, R]], /
        ) -> Function[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, target: Callable[P, R], /) -> Function[P, R, R]: ...

    class EntrypointDecorator(Protocol):
        """What ``@app.local_entrypoint()`` is."""

        def __call__(self, raw: Callable[P, R], /) -> LocalEntrypoint[P, R]: ...

else:
    P = T = None


class _Runs(_dual.context[P, T]):
    """A context manager method that also has ``.aio``."""

    def __get__(self, instance: Any, owner: Any = None) -> _RunMethod[P, T]:
        return _RunMethod(self.__wrapped__, instance)


class _RunContext(_dual.BothContext[T]):
    """Gives the program's own exception back with the traceback that it came with: ours is of no use to the reader."""

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> bool:
        try:
            return super().__exit__(kind, error, traceback)
        finally:
            if error is not None:
                error.__traceback__ = traceback

    async def __aexit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> bool:
        try:
            return await super().__aexit__(kind, error, traceback)
        finally:
            if error is not None:
                error.__traceback__ = traceback


class _RunMethod(_dual.BothContextMethod[P, T]):
    __slots__ = ()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> _dual.BothContext[T]:
        return _RunContext(self.__wrapped__(self._first, *args, **kwargs))

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> _dual.BothContext[T]:
        """The same: for ``async with``."""
        return self(*args, **kwargs)


class App(AppClasses, AppOnServer, LaterApp):
    """A group of functions with shared defaults.

    ``image``, ``secrets`` and ``volumes`` hold for functions that do not say otherwise: an app's secrets come before a
    function's own. ``include_source=False`` keeps the program's files out of containers. ``budget`` is a hard cap on
    what the app may spend.
    """

    _app_id: Optional[str]
    _client: Optional[Client]

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        tags: Optional[Mapping[str, str]] = None,
        image: Optional[Image] = None,
        secrets: Sequence[Secret] = [],
        volumes: Mapping[Any, Any] = {},
        include_source: bool = True,
        budget: Optional[Budget] = None,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"App: name must be a string, not {type(name).__name__}")
        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"App: image must be an Image, not {type(image).__name__}")
        if budget is not None:
            _check_budget(budget)
        self._name = name
        self._budget = budget
        self._description: Optional[str] = None
        self._tags = check_tags(tags or {})
        self._image = image
        self._secrets = check_secrets(secrets, "App")
        self._volumes = check_mounts(volumes, "App")
        self._include_source = flag("include_source", include_source, "App")
        self._functions: dict[str, Function[Any, Any, Any]] = {}
        self._declarations: dict[str, Declaration] = {}
        self._entrypoints: dict[str, LocalEntrypoint[Any, Any]] = {}
        self._app_id = None
        self._client = None
        self._interactive = False

    # --- what it is ---

    @property
    def name(self) -> Optional[str]:
        """The name given by the program."""
        return self._name

    @property
    def app_id(self) -> Optional[str]:
        """The id of the app that runs; None while it does not."""
        return self._app_id

    @property
    def description(self) -> Optional[str]:
        """The name, or else what the program was started as."""
        return self._name or self._description

    def set_description(self, description: str) -> None:
        """What lists show for an app without a name."""
        self._description = description

    @property
    def is_interactive(self) -> bool:
        """Whether it runs with a terminal connected to its containers."""
        return self._interactive

    @property
    def image(self) -> Image:
        """The image of functions that name none."""
        if self._image is None:
            self._image = Image.debian_slim()
        return self._image

    @image.setter
    def image(self, image: Image) -> None:
        if not isinstance(image, Image):
            raise InvalidError(f"App.image must be an Image, not {type(image).__name__}")
        self._image = image

    @property
    def registered_functions(self) -> dict[str, Function[Any, Any, Any]]:
        """Deprecated: the app's functions by name."""
        _deprecated("registered_functions")
        return dict(self._functions)

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint[Any, Any]]:
        """Deprecated: the app's local entrypoints by name."""
        _deprecated("registered_entrypoints")
        return dict(self._entrypoints)

    @property
    def registered_web_endpoints(self) -> list[str]:
        """Deprecated: the names of the app's web functions."""
        _deprecated("registered_web_endpoints")
        return [name for name, one in self._declarations.items() if one.marks.web]

    # --- decorators ---

    @_strict
    def function(
        self,
        *,
        image: Optional[Image] = None,
        schedule: Optional[Schedule] = None,
        env: Optional[Mapping[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Union[str, Sequence[Optional[str]], None] = None,
        serialized: bool = False,
        network_file_systems: Mapping[Any, Any] = {},
        volumes: Mapping[Any, Any] = {},
        cpu: Union[float, tuple[float, float], None] = None,
        memory: Union[int, tuple[int, int], None] = None,
        ephemeral_disk: Optional[int] = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        proxy: Any = None,
        retries: Union[int, Retries, None] = None,
        timeout: int = DEFAULT_TIMEOUT_S,
        startup_timeout: Optional[int] = None,
        name: Optional[str] = None,
        is_generator: Optional[bool] = None,
        cloud: Optional[str] = None,
        region: Union[str, Sequence[str], None] = None,
        routing_region: Optional[str] = None,
        nonpreemptible: bool = False,
        enable_memory_snapshot: bool = False,
        block_network: bool = False,
        restrict_modal_access: bool = False,
        single_use_containers: bool = False,
        i6pn: Optional[bool] = None,
        include_source: Optional[bool] = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
        _experimental_restrict_output: bool = False,
        max_inputs: Optional[int] = None,
    ) -> FunctionDecorator:
        """Make a function one that runs in containers. Memory and disk in MiB, times in seconds, cpu in cores.

        InvalidError at decoration for what can never work. What is accepted and not built yet is refused when the app
        is run, with a sentence.
        """
        if max_inputs is not None:
            single_use_containers = _single_use(max_inputs) or single_use_containers
        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"@app.function: image must be an Image, not {type(image).__name__}")
        if name is not None:
            check_name(name, "Function")
        flag("serialized", serialized, "@app.function")
        options = read_options(
            "@app.function",
            schedule=schedule,
            env=env,
            secrets=secrets,
            gpu=gpu,
            network_file_systems=network_file_systems,
            volumes={**self._volumes, **check_mounts(volumes, "@app.function")},
            cpu=cpu,
            memory=memory,
            ephemeral_disk=ephemeral_disk,
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
            proxy=proxy,
            retries=retries,
            timeout=timeout,
            startup_timeout=startup_timeout,
            cloud=cloud,
            region=region,
            routing_region=routing_region,
            nonpreemptible=nonpreemptible,
            enable_memory_snapshot=enable_memory_snapshot,
            block_network=block_network,
            restrict_modal_access=restrict_modal_access,
            single_use_containers=single_use_containers,
            i6pn=i6pn,
            experimental_options=experimental_options,
            restrict_output=_experimental_restrict_output,
        )

        def decorate(target: Any) -> Any:
            raw, marks = unwrap(target)
            by_value = serialized or is_interactive_definition(raw)
            check_place(raw, by_value)
            generator = shape.is_generator(raw)
            if is_generator is not None:
                generator = flag("is_generator", is_generator, "@app.function")
            check_kind(raw, marks, generator, options.retry is not None, options.schedule is not None)
            declaration = Declaration(
                name=name or raw.__qualname__.rsplit("<locals>.", 1)[-1],
                raw=raw,
                is_generator=generator,
                is_async=shape.is_async(raw),
                serialized=by_value,
                include_source=self._include_source
                if include_source is None
                else flag("include_source", include_source, "@app.function"),
                options=options,
                marks=marks,
                image=lambda: self.image if image is None else image,
                app_secrets=lambda: self._secrets,
            )
            return self._register(declaration)

        return cast("FunctionDecorator", decorate)

    def _register(self, declaration: Declaration) -> Function[Any, Any, Any]:
        before = self._functions.get(declaration.name)
        if before is not None:
            name, kind = declaration.name.removesuffix(".*"), "classes" if declaration.methods else "functions"
            _warn(
                f"the app has two {kind} named {name!r}: the later one is used. Give one of them another name=",
                stacklevel=4 if declaration.methods else 3,  # of a class there is `declare` between
            )
        raw = declaration.raw
        definition = Definition(
            raw=raw,
            name=declaration.name,
            module=raw.__module__,
            qualname=raw.__qualname__,
            is_generator=declaration.is_generator,
            is_async=declaration.is_async,
            spec=lambda: _spec(declaration),
            is_web=bool(declaration.marks.web),
        )
        function = Function._from_definition(self, definition)
        self._functions[declaration.name] = function
        self._declarations[declaration.name] = declaration
        self._raise_kept_import_error(declaration)
        return function

    def _raise_kept_import_error(self, declaration: Declaration) -> None:
        """In the container of this function: the ImportError that ``image.imports()`` passed over (section 13.3)."""
        here = container()
        if here is not None and here.function.get("name") == declaration.name:
            declaration.image()._use_here()

    @_strict
    def local_entrypoint(self, *, name: Optional[str] = None) -> EntrypointDecorator:
        """Make a function the one that ``cadenza run`` calls in the user's process, while the app runs."""
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"local_entrypoint: name must be a string, not {type(name).__name__}")

        def decorate(raw: Any) -> Any:
            if isinstance(raw, (Function, PartialFunction, LocalEntrypoint)) or not shape.is_routine(raw):
                raise InvalidError("@app.local_entrypoint() goes on a plain function")
            called = name or raw.__qualname__
            if called in self._entrypoints:
                raise InvalidError(f"the app has two local entrypoints named {called!r}: give one of them another name")
            self._entrypoints[called] = entrypoint = LocalEntrypoint(self, raw, called)
            return entrypoint

        return cast("EntrypointDecorator", decorate)

    def include(self, other_app: App, inherit_tags: bool = True) -> App:
        """Add another app's functions and classes. Where both have one of a name, the other's is used, and a warning
        says so."""
        if not isinstance(other_app, App):
            raise InvalidError(f"App.include takes an App, not {type(other_app).__name__}")
        for name, function in other_app._functions.items():
            before = self._functions.get(name)
            if before is not None and before is not function:
                shown = f"a class named {name[:-2]!r}" if name.endswith(".*") else f"a function named {name!r}"
                _warn(f"both apps have {shown}: the included one is used", stacklevel=2)
            self._functions[name] = function
            self._declarations[name] = other_app._declarations[name]
        if inherit_tags:
            self._tags = {**other_app._tags, **self._tags}
        return self

    # --- running ---

    @_Runs
    def run(
        self,
        *,
        name: Optional[str] = None,
        client: Optional[Client] = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: Optional[str] = None,
    ) -> AsyncIterator[App]:
        """Run the app while the ``with`` block runs: its functions can be called in it, and at its end it stops.

        ``detach=True``: it also goes on if this process vanishes, until nothing is left to do. InvalidError if it runs
        already or if this is a container.
        """
        from cadenza.sdk import running

        return running.run(self, name, client, detach, interactive, environment_name)

    @property
    def logs(self) -> Logs:
        """What its containers wrote: ``fetch``, ``tail`` and ``stream``. Of an app that does not run, but has a name:
        what is kept of its last run."""
        from cadenza.sdk.logs import Logs

        return Logs(self._logs_place)

    async def _logs_place(self) -> tuple[Client, dict[str, str]]:
        app = self._app_id or self._name
        if app is None:
            raise InvalidError("the app has no name and does not run: there are no logs to look for")
        from cadenza.sdk.client import Client

        return self._client or await Client._environment(), {"app": app}

    @_dual.method
    async def get_dashboard_url(self) -> Optional[str]:
        """None: there is no web page for it yet."""
        return None

    def __repr__(self) -> str:
        shown = self.description or "without a name"
        return f"<App {shown}{', ' + self._app_id if self._app_id else ''}>"


def _spec(declaration: Declaration) -> FunctionSpec:
    from cadenza.sdk.publish import prepare  # late: a container never needs it

    return prepare(declaration).spec


def _check_budget(budget: object) -> None:
    from cadenza.sdk.budget import Budget

    if not isinstance(budget, Budget):
        raise InvalidError(
            f"App: budget must be a Budget, such as Budget(container_seconds=3600), not {type(budget).__name__}"
        )


def _warn(text: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    import warnings

    warnings.warn(text, category, stacklevel + 1)


def _deprecated(name: str) -> None:
    _warn(f"App.{name} is deprecated", DeprecationError, stacklevel=3)


def _single_use(max_inputs: int) -> bool:
    if max_inputs != 1:
        raise InvalidError("max_inputs can only be 1, and is deprecated: use single_use_containers=True")
    _warn("max_inputs=1 is deprecated: use single_use_containers=True", DeprecationError, stacklevel=4)
    return True
